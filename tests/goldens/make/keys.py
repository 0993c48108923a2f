"""The names that other tools give to the tensors of a diffusers SD1.5 model. No dependencies."""


def ldm_unet_key(k, layers=2):
    """diffusers UNet2DConditionModel name -> LDM name below `model.diffusion_model.`"""
    top = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for a, b in top.items():
        if k.startswith(a + "."):
            return b + k[len(a) :]
    p = k.split(".")

    def res(rest):
        m = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
             "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
        return ".".join([m[rest[0]]] + rest[1:])

    if p[0] == "mid_block":
        kind, j, rest = p[1], int(p[2]), p[3:]
        return f"middle_block.{0 if j == 0 else 2}.{res(rest)}" if kind == "resnets" else f"middle_block.1.{'.'.join(rest)}"
    i, kind, j, rest = int(p[1]), p[2], int(p[3]), p[4:]
    if p[0] == "down_blocks":
        n = 1 + (layers + 1) * i + j
        if kind == "resnets":
            return f"input_blocks.{n}.0.{res(rest)}"
        if kind == "attentions":
            return f"input_blocks.{n}.1.{'.'.join(rest)}"
        return f"input_blocks.{(layers + 1) * (i + 1)}.0.op.{rest[-1]}"
    n = (layers + 1) * i + j
    if kind == "resnets":
        return f"output_blocks.{n}.0.{res(rest)}"
    if kind == "attentions":
        return f"output_blocks.{n}.1.{'.'.join(rest)}"
    return f"output_blocks.{(layers + 1) * i + layers}.{1 if i == 0 else 2}.conv.{rest[-1]}"


def ldm_control_net_key(k, hint_blocks=6, layers=2):
    """diffusers ControlNetModel name -> LDM name below `control_model.`; every second layer of the hint network is an activation"""
    head, tail = k.split(".", 1)
    if head == "controlnet_cond_embedding":
        p = tail.split(".")
        n = {"conv_in": 0, "conv_out": 2 * (hint_blocks + 1)}.get(p[0])
        return f"input_hint_block.{2 * (int(p[1]) + 1) if n is None else n}.{p[-1]}"
    if head == "controlnet_down_blocks":
        n, leaf = tail.split(".")
        return f"zero_convs.{n}.0.{leaf}"
    if head == "controlnet_mid_block":
        return f"middle_block_out.0.{tail}"
    return ldm_unet_key(k, layers)


def ldm_vae_key(k, levels):
    """diffusers AutoencoderKL name -> LDM name below `first_stage_model.`; attention weights there are [C, C, 1, 1]."""
    if k.startswith(("quant_conv", "post_quant_conv")):
        return k
    side, rest = k.split(".", 1)
    rest = rest.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    p = rest.split(".")
    if p[0] == "mid_block":
        if p[1] == "resnets":
            return f"{side}.mid.block_{int(p[2]) + 1}." + ".".join(p[3:])
        m = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
        return f"{side}.mid.attn_1.{m[p[3]]}.{p[-1]}"
    if p[0] in ("down_blocks", "up_blocks"):
        up = p[0] == "up_blocks"
        i = levels - 1 - int(p[1]) if up else int(p[1])
        if p[2] == "resnets":
            return f"{side}.{'up' if up else 'down'}.{i}.block.{p[3]}." + ".".join(p[4:])
        return f"{side}.{'up' if up else 'down'}.{i}.{'upsample' if up else 'downsample'}.conv.{p[-1]}"
    return f"{side}.{rest}"


def old_vae_key(k):
    """Today's AutoencoderKL name -> the name before diffusers 0.18."""
    if ".attentions." not in k:
        return k
    for a, b in [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")]:
        k = k.replace(a, b)
    return k


def original_motion_key(k):
    """diffusers MotionAdapter name -> AnimateDiff/AnimateLCM name; None for position tables."""
    if "pos_embed" in k:
        return None
    head, tail = k.split(".motion_modules.")
    n, tail = tail.split(".", 1)
    for a, b in [(".norm1.", ".norms.0."), (".norm2.", ".norms.1."), (".norm3.", ".ff_norm."),
                 (".attn1.", ".attention_blocks.0."), (".attn2.", ".attention_blocks.1.")]:
        tail = tail.replace(a, b)
    return f"{head}.motion_modules.{n}.temporal_transformer.{tail}"


def original_position_keys(k):
    """diffusers MotionAdapter `pos_embed.pe` name -> the two tables that AnimateDiff stores for it."""
    head, tail = k.split(".motion_modules.")
    n = tail.split(".", 1)[0]
    block = f"{head}.motion_modules.{n}.temporal_transformer.transformer_blocks.0.attention_blocks"
    return [f"{block}.{a}.pos_encoder.pe" for a in (0, 1)]


def original_sparse_key(k):
    """diffusers SparseControlNetModel name -> AnimateDiff name."""
    if ".motion_modules." not in k:
        return k
    if k.endswith("pos_embed.pe"):
        head, tail = k.split(".motion_modules.")
        block = f"{head}.motion_modules.{tail.split('.', 1)[0]}.temporal_transformer.transformer_blocks.0"
        return f"{block}.attention_blocks.0.pos_encoder.pe"
    return original_motion_key(k)


def original_t2i_key(k, light, layers=2):
    """diffusers T2IAdapter name -> TencentARC name; a full adapter's layers are numbered through all stages there."""
    k = k.removeprefix("adapter.")
    if light or not k.startswith("body."):
        return k.replace(".resnets.", ".body.")
    _, stage, kind, rest = k.split(".", 3)
    if kind == "in_conv":
        return f"body.{int(stage) * layers}.in_conv.{rest}"
    layer, rest = rest.split(".", 1)
    return f"body.{int(stage) * layers + int(layer)}.{rest}"


def kohya_key(module):
    """diffusers UNet module name -> kohya LoRA prefix."""
    return "lora_unet_" + module.replace(".", "_")


def plus_key(k):
    """diffusers IPAdapterPlusImageProjection parameter -> image_proj parameter of a published file; keys and values are one matrix there."""
    for a, b in [(".ln0.", ".0.norm1."), (".ln1.", ".0.norm2."), (".attn.to_out.0.", ".0.to_out."), (".attn.", ".0."), (".ff.0.", ".1.0."),
                 (".ff.1.net.0.proj.", ".1.1."), (".ff.1.net.2.", ".1.3.")]:
        k = k.replace(a, b)
    return k


def full_key(k):
    """diffusers IPAdapterFullImageProjection parameter -> image_proj parameter of a published file."""
    return k.replace("ff.net.0.proj", "proj.0").replace("ff.net.2", "proj.2").replace("norm", "proj.3")
