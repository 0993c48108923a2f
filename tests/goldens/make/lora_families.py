#!/usr/bin/env python3
"""Writes adapters of every family for a few layers of the tiny model, and the weights they must lead to, to ../lora/families.

Pinned: lycoris-lora 4.1.3, peft 0.21.2 (`requirements.txt`). Reads ../tiny, made by make_goldens.py.

    python lora_families.py

Every tensor is random, ranks, alphas and sizes differ. What a lycoris module changes is what its forward pass hands to its layer's
operator, not what its `merge_to` writes: that one multiplies the factor of LoHa and LoKr in twice. What a peft layer changes is what
its `merge` writes.

At strengths other than 1 the packages disagree with each other, and some change weights at strength 0. Here strength 0 always means
no change:

    families that add, DoRA and all of peft   W + s * (W'(1) - W)
    OFT, BOFT                                 lycoris with multiplier s, and with 1 + s * (rescale - 1) for its rescale
    all others                                lycoris with multiplier s

LyCORIS writes what a low-rank extraction misses as sparse values beside it and has no code that reads them; AUTOMATIC1111's web UI
adds them to the product. Here torch does.

peft multiplies BOFT's stages only where its CUDA extension can be built; `butterfly` puts torch's block_diag in the extension's place.

../lora/families/CASE.safetensors       a file of that case in Kohya's names; peft's cases are folders as `save_pretrained` writes them
../lora/families/weights.safetensors    CASE/STRENGTH/diffusers weight name -> W' (float32)
../lora/families/families.json          strengths; per case its family, file and the weights that change
"""
import json
import os
import shutil
import zlib

import torch
from keys import kohya_key
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from peft import BOFTConfig, HRAConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model
from peft.tuners.boft import layer as boft
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDENS = os.path.dirname(HERE)
TINY, OUT = f"{GOLDENS}/tiny", f"{GOLDENS}/lora/families"
STRENGTHS = [1.0, 0.6]

LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"  # 16 x 12, no bias
FEED = "up_blocks.3.attentions.0.transformer_blocks.0.ff.net.2"  # 8 x 32
TIME = "down_blocks.1.resnets.0.time_emb_proj"  # 16 x 32
MOTION = "mid_block.motion_modules.0.transformer_blocks.0.ff.net.2"  # 16 x 64
TEXT = "text_model.encoder.layers.0.mlp.fc1"  # 24 x 12
CONV = "down_blocks.1.resnets.0.conv1"  # 16 x 8 x 3 x 3
WIDE = "up_blocks.3.resnets.0.conv1"  # 8 x 24 x 3 x 3
POINT = "down_blocks.1.resnets.0.conv_shortcut"  # 16 x 8 x 1 x 1
GROUP = "up_blocks.3.resnets.0.norm1"  # 24
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.norm2"  # 16
TEXT_NORM = "text_model.encoder.layers.1.layer_norm1"  # 12

LOHA = [
    (LINEAR, LohaModule, dict(lora_dim=3, alpha=1.5)),
    (TIME, LohaModule, dict(lora_dim=2, alpha=0)),
    (CONV, LohaModule, dict(lora_dim=2, alpha=5)),
    (WIDE, LohaModule, dict(lora_dim=3, alpha=2, use_tucker=True)),
    (TEXT, LohaModule, dict(lora_dim=4, alpha=1)),
]
LOKR = [
    (LINEAR, LokrModule, dict(lora_dim=1, alpha=0.7, factor=4)),
    (TIME, LokrModule, dict(lora_dim=3, alpha=1, factor=2)),
    (MOTION, LokrModule, dict(lora_dim=3, alpha=2, factor=8, decompose_both=True)),
    (FEED, LokrModule, dict(lora_dim=5, alpha=2, factor=2, full_matrix=True)),
    (WIDE, LokrModule, dict(lora_dim=3, alpha=4, factor=2)),
    (CONV, LokrModule, dict(lora_dim=3, alpha=2, factor=2, use_tucker=True)),
    (POINT, LokrModule, dict(lora_dim=9, alpha=2, factor=2, full_matrix=True)),
    (TEXT, LokrModule, dict(lora_dim=2, alpha=0, factor=3)),
]
DORA = [
    (LINEAR, LoConModule, dict(lora_dim=3, alpha=1.5)),
    (FEED, LoConModule, dict(lora_dim=2, alpha=1, wd_on_out=False)),
    (CONV, LoConModule, dict(lora_dim=4, alpha=3)),
    (WIDE, LoConModule, dict(lora_dim=3, alpha=2, wd_on_out=False, use_tucker=True)),
    (TIME, LohaModule, dict(lora_dim=2, alpha=1)),
    (MOTION, LokrModule, dict(lora_dim=3, alpha=2, factor=8, wd_on_out=False)),
    (TEXT, LoConModule, dict(lora_dim=2, alpha=0)),
]
IA3 = [
    (LINEAR, IA3Module, dict(train_on_input=True)),
    (TIME, IA3Module, dict()),
    (CONV, IA3Module, dict()),
    (WIDE, IA3Module, dict(train_on_input=True)),
    (TEXT, IA3Module, dict()),
]
OFT = [
    (LINEAR, DiagOFTModule, dict(lora_dim=2)),
    (CONV, DiagOFTModule, dict(lora_dim=2, constraint=0.03)),  # bites
    (WIDE, DiagOFTModule, dict(lora_dim=2, rescaled=True)),
    (MOTION, DiagOFTModule, dict(lora_dim=4, constraint=9)),  # does not
    (TEXT, DiagOFTModule, dict(lora_dim=4, rescaled=True, constraint=0.05)),
]
BOFT = [
    (LINEAR, ButterflyOFTModule, dict(lora_dim=4)),
    (CONV, ButterflyOFTModule, dict(lora_dim=2, rescaled=True)),
    (TEXT, ButterflyOFTModule, dict(lora_dim=6, constraint=0.05)),
]
FULL = [
    (LINEAR, FullModule, dict()),
    (FEED, FullModule, dict()),
    (CONV, FullModule, dict()),
    (TEXT, FullModule, dict()),
    (GROUP, NormModule, dict()),
    (LAYER, NormModule, dict()),
    (TEXT_NORM, NormModule, dict()),
]
GLORA = [
    (LINEAR, GLoRAModule, dict(lora_dim=3, alpha=1.5)),
    (MOTION, GLoRAModule, dict(lora_dim=4, alpha=0)),
    (WIDE, GLoRAModule, dict(lora_dim=2, alpha=3)),
    (POINT, GLoRAModule, dict(lora_dim=5, alpha=2)),
    (TEXT, GLoRAModule, dict(lora_dim=2, alpha=1)),
]
SPARSE = [
    (LINEAR, LoConModule, dict(lora_dim=3, alpha=1.5)),
    (CONV, LoConModule, dict(lora_dim=2, alpha=1, use_tucker=True)),
]
CASES = {
    "loha": ("LoHa", LOHA),
    "lokr": ("LoKr", LOKR),
    "dora": ("DoRA", DORA),
    "ia3": ("IA3", IA3),
    "oft": ("OFT", OFT),
    "boft": ("BOFT", BOFT),
    "full": ("full", FULL),
    "glora": ("GLoRA", GLORA),
    "sparse": ("LoRA", SPARSE),
}
EVERYWHERE = [LINEAR, FEED, CONV, MOTION]
PEFT = {
    "peft_dora": ("DoRA", LoraConfig, dict(r=3, lora_alpha=2, use_dora=True), [LINEAR, CONV, MOTION]),
    "peft_bias": ("LoRA", LoraConfig, dict(r=2, lora_alpha=3, lora_bias=True), [FEED, CONV]),
    "peft_loha": ("LoHa", LoHaConfig, dict(r=3, alpha=2, use_effective_conv2d=True), [LINEAR, WIDE]),
    "peft_lokr": ("LoKr", LoKrConfig, dict(r=2, alpha=5, decompose_factor=2, use_effective_conv2d=True), [TIME, CONV, POINT]),
    "peft_ia3": ("IA3", IA3Config, dict(feedforward_modules=[FEED, WIDE]), [LINEAR, FEED, CONV, WIDE, TIME]),
    "peft_oft": ("OFT", OFTConfig, dict(oft_block_size=4, init_weights=False), EVERYWHERE),
    "peft_oft_exact": ("OFT", OFTConfig, dict(oft_block_size=4, use_cayley_neumann=False, coft=True, eps=2.0), EVERYWHERE),
    "peft_oft_shared": ("OFT", OFTConfig, dict(r=4, oft_block_size=0, block_share=True, num_cayley_neumann_terms=3), EVERYWHERE),
    "peft_boft": ("BOFT", BOFTConfig, dict(boft_block_size=4), EVERYWHERE),
    "peft_boft_stages": ("BOFT", BOFTConfig, dict(boft_block_size=4, boft_n_butterfly_factor=2), [FEED, CONV, MOTION]),
    "peft_hra": ("HRA", HRAConfig, dict(r=3), EVERYWHERE),
    "peft_hra_orthogonal": ("HRA", HRAConfig, dict(r=3, apply_GS=True), EVERYWHERE),
}
PARTS = ("lora_", "hada_", "lokr_", "ia3_l", "oft_R", "boft_", "hra_u")
RANKED = (LoraConfig, LoHaConfig, LoKrConfig)


def weights():
    tensors = load_file(f"{TINY}/model/unet/diffusion_pytorch_model.safetensors")
    tensors |= load_file(f"{TINY}/model/motion_adapter/diffusion_pytorch_model.safetensors")
    tensors |= load_file(f"{TINY}/model/text_encoder/model.safetensors")
    return {name: tensor.float() for name, tensor in tensors.items()}


def layer(tensors, module):
    """The torch layer of that name, and an input for it."""
    weight, bias = tensors[f"{module}.weight"], tensors.get(f"{module}.bias")
    if weight.ndim == 4:
        made = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=bias is not None)
        x = torch.randn(2, weight.shape[1], 4, 5)
    elif weight.ndim == 2:
        made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        x = torch.randn(2, weight.shape[1])
    elif "resnets" in module:
        made, x = torch.nn.GroupNorm(4, len(weight)), torch.randn(2, len(weight), 3, 3)
    else:
        made, x = torch.nn.LayerNorm(len(weight)), torch.randn(2, len(weight))
    made.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return made.requires_grad_(False), x


def randomize(module, seed):
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        # Magnitudes and rescalings lie around what they start from.
        around = parameter if any(part in name for part in ("dora_scale", "rescale", "magnitude", "ia3_l", "boft_s")) else 0
        parameter.data = around + 0.4 * noise


def change(adapter, x, strength):
    """What the adapter adds to its layer's weight and bias when it runs."""
    taken, op = {}, adapter.op

    def spy(x, weight=None, bias=None, **others):
        taken.update(weight=weight, bias=bias)
        return op(x, weight=weight, bias=bias, **others)

    adapter.multiplier, adapter.op = strength, spy
    adapter.forward(x)
    adapter.op = op
    return taken["weight"].clone(), taken["bias"]


def lycoris_case(name, modules, tensors):
    stored, results = {}, {}
    for module, kind, options in modules:
        base, x = layer(tensors, module)
        if name == "dora":
            options = options | {"weight_decompose": True}
        adapter = kind("", base, **options)
        randomize(adapter, f"{name}.{module}")
        key = "lora_te_" + module.replace(".", "_") if module == TEXT or module == TEXT_NORM else kohya_key(module)
        if kind is FullModule:
            adapter.bias = None if base.bias is None else adapter.bias
            state = {"diff": adapter.weight} | ({} if adapter.bias is None else {"diff_b": adapter.bias})
        else:
            state = adapter.state_dict()
        if options.get("alpha") == 0:
            del state["alpha"]
        stray = None
        if name == "sparse":
            flat = torch.randn(base.weight.flatten(1).shape)
            stray = (flat * (flat.abs() > 1.5)).half()
            parts = stray.to_sparse().coalesce()
            state |= {"bias_indices": parts.indices().short(), "bias_values": parts.values()}
            state["bias_size"] = torch.tensor(stray.shape).short()
        stored |= {f"{key}.{part}": value.detach().clone().contiguous() for part, value in state.items()}
        for strength in STRENGTHS:
            with torch.no_grad():
                if name == "dora":
                    delta, bias = change(adapter, x, 1.0)
                    delta = strength * delta
                elif getattr(adapter, "rescaled", False):
                    rescale = adapter.rescale.data
                    adapter.rescale.data = 1 + strength * (rescale - 1)
                    delta, bias = change(adapter, x, strength)
                    adapter.rescale.data = rescale
                else:
                    delta, bias = change(adapter, x, strength)
            if stray is not None:
                delta = delta + strength * adapter.scale * stray.float().reshape(delta.shape)
            results[f"{name}/{strength}/{module}.weight"] = base.weight + delta
            if bias is not None:
                results[f"{name}/{strength}/{module}.bias"] = base.bias + bias
    save_file(stored, f"{OUT}/{name}.safetensors", metadata={"format": "pt"})
    return results


class BlockDiagonal:
    """What peft's CUDA extension does."""

    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*stage) for stage in blocks])


def butterfly():
    boft.get_fbd_cuda = lambda: True
    boft.FastBlockDiag = BlockDiagonal


def peft_case(name, config, options, modules, tensors):
    root = torch.nn.Module()
    for module in modules:
        *parents, leaf = module.split(".")
        at = root
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, torch.nn.Module())
            at = getattr(at, parent)
        at.add_module(leaf, layer(tensors, module)[0])
    patterns = {"rank_pattern": {modules[-1]: 4}, "alpha_pattern": {modules[0]: 1}} if config in RANKED else {}
    model = get_peft_model(root, config(target_modules=modules, **options, **patterns))
    randomize(torch.nn.ParameterDict({
        k.replace(".", "/"): v for k, v in model.named_parameters() if any(part in k for part in PARTS)
    }), name)
    folder = f"{OUT}/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    os.remove(f"{folder}/README.md")
    with open(f"{folder}/adapter_config.json") as f:
        told = json.load(f)
    for names in ("target_modules", "feedforward_modules"):
        if names in told:
            told[names].sort()  # a set: in another order every time
    with open(f"{folder}/adapter_config.json", "w") as f:
        json.dump(told, f, indent=1)
        f.write("\n")
    results = {}
    merged = dict(model.merge_and_unload().named_parameters())
    for key, value in merged.items():
        before = tensors[key]
        if torch.equal(before, value):
            continue
        for strength in STRENGTHS:
            results[f"{name}/{strength}/{key}"] = before + strength * (value.detach() - before)
    return results


def main():
    torch.manual_seed(0)
    os.makedirs(OUT, exist_ok=True)
    butterfly()
    tensors = weights()
    results, about = {}, {}
    for name, (family, modules) in CASES.items():
        results |= lycoris_case(name, modules, tensors)
        about[name] = {"family": family, "file": f"{name}.safetensors"}
    for name, (family, config, options, modules) in PEFT.items():
        results |= peft_case(name, config, options, modules, tensors)
        about[name] = {"family": family, "file": f"{name}/adapter_model.safetensors"}
    for name, case in about.items():
        prefix = f"{name}/{STRENGTHS[0]}/"
        case["changes"] = [key.removeprefix(prefix) for key in results if key.startswith(prefix)]
    for key, value in results.items():
        assert value.isfinite().all(), key
    save_file({k: v.detach().float().contiguous() for k, v in results.items()}, f"{OUT}/weights.safetensors")
    with open(f"{OUT}/families.json", "w") as f:
        json.dump({"strengths": STRENGTHS, "cases": about}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
