//! Names to files: what `--model`, `--motion` and the rest stand for on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folders::Folders;
use crate::library::{Base, ControlFile, EmbeddingFile, Files, IpAdapterFile, LoraFile, Motion};
use crate::request::{Embedding, Request, Spec, WeightedFile};
use crate::spelling;
use crate::weights::{Checkpoint, Component, Source, find_text};
use crate::{Error, Result};

/// The motion modules that a base model without any is given, and the LoRA that belongs to them.
const DEFAULT_MOTION: &str = "animatelcm-t2v";
const DEFAULT_LORA: &str = "animatelcm-t2v-lora";

/// AnimateLCM-I2V's motion modules, and the LoRA that belongs to them.
const I2V_MOTION: &str = "animatelcm-i2v-motion";
const I2V_LORA: &str = "animatelcm-i2v-lora";

/// The word that switches a default off.
const NONE: &str = "none";

/// The variable with folders of one's own models.
const FOLDERS: &str = "ANIMATELCM_MODELS";

/// Finds published models, without the feature `hub` none, and those in folders of one's own.
#[derive(Debug)]
pub struct Names {
    folders: Folders,
    listed: Option<Listed>,
    #[cfg(feature = "hub")]
    hub: crate::hub::Hub,
}

/// The only names that jobs of clients may have: those of a list, and of published models that are downloaded. No name is
/// a path then.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// Files and folders by the field that they are for, and their name.
    pub models: BTreeMap<(String, String), PathBuf>,
    /// Images and videos by name, such as `upload:` and a hash.
    pub inputs: Inputs,
}

/// Finds an image or video by its name.
#[derive(Clone, Default)]
pub struct Inputs(Option<Arc<Find>>);

type Find = dyn Fn(&str) -> Option<PathBuf> + Send + Sync;

impl Inputs {
    /// Those that `find` knows.
    pub fn new(find: impl Fn(&str) -> Option<PathBuf> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(find)))
    }
}

impl std::fmt::Debug for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inputs").finish_non_exhaustive()
    }
}

impl Names {
    /// Finds models where the environment says: published ones in the hub's cache, one's own in the folders of
    /// `ANIMATELCM_MODELS`. Without the network if `offline`.
    ///
    /// # Errors
    ///
    /// When the environment makes no sense, or the manifest of one's own is wrong.
    pub fn new(offline: bool) -> Result<Self> {
        let folders = std::env::var_os(FOLDERS).unwrap_or_default();
        let folders = std::env::split_paths(&folders).filter(|path| !path.as_os_str().is_empty());
        let folders = Folders::new(FOLDERS, folders.collect())?;
        #[cfg(feature = "hub")]
        {
            let mut settings = crate::hub::Settings::from_environment()?;
            settings.offline |= offline;
            Ok(Self { folders, listed: None, hub: crate::hub::Hub::new(settings)? })
        }
        #[cfg(not(feature = "hub"))]
        {
            let _ = offline;
            Ok(Self { folders, listed: None })
        }
    }

    /// Searches these folders before those of the environment.
    ///
    /// # Errors
    ///
    /// When one is no folder.
    pub fn with_folders(mut self, folders: &[PathBuf]) -> Result<Self> {
        self.folders = Folders::new("models-dir", folders.to_vec())?.then(self.folders);
        Ok(self)
    }

    /// Finds what is listed, and nothing by its path.
    #[must_use]
    pub fn with_list(mut self, listed: Listed) -> Self {
        (self.folders, self.listed) = (Folders::default(), Some(listed));
        self
    }

    /// The files of each field's folders by name, such as `("lora", "pixel", …)`: for a list of what is there.
    ///
    /// # Errors
    ///
    /// When a folder cannot be listed.
    pub fn all(&self) -> Result<Vec<(&'static str, String, PathBuf)>> {
        self.folders.all()
    }

    /// The names of published models that are downloaded and can be a base.
    #[cfg(feature = "hub")]
    pub fn downloaded(&self) -> Vec<(String, &'static str)> {
        use crate::hub::manifest::{Entry, Kind};
        let entries = self.hub.catalog().entries().iter();
        let kind = |entry: &Entry| match entry {
            Entry::Model(model) => match model.kind {
                Kind::Base => Some("model"),
                Kind::Motion => Some("motion"),
                Kind::Lora => Some("lora"),
                Kind::Vae => Some("vae"),
                _ => None,
            },
            Entry::Preset(_) => Some("model"),
        };
        entries
            .filter(|entry| self.hub.resolve(entry.name(), None).is_ok())
            .filter_map(|entry| Some((entry.name().to_owned(), kind(entry)?)))
            .collect()
    }

    /// Without the hub there are no published models.
    #[cfg(not(feature = "hub"))]
    pub fn downloaded(&self) -> Vec<(String, &'static str)> {
        vec![]
    }

    /// The folder of downloaded models.
    #[cfg(feature = "hub")]
    pub fn cache(&self) -> Option<&Path> {
        Some(&self.hub.settings().cache)
    }

    /// Without the hub there is none.
    #[cfg(not(feature = "hub"))]
    pub fn cache(&self) -> Option<&Path> {
        None
    }

    /// The path of an image or video that a request names.
    ///
    /// # Errors
    ///
    /// When there is a list and the name is not on it.
    pub fn input(&self, field: &'static str, name: &str) -> Result<PathBuf> {
        let Some(Listed { inputs, .. }) = &self.listed else { return Ok(PathBuf::from(name)) };
        let found = inputs.0.as_ref().and_then(|find| find(name));
        found.ok_or_else(|| Error::request(field, format!("there is no `{name}`")))
    }

    /// The folders in which the LoRAs of prompts are.
    ///
    /// # Errors
    ///
    /// When a folder cannot be listed.
    pub fn lora_folders(&self) -> Result<Vec<PathBuf>> {
        self.folders.of("lora")
    }

    /// The folders made for textual inversions.
    ///
    /// # Errors
    ///
    /// When a folder cannot be listed.
    pub fn embedding_folders(&self) -> Result<Vec<PathBuf>> {
        self.folders.arranged("embedding")
    }

    /// The published models that a spec names and that have to be downloaded first.
    #[cfg(feature = "hub")]
    pub fn absent(&self, spec: &Spec) -> Vec<String> {
        use crate::hub::manifest::{Entry, Kind};
        let mut words: Vec<&str> = [&spec.model, &spec.checkpoint, &spec.vae, &spec.motion]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        words.extend(spec.lcm_lora.iter().chain(&spec.loras).map(|lora| lora.file.as_str()));
        let model = spec.model.as_deref().and_then(|word| self.hub.catalog().find(word).ok());
        let is_bare = matches!(model, Some(Entry::Model(model)) if model.kind == Kind::Base);
        let motion = spec.motion.as_deref().or(is_bare.then_some(DEFAULT_MOTION));
        let lora = motion.and_then(lora_of).filter(|_| spec.lcm_lora.is_none());
        words.extend(motion);
        words.extend(lora.as_ref().map(|lora| lora.file.as_str()));
        let mut absent = Vec::new();
        for word in words.into_iter().filter(|word| !Path::new(word).exists()) {
            let is_new = !absent.iter().any(|known| known == word);
            if is_new && self.is_published(word) && self.hub.resolve(word, None).is_err() {
                absent.push(word.to_owned());
            }
        }
        absent
    }

    /// Whether the network may be used.
    #[cfg(feature = "hub")]
    pub fn is_online(&self) -> bool {
        !self.hub.settings().offline
    }

    /// Whether a published model has this name.
    fn is_published(&self, word: &str) -> bool {
        #[cfg(feature = "hub")]
        return self.hub.catalog().find(word).is_ok();
        #[cfg(not(feature = "hub"))]
        {
            let _ = word;
            false
        }
    }

    /// The file or folder of a name in folders of one's own; published models come first.
    pub(super) fn own(&self, field: &'static str, word: &str) -> Result<Option<PathBuf>> {
        if self.folders.is_empty() || self.is_published(word) {
            return Ok(None);
        }
        self.folders.find(field, word)
    }

    /// What is said of a word that leads nowhere.
    fn unknown(&self, field: &'static str, word: &str) -> Error {
        if self.listed.is_some() {
            let reason = "no model of that name is here".to_owned();
            return Error::Missing { name: word.to_owned(), reason };
        }
        let is_path = word.contains(['/', '\\']) || Path::new(word).extension().is_some();
        let reason = if is_path {
            "no such file or folder"
        } else {
            "no file, folder or model of that name"
        };
        let error = Error::Missing { name: format!("--{field} {word}"), reason: reason.into() };
        let names = self.folders.names(field).unwrap_or_default();
        if let Some(near) = spelling::nearest(word, names.iter().map(String::as_str)) {
            return error.with_hint(format!("did you mean `{near}`?"));
        }
        if is_path {
            return error;
        }
        error.with_hint(
            "`animatelcm models list` shows the known names; --models-dir finds files of your own",
        )
    }

    #[cfg(feature = "hub")]
    fn bundle(&self, name: &str) -> Result<crate::hub::Bundle> {
        self.hub.resolve(name, None)
    }

    /// The file or folder of a path, or what the list has for it.
    fn at_once(&self, field: &str, word: &str) -> Option<PathBuf> {
        match &self.listed {
            Some(listed) => listed.models.get(&(field.to_owned(), word.to_owned())).cloned(),
            None => Some(PathBuf::from(word)).filter(|path| path.exists()),
        }
    }

    /// The file of a LoRA that was chosen by other files, not by a client.
    fn default_lora(&self, word: &str) -> Result<PathBuf> {
        let path = Path::new(word);
        if path.is_absolute() && path.exists() {
            return Ok(path.to_path_buf());
        }
        self.path("lcm-lora", word)
    }

    /// The file or folder of a path or of a published model.
    fn path(&self, field: &'static str, word: &str) -> Result<PathBuf> {
        if let Some(path) = self.at_once(field, word) {
            return Ok(path);
        }
        #[cfg(feature = "hub")]
        if self.hub.catalog().find(word).is_ok() {
            let bundle = self.bundle(word)?;
            return match bundle.parts.as_slice() {
                [part] => Ok(part.path().to_path_buf()),
                _ => Err(Error::request(field, format!("`{word}` is several models at once"))),
            };
        }
        match self.own(field, word)? {
            Some(path) => Ok(path),
            None => Err(self.unknown(field, word)),
        }
    }
}

/// The files of a spec.
///
/// # Errors
///
/// When a name leads nowhere.
pub fn files(spec: &Spec, names: &Names) -> Result<Files> {
    let mut lcm_lora = None;
    let mut files = match &spec.model {
        None => Files::new(Base::Embedded),
        Some(word) => base(word, names, &mut lcm_lora)?,
    };
    if let Some(config) = &spec.model_config {
        files.config = Some(folder("model-config", config, names)?);
    }
    if let Some(word) = &spec.checkpoint {
        files.checkpoint = Some(names.path("checkpoint", word)?);
    }
    if let Some(word) = &spec.vae {
        files.vae = Some(names.path("vae", word)?);
    }

    match spec.motion.as_deref() {
        Some(NONE) => files.motion = Motion::None,
        Some(word) => {
            lcm_lora = lcm_lora.or_else(|| lora_of(word));
            files.motion = Motion::File(names.path("motion", word)?);
        }
        None if files.motion == Motion::Base && !has_motion(&files.base)? => {
            if let Base::Folder(folder) = &files.base
                && !folder.join("unet").is_dir()
            {
                let reason = "is no diffusers folder: there is no `unet` in it".to_owned();
                return Err(Error::Missing { name: folder.display().to_string(), reason }
                    .with_hint("`animatelcm inspect` with the folder says what lies there"));
            }
            let path = names.path("motion", DEFAULT_MOTION).map_err(|error| {
                let base = &files.base;
                let reason = format!("has no motion modules, and {error}");
                Error::Missing { name: base.to_string(), reason }.with_hint(format!(
                    "`animatelcm models pull {DEFAULT_MOTION}`, or --motion FILE"
                ))
            })?;
            files.motion = Motion::File(path);
            lcm_lora = lcm_lora.or_else(|| lora_of(DEFAULT_MOTION));
        }
        None => {}
    }

    // The official code takes 1/8 for every consistency LoRA and 1 for every other one.
    let lora = |source: Source, chosen: &WeightedFile, legacy: f64| LoraFile {
        source,
        scale: chosen.scale,
        text_scale: chosen.text_scale,
        factor: spec.lora_legacy_scale.then_some(legacy),
        allow_partial: spec.allow_partial,
        blocks: chosen.blocks,
    };
    match &spec.lcm_lora {
        Some(chosen) if chosen.file == NONE => {}
        Some(chosen) => {
            let path = names.path("lcm-lora", &chosen.file)?;
            files.loras.push(lora(path.into(), chosen, 0.125));
        }
        None if files.base == Base::Embedded && files.motion == Motion::Base => {
            let factor = spec.lora_legacy_scale.then_some(0.125);
            files.loras.push(LoraFile { factor, ..LoraFile::new(Files::embedded_lora()) });
        }
        None => {
            if let Some(chosen) = &lcm_lora {
                let path = names.default_lora(&chosen.file)?;
                files.loras.push(lora(path.into(), chosen, 0.125));
            }
        }
    }
    for chosen in &spec.loras {
        let path = names.path("lora", &chosen.file)?;
        files.loras.push(lora(path.into(), chosen, 1.0));
    }
    for Embedding { file, word } in &spec.embeddings {
        let source = names.path("embedding", file)?.into();
        files.embeddings.push(EmbeddingFile { source, word: word.clone() });
    }
    if let Some(word) = &spec.image_encoder {
        files.image_encoder = Some(names.path("image-encoder", word)?);
    }
    Ok(files)
}

/// The networks beside the UNet that a request uses.
///
/// # Errors
///
/// When a name leads nowhere.
pub fn controls(request: &Request, names: &Names) -> Result<Vec<ControlFile>> {
    let open = |word: &str| {
        let source = names.path("control", word)?.into();
        Ok(ControlFile { name: word.to_owned(), source })
    };
    networks(request).into_iter().map(open).collect()
}

/// The names of the networks beside the UNet that a request uses. Several controls may share one.
pub fn networks(request: &Request) -> BTreeSet<&str> {
    request.controls.iter().map(|control| control.model.as_str()).collect()
}

/// The published network that makes hints of depth.
const DEPTH: &str = "depth-anything-v2-small";

/// The network for depth, where a request has a hint made by it.
///
/// # Errors
///
/// When a name leads nowhere.
pub fn depth(request: &Request, spec: &Spec, names: &Names) -> Result<Option<PathBuf>> {
    let is_used = request
        .controls
        .iter()
        .any(|control| control.preprocess.is_some_and(|made| made.needs_network()));
    if is_used { depth_model(spec.depth_model.as_deref(), names).map(Some) } else { Ok(None) }
}

/// The network for depth of that name, or the published one.
///
/// # Errors
///
/// When the name leads nowhere.
pub fn depth_model(word: Option<&str>, names: &Names) -> Result<PathBuf> {
    names.path("depth-model", word.unwrap_or(DEPTH))
}

/// The published network that describes images.
const CAPTION: &str = "blip-image-captioning-base";

/// The network for captions of that name, or the published one.
pub(super) fn caption_model(word: Option<&str>, names: &Names) -> Result<PathBuf> {
    names.path("caption-model", word.unwrap_or(CAPTION))
}

/// The IP-Adapters that a request uses.
pub fn ip_adapters(request: &Request, names: &Names) -> Result<Vec<IpAdapterFile>> {
    let open = |word: &str| {
        let source = names.path("ip-adapter", word)?.into();
        Ok(IpAdapterFile { name: word.to_owned(), source })
    };
    let words: BTreeSet<&str> = request.ip_adapters.iter().map(|a| a.model.as_str()).collect();
    words.into_iter().map(open).collect()
}

/// The LoRA that belongs to published motion modules, at the strength of their preset.
fn lora_of(motion: &str) -> Option<WeightedFile> {
    match motion {
        // Those of the official batch script and of the official page for images.
        DEFAULT_MOTION => Some(WeightedFile::new(DEFAULT_LORA, 1.0)),
        I2V_MOTION => Some(WeightedFile::new(I2V_LORA, 0.8)),
        _ => None,
    }
}

fn base(word: &str, names: &Names, lcm_lora: &mut Option<WeightedFile>) -> Result<Files> {
    let of = |path: &Path| {
        let path = path.to_path_buf();
        Files::new(if path.is_dir() { Base::Folder(path) } else { Base::File(path) })
    };
    if let Some(path) = names.at_once("model", word) {
        return Ok(of(&path));
    }
    #[cfg(feature = "hub")]
    if names.hub.catalog().find(word).is_ok() {
        use crate::hub::manifest::Kind;
        let bundle = names.bundle(word)?;
        let part = |kind| bundle.part(kind).map(|part| part.path().to_path_buf());
        let Some(folder) = part(Kind::Base) else {
            let reason = format!("`{word}` is not a base model");
            return Err(Error::request("model", reason));
        };
        let base = if folder.is_dir() { Base::Folder(folder) } else { Base::File(folder) };
        let motion = part(Kind::Motion).map_or(Motion::Base, Motion::File);
        if let Some(path) = part(Kind::Lora) {
            let file = path.to_string_lossy().into_owned();
            *lcm_lora = Some(WeightedFile::new(file, bundle.defaults.lora_scale.unwrap_or(1.0)));
        }
        return Ok(Files { motion, vae: part(Kind::Vae), ..Files::new(base) });
    }
    let _ = lcm_lora;
    match names.own("model", word)? {
        Some(path) => Ok(of(&path)),
        None => Err(names.unknown("model", word)),
    }
}

/// Fills in what a preset was made for, where the model is one.
///
/// # Errors
///
/// When the manifest names an unknown sampler or schedule.
#[cfg(feature = "hub")]
pub fn apply_defaults(names: &Names, spec: &Spec, request: &mut Request) -> Result<()> {
    let Some(word) = &spec.model else { return Ok(()) };
    if Path::new(word).exists() {
        return Ok(());
    }
    let Ok(crate::hub::manifest::Entry::Preset(preset)) = names.hub.catalog().find(word) else {
        return Ok(());
    };
    let defaults = &preset.defaults;
    let Request { size, sampling, schedule, output, .. } = request;
    if let Some(name) = &defaults.sampler {
        sampling.sampler = name.parse()?;
    }
    if let Some(name) = &defaults.spacing {
        sampling.spacing = Some(name.parse()?);
    }
    if let Some(name) = &defaults.beta_schedule {
        schedule.beta_schedule = Some(name.parse()?);
    }
    let count = |value: Option<u32>| value.map(|value| value as usize);
    size.width = count(defaults.width).or(size.width);
    size.height = count(defaults.height).or(size.height);
    size.frames = count(defaults.frames).or(size.frames);
    sampling.steps = count(defaults.steps).unwrap_or(sampling.steps);
    sampling.original_inference_steps =
        count(defaults.original_inference_steps).or(sampling.original_inference_steps);
    sampling.cfg_scale = defaults.cfg_scale.unwrap_or(sampling.cfg_scale);
    schedule.beta_start = defaults.beta_start.or(schedule.beta_start);
    schedule.beta_end = defaults.beta_end.or(schedule.beta_end);
    output.fps = defaults.fps.map_or(output.fps, f64::from);
    Ok(())
}

/// Without the hub no name has defaults.
///
/// # Errors
///
/// None.
#[cfg(not(feature = "hub"))]
pub fn apply_defaults(_: &Names, _: &Spec, _: &mut Request) -> Result<()> {
    Ok(())
}

fn folder(field: &'static str, word: &str, names: &Names) -> Result<PathBuf> {
    match names.at_once(field, word) {
        Some(path) if path.is_dir() => Ok(path),
        _ => Err(names.unknown(field, word)),
    }
}

/// Whether a base model brings motion modules along.
fn has_motion(base: &Base) -> Result<bool> {
    Ok(match base {
        Base::Embedded | Base::Random(_) => true,
        Base::Folder(folder) => {
            let config = folder.join("unet").join("config.json");
            folder.join("motion_adapter").is_dir()
                || find_text(&config)?.is_some_and(|text| text.contains("UNetMotionModel"))
        }
        Base::File(file) => {
            let mut checkpoint = Checkpoint::new();
            checkpoint.add_single_file_except(Component::Vae, &Source::from(file.clone()))?;
            checkpoint.has_motion()
        }
    })
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;
    use crate::hub::{Hub, Settings};
    use crate::sampler::SamplerKind;
    use crate::schedule::{BetaSchedule, Spacing};

    #[test]
    fn the_settings_of_a_preset_are_its_model_cards() {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::new(Settings::new(cache.path())).unwrap();
        let names = Names { folders: Folders::default(), hub, listed: None };
        for steps in [1, 2, 4, 8] {
            let model = Some(format!("animatediff-lightning-{steps}step"));
            let mut request = Request::default();
            apply_defaults(&names, &Spec { model, ..Spec::default() }, &mut request).unwrap();
            let Request { sampling, schedule, .. } = request;
            assert_eq!((sampling.sampler, sampling.steps), (SamplerKind::Euler, steps));
            assert_eq!((sampling.spacing, sampling.cfg_scale), (Some(Spacing::Trailing), 1.0));
            assert_eq!(schedule.beta_schedule, Some(BetaSchedule::Linear));
            assert_eq!((schedule.beta_start, schedule.beta_end), (Some(0.00085), Some(0.012)));
        }
    }

    #[test]
    fn absent_models_are_those_that_a_run_would_miss() {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::new(Settings::new(cache.path())).unwrap();
        let names = Names { folders: Folders::default(), listed: None, hub };
        let absent = |change: fn(&mut Spec)| {
            let mut spec = Spec::default();
            change(&mut spec);
            names.absent(&spec)
        };
        assert_eq!(absent(|_| ()), [""; 0]);
        let sd15 = ["sd15", "animatelcm-t2v", "animatelcm-t2v-lora"];
        assert_eq!(absent(|spec| spec.model = Some("sd15".into())), sd15);
        assert_eq!(absent(|spec| spec.model = Some("animatelcm".into())), ["animatelcm"]);
        assert_eq!(absent(|spec| spec.model = Some("mine.safetensors".into())), [""; 0]);
        let with_vae = absent(|spec| {
            spec.vae = Some("taesd".into());
            spec.motion = Some("none".into());
        });
        assert_eq!(with_vae, ["taesd"]);
    }

    #[test]
    fn published_names_come_before_files_of_the_same_name() {
        let cache = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir().unwrap();
        for name in ["taesd", "mine"] {
            std::fs::write(folder.path().join(format!("{name}.safetensors")), "").unwrap();
        }
        let hub = Hub::new(Settings::new(cache.path())).unwrap();
        let names = Names { folders: Folders::default(), listed: None, hub };
        let names = names.with_folders(&[folder.path().to_path_buf()]).unwrap();
        assert!(names.path("vae", "mine").unwrap().ends_with("mine.safetensors"));
        let error = names.path("vae", "taesd").unwrap_err();
        assert_eq!(error.to_string(), "taesd: not downloaded");
    }
}
