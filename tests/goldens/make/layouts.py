#!/usr/bin/env python3
"""Writes the tiny model in every layout that people publish, below ../layouts.

Pinned: torch 2.15.0, safetensors 0.8.0, numpy 2.4.6 (`requirements.txt`). Reads ../tiny/model, made by make_goldens.py.

    python layouts.py

Every file holds the very same float16 values as ../tiny/model, so every combination must give bit-identical results. Position
tables are the exception: they are recomputed, never read.

`layouts.json` says how to put complete models together from these files and from ../tiny:

    bases:   name -> {"files": {place in the assembled folder: path below tests/goldens}, "note": ...}
    motions: the same for motion modules; "mid": whether the middle module is there
"""
import collections
import json
import os
import shutil
import sys
import types

import numpy as np
import torch
from keys import ldm_unet_key, ldm_vae_key, old_vae_key, original_motion_key, original_position_keys
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDENS = os.path.dirname(HERE)
MODEL, OUT = f"{GOLDENS}/tiny/model", f"{GOLDENS}/layouts"
VAE_LEVELS = 3


def pytorch_lightning():
    """A stand-in for the class whose *name* the pickles of the original Stable Diffusion contain."""
    names = "pytorch_lightning pytorch_lightning.callbacks pytorch_lightning.callbacks.model_checkpoint".split()
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    cls = type("ModelCheckpoint", (), {"__module__": names[-1]})
    sys.modules[names[-1]].ModelCheckpoint = cls
    return cls


def ldm(unet, vae, text, *, text_prefix="text_model."):
    out = {"model.diffusion_model." + ldm_unet_key(k): w for k, w in unet.items()}
    for k, w in vae.items():
        out["first_stage_model." + ldm_vae_key(k, VAE_LEVELS)] = w[:, :, None, None] if ".attentions." in k and w.ndim == 2 else w
    for k, w in text.items():
        out["cond_stage_model.transformer." + text_prefix + k.removeprefix("text_model.")] = w
    return out


def taesd_layers(blocks, width, is_decoder):
    """The layers of madebyollin/taesd's taesd.py, whose positions are the names in its files."""
    conv = lambda inputs, outputs, **more: torch.nn.Conv2d(inputs, outputs, 3, padding=1, **more)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            relu = torch.nn.ReLU()
            self.conv = torch.nn.Sequential(conv(width, width), relu, conv(width, width), relu, conv(width, width))

        def forward(self, x):
            return (self.conv(x) + x).relu()

    class Clamp(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(x / 3) * 3

    layers = [Clamp(), conv(4, width), torch.nn.ReLU()] if is_decoder else []
    for i, count in enumerate(blocks):
        if not is_decoder:
            layers.append(conv(width, width, stride=2, bias=False) if i else conv(3, width))
        layers += [Block() for _ in range(count)]
        if is_decoder and i + 1 < len(blocks):
            layers += [torch.nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
    return torch.nn.Sequential(*layers, conv(width, 3 if is_decoder else 4)).eval()


def taesd():
    """The tiny TAESD as two files under its author's names, which give what diffusers' class gave."""
    weights = load_file(f"{GOLDENS}/tiny/extras/taesd/diffusion_pytorch_model.safetensors")
    kl = load_file(f"{GOLDENS}/tiny/cases/vae.safetensors")
    want = load_file(f"{GOLDENS}/tiny/cases/taesd.safetensors")
    for half, first, blocks in (("encoder", 0, (1, 2, 2)), ("decoder", 1, (2, 2, 1))):
        renamed = {}
        for name, weight in weights.items():
            if name.startswith(f"{half}.layers."):
                layer, rest = name.removeprefix(f"{half}.layers.").split(".", 1)
                renamed[f"{int(layer) + first}.{rest}"] = weight.contiguous()
        network = taesd_layers(blocks, 6, half == "decoder")
        network.load_state_dict({k: v.float() for k, v in renamed.items()}, strict=True)
        with torch.no_grad():
            if half == "decoder":
                got, wanted = network(kl["z"][:1].float()) * 2 - 1, want["dec"]
            else:
                got, wanted = network(kl["img"].float() / 2 + 0.5), want["enc"]
        torch.testing.assert_close(got, wanted.float(), rtol=1e-4, atol=1e-5)
        save_file(renamed, f"{OUT}/taesd_{half}.safetensors")


def ldm_buffers():
    """What an LDM checkpoint carries beside weights: the noise tables of its trainer (twelve of 1000; four here, of 10)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 10, dtype=torch.float64) ** 2
    bar = torch.cumprod(1 - betas, 0)
    return {
        "betas": betas.float(), "alphas_cumprod": bar.float(),
        "sqrt_alphas_cumprod": bar.sqrt().float(), "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt().float(),
        "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(470000, dtype=torch.int32),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }


def ema(tensors):
    """EMA copies, named as LitEma names them. The values are wrong on purpose: nobody may read them."""
    keys = [k for k, w in tensors.items() if k.startswith("model.diffusion_model.") and w.ndim == 1][:150]
    return {"model_ema." + k.removeprefix("model.").replace(".", ""): -3 * tensors[k] for k in keys}


def save(tensors, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({k: w.contiguous().clone() for k, w in tensors.items()}, path, metadata={"format": "pt"})


def save_pickle(obj, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)

    def own(x):  # every tensor owns its storage, as in published files
        if isinstance(x, torch.Tensor):
            return x.contiguous().clone()
        return type(x)((k, own(v)) for k, v in x.items()) if isinstance(x, dict) else x

    torch.save(own(obj), path)


def save_sharded(tensors, folder, stem, shards):
    """from_pretrained's shards: `stem-0000i-of-0000n.safetensors` and an index."""
    os.makedirs(folder)
    names = list(tensors)
    per = -(-len(names) // shards)
    weight_map, total = {}, 0
    for i in range(shards):
        file = f"{stem}-{i + 1:05}-of-{shards:05}.safetensors"
        part = {k: tensors[k] for k in names[i * per : (i + 1) * per]}
        save(part, f"{folder}/{file}")
        weight_map |= dict.fromkeys(part, file)
        total += sum(w.numel() * w.element_size() for w in part.values())
    with open(f"{folder}/{stem}.safetensors.index.json", "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, f, indent=1, sort_keys=True)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    unet = load_file(f"{MODEL}/unet/diffusion_pytorch_model.safetensors")
    vae = load_file(f"{MODEL}/vae/diffusion_pytorch_model.safetensors")
    text = load_file(f"{MODEL}/text_encoder/model.safetensors")
    motion = load_file(f"{MODEL}/motion_adapter/diffusion_pytorch_model.safetensors")
    assert all(k.startswith("text_model.") for k in text)
    bare_text = {k.removeprefix("text_model."): w for k, w in text.items()}

    # ---- single files
    whole = ldm(unet, vae, text)
    save(whole | ldm_buffers(), f"{OUT}/ldm.safetensors")
    checkpoint = pytorch_lightning()
    save_pickle(
        {
            "epoch": 6,
            "global_step": 470000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": collections.OrderedDict(whole | ldm_buffers() | ema(whole)),
            "callbacks": {checkpoint: {"monitor": None, "best_model_score": np.float64(0.25), "dirpath": "logs", "current_score": None}},
            "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}],
            "lr_schedulers": [{"last_epoch": 470000, "_get_lr_called_within_step": False}],
        },
        f"{OUT}/ldm.ckpt",
    )
    # no VAE, and the text encoder without its `text_model.` level
    save(ldm(unet, {}, text, text_prefix=""), f"{OUT}/ldm_novae.safetensors")

    # ---- parts of a diffusers folder
    save_pickle(text, f"{OUT}/text_encoder.bin")
    save_pickle(vae, f"{OUT}/vae.bin")
    save(bare_text, f"{OUT}/text_encoder_bare.safetensors")
    save({old_vae_key(k): w for k, w in vae.items()}, f"{OUT}/vae_old_linear.safetensors")
    save({old_vae_key(k): (w[:, :, None, None] if ".attentions." in k and w.ndim == 2 else w) for k, w in vae.items()},
         f"{OUT}/vae_old_conv.safetensors")
    assert sum(".query." in old_vae_key(k) for k in vae) == 4
    taesd()
    # UNetMotionModel: both in one, in three shards; the position tables rounded to float16 as published files have them
    both = dict(sorted({**unet, **{k: w.half() for k, w in motion.items()}}.items()))
    save_sharded(both, f"{OUT}/unet_motion", "diffusion_pytorch_model.fp16", 3)
    os.rename(f"{OUT}/unet_motion/diffusion_pytorch_model.fp16.safetensors.index.json",
              f"{OUT}/unet_motion/diffusion_pytorch_model.safetensors.index.fp16.json")
    for file in sorted(os.listdir(f"{OUT}/unet_motion")):  # the variant stands before the shard's number
        assert file.startswith("diffusion_pytorch_model."), file
    config = json.load(open(f"{MODEL}/unet/config.json"))
    adapter = json.load(open(f"{MODEL}/motion_adapter/config.json"))
    motion_config = {
        "_class_name": "UNetMotionModel", "_diffusers_version": config["_diffusers_version"],
        **{k: config[k] for k in ("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "downsample_padding",
                                  "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim")},
        "down_block_types": ["CrossAttnDownBlockMotion"] * 3 + ["DownBlockMotion"],
        "up_block_types": ["UpBlockMotion"] + ["CrossAttnUpBlockMotion"] * 3,
        "num_attention_heads": config["attention_head_dim"],
        "motion_num_attention_heads": adapter["motion_num_attention_heads"],
        "motion_max_seq_length": adapter["motion_max_seq_length"],
        "use_motion_mid_block": adapter["use_motion_mid_block"],
        "use_linear_projection": False, "time_cond_proj_dim": None, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    }
    with open(f"{OUT}/unet_motion/config.json", "w") as f:
        json.dump(motion_config, f, indent=1)

    # ---- motion modules under their original names
    original = {original_motion_key(k): w for k, w in motion.items() if original_motion_key(k)}
    tables = {p: motion[k] for k in motion if k.endswith("pos_embed.pe") for p in original_position_keys(k)}
    save(original, f"{OUT}/motion_lcm.safetensors")  # AnimateLCM: no position tables
    save_pickle(collections.OrderedDict(original), f"{OUT}/motion_lcm.ckpt")
    with_tables = original | tables
    save_pickle({"epoch": 1, "global_step": 60000, "state_dict": {"module." + k: w.half() for k, w in with_tables.items()}},
                f"{OUT}/motion_v2.ckpt")  # AnimateDiff v2
    no_mid = {k: w for k, w in with_tables.items() if not k.startswith("mid_block")}
    save(no_mid, f"{OUT}/motion_v3.safetensors")  # AnimateDiff v1, v3: none in the middle

    # ---- pickles that are unusual but honest
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    views = {"whole": base, "rows": base[1:3], "columns": base[:, 2:5], "transposed": base.t(), "last": base.reshape(-1)[23:],
             "bf16": base[0].bfloat16(), "f64": base[1].double(), "i64": torch.arange(3), "u8": torch.arange(5, dtype=torch.uint8),
             "flag": torch.tensor([True, False]), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3),
             "parameter": torch.nn.Parameter(base[0].clone())}
    torch.save(views, f"{OUT}/pickle_views.pt")  # several views of one storage, offsets, strides
    # safetensors has what they must read as
    save({k: w.detach() for k, w in views.items()}, f"{OUT}/pickle_views.safetensors")
    torch.save({"w": base.half()}, f"{OUT}/pickle_legacy.pt", _use_new_zipfile_serialization=False)

    # ---- how to assemble
    m = "tiny/model"
    common = {f"{d}": f"{m}/{d}" for d in (
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json", "unet/config.json", "vae/config.json",
        "text_encoder/config.json")}
    U, V, T = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"
    plain = {f"{U}.safetensors": f"{m}/{U}.safetensors", f"{V}.safetensors": f"{m}/{V}.safetensors", f"{T}.safetensors": f"{m}/{T}.safetensors"}

    shards = {f"unet/{f}": f"layouts/unet_motion/{f}" for f in sorted(os.listdir(f"{OUT}/unet_motion"))}
    bases = {
        "folder": {"files": {**common, **plain}, "note": "diffusers folder, safetensors"},
        "folder_fp16": {"files": {**common, **{k.replace(".safetensors", ".fp16.safetensors"): v for k, v in plain.items()}},
                        "note": "only files of the fp16 variant"},
        "folder_bin": {"files": {**common, f"{U}.safetensors": plain[f"{U}.safetensors"], f"{V}.bin": "layouts/vae.bin",
                                 "text_encoder/pytorch_model.bin": "layouts/text_encoder.bin"}, "note": "VAE and text encoder as pickles (the UNet's would only be large)"},
        "folder_text_bare": {"files": {**common, **plain, f"{T}.safetensors": "layouts/text_encoder_bare.safetensors"},
                             "note": "text encoder saved by transformers >= 5.6: no `text_model.`"},
        "folder_old_vae_linear": {"files": {**common, **plain, f"{V}.safetensors": "layouts/vae_old_linear.safetensors"},
                                  "note": "VAE attention named query, key, value, proj_attn"},
        "folder_old_vae_conv": {"files": {**common, **plain, f"{V}.safetensors": "layouts/vae_old_conv.safetensors"},
                                "note": "the same with 1x1 convolutions"},
        "folder_unet_motion_sharded": {
            "files": {k: v for k, v in {**common, **plain}.items() if not k.startswith("unet/")} | shards,
            "motion": True, "note": "UNetMotionModel as unet/: motion inside, fp16 variant in three shards with an index"},
        "single_safetensors": {"files": {"checkpoint.safetensors": "layouts/ldm.safetensors"}, "over": "folder",
                               "note": "LDM names, with the trainer's buffers; sizes that its shapes do not tell come from `over`"},
        "single_ckpt": {"files": {"checkpoint.ckpt": "layouts/ldm.ckpt"}, "over": "folder",
                        "note": "pickle with `state_dict`, wrong EMA copies, Lightning's extras"},
        "single_novae": {"files": {"checkpoint.safetensors": "layouts/ldm_novae.safetensors"}, "over": "folder",
                         "note": "no VAE; the text encoder's names lack `text_model.`"},
    }
    motions = {
        "adapter": {"files": {"motion/config.json": f"{m}/motion_adapter/config.json",
                              "motion/diffusion_pytorch_model.safetensors": f"{m}/motion_adapter/diffusion_pytorch_model.safetensors"},
                    "mid": True, "note": "diffusers MotionAdapter folder"},
        "lcm_safetensors": {"files": {"motion.safetensors": "layouts/motion_lcm.safetensors"}, "mid": True,
                            "note": "AnimateLCM names, no position tables"},
        "lcm_ckpt": {"files": {"motion.ckpt": "layouts/motion_lcm.ckpt"}, "mid": True, "note": "the same as a flat pickle"},
        "v2_ckpt": {"files": {"motion.ckpt": "layouts/motion_v2.ckpt"}, "mid": True,
                    "note": "AnimateDiff v2: `state_dict`, `module.`, position tables"},
        "v3_safetensors": {"files": {"motion.safetensors": "layouts/motion_v3.safetensors"}, "mid": False,
                           "note": "AnimateDiff v1/v3: position tables, none in the middle (cases/unet_no_mid)"},
    }
    for group in (bases, motions):
        for entry in group.values():
            for src in entry["files"].values():
                assert os.path.isfile(f"{GOLDENS}/{src}"), src
    with open(f"{OUT}/layouts.json", "w") as f:
        json.dump({"bases": bases, "motions": motions}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
