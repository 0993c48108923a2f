//! For which kind of model an adapter was made, where that can be told.

use crate::weights::Archive;

/// What is known about an adapter that does not fit.
#[derive(Debug)]
pub(super) struct Clues<'a> {
    /// The file, whose header often says it.
    pub(super) archive: &'a Archive,
    /// The modules' names.
    pub(super) modules: Vec<&'a str>,
    /// Modules and the inputs of the layers that they were made for.
    pub(super) inputs: Vec<(&'a str, usize)>,
}

/// The kind that is run here.
pub(super) const SD1: &str = "Stable Diffusion 1";
const SD2: &str = "Stable Diffusion 2";
const SDXL: &str = "Stable Diffusion XL";
const SD3: &str = "Stable Diffusion 3";
const FLUX: &str = "Flux";
const WAN: &str = "Wan";

impl Clues<'_> {
    /// The kind of model that it was made for, if anything tells.
    pub(super) fn model(&self) -> Option<&'static str> {
        let metadata = self.archive.metadata();
        ["modelspec.architecture", "ss_base_model_version"]
            .into_iter()
            .find_map(|key| by_header(metadata.get(key)?))
            .or_else(|| self.modules.iter().find_map(|module| by_name(module)))
            .or_else(|| self.inputs.iter().find_map(|(module, inputs)| by_width(module, *inputs)))
    }
}

/// Trainers' names of models, by how they begin.
fn by_header(value: &str) -> Option<&'static str> {
    const NAMES: [(&str, &str); 11] = [
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
    ];
    let value = value.to_ascii_lowercase();
    NAMES.into_iter().find(|(name, _)| value.starts_with(name)).map(|(_, model)| model)
}

/// Modules that only one kind of model has.
fn by_name(module: &str) -> Option<&'static str> {
    let has = |part: &str| module.contains(part);
    if has("lora_te2_") || has("text_encoder_2.") {
        Some(SDXL)
    } else if has("double_blocks") || has("single_blocks") || has("single_transformer_blocks") {
        Some(FLUX)
    } else if has("joint_blocks") || has("joint_transformer_blocks") {
        Some(SD3)
    } else if has("blocks.0.cross_attn.") || has("blocks_0_cross_attn_") {
        Some(WAN)
    } else if !has("motion_modules")
        && !module.starts_with("transformer.")
        && (has("transformer_blocks_1_") || has("transformer_blocks.1."))
    {
        // Stable Diffusion 1 and 2 have one block in each place.
        Some(SDXL)
    } else {
        None
    }
}

/// Attention to the prompt is as wide as the text encoder.
fn by_width(module: &str, inputs: usize) -> Option<&'static str> {
    let reads_prompt = ["attn2_to_k", "attn2_to_v", "attn2.to_k", "attn2.to_v"]
        .iter()
        .any(|part| module.contains(part))
        && !module.contains("motion_modules");
    let is_text = ["self_attn_q_proj", "self_attn.q_proj"].iter().any(|part| module.contains(part));
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
        let xl = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k";
        assert_eq!(by_name(xl), Some(SDXL));
        assert_eq!(by_name("transformer.single_transformer_blocks.1.proj"), Some(FLUX));
        assert_eq!(by_name("diffusion_model.blocks.0.cross_attn.k"), Some(WAN));
        let ours = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
        assert_eq!(by_name(ours), None);
        assert_eq!(by_name("lora_unet_up_blocks_1_attentions_1_proj_in"), None);
        assert_eq!(by_width(ours, 768), Some(SD1));
        assert_eq!(by_width(ours, 1024), Some(SD2));
        assert_eq!(by_width(ours, 2048), Some(SDXL));
        assert_eq!(by_width("lora_unet_x_attn1_to_k", 1024), None);
    }
}
