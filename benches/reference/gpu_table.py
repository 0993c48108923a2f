#!/usr/bin/env python3
"""Prints the results of `benches/gpu.sh OUT` as one table: `python gpu_table.py OUT`.

Times are medians; the ratio is to diffusers, eager, in the same number format.
"""
import json
import pathlib
import sys


def load(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def row(name, result, out):
    """Seconds of a UNet step, of decoding and of a whole clip, and the most memory that the device had in use."""
    if "unet_step" in result:
        seconds = [result[part]["seconds"]["median"] for part in ("unet_step", "decode", "clip")]
    else:
        seconds = [result[part]["median"] for part in ("unet_step_s", "vae_decode_s", "clip_s")]
    samples = (out / f"{name}.mib").read_text().split()
    return seconds + [max(map(int, samples), default=0)]


def main():
    out = pathlib.Path(sys.argv[1])
    kinds = ["ours-{}", "ours-{}-experimental", "theirs-{}", "theirs-{}-compiled"]
    names = [kind.format(dtype) for dtype in ("f16", "bf16") for kind in kinds] + ["ours-pocket"]
    rows = {name: row(name, result, out) for name in names if (result := load(out / f"{name}.json"))}
    device = (out / "gpu.txt").read_text().strip()
    print(f"| {device} | UNet step | decode | clip | device memory | clip, ratio |")
    print("|---|---|---|---|---|---|")
    for name, (step, decode, clip, memory) in rows.items():
        eager = rows.get(f"theirs-{name.split('-')[1]}")
        ratio = f"{clip / eager[2]:.2f}" if eager else "–"
        print(f"| {name} | {step * 1e3:.1f} ms | {decode * 1e3:.0f} ms | {clip:.3f} s | {memory} MiB | {ratio} |")
    for name in names:
        if name not in rows:
            print(f"| {name} | no result, see {name}.log |")


if __name__ == "__main__":
    main()
