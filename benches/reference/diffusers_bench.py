#!/usr/bin/env python3
"""Times AnimateLCM in diffusers at full size with random weights: the other side of `animatelcm bench --random-weights sd15`.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, accelerate 1.15.0.

    python diffusers_bench.py [--device cpu|cuda] [--dtype f32|f16|bf16] [--compile] [--frames 16] [--width 512] [--height 512]
                              [--steps 4] [--cfg-scale 1.0] [--warmup 1] [--repeats 3] [--threads N] [--vae-chunk N] [--parts text,unet,vae,clip]

Prints one JSON object:
    settings, versions, device name, parameters of each part, build_s (making the modules; not comparable with loading files)
    text_encode_s, unet_step_s, vae_decode_s, clip_s: median, p10, p90, n in seconds. A UNet step is one step of the sampler:
        with guidance (cfg-scale > 1) it is one batched pass over both halves. vae_decode_s is for all frames of a clip. clip_s is
        text, all steps with the LCM scheduler, decode, and the copy of the frames to the host as float32.
    compile_s: the first call of the UNet where --compile is on; it is not among the repeats
    peak_memory_bytes: of torch's allocator on cuda, resident set of the process on cpu
    unet_gflop, unet_gflops: multiplications and additions of one step as torch counts them, and the rate at the median
The UNet of `pooled` (default) is diffusers' own; --per-frame gives the motion norms that AnimateLCM was trained with.
"""
import argparse
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
from models import noise, per_frame_norms
from torch.utils.flop_counter import FlopCounterMode

diffusers.logging.set_verbosity_error()
torch.set_grad_enabled(False)


def arguments():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--dtype", choices=("f32", "f16", "bf16"), default="f32")
    ap.add_argument("--compile", action="store_true", help="torch.compile the UNet and the VAE's decoder")
    ap.add_argument("--compile-mode", default="default")
    ap.add_argument("--channels-last", action="store_true")
    ap.add_argument("--tf32", action="store_true", help="tensor cores for float32 products on cuda")
    ap.add_argument("--frames", type=int, default=16)
    ap.add_argument("--width", type=int, default=512)
    ap.add_argument("--height", type=int, default=512)
    ap.add_argument("--steps", type=int, default=4)
    ap.add_argument("--cfg-scale", type=float, default=1.0)
    ap.add_argument("--warmup", type=int, default=1)
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--threads", type=int)
    ap.add_argument("--vae-chunk", type=int, default=16, help="frames decoded together")
    ap.add_argument("--per-frame", action="store_true")
    ap.add_argument("--parts", default="text,unet,vae,clip")
    return ap.parse_args()


def main():
    a = arguments()
    if a.threads:
        torch.set_num_threads(a.threads)
    if a.tf32:
        torch.set_float32_matmul_precision("high")
    device = torch.device(a.device)
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[a.dtype]
    parts = set(a.parts.split(","))
    torch.manual_seed(0)

    def sync():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def timed(f):
        sync()
        t = time.perf_counter()
        f()
        sync()
        return time.perf_counter() - t

    def measure(f):
        for _ in range(a.warmup):
            timed(f)
        s = [timed(f) for _ in range(a.repeats)]
        return {"median": float(np.median(s)), "p10": float(np.percentile(s, 10)), "p90": float(np.percentile(s, 90)), "n": len(s)}

    out = {
        "tool": "diffusers", "shape": "sd15",
        "settings": {k: v for k, v in vars(a).items() if k != "parts"} | {"threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version(), "cuda": torch.version.cuda if device.type == "cuda" else None},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    models = {}
    wanted = {"text": "text_encoder", "unet": "unet", "vae": "vae"}
    t = time.perf_counter()
    for part, component in wanted.items():
        if part in parts or "clip" in parts:
            models[part] = noise(component, dtype, device)
    sync()
    out["build_s"] = time.perf_counter() - t
    out["parameters"] = {k: sum(p.numel() for p in m.parameters()) for k, m in models.items()}
    if "unet" in models and a.per_frame:
        per_frame_norms(models["unet"])
    if a.channels_last:
        for k in models.keys() & {"unet", "vae"}:
            models[k] = models[k].to(memory_format=torch.channels_last)
    unet, decode = models.get("unet"), None
    if "vae" in models:
        decode = models["vae"].decode
        if a.compile:
            models["vae"].decoder = torch.compile(models["vae"].decoder, mode=a.compile_mode)
    if unet is not None and a.compile:
        unet = torch.compile(unet, mode=a.compile_mode)

    halves = 2 if a.cfg_scale > 1 else 1
    ids = torch.randint(0, 49407, (halves, 77), device=device)
    x = torch.randn(1, 4, a.frames, a.height // 8, a.width // 8, device=device, dtype=dtype)
    context = torch.randn(halves * a.frames, 77, 768, device=device, dtype=dtype)
    at = torch.tensor(499, device=device)

    def predict(x, t, context):
        eps = unet(torch.cat([x] * halves), t, encoder_hidden_states=context).sample
        if halves == 2:
            plain, wanted = eps.chunk(2)
            eps = plain + a.cfg_scale * (wanted - plain)
        return eps

    def frames(x):
        z = (x / 0.18215).to(dtype)[0].transpose(0, 1)
        return [decode(c).sample for c in z.split(a.vae_chunk)]

    def clip():
        text = models["text"](ids)[0].repeat_interleave(a.frames, 0)
        s = LCMScheduler(beta_schedule="linear", original_inference_steps=100)
        s.set_timesteps(a.steps)
        x = torch.randn(1, 4, a.frames, a.height // 8, a.width // 8, device=device, dtype=dtype)
        for t in s.timesteps:
            x = s.step(predict(x, t.to(device), text), t, x).prev_sample
        return torch.cat([(f.float() / 2 + 0.5).clamp(0, 1).cpu() for f in frames(x.to(dtype))])

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if "text" in parts:
        out["text_encode_s"] = measure(lambda: models["text"](ids)[0])
    if "unet" in parts:
        with FlopCounterMode(display=False) as counter:
            if a.compile:  # the counter sees eager operations only
                models["unet"](torch.cat([x] * halves), at, encoder_hidden_states=context)
            else:
                predict(x, at, context)
        if a.compile:
            out["compile_s"] = timed(lambda: predict(x, at, context))
        out["unet_step_s"] = measure(lambda: predict(x, at, context))
        out["unet_gflop"] = counter.get_total_flops() / 1e9
        out["unet_gflops"] = out["unet_gflop"] / out["unet_step_s"]["median"]
    if "vae" in parts:
        out["vae_decode_s"] = measure(lambda: frames(x))
    if "clip" in parts:
        out["clip_s"] = measure(clip)
    out["peak_memory_bytes"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
