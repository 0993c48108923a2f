//! Detection of the base model that an adapter was made for.

use crate::weights::Archive;

/// Properties of an adapter from which its base model is derived.
#[derive(Debug)]
pub(super) struct BaseHints<'a> {
    /// The file, whose header often names the base model.
    pub(super) archive: &'a Archive,
    /// The module names.
    pub(super) modules: Vec<&'a str>,
    /// Modules and the number of inputs of their layers.
    pub(super) inputs: Vec<(&'a str, usize)>,
}

/// The supported base model.
pub(super) const SD1: &str = "Stable Diffusion 1";
const SD2: &str = "Stable Diffusion 2";
const SDXL: &str = "Stable Diffusion XL";
const SD3: &str = "Stable Diffusion 3";
const FLUX: &str = "Flux";
const WAN: &str = "Wan";
const HUNYUAN_VIDEO: &str = "HunyuanVideo";
const HUNYUAN_DIT: &str = "Hunyuan-DiT";
const LTX: &str = "LTX-Video";
const COG_VIDEO: &str = "CogVideoX";
const PIXART: &str = "PixArt";
const QWEN: &str = "Qwen-Image";
const Z_IMAGE: &str = "Z-Image or Lumina";
const SVD: &str = "Stable Video Diffusion";

impl BaseHints<'_> {
    /// The base model the adapter was made for, if it can be determined.
    pub(super) fn model(&self) -> Option<&'static str> {
        let metadata = self.archive.metadata();
        ["modelspec.architecture", "ss_base_model_version"]
            .into_iter()
            .find_map(|key| by_header(metadata.get(key)?))
            .or_else(|| by_names(&self.modules))
            .or_else(|| self.inputs.iter().find_map(|(module, inputs)| by_width(module, *inputs)))
    }
}

/// Base model by the prefix of a training tool's model name.
fn by_header(value: &str) -> Option<&'static str> {
    const NAMES: [(&str, &str); 18] = [
        ("stable-diffusion-xl", SDXL),
        ("stable-diffusion-v1", SD1),
        ("stable-diffusion-v2", SD2),
        ("stable-diffusion-3", SD3),
        ("flux", FLUX),
        ("sdxl", SDXL),
        ("sd_v1", SD1),
        ("sd_v2", SD2),
        ("sd_1", SD1),
        ("sd3", SD3),
        ("wan", WAN),
        ("hunyuan-video", HUNYUAN_VIDEO),
        ("hunyuan_video", HUNYUAN_VIDEO),
        ("hunyuan-dit", HUNYUAN_DIT),
        ("hunyuan_dit", HUNYUAN_DIT),
        ("ltx", LTX),
        ("qwen", QWEN),
        ("z-image", Z_IMAGE),
    ];
    let value = value.to_ascii_lowercase();
    NAMES.into_iter().find(|(name, _)| value.starts_with(name)).map(|(_, model)| model)
}

/// Base model by module names that only one model has. The underscores of Kohya's names are treated like dots.
fn by_names(modules: &[&str]) -> Option<&'static str> {
    let names: Vec<String> = modules.iter().map(|module| dotted(module)).collect();
    let any =
        |parts: &[&str]| names.iter().any(|name| parts.iter().any(|part| name.contains(part)));
    let starts =
        |parts: &[&str]| names.iter().any(|name| parts.iter().any(|part| name.starts_with(part)));
    Some(if any(&[".motion.modules."]) {
        return None;
    } else if any(&[".temporal.transformer.blocks.", ".time.stack.", ".time.mixer."]) {
        SVD
    } else if any(&["token.refiner.", ".img.mlp.fc", ".txt.mlp.fc", ".img.mod.linear", ".modulation.linear"])
        // HunyuanVideo has one more block of each kind than Flux.
        || any(&["double.blocks.19.", "single.blocks.39.", "single.transformer.blocks.39."])
        || modules.iter().any(|module| module.contains(".img_attn_qkv") || module.contains(".img_attn_proj"))
    {
        HUNYUAN_VIDEO
    } else if any(&[".Wqkv"]) {
        HUNYUAN_DIT
    } else if any(&["double.blocks.", "single.blocks.", "single.transformer.blocks."]) {
        FLUX
    } else if any(&[
        "transformer.blocks.0.img.mlp.",
        ".img.mlp.net.",
        ".txt.mlp.net.",
        ".img.mod.1",
        ".txt.mod.1",
    ]) {
        QWEN
    } else if any(&[
        "joint.blocks.",
        "joint.transformer.blocks.",
        ".attn.add.k.proj",
        ".attn.add.q.proj",
    ]) {
        SD3
    } else if any(&[".cross.attn."]) || starts(&["blocks."]) {
        WAN
    } else if any(&["noise.refiner.", "context.refiner."])
        || (starts(&["layers."]) && any(&[".attention."]))
    {
        Z_IMAGE
    } else if any(&["caption.projection.", "adaln.single."]) {
        PIXART
    } else if starts(&["transformer.blocks."]) {
        if any(&[".attn2."]) { LTX } else { COG_VIDEO }
    } else if starts(&["te2.", "text.encoder.2."]) || any(&[".transformer.blocks.1."]) {
        // Stable Diffusion 1 and 2 have a single transformer block per attention.
        SDXL
    } else {
        return None;
    })
}

/// A module's name without its component prefix, with all underscores replaced by dots.
fn dotted(module: &str) -> String {
    const PREFIXES: [&str; 8] = [
        "base_model.model.",
        "model.diffusion_model.",
        "diffusion_model.",
        "lora_unet_",
        "lora_transformer_",
        "lycoris_",
        "lora_",
        "transformer.",
    ];
    let prefix = PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix));
    prefix.unwrap_or(module).replace('_', ".")
}

/// Base model by layer width: keys and values of the cross-attention are as wide as the text encoder.
fn by_width(module: &str, inputs: usize) -> Option<&'static str> {
    let reads_prompt = ["attn2_to_k", "attn2_to_v", "attn2.to_k", "attn2.to_v"]
        .iter()
        .any(|part| module.contains(part))
        && !module.contains("motion_modules");
    let is_text = ["self_attn_q_proj", "self_attn.q_proj"].iter().any(|part| module.contains(part))
        || module.starts_with("text_encoder:");
    match inputs {
        768 if reads_prompt => Some(SD1),
        1024 if reads_prompt || is_text => Some(SD2),
        2048 if reads_prompt => Some(SDXL),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_names_and_widths_tell_the_model() {
        assert_eq!(by_header("stable-diffusion-xl-v1-base/lora"), Some(SDXL));
        assert_eq!(by_header("sdxl_base_v1-0"), Some(SDXL));
        assert_eq!(by_header("sd_v2_768_v"), Some(SD2));
        assert_eq!(by_header("Flux-1-dev/lora"), Some(FLUX));
        assert_eq!(by_header("mystery"), None);
        for (module, model) in [
            ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k", Some(SDXL)),
            ("lora_te2_text_model_encoder_layers_0_mlp_fc1", Some(SDXL)),
            ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", Some(SDXL)),
            ("transformer.single_transformer_blocks.1.proj", Some(FLUX)),
            ("lora_unet_double_blocks_0_img_attn_qkv", Some(FLUX)),
            ("diffusion_model.double_blocks.0.img_attn.qkv", Some(FLUX)),
            ("diffusion_model.double_blocks.0.img_attn_qkv", Some(HUNYUAN_VIDEO)),
            ("lora_unet_double_blocks_19_img_attn_qkv", Some(HUNYUAN_VIDEO)),
            ("lora_unet_double_blocks_0_img_mlp_fc1", Some(HUNYUAN_VIDEO)),
            ("lora_unet_blocks_0_attn1_Wqkv", Some(HUNYUAN_DIT)),
            ("diffusion_model.blocks.0.cross_attn.k", Some(WAN)),
            ("lora_unet_blocks_0_cross_attn_k", Some(WAN)),
            ("transformer.blocks.0.attn1.to_q", Some(WAN)),
            ("transformer.transformer_blocks.0.attn.add_k_proj", Some(SD3)),
            ("lora_unet_joint_blocks_0_context_block_attn_qkv", Some(SD3)),
            ("transformer_blocks.0.img_mlp.net.0.proj", Some(QWEN)),
            ("lora_unet_transformer_blocks_0_txt_mlp_net_2", Some(QWEN)),
            ("diffusion_model.layers.0.attention.to_q", Some(Z_IMAGE)),
            ("diffusion_model.transformer_blocks.27.attn2.to_k", Some(LTX)),
            ("transformer.transformer_blocks.0.attn1.to_k", Some(COG_VIDEO)),
            ("unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q", Some(SVD)),
            ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", None),
            ("lora_unet_up_blocks_1_attentions_1_proj_in", None),
            ("lora_te_text_model_encoder_layers_1_self_attn_q_proj", None),
            ("unet.down_blocks.1.attentions.1.transformer_blocks.0.ff.net.2", None),
            ("down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.1.ff", None),
        ] {
            assert_eq!(by_names(&[module]), model, "{module}");
        }
        let ours = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
        assert_eq!(by_width(ours, 768), Some(SD1));
        assert_eq!(by_width(ours, 1024), Some(SD2));
        assert_eq!(by_width(ours, 2048), Some(SDXL));
        assert_eq!(by_width("lora_unet_x_attn1_to_k", 1024), None);
    }
}
