//! Weights: which model, adapter or part of a model they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::super::to_json;
use super::media::Seen;
use super::{Table, header};
use crate::adapters::lora::Lora;
use crate::error::Bytes;
use crate::models::image_projection::{FeatureKind, IpAdapterConfig, Projection};
use crate::text::inversion::Inversion;
use crate::weights::{Archive, Checkpoint, Component, Source, find_text, sha256};
use crate::{Error, Result, Stop};

/// Description of a weight file.
#[derive(Debug, Serialize)]
struct About {
    /// The folder of a pipeline's component.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// The kind of model, in words.
    kind: String,
    /// The reason why it cannot be used, or what it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// Whether this program can use it.
    supported: bool,
    /// Weights of each component that it has, once loaded.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    components: BTreeMap<&'static str, usize>,
    /// Frames that a motion module's stored position tables reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_positions: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lora: Option<LoraFacts>,
    files: Vec<FileFacts>,
}

/// Properties of a LoRA derived from its names and shapes.
#[derive(Debug, Default, Serialize)]
struct LoraFacts {
    modules: usize,
    in_text_encoder: usize,
    in_motion_modules: usize,
    /// Modules of the images' UNet by what they do.
    layers: BTreeMap<&'static str, usize>,
    /// Words for prompts that it brings along.
    words: Vec<String>,
    ranks: BTreeSet<usize>,
    /// Values of alpha, as text because floats have no order.
    alphas: BTreeSet<String>,
}

/// Properties of a file from its header, and its hash.
#[derive(Debug, Serialize)]
struct FileFacts {
    file: String,
    layout: String,
    tensors: usize,
    parameters: u64,
    /// Number of tensors of each element type.
    dtypes: BTreeMap<&'static str, usize>,
    bytes: u64,
    sha256: String,
    metadata: BTreeMap<String, String>,
}

/// Contents of a folder.
#[derive(Debug, Serialize)]
struct Folder {
    path: String,
    kind: String,
    parts: Vec<About>,
}

/// Describes a weight file.
pub(super) fn file(archive: &Archive, as_json: bool, stop: &Stop) -> Result<String> {
    let source = archive.source().clone();
    let mut checkpoint = Checkpoint::new();
    let about = match checkpoint.add_single_file(&source) {
        Ok(()) => About::of(&checkpoint, stop)?,
        Err(error) => {
            let facts = vec![FileFacts::of(archive, stop)?];
            About::of_refused(&source, archive, &error, facts, stop)?
        }
    };
    if as_json { to_json(&about) } else { Ok(about.to_text(&source.path().display().to_string())) }
}

/// Describes a pipeline's folder, or that of one of its components.
pub(super) fn folder(path: &Path, as_json: bool, stop: &Stop) -> Result<String> {
    let mut parts = Vec::new();
    let mut failure = None;
    for part in PARTS {
        let inner = path.join(part.folder);
        stop.check()?;
        if inner.is_dir() {
            parts.push(part.describe(&inner, stop).unwrap_or_else(|error| part.unreadable(&error)));
        }
    }
    if parts.is_empty()
        && let Ok(lora) = Lora::open(&Source::from(path.to_path_buf()), "")
    {
        return file(lora.archive(), as_json, stop);
    }
    if parts.is_empty() {
        // Perhaps it is a component's own folder.
        for part in PARTS {
            match part.describe(path, stop) {
                Ok(about) => {
                    parts.push(About { name: None, ..about });
                    break;
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
    }
    stop.check()?;
    let mut contents = None;
    if let (true, Some(error)) = (parts.is_empty(), failure) {
        parts = inside(path, stop)?;
        if parts.is_empty() {
            return Err(error);
        }
        let is_training = path.join("metrics.jsonl").is_file() || path.join("state").is_dir();
        contents = Some(if is_training { "a training run" } else { "a folder" });
    }
    let class = match class(&path.join("model_index.json"))? {
        Some(class) => Some(class),
        None => class(&path.join("config.json"))?,
    };
    let kind = class.map_or_else(
        || contents.unwrap_or("a folder").into(),
        |class| format!("a folder of diffusers, {class}"),
    );
    let folder = Folder { path: path.display().to_string(), kind, parts };
    if as_json {
        return to_json(&folder);
    }
    let mut text = format!("{}: {}\n", folder.path, folder.kind);
    for part in &folder.parts {
        text.push('\n');
        text.push_str(&part.to_text(part.name.as_deref().unwrap_or("weights")));
    }
    Ok(text)
}

/// What lies in a folder that is no model itself: models, adapters and images. Nothing is hashed.
fn inside(path: &Path, stop: &Stop) -> Result<Vec<About>> {
    let entries = std::fs::read_dir(path).map_err(Error::file(path))?;
    let mut entries = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(Error::file(path))?;
    entries.sort();
    let mut found = Vec::new();
    for inner in entries {
        stop.check()?;
        let Some(name) = inner.file_name().map(|name| name.to_string_lossy().into_owned()) else {
            continue;
        };
        let is_model = |name: &str| inner.join(name).is_file();
        if inner.is_dir() {
            if is_model("model_index.json") || is_model("config.json") {
                let class = match class(&inner.join("model_index.json"))? {
                    Some(class) => Some(class),
                    None => class(&inner.join("config.json"))?,
                };
                let class = class.map(|class| format!(", {class}")).unwrap_or_default();
                let kind = format!("a folder of diffusers{class}");
                found.push(About { name: Some(name), kind, supported: true, ..About::unknown() });
            }
            continue;
        }
        if let Ok(archive) = Archive::open(&Source::from(inner.clone())) {
            let about = About::briefly(&archive, stop)?;
            found.push(About { name: Some(name), ..about });
        } else if let Ok(seen) = Seen::of(&inner, stop) {
            let kind = seen.to_string();
            found.push(About { name: Some(name), kind, supported: true, ..About::unknown() });
        }
        if found.len() >= MOST_ENTRIES {
            break;
        }
    }
    Ok(found)
}

/// The most entries of a folder that are described.
const MOST_ENTRIES: usize = 100;

/// A part of a diffusers pipeline.
struct Part {
    folder: &'static str,
    add: fn(&mut Checkpoint, &Source) -> Result<()>,
}

const PARTS: &[Part] = &[
    Part { folder: "unet", add: |c, source| c.add_component(Component::UNet, source) },
    Part { folder: "motion_adapter", add: Checkpoint::add_motion },
    Part { folder: "vae", add: |c, source| c.add_component(Component::Vae, source) },
    Part { folder: "controlnet", add: |c, source| c.add_control(source).map(|_| ()) },
    Part { folder: "adapter", add: |c, source| c.add_control(source).map(|_| ()) },
    Part { folder: "text_encoder", add: |c, source| c.add_component(Component::Text, source) },
    Part {
        folder: "image_encoder",
        add: |c, source| c.add_component(Component::ImageEncoder, source),
    },
];

impl Part {
    fn describe(&self, folder: &Path, stop: &Stop) -> Result<About> {
        let mut checkpoint = Checkpoint::new();
        (self.add)(&mut checkpoint, &Source::from(folder.to_path_buf()))?;
        Ok(About { name: Some(self.folder.into()), ..About::of(&checkpoint, stop)? })
    }

    fn unreadable(&self, error: &Error) -> About {
        let name = Some(self.folder.to_owned());
        About { name, note: Some(error.to_string()), ..About::unknown() }
    }
}

/// The `_class_name` of a diffusers configuration, if there is one.
fn class(config: &Path) -> Result<Option<String>> {
    let Some(text) = find_text(config)? else { return Ok(None) };
    let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    Ok(json.and_then(|json| json.get("_class_name")?.as_str().map(str::to_owned)))
}

impl About {
    fn unknown() -> Self {
        Self {
            name: None,
            kind: "weights of no known kind".into(),
            note: None,
            supported: false,
            components: BTreeMap::new(),
            stored_positions: None,
            lora: None,
            files: vec![],
        }
    }

    /// Describes the components of a checkpoint.
    fn of(checkpoint: &Checkpoint, stop: &Stop) -> Result<Self> {
        let count = |component| checkpoint.names(component).count();
        let all = Component::BASE.into_iter().chain([Component::I2vEncoder]);
        let all = all.chain(Component::OPTIONAL);
        let components = all.map(|component| (component.name(), count(component)));
        Ok(Self {
            kind: kind(checkpoint),
            supported: true,
            components: components.filter(|(_, count)| *count > 0).collect(),
            stored_positions: checkpoint.stored_positions(),
            files: checkpoint
                .archives()
                .iter()
                .map(|archive| FileFacts::of(archive, stop))
                .collect::<Result<_>>()?,
            ..Self::unknown()
        })
    }

    /// Describes a file by its names and shapes alone.
    fn briefly(archive: &Archive, stop: &Stop) -> Result<Self> {
        let mut checkpoint = Checkpoint::new();
        let source = archive.source();
        let about = match checkpoint.add_single_file(source) {
            Ok(()) => Self { kind: kind(&checkpoint), supported: true, ..Self::unknown() },
            Err(error) => Self::of_refused(source, archive, &error, vec![], stop)?,
        };
        Ok(Self { files: vec![], lora: None, ..about })
    }

    /// A file that the checkpoint loader refuses: a LoRA, or a model of another family.
    fn of_refused(
        source: &Source,
        archive: &Archive,
        error: &Error,
        files: Vec<FileFacts>,
        stop: &Stop,
    ) -> Result<Self> {
        let mut about = Self { files, ..Self::unknown() };
        if let Ok(lora) = Lora::open(source, source.path().display().to_string()) {
            about.kind = LoraFacts::kind(&lora);
            about.lora = Some(LoraFacts::of(&lora));
            about.supported = lora.made_for().is_none();
            return Ok(about);
        }
        if let Some(kind) = inversion_kind(source, archive) {
            (about.kind, about.supported) = kind;
            return Ok(about);
        }
        let mut beside = Checkpoint::new();
        let parts = [Component::ImageEncoder, Component::IpAdapter];
        if beside.add_control(source).is_ok()
            || parts.into_iter().any(|part| beside.add_component(part, source).is_ok())
        {
            if about.files.is_empty() {
                return Ok(Self { kind: kind(&beside), supported: true, ..about });
            }
            return Self::of(&beside, stop);
        }
        if let Some(kind) = latents_kind(archive) {
            (about.kind, about.supported) = (kind, true);
            return Ok(about);
        }
        let reason = reason(error);
        let advice = error.hint().map(std::borrow::Cow::into_owned);
        match reason.strip_prefix("is ") {
            Some(kind) => (about.kind, about.note) = (kind.to_owned(), advice),
            None => about.note = Some(reason),
        }
        Ok(about)
    }

    fn to_text(&self, title: &str) -> String {
        let mut table = Table(format!("{}: {}\n", title, self.kind));
        if let Some(note) = &self.note {
            table.row("note", note);
        }
        let components: Vec<String> =
            self.components.iter().map(|(name, count)| format!("{name} {count}")).collect();
        table.row_if("weights", &components.join(", "));
        if let Some(frames) = self.stored_positions {
            table.row("positions", format!("stored for {frames} frames"));
        }
        if let Some(lora) = &self.lora {
            table.row("modules", lora);
            let layers: Vec<String> =
                lora.layers.iter().map(|(layer, count)| format!("{layer} {count}")).collect();
            table.row_if("touches", &layers.join(", "));
            table.row_if("words", &lora.words.join(", "));
            let ranks: Vec<String> = lora.ranks.iter().map(ToString::to_string).collect();
            table.row_if("rank", &ranks.join(", "));
            let alphas: Vec<&str> = lora.alphas.iter().map(String::as_str).collect();
            table.row_if("alpha", &alphas.join(", "));
        }
        for file in &self.files {
            file.rows(&mut table);
        }
        table.0
    }
}

/// Description of a textual inversion, and whether it can be used. Only its width distinguishes it from other small
/// files.
fn inversion_kind(source: &Source, archive: &Archive) -> Option<(String, bool)> {
    let inversion = match Inversion::open(source, None) {
        Ok(inversion) => inversion,
        Err(error) => {
            let reason = reason(&error);
            let kind = reason.strip_prefix("is ").filter(|kind| kind.starts_with("a textual"));
            return kind.map(|kind| (kind.to_owned(), false));
        }
    };
    let width = inversion.words().first()?.vectors.dims()[1];
    let is_named = |name: &str| {
        matches!(name, "*" | "emb_params") || (name.starts_with('<') && name.ends_with('>'))
    };
    let family = match inversion.family() {
        Some(family) => family.to_owned(),
        // Of another width, but with names that nothing else has.
        None if archive.names().all(is_named) => format!("a text encoder of {width} channels"),
        None => return None,
    };
    let words: Vec<String> = inversion
        .words()
        .iter()
        .map(|word| format!("{} of {}", word.names.join(" or "), word.vectors.dims()[0]))
        .collect();
    let words = words.join(", ");
    let kind = format!("a textual inversion for {family}; words and vectors: {words}");
    let is_known = inversion.family().is_none() || inversion.check_width(768).is_ok();
    Some((kind, is_known))
}

/// Description of tensors as `generate --tensors-out` writes and `--tensors-in` takes them.
fn latents_kind(archive: &Archive) -> Option<String> {
    let (_, info) = archive.tensors().find(|(name, _)| *name == "latents")?;
    match info.shape.as_slice() {
        [1, 4, frames, height, width] => Some(format!(
            "latents of a clip for --tensors-in: {frames} frames of {}x{}",
            width * 8,
            height * 8
        )),
        _ => None,
    }
}

/// An error's text without the path that it begins with.
fn reason(error: &Error) -> String {
    match error {
        Error::Hinted { error, .. } => reason(error),
        Error::Format { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

/// Description of weights that the loaders accept.
fn kind(checkpoint: &Checkpoint) -> String {
    let has = |component| checkpoint.has(component);
    let is_motion = |name: &str| name.contains(".motion_modules.");
    let has_image_layers = checkpoint.names(Component::UNet).any(|name| !is_motion(name));
    let motion = if checkpoint.has_motion() { " with motion modules" } else { "" };
    if has_image_layers && (has(Component::Vae) || has(Component::Text)) {
        let missing: Vec<String> = [Component::Vae, Component::Text]
            .into_iter()
            .filter(|component| !has(*component))
            .map(|component| format!(", without {component}"))
            .collect();
        let family = "Stable Diffusion 1.5";
        let family = if is_sd15(checkpoint) {
            family.to_owned()
        } else {
            format!("the {family} family, of its own size")
        };
        return format!("a checkpoint of {family}{motion}{}", missing.concat());
    }
    if has_image_layers {
        return format!("a UNet{motion}");
    }
    if has(Component::UNet) {
        return motion_kind(checkpoint);
    }
    if let Some(control) = Component::CONTROLS.into_iter().find(|component| has(*component)) {
        return control_kind(checkpoint, control);
    }
    if has(Component::IpAdapter) {
        return ip_adapter_kind(checkpoint);
    }
    if has(Component::ImageEncoder) {
        let whole = if has(Component::Text) {
            "CLIP, image and text encoder"
        } else {
            "a CLIP image encoder"
        };
        return whole.into();
    }
    match (has(Component::Vae), has(Component::Text)) {
        (true, false) => {
            let is_tiny = checkpoint.names(Component::Vae).any(|n| n.contains("coder.layers."));
            (if is_tiny { "a tiny VAE (TAESD)" } else { "a VAE" }).into()
        }
        (false, true) => "a CLIP text encoder".into(),
        _ => "a VAE and a text encoder".into(),
    }
}

/// Description of a control network: its kind, its hints and the layers that it affects.
fn control_kind(checkpoint: &Checkpoint, component: Component) -> String {
    let shape = |name: &str| checkpoint.shape_of(component, name);
    let dim = |name: &str, axis| shape(name).and_then(|shape| shape.get(axis)).copied();
    let count = |prefix: &str, suffix: &str| {
        (0..).take_while(|i| shape(&format!("{prefix}.{i}.{suffix}")).is_some()).count()
    };
    let hint = "controlnet_cond_embedding";
    let skips =
        format!("adds to {} skips and the middle", count("controlnet_down_blocks", "weight"));
    let context = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let context = dim(context, 1).unwrap_or(0);
    match component {
        Component::SparseCtrl => {
            let follows = if shape(&format!("{hint}.weight")).is_some() {
                "latents of images"
            } else {
                "drawings"
            };
            format!(
                "a SparseCtrl network that follows {follows} in some frames, for a context of \
                 {context}; {skips}"
            )
        }
        Component::T2iAdapter => {
            let body = "adapter.body";
            let light = count(body, "out_conv.weight");
            let stages = light.max(count(body, "resnets.0.block1.weight"));
            let name = if light > 0 { "out_conv" } else { "resnets.0.block1" };
            let width = |i| dim(&format!("{body}.{i}.{name}.weight"), 0);
            let widths: Vec<usize> = (0..stages).filter_map(width).collect();
            let size = if light > 0 { "light" } else { "full" };
            let first = dim("adapter.conv_in.weight", 1);
            let inputs = first.or_else(|| dim(&format!("{body}.0.in_conv.weight"), 1));
            let hints = match inputs {
                Some(64) => " for grey hints",
                Some(192) => " for coloured hints",
                _ => "",
            };
            format!("a T2I-Adapter ({size}){hints}; adds to {stages} stages down, {widths:?} wide")
        }
        _ => format!("a ControlNet for a context of {context}; {skips}"),
    }
}

/// Description of an IP-Adapter: its kind, and the image features that it takes.
fn ip_adapter_kind(checkpoint: &Checkpoint) -> String {
    let shape = |name: &str| checkpoint.shape_of(Component::IpAdapter, name);
    let Ok(config) = IpAdapterConfig::from_shapes(|name| shape(name).map(<[usize]>::to_vec)) else {
        return "an IP-Adapter of no known kind".into();
    };
    let what = match config.feature_kind() {
        FeatureKind::Embedding => "embeddings",
        FeatureKind::Penultimate => "states",
    };
    let kind = match config.projection {
        Projection::Linear { tokens } => format!("{tokens} tokens"),
        Projection::Resampler { tokens, .. } => format!("plus, {tokens} tokens"),
        Projection::Mlp { .. } => "full".into(),
    };
    format!("an IP-Adapter ({kind}) for {what} of {} channels", config.features)
}

fn is_sd15(checkpoint: &Checkpoint) -> bool {
    let shape = |name| checkpoint.shape_of(Component::UNet, name);
    let cross = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    shape("conv_in.weight") == Some(&[320, 4, 3, 3]) && shape(cross) == Some(&[320, 768])
}

/// Whose motion modules they are. AnimateLCM stores no positions; AnimateDiff's versions differ in the number of
/// positions and in the modules of the middle.
fn motion_kind(checkpoint: &Checkpoint) -> String {
    let stored = checkpoint.archives().iter().flat_map(|archive| archive.names());
    if checkpoint.has(Component::I2vEncoder) {
        return "motion modules for image to video, with their image encoder (AnimateLCM-I2V)"
            .into();
    }
    if !stored.into_iter().any(|name| name.contains(".temporal_transformer.")) {
        return "motion modules (diffusers' motion adapter)".into();
    }
    let has_middle = checkpoint.names(Component::UNet).any(|name| name.starts_with("mid_block."));
    let version = match (checkpoint.stored_positions(), has_middle) {
        (None, _) => return "motion modules (AnimateLCM: no positions stored)".into(),
        (Some(24), false) => " v1",
        (Some(32), false) => " v3",
        (Some(_), true) => " v2",
        (Some(_), false) => "",
    };
    format!("motion modules (AnimateDiff{version})")
}

/// Parts of the names of the text encoder's modules and of motion modules.
const TEXT: [&str; 4] = ["lora_te", "text_encoder", "text_model", "cond_stage_model"];
const MOTION: [&str; 1] = ["motion_modules"];

/// Functions of the UNet's layers, by parts of their names in all spellings; the first that matches.
const LAYERS: [(&str, &[&str]); 6] = [
    ("attention to the prompt", &["attn2"]),
    ("self-attention", &["attn1"]),
    ("feed-forward", &["ff.net", "ff_net"]),
    ("norms", &["norm"]),
    ("projections", &["proj_in", "proj_out"]),
    (
        "convolutions",
        &["resnets", "samplers", "conv", "_layers", "skip_connection", "_0_op", ".0.op"],
    ),
];

impl LoraFacts {
    /// `a LoRA`, `a motion LoRA`, `an OFT`, `a LoHa for Stable Diffusion XL`.
    fn kind(lora: &Lora) -> String {
        let family = lora.family();
        let article = if family.starts_with(['H', 'I', 'O']) { "an" } else { "a" };
        if let Some(model) = lora.base() {
            format!("{article} {family} for {model}")
        } else if lora.modules().all(|module| module.contains("motion_modules")) {
            format!("a motion {family}")
        } else {
            format!("{article} {family}")
        }
    }

    fn of(lora: &Lora) -> Self {
        let archive = lora.archive();
        let count = |parts: &[&str]| {
            lora.modules().filter(|module| parts.iter().any(|part| module.contains(part))).count()
        };
        let words = lora.inversion().into_iter().flat_map(Inversion::words);
        let mut facts = Self {
            modules: lora.modules().count(),
            in_text_encoder: count(&TEXT),
            in_motion_modules: count(&MOTION),
            words: words.filter_map(|word| word.names.first().cloned()).collect(),
            ranks: lora.ranks(),
            ..Self::default()
        };
        for module in lora.modules() {
            let has = |parts: &[&str]| parts.iter().any(|part| module.contains(part));
            if has(&TEXT) || has(&MOTION) {
                continue;
            }
            let layer =
                LAYERS.iter().find(|(_, parts)| has(parts)).map_or("other", |(name, _)| name);
            *facts.layers.entry(layer).or_default() += 1;
        }
        for name in archive.names() {
            if name.ends_with(".alpha") {
                let value = archive.values(name, 1).unwrap_or_default();
                facts.alphas.extend(value.first().map(ToString::to_string));
            }
        }
        facts
    }
}

impl std::fmt::Display for LoraFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.modules)?;
        if self.in_text_encoder > 0 {
            write!(f, ", {} in the text encoder", self.in_text_encoder)?;
        }
        if self.in_motion_modules > 0 {
            write!(f, ", {} in motion modules", self.in_motion_modules)?;
        }
        Ok(())
    }
}

impl FileFacts {
    fn of(archive: &Archive, stop: &Stop) -> Result<Self> {
        let mut dtypes = BTreeMap::new();
        let mut parameters = 0u64;
        for (_, info) in archive.tensors() {
            *dtypes.entry(info.element.name()).or_default() += 1;
            parameters += info.shape.iter().map(|d| *d as u64).product::<u64>();
        }
        let path = archive.path();
        Ok(Self {
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            layout: archive.layout().to_string(),
            tensors: archive.tensors().count(),
            parameters,
            dtypes,
            bytes: std::fs::metadata(path).map_err(Error::file(path))?.len(),
            sha256: sha256(archive.source(), stop)?,
            metadata: archive.metadata().clone(),
        })
    }

    fn rows(&self, table: &mut Table) {
        let dtypes: Vec<String> =
            self.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
        table.row("file", format!("{}, {}, {}", self.file, self.layout, Bytes(self.bytes)));
        table.row("sha256", &self.sha256);
        table.row("tensors", format!("{} ({})", self.tensors, dtypes.join(", ")));
        table.row("parameters", thousands(self.parameters));
        header::rows(&self.metadata, table);
    }
}

/// `1 282 000`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 1_282_000].map(thousands),
            ["0", "999", "1 000", "1 282 000"].map(str::to_owned)
        );
    }
}
