#!/usr/bin/env python3
"""Writes ../i2v: AnimateLCM-I2V at the size of the tiny model of `../tiny`: encoder, insertion, whole runs, colours.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, numpy 2.4.6, pillow 13.0.0, opencv-python-headless
5.0.0.93 (`requirements.txt`). To be run after `make_goldens.py`; nothing is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python i2v.py

    encoder.safetensors  the image encoder under its published names, `img_encoder.*`, float16
    units.safetensors    `latents`, and the features of six frames with a motion scale of 0.8 (`feature.0` to `.3`); the same of latents
                         whose halves are odd (`odd`), with a scale of 0.35; `unet.x` at timestep 749 with `feature.*` (`unet.y`) and with
                         them weighted (`unet.weighted`)
    images.safetensors   pictures resized and cropped by Pillow, `NAME_u8` to `NAME.WxH_u8`; colours of `frame_u8` moved to those of
                         `wide_u8` and others by OpenCV (`matched.NAME_u8`)
    runs.safetensors     runs from `tall_u8`, seed 5: `plain`, `guided`, `still` (motion scale 0), `three` (other weights and betas, three
                         steps). Of each the latents; of `guided` the first and fourth frame before and after its
                         colours are moved
    i2v.json             the settings of each run

No package has this model, so the network and the loop are written here from the description of the published code, G-U-N/AnimateLCM
(`adapter.py`, `unet_blocks.py`, `pipeline_animation.py`, `lcm_scheduler.py`, `util.py`); UNet, VAE and text encoder are diffusers'.

OpenCV converts from HSV by vector instructions, 32 pixels at once with AVX2, and cuts; what is left of a row it rounds. All pictures whose
colours are moved here are a multiple of 64 wide, as are the sizes that the published program offers.
"""
import json
import math
import os

import cv2
import numpy as np
import torch
from diffusers import AnimateDiffPipeline
from make_goldens import CH, FRAMES, LH, LW, NEG, PROMPT, fill, init_latents, per_frame_norms, picture, save_half
from PIL import Image
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.path.dirname(HERE), "tiny")
OUT = os.path.join(os.path.dirname(HERE), "i2v")
SEED = 5
F = torch.nn.functional
RUNS = {
    "plain": dict(steps=4, guidance=1.0, motion_scale=0.8, beta_end=0.014, weights=[1.0, 1.0, 1.0, 1.0]),
    "guided": dict(steps=4, guidance=1.5, motion_scale=0.8, beta_end=0.014, weights=[1.0, 1.0, 1.0, 1.0]),
    "still": dict(steps=2, guidance=1.0, motion_scale=0.0, beta_end=0.014, weights=[1.0, 1.0, 1.0, 1.0]),
    "three": dict(steps=3, guidance=1.0, motion_scale=1.25, beta_end=0.016, weights=[0.75, 1.0, -0.5, 0.0]),
}


class Block(torch.nn.Module):
    def __init__(self, before, width, halves):
        super().__init__()
        self.halves = halves
        if before != width:
            self.in_conv = torch.nn.Conv2d(before, width, 1)
        self.block1 = torch.nn.Conv2d(width, width, 3, padding=1)
        self.block2 = torch.nn.Conv2d(width, width, 1)

    def forward(self, x):
        if self.halves:
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate")
            x = F.avg_pool2d(x, 2)
        if hasattr(self, "in_conv"):
            x = self.in_conv(x)
        return x + self.block2(F.relu(self.block1(x)))


def positions(frames, width):
    table = torch.zeros(frames, width)
    for p in range(frames):
        for i in range(0, width, 2):
            angle = p * math.exp(-math.log(10000.0) * i / width)
            table[p, i], table[p, i + 1] = math.sin(angle), math.cos(angle)
    return table


class Encoder(torch.nn.Module):
    def __init__(self, latent=4, widths=CH):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(latent, widths[0], 3, padding=1)
        before = (widths[0], *widths[:-1])
        self.body = torch.nn.ModuleList(
            [block for i, (b, w) in enumerate(zip(before, widths)) for block in (Block(b, w, i > 0), Block(w, w, False))])
        self.width = widths[0]

    def forward(self, latents, frames, motion_scale, weights=(1.0, 1.0, 1.0, 1.0)):
        """latents (1, 4, h, w), the same for every frame -> per level (frames, c, h', w')"""
        x = self.conv_in(latents.expand(frames, -1, -1, -1)) + motion_scale * positions(frames, self.width)[:, :, None, None]
        features = []
        for i, block in enumerate(self.body):
            x = block(x)
            if i % 2 == 1:
                features.append(x)
        return [w * f for w, f in zip(weights, features)]


class Inserted:
    """Features are added before the second motion module of every down block while this is open."""

    def __init__(self, unet, features):
        self.hooks = []
        for block, feature in zip(unet.down_blocks, features):
            def add(_, args, kwargs, feature=feature):
                x = args[0]
                return (x + feature.repeat(x.shape[0] // feature.shape[0], 1, 1, 1), *args[1:]), kwargs

            self.hooks.append(block.motion_modules[1].register_forward_pre_hook(add, with_kwargs=True))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


def resize_and_crop(image, width, height):
    w, h = image.size
    if width / height > w / h:
        size = (width, round((width / w) * h))
    else:
        size = (round((height / h) * w), height)
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return image.resize(size, Image.LANCZOS).crop((left, top, left + width, top + height))


def matched(source, frame):
    """frame (uint8 RGB) with the mean hue, saturation and value of source"""
    source, frame = (cv2.cvtColor(x[..., ::-1].copy(), cv2.COLOR_BGR2HSV) for x in (source, frame))
    for i, (share, most) in enumerate([(0.03, 180), (1.0, 255), (1.0, 255)]):
        move = share * (np.mean(source[..., i]) - np.mean(frame[..., i]))
        frame[..., i] = np.clip(frame[..., i] + move, 0, most)
    return cv2.cvtColor(frame, cv2.COLOR_HSV2BGR)[..., ::-1].copy()


def lcm(steps, beta_end, original=200):
    """(timestep, alpha, sigma, c_skip, c_out) of each step"""
    alphas = torch.cumprod(1 - torch.linspace(0.00085, beta_end, 1000, dtype=torch.float32), 0)
    grid = [1000 // original * i - 1 for i in range(1, original + 1)][::-1]
    times = [grid[i * len(grid) // steps] for i in range(steps)]
    found = []
    for t in times:
        s = 10.0 * t
        found.append((t, alphas[t] ** 0.5, (1 - alphas[t]) ** 0.5, 0.25 / (s * s + 0.25), s / (s * s + 0.25) ** 0.5))
    return found


def run(pipe, encoder, image, about):
    torch.manual_seed(SEED)
    width, height = LW * 4, LH * 4
    pixels = torch.from_numpy(np.array(resize_and_crop(image, width, height))).permute(2, 0, 1)[None].float() / 255
    posterior = pipe.vae.encode(pixels * 2 - 1).latent_dist
    latents = (posterior.mean + posterior.std * torch.randn(1, 4, LH, LW)) * 0.18215
    x = torch.randn(1, 4, FRAMES, LH, LW)
    guided = about["guidance"] > 1
    prompt, negative = pipe.encode_prompt(PROMPT, "cpu", 1, guided, NEG)
    context = torch.cat([negative, prompt]) if guided else prompt
    context = context.repeat_interleave(FRAMES, 0)
    plan = lcm(about["steps"], about["beta_end"])
    with Inserted(pipe.unet, encoder(latents, FRAMES, about["motion_scale"], about["weights"])):
        for i, (t, alpha, sigma, skip, out) in enumerate(plan):
            eps = pipe.unet(torch.cat([x, x]) if guided else x, t, encoder_hidden_states=context).sample
            if guided:
                uncond, cond = eps.chunk(2)
                eps = uncond + about["guidance"] * (cond - uncond)
            x = out * (x - sigma * eps) / alpha + skip * x
            if i + 1 < len(plan):
                x = plan[i + 1][1] * x + plan[i + 1][2] * torch.randn(x.shape)
    return latents, x, [t for t, *_ in plan]


def main():
    os.makedirs(OUT, exist_ok=True)
    pipe = AnimateDiffPipeline.from_pretrained(f"{TINY}/model", torch_dtype=torch.float32)
    per_frame_norms(pipe.unet)
    encoder = fill(Encoder(), 75)
    save_half({f"img_encoder.{k}": v for k, v in encoder.state_dict().items()}, f"{OUT}/encoder.safetensors")

    latents, odd = init_latents((1, 4, LH, LW), 61), init_latents((1, 4, 7, 13), 62)
    x = init_latents((1, 4, FRAMES, LH, LW), 63)
    context = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0].repeat_interleave(FRAMES, 0)
    units = {"latents": latents, "odd.latents": odd, "unet.x": x, "context": context[:1]}
    features = encoder(latents, FRAMES, 0.8)
    units.update({f"feature.{i}": f for i, f in enumerate(features)})
    units.update({f"odd.{i}": f for i, f in enumerate(encoder(odd, FRAMES, 0.35))})

    def unet(features):
        with Inserted(pipe.unet, features):
            return pipe.unet(x, 749, encoder_hidden_states=context).sample

    plain = pipe.unet(x, 749, encoder_hidden_states=context).sample
    units["unet.y"], weights = unet(features), [1.0, 0.5, -0.25, 0.0]
    units["unet.weighted"] = unet(encoder(latents, FRAMES, 0.8, weights))
    checks = {"effect of the image": ((units["unet.y"] - plain).norm() / plain.norm()).item(),
              "effect of weights": ((units["unet.weighted"] - units["unet.y"]).norm() / plain.norm()).item()}
    # behind the motion module, where a T2I-Adapter adds, is another place
    hooks = [b.motion_modules[1].register_forward_hook(lambda m, a, y, f=f: y + f) for b, f in zip(pipe.unet.down_blocks, features)]
    behind = pipe.unet(x, 749, encoder_hidden_states=context).sample
    for hook in hooks:
        hook.remove()
    checks["effect of the place"] = ((units["unet.y"] - behind).norm() / plain.norm()).item()
    save_file({k: v.contiguous().clone() for k, v in units.items()}, f"{OUT}/units.safetensors")

    photos = {"tall": picture(83, 47, 3), "wide": picture(40, 129, 5), "near": picture(33, 64, 7), "small": picture(9, 21, 2)}
    images = {f"{k}_u8": v for k, v in photos.items()}
    for name, photo in photos.items():
        for width, height in [(64, 32), (32, 48), (24, 16)]:
            images[f"{name}.{width}x{height}_u8"] = np.array(resize_and_crop(Image.fromarray(photo), width, height))
    # All hues, greys, black and white, every second row darker.
    frame = np.random.default_rng(9).integers(0, 256, (15, 128, 3)).astype(np.uint8)
    frame[::2] //= 3
    frame[3, :64] = np.arange(64)[:, None] * 4
    frame[4, :2] = [[0, 0, 0], [255, 255, 255]]
    images["frame_u8"] = frame
    for name, photo in {**photos, "frame": frame, "black": np.zeros((2, 2, 3), np.uint8),
                        "red": np.full((3, 5, 3), (250, 10, 5), np.uint8)}.items():
        images[f"matched.{name}_u8"] = matched(photo, frame)
    save_file({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in images.items()}, f"{OUT}/images.safetensors")

    runs, about = {}, {}
    for name, settings in RUNS.items():
        latents, clip, timesteps = run(pipe, encoder, Image.fromarray(photos["tall"]), settings)
        runs["image"], runs[f"{name}.latents"] = latents, clip
        about[name] = {**settings, "timesteps": timesteps}
        if name == "guided":
            decoded = pipe.vae.decode(clip[0].permute(1, 0, 2, 3)[[0, 3]] / 0.18215).sample
            decoded = (decoded / 2 + 0.5).clamp(0, 1)
            as_bytes = (decoded.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
            runs["guided.decoded"] = decoded
            runs["guided.frames_u8"] = torch.from_numpy(np.stack([matched(photos["tall"], f) for f in as_bytes]))
            checks["effect of colours"] = float(np.abs(runs["guided.frames_u8"].numpy().astype(int) - as_bytes).mean())
    checks["effect of guidance"] = ((runs["plain.latents"] - runs["guided.latents"]).norm() / runs["plain.latents"].norm()).item()
    assert about["plain"]["timesteps"] == [999, 749, 499, 249] and about["three"]["timesteps"] == [999, 669, 334]
    assert min(checks.values()) > 1e-2, checks
    save_file({k: v.contiguous().clone() for k, v in runs.items()}, f"{OUT}/runs.safetensors")
    with open(f"{OUT}/i2v.json", "w") as f:
        json.dump({"seed": SEED, "prompt": PROMPT, "negative": NEG, "weights": weights, "runs": about, "checks": checks}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with torch.no_grad():
        main()
