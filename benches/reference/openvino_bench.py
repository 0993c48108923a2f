#!/usr/bin/env python3
"""Times the UNet with motion modules and the autoencoder's decoder in OpenVINO on the CPU: another side of `animatelcm bench`.

Pinned: openvino 2026.4.0, beside what diffusers_bench.py says.

    python openvino_bench.py convert DIR [--frames 8] [--width 256] [--height 256] [--vae-chunk 4]
    python openvino_bench.py run DIR [--dtype f32|bf16] [--threads N] [--warmup 1] [--repeats 1] [--frames 8] [--vae-chunk 4]

`convert` traces diffusers' modules with random weights for one shape and writes them in float32, 5.4 GB. `run` loads and compiles them, with bf16 as an execution hint, and prints
the JSON of diffusers_bench.py: unet_step_s, vae_decode_s (all frames), compile_s, peak_memory_bytes of the process.
"""
import argparse
import gc
import json
import resource
import time
from pathlib import Path


def arguments():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("what", choices=("convert", "run"))
    ap.add_argument("folder", type=Path)
    ap.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    ap.add_argument("--frames", type=int, default=8)
    ap.add_argument("--width", type=int, default=256)
    ap.add_argument("--height", type=int, default=256)
    ap.add_argument("--vae-chunk", type=int, default=4)
    ap.add_argument("--threads", type=int, default=0)
    ap.add_argument("--warmup", type=int, default=1)
    ap.add_argument("--repeats", type=int, default=1)
    return ap.parse_args()


def convert(a):
    import openvino as ov
    import torch
    from models import noise, per_frame_norms

    torch.set_grad_enabled(False)
    h, w = a.height // 8, a.width // 8
    a.folder.mkdir(parents=True, exist_ok=True)

    class UNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = per_frame_norms(noise("unet", torch.float32, torch.device("cpu")))

        def forward(self, x, t, context):
            return self.unet(x, t, encoder_hidden_states=context).sample

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = noise("vae", torch.float32, torch.device("cpu"))

        def forward(self, z):
            return self.vae.decode(z).sample

    inputs = (torch.randn(1, 4, a.frames, h, w), torch.tensor(499.0), torch.randn(a.frames, 77, 768))
    for name, module, example in (("unet", UNet, inputs), ("decoder", Decoder, (torch.randn(a.vae_chunk, 4, h, w),))):
        shapes = [list(x.shape) for x in example]
        model = ov.convert_model(module(), example_input=example, input=shapes)
        ov.save_model(model, a.folder / f"{name}.xml", compress_to_fp16=False)
        del model
        gc.collect()


def run(a):
    import numpy as np
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": a.dtype, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    if a.threads:
        settings["INFERENCE_NUM_THREADS"] = str(a.threads)
    out = {"tool": "openvino", "versions": {"openvino": ov.__version__}, "compile_s": {}}
    random = np.random.default_rng(0)
    parts = {}
    # Both are in memory at once, as in the other tools.
    for name in ("unet", "decoder"):
        t = time.perf_counter()
        compiled = core.compile_model(a.folder / f"{name}.xml", "CPU", settings)
        out["compile_s"][name] = time.perf_counter() - t
        feeds = [random.standard_normal(tuple(i.shape), dtype=np.float32) for i in compiled.inputs]
        parts[name] = (compiled, feeds)
    for name, key, calls in (("unet", "unet_step_s", 1), ("decoder", "vae_decode_s", -(-a.frames // a.vae_chunk))):
        compiled, feeds = parts[name]
        seconds = []
        for i in range(a.warmup + a.repeats):
            t = time.perf_counter()
            for _ in range(calls):
                compiled(feeds)
            if i >= a.warmup:
                seconds.append(time.perf_counter() - t)
        out[key] = {"median": float(np.median(seconds)), "p10": min(seconds), "p90": max(seconds), "n": len(seconds)}
    out["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(out, indent=1))


def main():
    a = arguments()
    convert(a) if a.what == "convert" else run(a)


if __name__ == "__main__":
    main()
