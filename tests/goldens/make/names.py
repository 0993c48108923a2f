#!/usr/bin/env python3
"""Writes the names and shapes of all tensors of the published files to ../names.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0 (`requirements.txt`). Models are built on torch's meta device: no memory,
no download.

    python names.py

One tensor a line: name, tab, shape as a JSON list. `unet`, `motion` ... are the names of diffusers, which the crate uses inside; the
other lists are what people publish, in the same order as the diffusers list that they map onto, so line n of one is line n of the
other (lists with additional lines have them at the end).
"""
import json
import os

import torch
from diffusers import AutoencoderKL, ControlNetModel, MotionAdapter, T2IAdapter, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers, convert_controlnet_checkpoint
from diffusers.models import SparseControlNetModel
from diffusers.models.embeddings import ImageProjection, IPAdapterFullImageProjection, IPAdapterPlusImageProjection
from i2v import Encoder
from keys import (full_key, kohya_key, ldm_control_net_key, ldm_unet_key, ldm_vae_key, old_vae_key, original_motion_key, original_position_keys,
                  original_sparse_key, original_t2i_key, plus_key)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(os.path.dirname(HERE), "names")


def write(file, pairs, count, params=None):
    pairs = [(n, list(s)) for n, s in pairs]
    assert len(pairs) == len(dict(pairs)) == count, (file, len(pairs))
    total = sum(torch.Size(s).numel() for _, s in pairs)
    assert params in (None, total), (file, total)
    with open(f"{OUT}/{file}.txt", "w") as f:
        f.writelines(f"{n}\t{json.dumps(s)}\n" for n, s in pairs)


def shapes(module):
    return [(k, v.shape) for k, v in module.state_dict().items()]


def ip_adapter(unet, module, rename, joined=()):
    """An IP-Adapter as it is published: diffusers' projection under its original names, and keys and values for every cross attention of
    the UNet in the order of its processors. `joined` are keys and values that are stored as one matrix."""
    proj = {rename(k): v.shape for k, v in module.state_dict().items() if not k.endswith(joined)}
    proj |= {rename(k).replace("to_k", "to_kv"): (2 * v.shape[0], v.shape[1]) for k, v in module.state_dict().items()
             if joined and k.endswith(joined[0])}
    with torch.device("meta"):  # diffusers reads it back
        back = unet._convert_ip_adapter_image_proj_to_diffusers({k: torch.empty(s) for k, s in proj.items()}, low_cpu_mem_usage=False)
    assert {k: v.shape for k, v in back.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}
    context = module.norm_out.weight.shape[0] if hasattr(module, "norm_out") else module.norm.weight.shape[0]
    out, weights = [("image_proj." + k, s) for k, s in sorted(proj.items())], dict(unet.named_parameters())
    for i, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            width = weights[name.replace("processor", "to_k.weight")].shape[0]
            out += [(f"ip_adapter.{i}.to_{x}_ip.weight", [width, context]) for x in "kv"]
    return out


def conv_attention(name, shape):
    """The LDM form of the VAE's attention: 1x1 convolutions."""
    return list(shape) + [1, 1] if ".attentions." in name and len(shape) == 2 else list(shape)


def main():
    os.makedirs(OUT, exist_ok=True)
    with torch.device("meta"):
        unet2d = UNet2DConditionModel(  # the config.json of Stable Diffusion 1.5
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
        adapters = {n: MotionAdapter(motion_max_seq_length=length, use_motion_mid_block=mid)
                    for n, length, mid in (("v1", 24, False), ("v2", 32, True), ("v3", 32, False))}
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
                            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=512)
        control = ControlNetModel.from_unet(unet2d, load_weights_from_unet=False)
        sparse = {"rgb": SparseControlNetModel(), "scribble": SparseControlNetModel(conditioning_channels=3, use_simplified_condition_embedding=False)}
        t2i = {"full": T2IAdapter(), "light": T2IAdapter(channels=[320, 640, 1280], num_res_blocks=4, adapter_type="light_adapter")}
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(  # laion/CLIP-ViT-H-14-laion2B-s32B-b79K
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=224, patch_size=14,
            projection_dim=1024, hidden_act="gelu"))
        image_proj = ImageProjection(image_embed_dim=1024, cross_attention_dim=768, num_image_text_embeds=4)
        plus = IPAdapterPlusImageProjection(embed_dims=1280, output_dims=768, hidden_dims=768, heads=12, num_queries=16)
        full = IPAdapterFullImageProjection(image_embed_dim=1280, cross_attention_dim=768)
        text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                            num_attention_heads=12, max_position_embeddings=77, projection_dim=768))
    unet = shapes(unet2d)
    write("unet", unet, 686, 859_520_964)
    original = {"control_model." + ldm_control_net_key(k): v for k, v in control.state_dict().items()}
    back = convert_controlnet_checkpoint(dict(original), dict(control.config))
    assert set(back) == set(control.state_dict()) and all(back[k] is original["control_model." + ldm_control_net_key(k)] for k in back)
    control = shapes(control)
    write("control_net", control, 340, 361_279_120)
    write("control_net_ldm", [("control_model." + ldm_control_net_key(k), s) for k, s in control], 340)
    # AnimateDiff's v3_sd15_sparsectrl_{rgb,scribble}.ckpt, and TencentARC's t2iadapter_*_sd15v2 and t2iadapter_color_sd14v1
    for kind, count in (("rgb", 478), ("scribble", 492)):
        own = sparse[kind].state_dict()
        original = {original_sparse_key(k): v for k, v in own.items()}
        back = convert_animatediff_checkpoint_to_diffusers(dict(original))
        assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in own.items() if not k.endswith("pos_embed.pe")}
        plain = [(k, v.shape) for k, v in own.items() if not k.endswith("pos_embed.pe")]
        tables = [(k, v.shape) for k, v in own.items() if k.endswith("pos_embed.pe")]
        write(f"sparse_ctrl_{kind}", plain, count)
        write(f"sparse_ctrl_{kind}_animatediff", [(original_sparse_key(k), s) for k, s in plain + tables], count + 8)
    for kind, count in (("full", 38), ("light", 80)):
        write(f"t2i_adapter_{kind}", shapes(t2i[kind]), count)
        write(f"t2i_adapter_{kind}_original", [(original_t2i_key(k, kind == "light"), s) for k, s in shapes(t2i[kind])], count)
    # h94/IP-Adapter's models/: 44.6, 98.2 and 43.6 MB in float16
    write("ip_adapter", ip_adapter(unet2d, image_proj, lambda k: k.replace("image_embeds", "proj")), 36, 22_319_616)
    write("ip_adapter_plus", ip_adapter(unet2d, plus, plus_key, (".attn.to_k.weight", ".attn.to_v.weight")), 83, 49_087_488)
    write("ip_adapter_full", ip_adapter(unet2d, full, full_key), 38, 21_794_304)
    write("image_encoder", [(k, s) for k, s in shapes(vision)], 520, 632_076_800)
    vae = shapes(vae)
    write("vae", vae, 248, 83_653_863)
    write("vae_old", [(old_vae_key(k), s) for k, s in vae], 248)
    text = [("text_model." + k.removeprefix("text_model."), s) for k, s in shapes(text)]
    write("text_encoder", text, 196, 123_060_480)

    # motion modules
    motion = shapes(adapters["v2"])
    plain = [(k, s) for k, s in motion if not k.endswith("pos_embed.pe")]
    write("motion", plain, 546, 453_209_280)
    write("motion_adapter", plain + [(k, s) for k, s in motion if k.endswith("pos_embed.pe")], 567)
    write("motion_animatelcm", [(original_motion_key(k), s) for k, s in plain], 546)
    # what AnimateLCM-I2V's file has beside them
    with torch.device("meta"):
        encoder = shapes(Encoder(4, (320, 640, 1280, 1280)))
    write("i2v_encoder", [("img_encoder." + k, s) for k, s in encoder], 38, 76_827_840)
    for version, count in (("v1", 520 + 40), ("v2", 546 + 42), ("v3", 520 + 40)):
        all_ = shapes(adapters[version])
        original = [(original_motion_key(k), s) for k, s in all_ if original_motion_key(k)]
        tables = [(p, s) for k, s in all_ if k.endswith("pos_embed.pe") for p in original_position_keys(k)]
        write(f"motion_animatediff_{version}", original + tables, count)

    # one file, LDM names; then what its trainer left in it
    write("ldm", [("model.diffusion_model." + ldm_unet_key(k), s) for k, s in unet]
          + [("first_stage_model." + ldm_vae_key(k, 4), conv_attention(k, s)) for k, s in vae]
          + [("cond_stage_model.transformer." + k, s) for k, s in text], 1130)
    buffers = ("betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod log_one_minus_alphas_cumprod "
               "sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance posterior_log_variance_clipped "
               "posterior_mean_coef1 posterior_mean_coef2").split()
    ema = [("model_ema." + ("diffusion_model." + ldm_unet_key(k)).replace(".", ""), s) for k, s in unet]
    write("ldm_ignored", [(b, [1000]) for b in buffers] + [("model_ema.decay", []), ("model_ema.num_updates", []),
          ("cond_stage_model.transformer.text_model.embeddings.position_ids", [1, 77])] + ema, 15 + 686)

    # latent-consistency/lcm-lora-sdv1-5 and AnimateLCM's: rank 64 over 278 modules
    leaves = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "time_emb_proj",
              "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
    lora, rank = [], 64
    for k, s in unet:
        module = k.removesuffix(".weight")
        if module != k and module.endswith(leaves):
            key = kohya_key(module)
            lora += [(key + ".lora_down.weight", [rank, *s[1:]]), (key + ".lora_up.weight", [s[0], rank] + [1] * (len(s) - 2)),
                     (key + ".alpha", [])]
    write("lora_lcm", lora, 278 * 3, 67_252_224 + 278)


if __name__ == "__main__":
    main()
