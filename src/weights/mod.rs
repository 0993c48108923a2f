//! Weight loading: reads any published SD 1.5-family checkpoint into a model and accounts for every tensor.
//!
//! A [`Checkpoint`] collects files. Adding a file translates its tensor names to canonical names without reading tensor
//! data. [`Checkpoint::build`] passes the weights to a model's constructor through candle's `VarBuilder`: each tensor
//! is memory-mapped, patched and converted on its own. Afterwards every tensor must be either used or listed as ignored
//! with a reason.
//!
//! ```no_run
//! use animatelcm::weights::{Checkpoint, Component, PatchStack};
//! use candle_core::{DType, Device};
//!
//! let mut checkpoint = Checkpoint::new();
//! checkpoint.add_component(Component::UNet, &"sd15/unet".into())?;
//! checkpoint.add_motion(&"AnimateLCM_sd15_t2v.ckpt".into())?;
//! let (scale, report) = checkpoint.build(
//!     Component::UNet,
//!     DType::F32,
//!     &Device::Cpu,
//!     &PatchStack::new(),
//!     |vb| Ok(vb.get(320, "conv_norm_out.weight")?),
//! )?;
//! # Ok::<(), animatelcm::Error>(())
//! ```

mod backend;
mod builder;
mod dialect;
mod digest;
mod folder;
mod format;
mod patch;
pub mod random;
mod report;
mod resident;
mod side_file;
mod standalone;
mod survey;
mod until;
#[allow(dead_code, reason = "some builds write no weights")]
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device};

use self::backend::{Backend, Record};
pub use self::builder::VarBuilder;
use self::dialect::{DIALECTS, Foreign, Mapped, Names};
pub(crate) use self::dialect::{canonical_motion_name, ldm_unet_module};
pub use self::digest::sha256;
use self::folder::Files;
pub(crate) use self::format::quoted;
pub use self::format::{Archive, ElementType, Layout, Source, TensorInfo};
pub use self::patch::{PatchStack, WeightPatch};
pub(crate) use self::report::some;
pub use self::report::{Ignored, LoadReport, Replaced};
pub use self::resident::Resident;
pub(crate) use self::side_file::{find_text, read_text};
pub use self::standalone::Standalone;
use self::survey::Survey;
pub(crate) use self::until::until;
#[allow(unused_imports, reason = "some builds write no weights")]
pub(crate) use self::write::write_safetensors;
use crate::{Error, Result};

/// A network with its own weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Component {
    /// The UNet, including motion modules.
    UNet,
    /// The variational autoencoder.
    Vae,
    /// The CLIP text encoder.
    Text,
    /// ControlNet: conditions the UNet on one hint image per frame.
    ControlNet,
    /// SparseCtrl: conditions the UNet on hint images for some frames.
    SparseCtrl,
    /// T2I-Adapter: encodes hint images into features once per run.
    T2iAdapter,
    /// AnimateLCM-I2V's image encoder, which is in the file of its motion modules.
    I2vEncoder,
    /// The CLIP vision encoder with its projection.
    ImageEncoder,
    /// IP-Adapter: computes keys and values from the image encoder's features.
    IpAdapter,
}

impl Component {
    /// The components of every model. All others are optional and loaded from files of their own.
    pub const BASE: [Self; 3] = [Self::UNet, Self::Vae, Self::Text];
    /// The optional control networks, each loaded from a file of its own.
    pub const CONTROLS: [Self; 3] = [Self::ControlNet, Self::SparseCtrl, Self::T2iAdapter];

    /// All optional components.
    pub const OPTIONAL: [Self; 5] =
        [Self::ControlNet, Self::SparseCtrl, Self::T2iAdapter, Self::ImageEncoder, Self::IpAdapter];

    /// The name used in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::UNet => "unet",
            Self::Vae => "vae",
            Self::Text => "text encoder",
            Self::ControlNet => "controlnet",
            Self::SparseCtrl => "sparsectrl",
            Self::T2iAdapter => "t2i-adapter",
            Self::I2vEncoder => "i2v encoder",
            Self::ImageEncoder => "image encoder",
            Self::IpAdapter => "ip-adapter",
        }
    }

    /// The component's folder names inside a diffusers pipeline.
    fn folders(self) -> &'static [&'static str] {
        match self {
            Self::UNet => &["unet"],
            Self::Vae => &["vae"],
            Self::Text => &["text_encoder"],
            Self::ControlNet | Self::SparseCtrl => &["controlnet"],
            Self::T2iAdapter => &["adapter"],
            Self::ImageEncoder => &["image_encoder"],
            Self::I2vEncoder | Self::IpAdapter => &[],
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Location of a weight, and its shape after the dialect's transform.
#[derive(Clone, Debug)]
struct Located {
    archive: usize,
    stored: String,
    shape: Vec<usize>,
}

/// Weights from one or more files, under canonical names.
///
/// If two files contain the same weight, the one added later is used; the [`LoadReport`] lists the replacement.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    archives: Vec<Arc<Archive>>,
    index: BTreeMap<Component, BTreeMap<String, Located>>,
    ignored: Vec<(Option<Component>, Ignored)>,
    replaced: BTreeMap<(Component, usize, usize), usize>,
    positions: Option<usize>,
}

/// The part of a file to load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Component(Component),
    Control,
    Motion,
    Everything,
    Except(Component),
}

impl Scope {
    fn covers(self, component: Component, name: &str) -> bool {
        match self {
            Self::Component(wanted) => wanted == component,
            Self::Control => Component::CONTROLS.contains(&component),
            Self::Motion => match component {
                Component::UNet => is_motion(name),
                other => other == Component::I2vEncoder,
            },
            Self::Everything => true,
            Self::Except(unwanted) => unwanted != component,
        }
    }

    /// The optional components in scope.
    fn optional(self) -> &'static [Component] {
        const OPTIONAL: &[Component] = &Component::OPTIONAL;
        match self {
            Self::Control => &Component::CONTROLS,
            Self::Component(wanted) => {
                let found = OPTIONAL.iter().find(|component| **component == wanted);
                found.map_or(&[], std::slice::from_ref)
            }
            Self::Motion | Self::Everything | Self::Except(_) => &[],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Component(component) => component.name(),
            Self::Control => "ControlNet, SparseCtrl or T2I-Adapter",
            Self::Motion => "motion",
            Self::Everything | Self::Except(_) => "model",
        }
    }
}

/// Returns whether a canonical UNet name belongs to a motion module.
fn is_motion(name: &str) -> bool {
    name.contains(".motion_modules.")
}

impl Checkpoint {
    /// Creates an empty checkpoint.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one component from a file, its diffusers folder, or a whole pipeline's folder.
    ///
    /// If the file holds further components, as a single-file checkpoint does, only this component is taken.
    pub fn add_component(&mut self, component: Component, source: &Source) -> Result<()> {
        self.add_scope(Scope::Component(component), source, component.stems(), component.folders())
    }

    /// Adds a control network from a file or folder and returns which of [`Component::CONTROLS`] it is.
    pub fn add_control(&mut self, source: &Source) -> Result<Component> {
        let has = Component::CONTROLS.map(|component| self.has(component));
        let folders: Vec<&str> =
            Component::CONTROLS.iter().flat_map(|c| c.folders()).copied().collect();
        self.add_scope(Scope::Control, source, Component::ControlNet.stems(), &folders)?;
        let new = Component::CONTROLS.into_iter().zip(has).find(|(c, had)| !had && self.has(*c));
        new.map(|(component, _)| component).ok_or_else(|| {
            Error::format(source.path(), "is of a kind of which there is one already")
        })
    }

    /// Adds every component of a single-file checkpoint; the VAE and the text encoder may be absent.
    pub fn add_single_file(&mut self, source: &Source) -> Result<()> {
        self.add_single(Scope::Everything, source)
    }

    /// Adds a single-file checkpoint without one component, even if the file contains it.
    pub fn add_single_file_except(&mut self, unwanted: Component, source: &Source) -> Result<()> {
        self.add_single(Scope::Except(unwanted), source)
    }

    fn add_single(&mut self, scope: Scope, source: &Source) -> Result<()> {
        if source_is_folder(source) {
            return Err(Error::format(source.path(), "is a folder, a single file is needed"));
        }
        self.add_file(scope, source).map(|_| ())
    }

    /// Adds motion modules from a file in any supported layout or a diffusers motion adapter folder, and AnimateLCM-I2V's
    /// image encoder if the file has it.
    pub fn add_motion(&mut self, source: &Source) -> Result<()> {
        self.add_scope(Scope::Motion, source, Component::UNet.stems(), &["motion_adapter"])
    }

    fn add_scope(
        &mut self,
        scope: Scope,
        source: &Source,
        stems: &[folder::Stem],
        folders: &[&str],
    ) -> Result<()> {
        if !source_is_folder(source) {
            return self.add_file(scope, source).map(|_| ());
        }
        let archives = archives_in(source.path(), stems, folders)?;
        self.add_archives(scope, &archives).map(|_| ())
    }

    fn add_file(&mut self, scope: Scope, source: &Source) -> Result<&'static str> {
        let archive = Arc::new(Archive::open(source)?);
        self.add_archives(scope, &[archive])
    }

    /// Translates the names of archives that together form one checkpoint; returns the dialect's name.
    fn add_archives(&mut self, scope: Scope, archives: &[Arc<Archive>]) -> Result<&'static str> {
        let Some(first) = archives.first() else { return Ok("nothing") };
        let path = first.path();
        let names: Names = archives
            .iter()
            .flat_map(|archive| archive.tensors())
            .map(|(name, info)| (name, info.shape.clone()))
            .collect();
        let is = |foreign: Foreign| {
            Error::format(path, format!("is {}", foreign.what)).with_hint(foreign.hint)
        };
        if let Some(foreign) = dialect::recognise(&names, scope.optional()) {
            return Err(is(foreign));
        }
        let dialect =
            DIALECTS.iter().find(|dialect| (dialect.detect)(&names)).ok_or_else(|| {
                let all: Vec<&str> = names.iter().map(|(name, _)| name).collect();
                if all.is_empty() {
                    Error::format(path, "holds no tensors")
                } else {
                    Error::format(path, format!("names an unknown model: {}", some(&all)))
                }
            })?;
        let map = (dialect.mapper)(&names);

        // Collected first and committed at the end, so a rejected file leaves the checkpoint unchanged.
        let mut found: BTreeMap<Component, BTreeMap<String, Located>> = BTreeMap::new();
        let mut ignored = Vec::new();
        let mut unknown = Vec::new();
        let mut positions = None;
        for (offset, archive) in archives.iter().enumerate() {
            let mut ignore = |component, name: &str, why: &str| {
                let (name, path) = (name.to_owned(), archive.path().to_path_buf());
                ignored.push((component, Ignored { name, path, why: why.to_owned() }));
            };
            for (stored, info) in archive.tensors() {
                match map(stored) {
                    Mapped::To { component, name, transform } => {
                        if !scope.covers(component, &name) {
                            ignore(Some(component), stored, "not asked for");
                            continue;
                        }
                        let shape = transform.shape(&info.shape);
                        let located = Located {
                            archive: self.archives.len() + offset,
                            stored: stored.to_owned(),
                            shape,
                        };
                        let name_of = quoted(&name);
                        let parts = found.entry(component).or_default();
                        if let Some(other) = parts.insert(name, located) {
                            return Err(Error::format(
                                path,
                                format!(
                                    "{} and {} are both {name_of}",
                                    quoted(&other.stored),
                                    quoted(stored)
                                ),
                            ));
                        }
                    }
                    Mapped::Positions => {
                        let length = check_positions(archive, stored)?;
                        positions = positions.max(Some(length));
                        let owner = if scope == Scope::Control {
                            Component::SparseCtrl
                        } else {
                            Component::UNet
                        };
                        ignore(Some(owner), stored, "positions are computed");
                    }
                    Mapped::Ignored { why } => ignore(None, stored, why),
                    Mapped::UnknownIn(component) if !scope.covers(component, "") => {
                        ignore(Some(component), stored, "not asked for");
                    }
                    Mapped::UnknownIn(_) | Mapped::Unknown => unknown.push(stored),
                }
            }
        }
        for (component, located) in &found {
            let names: Vec<&str> = located.keys().map(String::as_str).collect();
            let shape = |name: &str| located.get(name).map(|at| at.shape.clone());
            if let Some(foreign) = dialect::misfit(*component, &names, shape) {
                return Err(is(foreign));
            }
        }
        if found.is_empty() {
            let (what, wanted) = (dialect.name, scope.name());
            // "an LDM checkpoint", "an AnimateDiff motion module".
            let article = if what.starts_with(['A', 'L']) { "an" } else { "a" };
            let reason = format!("has no {wanted} weights; it is {article} {what}");
            let error = Error::format(path, reason);
            let is_motion = names.iter().all(|(name, _)| is_motion(name));
            return Err(if scope == Scope::Control && is_motion {
                error.with_hint("give motion modules with --motion")
            } else {
                error
            });
        }
        if !unknown.is_empty() {
            let (count, names) = (unknown.len(), some(&unknown));
            let reason = format!("{count} tensors are not known in a {}: {names}", dialect.name);
            return Err(Error::format(path, reason));
        }

        for (component, located) in found {
            let index = self.index.entry(component).or_default();
            for (name, at) in located {
                let after = at.archive;
                if let Some(before) = index.insert(name, at) {
                    *self.replaced.entry((component, before.archive, after)).or_default() += 1;
                }
            }
        }
        self.archives.extend(archives.iter().cloned());
        self.ignored.extend(ignored);
        self.positions = self.positions.max(positions);
        Ok(dialect.name)
    }

    /// Marks the weights whose canonical name `matches` as ignored, with the given reason.
    ///
    /// For models built without a part, such as the VAE's encoder or the motion modules.
    pub fn ignore(&mut self, component: Component, why: &str, matches: impl Fn(&str) -> bool) {
        let Some(index) = self.index.get_mut(&component) else { return };
        let archives = &self.archives;
        let ignored = &mut self.ignored;
        index.retain(|name, at| {
            let keep = !matches(name);
            if !keep {
                let path = archives.get(at.archive).map_or(Path::new(""), |a| a.path());
                let path = path.to_path_buf();
                let name = at.stored.clone();
                ignored.push((Some(component), Ignored { name, path, why: why.to_owned() }));
            }
            keep
        });
    }

    /// Returns whether the checkpoint has any weight of a component.
    pub fn has(&self, component: Component) -> bool {
        self.index.get(&component).is_some_and(|index| !index.is_empty())
    }

    /// Returns whether the UNet has motion modules.
    pub fn has_motion(&self) -> bool {
        self.names(Component::UNet).any(is_motion)
    }

    /// The length in frames of the longest position table stored in a motion file, which is the number of frames the
    /// motion module was trained for. AnimateLCM's own file stores none.
    pub fn stored_positions(&self) -> Option<usize> {
        self.positions
    }

    /// The canonical names of a component's weights, sorted.
    pub fn names(&self, component: Component) -> impl Iterator<Item = &str> {
        self.index.get(&component).into_iter().flat_map(|index| index.keys().map(String::as_str))
    }

    /// The shape of a weight by its canonical name.
    pub fn shape_of(&self, component: Component, name: &str) -> Option<&[usize]> {
        self.index.get(&component)?.get(name).map(|at| at.shape.as_slice())
    }

    /// The element type in which a weight is stored, by its canonical name.
    pub fn element_of(&self, component: Component, name: &str) -> Option<ElementType> {
        let at = self.index.get(&component)?.get(name)?;
        self.archives.get(at.archive)?.info(&at.stored).map(|info| info.element)
    }

    /// The open files, in the order in which they were added.
    pub fn archives(&self) -> &[Arc<Archive>] {
        &self.archives
    }

    /// The identities of the files that a component's weights come from.
    pub(crate) fn identity(&self, component: Component) -> String {
        let index = self.index.get(&component);
        let used: BTreeSet<usize> =
            index.into_iter().flat_map(BTreeMap::values).map(|at| at.archive).collect();
        let archives = used.into_iter().filter_map(|archive| self.archives.get(archive));
        archives.map(|archive| archive.identity()).collect::<Vec<_>>().join(", ")
    }

    /// All tensors ignored so far, in all components.
    pub fn ignored(&self) -> impl Iterator<Item = &Ignored> {
        self.ignored.iter().map(|(_, ignored)| ignored)
    }

    /// Builds one component with `model` and accounts for its tensors.
    ///
    /// `model` receives a `VarBuilder` at the root of the component's canonical names, which returns tensors of `dtype`
    /// (`F32`, `F16` or `BF16`) on `device`.
    ///
    /// # Errors
    ///
    /// A weight that is missing, has another shape, is not finite, or was not requested; a patch some of whose weights
    /// were not found.
    pub fn build<T>(
        &self,
        component: Component,
        dtype: DType,
        device: &Device,
        patches: &PatchStack,
        model: impl Fn(VarBuilder<'static>) -> Result<T>,
    ) -> Result<(T, LoadReport)> {
        self.rebuild(component, patches, &mut Resident::empty(dtype, device), model)
    }

    /// Compares the weights `model` requests with the file headers, without reading or allocating any weight.
    ///
    /// # Errors
    ///
    /// A weight that is missing, has another shape, or was not requested; any error of the constructor.
    pub fn check<T>(
        &self,
        component: Component,
        model: impl Fn(VarBuilder<'static>) -> Result<T>,
    ) -> Result<()> {
        Self::survey(component.name(), &self.index_of(component)?, DType::F32, model)
    }

    fn index_of(&self, component: Component) -> Result<Arc<BTreeMap<String, Located>>> {
        let index = self.index.get(&component).cloned().unwrap_or_default();
        if index.is_empty() {
            let reason = match self.archives.first() {
                Some(_) => "none of the given files has its weights",
                None => "no file with its weights was given",
            };
            return Err(Error::Missing { name: component.to_string(), reason: reason.to_owned() });
        }
        Ok(Arc::new(index))
    }

    fn survey<T>(
        component: &str,
        index: &Arc<BTreeMap<String, Located>>,
        dtype: DType,
        model: impl FnOnce(VarBuilder<'static>) -> Result<T>,
    ) -> Result<()> {
        let (survey, error) = Survey::of(index, dtype, model);
        let unexpected: Vec<&String> =
            index.keys().filter(|name| !survey.used.contains(*name)).collect();
        match error {
            _ if !survey.fits() => Err(misfits(component, &survey, &unexpected)),
            // The shapes match, so the configuration is invalid: it describes a network that cannot exist.
            Some(error @ Error::Tensor(_)) => {
                let (component, summary) = (component.to_string(), error.to_string());
                Err(Error::Weights { component, summary }.with_hint(
                    "heads and groups are in no tensor's shape, only in the config.json that belongs to the file",
                ))
            }
            Some(error) => Err(error),
            None if unexpected.is_empty() => Ok(()),
            None => Err(misfits(component, &survey, &unexpected)),
        }
    }

    /// Builds one component like [`build`](Self::build), but takes `resident` tensors instead of reading and patching
    /// them; all tensors of the new model are then stored in `resident`.
    ///
    /// Resident tensors are not checked against the current files and patches: call [`Resident::forget`] for every
    /// weight affected by a change of patches first.
    ///
    /// # Errors
    ///
    /// Those of [`build`](Self::build).
    pub fn rebuild<T>(
        &self,
        component: Component,
        patches: &PatchStack,
        resident: &mut Resident,
        model: impl Fn(VarBuilder<'static>) -> Result<T>,
    ) -> Result<(T, LoadReport)> {
        let (dtype, device) = (resident.dtype(), resident.device().clone());
        let index = self.index_of(component)?;
        Self::survey(component.name(), &index, dtype, &model)?;
        let patches: Vec<_> = patches.of(component).cloned().collect();
        let record = Record {
            patched: vec![0; patches.len()],
            resident: std::mem::take(&mut resident.tensors),
            keeps: resident.keeps,
            ..Record::default()
        };
        let record = Arc::new(Mutex::new(record));
        let backend = Backend {
            archives: self.archives.clone(),
            index: Arc::clone(&index),
            patches: patches.clone(),
            record: Arc::clone(&record),
        };
        let built = model(VarBuilder::from_backend(Box::new(backend), dtype, device));

        // Taken out of the mutex, because the model may keep its builder and with it the backend.
        let record = std::mem::take(&mut *record.lock().unwrap_or_else(PoisonError::into_inner));
        resident.tensors = record.resident;
        if let Some(failure) = record.failure {
            return Err(failure);
        }
        let built = built?;
        for entry in &patches {
            let lost: Vec<&String> =
                entry.patch.names().iter().filter(|name| !record.used.contains(*name)).collect();
            if !lost.is_empty() {
                let (count, of) = (lost.len(), entry.patch.names().len());
                return Err(Error::Adapter {
                    adapter: entry.patch.label().to_owned(),
                    reason: format!(
                        "{count} of the {of} weights that it changes are not in the {component}: {}",
                        some(&lost)
                    ),
                });
            }
        }
        let labels = patches.iter().map(|entry| entry.patch.label().to_owned());
        let report = LoadReport {
            component,
            used: record.used.len(),
            reused: record.reused,
            bytes: record.bytes,
            files: self.counts(&index),
            ignored: self
                .ignored
                .iter()
                .filter(|(of, _)| of.is_none_or(|of| of == component))
                .map(|(_, ignored)| ignored.clone())
                .collect(),
            replaced: self.replacements(component),
            patched: labels.zip(record.patched).collect(),
        };
        Ok((built, report))
    }

    fn path_of(&self, archive: usize) -> PathBuf {
        self.archives.get(archive).map(|archive| archive.path().to_path_buf()).unwrap_or_default()
    }

    fn counts(&self, index: &BTreeMap<String, Located>) -> BTreeMap<PathBuf, usize> {
        let mut counts = BTreeMap::new();
        for at in index.values() {
            *counts.entry(self.path_of(at.archive)).or_default() += 1;
        }
        counts
    }

    fn replacements(&self, component: Component) -> Vec<Replaced> {
        self.replaced
            .iter()
            .filter(|((of, ..), _)| *of == component)
            .map(|((component, before, after), count)| Replaced {
                component: *component,
                count: *count,
                before: self.path_of(*before),
                after: self.path_of(*after),
            })
            .collect()
    }
}

/// Description of a file that is not a checkpoint, as a phrase that follows "is", and a hint.
pub(crate) fn foreign_model(archive: &Archive) -> Option<(&'static str, &'static str)> {
    let names: Names = archive.tensors().map(|(name, info)| (name, info.shape.clone())).collect();
    dialect::recognise(&names, &[]).map(|foreign| (foreign.what, foreign.hint))
}

/// Description of a file that has a LoRA's tensor names but is not a LoRA, as a phrase that follows "is", and a hint.
pub(crate) fn foreign_lora(archive: &Archive) -> Option<(&'static str, &'static str)> {
    let names: Names = archive.tensors().map(|(name, info)| (name, info.shape.clone())).collect();
    dialect::recognise_in_lora(&names).map(|foreign| (foreign.what, foreign.hint))
}

fn source_is_folder(source: &Source) -> bool {
    matches!(source, Source::File(path) if path.is_dir())
}

/// Maximum number of values in a position table: thousands of frames.
const MOST_POSITIONS: usize = 1 << 22;

/// Checks a stored position table against the computed one and returns its length.
fn check_positions(archive: &Archive, name: &str) -> Result<usize> {
    let shape = archive.info(name).map(|info| info.shape.as_slice()).unwrap_or_default();
    let &[_, length, channels] = shape else {
        let reason = format!("{} has the shape {shape:?}", quoted(name));
        return Err(Error::format(archive.path(), reason));
    };
    let values = archive.values(name, MOST_POSITIONS)?;
    for (i, value) in values.iter().enumerate() {
        let (position, channel) = (i / channels % length, i % channels);
        let computed = dialect::position(position, channel, channels);
        if (value - computed).abs() > dialect::POSITION_TOLERANCE {
            return Err(Error::format(
                archive.path(),
                format!(
                    "{} is not the usual table: position {position}, channel {channel} is {value}, \
                     not {computed}",
                    quoted(name)
                ),
            )
            .with_hint("this motion module was trained with other positions"));
        }
    }
    Ok(length)
}

/// Opens the weights in a folder. Shards form one checkpoint; a single shard would not be recognized.
fn archives_in(path: &Path, stems: &[folder::Stem], folders: &[&str]) -> Result<Vec<Arc<Archive>>> {
    let Files { paths, promised } = folder::find(path, stems, folders)?;
    let archives: Vec<Arc<Archive>> = paths
        .iter()
        .map(|path| Archive::open(&Source::File(path.clone())).map(Arc::new))
        .collect::<Result<_>>()?;
    if let Some((index, promised)) = promised {
        for (archive, names) in archives.iter().zip(promised.values()) {
            if let Some(name) = names.iter().find(|name| archive.info(name).is_none()) {
                let shard = archive.path().display();
                return Err(Error::format(
                    index,
                    format!("promises tensor {} in {shard}, which lacks it", quoted(name)),
                ));
            }
        }
    }
    Ok(archives)
}

/// A one-line error describing how the weights and the model differ.
fn misfits(component: &str, survey: &Survey, unexpected: &[&String]) -> Error {
    let mut parts = Vec::new();
    let missing: Vec<&String> = survey.missing.iter().collect();
    let at_least = if survey.is_cut() { "at least " } else { "" };
    if !missing.is_empty() {
        parts.push(format!("{at_least}{} weights missing ({})", missing.len(), some(&missing)));
    }
    if let Some((name, (stored, wanted))) = survey.misshapen.iter().next() {
        parts.push(format!(
            "{at_least}{} of another shape ({} is {stored:?}, the model wants {wanted:?})",
            survey.misshapen.len(),
            quoted(name)
        ));
    }
    if !unexpected.is_empty() && !survey.is_cut() {
        parts.push(format!("{} not wanted ({})", unexpected.len(), some(unexpected)));
    }
    let error = Error::Weights { component: component.to_string(), summary: parts.join(", ") };

    let all_motion =
        |names: &[&String]| !names.is_empty() && names.iter().all(|name| is_motion(name));
    let misshapen: Vec<&String> = survey.misshapen.keys().collect();
    if all_motion(&misshapen) && (missing.is_empty() || all_motion(&missing)) {
        return error.with_hint("the motion modules were made for a model of other sizes");
    }
    if all_motion(&missing) && unexpected.is_empty() {
        return error.with_hint("the model wants motion modules that no given file has");
    }
    if all_motion(unexpected) && missing.is_empty() {
        return error.with_hint("the files have motion modules that the model does not want");
    }
    let pair = missing.iter().take(20).find_map(|name| {
        let near = report::nearest(name, unexpected.iter().take(2000).copied())?;
        Some(format!("{} instead of {}", quoted(near), quoted(name)))
    });
    match pair {
        Some(pair) => error.with_hint(format!("did the file mean {pair}?")),
        None => error,
    }
}
