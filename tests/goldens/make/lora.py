#!/usr/bin/env python3
"""Writes one LoRA of the tiny model under several namings, and the weights it must lead to, to ../lora.

Pinned: safetensors 0.8.0, numpy 2.4.6, torch 2.15.0 (`requirements.txt`). Reads ../tiny, made by make_goldens.py.

    python lora.py

The weights are computed here and not by diffusers, which gives attention and text modules the most common alpha of the file
instead of their own. For a module of weight W, rank r = rows of `down`, alpha a (r where the file has none) and strength s

    W' = W + s * (a / r) * up @ down          in float64, stored as float32

where convolutions are taken as matrices: down [r, in, kh, kw] as [r, in*kh*kw], up [out, r, 1, 1] as [out, r].

../lora/kohya.safetensors          kohya names; ranks 1 to 5, alphas that differ, two modules without alpha, one 1x1 convolution
                                   stored as a matrix; UNet, motion and text
../lora/kohya_ldm.safetensors      the UNet's spatial modules under LDM names (`lora_unet_input_blocks_...`)
../lora/peft.safetensors           `unet.` / `text_encoder.` + `.lora_A.weight`; alpha / r is multiplied into B (float32)
../lora/diffusers_old.safetensors  the attention modules as `.processor.to_q_lora.down.weight`, text as `.lora_linear_layer.`; likewise
../lora/motion_original.safetensors  ../tiny/extras/motion-lora with AnimateDiff's own names and no prefix (case lora_motion)
../lora/motion_published.ckpt      the middle's modules of that one as camera LoRAs are published: in a `state_dict`, after `module.`
../lora/fused.safetensors          diffusers weight name (text encoder's with `text_model.`) -> W' at strength 0.8 for the first file;
                                   the others change subsets of it, listed in lora.json
../lora/lora.json                  strength; per file the weights that change; per module rank and alpha (null: none)
"""
import json
import os
import zlib

import numpy as np
import torch
from keys import kohya_key, ldm_unet_key
from safetensors.numpy import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDENS = os.path.dirname(HERE)
TINY, OUT = f"{GOLDENS}/tiny", f"{GOLDENS}/lora"
STRENGTH = 0.8

MODULES = {  # module -> (rank, alpha)
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (4, 2.0),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (4, 8.0),
    "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k": (2, 1.0),
    "up_blocks.3.attentions.0.transformer_blocks.0.attn2.to_v": (5, None),
    "down_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj": (3, 1.0),
    "up_blocks.2.attentions.1.transformer_blocks.0.ff.net.2": (3, 0.5),
    "down_blocks.0.attentions.1.proj_in": (2, 3.0),
    "mid_block.attentions.0.proj_out": (3, 2.0),  # stored as a matrix
    "down_blocks.2.resnets.0.conv1": (4, 1.0),
    "up_blocks.0.resnets.2.conv2": (1, 1.0),
    "down_blocks.1.resnets.0.conv_shortcut": (2, None),
    "up_blocks.1.resnets.0.time_emb_proj": (3, 6.0),
    "down_blocks.0.downsamplers.0.conv": (2, 1.0),
    "up_blocks.0.upsamplers.0.conv": (2, 4.0),
    "up_blocks.2.upsamplers.0.conv": (2, 2.0),
    "conv_in": (2, 1.0),
    "conv_out": (2, 1.5),
    "time_embedding.linear_1": (3, 1.0),
}
MOTION = {
    "mid_block.motion_modules.0.transformer_blocks.0.attn2.to_v": (3, 1.0),
    "up_blocks.3.motion_modules.2.proj_in": (2, 4.0),
}
TEXT = {
    "text_model.encoder.layers.0.self_attn.q_proj": (4, 1.0),
    "text_model.encoder.layers.1.self_attn.out_proj": (2, 2.0),
    "text_model.encoder.layers.2.mlp.fc1": (3, 1.0),
    "text_model.encoder.layers.2.mlp.fc2": (3, 6.0),
}


def draw(name, shape):
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return (0.3 * rng.standard_normal(shape)).astype(np.float16)


def main():
    os.makedirs(OUT, exist_ok=True)
    unet = load_file(f"{TINY}/model/unet/diffusion_pytorch_model.safetensors")
    unet |= load_file(f"{TINY}/model/motion_adapter/diffusion_pytorch_model.safetensors")
    text = load_file(f"{TINY}/model/text_encoder/model.safetensors")
    files = {"kohya": {}, "kohya_ldm": {}, "peft": {}, "diffusers_old": {}}
    changes = {k: [] for k in files}
    fused, about = {}, {}
    for module, (rank, alpha) in {**MODULES, **MOTION, **TEXT}.items():
        is_text = module in TEXT
        weight = (text if is_text else unet)[f"{module}.weight"]
        matrix = weight.ndim == 2 or module == "mid_block.attentions.0.proj_out"
        down = draw(module + ".down", (rank, weight.shape[1]) if matrix else (rank, *weight.shape[1:]))
        up = draw(module + ".up", (weight.shape[0], rank) if matrix else (weight.shape[0], rank, 1, 1))
        scale = (rank if alpha is None else alpha) / rank
        delta = up.reshape(-1, rank).astype(np.float64) @ down.reshape(rank, -1).astype(np.float64)
        fused[f"{module}.weight"] = (weight.astype(np.float64) + STRENGTH * scale * delta.reshape(weight.shape)).astype(np.float32)
        about[module] = {"rank": rank, "alpha": alpha}

        def put(file, stem, a, b, scaled):
            files[file][stem + a] = down.astype(np.float32) if scaled else down
            files[file][stem + b] = up.astype(np.float32) * np.float32(scale) if scaled else up
            changes[file].append(f"{module}.weight")

        key = "lora_te_" + module.replace(".", "_") if is_text else kohya_key(module)
        put("kohya", key, ".lora_down.weight", ".lora_up.weight", False)
        if alpha is not None:
            files["kohya"][key + ".alpha"] = np.array(alpha, np.float16)
        if module in MODULES:
            key = "lora_unet_" + ldm_unet_key(module + ".weight").removesuffix(".weight").replace(".", "_")
            put("kohya_ldm", key, ".lora_down.weight", ".lora_up.weight", False)
            if alpha is not None:
                files["kohya_ldm"][key + ".alpha"] = np.array(alpha, np.float16)
        side = "text_encoder" if is_text else "unet"
        put("peft", f"{side}.{module}", ".lora_A.weight", ".lora_B.weight", True)
        if ".attn" in module:
            block, leaf = module.removesuffix(".0").rsplit(".", 1)
            put("diffusers_old", f"unet.{block}.processor.{leaf}_lora", ".down.weight", ".up.weight", True)
        elif ".self_attn." in module or ".mlp." in module:
            put("diffusers_old", f"text_encoder.{module}.lora_linear_layer", ".down.weight", ".up.weight", True)
    for name, tensors in files.items():
        save_file(tensors, f"{OUT}/{name}.safetensors", metadata={"format": "pt"})
    save_file(fused, f"{OUT}/fused.safetensors")

    motion = {}
    for k, v in load_file(f"{TINY}/extras/motion-lora.safetensors").items():
        k = k.removeprefix("unet.").replace(".attn1.", ".attention_blocks.0.").replace(".attn2.", ".attention_blocks.1.")
        motion[k.replace(".transformer_blocks.", ".temporal_transformer.transformer_blocks.")] = v
    save_file(motion, f"{OUT}/motion_original.safetensors", metadata={"format": "pt"})
    published = {f"module.{k}": torch.from_numpy(v) for k, v in motion.items() if k.startswith("mid_block.")}
    torch.save({"epoch": 3, "global_step": 7, "state_dict": published}, f"{OUT}/motion_published.ckpt")
    with open(f"{OUT}/lora.json", "w") as f:
        json.dump({"strength": STRENGTH, "modules": about, "changes": changes}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
