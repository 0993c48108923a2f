#!/usr/bin/env python3
"""Stores the matrices and kernels of a safetensors file in 8 bits, with a scale for every row, as ComfyUI's
`int8_tensorwise`; everything else as it is.

    python3 scripts/int8.py IN OUT [--keep NAME ...]

This is how the UNet and the motion modules of assets/pocket became small enough for the package. `--keep` names the
beginnings of layers that stay as they are. Needs torch and safetensors.
"""

import argparse
import json

import torch
from safetensors import safe_open
from safetensors.torch import save_file

# Below this many values a scale for every row saves too little.
LEAST = 2048


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--keep", nargs="*", default=[])
    args = parser.parse_args()
    tensors, layers = {}, {}
    with safe_open(args.source, "pt") as file:
        metadata = dict(file.metadata() or {})
        for name in file.keys():
            tensor = file.get_tensor(name)
            layer = name.removesuffix(".weight")
            is_kept = layer == name or tensor.dim() < 2 or tensor.numel() < LEAST
            if is_kept or any(layer.startswith(start) for start in args.keep):
                tensors[name] = tensor
                continue
            rows = tensor.float().flatten(1)
            scale = rows.abs().amax(1) / 127
            scale[scale == 0] = 1
            tensors[name] = torch.round(rows / scale[:, None]).to(torch.int8).reshape(tensor.shape).contiguous()
            tensors[f"{layer}.weight_scale"] = scale
            layers[layer] = {"format": "int8_tensorwise"}
    metadata["_quantization_metadata"] = json.dumps({"layers": layers})
    save_file(tensors, args.target, metadata)
    print(f"{args.target}: {len(layers)} weights in 8 bits, {len(tensors) - 2 * len(layers)} as they were")


if __name__ == "__main__":
    main()
