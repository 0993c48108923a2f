#!/usr/bin/env python3
"""One clip of the small model in diffusers, from the start of the process to a GIF: what `animatelcm generate` does.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0.

    python pocket_clip.py OUT.gif [--threads N]
"""
import argparse
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/goldens/make"))
import torch
from diffusers import LCMScheduler
from PIL import Image
from pocket import RUNS, SHAPE, load


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("out")
    ap.add_argument("--threads", type=int)
    a = ap.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    unet, vae, text, tok = load()
    prompt, _, _, seed = RUNS[0]
    ids = tok(prompt, padding="max_length", max_length=text.config.max_position_embeddings, truncation=True, return_tensors="pt").input_ids
    context = text(ids)[0].repeat_interleave(SHAPE[2], 0)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=g)
    s = LCMScheduler(beta_schedule="linear", original_inference_steps=100)
    s.set_timesteps(4)
    for t in s.timesteps:
        x = s.step(unet(x, t, encoder_hidden_states=context).sample, t, x, generator=g).prev_sample
    frames = vae.decode(x[0].transpose(0, 1) / vae.config.scaling_factor).sample
    frames = ((frames / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    first, *rest = [Image.fromarray(f) for f in frames]
    first.save(a.out, save_all=True, append_images=rest, duration=125, loop=0)


if __name__ == "__main__":
    main()
