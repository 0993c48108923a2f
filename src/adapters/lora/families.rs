//! The adapter families, and parsing of stored names.

use super::change::{AddDelta, Change, ModuleChange};
use super::dora::Dora;
use super::module::{Family, Parts};
use super::{
    full, glora, hadamard, ia3, kronecker, low_rank, orthogonal_inputs, orthogonal_outputs,
};
use crate::Result;

/// All families.
const FAMILIES: &[Family] = &[
    low_rank::FAMILY,
    hadamard::FAMILY,
    kronecker::FAMILY,
    orthogonal_outputs::FAMILY,
    orthogonal_inputs::OFT,
    orthogonal_inputs::BOFT,
    orthogonal_inputs::HRA,
    glora::FAMILY,
    full::FAMILY,
    ia3::FAMILY,
    ia3::PEFT,
];

/// The family of a module that only has parts shared by all families.
pub(super) const BARE: &Family = &full::FAMILY;

/// Suffixes that are valid in any family.
const SHARED: &[(&str, &str)] = &[
    (".dora_scale", "dora_scale"),
    (".lora_magnitude_vector", "magnitude"),
    (".lora_magnitude_vector.weight", "magnitude"),
    (".diff_b", "bias"),
    (".b_norm", "bias"),
    (".lora_B.bias", "scaled_bias"),
];

/// Recognized but unsupported kinds: silently dropping them would give another image than intended by the author.
const UNSUPPORTED: &[(&str, &str)] = &[
    // The reference weights of the change are not stored.
    (".lambda_layer", "T-LoRA"),
    (".bm.weight", "GLoRA in Tucker's form"),
    (".lora_A.bias", "LoRA with biases at its narrow side"),
    (".lora_E", "AdaLoRA"),
    (".oft_r", "OFT of PEFT before 0.16"),
    (".glora_A.Xd", "GLoRA of PEFT"),
    (".vera_lambda_b", "VeRA"),
    (".fourierft_spectrum", "FourierFT"),
];

/// The unsupported kind that a tensor belongs to, if any.
pub(super) fn unsupported(stored: &str) -> Option<&'static str> {
    UNSUPPORTED.iter().find(|(end, _)| stored.ends_with(end)).map(|(_, what)| *what)
}

/// A parsed name of a stored tensor.
#[derive(Debug)]
pub(super) struct Name {
    /// The module's name in the file.
    pub(super) module: String,
    /// The family of the suffix, or `None` if all families share it.
    pub(super) family: Option<&'static Family>,
    /// The part of the module.
    pub(super) part: &'static str,
}

impl Name {
    /// Splits a stored name; `has` returns whether the file has a name.
    pub(super) fn split(stored: &str, has: impl Fn(&str) -> bool) -> Option<Self> {
        // PEFT may insert an adapter name: `lora_A.default.weight`.
        let mut name = stored.to_owned();
        for part in [".lora_A.", ".lora_B.", ".lora_magnitude_vector."] {
            if let Some((module, tail)) = stored.split_once(part)
                && let Some((_, kind @ ("weight" | "bias"))) = tail.rsplit_once('.')
            {
                name = format!("{module}{part}{kind}");
            }
        }
        let ending = |(suffix, part): &(&'static str, &'static str)| {
            Some((name.strip_suffix(suffix)?.to_owned(), *part))
        };
        if let Some((module, part)) = SHARED.iter().find_map(ending) {
            return Some(Self { module: module_name(&module), family: None, part });
        }
        FAMILIES.iter().find_map(|family| {
            let (module, part) = family.suffixes.iter().find_map(ending)?;
            let marked = family.mark.is_none_or(|mark| has(&format!("{module}{mark}")));
            marked.then(|| Self { module: module_name(&module), family: Some(family), part })
        })
    }
}

/// A module's name without the infixes of older diffusers versions: `attn1.processor.to_q_lora` becomes `attn1.to_q`,
/// and `q_proj.to_q_lora` becomes `q_proj`.
pub(super) fn module_name(written: &str) -> String {
    let name = match written.split_once(".processor.") {
        Some((module, layer)) => {
            format!("{module}.{}", layer.strip_suffix("_lora").unwrap_or(layer))
        }
        None => written.to_owned(),
    };
    match copy_of(&name) {
        Some((layer, true)) => layer.to_owned(),
        _ => name,
    }
}

/// The text encoder layer of a module, and whether the module is the one in use.
///
/// diffusers of May 2023 attached all four modules of an attention to each of its four layers and used one of them: on
/// `q_proj` that of `to_q`.
fn copy_of(module: &str) -> Option<(&str, bool)> {
    const OWN: [(&str, &str); 4] =
        [("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")];
    let (layer, copy) = module.rsplit_once('.')?;
    let copy = copy.strip_suffix("_lora").unwrap_or(copy);
    let own = OWN.iter().find(|(name, _)| layer.ends_with(&format!(".{name}")))?.1;
    OWN.iter().any(|(_, name)| *name == copy).then_some((layer, copy == own))
}

/// Returns whether a module is one of the unused copies that diffusers wrote for text encoder layers in May 2023.
pub(super) fn is_spare(module: &str) -> bool {
    matches!(copy_of(module), Some((_, false)))
}

/// The changes of a module: of its layer's weight, its layer's bias, or both.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) weight: Option<Box<dyn Change>>,
    pub(super) bias: Option<Box<dyn Change>>,
}

impl Changes {
    /// Creates the changes of a module.
    pub(super) fn read(family: &Family, parts: &Parts<'_>) -> Result<Self, String> {
        let only_shared = parts.stored.keys().all(|part| is_shared(part));
        let made = if only_shared { None } else { Some((family.read)(parts)?) };
        let decomposed = parts.get("dora_scale").or_else(|| parts.get("magnitude")).is_some();
        let mut made_bias = None;
        let weight: Option<Box<dyn Change>> = match made {
            Some(ModuleChange::Delta(delta)) if decomposed => {
                Some(Box::new(Dora::new(delta, parts)?))
            }
            Some(ModuleChange::Delta(delta)) => Some(Box::new(AddDelta(delta))),
            Some(ModuleChange::Change(change)) if !decomposed => Some(change),
            Some(ModuleChange::WithBias(change, bias)) if !decomposed => {
                made_bias = Some(bias);
                Some(change)
            }
            _ if decomposed => {
                return Err("it has a magnitude (DoRA) and nothing that it belongs to".into());
            }
            _ => None,
        };
        let plain = parts.get("bias").map(|stored| full::bias(stored, 1.0));
        let rank = weight.as_ref().and_then(|change| change.rank());
        let scaled = parts.get("scaled_bias").map(|stored| full::bias(stored, parts.factor(rank)));
        let mut biases = [made_bias, plain, scaled].into_iter().flatten();
        match (biases.next(), biases.next()) {
            (bias, None) => Ok(Self { weight, bias }),
            _ => Err("it has two biases".into()),
        }
    }
}

fn is_shared(part: &str) -> bool {
    SHARED.iter().any(|(_, shared)| *shared == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_split_into_module_and_part() {
        for (stored, module, family, part) in [
            (
                "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
                "lora_unet_mid_block_attentions_0_proj_in",
                "LoRA",
                "down",
            ),
            (
                "unet.mid_block.attn1.processor.to_q_lora.down.weight",
                "unet.mid_block.attn1.to_q",
                "LoRA",
                "down",
            ),
            ("mid.attn1.processor.to_out_lora.up.weight", "mid.attn1.to_out", "LoRA", "up"),
            ("unet.conv_in.lora.up.weight", "unet.conv_in", "LoRA", "up"),
            ("te.q_proj.lora_linear_layer.down.weight", "te.q_proj", "LoRA", "down"),
            ("te.q_proj.to_q_lora.down.weight", "te.q_proj", "LoRA", "down"),
            ("te.out_proj.processor.to_out_lora.up.weight", "te.out_proj", "LoRA", "up"),
            ("te.q_proj.to_k_lora.up.weight", "te.q_proj.to_k", "LoRA", "up"),
            ("unet:11:up", "unet:11", "LoRA", "up"),
            ("unet.conv_in.lora_A.weight", "unet.conv_in", "LoRA", "down"),
            ("base_model.model.conv_in.lora_B.a.weight", "base_model.model.conv_in", "LoRA", "up"),
            ("conv_in.lora_B.default.bias", "conv_in", "", "scaled_bias"),
            ("conv_in.lora_magnitude_vector", "conv_in", "", "magnitude"),
            ("conv_in.lora_magnitude_vector.default.weight", "conv_in", "", "magnitude"),
            ("lora_unet_conv_in.lora_mid.weight", "lora_unet_conv_in", "LoRA", "mid"),
            ("lora_unet_conv_in.hada_w2_b", "lora_unet_conv_in", "LoHa", "w2_b"),
            ("lora_unet_conv_in.lokr_w2", "lora_unet_conv_in", "LoKr", "w2"),
            ("lora_unet_conv_in.lokr_w2_a", "lora_unet_conv_in", "LoKr", "w2_a"),
            ("lora_unet_conv_in.oft_blocks", "lora_unet_conv_in", "OFT", "blocks"),
            ("lora_unet_conv_in.w_norm", "lora_unet_conv_in", "full difference", "diff"),
            ("lora_unet_conv_in.b_norm", "lora_unet_conv_in", "", "bias"),
            ("lora_unet_conv_in.b2.weight", "lora_unet_conv_in", "GLoRA", "b2"),
            ("lora_unet_conv_in.bias_values", "lora_unet_conv_in", "LoRA", "stray_values"),
            ("base_model.model.conv_in.oft_R.weight", "base_model.model.conv_in", "OFT", "vectors"),
            ("base_model.model.conv_in.boft_s", "base_model.model.conv_in", "BOFT", "factors"),
            ("base_model.model.conv_in.hra_u", "base_model.model.conv_in", "HRA", "mirrors"),
            ("base_model.model.conv_in.ia3_l", "base_model.model.conv_in", "IA3", "factors"),
            ("marked.on_input", "marked", "IA3", "on_input"),
            ("marked.weight", "marked", "IA3", "weight"),
        ] {
            let has = |name: &str| name == "marked.on_input";
            let found = Name::split(stored, has).unwrap_or_else(|| panic!("{stored}"));
            let name = found.family.map_or("", |family| family.name);
            assert_eq!((found.module.as_str(), name, found.part), (module, family, part));
        }
        assert!(Name::split("conv_in.weight", |_| false).is_none());
    }

    #[test]
    fn of_four_copies_one_is_used() {
        for (module, spare) in [
            ("text_model.self_attn.q_proj.to_k", true),
            ("text_model.self_attn.out_proj.to_v", true),
            ("text_model.self_attn.q_proj", false),
            ("text_model.self_attn.to_q", false),
            ("mid_block.attn1.to_q", false),
        ] {
            assert_eq!(is_spare(module), spare, "{module}");
        }
    }

    #[test]
    fn no_two_families_share_an_ending() {
        let mut all: Vec<&str> =
            FAMILIES.iter().flat_map(|family| family.suffixes).map(|(suffix, _)| *suffix).collect();
        all.extend(SHARED.iter().map(|(suffix, _)| *suffix));
        all.extend(UNSUPPORTED.iter().map(|(suffix, _)| *suffix));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
