#!/usr/bin/env python3
"""Writes ../sparse_ctrl: tiny SparseCtrl networks, both kinds, and runs with them.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, numpy 2.4.6, pillow 13.0.0 (`requirements.txt`). To be run after
`make_goldens.py`; nothing is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 python sparse_ctrl.py

    rgb/                 a network that follows latents of pictures, beside the UNet of `../tiny` (that of `../tiny/extras` has half its layers)
    scribble.safetensors what a network that follows pixels has in place of `controlnet_cond_embedding`; the rest is that of `rgb/`
    scribble.json        its configuration
    units.safetensors    residuals of one pass at timestep 759 with `tiny/cases/unet: ctx`; those of `rgb_per_frame` with group norms of each frame
    runs.safetensors     guided runs: `rgb` with the noise of `posterior`, `scribble`, `guess` (without guidance), and `seed`, whose posterior,
                         latents and steps come from torch's generators at seed 7

AnimateDiffSparseControlNetPipeline draws the posterior of the hints from torch's global generator, not from the one that it is given:
in `seed` both are seeded alike.
"""
import json
import os

import numpy as np
import torch
from diffusers import AnimateDiffSparseControlNetPipeline
from diffusers.models import SparseControlNetModel
from make_goldens import (CH, CROSS, FRAMES, GROUPS, LH, LW, NEG, PROMPT, SEQ, fill, init_latents, per_frame_norms, picture, record,
                          save_half, save_model_half)
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.path.dirname(HERE), "tiny")
OUT = os.path.join(os.path.dirname(HERE), "sparse_ctrl")
SEED = 7


def net(simplified):
    kind = dict(conditioning_channels=4, use_simplified_condition_embedding=True) if simplified else dict(
        conditioning_channels=3, use_simplified_condition_embedding=False, conditioning_embedding_out_channels=(4, 6, 10))
    model = SparseControlNetModel(
        in_channels=4, block_out_channels=CH, layers_per_block=2, cross_attention_dim=CROSS, attention_head_dim=2, norm_num_groups=GROUPS,
        motion_max_seq_length=SEQ, motion_num_attention_heads=4, concat_conditioning_mask=True,
        down_block_types=("CrossAttnDownBlockMotion",) * 3 + ("DownBlockMotion",), **kind)
    return fill(model, 50)


def put(name, tensors):
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, f"{OUT}/{name}.safetensors")


def residuals(model, x, ctx, cond, frames, **kw):
    """Of a hint `(1, channels, len(frames), height, width)`."""
    full = torch.zeros(1, cond.shape[1], FRAMES, *cond.shape[3:])
    mask = torch.zeros(1, 1, FRAMES, *cond.shape[3:])
    full[:, :, frames] = cond
    mask[:, :, frames] = 1
    skips, mid = model(x, torch.tensor(759), encoder_hidden_states=ctx[:1].repeat_interleave(FRAMES, 0), controlnet_cond=full,
                       conditioning_mask=mask, return_dict=False, **kw)
    return {**{f"down{i}": s for i, s in enumerate(skips)}, "mid": mid}


def main():
    os.makedirs(OUT, exist_ok=True)
    unit, noise = load_file(f"{TINY}/cases/unet.safetensors"), load_file(f"{TINY}/cases/noise.safetensors")
    x, ctx = unit["x"], unit["ctx"]
    rgb, scribble = net(True), net(False)
    save_model_half(rgb, f"{OUT}/rgb")
    own = {k: v for k, v in scribble.state_dict().items() if k.startswith("controlnet_cond_embedding.")}
    rest = {k: v for k, v in scribble.state_dict().items() if k not in own}
    for k, v in rest.items():
        assert torch.equal(v, rgb.state_dict()[k]), k
    save_half(own, f"{OUT}/scribble.safetensors")
    scribble.save_config(OUT)
    os.replace(f"{OUT}/config.json", f"{OUT}/scribble.json")

    pictures = [picture(LH * 4, LW * 4, k + 60) for k in range(3)]
    latents = init_latents((1, 4, 3, LH, LW), 61)
    pixels = torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2)[None].float() / 255
    units = {"pictures_u8": torch.from_numpy(np.stack(pictures)), "latents": latents}
    some = ("down0", "down4", "down9", "down11", "mid")

    def keep(name, got):
        units.update({f"{name}.{k}": got[k] for k in some})
        return got

    plain = keep("rgb", residuals(rgb, x, ctx, latents, [0, 2, 5]))
    other = keep("scribble", residuals(scribble, x, ctx, pixels, [1, 2, 4], conditioning_scale=0.8))
    keep("guess", residuals(scribble, x, ctx, pixels, [1, 2, 4], conditioning_scale=0.8, guess_mode=True))
    per_frame = keep("rgb_per_frame", residuals(per_frame_norms(net(True)), x, ctx, latents, [0, 2, 5]))
    moved = residuals(rgb, x, ctx, latents, [0, 2, 4])
    again = residuals(rgb, x + 1, ctx, latents, [0, 2, 5])

    def differ(a, b):
        return ((a["mid"] - b["mid"]).norm() / a["mid"].norm()).item()

    assert differ(plain, again) == 0, "the noisy latents are seen"
    checks = {"frames": differ(plain, moved), "norm": differ(plain, per_frame), "kind": differ(plain, other)}
    assert min(checks.values()) > 1e-3, checks
    put("units", units)

    def pipe(model):
        pipe = AnimateDiffSparseControlNetPipeline.from_pretrained(f"{TINY}/model", controlnet=model, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    common = dict(prompt=PROMPT, negative_prompt=NEG, num_frames=FRAMES, height=LH * 4, width=LW * 4, num_inference_steps=4,
                  output_type="latent")
    settings = {
        "rgb": dict(controlnet_frame_indices=[0, 2, 5], controlnet_conditioning_scale=0.9, guidance_scale=1.5),
        "scribble": dict(controlnet_frame_indices=[1, 4], controlnet_conditioning_scale=0.8, guidance_scale=1.5),
        "guess": dict(controlnet_frame_indices=[1, 4], controlnet_conditioning_scale=0.8, guidance_scale=1.0, guess_mode=True),
        "seed": dict(controlnet_frame_indices=[0, 2, 5], controlnet_conditioning_scale=0.9, guidance_scale=1.5),
    }
    hints = [Image.fromarray(p) for p in pictures]
    runs = {}
    # Given instead of drawn, so that the steps have the noise of all other cases.
    posterior = init_latents((3, 4, LH, LW), 62)
    for name in ("rgb", "scribble", "guess"):
        q = pipe(rgb if name == "rgb" else scribble)
        given = hints if name == "rgb" else hints[:2]
        encode = q.vae.encode

        def encoded(pictures, encode=encode):
            out = encode(pictures)
            mean, std = out.latent_dist.mean, out.latent_dist.std
            out.latent_dist.sample = lambda generator=None: mean + std * posterior
            return out

        q.vae.encode = encoded
        # A batch of one prompt may have several pictures; diffusers' check forbids it.
        q.check_image = lambda *a, **k: None
        got = record(q, noise_seed=21, keep_steps=False, latents=x.clone(), conditioning_frames=given, **settings[name], **common)
        for i in range(3):
            assert torch.equal(got[f"noise.{i}"], noise[f"noise.{i}"]), i
        runs[name] = got["latents.final"]
    runs["posterior"] = posterior

    q = pipe(rgb)
    q.check_image = lambda *a, **k: None
    torch.manual_seed(SEED)
    runs["seed"] = q(conditioning_frames=hints, generator=torch.Generator().manual_seed(SEED), **settings["seed"], **common).frames
    for name in ("rgb", "scribble"):
        plain = load_file(f"{TINY}/cases/lcm_cfg.safetensors")["latents.final"]
        checks[f"effect of {name}"] = ((runs[name] - plain).norm() / plain.norm()).item()
    assert min(checks.values()) > 1e-3, checks
    assert (posterior_effect(pipe(rgb), hints) > 0.01).all()
    put("runs", runs)
    json.dump({"steps": 4, "init": "tiny/cases/unet: x", "noise": "tiny/cases/noise", "seed": SEED, "runs": settings, "checks": checks},
              open(f"{OUT}/sparse_ctrl.json", "w"), indent=1)


def posterior_effect(pipe, hints):
    """How much the drawn part adds to the means of the hints' latents."""
    pictures = torch.from_numpy(np.stack([np.asarray(h) for h in hints])).permute(0, 3, 1, 2).float() / 127.5 - 1
    dist = pipe.vae.encode(pictures).latent_dist
    return dist.std.flatten(1).norm(dim=1) / dist.mean.flatten(1).norm(dim=1)


if __name__ == "__main__":
    with torch.no_grad():
        main()
