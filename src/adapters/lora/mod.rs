//! LoRA files: small changes of many weights, in every spelling that people publish.
//!
//! A file is read in two steps. [`Lora::open`] groups its tensors into modules without knowing the
//! model; [`Lora::apply`] finds each module's weight in a [`Checkpoint`] and pushes the changes onto a
//! [`PatchStack`]. Kohya's names (`lora_unet_down_blocks_0_...`) cannot be split at their underscores
//! without guessing, so they are never parsed but looked up among the model's own names.
//!
//! What a LoRA changes decides what it is: spatial weights make it a style or LCM LoRA, motion modules
//! a motion LoRA. Nothing here knows the difference.

mod low_rank;
mod peft;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;

use self::peft::PeftConfig;
use self::targets::Targets;
use crate::weights::{
    Archive, Checkpoint, Component, PatchStack, Source, WeightPatch, quoted, some,
};
use crate::{Error, Result};

/// How a module's own factor is found; the user's strength multiplies it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LoraScale {
    /// `alpha / rank` of each module, as nearly all software does. A module without alpha counts 1.
    #[default]
    AlphaOverRank,
    /// The same for all modules, whatever the file says. The official AnimateLCM code takes 1/8 for the
    /// LCM LoRA and 1 for style LoRAs
    /// (G-U-N/AnimateLCM, `animatelcm_sd15/animatelcm/utils/convert_lora_safetensor_to_diffusers.py`).
    Fixed(f64),
}

/// How a LoRA is applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraOptions {
    /// Strength in the UNet; 0 leaves it alone.
    pub unet_strength: f64,
    /// Strength in the text encoder; 0 leaves it alone.
    pub text_strength: f64,
    /// How each module's own factor is found.
    pub scale: LoraScale,
    /// Whether modules that the model lacks are left out instead of refused.
    pub allow_partial: bool,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            unet_strength: 1.0,
            text_strength: 1.0,
            scale: LoraScale::AlphaOverRank,
            allow_partial: false,
        }
    }
}

impl LoraOptions {
    /// The same strength everywhere.
    pub fn with_strength(strength: f64) -> Self {
        Self { unet_strength: strength, text_strength: strength, ..Self::default() }
    }
}

/// What became of a LoRA's modules.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LoraReport {
    /// The LoRA's name.
    pub name: String,
    /// How its changes are made up, such as `LoRA`.
    pub family: &'static str,
    /// The ranks that occur in it.
    pub ranks: BTreeSet<usize>,
    /// Modules in the file.
    pub modules: usize,
    /// Modules that found their weight in the UNet.
    pub in_unet: usize,
    /// Modules that found their weight in the text encoder.
    pub in_text: usize,
    /// Modules left out because their strength is 0.
    pub switched_off: usize,
    /// Modules, or tensors of no known kind, that found nothing; empty unless partial use is allowed.
    pub unmatched: Vec<String>,
}

impl fmt::Display for LoraReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranks: Vec<String> = self.ranks.iter().map(ToString::to_string).collect();
        write!(f, "{} {}: ", self.family, quoted(&self.name))?;
        if !ranks.is_empty() {
            write!(f, "rank {}, ", ranks.join("/"))?;
        }
        write!(f, "{} of {} modules in the unet", self.in_unet, self.modules)?;
        if self.in_text > 0 {
            write!(f, ", {} in the text encoder", self.in_text)?;
        }
        if self.switched_off > 0 {
            write!(f, ", {} switched off", self.switched_off)?;
        }
        if !self.unmatched.is_empty() {
            write!(f, ", {} left out", self.unmatched.len())?;
        }
        Ok(())
    }
}

/// A way to make up a change of a weight from stored tensors. Adding one is a file and an entry here.
#[derive(Debug)]
struct Family {
    name: &'static str,
    /// Endings of stored names and the part that each stands for.
    suffixes: &'static [(&'static str, &'static str)],
    read: fn(&Parts<'_>) -> Result<Box<dyn Change>, String>,
}

const FAMILIES: &[Family] = &[low_rank::FAMILY];

/// Endings that every family may have beside its own.
const ALPHA: &str = ".alpha";

/// Families and additions that are known and not supported: silently dropping them would give another
/// picture than the author's.
const UNSUPPORTED: &[(&str, &str)] = &[
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".lora_magnitude_vector.weight", "DoRA"),
    (".hada_w1_a", "LoHa"),
    (".hada_w2_a", "LoHa"),
    (".lokr_w1", "LoKr"),
    (".lokr_w1_a", "LoKr"),
    (".lokr_w2", "LoKr"),
    (".oft_blocks", "OFT"),
    (".oft_diag", "OFT"),
    (".on_input", "IA3"),
    (".b1.weight", "GLoRA"),
    (".diff", "LyCORIS full difference"),
    (".diff_b", "LyCORIS full difference"),
    (".lora_A.bias", "LoRA with biases"),
    (".lora_B.bias", "LoRA with biases"),
];

/// One change of one weight.
trait Change: fmt::Debug + Send + Sync {
    /// Whether it fits a weight of this shape; if not, why.
    fn check(&self, shape: &[usize]) -> Result<(), String>;

    /// The rank, if it has one.
    fn rank(&self) -> Option<usize>;

    /// The changed weight: same shape, `f32`.
    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor>;
}

/// The stored tensors of one module.
struct Parts<'a> {
    archive: &'a Arc<Archive>,
    stored: &'a BTreeMap<&'static str, String>,
    /// The alpha that the file states for this module.
    alpha: Option<f64>,
    /// Whether alpha is divided by the root of the rank (rsLoRA).
    by_root: bool,
    scale: LoraScale,
}

impl Parts<'_> {
    /// The stored name and shape of a part.
    fn get(&self, part: &str) -> Option<(&str, &[usize])> {
        let name = self.stored.get(part)?;
        Some((name, &self.archive.info(name)?.shape))
    }

    /// The module's own factor, given its rank.
    fn factor(&self, rank: usize) -> f64 {
        let rank = rank as f64;
        match (self.scale, self.alpha) {
            (LoraScale::Fixed(factor), _) => factor,
            (LoraScale::AlphaOverRank, None) => 1.0,
            (LoraScale::AlphaOverRank, Some(alpha)) if self.by_root => alpha / rank.sqrt(),
            (LoraScale::AlphaOverRank, Some(alpha)) => alpha / rank,
        }
    }
}

/// One module of a file, under the name that the file gives it.
#[derive(Debug)]
struct Module {
    family: &'static Family,
    stored: BTreeMap<&'static str, String>,
    alpha: Option<f64>,
    by_root: bool,
}

/// An open LoRA file.
#[derive(Debug)]
pub struct Lora {
    name: String,
    archive: Arc<Archive>,
    modules: BTreeMap<String, Module>,
    leftovers: Vec<String>,
}

impl Lora {
    /// Opens a LoRA file under the name that reports and errors use for it.
    pub fn open(source: &Source, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let archive = Arc::new(Archive::open(source)?);
        let wrong = |reason: String| Error::Adapter { adapter: name.clone(), reason };
        let peft = PeftConfig::find(&archive)?;

        for stored in archive.names() {
            if let Some((_, what)) = UNSUPPORTED.iter().find(|(end, _)| stored.ends_with(end)) {
                return Err(wrong(format!("is a {what}, which is not supported")));
            }
        }
        let mut stored_parts: BTreeMap<String, BTreeMap<&'static str, String>> = BTreeMap::new();
        let mut families: BTreeMap<String, &'static Family> = BTreeMap::new();
        let mut alphas: BTreeMap<String, f64> = BTreeMap::new();
        let mut leftovers = Vec::new();
        for stored in archive.names() {
            if let Some(module) = stored.strip_suffix(ALPHA) {
                alphas.insert(module_name(module), scalar(&archive, stored)?);
            } else if let Some((module, family, part)) = split(stored) {
                families.insert(module.clone(), family);
                let parts = stored_parts.entry(module.clone()).or_default();
                if let Some(other) = parts.insert(part, stored.to_owned()) {
                    let (other, stored) = (quoted(&other), quoted(stored));
                    return Err(wrong(format!("{other} and {stored} are the same part")));
                }
            } else {
                leftovers.push(stored.to_owned());
            }
        }
        if stored_parts.is_empty() {
            let names: Vec<&str> = archive.names().collect();
            let reason =
                format!("is not a LoRA: it holds {} tensors, {}", names.len(), some(&names));
            return Err(
                wrong(reason).with_hint("a checkpoint is given with --model or --checkpoint")
            );
        }

        let mut modules = BTreeMap::new();
        for (module, stored) in stored_parts {
            let Some(family) = families.get(&module).copied() else { continue };
            let (configured, by_root) = peft.as_ref().map_or((None, false), |c| c.alpha(&module));
            // Kohya's tools write 0 for "as the rank".
            let alpha = alphas.remove(&module).or(configured).filter(|alpha| *alpha != 0.0);
            modules.insert(module, Module { family, stored, alpha, by_root });
        }
        leftovers.extend(alphas.into_keys().map(|module| format!("{module}{ALPHA}")));
        Ok(Self { name, archive, modules, leftovers })
    }

    /// The name it was opened under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Its modules, under the names that the file gives them.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// Finds the weights that it changes in `checkpoint` and adds the changes to `patches`.
    ///
    /// # Errors
    ///
    /// A LoRA that finds nothing, or of which a part finds nothing unless that is allowed, or that does
    /// not fit the weights' shapes.
    pub fn apply(
        &self,
        checkpoint: &Checkpoint,
        options: &LoraOptions,
        patches: &mut PatchStack,
    ) -> Result<LoraReport> {
        let targets = Targets::new(checkpoint);
        let mut report = LoraReport {
            name: self.name.clone(),
            family: self.modules.values().next().map_or("LoRA", |module| module.family.name),
            ranks: BTreeSet::new(),
            modules: self.modules.len(),
            in_unet: 0,
            in_text: 0,
            switched_off: 0,
            unmatched: Vec::new(),
        };
        let mut changes: BTreeMap<Component, BTreeMap<String, Box<dyn Change>>> = BTreeMap::new();
        for (written, module) in &self.modules {
            let Some((component, weight)) = targets.find(written) else {
                report.unmatched.push(written.clone());
                continue;
            };
            let strength = match component {
                Component::Text => options.text_strength,
                _ => options.unet_strength,
            };
            if strength == 0.0 {
                report.switched_off += 1;
                continue;
            }
            let change = self.change(written, module, options.scale)?;
            let shape = checkpoint.shape_of(component, weight).unwrap_or_default();
            change.check(shape).map_err(|reason| {
                self.wrong(format!(
                    "module {} does not fit {}: {reason}",
                    quoted(written),
                    quoted(weight)
                ))
                .with_hint("it was made for a model of other sizes")
            })?;
            report.ranks.extend(change.rank());
            if changes.entry(component).or_default().insert(weight.to_owned(), change).is_some() {
                return Err(self.wrong(format!("changes {} more than once", quoted(weight))));
            }
        }
        report.in_unet = changes.get(&Component::UNet).map_or(0, BTreeMap::len);
        report.in_text = changes.get(&Component::Text).map_or(0, BTreeMap::len);
        self.check_unmatched(checkpoint, options, &mut report)?;

        for (component, changes) in changes {
            let strength = match component {
                Component::Text => options.text_strength,
                _ => options.unet_strength,
            };
            let names = changes.keys().cloned().collect();
            let patch = Patch { label: self.name.clone(), names, changes };
            patches.push(component, Arc::new(patch), strength);
        }
        Ok(report)
    }

    fn change(&self, written: &str, module: &Module, scale: LoraScale) -> Result<Box<dyn Change>> {
        let parts = Parts {
            archive: &self.archive,
            stored: &module.stored,
            alpha: module.alpha,
            by_root: module.by_root,
            scale,
        };
        (module.family.read)(&parts)
            .map_err(|reason| self.wrong(format!("module {}: {reason}", quoted(written))))
    }

    fn check_unmatched(
        &self,
        checkpoint: &Checkpoint,
        options: &LoraOptions,
        report: &mut LoraReport,
    ) -> Result<()> {
        let lost = report.unmatched.len();
        report.unmatched.extend(self.leftovers.iter().cloned());
        if report.unmatched.is_empty() || (options.allow_partial && lost < report.modules) {
            return Ok(());
        }
        let names = some(&report.unmatched);
        let error = if lost == report.modules {
            self.wrong(format!("none of its {lost} modules is in this model: {names}"))
        } else if lost > 0 {
            let of = report.modules;
            self.wrong(format!("{lost} of its {of} modules are not in this model: {names}"))
        } else {
            let count = self.leftovers.len();
            self.wrong(format!("{count} of its tensors are of no known kind: {names}"))
        };
        let has = |part: &str| self.modules.keys().any(|module| module.contains(part));
        Err(if has("lora_te2_") || has("text_encoder_2.") {
            error.with_hint("it was made for Stable Diffusion XL")
        } else if has("double_blocks") || has("single_blocks") {
            error.with_hint("it was made for Flux")
        } else if has("motion_modules") && !checkpoint.has_motion() {
            error.with_hint("a motion LoRA needs motion modules")
        } else {
            error.with_hint("it was made for another kind of model")
        })
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Adapter { adapter: self.name.clone(), reason }
    }
}

/// Splits a stored name into module, family and part.
fn split(stored: &str) -> Option<(String, &'static Family, &'static str)> {
    // PEFT may put an adapter's name in: `lora_A.default.weight`.
    let mut name = stored.to_owned();
    for part in [".lora_A.", ".lora_B."] {
        if let Some((module, tail)) = stored.split_once(part)
            && tail.ends_with(".weight")
        {
            name = format!("{module}{part}weight");
        }
    }
    FAMILIES.iter().find_map(|family| {
        let (suffix, part) = family.suffixes.iter().find(|(suffix, _)| name.ends_with(suffix))?;
        Some((module_name(name.strip_suffix(suffix)?), family, *part))
    })
}

/// A module's name as the file gives it, without what older diffusers put between module and layer:
/// `attn1.processor.to_q_lora` means `attn1.to_q`.
fn module_name(written: &str) -> String {
    match written.split_once(".processor.") {
        Some((module, layer)) => {
            format!("{module}.{}", layer.strip_suffix("_lora").unwrap_or(layer))
        }
        None => written.to_owned(),
    }
}

/// The one number in a tensor.
fn scalar(archive: &Archive, name: &str) -> Result<f64> {
    let values = archive
        .tensor(name, candle_core::DType::F32, &candle_core::Device::Cpu)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    match values[..] {
        [value] => Ok(f64::from(value)),
        _ => Err(Error::format(
            archive.path(),
            format!("tensor {} has {} values where one is expected", quoted(name), values.len()),
        )),
    }
}

/// A LoRA's changes of one component.
#[derive(Debug)]
struct Patch {
    label: String,
    names: BTreeSet<String>,
    changes: BTreeMap<String, Box<dyn Change>>,
}

impl WeightPatch for Patch {
    fn label(&self) -> &str {
        &self.label
    }

    fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    fn apply(&self, name: &str, weight: &Tensor, strength: f64) -> Result<Tensor> {
        match self.changes.get(name) {
            Some(change) => change.apply(weight, strength),
            None => Ok(weight.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_split_into_module_and_part() {
        for (stored, module, part) in [
            (
                "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
                "lora_unet_mid_block_attentions_0_proj_in",
                "down",
            ),
            (
                "unet.mid_block.attn1.processor.to_q_lora.down.weight",
                "unet.mid_block.attn1.to_q",
                "down",
            ),
            ("mid_block.attn1.processor.to_out_lora.up.weight", "mid_block.attn1.to_out", "up"),
            ("unet.conv_in.lora.up.weight", "unet.conv_in", "up"),
            ("text_encoder.q_proj.lora_linear_layer.down.weight", "text_encoder.q_proj", "down"),
            ("unet.conv_in.lora_A.weight", "unet.conv_in", "down"),
            ("base_model.model.conv_in.lora_B.default.weight", "base_model.model.conv_in", "up"),
            ("lora_unet_conv_in.lora_mid.weight", "lora_unet_conv_in", "mid"),
        ] {
            let (found, _, found_part) = split(stored).unwrap_or_else(|| panic!("{stored}"));
            assert_eq!((found.as_str(), found_part), (module, part), "{stored}");
        }
        assert!(split("conv_in.weight").is_none());
    }

    #[test]
    fn no_two_families_share_an_ending() {
        let mut all: Vec<&str> =
            FAMILIES.iter().flat_map(|family| family.suffixes).map(|(suffix, _)| *suffix).collect();
        all.extend(UNSUPPORTED.iter().map(|(suffix, _)| *suffix));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
