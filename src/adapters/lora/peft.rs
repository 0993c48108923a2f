//! PEFT's configuration of an adapter: its type, alpha, scaling and other settings that are not stored as tensors.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::weights::{Archive, Source, find_text, quoted};
use crate::{Error, Result};

/// The key of PEFT's configuration in a safetensors header written by diffusers.
const HEADER_KEY: &str = "lora_adapter_metadata";

/// PEFT's configuration of each component (`unet`, `text_encoder`, or `""` for a single one).
#[derive(Debug, Default)]
pub(super) struct PeftConfig {
    parts: BTreeMap<String, Part>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Part {
    r: Option<usize>,
    /// Named `alpha` in LoHa and LoKr.
    #[serde(alias = "alpha")]
    lora_alpha: Option<f64>,
    rank_pattern: Option<BTreeMap<String, usize>>,
    alpha_pattern: Option<BTreeMap<String, f64>>,
    use_rslora: Option<bool>,
    peft_type: Option<String>,
    init_lora_weights: Option<Value>,
    feedforward_modules: Option<Value>,
    use_cayley_neumann: Option<bool>,
    num_cayley_neumann_terms: Option<usize>,
    coft: Option<bool>,
    eps: Option<f64>,
    #[serde(rename = "apply_GS")]
    apply_gs: Option<bool>,
}

/// Supported adapter types.
const KINDS: [&str; 7] = ["LORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "HRA"];

/// Initializations that change the base weights; the stored change is relative to the changed ones.
const OTHER_BASES: [&str; 4] = ["pissa", "olora", "corda", "lora_ga"];

/// PEFT's settings of the orthogonal families.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct OrthogonalOptions {
    /// OFT: number of terms of the Neumann series that approximates the inverse; `None` if it is exact.
    pub(super) terms: Option<usize>,
    /// OFT: bound of the norm of a block, to be divided by the square root of the number of blocks.
    pub(super) bound: Option<f64>,
    /// HRA: whether the reflection vectors are orthogonalized.
    pub(super) is_orthogonal: bool,
}

impl Default for OrthogonalOptions {
    /// PEFT's defaults.
    fn default() -> Self {
        Self { terms: Some(5), bound: None, is_orthogonal: false }
    }
}

impl Part {
    /// The reason why the adapter is not supported, if any.
    fn refusal(&self) -> Option<String> {
        if let Some(kind) = self.peft_type.as_deref().filter(|kind| !KINDS.contains(kind)) {
            return Some(format!("is a {} of PEFT, which is not supported", quoted(kind)));
        }
        let begun = self.init_lora_weights.as_ref().and_then(Value::as_str)?;
        let changes_base = OTHER_BASES.iter().any(|other| begun.starts_with(other));
        changes_base
            .then(|| format!("was trained over weights that {} changed first", quoted(begun)))
    }

    /// IA3: whether a module scales its inputs; `None` if not specified.
    fn on_input(&self, name: &str) -> Option<bool> {
        let ends = |end: &Value| end.as_str().is_some_and(|end| name.ends_with(end));
        Some(self.feedforward_modules.as_ref()?.as_array()?.iter().any(ends))
    }

    fn orthogonal(&self) -> OrthogonalOptions {
        let default = OrthogonalOptions::default();
        OrthogonalOptions {
            terms: match self.use_cayley_neumann {
                Some(false) => None,
                _ => self.num_cayley_neumann_terms.or(default.terms),
            },
            bound: self.eps.filter(|_| self.coft == Some(true)),
            is_orthogonal: self.apply_gs.unwrap_or(false),
        }
    }
}

/// The configuration of one module.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ModuleConfig {
    /// The alpha of the module.
    pub(super) alpha: Option<f64>,
    /// The rank of the module, which cannot always be derived from the tensors.
    pub(super) rank: Option<usize>,
    /// Whether alpha is divided by the square root of the rank (rsLoRA).
    pub(super) by_root: bool,
    /// Whether the module scales inputs rather than outputs (IA3).
    pub(super) on_input: Option<bool>,
    /// Settings of the orthogonal families (OFT, HRA).
    pub(super) orthogonal: OrthogonalOptions,
}

impl PeftConfig {
    /// Reads the configuration from the file's header or, in PEFT's own folders, from `adapter_config.json`.
    pub(super) fn find(archive: &Archive) -> Result<Option<Self>> {
        if let Some(text) = archive.metadata().get(HEADER_KEY) {
            let fault =
                |e| Error::format(archive.path(), format!("its {HEADER_KEY} is damaged: {e}"));
            return serde_json::from_str(text)
                .map_err(fault)
                .and_then(|flat| Self::from_flat(flat).map_err(fault).map(Some));
        }
        let Source::File(path) = archive.source() else { return Ok(None) };
        let beside = path.with_file_name("adapter_config.json");
        let is_peft = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .is_some_and(|stem| stem == "adapter_model");
        let Some(text) = (if is_peft { find_text(&beside)? } else { None }) else {
            return Ok(None);
        };
        let part = serde_json::from_str(&text)
            .map_err(|e| Error::format(&beside, format!("cannot be read: {e}")))?;
        Ok(Some(Self { parts: BTreeMap::from([(String::new(), part)]) }))
    }

    /// Parses the flattened configuration of diffusers: `unet.lora_alpha`, `text_encoder.lora_alpha`.
    fn from_flat(flat: BTreeMap<String, Value>) -> serde_json::Result<Self> {
        let mut nested: BTreeMap<String, serde_json::Map<String, Value>> = BTreeMap::new();
        for (key, value) in flat {
            let (part, field) = key.split_once('.').unwrap_or(("", &key));
            nested.entry(part.to_owned()).or_default().insert(field.to_owned(), value);
        }
        let parts = nested
            .into_iter()
            .map(|(part, fields)| Ok((part, serde_json::from_value(Value::Object(fields))?)))
            .collect::<serde_json::Result<_>>()?;
        Ok(Self { parts })
    }

    /// The reason why the adapter is not supported, if any.
    pub(super) fn refusal(&self) -> Option<String> {
        self.parts.values().find_map(Part::refusal)
    }

    /// The configuration of a module.
    pub(super) fn module(&self, module: &str) -> ModuleConfig {
        let module = module.strip_prefix("base_model.model.").unwrap_or(module);
        let (head, tail) = module.split_once('.').unwrap_or(("", module));
        let (part, name) = match self.parts.get(head) {
            Some(part) => (part, tail),
            None => match self.parts.get("") {
                Some(part) => (part, module),
                None => return ModuleConfig::default(),
            },
        };
        ModuleConfig {
            alpha: matching(part.alpha_pattern.as_ref(), name).or(part.lora_alpha),
            rank: matching(part.rank_pattern.as_ref(), name).or(part.r),
            by_root: part.use_rslora.unwrap_or(false),
            on_input: part.on_input(name),
            orthogonal: part.orthogonal(),
        }
    }
}

/// The value for a module. PEFT's patterns match whole names or their suffixes after a dot.
fn matching<T: Copy>(patterns: Option<&BTreeMap<String, T>>, name: &str) -> Option<T> {
    let matches = |pattern: &str| {
        name.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    patterns?.iter().find(|(pattern, _)| matches(pattern)).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphas_are_found_by_part_and_by_pattern() {
        let flat = serde_json::json!({
            "unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2},
            "unet.target_modules": ["to_q"],
            "text_encoder.lora_alpha": 3, "text_encoder.use_rslora": true,
        });
        let config = PeftConfig::from_flat(serde_json::from_value(flat).unwrap()).unwrap();
        let alpha = |module: &str| {
            let config = config.module(module);
            (config.alpha, config.by_root)
        };
        assert_eq!(alpha("unet.mid_block.attn1.to_k"), (Some(8.0), false));
        assert_eq!(alpha("unet.mid_block.attn1.to_q"), (Some(2.0), false));
        assert_eq!(alpha("unet.mid_block.xattn1.to_q"), (Some(8.0), false));
        assert_eq!(alpha("text_encoder.q_proj"), (Some(3.0), true));
        assert_eq!(alpha("vae.conv_in"), (None, false));
    }
    #[test]
    fn ranks_are_found_and_other_families_say_alpha() {
        let json = r#"{"r": 4, "alpha": 8, "rank_pattern": {"conv_in": 2}}"#;
        let part: Part = serde_json::from_str(json).unwrap();
        let config = PeftConfig { parts: BTreeMap::from([(String::new(), part)]) };
        let module = ModuleConfig { alpha: Some(8.0), rank: Some(2), ..ModuleConfig::default() };
        assert_eq!(config.module("base_model.model.conv_in"), module);
        assert_eq!(config.module("conv_out").rank, Some(4));
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let refusal = |json: &str| serde_json::from_str::<Part>(json).unwrap().refusal();
        for json in [r#"{"peft_type": "LORA", "init_lora_weights": true}"#, "{}"] {
            assert_eq!(refusal(json), None);
        }
        assert_eq!(refusal(r#"{"init_lora_weights": "gaussian"}"#), None);
        let kind = refusal(r#"{"peft_type": "VERA"}"#).unwrap();
        assert_eq!(kind, "is a `VERA` of PEFT, which is not supported");
        let base =
            refusal(r#"{"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}"#).unwrap();
        assert!(base.contains("`pissa_niter_4`"), "{base}");
    }
}
