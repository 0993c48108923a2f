#!/usr/bin/env python3
"""Losses, the solver, AdamW and short distillations by torch, written to ../train.

Pinned: torch 2.15.0, diffusers 0.42.1 (`requirements.txt`).

    HF_HUB_OFFLINE=1 python train.py

../train/parts.safetensors: `prediction`, `target` and the losses `mse`, `huber` (0.3), `pseudo_huber` (0.05) with their gradients `d.*`;
    `x`, `noise`, and for cells of a grid of 50 that steps over 1 and over 5 the result of DDIM `solved.S`, the consistency function
    `consistent`; ten steps of AdamW, `adam.0` ... `adam.9`, clipped.
../train/distill.json: for each run the losses of its steps, and for some weights at the end the products of online and target with a
    tensor drawn for `input.WEIGHT.first` (see benches/reference/named_weights.py).

../train/adapt.json: the same of a LoRA over the ControlNet of ../tiny/extras, adapted without a teacher: both samples of a pair have the
    same noise. Hints of 32x32 are drawn, too.
../train/i2v.json: the same of motion modules with AnimateLCM-I2V's image encoder, drawn for its names, which is told of first frames.

A distillation is of ../tiny/model: clips of 3 frames of 8x8 latents, or single frames without motion modules; linear betas 0.00085 to
0.012; everything drawn is drawn for the names in `batch()` and `factors()`. Motion norms are diffusers', pooled over the clip.
"""
import json
import math
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from safetensors.torch import save_file
from torch.func import functional_call

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDENS = os.path.dirname(HERE)
sys.path.insert(0, os.path.normpath(f"{GOLDENS}/../../benches/reference"))
from named_weights import fill  # noqa: E402

TINY = f"{GOLDENS}/tiny/model"
OUT = f"{GOLDENS}/train"
torch.set_num_threads(1)
CUMULATIVE = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float32).double(), 0).float()
RANK, ALPHA = 3, 2.0
ENDS = ("to_q to_k to_v to_out.0 proj_in proj_out ff.net.0.proj ff.net.2 conv1 conv2 time_emb_proj conv_shortcut downsamplers.0.conv "
        "upsamplers.0.conv").split()


def draw(name, shape):
    return torch.from_numpy(fill(f"input.{name}", np.zeros(shape, np.float32)))


def column(values, x):
    return values.reshape(-1, *[1] * (x.dim() - 1))


def clean_of(x, eps, t):
    share = column(CUMULATIVE[t], x)
    return (x - (1 - share).sqrt() * eps) / share.sqrt()


def noisy(z, eps, t):
    share = column(CUMULATIVE[t], z)
    return share.sqrt() * z + (1 - share).sqrt() * eps


def consistency(x, eps, t):
    scaled = 10.0 * t.double()
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
    return column(skip.float(), x) * x + column(out.float(), x) * clean_of(x, eps, t)


def ddim(x, eps, t, s):
    return noisy(clean_of(x, eps, t), eps, s)


def cells(indices, count=50, skip=1):
    grid = torch.arange(1, count + 1) * (1000 // count) - 1
    t = grid[indices]
    s = torch.where(indices >= skip, grid[(indices - skip).clamp(min=0)], torch.zeros_like(t))
    return t, s


def pseudo_huber(d, c):
    return ((d * d + c * c).sqrt() - c).mean()


def parts():
    out = {}
    losses = {
        "mse": lambda p, t: F.mse_loss(p, t),
        "huber": lambda p, t: F.huber_loss(p, t, delta=0.3),
        "pseudo_huber": lambda p, t: pseudo_huber(p - t, 0.05),
    }
    shape = (4, 4, 3, 5)
    target = draw("target", shape)
    out["target"] = target
    for name, loss in losses.items():
        prediction = draw("prediction", shape).requires_grad_(True)
        value = loss(prediction, target)
        value.backward()
        out["prediction"] = prediction.detach()
        out[name] = value.detach().reshape(1)
        out[f"d.{name}"] = prediction.grad
    x, noise = draw("x", shape), draw("noise", shape)
    indices = torch.tensor([0, 3, 49, 17])
    out |= {"x": x, "noise": noise, "indices": indices.int()}
    for skip in (1, 5):
        t, s = cells(indices, 50, skip)
        out[f"solved.{skip}"] = ddim(x, noise, t, s)
        out[f"from.{skip}"], out[f"to.{skip}"] = t.int(), s.int()
    out["noisy"] = noisy(x, noise, t)
    out["consistent"] = consistency(x, noise, t)
    weight = draw("adam", (3, 4)).requires_grad_(True)
    optimizer = torch.optim.AdamW([weight], lr=0.02, weight_decay=0.1)
    for step in range(10):
        optimizer.zero_grad()
        weight.grad = draw(f"adam.gradient.{step}", (3, 4)) * (step + 1)
        norm = torch.nn.utils.clip_grad_norm_([weight], 5.0)
        optimizer.step()
        out[f"adam.{step}"] = weight.detach().clone()
        out[f"adam.norm.{step}"] = norm.reshape(1)
    save_file({k: v.contiguous().clone() for k, v in out.items()}, f"{OUT}/parts.safetensors")


def networks(motion):
    base = UNet2DConditionModel.from_pretrained(f"{TINY}/unet", torch_dtype=torch.float32)
    if motion:
        adapter = MotionAdapter.from_pretrained(f"{TINY}/motion_adapter", torch_dtype=torch.float32)
        base = UNetMotionModel.from_unet2d(base, adapter)
    return base.float().requires_grad_(False).eval()


def factors(weights, trained):
    """Both factors of every spatial module. The second one is zero where the LoRA has yet to learn."""
    out = {}
    for name in sorted(weights):
        module = name.removesuffix(".weight")
        if module == name or ".motion_modules." in name or not any(module.endswith("." + end) for end in ENDS):
            continue
        w = weights[name]
        down = draw(f"{module}.down", (RANK, *w.shape[1:])) * 0.3
        up = draw(f"{module}.up", (w.shape[0], RANK, *[1] * (w.dim() - 2))) * (0.0 if trained else 0.1)
        out[module] = (down, up)
    return out


def batch(step, clips, frames):
    shape = (clips * frames, 4, 8, 8)
    numbers = fill(f"input.numbers.{step}", np.zeros(2 * clips, np.float32)) / math.sqrt(3)  # in [-1, 1)
    indices = torch.from_numpy(((numbers[:clips] + 1) / 2 * 50).astype(np.int64))
    scales = torch.from_numpy(1.5 + (numbers[clips:] + 1))
    return draw(f"clean.{step}", shape), draw(f"noise.{step}", shape), draw(f"context.{step}", (clips, 5, 12)), indices, scales


def run(frames, steps, lora, lora_learns, motion_learns, gradual):
    net = networks(frames > 1)
    weights = {k: v for k, v in net.named_parameters()}
    pairs = factors(weights, lora_learns) if lora else {}
    pairs = {k: tuple(f.clone().requires_grad_(lora_learns) for f in v) for k, v in pairs.items()}
    learning = {k: v.clone().requires_grad_(True) for k, v in weights.items() if motion_learns and ".motion_modules." in k}

    def online():
        out = {}
        for module, (down, up) in pairs.items():
            w = weights[f"{module}.weight"]
            out[f"{module}.weight"] = w + (ALPHA / RANK) * (up.flatten(1) @ down.flatten(1)).reshape(w.shape)
        return out | learning

    with torch.no_grad():
        target = {k: (weights[k] if gradual else v).clone() for k, v in online().items()}
    trained = list(learning.values()) + ([f for pair in pairs.values() for f in pair] if lora_learns else [])
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-2)
    losses, norms, drawn = [], [], []
    for step in range(steps):
        clips = 2 if frames > 1 else 4
        clean, noise, context, indices, scales = batch(step, clips, frames)
        empty = draw("empty", (1, 5, 12)).expand(clips, -1, -1)
        t, s = cells(indices)
        each = lambda v: v.repeat_interleave(frames, 0)

        def predict(changed, x, times, context):
            if frames == 1:
                return functional_call(net, changed, (x, times, context)).sample
            video = x.reshape(clips, frames, 4, 8, 8).transpose(1, 2)
            y = functional_call(net, changed, (video, times, each(context))).sample
            return y.transpose(1, 2).reshape(x.shape)

        x = noisy(clean, noise, each(t))
        with torch.no_grad():
            cond, uncond = predict({}, x, t, context), predict({}, x, t, empty)
            guided = uncond + column(each(scales), x) * (cond - uncond)
            nearer = ddim(x, guided, each(t), each(s))
            wanted = consistency(nearer, predict(target, nearer, s, context), each(s))
        loss = pseudo_huber(consistency(x, predict(online(), x, t, context), each(t)) - wanted, 0.01)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        warmup, floor = 5, 0.1
        rate = (step + 1) / warmup if step < warmup else floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (20 - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        optimizer.step()
        losses.append(loss.item())
        drawn.append({"indices": indices.tolist(), "scales": scales.tolist()})
        with torch.no_grad():
            for k, v in online().items():
                target[k].lerp_(v, 0.05)
    final = online()
    product = lambda name, w: float((w.double() * draw(f"{name}.first", tuple(w.shape)).double()).sum())
    names = sorted(final)[::17]
    return {
        "frames": frames, "steps": steps, "lora": lora, "lora_learns": lora_learns, "motion_learns": motion_learns, "gradual": gradual,
        "losses": losses, "norms": norms, "batches": drawn,
        "online": {k: product(k, final[k]) for k in names},
        "target": {k: product(k, target[k]) for k in names},
        "moved": {k: float((final[k] - weights[k]).norm()) for k in names},
    }


def adapt(steps):
    """A LoRA of all layers of a ControlNet learns to steer the few-step model."""
    net, frames, clips = networks(True), 3, 2
    control = ControlNetModel.from_pretrained(f"{GOLDENS}/tiny/extras/controlnet", torch_dtype=torch.float32)
    control = control.float().requires_grad_(False).eval()
    weights = dict(control.named_parameters())
    pairs = {}
    for name in sorted(weights):
        module, w = name.removesuffix(".weight"), weights[name]
        if module != name and w.dim() > 1:
            down = draw(f"{module}.down", (RANK, *w.shape[1:])) * 0.3
            up = draw(f"{module}.up", (w.shape[0], RANK, *[1] * (w.dim() - 2))) * 0.1
            pairs[module] = (down.clone().requires_grad_(True), up.clone().requires_grad_(True))

    def online():
        change = lambda module, down, up: (ALPHA / RANK) * (up.flatten(1) @ down.flatten(1)).reshape(weights[f"{module}.weight"].shape)
        return {f"{m}.weight": weights[f"{m}.weight"] + change(m, *pair) for m, pair in pairs.items()}

    target = {k: v.detach().clone() for k, v in online().items()}
    trained = [f for pair in pairs.values() for f in pair]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-2)
    each = lambda v: v.repeat_interleave(frames, 0)
    losses, norms, drawn = [], [], []
    for step in range(steps):
        clean, noise, context, indices, _ = batch(step, clips, frames)
        hint = draw(f"hint.{step}", (clips * frames, 3, 32, 32))
        t, s = cells(indices)

        def predict(changed, x, times):
            down, mid = functional_call(control, changed, (x, each(times), each(context), hint), {"return_dict": False})
            video = x.reshape(clips, frames, 4, 8, 8).transpose(1, 2)
            y = net(video, times, each(context), down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
            return y.transpose(1, 2).reshape(x.shape)

        x, nearer = noisy(clean, noise, each(t)), noisy(clean, noise, each(s))
        with torch.no_grad():
            wanted = consistency(nearer, predict(target, nearer, s), each(s))
        loss = F.huber_loss(consistency(x, predict(online(), x, t), each(t)), wanted, delta=0.3)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        losses.append(loss.item())
        drawn.append({"indices": indices.tolist()})
        with torch.no_grad():
            for k, v in online().items():
                target[k].lerp_(v, 0.05)
    final = online()
    product = lambda name, w: float((w.double() * draw(f"{name}.first", tuple(w.shape)).double()).sum())
    names = sorted(final)[::7]
    return {
        "steps": steps, "modules": len(pairs), "losses": losses, "norms": norms, "batches": drawn,
        "target": {k: product(k, target[k]) for k in names},
        "moved": {k: float((final[k] - weights[k]).detach().norm()) for k in names},
    }


def image_to_video(steps):
    """Motion modules and an image encoder learn together; `i2v.py` has the network."""
    from i2v import Encoder, Inserted

    torch.set_grad_enabled(True)  # which that script has switched off

    net, encoder, frames, clips = networks(True), Encoder(), 3, 2
    weights = dict(net.named_parameters())
    first = {f"img_encoder.{k}": draw(f"img_encoder.{k}", tuple(v.shape)) * 0.2 for k, v in encoder.named_parameters()}
    first |= {k: v for k, v in weights.items() if ".motion_modules." in k}
    learning = {k: v.detach().clone().requires_grad_(True) for k, v in first.items()}
    target = {k: v.detach().clone() for k, v in first.items()}
    optimizer = torch.optim.AdamW(list(learning.values()), lr=1e-3, weight_decay=1e-2)
    each = lambda v: v.repeat_interleave(frames, 0)
    losses, norms, drawn = [], [], []
    for step in range(steps):
        clean, noise, context, indices, _ = batch(step, clips, frames)
        t, s = cells(indices)

        def predict(learned, x, times):
            own = {k.removeprefix("img_encoder."): v for k, v in learned.items() if k.startswith("img_encoder.")}
            told = [functional_call(encoder, own, (clean[frames * c:frames * c + 1], frames, 0.8)) for c in range(clips)]
            video = x.reshape(clips, frames, 4, 8, 8).transpose(1, 2)
            modules = {k: v for k, v in learned.items() if k not in own and ".motion_modules." in k}
            with Inserted(net, [torch.cat(features) for features in zip(*told)]):
                y = functional_call(net, modules, (video, times, each(context))).sample
            return y.transpose(1, 2).reshape(x.shape)

        x, nearer = noisy(clean, noise, each(t)), noisy(clean, noise, each(s))
        with torch.no_grad():
            wanted = consistency(nearer, predict(target, nearer, s), each(s))
        loss = F.huber_loss(consistency(x, predict(learning, x, t), each(t)), wanted, delta=0.3)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(learning.values()), 1.0)))
        optimizer.step()
        losses.append(loss.item())
        drawn.append({"indices": indices.tolist()})
        with torch.no_grad():
            for k, v in learning.items():
                target[k].lerp_(v, 0.05)
    product = lambda name, w: float((w.double() * draw(f"{name}.first", tuple(w.shape)).double()).sum())
    names = [*sorted(k for k in first if k.startswith("img_encoder."))[::5], *sorted(k for k in first if ".motion_modules." in k)[::29]]
    return {
        "steps": steps, "learning": len(learning), "losses": losses, "norms": norms, "batches": drawn,
        "target": {k: product(k, target[k]) for k in names},
        "moved": {k: float((learning[k].detach() - first[k]).norm()) for k in names},
    }


if __name__ == "__main__":
    os.makedirs(OUT, exist_ok=True)
    with open(f"{OUT}/i2v.json", "w") as f:
        json.dump(image_to_video(5), f, indent=1)
    with open(f"{OUT}/adapt.json", "w") as f:
        json.dump(adapt(6), f, indent=1)
    parts()
    runs = {
        "image": run(1, 6, True, True, False, True),
        "gradual": run(3, 20, True, False, True, True),
        "plain": run(3, 6, True, False, True, False),
        "joint": run(3, 6, True, True, True, True),
    }
    with open(f"{OUT}/distill.json", "w") as f:
        json.dump(runs, f, indent=1)
    for name, r in runs.items():
        print(name, [f"{v:.5f}" for v in r["losses"]], [f"{v:.2f}" for v in r["norms"]][:4])
