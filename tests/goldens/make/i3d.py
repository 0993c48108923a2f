#!/usr/bin/env python3
"""Writes ../i3d: a narrow I3D with random weights, its features of short clips, and Fréchet distances.

Pinned: torch 2.15.0, numpy 2.4.6, scipy 1.17.1 (`requirements.txt`). Nothing is downloaded.

    OMP_NUM_THREADS=2 python i3d.py

    i3d.safetensors   weights under the names of pytorch-i3d's state dict, in every tensor; i3d.pt has the same, by torch.save
    cases.safetensors clips `N.u8` (frames, height, width, 3) as bytes; `N.logits`, what the network says of them, and `N.pooled`,
                      what is averaged over space before the last layer, (positions in time, channels)
    units.safetensors one convolution of every kernel and stride and one pooling of every kind, on sizes that `same` padding
                      does not divide evenly: `conv.N.x`, `conv.N.y`, `pool.N.x`, `pool.N.y`, all (channels, frames, height, width)
    frechet.safetensors features `N.a` and `N.b` (clips, channels) in f64, and their distance `N.distance` by scipy

The network is Inception-v1 inflated to three dimensions: Carreira and Zisserman (2017), "Quo Vadis, Action Recognition?", figure 3.
It is written down here once more, in torch's functions, so that it shares no code with what it is compared with. Everything is padded as
TensorFlow's `SAME`, which depends on the size. Batch norms have an epsilon of 1e-5, as in the port that AnimateLCM measures with. Frames
are resized to 224 x 224 without antialiasing, and scaled to [-1, 1].
"""
import json
import os

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(os.path.dirname(HERE), "i3d")
CLASSES = 13
STEM = (5, 6, 7)
# Channels of each branch: 1x1, 1x1 before 3x3, 3x3, 1x1 before the other 3x3, that, 1x1 after pooling.
MIXED = {
    "Mixed_3b": (3, 4, 5, 2, 3, 4), "Mixed_3c": (2, 5, 6, 3, 4, 3), "Mixed_4b": (4, 3, 5, 2, 6, 3), "Mixed_4c": (5, 2, 4, 3, 3, 6),
    "Mixed_4d": (3, 6, 4, 2, 5, 2), "Mixed_4e": (6, 3, 2, 4, 4, 5), "Mixed_4f": (2, 4, 7, 3, 2, 4), "Mixed_5b": (4, 5, 3, 2, 4, 6),
    "Mixed_5c": (7, 2, 5, 3, 6, 4),
}
EPS = 1e-5


def draw():
    g = torch.Generator().manual_seed(230)
    weights = {}

    def normal(*shape):
        return torch.randn(shape, generator=g)

    def uniform(*shape):
        return 0.5 + torch.rand(shape, generator=g)

    def unit(name, inputs, outputs, kernel):
        weights[f"{name}.conv3d.weight"] = normal(outputs, inputs, kernel, kernel, kernel) * (2 / (inputs * kernel**3)) ** 0.5
        weights[f"{name}.bn.weight"] = uniform(outputs)
        weights[f"{name}.bn.bias"] = 0.3 * normal(outputs)
        weights[f"{name}.bn.running_mean"] = 0.3 * normal(outputs)
        weights[f"{name}.bn.running_var"] = uniform(outputs)
        weights[f"{name}.bn.num_batches_tracked"] = torch.tensor(len(weights))

    unit("Conv3d_1a_7x7", 3, STEM[0], 7)
    unit("Conv3d_2b_1x1", STEM[0], STEM[1], 1)
    unit("Conv3d_2c_3x3", STEM[1], STEM[2], 3)
    inputs = STEM[2]
    for name, (b0, b1a, b1b, b2a, b2b, b3b) in MIXED.items():
        unit(f"{name}.b0", inputs, b0, 1)
        unit(f"{name}.b1a", inputs, b1a, 1)
        unit(f"{name}.b1b", b1a, b1b, 3)
        unit(f"{name}.b2a", inputs, b2a, 1)
        unit(f"{name}.b2b", b2a, b2b, 3)
        unit(f"{name}.b3b", inputs, b3b, 1)
        inputs = b0 + b1b + b2b + b3b
    weights["logits.conv3d.weight"] = normal(CLASSES, inputs, 1, 1, 1)
    weights["logits.conv3d.bias"] = normal(CLASSES)
    return weights


def same(x, kernel, stride):
    """Zeros so that every axis ends with ceil(size / stride) positions; the odd one comes last."""
    pads = []
    for size, k, s in zip(x.shape[2:], kernel, stride):
        whole = max((-(-size // s) - 1) * s + k - size, 0)
        pads.append((whole // 2, whole - whole // 2))
    return F.pad(x, [n for pair in reversed(pads) for n in pair])


def pool(x, kernel, stride):
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)


def unit(w, name, x, stride=1):
    weight = w[f"{name}.conv3d.weight"]
    x = F.conv3d(same(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
    bn = [w[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(x, *bn, eps=EPS))


def mixed(w, name, x):
    b0 = unit(w, f"{name}.b0", x)
    b1 = unit(w, f"{name}.b1b", unit(w, f"{name}.b1a", x))
    b2 = unit(w, f"{name}.b2b", unit(w, f"{name}.b2a", x))
    b3 = unit(w, f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1)))
    return torch.cat([b0, b1, b2, b3], 1)


def i3d(w, x):
    x = unit(w, "Conv3d_1a_7x7", x, 2)
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = unit(w, "Conv3d_2c_3x3", unit(w, "Conv3d_2b_1x1", x))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for name in MIXED:
        if name == "Mixed_4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        x = mixed(w, name, x)
    pooled = F.avg_pool3d(x, (2, 7, 7), 1)
    logits = F.conv3d(pooled, w["logits.conv3d.weight"], w["logits.conv3d.bias"])
    return pooled[0, :, :, 0, 0].T, logits[0, :, :, 0, 0].mean(1)


def prepared(u8):
    """(frames, height, width, 3) in bytes to (1, 3, frames, 224, 224)."""
    x = torch.from_numpy(u8).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
    return (2 * x / 255 - 1).transpose(0, 1)[None]


def clip(frames, height, width, seed):
    """Bytes without any order."""
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def units():
    g = torch.Generator().manual_seed(231)
    out = {}
    for n, (kernel, stride, size) in enumerate([(7, 2, (5, 9, 9)), (7, 2, (6, 12, 12)), (3, 1, (4, 7, 7)), (1, 1, (3, 5, 5))]):
        x = torch.randn((1, 3, *size), generator=g)
        w = torch.randn((4, 3, kernel, kernel, kernel), generator=g) / kernel**1.5
        y = F.conv3d(same(x, (kernel,) * 3, (stride,) * 3), w, stride=stride)
        out |= {f"conv.{n}.x": x[0], f"conv.{n}.weight": w, f"conv.{n}.y": y[0]}
    kinds = [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))]
    for n, (kernel, stride) in enumerate(kinds):
        for m, size in enumerate([(5, 9, 9), (4, 8, 8)]):
            # As in the network, where pooling follows a ReLU: the zeros around are never above all others.
            x = torch.randn((1, 3, *size), generator=g).relu()
            out |= {f"pool.{n}.{m}.x": x[0], f"pool.{n}.{m}.y": pool(x, kernel, stride)[0]}
    return out


def frechet():
    g = np.random.default_rng(232)
    out = {}
    # More clips than channels, fewer, and as few as there can be; means and spreads differ.
    for n, (a, b, channels) in enumerate([(40, 31, 6), (9, 50, 13), (2, 3, 4)]):
        mix = g.normal(size=(channels, channels))
        x = g.normal(size=(a, channels)) @ mix + g.normal(size=channels)
        y = 1.5 * g.normal(size=(b, channels)) @ mix.T
        mean = x.mean(0) - y.mean(0)
        s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        # tr √(√S T √S) is the sum of the singular values of the centred features' product, which needs no root of a matrix:
        # `sqrtm` of a singular one, as of fewer clips than channels, is not to be relied on.
        product = (x - x.mean(0)) @ (y - y.mean(0)).T / ((a - 1) * (b - 1)) ** 0.5
        trace = scipy.linalg.svdvals(product).sum()
        by_root = np.trace(scipy.linalg.sqrtm(s @ t)).real
        print("frechet", n, "by sqrtm", mean @ mean + np.trace(s + t) - 2 * by_root)
        if a > channels and b > channels:
            assert abs(by_root - trace) < 1e-9 * trace
        distance = mean @ mean + np.trace(s + t) - 2 * trace
        out |= {f"{n}.a": torch.from_numpy(x), f"{n}.b": torch.from_numpy(y), f"{n}.distance": torch.tensor(distance)}
        print("frechet", n, distance)
    return out


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_grad_enabled(False)
    w = draw()
    cases = {}
    for n, (frames, height, width) in enumerate([(16, 19, 23), (17, 24, 18), (9, 21, 20)]):
        u8 = clip(frames, height, width, n)
        pooled, logits = i3d(w, prepared(u8))
        # In f64 the same, so that what is compared is no rounding.
        exact = i3d({k: v.double() if v.is_floating_point() else v for k, v in w.items()}, prepared(u8).double())[1]
        assert (logits - exact).norm() < 1e-5 * exact.norm()
        backwards = i3d(w, prepared(u8[::-1].copy()))[1]
        assert (logits - backwards).norm() > 1e-3 * logits.norm(), "the order of frames does not matter"
        cases |= {f"{n}.u8": torch.from_numpy(u8), f"{n}.pooled": pooled, f"{n}.logits": logits}
        print("clip", n, tuple(pooled.shape), logits[:4].tolist())
    coarse = {k: v + (1e-3 if k.endswith("running_var") else 0) for k, v in w.items()}
    shift = (i3d(coarse, prepared(clip(16, 19, 23, 0)))[1] - cases["0.logits"]).norm() / cases["0.logits"].norm()
    print("an epsilon of 1e-3 shifts the logits by", shift.item())
    assert shift > 1e-4
    contiguous = {k: v.contiguous().clone() for k, v in w.items()}
    save_file(contiguous, f"{OUT}/i3d.safetensors")
    torch.save(contiguous, f"{OUT}/i3d.pt")
    for name, tensors in [("cases", cases), ("units", units()), ("frechet", frechet())]:
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, f"{OUT}/{name}.safetensors")
    settings = {"classes": CLASSES, "eps": EPS, "side": 224, "stem": STEM, "mixed": MIXED}
    with open(f"{OUT}/i3d.json", "w") as f:
        json.dump(settings, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
