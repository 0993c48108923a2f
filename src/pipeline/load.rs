//! Files to networks: which weights, which sizes.

mod ip_adapters;
mod side_networks;
mod sizes;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use candle_core::{DType, Device};
use serde::de::DeserializeOwned;

pub use ip_adapters::IpAdapterFile;
use ip_adapters::{OpenImageEncoder, OpenIpAdapter};
use side_networks::OpenSideNetwork;
pub use side_networks::{ControlFile, SideConfig, SideNetwork, SideWork};

use super::embedded::Embedded;
use super::flops::{self, ClipSize, UNetWork, Work};
use super::request::Request;
use crate::adapters::lora::{Lora, LoraOptions, LoraReport, LoraScale};
use crate::models::clip::{TextConfig, TextEncoder, VisionConfig, VisionEncoder};
use crate::models::image_projection::{IpAdapter, IpAdapterConfig};
use crate::models::motion::MotionConfig;
use crate::models::unet::{UNet, UNetConfig};
use crate::models::vae::{
    AutoencoderKl, AutoencoderTiny, KlEncoder, TinyVaeConfig, Vae, VaeConfig, VaeEncoder,
};
use crate::schedule::{self, NoiseSchedule, Prediction};
use crate::text::TextModel;
use crate::text::inversion::Inversion;
use crate::text::tokenizer::Tokenizer;
use crate::weights::{
    Checkpoint, Component, LoadReport, PatchStack, Resident, Source, WeightPatch, random,
};
use crate::{Error, Result};

/// The base model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// The one inside the program.
    Embedded,
    /// A diffusers pipeline's folder.
    Folder(PathBuf),
    /// One file with UNet and perhaps VAE and text encoder.
    File(PathBuf),
    /// No file: weights drawn by [`random`], to measure time and memory with.
    Random(Preset),
}

/// The sizes of a model without files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Stable Diffusion 1.5 with AnimateLCM's motion modules.
    Sd15,
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "sd15" => Ok(Self::Sd15),
            _ => Err(Error::request("random-weights", format!("`{name}` is not `sd15`"))),
        }
    }
}

impl std::fmt::Display for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sd15 => "sd15",
        })
    }
}

/// Where everything is: names already turned into local files.
#[derive(Clone, Debug)]
pub struct Files {
    /// The base model.
    pub base: Base,
    /// A folder with `unet/config.json` and so on, for sizes that a single file does not tell.
    pub config: Option<PathBuf>,
    /// A single file laid over the base.
    pub checkpoint: Option<PathBuf>,
    /// Another autoencoder: a file or a folder.
    pub vae: Option<PathBuf>,
    /// The motion modules.
    pub motion: Motion,
    /// LoRAs, in order.
    pub loras: Vec<LoraFile>,
    /// Textual inversions.
    pub embeddings: Vec<EmbeddingFile>,
    /// ControlNets, SparseCtrl networks and T2I-Adapters that requests may use.
    pub controls: Vec<ControlFile>,
    /// IP-Adapters that requests may use.
    pub ip_adapters: Vec<IpAdapterFile>,
    /// Their image encoder: a file or a folder. If left out, each is looked for near its adapter.
    pub image_encoder: Option<PathBuf>,
}

/// A textual inversion to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingFile {
    /// The file.
    pub source: Source,
    /// What it is called in prompts, if not as the file says.
    pub word: Option<String>,
}

/// Where motion modules come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Motion {
    /// From the base model, where it has any.
    #[default]
    Base,
    /// From this file or folder.
    File(PathBuf),
    /// From nowhere: pictures without motion.
    None,
}

/// A LoRA to apply.
#[derive(Clone, Debug)]
pub struct LoraFile {
    /// The file.
    pub source: Source,
    /// How strongly.
    pub scale: f64,
    /// How strongly in the text encoder, where that is not `scale`.
    pub text_scale: Option<f64>,
    /// Replaces every module's alpha/rank, as AnimateLCM's own code does.
    pub factor: Option<f64>,
    /// Whether it may fit in part.
    pub allow_partial: bool,
}

impl LoraFile {
    /// A LoRA at its full strength.
    pub fn new(source: impl Into<Source>) -> Self {
        Self {
            source: source.into(),
            scale: 1.0,
            text_scale: None,
            factor: None,
            allow_partial: false,
        }
    }
}

impl Files {
    /// Only a base model.
    pub fn new(base: Base) -> Self {
        Self {
            base,
            config: None,
            checkpoint: None,
            vae: None,
            motion: Motion::Base,
            loras: vec![],
            embeddings: vec![],
            controls: vec![],
            ip_adapters: vec![],
            image_encoder: None,
        }
    }

    /// The consistency LoRA of the embedded model.
    pub fn embedded_lora() -> Source {
        Embedded::LCM_LORA
    }
}

/// Open files and the sizes of the networks in them. Nothing is read until a network is built.
#[derive(Debug)]
pub struct Models {
    base: Base,
    checkpoint: Checkpoint,
    /// How many numbers each component has, where they are drawn and not in `checkpoint`.
    drawn: Option<BTreeMap<Component, u64>>,
    loras: Vec<OpenLora>,
    adapters: Vec<LoraReport>,
    /// Changes of weights that come from no file.
    patches: PatchStack,
    embeddings: Vec<Inversion>,
    side_networks: BTreeMap<String, OpenSideNetwork>,
    /// The base files once more, for the autoencoder's other half.
    encoder: Checkpoint,
    ip_adapters: BTreeMap<String, OpenIpAdapter>,
    image_encoders: BTreeMap<PathBuf, OpenImageEncoder>,
    unet: UNetConfig,
    vae: VaeSizes,
    text: TextConfig,
    scheduler: schedule::Config,
}

/// A LoRA and how it is applied.
#[derive(Debug)]
struct OpenLora {
    lora: Lora,
    options: LoraOptions,
    patches: PatchStack,
}

#[derive(Clone, Debug)]
enum VaeSizes {
    Kl(VaeConfig),
    Tiny(TinyVaeConfig),
}

impl VaeSizes {
    fn build(&self, vb: &candle_nn::VarBuilder) -> Result<Vae> {
        Ok(match self {
            Self::Kl(config) => Vae::Kl(Box::new(AutoencoderKl::decoder_only(config, vb)?)),
            Self::Tiny(config) => Vae::Tiny(Box::new(AutoencoderTiny::new(config, vb)?)),
        })
    }

    fn build_encoder(&self, vb: &candle_nn::VarBuilder) -> Result<VaeEncoder> {
        Ok(match self {
            Self::Kl(config) => VaeEncoder::Kl(Box::new(KlEncoder::new(config, vb)?)),
            Self::Tiny(config) => VaeEncoder::Tiny(Box::new(AutoencoderTiny::new(config, vb)?)),
        })
    }
}

impl Models {
    /// Opens all files, checks their names, and reads the configurations.
    ///
    /// # Errors
    ///
    /// When a file is missing, broken, or not what it is used as.
    pub fn open(files: &Files) -> Result<Self> {
        if let Base::Random(preset) = files.base {
            return Self::random(preset, files);
        }
        let configs = Configs { base: &files.base, extra: files.config.as_deref() };
        let mut checkpoint = Checkpoint::new();
        match &files.base {
            Base::Embedded => {
                checkpoint.add_component(Component::UNet, &Embedded::UNET)?;
                checkpoint.add_component(Component::Vae, &Embedded::VAE)?;
                checkpoint.add_component(Component::Text, &Embedded::TEXT)?;
            }
            Base::Folder(folder) => {
                let source = Source::from(folder.clone());
                checkpoint.add_component(Component::UNet, &source)?;
                if files.vae.is_none() {
                    checkpoint.add_component(Component::Vae, &source)?;
                }
                checkpoint.add_component(Component::Text, &source)?;
            }
            Base::File(file) => checkpoint.add_single_file(&Source::from(file.clone()))?,
            Base::Random(_) => {}
        }
        if let Some(file) = &files.checkpoint {
            checkpoint.add_single_file(&Source::from(file.clone()))?;
        }
        let mut vae_folder = None;
        if let Some(vae) = &files.vae {
            checkpoint.ignore(Component::Vae, "another autoencoder is used", |_| true);
            checkpoint.add_component(Component::Vae, &Source::from(vae.clone()))?;
            vae_folder = Some(vae.as_path());
        }
        let motion_folder = add_motion(&mut checkpoint, files)?;
        for (component, hint) in [
            (Component::UNet, "use a whole model as --model"),
            (Component::Vae, "name one with --vae"),
            (Component::Text, "use a whole model as --model"),
        ] {
            if !checkpoint.has(component) {
                let name = files.base.to_string();
                let reason = format!("has no {component}");
                return Err(Error::Missing { name, reason }.with_hint(hint));
            }
        }

        let mut unet: UNetConfig = match configs.read("unet")? {
            Some(config) => config,
            None => sizes::unet(&checkpoint)?,
        };
        unet.motion = checkpoint
            .has_motion()
            .then(|| motion_config(&configs, motion_folder.as_deref(), &checkpoint))
            .transpose()?;
        let vae = vae_sizes(&configs, vae_folder, &checkpoint)?;
        let mut encoder = checkpoint.clone();
        if matches!(vae, VaeSizes::Kl(_)) {
            let is_encoder =
                |name: &str| name.starts_with("encoder.") || name.starts_with("quant_conv.");
            checkpoint.ignore(Component::Vae, "only the decoder is needed", is_encoder);
            encoder.ignore(Component::Vae, "only the encoder is needed", |n| !is_encoder(n));
        }
        let text = match configs.read("text_encoder")? {
            Some(config) => config,
            None => sizes::text(&checkpoint)?,
        };
        let scheduler = configs.read("scheduler")?.unwrap_or_default();

        let (mut loras, mut adapters, mut embeddings) = (Vec::new(), Vec::new(), Vec::new());
        let mut known = BTreeSet::new();
        for lora in &files.loras {
            let name = lora.source.path().display().to_string();
            let adapter = Lora::open(&lora.source, name.clone())?;
            let path = adapter.archive().path();
            if !known.insert(path.canonicalize().unwrap_or_else(|_| path.to_path_buf())) {
                let reason = "is given twice".into();
                return Err(Error::Adapter { adapter: name, reason }
                    .with_hint("give it once, with the sum of its strengths"));
            }
            let options = LoraOptions {
                scale: lora.factor.map_or(LoraScale::AlphaOverRank, LoraScale::Fixed),
                allow_partial: lora.allow_partial,
                unet_strength: lora.scale,
                text_strength: lora.text_scale.unwrap_or(lora.scale),
            };
            let mut patches = PatchStack::new();
            adapters.push(adapter.apply(&checkpoint, &options, &mut patches)?);
            if let Some(inversion) = adapter.inversion() {
                inversion.check_width(text.hidden_size)?;
                embeddings.push(inversion.clone());
            }
            loras.push(OpenLora { lora: adapter, options, patches });
        }
        for file in &files.embeddings {
            let inversion = Inversion::open(&file.source, file.word.as_deref())?;
            inversion.check_width(text.hidden_size)?;
            embeddings.push(inversion);
        }
        let mut models = Self {
            base: files.base.clone(),
            checkpoint,
            drawn: None,
            loras,
            adapters,
            patches: PatchStack::new(),
            embeddings,
            side_networks: BTreeMap::new(),
            encoder,
            ip_adapters: BTreeMap::new(),
            image_encoders: BTreeMap::new(),
            unet,
            vae,
            text,
            scheduler,
        };
        for file in &files.controls {
            let net = OpenSideNetwork::open(file, &models.unet, models.factor())?;
            models.side_networks.insert(file.name.clone(), net);
        }
        for file in &files.ip_adapters {
            let chosen = files.image_encoder.as_deref();
            let adapter = OpenIpAdapter::open(file, &models.unet, chosen, &models.base)?;
            let encoder = match models.image_encoders.entry(adapter.encoder.clone()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(OpenImageEncoder::open(&adapter.encoder)?),
            };
            adapter.check(&file.name, &encoder.config)?;
            models.ip_adapters.insert(file.name.clone(), adapter);
        }
        Ok(models)
    }

    /// Networks of a preset's sizes; their weights are drawn when they are built.
    fn random(preset: Preset, files: &Files) -> Result<Self> {
        let is_alone = files.config.is_none()
            && files.checkpoint.is_none()
            && files.vae.is_none()
            && files.loras.is_empty()
            && files.embeddings.is_empty()
            && files.ip_adapters.is_empty()
            && !matches!(files.motion, Motion::File(_));
        if !is_alone {
            let reason = "random weights cannot be mixed with those of files";
            return Err(Error::request("random-weights", reason));
        }
        let mut models = match preset {
            Preset::Sd15 => Self {
                base: files.base.clone(),
                checkpoint: Checkpoint::new(),
                drawn: None,
                loras: vec![],
                adapters: vec![],
                patches: PatchStack::new(),
                embeddings: vec![],
                side_networks: BTreeMap::new(),
                encoder: Checkpoint::new(),
                ip_adapters: BTreeMap::new(),
                image_encoders: BTreeMap::new(),
                unet: UNetConfig::sd15(),
                vae: VaeSizes::Kl(VaeConfig::default()),
                text: TextConfig::default(),
                scheduler: schedule::Config::default(),
            },
        };
        models.unet.motion = (files.motion == Motion::Base).then(MotionConfig::default);
        let count = |shapes: BTreeMap<String, Vec<usize>>| -> u64 {
            shapes.values().map(|shape| shape.iter().product::<usize>() as u64).sum()
        };
        let unet = random::inventory(|vb| UNet::new(&models.unet, &vb))?;
        let vae = random::inventory(|vb| models.vae.build(&vb))?;
        let text = random::inventory(|vb| TextEncoder::new(&models.text, &vb))?;
        for file in &files.controls {
            let net = OpenSideNetwork::random(file, &models.unet)?;
            models.side_networks.insert(file.name.clone(), net);
        }
        models.drawn = Some(BTreeMap::from([
            (Component::UNet, count(unet)),
            (Component::Vae, count(vae)),
            (Component::Text, count(text)),
        ]));
        Ok(models)
    }

    /// All files that weights come from.
    pub fn sources(&self) -> Vec<Source> {
        let archives = self.checkpoint.archives().iter().map(|archive| archive.source().clone());
        let loras = self.loras.iter().map(|open| open.lora.archive().source().clone());
        let embeddings = self.embeddings.iter().map(|inversion| inversion.source().clone());
        let controls = self.side_networks.values().flat_map(OpenSideNetwork::sources);
        let ip_adapters = self.ip_adapters.values().flat_map(OpenIpAdapter::sources);
        let image_encoders = self.image_encoders.values().flat_map(OpenImageEncoder::sources);
        let beside = controls.chain(ip_adapters).chain(image_encoders);
        let mut sources: Vec<Source> = Vec::new();
        for source in archives.chain(loras).chain(embeddings).chain(beside) {
            // A LoRA's file may hold embeddings, too.
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        sources
    }

    /// The open base files: names, shapes, what was left aside.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What became of each LoRA.
    pub fn adapters(&self) -> &[LoraReport] {
        &self.adapters
    }

    /// Gives a LoRA other strengths in the UNet and in the text encoder; it is counted as in
    /// [`adapters`](Self::adapters).
    ///
    /// Returns the weights that are others from now on. Models that were built before keep theirs.
    ///
    /// # Errors
    ///
    /// When there is no such LoRA, or a strength is not a number.
    pub fn set_lora_strength(
        &mut self,
        lora: usize,
        unet: f64,
        text: f64,
    ) -> Result<BTreeMap<Component, BTreeSet<String>>> {
        let count = self.loras.len();
        let (Some(open), Some(report)) = (self.loras.get_mut(lora), self.adapters.get_mut(lora))
        else {
            return Err(Error::request(
                "lora",
                format!("there is none of number {lora} of {count}"),
            ));
        };
        if let Some(wrong) = [unet, text].into_iter().find(|strength| !strength.is_finite()) {
            return Err(Error::request("lora", format!("{wrong} is not a strength")));
        }
        let options = LoraOptions { unet_strength: unet, text_strength: text, ..open.options };
        let mut patches = PatchStack::new();
        *report = open.lora.apply(&self.checkpoint, &options, &mut patches)?;
        let before = std::mem::replace(&mut open.options, options);
        let strengths = [
            (Component::UNet, before.unet_strength, unet),
            (Component::Text, before.text_strength, text),
        ];
        let changed = strengths
            .into_iter()
            .filter(|(_, before, after)| before.to_bits() != after.to_bits())
            .map(|(component, ..)| {
                let names =
                    open.patches.names(component).into_iter().chain(patches.names(component));
                (component, names.map(str::to_owned).collect())
            })
            .filter(|(_, names): &(_, BTreeSet<String>)| !names.is_empty())
            .collect();
        open.patches = patches;
        Ok(changed)
    }

    /// Adds a change of a component's weights that comes from no file; it is made after those of the LoRAs.
    ///
    /// Models that were built before do not have it.
    pub fn add_patch(&mut self, component: Component, patch: Arc<dyn WeightPatch>, strength: f64) {
        self.patches.push(component, patch, strength);
    }

    /// The textual inversions.
    pub fn embeddings(&self) -> &[Inversion] {
        &self.embeddings
    }

    /// The UNet's sizes.
    pub fn unet_config(&self) -> &UNetConfig {
        &self.unet
    }

    /// Pixels (width, height) of the clips that the model was trained on.
    pub fn native_size(&self) -> (usize, usize) {
        let side = self.unet.sample_size * self.factor();
        (side, side)
    }

    /// How many pixels a latent is wide.
    pub fn factor(&self) -> usize {
        match &self.vae {
            VaeSizes::Kl(config) => config.factor(),
            VaeSizes::Tiny(config) => config.factor(),
        }
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> usize {
        self.unet.in_channels
    }

    /// Channels of the decoder's last stage.
    pub fn decoder_width(&self) -> usize {
        match &self.vae {
            VaeSizes::Kl(config) => config.block_out_channels[0],
            VaeSizes::Tiny(config) => config.decoder_block_out_channels[0],
        }
    }

    /// Channels of the encoder's first stage.
    pub fn encoder_width(&self) -> usize {
        match &self.vae {
            VaeSizes::Kl(config) => config.block_out_channels[0],
            VaeSizes::Tiny(config) => config.encoder_block_out_channels[0],
        }
    }

    /// The most frames that the motion modules can tell apart.
    pub fn longest_clip(&self) -> Option<usize> {
        self.unet.motion.as_ref().map(|motion| motion.motion_max_seq_length)
    }

    /// What the UNet's output means.
    pub fn prediction(&self) -> Prediction {
        self.scheduler.prediction_type
    }

    /// Whether DDIM's last step ends without noise.
    pub fn set_alpha_to_one(&self) -> bool {
        self.scheduler.set_alpha_to_one
    }

    /// The noise schedule of a request.
    pub fn schedule(&self, request: &Request) -> Result<NoiseSchedule> {
        schedule::Config {
            beta_schedule: request.betas(self.unet.motion.is_some()),
            beta_start: request.beta_start,
            beta_end: request.beta_end,
            trained_betas: None,
            ..self.scheduler.clone()
        }
        .schedule()
    }

    /// Bytes of the text encoder in f32.
    pub fn text_bytes(&self) -> u64 {
        self.bytes(Component::Text, DType::F32)
    }

    /// Bytes of the UNet.
    pub fn unet_bytes(&self, dtype: DType) -> u64 {
        self.bytes(Component::UNet, dtype)
    }

    /// Bytes of what is used of the autoencoder.
    pub fn vae_bytes(&self, dtype: DType) -> u64 {
        self.bytes(Component::Vae, dtype)
    }

    /// One pass of the UNet over a clip of `frames` frames of `size` (width, height) in pixels.
    pub fn unet_work(&self, frames: usize, size: (usize, usize)) -> UNetWork {
        flops::unet(&self.unet, self.clip_size(frames, size))
    }

    /// A clip of `frames` frames of `size` (width, height) in pixels, in latents.
    fn clip_size(&self, frames: usize, size: (usize, usize)) -> ClipSize {
        let (width, height) = (size.0 / self.factor(), size.1 / self.factor());
        ClipSize { frames, height, width, tokens: self.text.max_position_embeddings }
    }

    /// Decoding of `frames` frames of `size` (width, height) in pixels.
    pub fn decoder_work(&self, frames: usize, size: (usize, usize)) -> Work {
        let (width, height) = (size.0 / self.factor(), size.1 / self.factor());
        let frame = match &self.vae {
            VaeSizes::Kl(config) => flops::decoder(config, height, width),
            VaeSizes::Tiny(config) => flops::tiny_decoder(config, height, width),
        };
        frame * frames
    }

    /// Encoding of one prompt.
    pub fn text_work(&self) -> Work {
        flops::text(&self.text)
    }

    fn bytes(&self, component: Component, dtype: DType) -> u64 {
        if let Some(drawn) = &self.drawn {
            return drawn.get(&component).copied().unwrap_or(0) * dtype.size_in_bytes() as u64;
        }
        bytes(&self.checkpoint, component, dtype)
    }

    /// The networks beside the UNet that requests may use, by name: what they are, and their sizes.
    pub fn side_networks(&self) -> impl Iterator<Item = (&str, &SideConfig)> {
        self.side_networks.iter().map(|(name, net)| (name.as_str(), net.config()))
    }

    /// What the network of that name is, if there is one.
    pub fn side_config(&self, name: &str) -> Option<&SideConfig> {
        self.side_networks.get(name).map(OpenSideNetwork::config)
    }

    /// Bytes of a network beside the UNet; 0 if there is none of that name.
    pub fn side_network_bytes(&self, name: &str, dtype: DType) -> u64 {
        self.side_networks.get(name).map_or(0, |net| net.bytes(dtype))
    }

    /// What a network beside the UNet computes for a clip of `frames` frames of `size` (width, height) in pixels with
    /// `hints` pictures; nothing if there is none of that name.
    pub fn side_network_work(
        &self,
        name: &str,
        frames: usize,
        size: (usize, usize),
        hints: usize,
    ) -> SideWork {
        let clip = self.clip_size(frames, size);
        self.side_config(name).map_or_else(SideWork::default, |config| config.work(clip, hints))
    }

    /// Builds a network beside the UNet.
    ///
    /// # Errors
    ///
    /// When none of that name was opened, or its weights do not fit.
    pub fn side_network(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<(SideNetwork, LoadReport)> {
        match self.side_networks.get(name) {
            Some(net) => net.build(dtype, device),
            None => Err(Error::Missing { name: name.into(), reason: "was not opened".into() }),
        }
    }

    /// The names of the IP-Adapters that requests may use.
    pub fn ip_adapters(&self) -> impl Iterator<Item = &str> {
        self.ip_adapters.keys().map(String::as_str)
    }

    /// An IP-Adapter's sizes, its image encoder and that one's sizes.
    ///
    /// # Errors
    ///
    /// When none of that name was opened.
    pub fn ip_adapter_config(
        &self,
        name: &str,
    ) -> Result<(&IpAdapterConfig, &Path, &VisionConfig)> {
        let adapter = self.open_ip_adapter(name)?;
        let encoder = self.open_image_encoder(&adapter.encoder)?;
        Ok((&adapter.config, &adapter.encoder, &encoder.config))
    }

    /// Bytes of an IP-Adapter, or of none if there is none of that name.
    pub fn ip_adapter_bytes(&self, name: &str, dtype: DType) -> u64 {
        self.ip_adapters.get(name).map_or(0, |adapter| adapter.bytes(dtype))
    }

    /// Bytes of an image encoder; 0 if it was not opened.
    pub fn image_encoder_bytes(&self, path: &Path, dtype: DType) -> u64 {
        self.image_encoders.get(path).map_or(0, |encoder| encoder.bytes(dtype))
    }

    /// Builds an IP-Adapter.
    ///
    /// # Errors
    ///
    /// When none of that name was opened, or its weights do not fit.
    pub fn ip_adapter(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<(IpAdapter, LoadReport)> {
        self.open_ip_adapter(name)?.build(dtype, device)
    }

    /// Builds the image encoder of an IP-Adapter.
    ///
    /// # Errors
    ///
    /// When it was not opened, or its weights do not fit.
    pub fn image_encoder(
        &self,
        path: &Path,
        dtype: DType,
        device: &Device,
    ) -> Result<(VisionEncoder, LoadReport)> {
        self.open_image_encoder(path)?.build(dtype, device)
    }

    fn open_ip_adapter(&self, name: &str) -> Result<&OpenIpAdapter> {
        let missing = || Error::Missing { name: name.to_owned(), reason: "was not opened".into() };
        self.ip_adapters.get(name).ok_or_else(missing)
    }

    fn open_image_encoder(&self, path: &Path) -> Result<&OpenImageEncoder> {
        let name = || path.display().to_string();
        let missing = || Error::Missing { name: name(), reason: "was not opened".into() };
        self.image_encoders.get(path).ok_or_else(missing)
    }

    /// Builds the tokenizer and the text encoder.
    pub fn text(&self, dtype: DType, device: &Device) -> Result<(TextModel, LoadReport)> {
        self.rebuild_text(&mut Resident::new(dtype, device))
    }

    /// Builds the tokenizer and the text encoder of what is `resident` and the files; see
    /// [`Checkpoint::rebuild`].
    pub fn rebuild_text(&self, resident: &mut Resident) -> Result<(TextModel, LoadReport)> {
        let (encoder, report) =
            self.build(Component::Text, resident, |vb| TextEncoder::new(&self.text, &vb))?;
        let tokenizer = match &self.base {
            Base::Embedded => Tokenizer::from_files(
                Embedded::VOCABULARY,
                Embedded::MERGES,
                &crate::text::tokenizer::Settings::default(),
            )?,
            Base::Folder(folder) if folder.join("tokenizer").is_dir() => {
                Tokenizer::open(&folder.join("tokenizer"))?
            }
            Base::Folder(_) | Base::File(_) | Base::Random(_) => Tokenizer::clip()?,
        };
        if tokenizer.vocab_size() > self.text.vocab_size {
            return Err(Error::Weights {
                component: "text encoder".into(),
                summary: format!(
                    "the tokenizer knows {} tokens, the weights {}",
                    tokenizer.vocab_size(),
                    self.text.vocab_size
                ),
            });
        }
        let mut text = TextModel::new(tokenizer, encoder, resident.device());
        for inversion in &self.embeddings {
            text.add(inversion)?;
            // The encoder has a longer table of its own now.
            resident.forget([TextEncoder::TOKENS]);
        }
        Ok((text, report))
    }

    /// Builds the UNet.
    pub fn unet(&self, dtype: DType, device: &Device) -> Result<(UNet, LoadReport)> {
        self.rebuild_unet(&mut Resident::new(dtype, device))
    }

    /// Builds the UNet of what is `resident` and the files; see [`Checkpoint::rebuild`].
    pub fn rebuild_unet(&self, resident: &mut Resident) -> Result<(UNet, LoadReport)> {
        self.build(Component::UNet, resident, |vb| UNet::new(&self.unet, &vb))
    }

    /// Bytes of the autoencoder's encoder; 0 where the files have none.
    pub fn vae_encoder_bytes(&self, dtype: DType) -> u64 {
        match &self.drawn {
            Some(_) => {
                let shapes = random::inventory(|vb| self.vae.build_encoder(&vb));
                let shapes = shapes.unwrap_or_default();
                let count: usize = shapes.values().map(|s| s.iter().product::<usize>()).sum();
                (count * dtype.size_in_bytes()) as u64
            }
            None => bytes(&self.encoder, Component::Vae, dtype),
        }
    }

    /// Builds the autoencoder's encoder.
    ///
    /// # Errors
    ///
    /// When the files have none, or its weights do not fit.
    pub fn vae_encoder(&self, dtype: DType, device: &Device) -> Result<(VaeEncoder, LoadReport)> {
        let build = |vb: candle_nn::VarBuilder<'static>| self.vae.build_encoder(&vb);
        if self.drawn.is_some() {
            return random::build(Component::Vae, dtype, device, build);
        }
        self.check_encoder()?;
        self.encoder.build(Component::Vae, dtype, device, &PatchStack::new(), build)
    }

    /// Fails where the files have no encoder of the autoencoder.
    pub(super) fn check_encoder(&self) -> Result<()> {
        if self.drawn.is_some() || self.encoder.has(Component::Vae) {
            return Ok(());
        }
        let error = Error::Missing { name: "vae".into(), reason: "has no encoder".into() };
        Err(error.with_hint("name a whole autoencoder with --vae"))
    }

    /// Builds the autoencoder.
    pub fn vae(&self, dtype: DType, device: &Device) -> Result<(Vae, LoadReport)> {
        let mut resident = Resident::new(dtype, device);
        self.build(Component::Vae, &mut resident, |vb| self.vae.build(&vb))
    }

    fn build<T>(
        &self,
        component: Component,
        resident: &mut Resident,
        model: impl FnOnce(candle_nn::VarBuilder<'static>) -> Result<T>,
    ) -> Result<(T, LoadReport)> {
        if self.drawn.is_some() {
            return random::build(component, resident.dtype(), resident.device(), model);
        }
        let mut patches = PatchStack::new();
        for open in &self.loras {
            patches.append(&open.patches);
        }
        patches.append(&self.patches);
        self.checkpoint.rebuild(component, &patches, resident, model)
    }
}

impl std::fmt::Display for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded => f.write_str("the embedded model"),
            Self::Folder(path) | Self::File(path) => write!(f, "{}", path.display()),
            Self::Random(preset) => write!(f, "random weights of {preset}"),
        }
    }
}

/// Bytes of a component's weights in a number format.
fn bytes(checkpoint: &Checkpoint, component: Component, dtype: DType) -> u64 {
    let size = |name| {
        let shape = checkpoint.shape_of(component, name).unwrap_or_default();
        shape.iter().map(|d| *d as u64).product::<u64>()
    };
    let values: u64 = checkpoint.names(component).map(size).sum();
    values * dtype.size_in_bytes() as u64
}

/// Adds the motion modules; the folder in which a `config.json` may describe them, if there is one.
fn add_motion(checkpoint: &mut Checkpoint, files: &Files) -> Result<Option<PathBuf>> {
    let remove = |checkpoint: &mut Checkpoint, why| {
        checkpoint.ignore(Component::UNet, why, |name| name.contains(".motion_modules."));
    };
    match (&files.motion, &files.base) {
        (Motion::None, _) => {
            remove(checkpoint, "motion is switched off");
            Ok(None)
        }
        (Motion::File(path), _) => {
            remove(checkpoint, "other motion modules are used");
            checkpoint.add_motion(&Source::from(path.clone()))?;
            Ok(path.is_dir().then(|| path.clone()))
        }
        (Motion::Base, Base::Embedded) => {
            checkpoint.add_motion(&Embedded::MOTION)?;
            Ok(None)
        }
        (Motion::Base, Base::Folder(folder)) => {
            let adapter = folder.join("motion_adapter");
            if adapter.is_dir() {
                checkpoint.add_motion(&Source::from(adapter.clone()))?;
                return Ok(Some(adapter));
            }
            // A saved motion UNet has its modules and their sizes in `unet/`.
            Ok(Some(folder.join("unet")))
        }
        (Motion::Base, Base::File(_) | Base::Random(_)) => Ok(None),
    }
}

/// The motion modules' sizes. Heads and positions are in no tensor's shape.
fn motion_config(
    configs: &Configs<'_>,
    folder: Option<&Path>,
    checkpoint: &Checkpoint,
) -> Result<MotionConfig> {
    let own: Option<MotionConfig> = match folder {
        Some(folder) => read_json(&folder.join("config.json"))?,
        None => None,
    };
    let mut config = match own {
        Some(config) => config,
        None => {
            let near: Option<MotionConfig> = configs.read("motion_adapter")?;
            let default = MotionConfig::default();
            let longest = checkpoint.stored_positions().unwrap_or(default.motion_max_seq_length);
            MotionConfig { motion_max_seq_length: longest, ..near.unwrap_or(default) }
        }
    };
    config.use_motion_mid_block =
        checkpoint.names(Component::UNet).any(|name| name.starts_with("mid_block.motion_modules."));
    Ok(config)
}

fn vae_sizes(
    configs: &Configs<'_>,
    folder: Option<&Path>,
    checkpoint: &Checkpoint,
) -> Result<VaeSizes> {
    let is_tiny = checkpoint.names(Component::Vae).any(|name| name.starts_with("decoder.layers."));
    // A VAE of its own brings its sizes along or has Stable Diffusion's.
    let own = match folder {
        Some(path) if path.is_dir() => Some(path.join("config.json")),
        Some(path) => path.parent().map(|parent| parent.join("config.json")),
        None => None,
    };
    Ok(if is_tiny {
        let config = own.map(|path| read_json(&path)).transpose()?.flatten();
        VaeSizes::Tiny(config.unwrap_or_default())
    } else {
        let own = own.map(|path| read_json(&path)).transpose()?.flatten();
        let config = match own {
            Some(config) => Some(config),
            None => configs.read("vae")?,
        };
        VaeSizes::Kl(match config {
            Some(config) => config,
            None => sizes::vae(checkpoint)?,
        })
    })
}

/// Where configurations are looked for: the extra folder, then the base.
struct Configs<'a> {
    base: &'a Base,
    extra: Option<&'a Path>,
}

impl Configs<'_> {
    fn read<T: DeserializeOwned>(&self, part: &str) -> Result<Option<T>> {
        let file = if part == "scheduler" { "scheduler_config.json" } else { "config.json" };
        if let Some(extra) = self.extra
            && let Some(config) = read_json(&extra.join(part).join(file))?
        {
            return Ok(Some(config));
        }
        match self.base {
            Base::Embedded => Embedded::config(part)
                .map(|json| parse_json(Path::new(part), json.as_bytes()))
                .transpose(),
            Base::Folder(folder) => read_json(&folder.join(part).join(file)),
            Base::File(_) | Base::Random(_) => Ok(None),
        }
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => parse_json(path, &bytes).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file(path)(error)),
    }
}

fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::format(path, e.to_string()))
}
