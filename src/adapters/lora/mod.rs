//! LoRA files and related adapters: small changes of many weights, in all published formats.
//!
//! A file is read in two steps. [`Lora::open`] groups its tensors into modules, independently of the model;
//! [`Lora::apply`] finds each module's weight in a [`Checkpoint`] and pushes the changes onto a [`PatchStack`]. Kohya's
//! names (`lora_unet_down_blocks_0_...`) cannot be split at their underscores without ambiguity, so they are never
//! parsed but looked up among the model's own names.
//!
//! Style, LCM and motion LoRAs differ only in the weights that they change: spatial weights in style and LCM LoRAs,
//! motion modules in motion LoRAs. They are all handled the same way.
//!
//! The family defines how a change is computed from stored tensors: LoRA and LoCon, LoHa, LoKr, GLoRA, OFT and BOFT,
//! HRA, IA3, and full differences. DoRA can be combined with any additive family.

mod blocks;
mod change;
mod dora;
mod families;
mod full;
mod glora;
mod hadamard;
mod ia3;
mod kronecker;
mod low_rank;
mod made_for;
mod module;
mod numbered;
mod orthogonal_inputs;
mod orthogonal_outputs;
mod peft;
mod product;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;

pub use self::blocks::BlockFactors;
use self::change::Change;
use self::families::{BARE, Changes, Name, is_spare, module_name, unsupported};
use self::made_for::{BaseHints, SD1};
use self::module::{Family, Parts};
use self::numbered::Numbered;
use self::peft::{ModuleConfig, PeftConfig};
use self::targets::{Targets, is_projection};
use crate::text::inversion::Inversion;
use crate::weights::{
    Archive, Checkpoint, Component, PatchStack, Source, WeightPatch, foreign_lora, foreign_model,
    quoted, some,
};
use crate::{Error, Result};

/// Scale of each module, which is multiplied by the user's strength.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LoraScale {
    /// `alpha / rank` of each module, as in nearly all software. A module without alpha has scale 1.
    #[default]
    AlphaOverRank,
    /// A fixed scale for all modules, regardless of the file. The official AnimateLCM code uses 1/8 for the LCM LoRA
    /// and 1 for style LoRAs (G-U-N/AnimateLCM,
    /// `animatelcm_sd15/animatelcm/utils/convert_lora_safetensor_to_diffusers.py`).
    Fixed(f64),
}

/// Options for applying a LoRA.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraOptions {
    /// Strength in the UNet; 0 leaves the UNet unchanged.
    pub unet_strength: f64,
    /// Strength in the text encoder; 0 leaves the text encoder unchanged.
    pub text_strength: f64,
    /// Scale of each module.
    pub scale: LoraScale,
    /// Skip modules that the model does not have instead of returning an error.
    pub allow_partial: bool,
    /// Factors applied to the strengths per block.
    pub blocks: Option<BlockFactors>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            unet_strength: 1.0,
            text_strength: 1.0,
            scale: LoraScale::AlphaOverRank,
            allow_partial: false,
            blocks: None,
        }
    }
}

impl LoraOptions {
    /// Default options with the same strength in the UNet and the text encoder.
    pub fn with_strength(strength: f64) -> Self {
        Self { unet_strength: strength, text_strength: strength, ..Self::default() }
    }
}

/// Report of a LoRA: modules applied, modules skipped, and why.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LoraReport {
    /// The LoRA's name.
    pub name: String,
    /// Adapter family, such as `LoRA` or `DoRA over LoHa`; several are joined with ` and `.
    pub family: String,
    /// Ranks of the modules.
    pub ranks: BTreeSet<usize>,
    /// Number of modules in the file.
    pub modules: usize,
    /// Number of modules applied to the UNet.
    pub in_unet: usize,
    /// Number of modules applied to the text encoder.
    pub in_text: usize,
    /// Trigger words of a bundled textual inversion.
    pub words: Vec<String>,
    /// Number of modules skipped because their strength is 0.
    pub switched_off: usize,
    /// Number of modules that do not affect images: unused copies from training, or CLIP's text projection.
    pub unused: usize,
    /// Modules without a matching weight, and tensors of unknown kind; empty unless `allow_partial` is set.
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
        if !self.words.is_empty() {
            write!(f, ", brings {}", some(&self.words))?;
        }
        if self.switched_off > 0 {
            write!(f, ", {} switched off", self.switched_off)?;
        }
        if self.unused > 0 {
            write!(f, ", {} of no effect", self.unused)?;
        }
        if !self.unmatched.is_empty() {
            write!(f, ", {} left out", self.unmatched.len())?;
        }
        Ok(())
    }
}

/// Suffix of the alpha tensor of a module, in any family.
const ALPHA: &str = ".alpha";

/// A module of a file, under its name in the file.
#[derive(Debug)]
struct Module {
    family: &'static Family,
    stored: BTreeMap<&'static str, String>,
    alpha: Option<f64>,
    config: ModuleConfig,
}

impl Module {
    /// Name of the module's family in reports.
    fn family(&self, archive: &Archive) -> String {
        let over = ["dora_scale", "magnitude"].iter().any(|part| self.stored.contains_key(part));
        // OFT and BOFT blocks of Kohya's tools and LyCORIS differ only in the number of dimensions.
        let blocks = self.stored.get("blocks").and_then(|name| archive.info(name));
        let has_stages = blocks.is_some_and(|info| info.shape.len() == 4);
        match self.family.name {
            "OFT" if has_stages => "BOFT".to_owned(),
            name if !over => name.to_owned(),
            "LoRA" => "DoRA".to_owned(),
            name => format!("DoRA over {name}"),
        }
    }
}

/// An open LoRA file.
#[derive(Debug)]
pub struct Lora {
    name: String,
    archive: Arc<Archive>,
    modules: BTreeMap<String, Module>,
    inversion: Option<Inversion>,
    /// Modules of unused copies that the trainer stored.
    spare: BTreeSet<String>,
    leftovers: Vec<String>,
}

/// File names of adapters in folders of PEFT and diffusers.
const IN_FOLDERS: [&str; 4] = [
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
];

/// The file, or the adapter file in a folder.
fn file_of(source: &Source) -> Result<Source> {
    let Source::File(folder) = source else { return Ok(source.clone()) };
    if !folder.is_dir() {
        return Ok(source.clone());
    }
    let found = IN_FOLDERS.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.map(Source::from).ok_or_else(|| {
        let [one, other, ..] = IN_FOLDERS;
        Error::format(
            folder,
            format!("is a folder without an adapter, such as `{one}` or `{other}`"),
        )
    })
}

/// The trigger word of a bundled embedding tensor, with AUTOMATIC1111's or OneTrainer's tensor names.
fn bundled_word(stored: &str) -> Option<&str> {
    let name = stored.strip_prefix("bundle_emb.")?;
    let ends = [".string_to_param.*", ".emb_params", ".clip_l"];
    ends.iter().find_map(|end| name.strip_suffix(end)).filter(|word| !word.is_empty())
}

impl Lora {
    /// Opens a LoRA file, or a folder in the layout of PEFT or diffusers. `name` is used in reports and errors.
    pub fn open(source: &Source, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let archive = Arc::new(Archive::open(&file_of(source)?)?);
        let wrong = |reason: String| Error::Adapter { adapter: name.clone(), reason };
        let peft = PeftConfig::find(&archive)?;

        if let Some(reason) = peft.as_ref().and_then(PeftConfig::refusal) {
            return Err(wrong(reason));
        }
        if let Some((what, hint)) = foreign_lora(&archive) {
            return Err(wrong(format!("is {what}")).with_hint(hint));
        }
        if let Some(what) = archive.names().find_map(unsupported) {
            return Err(wrong(format!("is a {what}, which is not supported")));
        }
        let mut stored_parts: BTreeMap<String, BTreeMap<&'static str, String>> = BTreeMap::new();
        let mut families: BTreeMap<String, &'static Family> = BTreeMap::new();
        let mut alphas: BTreeMap<String, f64> = BTreeMap::new();
        let (mut bundled, mut leftovers) = (Vec::new(), Vec::new());
        let mut spare = BTreeSet::new();
        let listed = numbered::listed(&archive);
        for stored in archive.names() {
            if let Some(word) = bundled_word(stored)
                .or_else(|| numbered::is_word(&archive, stored).then_some(stored))
            {
                bundled.push((word, stored));
                continue;
            }
            if let Some(module) = stored.strip_suffix(ALPHA) {
                alphas.insert(module_name(module), scalar(&archive, stored)?);
                continue;
            }
            let written = listed.get(stored).map_or(stored, String::as_str);
            let Some(Name { module, family, part }) =
                Name::split(written, |name| archive.info(name).is_some())
            else {
                leftovers.push(stored.to_owned());
                continue;
            };
            if is_spare(&module) {
                spare.insert(module);
                continue;
            }
            if let Some(family) = family
                && let Some(other) = families.insert(module.clone(), family)
                && !std::ptr::eq(other, family)
            {
                let (module, one, two) = (quoted(&module), other.name, family.name);
                return Err(wrong(format!("module {module} is both {one} and {two}")));
            }
            let parts = stored_parts.entry(module).or_default();
            if let Some(other) = parts.insert(part, stored.to_owned()) {
                let (other, stored) = (quoted(&other), quoted(stored));
                return Err(wrong(format!("{other} and {stored} are the same part")));
            }
        }
        if stored_parts.is_empty() {
            if let Some((what, hint)) = foreign_model(&archive) {
                return Err(wrong(format!("is not a LoRA, but {what}")).with_hint(hint));
            }
            let names: Vec<&str> = archive.names().collect();
            let reason =
                format!("is not a LoRA: it holds {} tensors, {}", names.len(), some(&names));
            return Err(
                wrong(reason).with_hint("a checkpoint is given with --model or --checkpoint")
            );
        }

        let mut modules = BTreeMap::new();
        for (module, stored) in stored_parts {
            let family = families.get(&module).copied().unwrap_or(BARE);
            let config = peft.as_ref().map(|peft| peft.module(&module)).unwrap_or_default();
            // Kohya's tools write an alpha of 0 if alpha equals the rank.
            let alpha = alphas.remove(&module).or(config.alpha).filter(|alpha| *alpha != 0.0);
            modules.insert(module, Module { family, stored, alpha, config });
        }
        leftovers.extend(alphas.into_keys().map(|module| format!("{module}{ALPHA}")));
        let inversion = match &bundled[..] {
            [] => None,
            words => Some(Inversion::bundled(&archive, words)?),
        };
        leftovers.retain(|name| !name.strip_suffix(ALPHA).is_some_and(is_spare));
        Ok(Self { name, archive, modules, inversion, spare, leftovers })
    }

    /// The name the LoRA was opened under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The open file.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// The modules by their names in the file.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// The textual inversion bundled in the file, if any.
    pub fn inversion(&self) -> Option<&Inversion> {
        self.inversion.as_ref()
    }

    /// Finds the weights to change in `checkpoint` and adds the changes to `patches`.
    ///
    /// # Errors
    ///
    /// A LoRA none of whose modules match; one some of whose modules do not match, unless `allow_partial` is set; a
    /// module that does not fit the shape of its weight.
    pub fn apply(
        &self,
        checkpoint: &Checkpoint,
        options: &LoraOptions,
        patches: &mut PatchStack,
    ) -> Result<LoraReport> {
        let targets = Targets::new(checkpoint);
        let numbered = self.numbered(checkpoint)?;
        let mut report = LoraReport {
            name: self.name.clone(),
            family: self.family(),
            ranks: BTreeSet::new(),
            modules: self.modules.len(),
            in_unet: 0,
            in_text: 0,
            words: self.words(),
            switched_off: 0,
            unused: self.spare.len(),
            unmatched: Vec::new(),
        };
        let layers = layers_per_level(checkpoint);
        let factor = |component, weight: &str| match &options.blocks {
            Some(blocks) => blocks.of(component, weight, layers),
            None => Ok(1.0),
        };
        let mut changes: BTreeMap<Component, BTreeMap<String, Scaled>> = BTreeMap::new();
        for (written, module) in &self.modules {
            if is_projection(written) {
                report.unused += 1;
                continue;
            }
            let found = targets.find(written).or_else(|| numbered.find(written));
            let Some((component, weight)) = found else {
                report.unmatched.push(written.clone());
                continue;
            };
            let strength = match component {
                Component::Text => options.text_strength,
                _ => options.unet_strength,
            };
            let factor = factor(component, weight)?;
            if strength * factor == 0.0 {
                report.switched_off += 1;
                continue;
            }
            let made = self.changes(written, module, options.scale)?;
            report.ranks.extend(made.weight.as_ref().and_then(|change| change.rank()));
            match component {
                Component::Text => report.in_text += 1,
                _ => report.in_unet += 1,
            }
            let bias = weight.strip_suffix("weight").map(|module| format!("{module}bias"));
            let both = [(Some(weight.to_owned()), made.weight), (bias, made.bias)];
            for (name, change) in both {
                let (Some(name), Some(change)) = (name, change) else { continue };
                if change.is_optional() && checkpoint.shape_of(component, &name).is_none() {
                    continue;
                }
                self.check(checkpoint, component, written, &name, change.as_ref())?;
                let changes = changes.entry(component).or_default();
                if changes.insert(name.clone(), Scaled { change, factor }).is_some() {
                    return Err(self.wrong(format!("changes {} more than once", quoted(&name))));
                }
            }
        }
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

    /// Resolves numbered modules, which have no names, to weights of the checkpoint.
    fn numbered(&self, checkpoint: &Checkpoint) -> Result<Numbered> {
        let mut numbers: BTreeMap<Component, Vec<usize>> = BTreeMap::new();
        let mut changes: BTreeMap<(Component, usize), Changes> = BTreeMap::new();
        for (written, module) in &self.modules {
            let Some((component, number)) = numbered::number(written) else { continue };
            numbers.entry(component).or_default().push(number);
            let made = self.changes(written, module, LoraScale::default())?;
            changes.insert((component, number), made);
        }
        let fits = |component, number, weight: &str| {
            let change = changes.get(&(component, number)).and_then(|made| made.weight.as_ref());
            let shape = checkpoint.shape_of(component, weight);
            change.zip(shape).is_some_and(|(change, shape)| change.check(shape).is_ok())
        };
        Numbered::new(&self.archive, checkpoint, &numbers, fits)
            .map_err(|reason| self.wrong(reason))
    }

    fn changes(&self, written: &str, module: &Module, scale: LoraScale) -> Result<Changes> {
        let parts = Parts {
            archive: &self.archive,
            stored: &module.stored,
            alpha: module.alpha,
            config: module.config,
            scale,
        };
        Changes::read(module.family, &parts)
            .map_err(|reason| self.wrong(format!("module {}: {reason}", quoted(written))))
    }

    /// Checks that a change fits its weight.
    fn check(
        &self,
        checkpoint: &Checkpoint,
        component: Component,
        written: &str,
        weight: &str,
        change: &dyn Change,
    ) -> Result<()> {
        let reason = match checkpoint.shape_of(component, weight) {
            Some(shape) => match change.check(shape) {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            },
            None => "this model has no such weight".into(),
        };
        let (written, weight) = (quoted(written), quoted(weight));
        let error = self.wrong(format!("module {written} does not fit {weight}: {reason}"));
        Err(error.with_hint(match self.made_for() {
            Some(model) => format!("it was made for {model}"),
            None => "it was made for a model of other sizes".into(),
        }))
    }

    /// The base model the LoRA was made for, if it can be determined and is not Stable Diffusion 1.
    pub fn made_for(&self) -> Option<&'static str> {
        self.base().filter(|model| *model != SD1)
    }

    /// The base model the LoRA was made for, if it can be determined.
    pub fn base(&self) -> Option<&'static str> {
        let inputs = self.modules.iter().filter_map(|(written, module)| {
            let changes = self.changes(written, module, LoraScale::default()).ok()?;
            Some((written.as_str(), changes.weight?.inputs()?))
        });
        let (modules, inputs) = (self.modules().collect(), inputs.collect());
        BaseHints { archive: &self.archive, modules, inputs }.model()
    }

    /// The ranks of the modules; empty for families without a rank.
    pub fn ranks(&self) -> BTreeSet<usize> {
        let rank = |(written, module): (&String, &Module)| {
            self.changes(written, module, LoraScale::default()).ok()?.weight?.rank()
        };
        self.modules.iter().filter_map(rank).collect()
    }

    /// Adapter family, such as `LoRA` or `DoRA over LoHa`; several are joined with ` and `.
    pub fn family(&self) -> String {
        let families: BTreeSet<String> =
            self.modules.values().map(|module| module.family(&self.archive)).collect();
        families.into_iter().collect::<Vec<_>>().join(" and ")
    }

    /// The first trigger word of each bundled embedding.
    fn words(&self) -> Vec<String> {
        let words = self.inversion.iter().flat_map(Inversion::words);
        words.filter_map(|word| word.names.first().cloned()).collect()
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
            self.wrong(format!("{count} unknown tensors: {names}"))
        };
        let has_motion = self.modules.keys().any(|module| module.contains("motion_modules"));
        Err(error.with_hint(match self.made_for() {
            Some(model) => format!("it was made for {model}"),
            None if has_motion && !checkpoint.has_motion() => {
                "a motion LoRA needs motion modules".into()
            }
            None => "it was made for another kind of model".into(),
        }))
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Adapter { adapter: self.name.clone(), reason }
    }
}

/// Number of residual blocks on each level of the down path.
fn layers_per_level(checkpoint: &Checkpoint) -> usize {
    targets::layers_per_level(checkpoint.names(Component::UNet))
}

/// The value of a tensor with one element.
fn scalar(archive: &Archive, name: &str) -> Result<f64> {
    match archive.values(name, 1)?[..] {
        [value] => Ok(f64::from(value)),
        _ => {
            let reason = format!("tensor {} has no value where one is expected", quoted(name));
            Err(Error::format(archive.path(), reason))
        }
    }
}

/// The changes of one component by a LoRA.
#[derive(Debug)]
struct Patch {
    label: String,
    names: BTreeSet<String>,
    changes: BTreeMap<String, Scaled>,
}

/// A change and the factor of its block.
#[derive(Debug)]
struct Scaled {
    change: Box<dyn Change>,
    factor: f64,
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
            Some(Scaled { change, factor }) => change.apply(weight, strength * factor),
            None => Ok(weight.clone()),
        }
    }
}
