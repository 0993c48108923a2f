#!/usr/bin/env python3
"""Writes ../ip_adapter: the tiny IP-Adapters of `../tiny` in ways that their own cases do not show.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, numpy 2.4.6, pillow 13.0.0 (`requirements.txt`). To be run after
`make_goldens.py`; nothing is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 python ip_adapter.py

    pixels.safetensors  pictures of odd sizes, and what CLIPImageProcessor makes of them, for encoders of 32 and of 29 pixels
    masks.safetensors   masks of odd sizes: grey, what IPAdapterMaskProcessor makes of them for a clip of 64x32, that at every level
    runs.safetensors    guided runs of 2 steps: two pictures in one adapter (base, plus, full), two adapters, masks of another shape
                        than the clip's; one without guidance; one of 4 steps in which the adapter works for the first half
    base.bin, plus.bin  the adapters as nested dicts, the layout of the published .bin files

diffusers has no `end` for IP-Adapters: there the scale is set to zero between two steps.
"""
import json
import os

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AnimateDiffPipeline
from diffusers.image_processor import IPAdapterMaskProcessor
from make_goldens import FRAMES, LH, LW, NEG, PROMPT, picture, record
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.path.dirname(HERE), "tiny")
OUT = os.path.join(os.path.dirname(HERE), "ip_adapter")
FILES = {"base": "ip-adapter.safetensors", "plus": "ip-adapter-plus.safetensors", "full": "ip-adapter-full.safetensors"}
SIZES = [(37, 53), (100, 20), (32, 32), (31, 97), (5, 90), (10, 7), (64, 32), (33, 32)]  # height, width


def put(name, tensors):
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, f"{OUT}/{name}.safetensors")


def processor(side):
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)


def pixels():
    out = {}
    for i, (height, width) in enumerate(SIZES):
        u8 = picture(height, width, 50 + i)
        out[f"{i}.u8"] = torch.from_numpy(u8.copy())
        for side in (32, 29):
            out[f"{i}.{side}"] = processor(side)(Image.fromarray(u8), return_tensors="pt").pixel_values
    put("pixels", out)


def masks():
    """Smooth pictures, so that the binarised edge depends on every weight of the resize and on the grey."""
    out = {}
    for i, (height, width) in enumerate([(48, 40), (32, 64), (23, 91)]):
        u8 = picture(height, width, 70 + i)
        mask = IPAdapterMaskProcessor().preprocess(Image.fromarray(u8), height=LH * 4, width=LW * 4)
        assert 0.1 < float(mask.mean()) < 0.9 and mask.unique().numel() == 2
        out[f"{i}.u8"], out[f"{i}.mask"] = torch.from_numpy(u8.copy()), mask[0, 0]
        height, width = LH, LW
        for level in range(4):
            # diffusers guesses the shape of a level from its area; here the guess is right
            guess = IPAdapterMaskProcessor.downsample(mask[0], 1, height * width, 1)[0, :, 0]
            known = F.interpolate(mask, size=(height, width), mode="bicubic")[0, 0]
            assert torch.equal(guess, known.flatten())
            out[f"{i}.level{level}"] = known
            height, width = -(-height // 2), -(-width // 2)
        out[f"{i}.odd"] = F.interpolate(mask, size=(7, 51), mode="bicubic")[0, 0]
    put("masks", out)
    return [torch.from_numpy(np.asarray(out[f"{i}.mask"])) for i in (0, 2)]


def nested(name):
    """The layout of .bin files, which torch.save wrote."""
    dicts = {"image_proj": {}, "ip_adapter": {}}
    for key, value in load_file(f"{TINY}/extras/{FILES[name]}").items():
        outer, inner = key.split(".", 1)
        dicts[outer][inner] = value
    torch.save(dicts, f"{OUT}/{name}.bin")


def main():
    os.makedirs(OUT, exist_ok=True)
    pixels()
    mask = masks()
    for name in ("base", "plus"):
        nested(name)

    unit, noise = load_file(f"{TINY}/cases/unet.safetensors"), load_file(f"{TINY}/cases/noise.safetensors")
    encoder = CLIPVisionModelWithProjection.from_pretrained(f"{TINY}/extras/image_encoder", torch_dtype=torch.float32).eval()
    refs = [Image.fromarray(load_file(f"{TINY}/cases/{case}.safetensors")[key].numpy())
            for case, key in (("image_encoder", "ref_u8"), ("ip_masked", "ref2_u8"))]

    def run(files, scale, images, guidance_scale=1.5, steps=2, stop=None, **kw):
        pipe = AnimateDiffPipeline.from_pretrained(f"{TINY}/model", image_encoder=encoder, feature_extractor=processor(32),
                                                   torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        pipe.load_ip_adapter(f"{TINY}/extras", subfolder="" if len(files) == 1 else [""] * len(files),
                             weight_name=[FILES[f] for f in files], image_encoder_folder=None)
        pipe.set_ip_adapter_scale(scale)
        if stop is not None:
            calls, forward = [], pipe.unet.forward

            def counted(*a, **k):
                calls.append(1)
                if len(calls) > stop:
                    pipe.set_ip_adapter_scale(0.0)
                return forward(*a, **k)

            pipe.unet.forward = counted
        got = record(pipe, noise_seed=21, keep_steps=False, latents=unit["x"].clone(), output_type="latent", prompt=PROMPT, negative_prompt=NEG,
                     num_frames=FRAMES, height=LH * 4, width=LW * 4, num_inference_steps=steps, guidance_scale=guidance_scale,
                     ip_adapter_image=images, **kw)
        for i in range(steps - 1):
            assert torch.equal(got[f"noise.{i}"], noise[f"noise.{i}"])
        return got["latents.final"]

    both = torch.stack(mask)[None]  # (1, pictures, height, width)
    runs = {f"two_pictures.{kind}": run([kind], 0.7, [refs]) for kind in FILES}
    runs["two_adapters"] = run(["base", "plus"], [0.6, 0.35], refs)
    runs["masks"] = run(["plus"], [[0.7, 0.4]], [refs], cross_attention_kwargs={"ip_adapter_masks": [both]})
    runs["unguided"] = run(["full"], 0.7, [refs[0]], guidance_scale=1.0)
    runs["first_half"] = run(["plus"], 0.8, [refs[1]], steps=4, stop=2)

    def rel(a, b):
        return float((a - b).norm() / b.norm())

    # the data has teeth
    assert rel(runs["two_pictures.plus"], run(["plus"], 0.7, [refs[0]])) > 0.005
    assert rel(runs["two_adapters"], run(["base", "plus"], [0.6, 0.35], refs[::-1])) > 0.005
    assert rel(runs["masks"], run(["plus"], [[0.7, 0.4]], [refs], cross_attention_kwargs={"ip_adapter_masks": [both.flip(1)]})) > 0.005
    assert rel(runs["first_half"], run(["plus"], 0.8, [refs[1]], steps=4)) > 0.005
    put("runs", runs)
    json.dump({"init": "tiny/cases/unet: x", "noise": "tiny/cases/noise", "guidance_scale": 1.5, "steps": 2,
               "pictures": ["tiny/cases/image_encoder: ref_u8", "tiny/cases/ip_masked: ref2_u8"],
               "two_pictures": {"scale": 0.7}, "two_adapters": {"scales": [0.6, 0.35], "files": ["base", "plus"]},
               "masks": {"file": "plus", "scales": [0.7, 0.4], "masks": ["masks: 0", "masks: 2"]},
               "unguided": {"file": "full", "scale": 0.7, "guidance_scale": 1.0},
               "first_half": {"file": "plus", "scale": 0.8, "steps": 4, "end": 0.5, "picture": 1}}, open(f"{OUT}/ip_adapter.json", "w"), indent=1)


if __name__ == "__main__":
    with torch.no_grad():
        main()
