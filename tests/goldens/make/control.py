#!/usr/bin/env python3
"""Writes ../control: the tiny ControlNet of `../tiny` in modes that its own case does not show.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, numpy 2.4.6, pillow 13.0.0 (`requirements.txt`). To be run after
`make_goldens.py`; nothing is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 python control.py

    units.safetensors   residuals of one pass at timestep 759 with `unet.safetensors: x, ctx` and the hints of `controlnet.safetensors`:
                        all 13 in guess mode, and some with the configurations `bgr` and `global_pool_conditions`
    two.safetensors     a guided run with two hints at once
    guess.safetensors   runs in guess mode, without and with guidance
    fit.safetensors     a picture, and what PIL makes of it at another size

diffusers' AnimateDiff pipeline crashes in guess mode with guidance: it adds the residuals of half a batch to a whole one. Zeros are put
before them here, as its pipeline for images does.
"""
import json
import os

import numpy as np
import torch
from diffusers import AnimateDiffControlNetPipeline, ControlNetModel
from make_goldens import FRAMES, LH, LW, NEG, PROMPT, picture, record
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.path.dirname(HERE), "tiny")
OUT = os.path.join(os.path.dirname(HERE), "control")


def net(**config):
    return ControlNetModel.from_pretrained(f"{TINY}/extras/controlnet", torch_dtype=torch.float32, **config).eval()


def residuals(model, x, ctx, hint, **kw):
    skips, mid = model(x[0].permute(1, 0, 2, 3), torch.tensor([759]), encoder_hidden_states=ctx[:1].expand(FRAMES, -1, -1),
                       controlnet_cond=hint, return_dict=False, **kw)
    return {**{f"down{i}": s for i, s in enumerate(skips)}, "mid": mid}


def put(name, tensors):
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, f"{OUT}/{name}.safetensors")


def main():
    os.makedirs(OUT, exist_ok=True)
    unit, noise = load_file(f"{TINY}/cases/unet.safetensors"), load_file(f"{TINY}/cases/noise.safetensors")
    pictures = load_file(f"{TINY}/cases/controlnet.safetensors")["cond_u8"]
    first = [Image.fromarray(p.numpy()) for p in pictures]
    hint = pictures.permute(0, 3, 1, 2).float() / 255
    x, ctx = unit["x"], unit["ctx"]

    plain = residuals(net(), x, ctx, hint)
    guess = residuals(net(), x, ctx, hint, guess_mode=True, conditioning_scale=0.7)
    bgr = residuals(net(controlnet_conditioning_channel_order="bgr"), x, ctx, hint)
    pooled = residuals(net(global_pool_conditions=True), x, ctx, hint, guess_mode=True)
    torch.testing.assert_close(guess["mid"], 0.7 * plain["mid"])
    torch.testing.assert_close(guess["down0"], 0.07 * plain["down0"])
    torch.testing.assert_close(pooled["down3"], plain["down3"].mean((2, 3), keepdim=True))
    assert (bgr["down0"] - plain["down0"]).norm() > 1e-3 * plain["down0"].norm()
    put("units", {**{f"guess.{k}": v for k, v in guess.items()}, **{f"bgr.{k}": bgr[k] for k in ("down0", "mid")},
                  **{f"pooled.{k}": pooled[k] for k in ("down0", "down11", "mid")}})

    def run(controlnet, **kw):
        pipe = AnimateDiffControlNetPipeline.from_pretrained(f"{TINY}/model", controlnet=controlnet, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        got = record(pipe, noise_seed=21, keep_steps=False, latents=x.clone(), output_type="latent", prompt=PROMPT, negative_prompt=NEG,
                     num_frames=FRAMES, height=LH * 4, width=LW * 4, num_inference_steps=4, **kw)
        for i in range(3):
            assert torch.equal(got[f"noise.{i}"], noise[f"noise.{i}"])
        return got["latents.final"]

    second = [Image.fromarray(picture(LH * 4, LW * 4, k + 40)) for k in range(FRAMES)]
    two = dict(scales=[0.7, 0.4], start=[0.0, 0.25], end=[0.75, 1.0], guidance_scale=1.5)
    latents = run([net(), net()], conditioning_frames=[first, second], controlnet_conditioning_scale=two["scales"],
                  control_guidance_start=two["start"], control_guidance_end=two["end"], guidance_scale=1.5)
    put("two", {"second_u8": torch.from_numpy(np.stack([np.asarray(p) for p in second])), "latents.final": latents})

    padded = net()
    forward = padded.forward

    def with_zeros(sample, *a, **kw):
        skips, mid = forward(sample, *a, **kw)
        return [torch.cat([torch.zeros_like(s), s]) for s in skips], torch.cat([torch.zeros_like(mid), mid])

    guess = dict(conditioning_frames=first, controlnet_conditioning_scale=0.8, guess_mode=True)
    plain = run(net(), guidance_scale=1.0, **guess)
    padded.forward = with_zeros
    put("guess", {"plain": plain, "guided": run(padded, guidance_scale=1.5, **guess)})

    before = picture(48, 40, 7)
    after = np.asarray(Image.fromarray(before).resize((64, 32), Image.Resampling.LANCZOS))
    put("fit", {"before": torch.from_numpy(before), "after": torch.from_numpy(after.copy())})
    json.dump({"steps": 4, "init": "tiny/cases/unet: x", "noise": "tiny/cases/noise", "two": two, "guess": {"scale": 0.8, "guidance_scale": 1.5},
               "units": {"guess_scale": 0.7}}, open(f"{OUT}/control.json", "w"), indent=1)


if __name__ == "__main__":
    with torch.no_grad():
        main()
