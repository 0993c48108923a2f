#!/usr/bin/env python3
"""Seconds a training step of the `pocket` plan takes in torch: the same networks, batches, losses and optimizer.

    OMP_NUM_THREADS=2 python train_steps.py [--steps 10] [--plan ../../src/train/pocket.toml]

Stages `base` (UNet and text encoder) and `motion` (motion modules on a frozen UNet); random data. To be compared with the steps/s that
`animatelcm train --preset pocket --stage base` and `--stage motion` print on the same machine.
"""
import argparse
import os
import time
import tomllib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from transformers import CLIPTextConfig, CLIPTextModel

HERE = os.path.dirname(os.path.abspath(__file__))


def timed(name, steps, step):
    step()
    start, busy = time.time(), time.process_time()
    for _ in range(steps):
        step()
    seconds, busy = (time.time() - start) / steps, (time.process_time() - busy) / steps
    print(f"{name}: {seconds:.3f} s a step, {busy:.3f} s of processor time, {torch.get_num_threads()} threads")


def images_of(course):
    """Of all passes of a step."""
    return course["batch"] * course.get("accumulate", 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--plan", default=f"{HERE}/../../src/train/pocket.toml")
    args = parser.parse_args()
    with open(args.plan, "rb") as f:
        plan = tomllib.load(f)
    sizes = plan["base"]["unet"]
    side, frames = sizes["sample_size"], plan["frames"]
    text = plan["base"]["text"]
    encoder = CLIPTextModel(CLIPTextConfig(**text, eos_token_id=text["vocab_size"] - 1))
    unet = UNet2DConditionModel(**sizes)
    batch = images_of(plan["base"]["course"])
    optimizer = torch.optim.AdamW([*unet.parameters(), *encoder.parameters()], lr=1e-4)

    def base():
        ids = torch.randint(text["vocab_size"], (batch, text["max_position_embeddings"]))
        x, noise = torch.randn(2, batch, 4, side, side).unbind(0)
        y = unet(x, torch.randint(1000, (batch,)), encoder(ids).last_hidden_state).sample
        optimizer.zero_grad()
        (y - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()

    timed("base", args.steps, base)
    motion = plan["motion"]["config"]
    adapter = MotionAdapter(
        block_out_channels=tuple(sizes["block_out_channels"]),
        motion_layers_per_block=sizes["layers_per_block"],
        motion_norm_num_groups=sizes["norm_num_groups"],
        motion_num_attention_heads=motion["motion_num_attention_heads"],
        motion_max_seq_length=motion["motion_max_seq_length"],
    )
    unet.requires_grad_(False)
    video = UNetMotionModel.from_unet2d(unet, adapter)
    video.requires_grad_(False)
    trained = [p for n, p in video.named_parameters() if "motion_modules" in n]
    for p in trained:
        p.requires_grad_(True)
    count = images_of(plan["motion"]["course"])
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def clips():
        x, noise = torch.randn(2, count, 4, frames, side, side).unbind(0)
        context = torch.randn(count, text["max_position_embeddings"], text["hidden_size"])
        y = video(x, torch.randint(1000, (count,)), context.repeat_interleave(frames, 0)).sample
        optimizer.zero_grad()
        (y - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    timed("motion", args.steps, clips)


if __name__ == "__main__":
    main()
