#!/usr/bin/env python3
"""Writes ../free_noise: diffusers' FreeNoise on the tiny model, the noise and the blending of windows.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, numpy 2.4.6 (`requirements.txt`). To be run after `make_goldens.py`; nothing is
downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 python free_noise.py

    free_noise.json          `noise`: settings of every draw; `weights`: those of `FreeNoiseTransformerBlock` by scheme and length;
                             `windows`: how the run below is cut; `diffusers_sums`: what the weights of a frame sum to in diffusers
    noise.safetensors        `{case}`: first latents of `prepare_latents` after `enable_free_noise`, `{case}.next`: 64 more normal numbers of
                             the same generator; `permutation.{n}`: `torch.randperm(n)` three times, generators seeded with n
    blended.safetensors      x (1, 4, 13, 8, 16), ctx; eps: the UNet's outputs for every window (norms per frame, timestep 759), blended by
                             the weights of `FreeNoiseTransformerBlock`

diffusers blends within motion modules, this program the outputs of the UNet; windows and weights are the same. Of a last window that does not
fit, diffusers counts only the frames that no other has, and divides all of them by the weight of the first: their weights do not sum to 1
(`diffusers_sums`). Here a window counts as a whole, which is also what diffusers does where the windows fit.
"""
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from diffusers import AnimateDiffPipeline
from diffusers.models.attention import FreeNoiseTransformerBlock
from make_goldens import per_frame_norms
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.path.dirname(HERE), "tiny")
OUT = os.path.join(os.path.dirname(HERE), "free_noise")
# frames, context length, context stride, seed
NOISE = {"fits": (12, 6, 3, 42), "tail": (13, 6, 4, 7), "long": (40, 8, 6, 3), "whole": (6, 6, 4, 5), "one": (9, 4, 1, 11)}
FRAMES, LENGTH, STRIDE = 13, 6, 4
TIMESTEP = 759


def block(length, stride, scheme="pyramid"):
    return FreeNoiseTransformerBlock(
        dim=8, num_attention_heads=1, attention_head_dim=8, context_length=length, context_stride=stride, weighting_scheme=scheme)


def noise(pipe):
    tensors, settings = {}, {}
    for name, (frames, length, stride, seed) in NOISE.items():
        pipe.enable_free_noise(context_length=length, context_stride=stride, noise_type="shuffle_context")
        generator = torch.Generator().manual_seed(seed)
        height, width = 2 * pipe.vae_scale_factor, 3 * pipe.vae_scale_factor
        drawn = pipe.prepare_latents(1, 4, frames, height, width, torch.float32, torch.device("cpu"), generator)
        assert pipe.scheduler.init_noise_sigma == 1.0
        tensors[name], tensors[f"{name}.next"] = drawn, torch.randn(64, generator=generator)
        settings[name] = {"frames": frames, "length": length, "stride": stride, "seed": seed}
        # Every window has the noise of the first.
        for start in range(0, frames - length + 1, stride):
            sums = [drawn[0, :, s : s + length].sum().item() for s in (0, start)]
            assert abs(sums[0] - sums[1]) < 1e-4, (name, start, sums)
    pipe.disable_free_noise()
    for n in (1, 2, 7, 100):
        generator = torch.Generator().manual_seed(n)
        tensors[f"permutation.{n}"] = torch.stack([torch.randperm(n, generator=generator) for _ in range(3)])
    return tensors, settings


def blended(unet):
    unit = load_file(f"{TINY}/cases/unet.safetensors")
    ctx = unit["ctx"][:1]
    x = torch.randn((1, 4, FRAMES, *unit["x"].shape[-2:]), generator=torch.Generator().manual_seed(17))
    parts = block(LENGTH, STRIDE)
    windows = parts._get_frame_indices(FRAMES)
    assert windows[-1][1] < FRAMES
    tail = FRAMES - windows[-1][1]
    windows.append((FRAMES - LENGTH, FRAMES))
    weights = torch.tensor(parts._get_frame_weights(LENGTH, "pyramid"), dtype=torch.float64)
    total, sums = torch.zeros(x.shape, dtype=torch.float64), torch.zeros(FRAMES, dtype=torch.float64)
    theirs, divisors = torch.zeros(FRAMES, dtype=torch.float64), torch.zeros(FRAMES, dtype=torch.float64)
    for i, (start, end) in enumerate(windows):
        # One context a clip; diffusers wants one a frame.
        eps = unet(x[:, :, start:end], TIMESTEP, ctx.repeat_interleave(LENGTH, 0)).sample
        total[:, :, start:end] += eps.double() * weights[None, None, :, None, None]
        sums[start:end] += weights
        if i == len(windows) - 1:  # as in FreeNoiseTransformerBlock.forward
            theirs[-tail:] += weights[-tail:]
            divisors[-tail:] += weights[-tail]
        else:
            theirs[start:end] += weights
            divisors[start:end] += weights
    eps = (total / sums[None, None, :, None, None]).float()
    return {"x": x, "ctx": ctx, "eps": eps}, windows, (theirs / divisors).tolist()


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_grad_enabled(False)
    pipe = AnimateDiffPipeline.from_pretrained(f"{TINY}/model", torch_dtype=torch.float32)
    drawn, settings = noise(pipe)
    run, windows, sums = blended(per_frame_norms(pipe.unet.eval()))
    schemes = {s: {n: block(n, 1)._get_frame_weights(n, s) for n in range(2, 18)} for s in ("flat", "pyramid")}
    told = {"noise": settings, "weights": schemes,
            "windows": {"frames": FRAMES, "length": LENGTH, "stride": STRIDE, "timestep": TIMESTEP, "spans": windows}, "diffusers_sums": sums}
    for name, tensors in (("noise", drawn), ("blended", run)):
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, f"{OUT}/{name}.safetensors")
    with open(f"{OUT}/free_noise.json", "w") as file:
        json.dump(told, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
