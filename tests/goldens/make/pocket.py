#!/usr/bin/env python3
"""Runs the pocket model of assets/pocket with diffusers' modules and writes the runs to ../pocket.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0 (`requirements.txt`).

    HF_HUB_OFFLINE=1 python pocket.py

To be run again whenever assets/pocket changes.

Official AnimateLCM semantics: linear betas 0.00085 to 0.012, grid of 100, four steps, motion norms per frame, the LCM LoRA merged at
scale 1 (alpha / rank = 1/8), noise of torch's CPU generator seeded once: first the initial latents, then one draw for each step but
the last. Run 3 has guidance 1.5 and a negative prompt.

../pocket/run{i}.safetensors
    ids, negative_ids (1, 20) int32     context (1, 20, 64), negative_context (1, 20, 64) (run 3 only)
    init (1, 4, 16, 16, 16)               noise.0 ... noise.2
    eps.0 ... eps.3 (after guidance; runs 0 and 3)    latents.0 ... latents.3: after each step; the last is the result
    frames (2, 3, 64, 64) in [0, 1]: frames 0 and 11 of 16
../pocket/runs.json                     prompt, negative prompt, seed, guidance scale, frames kept
"""
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from diffusers import AutoencoderKL, LCMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from keys import kohya_key
from make_goldens import per_frame_norms
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDENS = os.path.dirname(HERE)
POCKET = os.path.normpath(f"{GOLDENS}/../../assets/pocket")
OUT = f"{GOLDENS}/pocket"
SHAPE, KEPT = (1, 4, 16, 16, 16), (0, 11)
RUNS = [
    ("a red circle moving left on a black background", None, 1.0, 100),
    ("a yellow star spinning on a navy background", None, 1.0, 101),
    ("a cyan triangle moving right on a brown background", None, 1.0, 102),
    ("a orange circle bouncing on a black background", "a white ring standing still on a grey background", 1.5, 103),
]
torch.set_grad_enabled(False)


def widened(path):
    """The weights of a file in f32; those in 8 bits are multiplied by the scales of their rows."""
    weights = load_file(path)
    scales = {k: weights.pop(k) for k in list(weights) if k.endswith(".weight_scale")}
    weights = {k: v.float() for k, v in weights.items()}
    for name, scale in scales.items():
        weight = weights[name.removesuffix("_scale")]
        weight *= scale.reshape(-1, *[1] * (weight.dim() - 1))
    return weights


def load(folder=POCKET):
    """UNet with motion, VAE, text encoder and tokenizer of a set like assets/pocket."""
    spatial = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(f"{folder}/base/unet"))
    spatial.load_state_dict(widened(f"{folder}/base/unet/diffusion_pytorch_model.safetensors"))
    lora = load_file(f"{folder}/animatelcm_lora.safetensors")
    merged = 0
    for name, module in spatial.named_modules():
        down = lora.get(kohya_key(name) + ".lora_down.weight")
        if down is None:
            continue
        up, alpha = lora[kohya_key(name) + ".lora_up.weight"].float(), float(lora[kohya_key(name) + ".alpha"])
        delta = up.flatten(1) @ down.float().flatten(1) * (alpha / down.shape[0])
        module.weight += delta.reshape(module.weight.shape)
        merged += 1
    assert merged * 3 == len(lora)
    sizes = dict(motion_layers_per_block=1, motion_norm_num_groups=spatial.config.norm_num_groups, motion_max_seq_length=64)
    motion = MotionAdapter(block_out_channels=spatial.config.block_out_channels, **sizes)
    state = convert_animatediff_checkpoint_to_diffusers(widened(f"{folder}/motion_lcm.safetensors"))
    missing, unexpected = motion.load_state_dict(state, strict=False)
    assert not unexpected and all(k.endswith("pos_embed.pe") for k in missing)
    unet = per_frame_norms(UNetMotionModel.from_unet2d(spatial, motion).eval())
    vae = AutoencoderKL.from_pretrained(f"{folder}/base/vae", torch_dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(f"{folder}/base/text_encoder", torch_dtype=torch.float32)
    return unet, vae, text, CLIPTokenizer.from_pretrained(f"{folder}/base/tokenizer")


def main():
    os.makedirs(OUT, exist_ok=True)
    unet, vae, text, tok = load()
    about = []
    for run, (prompt, negative, scale, seed) in enumerate(RUNS):
        out = {}

        def encode(words, prefix):
            ids = tok(words, padding="max_length", max_length=text.config.max_position_embeddings, truncation=True, return_tensors="pt").input_ids
            out[prefix + "ids"], out[prefix + "context"] = ids.int(), text(ids)[0]
            return out[prefix + "context"]

        context = [encode(prompt, "")]
        if negative is not None:
            context.insert(0, encode(negative, "negative_"))
        context = torch.cat(context).repeat_interleave(SHAPE[2], 0)
        g = torch.Generator().manual_seed(seed)
        x = out["init"] = torch.randn(SHAPE, generator=g)
        s = LCMScheduler(beta_schedule="linear", original_inference_steps=100)
        s.set_timesteps(4)
        for i, t in enumerate(s.timesteps):
            if negative is None:
                eps = unet(x, t, encoder_hidden_states=context).sample
            else:
                plain, wanted = unet(torch.cat([x, x]), t, encoder_hidden_states=context).sample.chunk(2)
                eps = plain + scale * (wanted - plain)
            state = g.get_state()
            out[f"eps.{i}"] = eps
            x = out[f"latents.{i}"] = s.step(eps, t, x, generator=g).prev_sample
            if i < 3:
                after = g.get_state()
                g.set_state(state)
                out[f"noise.{i}"] = torch.randn(SHAPE, generator=g)
                assert torch.equal(g.get_state(), after)
        frames = torch.cat([vae.decode(x[:, :, f] / vae.config.scaling_factor).sample for f in range(SHAPE[2])])
        frames = (frames / 2 + 0.5).clamp(0, 1)
        out["frames"] = frames[list(KEPT)]
        small = {k: v.contiguous().clone() for k, v in out.items() if run in (0, 3) or not k.startswith("eps.")}
        save_file(small, f"{OUT}/run{run}.safetensors")
        about.append({"file": f"run{run}.safetensors", "prompt": prompt, "negative_prompt": negative, "guidance_scale": scale, "seed": seed,
                      "steps": 4, "original_steps": 100, "frames": SHAPE[2], "kept": KEPT})
    with open(f"{OUT}/runs.json", "w") as f:
        json.dump(about, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
