#!/usr/bin/env python3
"""One pass of the full-size network in diffusers, with weights that need no file: what `animatelcm` must agree with.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, accelerate 1.15.0, safetensors 0.8.0, numpy 2.4.6.

    OMP_NUM_THREADS=2 python sd15_parity.py run OUT [--frames 8] [--size 256] [--repeat 2] [--pooled]
    python sd15_parity.py write OUT --dtype f32|f16

`run` draws all weights by name (see named_weights.py), runs each part in float32 on the CPU and writes OUT/sd15.safetensors

    ids (1, 77) int32                    -> text (1, 77, 768)
    latents (1, 4, F, S/8, S/8), timestep (1,), context (1, 77, 768) -> unet, like latents; motion norms per frame unless --pooled
    z (1, 4, S/8, S/8)                   -> image (1, 3, S, S), straight from the decoder: neither scaled before nor after
    image_in (1, 3, S, S)                -> mean (1, 4, S/8, S/8), logvar

and OUT/sd15.json: versions, threads, the seconds of each repeat and peak resident memory (of the whole process until then) of each part, and the first
elements of a few drawn weights. latents, context and z are `input.latents`, `input.context`, `input.z`; image_in is `input.image` / sqrt(3).

`write` stores the same weights as a diffusers folder (unet with its motion modules, vae, text_encoder, scheduler): 6.1 GB in f32.
"""
import argparse
import gc
import json
import os
import platform
import resource
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import diffusers
import numpy as np
import torch
import transformers
from diffusers import LCMScheduler
from models import drawn, full_name, per_frame_norms
from named_weights import fill
from safetensors.torch import save_file

IDS = [49406, 320, 31320, 3941, 530, 518, 1452, 267, 275, 330, 748]  # "A corgi walking in the park, 4k!!"
TIMESTEP = 499
torch.set_grad_enabled(False)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def draw_input(name, shape):
    return torch.from_numpy(fill(f"input.{name}", np.empty(shape, np.float32)))


def first(module, component, names):
    weights = dict(module.named_parameters())
    return {full_name(component, n): [float(v) for v in weights[n].flatten()[:4]] for n in names}


def run(args):
    os.makedirs(args.out, exist_ok=True)
    out, report = {}, {
        "torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__,
        "threads": torch.get_num_threads(), "cpu": platform.processor() or platform.machine(), "capability": torch.backends.cpu.get_cpu_capability(),
        "frames": args.frames, "size": args.size, "dtype": "float32", "motion_norm": "pooled" if args.pooled else "per-frame", "parts": {}, "weights": {},
    }
    small = args.size // 8

    def part(name, component, names, work):
        t0 = time.perf_counter()
        module = drawn(component)
        t1 = time.perf_counter()
        report["weights"] |= first(module, component, names)
        if component == "unet" and not args.pooled:
            per_frame_norms(module)
        work(module)
        report["parts"][name] |= {"build_s": round(t1 - t0, 3), "parameters": sum(p.numel() for p in module.parameters())}
        del module
        gc.collect()

    def timed(label, f):
        seconds = []
        for _ in range(args.repeat):
            t = time.perf_counter()
            value = f()
            seconds.append(round(time.perf_counter() - t, 3))
        report["parts"][label] = {"seconds": seconds, "peak_rss_bytes": peak()}
        print(label, report["parts"][label], flush=True)
        return value

    def text(m):
        out["ids"] = torch.tensor([IDS + [49407] * (77 - len(IDS))], dtype=torch.int32)
        out["text"] = timed("text", lambda: m(out["ids"].long())[0])

    def vae(m):
        out["z"] = draw_input("z", (1, 4, small, small))
        out["image_in"] = draw_input("image", (1, 3, args.size, args.size)) / 3**0.5
        moments = timed("vae_encode", lambda: m.encode(out["image_in"]).latent_dist)
        out["mean"], out["logvar"] = moments.mean, moments.logvar
        out["image"] = timed("vae_decode", lambda: m.decode(out["z"]).sample)

    def unet(m):
        out["latents"] = draw_input("latents", (1, 4, args.frames, small, small))
        out["context"] = draw_input("context", (1, 77, 768))
        out["timestep"] = torch.tensor([TIMESTEP], dtype=torch.int32)
        context = out["context"].repeat_interleave(args.frames, 0)
        out["unet"] = timed("unet", lambda: m(out["latents"], out["timestep"].long(), encoder_hidden_states=context).sample)

    names = {"text_encoder": ["embeddings.token_embedding.weight", "final_layer_norm.weight"], "vae": ["decoder.conv_in.bias", "quant_conv.weight"],
             "unet": ["conv_in.weight", "down_blocks.0.motion_modules.0.proj_out.weight", "mid_block.attentions.0.norm.weight"]}
    part("text", "text_encoder", names["text_encoder"], text)
    part("vae_decode", "vae", names["vae"], vae)
    part("unet", "unet", names["unet"], unet)
    for k, v in out.items():
        assert torch.isfinite(v.float()).all(), k
        if v.is_floating_point():
            report.setdefault("std", {})[k] = float(v.std())
    save_file({k: v.contiguous() for k, v in out.items()}, f"{args.out}/sd15.safetensors")
    with open(f"{args.out}/sd15.json", "w") as f:
        json.dump(report, f, indent=1)
        f.write("\n")


def write(args):
    dtype = {"f32": torch.float32, "f16": torch.float16}[args.dtype]
    for component in ("text_encoder", "vae", "unet"):
        module = drawn(component)
        folder = f"{args.out}/{component}"
        os.makedirs(folder, exist_ok=True)
        if component == "text_encoder":
            module.config.save_pretrained(folder)
        else:
            module.save_config(folder)
        state = {full_name(component, k).partition(".")[2]: v.to(dtype) for k, v in module.state_dict().items()}
        file = "model.safetensors" if component == "text_encoder" else "diffusion_pytorch_model.safetensors"
        save_file(state, f"{folder}/{file}", metadata={"format": "pt"})
        del module, state
        gc.collect()
    LCMScheduler(beta_schedule="linear", original_inference_steps=100).save_pretrained(f"{args.out}/scheduler")
    index = {"_class_name": "AnimateDiffPipeline", "_diffusers_version": diffusers.__version__, "scheduler": ["diffusers", "LCMScheduler"],
             "text_encoder": ["transformers", "CLIPTextModel"], "unet": ["diffusers", "UNetMotionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    with open(f"{args.out}/model_index.json", "w") as f:
        json.dump(index, f, indent=1)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sub = ap.add_subparsers(required=True)
    p = sub.add_parser("run")
    p.add_argument("out")
    p.add_argument("--frames", type=int, default=8)
    p.add_argument("--size", type=int, default=256)
    p.add_argument("--repeat", type=int, default=2, help="the first pass warms the allocator")
    p.add_argument("--pooled", action="store_true", help="diffusers' own motion norm")
    p.set_defaults(work=run)
    p = sub.add_parser("write")
    p.add_argument("out")
    p.add_argument("--dtype", choices=("f32", "f16"), default="f16")
    p.set_defaults(work=write)
    args = ap.parse_args()
    args.work(args)


if __name__ == "__main__":
    main()
