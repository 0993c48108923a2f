#!/usr/bin/env python3
"""Trains one small adapter of every kind for the model of ../pocket_adapters/model and writes them, with reference runs, beside it.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, safetensors 0.8.0, pillow 13.0.0 (`requirements.txt`). Nothing is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python pocket_adapters.py [--only NAME ...] [--cache DIR] [--sheets DIR]

Seeded; counted in steps, not in minutes. `--only runs` repeats the reference runs alone.

What is trained. The base stays frozen exactly as it is sampled: LCM LoRA merged, AnimateLCM's motion modules, norms per frame. Clips
`z` of the model's own grammar (rendered here, encoded once by its VAE) are noised to a timestep of the sampler, mostly one of the four
that a run of four steps visits, and the denoised clip is drawn to `z` by a pseudo-Huber loss. What the condition does not tell (the
place of the object, say) is then averaged in the first step and decided in the later ones. Most steps are on single frames through the
spatial part alone, as such adapters are trained at full size; then come some on whole clips.

What is seen (`--sheets`), with the weights that are stored. The ControlNet draws clean stars and squares where the hint has them; the
T2I-Adapter puts a lump of the right size there; SparseCtrl does so at the frames that it is told, and does not lead from one to the next.
The IP-Adapter brings the background of its picture, not the color of the object. The style LoRA whitens the background and lets the
color of the object waver. The motion LoRA drifts to the left by a quarter of the picture. The word is green.

../pocket_adapters/
    model/                                    the trained model they are for; see its README.md
    controlnet/, sparsectrl/, t2i_adapter/    diffusers folders; the hint is the object's silhouette, white on black, one picture a frame
                                              (SparseCtrl: scribble type, for any of the frames)
    ip_adapter.safetensors, image_encoder/    base kind, four tokens; a CLIP vision tower of two layers that was trained with it
    style_lora.safetensors                    kohya names, rank 4: a white background, whatever the prompt says
    motion_lora.safetensors                   AnimateDiff's camera LoRAs as diffusers writes them, rank 8: moves left, whatever the prompt says
    word.safetensors                          textual inversion, one vector, `<leaf>`: a colour, green
    star.gif, square.gif, circle.gif          silhouettes of the runs: 16 frames, but 4 of the circle
    red_on_white.png, yellow_on_navy.png      pictures for the IP-Adapter
    runs.json, runs.safetensors               per run: prompt, seed and the program's flags; latents of the result (1, 4, 16, 8, 8),
                                              frames (1, 3, 64, 64) in [0, 1], float16: number 11 of 16
"""
import argparse
import glob
import hashlib
import json
import math
import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import torch.nn.functional as F
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    AnimateDiffSparseControlNetPipeline,
    ControlNetModel,
    LCMScheduler,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.models import SparseControlNetModel
from keys import kohya_key
from make_goldens import per_frame_norms, save_model_half
from PIL import Image
from pocket import GOLDENS, load
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

OUT = f"{GOLDENS}/pocket_adapters"
MODEL = f"{OUT}/model"
FRAMES, SIDE = 16, 64
VISITED = (999, 749, 499, 249)
KEPT = (11,)

# ------------------------------------------------------------------------------------------- the grammar
COLORS = {"red": (230, 40, 40), "green": (40, 190, 70), "blue": (50, 90, 250), "yellow": (245, 225, 50), "white": (250, 250, 250),
          "purple": (160, 60, 220), "orange": (250, 140, 30), "cyan": (60, 220, 230)}
GROUNDS = {"black": (8, 8, 8), "white": (245, 245, 245), "grey": (120, 120, 120), "navy": (15, 20, 80), "brown": (95, 55, 25)}
SHAPES = ("circle", "square", "triangle", "star", "ring")
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "shrinking", "spinning", "bouncing", "standing still")


def around(radii, first, centre=(0.0, 0.0)):
    """Corners around a centre, clockwise on the screen, from the angle `first` (0: up); radii in units of the object's."""
    n = len(radii)
    return [(centre[0] + r * math.sin(first + 2 * math.pi * i / n), centre[1] - r * math.cos(first + 2 * math.pi * i / n)) for i, r in enumerate(radii)]


CORNERS = {
    "square": around([0.88 * math.sqrt(2)] * 4, math.pi / 4),
    "triangle": around([1.218] * 3, 0.0, (0.0, 0.15)),
    "star": around([1.15, 0.45 * 1.15] * 5, 0.0),
}


def silhouette(shape, x, y, radius, angle):
    """How much of each pixel an object covers, in [0, 1]; `x, y, radius, angle` are (frames,), the result (frames, side, side)."""
    at = torch.arange(SIDE) + 0.5
    dx, dy = at[None, None, :] - x[:, None, None], at[None, :, None] - y[:, None, None]
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    px, py = (c * dx + s * dy) / radius[:, None, None], (c * dy - s * dx) / radius[:, None, None]
    if shape in CORNERS:
        corners = CORNERS[shape]
        nearest, inside = torch.full_like(px, math.inf), torch.zeros_like(px, dtype=torch.bool)
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
            ex, ey = bx - ax, by - ay
            along = (((px - ax) * ex + (py - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
            nearest = torch.minimum(nearest, (px - ax - along * ex) ** 2 + (py - ay - along * ey) ** 2)
            inside ^= ((ay > py) != (by > py)) & (px < ax + (py - ay) * ex / (ey if ey else 1e-12))
        distance = torch.where(inside, -nearest.sqrt(), nearest.sqrt())
    else:
        distance = (px**2 + py**2).sqrt()
        distance = distance - 1 if shape == "circle" else (distance - 0.78).abs() - 0.24
    return (0.5 - distance * radius[:, None, None]).clamp(0, 1)


def path(motion, uniform):
    """`x, y, radius, angle` of each frame; `uniform(a, b)` draws a number. No motion: any path, which only a hint can tell."""
    u = torch.linspace(0, 1, FRAMES)
    ease, flat = u**1.6, torch.ones(FRAMES)
    if motion is None:
        if uniform(0, 1) < 0.5:
            x, y = (uniform(14, 50) + u * uniform(-28, 28)).clamp(12, 52), (uniform(14, 50) + u * uniform(-28, 28)).clamp(12, 52)
        else:
            start, turn, far = uniform(0, 2 * math.pi), uniform(-6, 6), uniform(6, 16)
            x, y = 32 + far * (start + turn * u).cos(), 32 + far * (start + turn * u).sin()
        return x, y, (uniform(8, 16) + u * uniform(-6, 6)).clamp(7, 18), uniform(0, 6.3) + u * uniform(-3, 3)
    x, y, radius, angle = uniform(22, 42) * flat, uniform(22, 42) * flat, uniform(9, 14) * flat, 0 * flat
    if motion.startswith("moving"):
        a, b, across, radius = uniform(47, 53), uniform(11, 17), uniform(24, 40) * flat, uniform(9, 12) * flat
        way = a + (b - a) * ease
        x, y = {"left": (way, across), "right": (64 - way, across), "up": (across, way), "down": (across, 64 - way)}[motion.split()[1]]
    elif motion in ("growing", "shrinking"):
        small, large, x, y = uniform(6, 7.5), uniform(18, 22), uniform(28, 36) * flat, uniform(28, 36) * flat
        radius = small + (large - small) * ease if motion == "growing" else large + (small - large) * ease
    elif motion == "spinning":
        x, y, radius, angle = uniform(28, 36) * flat, uniform(28, 36) * flat, uniform(12, 16) * flat, uniform(0, 6.3) + 2.6 * u
    elif motion == "bouncing":
        x, y, radius = uniform(20, 44) * flat, 51 - 34 * (math.pi * (2 * u + uniform(0, 1))).sin().abs(), uniform(8, 10.5) * flat
    return x, y, radius, angle


def paint(mask, color, ground):
    """Pictures (frames, 3, side, side) in [-1, 1]."""
    tint = lambda rgb: torch.tensor(rgb).view(1, 3, 1, 1) / 127.5 - 1
    return mask[:, None] * tint(COLORS[color]) + (1 - mask[:, None]) * tint(GROUNDS[ground])


class Draw:
    """Everything that is drawn at random, from one seed."""

    def __init__(self, seed):
        self.g = torch.Generator().manual_seed(seed)

    def uniform(self, a, b):
        return a + (b - a) * float(torch.rand(1, generator=self.g))

    def index(self, n):
        return int(torch.randint(n, (1,), generator=self.g))

    def choice(self, among):
        return among[self.index(len(among))]

    def clip(self, motions=MOTIONS):
        """Words of a clip and its silhouettes."""
        while True:
            words = {"shape": self.choice(SHAPES), "color": self.choice(tuple(COLORS)), "ground": self.choice(tuple(GROUNDS)), "motion": self.choice(motions)}
            dull = words["color"] == words["ground"] or (words["motion"] == "spinning" and words["shape"] in ("circle", "ring"))
            if not dull:
                return words, silhouette(words["shape"], *path(words["motion"], self.uniform))


def caption(words, without=()):
    kept = {k: v for k, v in words.items() if k not in without and v is not None}
    parts = ["a", kept.get("color"), kept.get("shape", ""), kept.get("motion"), f"on a {kept['ground']} background" if "ground" in kept else None]
    return " ".join(p for p in parts if p)


# ------------------------------------------------------------------------------------------- the frozen base
class Base:
    def __init__(self):
        with torch.no_grad():
            self.unet, self.vae, self.text, self.tokenizer = load(MODEL)
        for part in (self.unet, self.vae, self.text):
            part.requires_grad_(False)
        betas = torch.linspace(0.00085, 0.012, 1000)
        self.kept = torch.cumprod(1 - betas, 0)
        self.known = {}

    def encode_text(self, prompts):
        ids = self.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        return self.text(ids)[0]

    def context(self, prompts):
        """As `encode_text`, each prompt once."""
        for prompt in prompts:
            if prompt not in self.known:
                self.known[prompt] = self.encode_text([prompt])
        return torch.cat([self.known[prompt] for prompt in prompts])

    @torch.no_grad()
    def encode(self, pictures):
        """(frames, 3, side, side) in [-1, 1] to latents (4, frames, 8, 8)."""
        return (self.vae.encode(pictures).latent_dist.mean * self.vae.config.scaling_factor).transpose(0, 1)

    @torch.no_grad()
    def pool(self, name, cache, clips):
        """Latents (clips, 4, frames, 8, 8) of what `clips` yields as (words, masks, pictures); kept in the cache."""
        file = f"{cache}/pool_{name}.pt"
        if not os.path.exists(file):
            began = time.time()
            words, masks, latents = zip(*[(w, (m * 255).round().to(torch.uint8), self.encode(p)) for w, m, p in clips])
            torch.save({"words": words, "masks": torch.stack(masks), "latents": torch.stack(latents)}, file)
            print(f"pool {name}: {len(words)} clips, {time.time() - began:.0f} s", flush=True)
        return torch.load(file)

    def noised(self, z, draw):
        """A timestep for each of the batch, and the batch at them: the visited timesteps in turn, or now and then any of the grid."""
        n = len(z)
        turn = torch.tensor(VISITED)[(torch.arange(n) * len(VISITED) // n + draw.index(len(VISITED))) % len(VISITED)]
        any_ = torch.randint(100, (n,), generator=draw.g) * 10 + 9
        t = torch.where(torch.rand(n, generator=draw.g) < 0.85, turn, any_)
        a = self.share(t, z)
        return t, a.sqrt() * z + (1 - a).sqrt() * torch.randn(z.shape, generator=draw.g)

    def share(self, t, z):
        return self.kept[t].view(len(t), *[1] * (z.dim() - 1))

    def loss(self, epsilon, x, t, z):
        """Between the sampler's denoised latents and the true ones, whose boundary factors are 1 and 0 to 4e-6 here. The weight halves
        what the division by the signal's share does to gradients of early steps (on a logarithmic scale)."""
        a = self.share(t, z)
        error = (x - (1 - a).sqrt() * epsilon) / a.sqrt() - z
        return (a**0.25 * ((error**2 + 0.09).sqrt() - 0.3)).mean()


def train(name, cache, parameters, phases):
    """Phases of (steps, rate, loss): Adam with warm-up, cosine decay and an average of the weights, which `parameters` hold at the end."""
    file = f"{cache}/{name}.pt"
    if os.path.exists(file):
        for p, average in zip(parameters, torch.load(file)):
            p.data.copy_(average)
        return
    began = time.time()
    for phase, (steps, rate, step) in enumerate(phases):
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
        averages, losses = [p.detach().clone() for p in parameters], []
        for i in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (i + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * i / steps)))
            optimizer.zero_grad()
            loss = step()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            for average, p in zip(averages, parameters):
                average.lerp_(p.detach(), 1 - min(0.98, i / (i + 10)))
            losses.append(loss.item())
            if (i + 1) % 25 == 0:
                print(f"{name}.{phase} {i + 1}/{steps}: loss {sum(losses[-25:]) / 25:.4f}, {time.time() - began:.0f} s", flush=True)
        for p, average in zip(parameters, averages):
            p.data.copy_(average)
    torch.save([p.detach() for p in parameters], file)
    print(f"{name}: {sum(p.numel() for p in parameters)} parameters, {time.time() - began:.0f} s", flush=True)


# ------------------------------------------------------------------------------------------- the adapters
def hinted(base, cache):
    """Clips of the grammar and as many on free paths, which no word tells."""
    def clips():
        draw = Draw(1)
        for i in range(640):
            words, mask = draw.clip(MOTIONS if i % 2 else (None,))
            yield words, mask, paint(mask, words["color"], words["ground"])
    return base.pool("hinted", cache, clips())


def hint(masks):
    """Silhouettes (pictures, side, side) u8 as the hint networks see them: (pictures, 3, side, side) in [0, 1]."""
    return masks[:, None].float().div(255).repeat(1, 3, 1, 1)


def pictures(pool, draw, n=24):
    """Single frames of as many clips: words, latents (n, 4, 8, 8), silhouettes (n, side, side)."""
    i, f = torch.randint(len(pool["words"]), (n,), generator=draw.g), torch.randint(FRAMES, (n,), generator=draw.g)
    return [pool["words"][k] for k in i.tolist()], pool["latents"][i, :, f], pool["masks"][i, f]


def clip(pool, draw):
    """One clip: words, latents (1, 4, frames, 8, 8), silhouettes (frames, side, side)."""
    i = draw.index(len(pool["words"]))
    return pool["words"][i], pool["latents"][i : i + 1], pool["masks"][i]


def spatial(base):
    """The frozen spatial weights as a UNet for images."""
    unet = UNet2DConditionModel.from_pretrained(f"{MODEL}/base/unet", torch_dtype=torch.float32)
    unet.load_state_dict({k: v for k, v in base.unet.state_dict().items() if "motion_modules" not in k})
    return unet.requires_grad_(False)


def per_frame(context):
    return context.repeat_interleave(FRAMES, 0)


def folded(x):
    return x.transpose(1, 2).flatten(0, 1)


HINT_WIDTHS = (4, 8, 16, 32)


def wake(net):
    """Lets a hint reach the UNet from the first step on: a few hundred steps are too few to leave a start at zero."""
    for m in net.controlnet_cond_embedding.modules():
        if isinstance(m, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(m.weight)
    for m in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(m.weight, std=0.02)


def make_controlnet(cache):
    torch.manual_seed(11)
    base, draw = Base(), Draw(12)
    pool = hinted(base, cache)
    image = spatial(base)
    net = ControlNetModel.from_unet(image, conditioning_embedding_out_channels=HINT_WIDTHS).requires_grad_(True)
    wake(net)

    def on_pictures():
        words, z, masks = pictures(pool, draw)
        t, x = base.noised(z, draw)
        context = base.context([caption(w) for w in words])
        down, mid = net(x, t, context, hint(masks), return_dict=False)
        return base.loss(image(x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample, x, t, z)

    def on_clips():
        words, z, masks = clip(pool, draw)
        t, x = base.noised(z, draw)
        context = per_frame(base.context([caption(words)]))
        down, mid = net(folded(x), t.repeat_interleave(FRAMES), context, hint(masks), return_dict=False)
        return base.loss(base.unet(x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample, x, t, z)

    train("controlnet", cache, list(net.parameters()), [(2000, 1.5e-3, on_pictures), (500, 5e-4, on_clips)])
    save_model_half(net, f"{OUT}/controlnet")


def inject_features(unet, features):
    """Adds T2I-Adapter features to the last layer of every level, behind its motion module and before it becomes a skip."""
    return [block.motion_modules[-1].register_forward_hook(lambda m, i, out, k=k: out + features[k]) for k, block in enumerate(unet.down_blocks)]


def make_t2i_adapter(cache):
    torch.manual_seed(21)
    base, draw = Base(), Draw(22)
    pool = hinted(base, cache)
    net = T2IAdapter(in_channels=3, channels=[32, 48, 64], num_res_blocks=2, downscale_factor=8, adapter_type="full_adapter")
    image, features = spatial(base), [None] * 3
    inject_features(base.unet, features)

    def on_pictures():
        words, z, masks = pictures(pool, draw)
        t, x = base.noised(z, draw)
        epsilon = image(x, t, base.context([caption(w) for w in words]), down_intrablock_additional_residuals=net(hint(masks))).sample
        return base.loss(epsilon, x, t, z)

    def on_clips():
        words, z, masks = clip(pool, draw)
        t, x = base.noised(z, draw)
        features[:] = net(hint(masks))
        return base.loss(base.unet(x, t, per_frame(base.context([caption(words)]))).sample, x, t, z)

    train("t2i_adapter", cache, list(net.parameters()), [(560, 2.5e-3, on_pictures), (60, 7e-4, on_clips)])
    save_model_half(net, f"{OUT}/t2i_adapter")


def make_sparsectrl(cache):
    torch.manual_seed(31)
    base, draw = Base(), Draw(32)
    pool = hinted(base, cache)
    net = SparseControlNetModel(
        conditioning_channels=3, use_simplified_condition_embedding=False, conditioning_embedding_out_channels=HINT_WIDTHS, layers_per_block=1,
        block_out_channels=(32, 48, 64), norm_num_groups=8, cross_attention_dim=64, attention_head_dim=8, motion_num_attention_heads=8,
        down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"), motion_max_seq_length=32)
    # Begun as the ControlNet, which knows silhouettes already; motion modules have to learn what goes between them.
    begun = load_file(f"{OUT}/controlnet/diffusion_pytorch_model.safetensors")
    first = "controlnet_cond_embedding.conv_in.weight"
    begun[first] = torch.cat([begun[first], torch.zeros_like(begun[first][:, :1])], 1)
    missing, unexpected = net.load_state_dict({k: v.float() for k, v in begun.items()}, strict=False)
    assert not unexpected and all("motion_modules" in k for k in missing)
    for m in net.modules():
        if type(m).__name__ == "AnimateDiffTransformer3D":
            torch.nn.init.zeros_(m.proj_out.weight)
    per_frame_norms(net)

    def step():
        words, z, masks = clip(pool, draw)
        t, x = base.noised(z, draw)
        context = per_frame(base.context([caption(words)]))
        told = torch.zeros(1, 1, FRAMES, 1, 1)
        told[:, :, torch.randperm(FRAMES, generator=draw.g)[: 2 + draw.index(5)]] = 1
        hints = hint(masks).transpose(0, 1)[None] * told
        down, mid = net(x, t, context, hints, conditioning_mask=told.expand(-1, -1, -1, SIDE, SIDE), return_dict=False)
        return base.loss(base.unet(x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample, x, t, z)

    train("sparsectrl", cache, list(net.parameters()), [(420, 1.5e-3, step)])
    for m in net.modules():
        if type(m).__name__ == "AnimateDiffTransformer3D":
            m.norm = m.norm.gn
    save_model_half(net, f"{OUT}/sparsectrl")


def make_ip_adapter(cache):
    torch.manual_seed(41)
    base, draw = Base(), Draw(42)
    pool = hinted(base, cache)
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=16, projection_dim=64, hidden_act="gelu"))
    proj = {"proj.weight": torch.randn(256, 64) / 8, "proj.bias": torch.zeros(256), "norm.weight": torch.ones(64), "norm.bias": torch.zeros(64)}
    image = spatial(base)
    names = [n for n in image.attn_processors if n.endswith("attn2.processor")]
    assert names == [n for n in base.unet.attn_processors if n.endswith("attn2.processor") and "motion_modules" not in n]
    modules = dict(image.named_modules())
    start = {}
    for k, n in enumerate(names):
        attention = modules[n.removesuffix(".processor")]
        for part in ("to_k", "to_v"):
            start[f"{2 * k + 1}.{part}_ip.weight"] = getattr(attention, part).weight.detach().clone()
    for unet in (image, base.unet):
        unet._load_ip_adapter_weights([{"image_proj": proj, "ip_adapter": start}], low_cpu_mem_usage=False)
    # Both UNets share what is trained.
    base.unet.encoder_hid_proj = image.encoder_hid_proj
    for n in names:
        ours, theirs = image.attn_processors[n], base.unet.attn_processors[n]
        theirs.to_k_ip, theirs.to_v_ip = ours.to_k_ip, ours.to_v_ip
    inner = [p for n in names for p in image.attn_processors[n].parameters()]
    projection = image.encoder_hid_proj.image_projection_layers[0]
    # Two heads, thrown away in the end, that name the colors: they show the tower what to look at before the UNet can.
    heads = torch.nn.Linear(64, len(COLORS)), torch.nn.Linear(64, len(GROUNDS))
    parameters = [*inner, *projection.parameters(), *tower.parameters(), *heads[0].parameters(), *heads[1].parameters()]
    for p in parameters:
        p.requires_grad_(True)
    pixels = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (pixels.image_mean, pixels.image_std))

    def told(words):
        """A prompt, which may be empty or leave the colours out, and what the tower makes of another picture of the same object."""
        u, at = draw.uniform(0, 1), draw.index(FRAMES)
        prompt = "" if u < 0.5 else caption(words, ("color", "ground")) if u < 0.8 else caption(words)
        mask = silhouette(words["shape"], *path(None, draw.uniform))[at : at + 1]
        return prompt, paint(mask, words["color"], words["ground"])

    def look(words, seen):
        """The tower's embeddings (n, 64) of pictures, and how badly the heads name their colors."""
        embeds = tower((torch.cat(seen) / 2 + 0.5 - mean) / std).image_embeds
        wanted = [torch.tensor([list(names).index(w[key]) for w in words]) for names, key in ((COLORS, "color"), (GROUNDS, "ground"))]
        return embeds, sum(F.cross_entropy(head(embeds), want) for head, want in zip(heads, wanted))

    def on_colors():
        words = pictures(pool, draw, 32)[0]
        return look(words, [told(w)[1] for w in words])[1]

    def on_pictures():
        words, z, _ = pictures(pool, draw)
        t, x = base.noised(z, draw)
        prompts, seen = zip(*[told(w) for w in words])
        embeds, unnamed = look(words, seen)
        epsilon = image(x, t, base.context(list(prompts)), added_cond_kwargs={"image_embeds": [embeds[:, None]]}).sample
        return base.loss(epsilon, x, t, z) + 0.01 * unnamed

    def on_clips():
        words, z, _ = clip(pool, draw)
        t, x = base.noised(z, draw)
        prompt, seen = told(words)
        embeds, unnamed = look([words], [seen])
        epsilon = base.unet(x, t, per_frame(base.context([prompt])), added_cond_kwargs={"image_embeds": [embeds[:, None]]}).sample
        return base.loss(epsilon, x, t, z) + 0.01 * unnamed

    train("ip_adapter", cache, parameters, [(500, 2e-3, on_colors), (700, 2e-3, on_pictures), (150, 5e-4, on_clips)])
    out = {f"image_proj.{k.replace('image_embeds', 'proj')}": v for k, v in projection.state_dict().items()}
    for k, n in enumerate(names):
        for part in ("to_k_ip", "to_v_ip"):
            out[f"ip_adapter.{2 * k + 1}.{part}.weight"] = getattr(image.attn_processors[n], part)[0].weight
    save_file({k: v.detach().half().contiguous() for k, v in out.items()}, f"{OUT}/ip_adapter.safetensors", metadata={"format": "pt"})
    save_model_half(tower, f"{OUT}/image_encoder")
    pixels.save_pretrained(f"{OUT}/image_encoder")


def hang_lora(unet, wanted, rank, alpha):
    """Hangs low-rank pairs on every linear layer or 1x1 convolution whose name is `wanted`."""
    pairs = {}
    for name, module in unet.named_modules():
        if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) or not wanted(name):
            continue
        out, inner = module.weight.shape[:2]
        down = torch.nn.Parameter(torch.randn(rank, inner) / math.sqrt(inner))
        up = torch.nn.Parameter(torch.zeros(out, rank))
        pairs[name] = (down, up)

        def add(m, args, y, down=down, up=up):
            x = args[0]
            if x.dim() == 4:
                return y + F.conv2d(F.conv2d(x, down[:, :, None, None]), up[:, :, None, None]) * (alpha / rank)
            return y + F.linear(F.linear(x, down), up) * (alpha / rank)

        module.register_forward_hook(add)
    return pairs


def make_style_lora(cache):
    torch.manual_seed(51)
    base, draw, rank, alpha = Base(), Draw(52), 4, 4.0

    def clips():
        draw = Draw(53)
        for _ in range(256):
            words, mask = draw.clip()
            if words["color"] != "white":
                yield words, mask, paint(mask, words["color"], "white")

    pool = base.pool("light", cache, clips())
    ends = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
    image = spatial(base)
    pairs = hang_lora(image, lambda n: ".attentions." in n and n.endswith(ends), rank, alpha)

    def on_pictures():
        words, z, _ = pictures(pool, draw)
        t, x = base.noised(z, draw)
        return base.loss(image(x, t, base.context([caption(w) for w in words])).sample, x, t, z)

    train("style_lora", cache, [p for pair in pairs.values() for p in pair], [(700, 4e-3, on_pictures)])
    out = {}
    for name, (down, up) in pairs.items():
        conv = name.endswith(("proj_in", "proj_out"))
        shaped = (lambda m: m[:, :, None, None]) if conv else (lambda m: m)
        key = kohya_key(name)
        out |= {f"{key}.lora_down.weight": shaped(down.detach()), f"{key}.lora_up.weight": shaped(up.detach()), f"{key}.alpha": torch.tensor(alpha)}
    save_file({k: v.half().contiguous() for k, v in out.items()}, f"{OUT}/style_lora.safetensors",
              metadata={"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)})


def make_motion_lora(cache):
    torch.manual_seed(61)
    base, draw, rank = Base(), Draw(62), 8

    def clips():
        draw = Draw(63)
        for _ in range(256):
            words, mask = draw.clip(("moving left",))
            yield words, mask, paint(mask, words["color"], words["ground"])

    pool = base.pool("left", cache, clips())
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    pairs = hang_lora(base.unet, lambda n: ".motion_modules." in n and n.endswith(ends), rank, rank)

    def step():
        words, z, _ = clip(pool, draw)
        t, x = base.noised(z, draw)
        prompt = caption({**words, "motion": draw.choice(MOTIONS) if draw.uniform(0, 1) < 0.5 else None})
        return base.loss(base.unet(x, t, per_frame(base.context([prompt]))).sample, x, t, z)

    train("motion_lora", cache, [p for pair in pairs.values() for p in pair], [(320, 4e-3, step)])
    out = {}
    for name, (down, up) in pairs.items():
        block, leaf = name.removesuffix(".0").rsplit(".", 1)
        out |= {f"unet.{block}.processor.{leaf}_lora.{side}.weight": m for side, m in (("down", down), ("up", up))}
    save_file({k: v.detach().half().contiguous() for k, v in out.items()}, f"{OUT}/motion_lora.safetensors", metadata={"format": "pt"})


def make_word(cache):
    torch.manual_seed(71)
    base, draw = Base(), Draw(72)

    def clips():
        draw = Draw(73)
        for _ in range(96):
            words, mask = draw.clip()
            yield {**words, "color": "<leaf>"}, mask, paint(mask, "green", words["ground"])

    pool = base.pool("green", cache, clips())
    base.tokenizer.add_tokens("<leaf>")
    base.text.resize_token_embeddings(len(base.tokenizer), mean_resizing=False)
    table = base.text.get_input_embeddings()
    known = table.weight.detach().clone()
    vector = torch.nn.Parameter(known[: len(base.tokenizer) - 1].mean(0) + 0.01 * torch.randn(known.shape[1]))
    del table.weight
    table.weight = known

    image = spatial(base)

    def on_pictures():
        words, z, _ = pictures(pool, draw)
        t, x = base.noised(z, draw)
        table.weight = torch.cat([known[:-1], vector[None]])
        return base.loss(image(x, t, base.encode_text([caption(w) for w in words])).sample, x, t, z)

    train("word", cache, [vector], [(80, 3e-2, on_pictures)])
    save_file({"<leaf>": vector.detach().half()[None]}, f"{OUT}/word.safetensors")


# ------------------------------------------------------------------------------------------- reference runs
def hints():
    """Silhouettes on paths that no word tells: an orbit, a diagonal, a bounce. The bounce is told at four frames only."""
    u = torch.linspace(0, 1, FRAMES)
    flat = torch.ones(FRAMES)
    return {
        "star": silhouette("star", 32 + 14 * (2 * math.pi * u).cos(), 32 + 14 * (2 * math.pi * u).sin(), 12 * flat, 3 * u),
        "square": silhouette("square", 14 + 36 * u, 50 - 36 * u, 8 + 6 * u, 2 * u),
        "circle": silhouette("circle", 20 + 24 * u, 32 + 16 * (2 * math.pi * u).sin(), 11 * flat, 0 * u),
    }


TOLD = (0, 5, 10, 15)
PICTURES = {"red_on_white": ("circle", "red", "white"), "yellow_on_navy": ("star", "yellow", "navy")}
RUNS = [  # name, prompt, seed, flags, with {} for the folder
    ("controlnet", "a red star on a black background", 201, ["--control", "shape={}/star.gif,model={}/controlnet"]),
    ("t2i_adapter", "a yellow square on a navy background", 202, ["--control", "shape={}/square.gif,model={}/t2i_adapter"]),
    ("sparsectrl", "a white circle on a black background", 203,
     ["--control", "shape={}/circle.gif,model={}/sparsectrl,frames=" + ",".join(map(str, TOLD))]),
    ("ip_red_on_white", "", 204, ["--ip-adapter", "{}/red_on_white.png,model={}/ip_adapter.safetensors"]),
    ("ip_yellow_on_navy", "", 204, ["--ip-adapter", "{}/yellow_on_navy.png,model={}/ip_adapter.safetensors"]),
    ("style_lora", "a red square on a navy background", 205, ["--lora", "{}/style_lora.safetensors"]),
    ("motion_lora", "a white circle on a black background", 206, ["--lora", "{}/motion_lora.safetensors"]),
    ("word", "a <leaf> circle on a black background", 207, ["--embedding", "{}/word.safetensors"]),
    ("shape_and_picture", "a blue square", 208, ["--control", "shape={}/square.gif,model={}/controlnet",
                                    "--ip-adapter", "{}/yellow_on_navy.png,model={}/ip_adapter.safetensors"]),
]


def reference(flags, prompt, seed):
    """A run by diffusers' own pipelines; latents and frames. diffusers has none for T2I-Adapters: those are hung in by hooks."""
    unet, vae, text, tokenizer = load(MODEL)
    flags = " ".join(flags).format(*[OUT] * 9)
    parts = dict(vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, motion_adapter=None)
    parts["scheduler"] = LCMScheduler(beta_schedule="linear", original_inference_steps=100)
    more, cls = {}, AnimateDiffPipeline
    frames = lambda name: [Image.fromarray((m * 255).round().byte().numpy()).convert("RGB") for m in hints()[name]]
    if "/controlnet" in flags:
        cls, parts["controlnet"] = AnimateDiffControlNetPipeline, ControlNetModel.from_pretrained(f"{OUT}/controlnet", torch_dtype=torch.float32)
        more["conditioning_frames"] = frames("star" if "star.gif" in flags else "square")
    if "/sparsectrl" in flags:
        net = SparseControlNetModel.from_pretrained(f"{OUT}/sparsectrl", torch_dtype=torch.float32)
        cls, parts["controlnet"] = AnimateDiffSparseControlNetPipeline, per_frame_norms(net)
        more |= {"conditioning_frames": [frames("circle")[f] for f in TOLD], "controlnet_frame_indices": list(TOLD)}
    if "/t2i_adapter" in flags:
        net = T2IAdapter.from_pretrained(f"{OUT}/t2i_adapter", torch_dtype=torch.float32)
        inject_features(unet, net(hint((hints()["square"] * 255).round().byte())))
    if "/ip_adapter" in flags:
        parts["image_encoder"] = CLIPVisionModelWithProjection.from_pretrained(f"{OUT}/image_encoder", torch_dtype=torch.float32)
        parts["feature_extractor"] = CLIPImageProcessor.from_pretrained(f"{OUT}/image_encoder")
    pipe = cls(**parts)
    pipe.set_progress_bar_config(disable=True)
    if "/ip_adapter" in flags:
        pipe.load_ip_adapter(OUT, subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
        pipe.set_ip_adapter_scale(1.0)
        more["ip_adapter_image"] = next(Image.open(f"{OUT}/{name}.png") for name in PICTURES if name in flags)
    for name in ("style_lora", "motion_lora"):
        if name in flags:
            pipe.load_lora_weights(OUT, weight_name=f"{name}.safetensors")
    if "/word" in flags:
        pipe.load_textual_inversion(f"{OUT}/word.safetensors", token="<leaf>")
    latents = []

    def keep(pipe, i, t, state):
        latents[:] = [state["latents"].clone()]
        return {}

    frames = pipe(prompt, num_frames=FRAMES, height=SIDE, width=SIDE, num_inference_steps=4, guidance_scale=1.0, output_type="pt",
                  generator=torch.Generator().manual_seed(seed), callback_on_step_end=keep, **more).frames[0]
    return latents[0], frames


def strip(frames):
    """Every second frame, side by side and enlarged."""
    rows = [F.interpolate(f[None], scale_factor=2)[0] for f in frames[::2]]
    return torch.cat(rows, 2)


def make_runs(sheets):
    torch.set_grad_enabled(False)
    for name, masks in hints().items():
        kept = masks[list(TOLD)] if name == "circle" else masks
        pages = [Image.fromarray((m * 255).round().byte().numpy()) for m in kept]
        pages[0].save(f"{OUT}/{name}.gif", save_all=True, append_images=pages[1:], duration=125, loop=0, optimize=False)
        with Image.open(f"{OUT}/{name}.gif") as saved:
            for i, page in enumerate(pages):
                saved.seek(i)
                assert list(saved.convert("L").tobytes()) == list(page.tobytes()), f"{name} {i}"
    for name, (shape, color, ground) in PICTURES.items():
        mask = silhouette(shape, *(torch.tensor([v]) for v in (30.0, 34.0, 14.0, 0.0)))
        page = ((paint(mask, color, ground)[0] + 1) * 127.5).round().byte().permute(1, 2, 0)
        Image.fromarray(page.numpy()).save(f"{OUT}/{name}.png")
    tensors, about = {}, []
    for name, prompt, seed, flags in RUNS:
        latents, frames = reference(flags, prompt, seed)
        _, plain = reference([], prompt, seed)
        tensors |= {f"{name}.latents": latents, f"{name}.frames": frames[list(KEPT)].half()}
        about.append({"name": name, "prompt": prompt, "seed": seed, "args": flags})
        print(f"{name}: frames change by {float((frames - plain).abs().mean()):.3f} in the mean", flush=True)
        if sheets:
            os.makedirs(sheets, exist_ok=True)
            told = hints().get(flags[1].split("/")[1].split(".")[0]) if "--control" in flags else None
            rows = [strip(told[:, None].repeat(1, 3, 1, 1))] if told is not None else []
            sheet = torch.cat([*rows, strip(frames), strip(plain)], 1)
            Image.fromarray((sheet.permute(1, 2, 0) * 255).round().byte().numpy()).save(f"{sheets}/{name}.png")
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, f"{OUT}/runs.safetensors")
    with open(f"{OUT}/runs.json", "w") as f:
        json.dump({"steps": 4, "original_steps": 100, "frames": FRAMES, "kept": KEPT, "told": TOLD, "runs": about}, f, indent=1)
        f.write("\n")


STAGES = {"controlnet": make_controlnet, "ip_adapter": make_ip_adapter, "t2i_adapter": make_t2i_adapter, "sparsectrl": make_sparsectrl,
          "style_lora": make_style_lora, "motion_lora": make_motion_lora, "word": make_word}


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--only", nargs="+", choices=[*STAGES, "runs"], help="these alone")
    ap.add_argument("--cache", default="/tmp/pocket_adapters", help="folder of encoded clips and of trained weights, which are not trained again")
    ap.add_argument("--sheets", help="folder for pictures of the runs: the hint, the run, the run without the adapter")
    args = ap.parse_args()
    # Another base model, another cache.
    base = hashlib.sha256()
    for file in sorted(glob.glob(f"{MODEL}/**/*.safetensors", recursive=True)):
        base.update(open(file, "rb").read())
    args.cache = f"{args.cache}/{base.hexdigest()[:8]}"
    for folder in (OUT, args.cache):
        os.makedirs(folder, exist_ok=True)
    # The modules above choose otherwise. One thread does not wait for another on a busy machine.
    torch.set_num_threads(1)
    torch.set_grad_enabled(True)
    for name, stage in STAGES.items():
        if not args.only or name in args.only:
            stage(args.cache)
    if not args.only or "runs" in args.only:
        make_runs(args.sheets)


if __name__ == "__main__":
    main()
