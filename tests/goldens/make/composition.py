#!/usr/bin/env python3
"""Writes ../composition: everything that can be added to a model, all at once, in one guided run of the tiny model by diffusers.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, peft 0.21.2, numpy 2.4.6, pillow 13.0.0 (`requirements.txt`). To be run
after `make_goldens.py`; nothing is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 python composition.py

Two LoRAs (`../tiny/extras/lora-kohya` and `lora-peft`), a motion LoRA, an LCM LoRA, two ControlNets (`../tiny/extras/controlnet` and
another), an IP-Adapter with its image encoder, and a textual inversion of two vectors. Four steps of the official sampler: linear
betas, a grid of 100, motion norms per frame.

    lcm-lora.safetensors    kohya names, rank 5, alpha 0.625 (so alpha/rank is 1/8): every layer that LCM LoRAs change
    controlnet/             another random ControlNet, whose hint network has other widths than the first's
    word.safetensors        `<park>`: two vectors
    inputs.safetensors      hint_a_u8, hint_b_u8 (6, 32, 64, 3); picture_u8 (48, 40, 3) for the IP-Adapter
    run.safetensors         context, negative_context, latents.final and frames (6, 3, 32, 64) in [0, 1]
    composition.json        scales and prompts; what the frames change by when one part is left out: largest difference and rms
First latents and noise: `../tiny/cases/unet: x`, `../tiny/cases/noise`.

diffusers gives every attention module of one LoRA file the most common alpha of the file. Each file here has one alpha and one rank.
"""
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
from diffusers import AnimateDiffControlNetPipeline, ControlNetModel, LCMScheduler, UNet2DConditionModel
from keys import kohya_key
from make_goldens import CROSS, FRAMES, LH, LW, NEG, draw, fill, per_frame_norms, picture, record, save_half, save_model_half
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.path.dirname(HERE), "tiny")
OUT = os.path.join(os.path.dirname(HERE), "composition")
PROMPT = "A corgi walking in the <park>, 4k!!"
SETTINGS = {
    "prompt": PROMPT, "negative_prompt": NEG, "guidance_scale": 1.5, "steps": 4, "original_steps": 100,
    "loras": {"lcm": 0.9, "lora_kohya": 0.8, "lora_peft": 0.5, "motion": 0.9},
    "controls": {"a": {"scale": 0.6, "start": 0.0, "end": 0.75}, "b": {"scale": 0.4, "start": 0.25, "end": 1.0}},
    "ip_adapter": 0.7,
}
PARTS = [*SETTINGS["loras"], *SETTINGS["controls"], "ip_adapter", "word"]
FILES = {"lcm": f"{OUT}/lcm-lora", "lora_kohya": f"{TINY}/extras/lora-kohya", "lora_peft": f"{TINY}/extras/lora-peft", "motion": f"{TINY}/extras/motion-lora"}
LCM_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "time_emb_proj",
              "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")


def make_lcm_lora(unet):
    out, rank = {}, 5
    for name, module in unet.named_modules():
        if name.endswith(LCM_LAYERS) and hasattr(module, "weight"):
            w, key = module.weight, kohya_key(name)
            out[key + ".lora_down.weight"] = draw(key + "down", (rank, *w.shape[1:]), 61, 0.4 / w[0].numel() ** 0.5)
            out[key + ".lora_up.weight"] = draw(key + "up", (w.shape[0], rank) + (1,) * (w.ndim - 2), 61, 1.0)
            out[key + ".alpha"] = torch.tensor(rank / 8)
    save_half(out, FILES["lcm"] + ".safetensors")


def make_control_net(unet):
    net = fill(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(3, 5, 7), load_weights_from_unet=False), 62)
    save_model_half(net, f"{OUT}/controlnet")


def run(inputs, without=()):
    """Frames and latents of the run without some parts."""
    images = lambda name: [Image.fromarray(p) for p in inputs[name].numpy()]
    nets = {"a": f"{TINY}/extras/controlnet", "b": f"{OUT}/controlnet"}
    nets = {k: ControlNetModel.from_pretrained(v, torch_dtype=torch.float32).eval() for k, v in nets.items()}
    vision = CLIPVisionModelWithProjection.from_pretrained(f"{TINY}/extras/image_encoder", torch_dtype=torch.float32)
    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe = AnimateDiffControlNetPipeline.from_pretrained(
        f"{TINY}/model", controlnet=list(nets.values()), image_encoder=vision, feature_extractor=pixels, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=100)
    per_frame_norms(pipe.unet)
    loras = {k: v for k, v in SETTINGS["loras"].items() if k not in without}
    for name in loras:
        pipe.load_lora_weights(os.path.dirname(FILES[name]), weight_name=os.path.basename(FILES[name]) + ".safetensors", adapter_name=name)
    pipe.set_adapters(list(loras), list(loras.values()))
    if "word" not in without:
        pipe.load_textual_inversion(f"{OUT}/word.safetensors", token="<park>")
    more = {}
    if "ip_adapter" not in without:
        pipe.load_ip_adapter(f"{TINY}/extras", subfolder="", weight_name="ip-adapter.safetensors", image_encoder_folder=None)
        pipe.set_ip_adapter_scale(SETTINGS["ip_adapter"])
        more["ip_adapter_image"] = Image.fromarray(inputs["picture_u8"].numpy())
    controls = SETTINGS["controls"]
    got = record(
        pipe, noise_seed=21, keep_steps=False, latents=load_file(f"{TINY}/cases/unet.safetensors")["x"].clone(), output_type="pt",
        prompt=PROMPT, negative_prompt=NEG, num_frames=FRAMES, height=LH * 4, width=LW * 4, num_inference_steps=4, guidance_scale=1.5,
        conditioning_frames=[images("hint_a_u8"), images("hint_b_u8")],
        controlnet_conditioning_scale=[0.0 if k in without else c["scale"] for k, c in controls.items()],
        control_guidance_start=[c["start"] for c in controls.values()], control_guidance_end=[c["end"] for c in controls.values()], **more)
    for i, noise in enumerate(load_file(f"{TINY}/cases/noise.safetensors")[f"noise.{i}"] for i in range(3)):
        assert torch.equal(got[f"noise.{i}"], noise)
    context = pipe.encode_prompt(PROMPT, "cpu", 1, True, NEG)
    return {"context": context[0], "negative_context": context[1], "latents.final": got["latents.final"], "frames": got["frames"][0]}


def main():
    os.makedirs(OUT, exist_ok=True)
    unet = UNet2DConditionModel.from_pretrained(f"{TINY}/model/unet", torch_dtype=torch.float32)
    make_lcm_lora(unet)
    make_control_net(unet)
    save_file({"<park>": draw("park", (2, CROSS), 63, 0.5).half()}, f"{OUT}/word.safetensors")
    stack = lambda first: torch.from_numpy(np.stack([picture(LH * 4, LW * 4, first + k) for k in range(FRAMES)]))
    inputs = {"hint_a_u8": stack(0), "hint_b_u8": stack(50), "picture_u8": torch.from_numpy(picture(48, 40, 5))}
    save_file(inputs, f"{OUT}/inputs.safetensors")

    whole = run(inputs)
    frames = whole["frames"]
    save_file({k: v.contiguous().clone() for k, v in whole.items()}, f"{OUT}/run.safetensors")
    clipped = float(((frames <= 0) | (frames >= 1)).float().mean())
    print(f"frames: std {float(frames.std()):.3f}, clipped {clipped:.3f}")
    assert clipped < 0.5
    changes = {}
    for part in PARTS:
        difference = run(inputs, (part,))["frames"] - frames
        changes[part] = {"largest": round(float(difference.abs().max()), 5), "rms": round(float(difference.square().mean().sqrt()), 5)}
        print(part, changes[part])
        assert changes[part]["largest"] > 0.02, part
    with open(f"{OUT}/composition.json", "w") as f:
        json.dump({**SETTINGS, "without": changes}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
