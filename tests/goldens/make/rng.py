#!/usr/bin/env python3
"""Writes normal numbers of torch's CPU and CUDA generators to ../rng.

Pinned: torch 2.15.0, numpy 2.4.6 (`requirements.txt`). No GPU is needed: CUDA's numbers come from `philox.py`, which this script
first checks against values that people published from real GPUs.

    python rng.py

../rng/rng.json             how the files below were drawn, and `published`: source, seed, GPU, `max_blocks` (null: any GPU gives
                            these), sizes of successive draws, and values as [draw, index, value], printed to 4 or 8 decimals
../rng/cpu.safetensors      `{seed}.{i}`: successive draws of DRAWS from one `torch.Generator("cpu").manual_seed(seed)`
                            `latents.{i}`: seed 42, shape (1, 4, 3, 5, 7) three times, as a pipeline draws
                            `large`: the last 48 of 100003 values of seed 7; `large.sum`: their sum in float64, as float32
                            `small.{i}`: seed 3, odd draws below 16 around one above: a spare normal waits in between
../rng/cuda.safetensors     `{seed}.{i}`: the same draws by the CUDA generator on a GPU whose grid is not the limit
                            `capped.{i}`: seed 42, draws of 1000, 3, 5000 where at most 2 blocks run (see philox.py)
"""
import json
import os

import numpy as np
import torch
from philox import GPU_BLOCKS, CudaGenerator
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(os.path.dirname(HERE), "rng")
SEEDS = (0, 1, 42, 2**32 + 5, 1234567890123)
DRAWS = (1, 5, 15, 16, 17, 31, 33, 1000)
SMALL = (1, 3, 15, 20, 1, 7, 2)
PYTORCH = "https://github.com/pytorch/pytorch/issues/"
A_SOURCE = "https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/5ef669de080814067961f28357256e8fe27544f4/modules/rng_philox.py"


def listed(values, draw=0, start=0):
    return [[draw, start + i, v] for i, v in enumerate(values)]


def published():
    yield {"source": A_SOURCE, "seed": 0, "gpu": None, "draws": [12], "digits": 8, "values": listed(
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564, -0.62285122, -0.32838709, -1.07454231, -0.36314407,
         -1.67105067, 2.26550497])}
    yield {"source": PYTORCH + "79496", "seed": 10, "gpu": None, "draws": [3], "digits": 4, "values": listed([-0.1029, 1.6810, -0.2708])}
    # a test case for torch._foreach_sub prints six tensors that were drawn one after the other
    six = [[0.1940, 2.1614, -0.1721, 0.8491], [0.1391, -0.1082, -0.7174, 0.7566], [-0.5187, 1.2268, 0.6255, -0.9117],
           [-0.6974, -1.8688, -0.8832, -1.6627], [-1.2682, -0.0383, -0.1029, 1.4400], [1.4640, -0.3238, 0.7740, 1.5892]]
    yield {"source": "a public test script for torch._foreach_sub: six tensors of four", "seed": 42, "gpu": None, "draws": [4] * 6,
           "digits": 4, "values": [v for i, row in enumerate(six) for v in listed(row, i)]}
    n, w = 64 * 2048, 2048
    yield {"source": PYTORCH + "158398", "seed": 42, "gpu": None, "max_blocks": 168, "draws": [n], "digits": 4,
           "note": "the report does not name the GPU; 168 (28 multiprocessors of 1536 threads) is the only cap that fits all values",
           "values": listed([0.1940, 2.1614, -0.1721]) + listed([1.4540, -2.7733, -0.8932], 0, w - 3) + listed([-0.4574, 0.8063, 0.1580], 0, w)
           + listed([-1.2356, -0.4083, -0.4695], 0, n - w) + listed([-0.4841, 1.2850, -0.0282], 0, n - 3)}
    n = 49 * 12 * 112 * 144
    for gpu, last in (("H100 SXM", [-0.6970, -0.7780, 0.3267]), ("A100", [0.1549, -0.6797, -0.1656])):
        yield {"source": PYTORCH + "143086", "seed": 1, "gpu": gpu, "draws": [n], "digits": 4,
               "values": listed([-0.2963, 2.6764, -0.1408]) + listed(last, 0, n - 3)}
    yield {"source": PYTORCH + "62467", "seed": 43, "gpu": "RTX A6000", "draws": [3 * 128 * 128], "digits": 4,
           "values": [[0, 128 * 128 * i, v] for i, v in enumerate([1.9983, 0.8704, 2.1127])]}
    # printed as normal(5, sqrt 5)
    n = 100000
    raw = listed([2.8731, 5.2727, 2.9889]) + listed([1.6853, 9.6331, 6.6319], 0, 97) + listed([2.7337, 2.2106, 7.7815], 0, n - 100) + listed(
        [8.2207, 6.5395, 4.2604], 0, n - 3)
    yield {"source": PYTORCH + "97097", "seed": 14, "gpu": "RTX A4000", "draws": [n], "digits": 4, "mean": 5.0, "std": 5**0.5, "values": raw}


def main():
    os.makedirs(OUT, exist_ok=True)
    proofs = []
    for case in published():
        case = {"mean": 0.0, "std": 1.0, "max_blocks": GPU_BLOCKS.get(case["gpu"]), **case}
        g = CudaGenerator(case["seed"], case["max_blocks"])
        drawn = [g.randn(n).astype(np.float64) * case["std"] + case["mean"] for n in case["draws"]]
        for d, i, v in case["values"]:
            assert abs(drawn[d][i] - v) < (2e-6 if case["digits"] == 8 else 5.2e-5), (case["source"], d, i, drawn[d][i], v)
        proofs.append(case)

    cpu, cuda = {}, {}
    for seed in SEEDS:
        g, c = torch.Generator().manual_seed(seed), CudaGenerator(seed)
        for i, n in enumerate(DRAWS):
            cpu[f"{seed}.{i}"] = torch.randn(n, generator=g).numpy()
            cuda[f"{seed}.{i}"] = c.randn(n)
    g = torch.Generator().manual_seed(42)
    for i in range(3):
        cpu[f"latents.{i}"] = torch.randn((1, 4, 3, 5, 7), generator=g).numpy()
    x = torch.randn(100003, generator=torch.Generator().manual_seed(7))
    cpu["large"], cpu["large.sum"] = x[-48:].numpy().copy(), x.double().sum().float().numpy()
    g = torch.Generator().manual_seed(3)
    for i, n in enumerate(SMALL):
        cpu[f"small.{i}"] = torch.randn(n, generator=g).numpy()
    c = CudaGenerator(42, max_blocks=2)
    for i, n in enumerate((1000, 3, 5000)):
        cuda[f"capped.{i}"] = c.randn(n)
    save_file(cpu, f"{OUT}/cpu.safetensors")
    save_file(cuda, f"{OUT}/cuda.safetensors")
    with open(f"{OUT}/rng.json", "w") as f:
        json.dump({"seeds": SEEDS, "draws": DRAWS, "small": {"seed": 3, "draws": SMALL}, "latents": {"seed": 42, "shape": [1, 4, 3, 5, 7]},
                   "large": {"seed": 7, "n": 100003, "keep": 48}, "capped": {"seed": 42, "max_blocks": 2, "draws": [1000, 3, 5000]},
                   "gpu_blocks": GPU_BLOCKS, "published": proofs}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
