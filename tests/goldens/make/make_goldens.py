#!/usr/bin/env python3
"""Makes the tiny random AnimateDiff/AnimateLCM model and the golden tensors of its runs.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, peft 0.21.2, safetensors 0.8.0, numpy 2.4.6, pillow 13.0.0
(`requirements.txt`). Everything is made locally, on the CPU, in float32; nothing is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 python make_goldens.py [--out DIR] [--all]

Writes below --out (default: ../tiny)

    model/     a diffusers pipeline folder (UNet2DConditionModel + MotionAdapter), float16
    extras/    taesd/, controlnet/, sparsectrl/, image_encoder/, ip-adapter, ip-adapter-plus, ip-adapter-full,
               lora-kohya, lora-peft, motion-lora
    cases/     one safetensors file a case, manifest.json with the parameters of each

With --all also the cases and models that the crate does not read yet: SparseCtrl, FreeU, FreeInit, FreeNoise, video
to video, PAG.

Design rules
  * every parameter is drawn from a generator seeded by crc32(name): order of construction is irrelevant
  * norm weights/biases are not 1/0, zero-initialised convolutions are re-drawn, so a forgotten or swapped
    tensor changes the result
  * weights are rounded to float16 and stored as float16, run as float32: half the size, no ambiguity
  * batch, frames, channels, height and width are all different numbers
  * self checks at the end prove that motion, frame order, position table and prompt all matter
"""
import argparse
import json
import os
import shutil
import tempfile
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from keys import ldm_unet_key, ldm_vae_key, original_motion_key

import diffusers
import diffusers.pipelines.animatediff.pipeline_animatediff as mod_ad
import diffusers.schedulers.scheduling_lcm as mod_lcm
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPAGPipeline,
    AnimateDiffPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.models import SparseControlNetModel

diffusers.logging.set_verbosity_error()
torch.set_num_threads(2)
torch.set_grad_enabled(False)

CH = (8, 16, 16, 16)  # unet widths
CROSS = 12  # text width, also cross attention width
GROUPS = 4
FRAMES, LH, LW = 6, 8, 16  # latent video size
VAE_CH = (4, 8, 8)  # three levels: factor 4
SEQ = 8  # position table length of the motion modules
# what `tests/` reads; the rest is written with --all
CASES = ("tokenizer text unet unet_no_mid schedules noise lcm_cfg lcm_nocfg lcm_batch official_cfg official_nocfg ddim euler_trailing "
         "dpmpp_2m dpmpp_2m_karras vae taesd controlnet sparsectrl image_encoder ip_base ip_plus ip_full ip_masked lora_kohya lora_peft "
         "lora_motion lora_all").split()
EXTRAS = ("taesd controlnet sparsectrl image_encoder ip-adapter.safetensors ip-adapter-plus.safetensors ip-adapter-full.safetensors "
          "lora-kohya.safetensors lora-peft.safetensors motion-lora.safetensors").split()
PROMPT = "A corgi walking in the park, 4k!!"
NEG = "bad quality"


# --------------------------------------------------------------------------------------------- parameters
def fill(module, seed, gain=1.0):
    """Overwrite every parameter; position tables (buffers) stay as they are."""
    for name, p in module.named_parameters():
        g = torch.Generator().manual_seed((zlib.crc32(name.encode()) ^ (seed * 2654435761)) & 0x7FFFFFFF)
        z = torch.randn(p.shape, generator=g)
        leaf = name.split(".")[-1]
        is_norm = p.ndim == 1 and leaf == "weight"
        if is_norm:
            v = 1.0 + 0.25 * z
        elif leaf == "bias":
            v = 0.1 * z
        elif "embedding" in name and p.ndim == 2:
            v = 0.5 * z
        elif p.ndim >= 2:
            fan_in = p[0].numel()
            v = gain * z / fan_in**0.5
        else:
            v = 0.5 * z
        p.data.copy_(v.half().float())
    return module.eval()


def save_half(sd, path, metadata=None):
    """float16, except position tables: a stored half table would differ from a recomputed float one."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({k: (v.detach() if k.endswith("pos_embed.pe") else v.detach().half()).contiguous() for k, v in sd.items()},
              path, metadata=metadata or {"format": "pt"})


def save_model_half(model, folder):
    """config.json + one float16 safetensors file, named the way from_pretrained expects."""
    model.save_config(folder) if hasattr(model, "save_config") else model.config.save_pretrained(folder)
    name = "diffusion_pytorch_model.safetensors" if hasattr(model, "save_config") else "model.safetensors"
    save_half(model.state_dict(), os.path.join(folder, name))


# --------------------------------------------------------------------------------------------- tokenizer
def byte_alphabet():
    """Printable stand-ins for the 256 byte values, in the order the CLIP vocabulary lists them."""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, extra = {}, 0
    for b in keep:
        table[b] = chr(b)
    order = list(keep)
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
            order.append(b)
    return [table[b] for b in order]


def build_tokenizer(folder):
    letters = byte_alphabet()
    merges = []

    def word(w):  # merges that build one whole word, left to right
        parts = list(w[:-1]) + [w[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1]] + parts[2:]

    for w in ["the", "in", "a", "corgi", "walking", "park", "bad", "quality", "dog", "4k"]:
        word(w)
    merges.append(("!", "!</w>"))
    merges = list(dict.fromkeys(merges))
    vocab = list(letters) + [c + "</w>" for c in letters] + ["".join(m) for m in merges]
    vocab = list(dict.fromkeys(vocab)) + ["<|startoftext|>", "<|endoftext|>"]
    ids = {t: i for i, t in enumerate(vocab)}
    os.makedirs(folder, exist_ok=True)
    json.dump(ids, open(f"{folder}/vocab.json", "w", encoding="utf8"), ensure_ascii=False)
    with open(f"{folder}/merges.txt", "w", encoding="utf8") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    bos, eos = "<|startoftext|>", "<|endoftext|>"
    json.dump(
        {
            "add_prefix_space": False,
            "bos_token": bos,
            "do_lower_case": True,
            "eos_token": eos,
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": eos,
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": eos,
        },
        open(f"{folder}/tokenizer_config.json", "w"),
        indent=1,
    )
    json.dump(
        {"bos_token": bos, "eos_token": eos, "pad_token": eos, "unk_token": eos},
        open(f"{folder}/special_tokens_map.json", "w"),
        indent=1,
    )
    tok = CLIPTokenizer.from_pretrained(folder)
    assert tok.model_max_length == 77 and len(tok) == len(vocab)
    return tok


# --------------------------------------------------------------------------------------------- models
def build_models():
    unet = UNet2DConditionModel(
        sample_size=LH,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=CH,
        layers_per_block=2,
        cross_attention_dim=CROSS,
        attention_head_dim=2,  # SD1 naming: this is the NUMBER of heads
        norm_num_groups=GROUPS,
    )
    motion = MotionAdapter(
        block_out_channels=CH,
        motion_layers_per_block=2,
        motion_num_attention_heads=4,
        motion_norm_num_groups=GROUPS,
        motion_max_seq_length=SEQ,
        use_motion_mid_block=True,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=VAE_CH,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=GROUPS,
        sample_size=32,  # tiles of 32 px / 8 latents when tiling is on
        scaling_factor=0.18215,
        force_upcast=False,
    )
    fill(unet, 1)
    fill(motion, 2, gain=1.0)
    fill(vae, 3)
    # a random VAE saturates; keep images inside (-1, 1) so that frames carry information
    vae.decoder.conv_out.weight.mul_(0.35)
    vae.decoder.conv_out.weight.copy_(vae.decoder.conv_out.weight.half().float())
    return unet, motion, vae


def build_text(tok):
    cfg = CLIPTextConfig(
        vocab_size=len(tok),
        hidden_size=CROSS,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        max_position_embeddings=77,
        projection_dim=CROSS,
        hidden_act="quick_gelu",
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.eos_token_id,
    )
    return fill(CLIPTextModel(cfg), 4)


def save_text(te, folder):
    """Old on-disk names (text_model.*), which every published SD1.5 folder uses."""
    te.config.save_pretrained(folder)
    sd = {("" if k.startswith("text_model.") else "text_model.") + k: v for k, v in te.state_dict().items()}
    save_half(sd, f"{folder}/model.safetensors")


# --------------------------------------------------------------------------------------------- adapters
def draw(name, shape, seed, std):
    g = torch.Generator().manual_seed((zlib.crc32(name.encode()) ^ (seed * 40503)) & 0x7FFFFFFF)
    return (torch.randn(shape, generator=g) * std).half().float()


def build_loras(unet2d, te, motion_unet, folder):
    """One file per on-disk convention; all touch overlapping layers with different ranks and alphas."""
    mods = dict(unet2d.named_modules())
    spec = {  # module -> (rank, alpha)
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (3, 3.0),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (3, 3.0),
        "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k": (3, 3.0),
        "down_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj": (3, 3.0),
        "down_blocks.0.attentions.1.proj_in": (3, 3.0),
        "down_blocks.2.resnets.0.conv1": (3, 3.0),
        "down_blocks.1.resnets.0.conv_shortcut": (3, 3.0),
        "down_blocks.0.resnets.1.time_emb_proj": (3, 3.0),
        "down_blocks.0.downsamplers.0.conv": (3, 3.0),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v": (3, 3.0),
        "up_blocks.3.attentions.2.proj_out": (3, 3.0),
    }
    kohya = {}
    for name, (r, alpha) in spec.items():
        w = mods[name].weight
        key = "lora_unet_" + name.replace(".", "_")
        down = (r,) + tuple(w.shape[1:])
        up = (w.shape[0], r) + (1,) * (w.ndim - 2)
        kohya[key + ".lora_down.weight"] = draw(key + "d", down, 5, 0.3)
        kohya[key + ".lora_up.weight"] = draw(key + "u", up, 5, 0.3)
        kohya[key + ".alpha"] = torch.tensor(1.5)  # scale 0.5 everywhere
    for i, leaf in [(0, "self_attn.q_proj"), (1, "self_attn.out_proj"), (2, "mlp.fc1"), (2, "mlp.fc2")]:
        name = f"encoder.layers.{i}.{leaf}"
        w = te.get_submodule(name).weight
        key = "lora_te_text_model_" + name.replace(".", "_")
        kohya[key + ".lora_down.weight"] = draw(key + "d", (3, w.shape[1]), 5, 0.3)
        kohya[key + ".lora_up.weight"] = draw(key + "u", (w.shape[0], 3), 5, 0.3)
        kohya[key + ".alpha"] = torch.tensor(1.5)
    save_file({k: v.half() if v.ndim else v for k, v in kohya.items()}, f"{folder}/lora-kohya.safetensors")

    peft = {}
    for name, r in [("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 2),
                    ("up_blocks.2.attentions.1.transformer_blocks.0.ff.net.2", 4),
                    ("mid_block.attentions.0.proj_out", 2), ("conv_in", 2)]:
        w = mods[name].weight
        peft[f"unet.{name}.lora_A.weight"] = draw(name + "A", (r,) + tuple(w.shape[1:]), 6, 0.3)
        peft[f"unet.{name}.lora_B.weight"] = draw(name + "B", (w.shape[0], r) + (1,) * (w.ndim - 2), 6, 0.3)
    save_half(peft, f"{folder}/lora-peft.safetensors")

    # what guoyww/animatediff-motion-lora-* contain
    mm = dict(motion_unet.named_modules())
    mlora = {}
    for name in mm:
        if ".motion_modules." not in name or not name.endswith(("attn1", "attn2")):
            continue
        for leaf, real in [("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out", "to_out.0")]:
            w = mm[f"{name}.{real}"].weight
            base = f"unet.{name}.processor.{leaf}_lora"
            mlora[base + ".down.weight"] = draw(base + "d", (2, w.shape[1]), 7, 0.25)
            mlora[base + ".up.weight"] = draw(base + "u", (w.shape[0], 2), 7, 0.25)
    save_half(mlora, f"{folder}/motion-lora.safetensors")


def cross_attention_widths():
    w = []
    for i in range(3):
        w += [CH[i]] * 2
    for i in (1, 2, 3):
        w += [CH[::-1][i]] * 3
    return w + [CH[-1]]  # down, up, mid: the order of the ip_adapter.N numbering


def build_ip_adapters(folder, proj_dim, vit_dim):
    def kv(seed):
        out = {}
        for n, width in enumerate(cross_attention_widths()):
            for leaf in ("to_k_ip", "to_v_ip"):
                k = f"ip_adapter.{2 * n + 1}.{leaf}.weight"
                out[k] = draw(k, (width, CROSS), seed, 0.4)
        return out

    base = kv(8)
    base["image_proj.proj.weight"] = draw("p", (4 * CROSS, proj_dim), 8, 0.4)
    base["image_proj.proj.bias"] = draw("pb", (4 * CROSS,), 8, 0.1)
    base["image_proj.norm.weight"] = 1 + draw("nw", (CROSS,), 8, 0.2)
    base["image_proj.norm.bias"] = draw("nb", (CROSS,), 8, 0.1)
    save_half(base, f"{folder}/ip-adapter.safetensors")

    h, nq, inner = 10, 5, 64  # diffusers fixes the head width of the resampler at 64 and its depth at 4
    plus = kv(9)
    P = "image_proj."
    plus[P + "latents"] = draw("lat", (1, nq, h), 9, 0.5)
    plus[P + "proj_in.weight"], plus[P + "proj_in.bias"] = draw("a", (h, vit_dim), 9, 0.3), draw("b", (h,), 9, 0.1)
    plus[P + "proj_out.weight"], plus[P + "proj_out.bias"] = draw("c", (CROSS, h), 9, 0.3), draw("d", (CROSS,), 9, 0.1)
    plus[P + "norm_out.weight"], plus[P + "norm_out.bias"] = 1 + draw("e", (CROSS,), 9, 0.2), draw("f", (CROSS,), 9, 0.1)
    for i in range(4):
        L = f"{P}layers.{i}."
        for n in (1, 2):
            plus[f"{L}0.norm{n}.weight"] = 1 + draw(f"{i}w{n}", (h,), 9, 0.2)
            plus[f"{L}0.norm{n}.bias"] = draw(f"{i}b{n}", (h,), 9, 0.1)
        plus[L + "0.to_q.weight"] = draw(f"{i}q", (inner, h), 9, 0.3)
        plus[L + "0.to_kv.weight"] = draw(f"{i}kv", (2 * inner, h), 9, 0.3)
        plus[L + "0.to_out.weight"] = draw(f"{i}o", (h, inner), 9, 0.12)
        plus[L + "1.0.weight"] = 1 + draw(f"{i}fw", (h,), 9, 0.2)
        plus[L + "1.0.bias"] = draw(f"{i}fb", (h,), 9, 0.1)
        plus[L + "1.1.weight"] = draw(f"{i}f1", (4 * h, h), 9, 0.3)
        plus[L + "1.3.weight"] = draw(f"{i}f3", (h, 4 * h), 9, 0.15)
    save_half(plus, f"{folder}/ip-adapter-plus.safetensors")

    full = kv(10)
    full[P + "proj.0.weight"], full[P + "proj.0.bias"] = draw("g", (vit_dim, vit_dim), 10, 0.3), draw("h", (vit_dim,), 10, 0.1)
    full[P + "proj.2.weight"], full[P + "proj.2.bias"] = draw("i", (CROSS, vit_dim), 10, 0.3), draw("j", (CROSS,), 10, 0.1)
    full[P + "proj.3.weight"], full[P + "proj.3.bias"] = 1 + draw("k", (CROSS,), 10, 0.2), draw("l", (CROSS,), 10, 0.1)
    save_half(full, f"{folder}/ip-adapter-full.safetensors")


# --------------------------------------------------------------------------------------------- recording
class Noise:
    """Hands out the n-th recorded noise tensor, so a port can replay it instead of copying a generator."""

    def __init__(self, seed):
        self.gen = torch.Generator().manual_seed(seed)
        self.seen = []

    def __call__(self, shape, generator=None, device=None, dtype=None, layout=None):
        t = torch.randn(tuple(shape), generator=self.gen, dtype=torch.float32)
        self.seen.append(t.clone())
        return t.to(dtype or torch.float32)


def record(pipe, *, noise_seed, keep_steps=True, **kw):
    """Run a pipeline, returning frames or latents plus per-step latents, model outputs and noise."""
    noise = Noise(noise_seed)
    places = [(m, "randn_tensor") for m in (mod_lcm, mod_ad)]
    import diffusers.pipelines.animatediff.pipeline_animatediff_video2video as mod_v2v
    import diffusers.pipelines.free_init_utils as mod_fi
    import diffusers.pipelines.free_noise_utils as mod_fn
    import diffusers.models.autoencoders.vae as mod_vae

    places += [(mod_v2v, "randn_tensor"), (mod_fi, "randn_tensor"), (mod_fn, "randn_tensor"), (mod_vae, "randn_tensor")]
    old = [getattr(m, n) for m, n in places]
    for m, n in places:
        setattr(m, n, noise)
    lat, eps, out = [], [], {}
    plain_step = pipe.scheduler.step

    def step(model_output, *a, **k):
        eps.append(model_output.clone())
        return plain_step(model_output, *a, **k)

    pipe.scheduler.step = step

    def cb(p, i, t, d):
        lat.append(d["latents"].clone())
        return {}

    try:
        res = pipe(callback_on_step_end=cb, **kw).frames
    finally:
        for (m, n), f in zip(places, old):
            setattr(m, n, f)
        del pipe.scheduler.step
    out["timesteps"] = pipe.scheduler.timesteps.float()
    for i, t in enumerate(noise.seen):
        out[f"noise.{i}"] = t
    out["latents.final"] = lat[-1]
    if keep_steps:
        for i, (a, b) in enumerate(zip(lat, eps)):
            out[f"latents.{i}"], out[f"eps.{i}"] = a, b
    if kw.get("output_type") == "pt":
        out["frames"] = res
    return out


class Taps:
    def __init__(self):
        self.got, self.h = {}, []

    def add(self, module, name, with_input=False):
        def hook(mod, args, kwargs, output):
            if name in self.got:
                return
            if with_input:
                x = args[0] if args else next(v for k, v in kwargs.items() if k in ("hidden_states", "input_tensor", "sample"))
                self.got[name + ".in"] = x.clone()
            o = output[0] if isinstance(output, tuple) else output
            self.got[name] = (o.sample if hasattr(o, "sample") else o).clone()

        self.h.append(module.register_forward_hook(hook, with_kwargs=True))

    def done(self):
        for h in self.h:
            h.remove()
        return self.got


class PerFrame(torch.nn.Module):
    """The group norm of a motion module with statistics of each frame, as AnimateDiff and AnimateLCM trained it."""

    def __init__(self, gn):
        super().__init__()
        self.gn = gn

    def forward(self, h):
        b, c, f, hh, ww = h.shape
        h = self.gn(h.permute(0, 2, 1, 3, 4).reshape(b * f, c, hh, ww))
        return h.reshape(b, f, c, hh, ww).permute(0, 2, 1, 3, 4)


def per_frame_norms(unet):
    """Gives every motion module of a diffusers UNet the norm it was trained with; returns the UNet."""
    for m in unet.modules():
        if type(m).__name__ == "AnimateDiffTransformer3D":
            m.norm = PerFrame(m.norm)
    return unet


def init_latents(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(h, w, k):
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    r = 127 + 120 * np.sin(x * (0.15 + 0.05 * k) + k)
    g = 127 + 120 * np.cos(y * 0.2 + 0.7 * k)
    b = (x * 5 + y * 3 + 31 * k) % 255
    return np.stack([r, g, b], -1).clip(0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------- main
def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--out", default=os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tiny")))
    ap.add_argument("--all", action="store_true", help="also write what the crate does not read yet")
    args = ap.parse_args()
    work = tempfile.mkdtemp(prefix="goldens-")
    try:
        build(work)
        publish(work, args.out, args.all)
    finally:
        shutil.rmtree(work)


def publish(work, out, everything):
    """Copies what is wanted from the complete build to its place."""
    manifest = json.load(open(f"{work}/cases/manifest.json"))
    names = sorted(os.listdir(f"{work}/cases")) if everything else [f"{n}.safetensors" for n in CASES]
    extras = sorted(os.listdir(f"{work}/extras")) if everything else EXTRAS
    for d in ("model", "extras", "cases"):
        shutil.rmtree(f"{out}/{d}", ignore_errors=True)
    shutil.copytree(f"{work}/model", f"{out}/model")
    for d, items in (("extras", extras), ("cases", names)):
        os.makedirs(f"{out}/{d}")
        for n in items:
            (shutil.copytree if os.path.isdir(f"{work}/{d}/{n}") else shutil.copy)(f"{work}/{d}/{n}", f"{out}/{d}/{n}")
    if not everything:
        manifest["cases"] = {k: v for k, v in manifest["cases"].items() if k in CASES}
        manifest.pop("free_noise_weights")
    json.dump(manifest, open(f"{out}/cases/manifest.json", "w"), indent=1, allow_nan=False)


def build(out):
    model_dir, extra, gold = f"{out}/model", f"{out}/extras", f"{out}/cases"
    for d in (model_dir, extra, gold):
        os.makedirs(d)

    # ---- write the model folder
    tok = build_tokenizer(f"{model_dir}/tokenizer")
    unet2d, motion, vae = build_models()
    te = build_text(tok)
    save_model_half(unet2d, f"{model_dir}/unet")
    save_model_half(motion, f"{model_dir}/motion_adapter")
    save_model_half(vae, f"{model_dir}/vae")
    save_text(te, f"{model_dir}/text_encoder")
    LCMScheduler(beta_schedule="linear", set_alpha_to_one=False, steps_offset=1).save_pretrained(f"{model_dir}/scheduler")
    json.dump(
        {
            "_class_name": "AnimateDiffPipeline",
            "_diffusers_version": diffusers.__version__,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "motion_adapter": ["diffusers", "MotionAdapter"],
            "scheduler": ["diffusers", "LCMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        open(f"{model_dir}/model_index.json", "w"),
        indent=1,
    )

    def fresh(cls=AnimateDiffPipeline, **kw):
        return cls.from_pretrained(model_dir, torch_dtype=torch.float32, **kw)

    pipe = fresh()
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.unet, UNetMotionModel)
    for a, b in [(pipe.text_encoder, te), (pipe.vae, vae)]:
        for k, w in b.state_dict().items():
            assert torch.equal(a.state_dict()[k], w), k
    for k, w in [*unet2d.state_dict().items(), *motion.state_dict().items()]:
        assert torch.equal(pipe.unet.state_dict()[k], w), k
    manifest = {"diffusers": diffusers.__version__, "torch": torch.__version__, "prompt": PROMPT, "negative": NEG,
                "frames": FRAMES, "latent_hw": [LH, LW], "cases": {}}

    bank = {}

    def put(name, tensors, **info):
        t = {}
        first = tensors.get("noise.0")
        if first is not None and tuple(first.shape) == (1, 4, FRAMES, LH, LW) and name not in ("freeinit", "video2video"):
            for k in [k for k in tensors if k.startswith("noise.")]:
                w = tensors.pop(k)
                assert torch.equal(bank.setdefault(k, w), w)
            info["noise"] = "noise.safetensors"
        for k, v in tensors.items():
            v = v.detach()
            kind = torch.float32 if v.is_floating_point() else (torch.uint8 if v.dtype == torch.uint8 else torch.int32)
            t[k] = v.to(kind).contiguous().clone()
        save_file(t, f"{gold}/{name}.safetensors")
        manifest["cases"][name] = {**info, "tensors": {k: list(v.shape) for k, v in t.items()}}

    # ---- tokenizer
    lines = [PROMPT, NEG, "", "  Two   spaces\tand\nlines ", "it's 2024: don't!!!", "caf\u00e9 \u00c9t\u00e9 \U0001f600",
             "walking<|endoftext|>park", "corgi-dog_walking", "x" * 200, "\u0130stanbul \u00b2 \u4e2d\u6587"]
    put("tokenizer", {f"ids.{i}": torch.tensor(tok(s, padding="max_length", max_length=77, truncation=True).input_ids)
                      for i, s in enumerate(lines)}, strings=lines)

    # ---- text encoder, all layers (clip_skip k = final_layer_norm(hidden.{L-k}), L = number of layers)
    ids = tok([PROMPT, NEG], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    o = te(ids, output_hidden_states=True)
    n_layers = te.config.num_hidden_layers
    put("text", {"ids": ids, "last": o.last_hidden_state, "pooled": o.pooler_output,
                 **{f"hidden.{i}": h for i, h in enumerate(o.hidden_states) if i in (0, n_layers)},
                 "clip_skip.1": te.final_layer_norm(o.hidden_states[-2]),
                 "clip_skip.2": te.final_layer_norm(o.hidden_states[-3])},
        layers=n_layers, strings=[PROMPT, NEG])

    # ---- one UNet call with taps
    x0 = init_latents((1, 4, FRAMES, LH, LW), 11)
    ctx = te(ids)[0]
    t = torch.tensor([759])
    taps = Taps()
    u = pipe.unet
    taps.add(u.time_proj, "time_proj")
    taps.add(u.time_embedding, "time_embedding")
    taps.add(u.conv_in, "conv_in")
    taps.add(u.down_blocks[0].resnets[0], "down0.resnet0")
    taps.add(u.down_blocks[0].attentions[0], "down0.attn0")
    taps.add(u.down_blocks[0].motion_modules[0], "down0.motion0")
    taps.add(u.down_blocks[0], "down0")
    taps.add(u.down_blocks[1], "down1")
    taps.add(u.down_blocks[3], "down3")
    taps.add(u.mid_block, "mid")
    taps.add(u.up_blocks[0], "up0")
    taps.add(u.up_blocks[2], "up2")
    y = u(x0, t, encoder_hidden_states=ctx[:1].repeat_interleave(FRAMES, 0)).sample
    unit = taps.done()
    unit.update({"x": x0, "t": t, "ctx": ctx[:1], "y": y})
    # two videos at once: frames must not mix across the batch
    x2 = init_latents((2, 4, 2, LH, LW), 12)
    y2 = u(x2, t, encoder_hidden_states=ctx[:2].repeat_interleave(2, 0)).sample
    unit.update({"batch.x": x2, "batch.ctx": ctx[:2], "batch.y": y2})
    # a size that is not a multiple of 8: nearest upsampling to the skip size
    x3 = init_latents((1, 4, 2, 10, 6), 13)
    unit.update({"odd.x": x3, "odd.y": u(x3, t, encoder_hidden_states=ctx[:1].repeat_interleave(2, 0)).sample})
    # original AnimateDiff / AnimateLCM semantics: group norm of the motion module per frame
    mm = u.down_blocks[0].motion_modules[0]

    def per_frame(m, h, f):
        b, c, hh, ww = h.shape
        z = m.norm(h).permute(0, 2, 3, 1).reshape(b // f, f, hh * ww, c).permute(0, 2, 1, 3).reshape(-1, f, c)
        z = m.proj_in(z)
        for blk in m.transformer_blocks:
            z = blk(z)
        z = m.proj_out(z).reshape(b // f, hh * ww, f, c).permute(0, 2, 3, 1).reshape(b, c, hh, ww)
        return z + h

    unit["down0.motion0.per_frame_norm"] = per_frame(mm, unit["down0.attn0"], FRAMES)

    u_orig = per_frame_norms(fresh().unet)
    unit["y.per_frame_norm"] = u_orig(x0, t, encoder_hidden_states=ctx[:1].repeat_interleave(FRAMES, 0)).sample
    put("unet", unit, num_frames=FRAMES, timestep=759)

    # AnimateDiff v1 and v3 have no motion module in the middle
    bare = MotionAdapter(**{k: v for k, v in motion.config.items() if not k.startswith("_") and k != "use_motion_mid_block"},
                         use_motion_mid_block=False)
    bare.load_state_dict({k: w for k, w in motion.state_dict().items() if not k.startswith("mid_block")})
    u_bare = UNetMotionModel.from_unet2d(unet2d, bare).eval()
    assert not any("mid_block.motion" in k for k in u_bare.state_dict())
    no_mid = {"y": u_bare(x0, t, encoder_hidden_states=ctx[:1].repeat_interleave(FRAMES, 0)).sample}
    no_mid["y.per_frame_norm"] = per_frame_norms(u_bare)(x0, t, encoder_hidden_states=ctx[:1].repeat_interleave(FRAMES, 0)).sample
    put("unet_no_mid", no_mid, num_frames=FRAMES, timestep=759, inputs="unet.safetensors: x, t, ctx")

    # ---- scheduler tables
    tab = {}
    for name, cfg in {"linear50": dict(beta_schedule="linear"), "scaled50": dict(beta_schedule="scaled_linear"),
                      "linear100": dict(beta_schedule="linear", original_inference_steps=100)}.items():
        s = LCMScheduler(**cfg)
        for n in (1, 2, 3, 4, 5, 6, 8, 10):
            s.set_timesteps(n)
            tab[f"lcm.{name}.{n}"] = s.timesteps
        s.set_timesteps(4, strength=0.6)
        tab[f"lcm.{name}.4.strength0.6"] = s.timesteps
        tab[f"lcm.{name}.acp"] = s.alphas_cumprod[[0, 1, 19, 259, 499, 759, 999]]
        tab[f"lcm.{name}.scalings"] = torch.tensor([[float(v) for v in s.get_scalings_for_boundary_condition_discrete(q)]
                                                    for q in (0, 1, 19, 259, 999)])
    for n in (4, 10, 25):
        for sp in ("leading", "linspace", "trailing"):
            d = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", timestep_spacing=sp, steps_offset=1, clip_sample=False)
            d.set_timesteps(n)
            tab[f"ddim.{sp}.{n}"] = d.timesteps
            e = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", timestep_spacing=sp, steps_offset=1)
            e.set_timesteps(n)
            tab[f"euler.{sp}.{n}.t"], tab[f"euler.{sp}.{n}.sigma"] = e.timesteps, e.sigmas
            tab[f"euler.{sp}.{n}.init"] = torch.as_tensor(float(e.init_noise_sigma))
            p = DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", timestep_spacing=sp,
                                            steps_offset=1, use_karras_sigmas=True, algorithm_type="dpmsolver++")
            p.set_timesteps(n)
            tab[f"dpmk.{sp}.{n}.t"], tab[f"dpmk.{sp}.{n}.sigma"] = p.timesteps, p.sigmas
    put("schedules", tab)

    # ---- pipelines
    common = dict(prompt=PROMPT, num_frames=FRAMES, height=LH * 4, width=LW * 4, num_inference_steps=4)
    shape = (1, 4, FRAMES, LH, LW)
    r = record(pipe, noise_seed=21, latents=x0.clone(), negative_prompt=NEG, guidance_scale=1.5, output_type="pt", **common)
    r["prompt_embeds"], r["negative_embeds"] = ctx[:1], ctx[1:2]
    for k in ("eps.1", "eps.2", "latents.3"):
        del r[k]
    put("lcm_cfg", r, guidance_scale=1.5, steps=4, scheduler="LCM linear, original 50", init="unet.safetensors: x")
    put("lcm_nocfg", record(pipe, noise_seed=21, keep_steps=False, latents=x0.clone(), guidance_scale=1.0,
                            output_type="latent", **common), guidance_scale=1.0, steps=4, init="unet.safetensors: x")

    # the official AnimateLCM semantics: norms per frame, grid of 100
    off = fresh(scheduler=LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=100))
    off.set_progress_bar_config(disable=True)
    per_frame_norms(off.unet)
    r = record(off, noise_seed=21, latents=x0.clone(), negative_prompt=NEG, guidance_scale=1.5, output_type="pt", **common)
    for k in ("eps.1", "eps.2", "latents.3"):
        del r[k]
    put("official_cfg", r, guidance_scale=1.5, steps=4, scheduler="LCM linear, original 100", motion_norm="per frame",
        init="unet.safetensors: x")
    r = record(off, noise_seed=21, keep_steps=False, latents=x0.clone(), guidance_scale=1.0, output_type="pt", **common)
    put("official_nocfg", r, guidance_scale=1.0, steps=4, scheduler="LCM linear, original 100", motion_norm="per frame",
        init="unet.safetensors: x")

    # two prompts, two different videos
    xb = init_latents((2, 4, 3, LH, LW), 14)
    put("lcm_batch", {**record(pipe, noise_seed=23, keep_steps=False, latents=xb.clone(), guidance_scale=2.0,
                               negative_prompt=[NEG, "dog"], output_type="latent",
                               **{**common, "prompt": [PROMPT, "a dog"], "num_frames": 3}), "latents.init": xb}, guidance_scale=2.0)

    base_cfg = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="linear")
    for name, sch, extra_kw in [
        ("ddim", DDIMScheduler(**base_cfg, clip_sample=False, timestep_spacing="linspace", steps_offset=1), {}),
        ("euler_trailing", EulerDiscreteScheduler(**base_cfg, timestep_spacing="trailing"), {}),
        ("dpmpp_2m_karras", DPMSolverMultistepScheduler(**base_cfg, algorithm_type="dpmsolver++", use_karras_sigmas=True, timestep_spacing="linspace", steps_offset=1), {}),
        ("dpmpp_2m", DPMSolverMultistepScheduler(**base_cfg, algorithm_type="dpmsolver++", timestep_spacing="linspace", steps_offset=1), {}),
    ]:
        q = fresh(scheduler=sch)
        q.set_progress_bar_config(disable=True)
        g = record(q, noise_seed=21, keep_steps=True, latents=x0.clone(), negative_prompt=NEG, guidance_scale=3.0,
                   output_type="latent", **{**common, "num_inference_steps": 5}, **extra_kw)
        g = {k: v for k, v in g.items() if k in ("timesteps", "latents.0", "latents.final")}
        put(name, g, guidance_scale=3.0, steps=5, init="unet.safetensors: x", config={k: v for k, v in dict(sch.config).items() if not k.startswith("_") and v != float("-inf")})

    # FreeU, then FreeInit, then FreeNoise
    q = fresh(); q.set_progress_bar_config(disable=True)
    q.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    put("freeu", {**record(q, noise_seed=21, keep_steps=False, latents=x0.clone(), guidance_scale=1.0, output_type="latent", **common)},
        s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    q = fresh(); q.set_progress_bar_config(disable=True)
    q.enable_free_init(num_iters=2, method="butterworth", order=4, spatial_stop_frequency=0.25, temporal_stop_frequency=0.25)
    filt = q._get_free_init_freq_filter(shape, "cpu", "butterworth", 4, 0.25, 0.25)
    gaus = q._get_free_init_freq_filter(shape, "cpu", "gaussian", 4, 0.25, 0.2)
    ideal = q._get_free_init_freq_filter(shape, "cpu", "ideal", 4, 0.25, 0.2)
    put("freeinit", {**record(q, noise_seed=26, keep_steps=False, latents=x0.clone(), guidance_scale=1.0, output_type="latent",
                              **{**common, "num_inference_steps": 2}),
                     "filter.butterworth": filt[:, :1], "filter.gaussian": gaus[:, :1], "filter.ideal": ideal[:, :1]},
        iters=2, steps=2, note="noise.k in draw order: step noise of iteration 0, the re-init noise, step noise of iteration 1")
    for name, frames, ctx_len, stride, scheme in [("freenoise_even", 12, 6, 3, "pyramid"), ("freenoise_tail", 13, 6, 4, "pyramid")]:
        q = fresh(); q.set_progress_bar_config(disable=True)
        q.enable_free_noise(context_length=ctx_len, context_stride=stride, weighting_scheme=scheme, noise_type="random")
        xl = init_latents((1, 4, frames, LH, 8), 15)
        pr = {0: PROMPT, 5: "a dog", frames - 2: "the park"}
        g = record(q, noise_seed=27, keep_steps=False, latents=xl.clone(), guidance_scale=1.5, negative_prompt=NEG, output_type="latent",
                   **{**common, "prompt": pr, "num_frames": frames, "width": 32, "num_inference_steps": 2})
        pe, _ = q._encode_prompt_free_noise(prompt=dict(pr), num_frames=frames, device="cpu", num_videos_per_prompt=1,
                                            do_classifier_free_guidance=False)
        put(name, {**g, "latents.init": xl, "prompt_embeds": pe[:, :8]}, context_length=ctx_len, stride=stride, scheme=scheme,
            prompts={str(k): v for k, v in pr.items()}, frames=frames)

    from diffusers.models.attention import FreeNoiseTransformerBlock

    blk = FreeNoiseTransformerBlock(8, 2, 4)
    manifest["free_noise_weights"] = {f"{k}.{n}": blk._get_frame_weights(n, k) for n in (5, 6, 16)
                                      for k in ("flat", "pyramid", "delayed_reverse_sawtooth")}

    # ---- VAE
    img = torch.from_numpy(np.stack([picture(32, 48, k) for k in range(1)])).permute(0, 3, 1, 2).float() / 127.5 - 1
    mom = vae.encode(img).latent_dist
    z = init_latents((2, 4, 6, 10), 16)
    big = init_latents((1, 4, 12, 18), 17)
    v = fresh().vae
    v.enable_tiling()
    put("vae", {"img": img, "mean": mom.mean, "logvar": mom.logvar, "z": z, "dec": vae.decode(z).sample,
                "tiled.z": big, "tiled.dec": v.decode(big).sample,
                "tiled.enc": v._encode(torch.nn.functional.interpolate(img[:1], (40, 72), mode="nearest"))}, tile_sample=32, overlap=0.25)
    taesd = fill(AutoencoderTiny(encoder_block_out_channels=(6, 6, 6), decoder_block_out_channels=(6, 6, 6), num_encoder_blocks=(1, 2, 2),
                                 num_decoder_blocks=(2, 2, 1)), 18)
    save_model_half(taesd, f"{extra}/taesd")
    put("taesd", {"dec": taesd.decode(z[:1]).sample, "enc": taesd.encode(img).latents}, z="vae: z[:1]", img="vae: img")

    # ---- ControlNet
    cn = ControlNetModel.from_unet(unet2d, conditioning_embedding_out_channels=(4, 6, 8), load_weights_from_unet=False)
    fill(cn, 19)
    for m in [*cn.controlnet_down_blocks, cn.controlnet_mid_block]:
        m.weight.mul_(0.5); m.weight.copy_(m.weight.half().float())
    save_model_half(cn, f"{extra}/controlnet")
    cond = [Image.fromarray(picture(LH * 4, LW * 4, k)) for k in range(FRAMES)]
    q = fresh(AnimateDiffControlNetPipeline, controlnet=cn); q.set_progress_bar_config(disable=True)
    cnd = torch.from_numpy(np.stack([np.asarray(c) for c in cond])).permute(0, 3, 1, 2).float() / 255
    dres, mres = cn(x0[0].permute(1, 0, 2, 3), t, encoder_hidden_states=ctx[:1].expand(FRAMES, -1, -1), controlnet_cond=cnd,
                    conditioning_scale=0.7, return_dict=False)
    g = record(q, noise_seed=21, keep_steps=False, latents=x0.clone(), negative_prompt=NEG, guidance_scale=1.5, output_type="latent",
               conditioning_frames=cond, controlnet_conditioning_scale=0.7, control_guidance_start=0.0, control_guidance_end=0.75, **common)
    put("controlnet", {**g, "cond_u8": torch.from_numpy(np.stack([np.asarray(c) for c in cond])), "unit.down0": dres[0], "unit.down5": dres[5],
                       "unit.down11": dres[11], "unit.mid": mres}, scale=0.7, start=0.0, end=0.75, guidance_scale=1.5)

    # ---- SparseControlNet (rgb flavour: latents in, one conv)
    sc = SparseControlNetModel(in_channels=4, conditioning_channels=4, block_out_channels=CH, layers_per_block=1, cross_attention_dim=CROSS,
                               attention_head_dim=2, norm_num_groups=GROUPS, motion_max_seq_length=SEQ, motion_num_attention_heads=4,
                               use_simplified_condition_embedding=True, concat_conditioning_mask=True,
                               down_block_types=("CrossAttnDownBlockMotion",) * 3 + ("DownBlockMotion",))
    fill(sc, 20)
    save_model_half(sc, f"{extra}/sparsectrl")
    cl = torch.zeros(1, 4, FRAMES, LH, LW); cm = torch.zeros(1, 1, FRAMES, LH, LW)
    cl[:, :, [0, 4]] = init_latents((1, 4, 2, LH, LW), 30); cm[:, :, [0, 4]] = 1
    dres, mres = sc(x0, t, encoder_hidden_states=ctx[:1].repeat_interleave(FRAMES, 0), controlnet_cond=cl, conditioning_mask=cm,
                    conditioning_scale=0.9, return_dict=False)
    put("sparsectrl", {"cond": cl, "mask": cm, "down0": dres[0], "down3": dres[3], "down7": dres[-1], "mid": mres}, scale=0.9,
        note="layers_per_block=1 here; x is ignored by the model except for its shape")

    # ---- IP-Adapter
    vis = fill(CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_size=14, intermediate_size=28, num_hidden_layers=3, num_attention_heads=2,
                                                              image_size=32, patch_size=8, projection_dim=10, hidden_act="gelu")), 31)
    vis.config.save_pretrained(f"{extra}/image_encoder")
    save_half(vis.state_dict(), f"{extra}/image_encoder/model.safetensors")
    build_ip_adapters(extra, 10, 14)
    ref = Image.fromarray(picture(48, 40, 5))
    fe = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    fe.save_pretrained(f"{extra}/feature_extractor")
    px = fe(ref, return_tensors="pt").pixel_values
    vo = vis(px, output_hidden_states=True)
    vz = vis(torch.zeros_like(px), output_hidden_states=True)
    put("image_encoder", {"ref_u8": torch.from_numpy(np.asarray(ref)), "pixels": px, "image_embeds": vo.image_embeds, "penultimate": vo.hidden_states[-2],
                          "uncond_penultimate": vz.hidden_states[-2]})
    for name, file, scale in [("ip_base", "ip-adapter.safetensors", 0.6), ("ip_plus", "ip-adapter-plus.safetensors", 0.8), ("ip_full", "ip-adapter-full.safetensors", 0.7)]:
        q = fresh(image_encoder=vis, feature_extractor=fe); q.set_progress_bar_config(disable=True)
        q.load_ip_adapter(extra, subfolder="", weight_name=file, image_encoder_folder=None)
        q.set_ip_adapter_scale(scale)
        emb = q.prepare_ip_adapter_image_embeds(ref, None, "cpu", 1, True)
        tok_out = q.unet.encoder_hid_proj(emb)[0]
        g = record(q, noise_seed=21, keep_steps=False, latents=x0.clone(), negative_prompt=NEG, guidance_scale=1.5, output_type="latent",
                   ip_adapter_image=ref, **{**common, "num_inference_steps": 2})
        put(name, {**g, "tokens": tok_out, "embeds": emb[0]}, scale=scale, steps=2)
    # masked, two images in one adapter
    from diffusers.image_processor import IPAdapterMaskProcessor

    q = fresh(image_encoder=vis, feature_extractor=fe); q.set_progress_bar_config(disable=True)
    q.load_ip_adapter(extra, subfolder="", weight_name="ip-adapter.safetensors", image_encoder_folder=None)
    q.set_ip_adapter_scale([[0.7, 0.4]])
    m1 = np.zeros((32, 64), np.uint8); m1[:, :32] = 255
    m2 = 255 - m1
    masks = IPAdapterMaskProcessor().preprocess([Image.fromarray(m1), Image.fromarray(m2)], height=32, width=64)
    ref2 = Image.fromarray(picture(40, 48, 9))
    g = record(q, noise_seed=21, keep_steps=False, latents=x0.clone(), negative_prompt=NEG, guidance_scale=1.5, output_type="latent",
               ip_adapter_image=[[ref, ref2]], cross_attention_kwargs={"ip_adapter_masks": [masks.reshape(1, 2, 32, 64)]},
               **{**common, "num_inference_steps": 2})
    put("ip_masked", {**g, "ref2_u8": torch.from_numpy(np.asarray(ref2)), "masks": masks}, scales=[0.7, 0.4], steps=2)

    # ---- LoRA
    build_loras(unet2d, te, pipe.unet, extra)
    for name, files, weights in [("lora_kohya", ["lora-kohya"], [0.8]), ("lora_peft", ["lora-peft"], [0.7]), ("lora_motion", ["motion-lora"], [1.0]),
                                 ("lora_all", ["lora-kohya", "lora-peft", "motion-lora"], [0.8, 0.5, 0.9])]:
        q = fresh(); q.set_progress_bar_config(disable=True)
        for f in files:
            q.load_lora_weights(extra, weight_name=f + ".safetensors", adapter_name=f.replace("-", "_"))
        q.set_adapters([f.replace("-", "_") for f in files], weights)
        g = record(q, noise_seed=21, keep_steps=False, latents=x0.clone(), negative_prompt=NEG, guidance_scale=1.5, output_type="latent",
                   **{**common, "num_inference_steps": 2})
        g["prompt_embeds"] = q.encode_prompt(PROMPT, "cpu", 1, False)[0]
        put(name, g, files=files, weights=weights, steps=2)

    # ---- video to video, PAG
    q = fresh(AnimateDiffVideoToVideoPipeline); q.set_progress_bar_config(disable=True)
    g = record(q, noise_seed=33, keep_steps=False, video=cond, prompt=PROMPT, negative_prompt=NEG, height=LH * 4, width=LW * 4,
               num_inference_steps=4, strength=0.6, guidance_scale=1.5, output_type="latent", decode_chunk_size=4)
    put("video2video", g, strength=0.6, steps=4, decode_chunk_size=4,
        note="noise.0/1: posterior samples of two encode chunks [f,c,h,w]; noise.2: [b,f,c,h,w]; then step noise")
    q = fresh(AnimateDiffPAGPipeline, pag_applied_layers=["mid_block.*attn1"]); q.set_progress_bar_config(disable=True)
    g = record(q, noise_seed=21, keep_steps=False, latents=x0.clone(), negative_prompt=NEG, guidance_scale=1.5, output_type="latent",
               pag_scale=1.3, **{**common, "num_inference_steps": 2})
    put("pag", g, pag_scale=1.3, layers=["mid_block.*attn1"], note="the pattern also matches the motion module of the mid block", steps=2)
    q = fresh(AnimateDiffSparseControlNetPipeline, controlnet=sc); q.set_progress_bar_config(disable=True)
    # (pipeline-level SparseCtrl: layers_per_block differs from the unet, so only the unit golden is stored)

    save_file(bank, f"{gold}/noise.safetensors")

    # ---- the key functions agree with diffusers' own converters
    ldm = {"model.diffusion_model." + ldm_unet_key(k): w for k, w in unet2d.state_dict().items()}
    ldm |= {"first_stage_model." + ldm_vae_key(k, 3): (w[:, :, None, None] if ".attentions." in k and w.ndim == 2 else w) for k, w in vae.state_dict().items()}
    ldm |= {"cond_stage_model.transformer.text_model." + k: w for k, w in te.state_dict().items()}
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers as back_mm
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint as back_unet
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint as back_vae

    b = back_unet(dict(ldm), dict(unet2d.config))
    assert set(b) == set(unet2d.state_dict()) and all(torch.equal(b[k], w) for k, w in unet2d.state_dict().items())
    b = back_vae(dict(ldm), dict(vae.config))
    assert set(b) == set(vae.state_dict()) and all(torch.equal(b[k], w) for k, w in vae.state_dict().items())
    orig = {original_motion_key(k): w for k, w in motion.state_dict().items() if original_motion_key(k)}
    b = back_mm(dict(orig))
    assert all(torch.equal(b[k], w) for k, w in motion.state_dict().items() if "pos_embed" not in k)
    # ---- self checks: does the golden data have teeth?
    def rel(a, b):
        return float((a - b).norm() / b.norm())

    c1 = ctx[:1].repeat_interleave(FRAMES, 0)
    checks = {}
    perm = torch.tensor([3, 0, 5, 1, 4, 2])
    checks["permute frames, undo"] = rel(u(x0[:, :, perm], t, encoder_hidden_states=c1).sample[:, :, torch.argsort(perm)], y)
    single = torch.cat([u(x0[:, :, i : i + 1], t, encoder_hidden_states=ctx[:1]).sample for i in range(FRAMES)], 2)
    checks["frames one by one"] = rel(single, y)
    checks["time reversed"] = rel(u(x0.flip(2), t, encoder_hidden_states=c1).sample.flip(2), y)
    checks["other prompt"] = rel(u(x0, t, encoder_hidden_states=ctx[1:2].repeat_interleave(FRAMES, 0)).sample, y)
    checks["other timestep"] = rel(u(x0, torch.tensor([259]), encoder_hidden_states=c1).sample, y)
    no_motion = unet2d(x0[0].permute(1, 0, 2, 3), t, encoder_hidden_states=c1).sample.permute(1, 0, 2, 3)[None]
    checks["no motion module"] = rel(no_motion, y)
    checks["all motion norms per frame"] = rel(unit["y.per_frame_norm"], y)
    checks["motion norm per frame vs pooled"] = rel(unit["down0.motion0.per_frame_norm"], unit["down0.motion0"])
    checks["h/w swapped"] = rel(u(x0.transpose(3, 4), t, encoder_hidden_states=c1).sample.transpose(3, 4), y)
    lat = load_file(f"{gold}/lcm_cfg.safetensors")
    for other in ("freeu", "controlnet", "ip_base", "ip_plus", "ip_full", "lora_kohya", "lora_peft", "lora_motion", "pag"):
        o = load_file(f"{gold}/{other}.safetensors")
        assert torch.isfinite(o["latents.final"]).all(), other
    ref2s = record(fresh(), noise_seed=21, keep_steps=False, latents=x0.clone(), negative_prompt=NEG, guidance_scale=1.5, output_type="latent",
                   **{**common, "num_inference_steps": 2})["latents.final"]
    for other in ("lora_kohya", "lora_peft", "lora_motion", "lora_all"):
        checks["effect of " + other] = rel(load_file(f"{gold}/{other}.safetensors")["latents.final"], ref2s)
    ref2i = record(fresh(), noise_seed=21, keep_steps=False, latents=x0.clone(), negative_prompt=NEG, guidance_scale=1.5, output_type="latent",
                   **{**common, "num_inference_steps": 2})["latents.final"]
    for other in ("ip_base", "ip_plus", "ip_full", "ip_masked"):
        checks["effect of " + other] = rel(load_file(f"{gold}/{other}.safetensors")["latents.final"], ref2i)
    ref4 = record(fresh(), noise_seed=21, keep_steps=False, latents=x0.clone(), negative_prompt=NEG, guidance_scale=1.5, output_type="latent", **common)["latents.final"]
    checks["effect of controlnet"] = rel(load_file(f"{gold}/controlnet.safetensors")["latents.final"], ref4)
    f = lat["frames"]
    checks["frame std"] = float(f.std())
    checks["share of clipped pixels"] = float(((f <= 0) | (f >= 1)).float().mean())
    checks["neighbour frames differ"] = rel(f[:, 1:], f[:, :-1])
    again = record(fresh(), noise_seed=21, latents=x0.clone(), negative_prompt=NEG, guidance_scale=1.5, output_type="pt", **common)
    checks["rerun max abs diff"] = float((again["frames"] - f).abs().max())
    manifest["checks"] = checks
    json.dump(manifest, open(f"{gold}/manifest.json", "w"), indent=None, separators=(",", ":"))
    for k, vv in checks.items():
        print(f"{k:34s} {vv:.5f}")
    for k in ["permute frames, undo", "frames one by one", "time reversed", "other prompt", "other timestep", "no motion module", "h/w swapped"]:
        assert checks[k] > 0.02, k
    assert checks["share of clipped pixels"] < 0.5


if __name__ == "__main__":
    main()
