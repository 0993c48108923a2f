#!/usr/bin/env python3
"""Writes ../t2i_adapter: tiny T2I-Adapters of both sizes, their features, and runs with them.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, numpy 2.4.6, pillow 13.0.0 (`requirements.txt`). To be run after
`make_goldens.py`; nothing is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 python t2i_adapter.py

    light.pth            `light` under the names of TencentARC's own files, below a key of a pickle that holds another thing as well
    full/ light/         adapters beside the UNet of `../tiny`: for coloured pictures with two layers a stage, for grey ones with three
    units.safetensors    their features for some pictures, also of a size whose halves are odd; the output of the UNet without motion for
                         `tiny/cases/unet: x, ctx` at timestep 759, to which diffusers adds `full`'s features
    runs.safetensors     guided runs of the UNet with motion: `one` with `full` in the first three of four steps, `two` with both

diffusers' AnimateDiff pipelines know no T2I-Adapter. The features are added by hooks behind the last motion module of every stage down,
which is where its UNet for images adds them: behind the last layer of a stage, before the skip is kept and the size halved. That hooks do
the same there is checked on the UNet for images, which takes them as `down_intrablock_additional_residuals`.
"""
import json
import os

import numpy as np
import torch
from diffusers import AnimateDiffPipeline, MultiAdapter, T2IAdapter, UNet2DConditionModel
from keys import original_t2i_key
from make_goldens import CH, FRAMES, LH, LW, NEG, PROMPT, fill, picture, record, save_model_half
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.path.dirname(HERE), "tiny")
OUT = os.path.join(os.path.dirname(HERE), "t2i_adapter")


def put(name, tensors):
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, f"{OUT}/{name}.safetensors")


def rel(a, b):
    return ((a - b).norm() / b.norm()).item()


def add_behind(module, feature, active=lambda: True):
    """Adds a tensor to what a module returns; repeated for a batch of several clips."""

    def hook(_, args, output):
        if not active():
            return output
        x = output[0] if isinstance(output, tuple) else output
        y = x + feature.repeat(x.shape[0] // feature.shape[0], 1, 1, 1)
        return (y, *output[1:]) if isinstance(output, tuple) else y

    return module.register_forward_hook(hook)


def main():
    os.makedirs(OUT, exist_ok=True)
    unit, noise = load_file(f"{TINY}/cases/unet.safetensors"), load_file(f"{TINY}/cases/noise.safetensors")
    x, ctx = unit["x"], unit["ctx"]
    full = fill(T2IAdapter(in_channels=3, channels=list(CH), num_res_blocks=2, downscale_factor=4, adapter_type="full_adapter"), 70)
    light = fill(T2IAdapter(in_channels=1, channels=list(CH[:3]), num_res_blocks=3, downscale_factor=4, adapter_type="light_adapter"), 71)
    save_model_half(full, f"{OUT}/full")
    save_model_half(light, f"{OUT}/light")
    original = {original_t2i_key(k, True): v.half().clone() for k, v in light.state_dict().items()}
    torch.save({"adapter": original, "optimizer": {"moment": torch.ones(3)}}, f"{OUT}/light.pth")

    colour = np.stack([picture(LH * 4, LW * 4, k + 80) for k in range(FRAMES)])
    grey = np.stack([np.asarray(Image.fromarray(picture(LH * 4, LW * 4, k + 90)).convert("L")) for k in range(FRAMES)])
    odd = picture(28, 52, 99)
    as_grey = np.asarray(Image.fromarray(odd).convert("L"))

    def tensor(pictures):
        pictures = pictures[..., None] if pictures.ndim == 3 else pictures
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255

    units = {"colour_u8": torch.from_numpy(colour), "grey_u8": torch.from_numpy(grey), "odd_u8": torch.from_numpy(odd),
             "odd_grey_u8": torch.from_numpy(as_grey.copy())}
    of_full, of_light = full(tensor(colour)), light(tensor(grey))
    for name, features in [("full", of_full), ("light", of_light), ("full_odd", full(tensor(odd[None]))),
                           ("light_odd", light(tensor(as_grey[None])))]:
        units.update({f"{name}.{i}": f for i, f in enumerate(features)})
    assert [f.shape[2:] for f in full(tensor(odd[None]))] == [(7, 13), (4, 7), (2, 4), (1, 2)]

    # Where diffusers' UNet for images adds features, and that hooks add them at the same places.
    unet = UNet2DConditionModel.from_pretrained(f"{TINY}/model/unet", torch_dtype=torch.float32).eval()
    images, context = x[0].permute(1, 0, 2, 3), ctx[:1].expand(FRAMES, -1, -1)

    def run_unet(**kw):
        return unet(images, 759, encoder_hidden_states=context, return_dict=False, **kw)[0]

    plain = run_unet()
    want = run_unet(down_intrablock_additional_residuals=[f.clone() for f in of_full])
    hooks = [add_behind((getattr(b, "attentions", None) or b.resnets)[-1], f) for b, f in zip(unet.down_blocks, of_full)]
    torch.testing.assert_close(run_unet(), want, rtol=1e-5, atol=1e-5)
    for hook in hooks:
        hook.remove()
    assert torch.equal(run_unet(), plain)
    checks = {"effect in the unet": rel(want, plain)}
    units["unet.y"] = want
    put("units", units)

    settings = {"one": {"scales": [0.8], "end": 0.75}, "two": {"scales": [0.7, 0.5], "end": 1.0}}

    def run(features, factor):
        pipe = AnimateDiffPipeline.from_pretrained(f"{TINY}/model", torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        # What the pipeline for SDXL calls `adapter_conditioning_factor`.
        step = {"now": -1}
        pipe.unet.register_forward_pre_hook(lambda *_: step.update(now=step["now"] + 1))
        for block, feature in zip(pipe.unet.down_blocks, features):
            add_behind(block.motion_modules[-1], feature, lambda: step["now"] < int(4 * factor))
        got = record(pipe, noise_seed=21, keep_steps=False, latents=x.clone(), output_type="latent", prompt=PROMPT, negative_prompt=NEG,
                     num_frames=FRAMES, height=LH * 4, width=LW * 4, num_inference_steps=4, guidance_scale=1.5)
        assert step["now"] == 3
        for i in range(3):
            assert torch.equal(got[f"noise.{i}"], noise[f"noise.{i}"])
        return got["latents.final"]

    both = MultiAdapter([full, light])([tensor(colour), tensor(grey)], settings["two"]["scales"])
    runs = {"one": run([0.8 * f for f in full(tensor(colour))], 0.75), "two": run(both, 1.0)}
    without = load_file(f"{TINY}/cases/lcm_cfg.safetensors")["latents.final"]
    assert rel(run([0 * f for f in of_full], 1.0), without) < 1e-5
    checks.update({f"effect of {name}": rel(latents, without) for name, latents in runs.items()})
    assert min(checks.values()) > 1e-2, checks
    put("runs", runs)
    json.dump({"steps": 4, "init": "tiny/cases/unet: x", "noise": "tiny/cases/noise", "guidance_scale": 1.5, "runs": settings,
               "checks": checks}, open(f"{OUT}/t2i_adapter.json", "w"), indent=1)


if __name__ == "__main__":
    with torch.no_grad():
        main()
