#!/usr/bin/env python3
"""Whether torch's CUDA generator draws on this GPU what `tests/goldens/rng/cuda.safetensors` says, to which our tests hold `--rng cuda`.

Prints the greatest difference; the status is 1 where it is above the tolerance of our tests.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file

RNG = pathlib.Path(__file__).parents[2] / "tests/goldens/rng"


def main():
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    want, about = load_file(RNG / "cuda.safetensors"), json.loads((RNG / "rng.json").read_text())
    farthest = 0.0
    for seed in about["seeds"]:
        generator = torch.Generator("cuda").manual_seed(seed)
        for i, n in enumerate(about["draws"]):
            got = torch.randn(n, generator=generator, device="cuda").cpu()
            farthest = max(farthest, (got - want[f"{seed}.{i}"]).abs().max().item())
    print(f"noise of torch {torch.__version__} on {torch.cuda.get_device_name()}: {farthest:.1e}")
    sys.exit(farthest > 2e-6)


if __name__ == "__main__":
    main()
