#!/usr/bin/env python3
"""Writes ../clip_score: a tiny CLIPModel of both halves with random weights, and cosines of pictures and prompts.

Pinned: torch 2.15.0, transformers 5.23.0, numpy 2.4.6, pillow 13.0.0 (`requirements.txt`). To be run after `tokenizer.py`, whose tiny
tokenizer is the model's; nothing is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 python clip_score.py

    model/            config.json and model.safetensors by `save_pretrained`; the tokenizer is that of ../tiny/extras/tokenizer
    cases.safetensors `frames` (frames, height, width, 3) in bytes, `cosines` (frames, prompts), `image` and `text`, the embeddings in the
                      joint space before they are normalized; `padded`, the cosines where prompts are padded to 77 tokens
    clip_score.json   the prompts
"""
import json
import os

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.path.dirname(HERE), "tiny")
OUT = os.path.join(os.path.dirname(HERE), "clip_score")
SIDE = 24
PROMPTS = ["a red circle moving right on a black background", "A Green SQUARE, growing!", "blue " * 90]


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(f"{TINY}/extras/tokenizer")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {"vocab_size": len(tokenizer), "hidden_size": 15, "intermediate_size": 22, "num_hidden_layers": 2, "num_attention_heads": 3}
    image = {"hidden_size": 14, "intermediate_size": 26, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config={**text, **ids, "hidden_act": "gelu"}, vision_config=image, projection_dim=11)
    model = CLIPModel(config).eval()
    g = torch.Generator().manual_seed(233)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=g)
        one = "norm" in name and name.endswith("weight") or "layrnorm" in name and name.endswith("weight")
        weight.copy_(1 + 0.2 * noise if one else 0.3 * noise)
    model.save_pretrained(f"{OUT}/model")
    frames = np.random.default_rng(234).integers(0, 256, (5, 31, 42, 3), dtype=np.uint8)
    # Smooth, so that the frames differ in what an encoder sees of them.
    small = [Image.fromarray(frame).resize((4, 3)).resize((42, 31), Image.Resampling.BICUBIC) for frame in frames]
    frames = np.stack([np.asarray(image) for image in small])
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    pixels = processor([Image.fromarray(frame) for frame in frames], return_tensors="pt").pixel_values

    def run(**padding):
        tokens = tokenizer(PROMPTS, truncation=True, max_length=77, return_tensors="pt", **padding)
        return model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)

    out = run(padding=True)
    cosines = out.image_embeds @ out.text_embeds.T
    padded = run(padding="max_length")
    padded = padded.image_embeds @ padded.text_embeds.T
    assert (cosines - padded).abs().max() < 1e-5
    assert (out.logits_per_image / model.logit_scale.exp() - cosines).abs().max() < 1e-5
    print(cosines)
    assert cosines.std(0).min() > 1e-3 and cosines.std(1).min() > 1e-2
    tokens = tokenizer(PROMPTS, truncation=True, max_length=77, padding=True, return_tensors="pt")
    raw_image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    pooled = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
    raw_text = model.text_projection(pooled)
    assert (raw_image / raw_image.norm(dim=1, keepdim=True) - out.image_embeds).abs().max() < 1e-5
    tensors = {"frames": torch.from_numpy(frames.copy()), "cosines": cosines, "image": raw_image, "text": raw_text, "padded": padded}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, f"{OUT}/cases.safetensors")
    with open(f"{OUT}/clip_score.json", "w") as f:
        json.dump({"prompts": PROMPTS}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
