#!/usr/bin/env python3
"""Gradients of every layer and of every network by torch, written to ../gradients.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0 (`requirements.txt`).

    HF_HUB_OFFLINE=1 python gradients.py

../gradients/layers.safetensors: for each case `NAME.x` and so on, the inputs; `NAME.slope`, the gradient of the result; `NAME.y`, the result;
    `NAME.d.x` and so on, the gradients of the inputs. The cases are in `layers()`.
../gradients/models.safetensors: for each network of ../tiny/model (weights float16, computed in float32) its inputs `NAME.x`, ..., the
    gradient `NAME.d.x` of each, and for every weight two numbers `NAME.w.WEIGHT`: the products of its gradient with two tensors drawn for
    the names `input.WEIGHT.first` and `input.WEIGHT.second` (see benches/reference/named_weights.py). The loss is the sum of the result
    times a tensor drawn for `input.NAME.slope`. A swapped axis, a missing part or a wrong scale changes the products.
"""
import math
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDENS = os.path.dirname(HERE)
sys.path.insert(0, os.path.normpath(f"{GOLDENS}/../../benches/reference"))
from named_weights import fill  # noqa: E402

TINY = f"{GOLDENS}/tiny/model"
OUT = f"{GOLDENS}/gradients"
torch.set_num_threads(1)


def draw(name, shape):
    return torch.from_numpy(fill(f"input.{name}", np.zeros(shape, np.float32)))


def attention(q, k, v):
    """(batch, tokens, heads, dim) each; softmax over the keys."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def geglu(x):
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)


def pooled(x, weight, bias, frames):
    images, channels, height, width = x.shape
    clips = x.reshape(images // frames, frames, channels, height, width).transpose(1, 2)
    return F.group_norm(clips, 2, weight, bias, 1e-6).transpose(1, 2).reshape(x.shape)


def layers():
    """Name, function, shapes of its inputs by name."""
    conv = lambda padding, stride: lambda x, weight, bias: F.conv2d(x, weight, bias, stride, padding)
    yield "linear", F.linear, {"x": (2, 3, 5), "weight": (7, 5), "bias": (7,)}
    yield "linear_without_bias", F.linear, {"x": (11, 5), "weight": (3, 5)}
    yield "conv3", conv(1, 1), {"x": (3, 4, 5, 6), "weight": (7, 4, 3, 3), "bias": (7,)}
    yield "conv3_stride2", conv(1, 2), {"x": (2, 3, 6, 5), "weight": (4, 3, 3, 3), "bias": (4,)}
    yield "conv3_stride2_unpadded", conv(0, 2), {"x": (2, 3, 7, 9), "weight": (5, 3, 3, 3), "bias": (5,)}
    yield "conv1", conv(0, 1), {"x": (2, 5, 3, 4), "weight": (6, 5, 1, 1), "bias": (6,)}
    yield "conv5_wide", conv(3, 1), {"x": (1, 2, 6, 7), "weight": (3, 2, 5, 5), "bias": (3,)}
    group = lambda x, weight, bias: F.group_norm(x, 2, weight, bias, 1e-5)
    sizes = {"x": (6, 4, 3, 5), "weight": (4,), "bias": (4,)}
    yield "group_norm", group, sizes
    yield "group_norm_silu", lambda *a: F.silu(group(*a)), sizes
    yield "group_norm_pooled", lambda *a: pooled(*a, 3), sizes
    yield "layer_norm", lambda x, weight, bias: F.layer_norm(x, (9,), weight, bias, 1e-5), {"x": (3, 5, 9), "weight": (9,), "bias": (9,)}
    yield "attention", attention, {"q": (3, 5, 2, 4), "k": (3, 7, 2, 4), "v": (3, 7, 2, 4)}
    yield "attention_long", attention, {"q": (1, 70, 3, 2), "k": (1, 66, 3, 2), "v": (1, 66, 3, 2)}
    yield "geglu", geglu, {"x": (3, 4, 10)}
    yield "upsample", lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), {"x": (2, 3, 3, 4)}
    yield "upsample_odd", lambda x: F.interpolate(x, size=(5, 7), mode="nearest"), {"x": (2, 3, 3, 4)}
    shift = lambda x, shift: x + shift.repeat_interleave(x.shape[0] // shift.shape[0], 0)[:, :, None, None]
    yield "shift", shift, {"x": (6, 3, 2, 4), "shift": (2, 3)}


def layer_goldens():
    out = {}
    for name, function, shapes in layers():
        inputs = {k: draw(f"{name}.{k}", s).requires_grad_(True) for k, s in shapes.items()}
        y = function(*inputs.values())
        slope = draw(f"{name}.slope", tuple(y.shape))
        (y * slope).sum().backward()
        out |= {f"{name}.{k}": v.detach().clone() for k, v in inputs.items()}
        out |= {f"{name}.d.{k}": v.grad.clone() for k, v in inputs.items()}
        out |= {f"{name}.y": y.detach().contiguous().clone(), f"{name}.slope": slope}
    save_file(out, f"{OUT}/layers.safetensors")


def model_goldens():
    out = {}

    def record(name, module, inputs, run, prefix=""):
        module.requires_grad_(True).float()
        inputs = {k: v.requires_grad_(v.is_floating_point()) for k, v in inputs.items()}
        y = run(**inputs)
        (y * draw(f"{name}.slope", tuple(y.shape))).sum().backward()
        out[f"{name}.y"] = y.detach().contiguous().clone()
        for k, v in inputs.items():
            out[f"{name}.{k}"] = v.detach().clone() if v.is_floating_point() else v.int()
            if v.is_floating_point():
                out[f"{name}.d.{k}"] = v.grad.clone()
        for weight, tensor in module.named_parameters():
            weight = prefix + weight
            if tensor.grad is None:
                continue
            shape = tuple(tensor.shape)
            products = [(tensor.grad * draw(f"{weight}.{which}", shape)).double().sum() for which in ("first", "second")]
            out[f"{name}.w.{weight}"] = torch.stack(products).float()

    base = UNet2DConditionModel.from_pretrained(f"{TINY}/unet", torch_dtype=torch.float32)
    width = base.config.cross_attention_dim
    # Three images, each with a noise level and a text of its own.
    times = torch.tensor([999, 430, 7])
    record(
        "unet",
        base,
        {"x": draw("unet.x", (3, 4, 8, 8)), "context": draw("unet.context", (3, 5, width))},
        lambda x, context: base(x, times, context).sample,
    )
    # Two clips of three frames. diffusers pools the motion norms.
    base = UNet2DConditionModel.from_pretrained(f"{TINY}/unet", torch_dtype=torch.float32)
    adapter = MotionAdapter.from_pretrained(f"{TINY}/motion_adapter", torch_dtype=torch.float32)
    unet = UNetMotionModel.from_unet2d(base, adapter)
    times = torch.tensor([640, 81])
    record(
        "motion",
        unet,
        {"x": draw("motion.x", (2, 4, 3, 8, 8)), "context": draw("motion.context", (2, 5, width))},
        lambda x, context: unet(x, times, context.repeat_interleave(3, 0)).sample,
    )
    vae = AutoencoderKL.from_pretrained(f"{TINY}/vae", torch_dtype=torch.float32)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def encode(x):
        posterior = vae.encode(x).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], 1)

    record("encoder", vae, {"x": draw("encoder.x", (2, 3, 4 * factor, 3 * factor))}, encode)
    vae = AutoencoderKL.from_pretrained(f"{TINY}/vae", torch_dtype=torch.float32)
    record("decoder", vae, {"x": draw("decoder.x", (2, 4, 3, 4))}, lambda x: vae.decode(x).sample)
    text = CLIPTextModel.from_pretrained(f"{TINY}/text_encoder", torch_dtype=torch.float32)
    ids = torch.arange(14).reshape(2, 7) * 5 % 29
    prefix = "" if any(k.startswith("text_model.") for k, _ in text.named_parameters()) else "text_model."
    record("text", text, {"ids": ids}, lambda ids: text(ids).last_hidden_state, prefix)
    save_file(out, f"{OUT}/models.safetensors")


if __name__ == "__main__":
    os.makedirs(OUT, exist_ok=True)
    layer_goldens()
    model_goldens()
