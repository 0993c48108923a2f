//! Networks: which files they are in, which sizes they have, and which are loaded.
//!
//! [`Models`] are opened files: headers and configurations. A [`Library`] keeps what is loaded of them.

mod build;
mod cache;
mod caption;
mod configs;
mod depth;
mod embedded;
mod facts;
mod files;
mod infer;
mod ip_adapters;
mod part;
mod side_networks;
mod stated;
mod taesd;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::DType;

pub use cache::Library;
pub use caption::Captioner;
use configs::Configs;
use depth::OpenDepth;
pub use depth::depth_network;
pub use files::{Base, EmbeddingFile, Files, LoraFile, Motion, Preset};
pub use ip_adapters::IpAdapterFile;
use ip_adapters::{OpenImageEncoder, OpenIpAdapter};
pub(crate) use part::Key;
pub use part::Part;
use side_networks::OpenSideNetwork;
pub(crate) use side_networks::open_side_network;
pub use side_networks::{ControlFile, SideConfig, SideNetwork};

use crate::Quantize;
use crate::adapters::lora::{Lora, LoraOptions, LoraReport, LoraScale};
use crate::models::clip::{TextConfig, TextEncoder};
use crate::models::i2v_encoder::{I2vEncoder, I2vEncoderConfig};
use crate::models::motion::MotionConfig;
use crate::models::unet::{UNet, UNetConfig};
use crate::models::vae::{TinyVaeConfig, VaeConfig};
use crate::request::{LEAST_PIXELS, MOST_PIXELS};
use crate::schedule::{self, BetaSchedule};
use crate::text::inversion::Inversion;
use crate::weights::{Checkpoint, Component, PatchStack, Source, WeightPatch, random, until};
use crate::{Error, Result, Stop};
use embedded::Embedded;

/// Open files and the sizes of the networks in them. Nothing is read until a network is built.
#[derive(Debug)]
pub struct Models {
    base: Base,
    checkpoint: Checkpoint,
    /// What weights each component has, where they are drawn and not in `checkpoint`.
    drawn: Option<BTreeMap<Component, DrawnShapes>>,
    loras: Vec<OpenLora>,
    adapters: Vec<LoraReport>,
    /// Changes of weights that come from no file.
    patches: PatchStack,
    /// A number that no other models share, for each component that `patches` change.
    own_patches: BTreeMap<Component, u64>,
    embeddings: Vec<Inversion>,
    side_networks: BTreeMap<String, OpenSideNetwork>,
    /// The base files once more, for the autoencoder's other half.
    encoder: Checkpoint,
    ip_adapters: BTreeMap<String, OpenIpAdapter>,
    image_encoders: BTreeMap<PathBuf, OpenImageEncoder>,
    depth: Option<OpenDepth>,
    unet: UNetConfig,
    /// AnimateLCM-I2V's image encoder, where the motion modules' file has it.
    i2v: Option<I2vEncoderConfig>,
    vae: VaeSizes,
    text: TextConfig,
    scheduler: schedule::Config,
    /// The folder of the tokenizer, where that is not CLIP's or the embedded model's.
    tokenizer: Option<PathBuf>,
    stop: Stop,
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
    fn validate(&self) -> Result<()> {
        match self {
            Self::Kl(config) => config.validate(),
            Self::Tiny(config) => config.validate(),
        }
    }

    /// How many pixels a latent is wide.
    fn factor(&self) -> usize {
        match self {
            Self::Kl(config) => config.factor(),
            Self::Tiny(config) => config.factor(),
        }
    }
}

impl Models {
    /// Opens all files, checks their names, and reads the configurations.
    ///
    /// # Errors
    ///
    /// When a file is missing, broken, or not what it is used as.
    pub fn open(files: &Files) -> Result<Self> {
        Self::open_until(files, &Stop::default())
    }

    /// [`open`](Self::open), which `stop` ends early, as it does every later build.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and [`Error::Cancelled`].
    pub fn open_until(files: &Files, stop: &Stop) -> Result<Self> {
        if let Base::Random(preset) = files.base {
            return Self::random(preset, files, stop);
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
            Base::File(file) => add_single_file(&mut checkpoint, file, files)?,
            Base::Random(_) => {}
        }
        if let Some(file) = &files.checkpoint {
            add_single_file(&mut checkpoint, file, files)?;
        }
        let mut vae_folder = None;
        if let Some(vae) = &files.vae {
            checkpoint.ignore(Component::Vae, "another autoencoder is used", |_| true);
            checkpoint.add_component(Component::Vae, &Source::from(vae.clone()))?;
            taesd::complete(&mut checkpoint, vae)?;
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
            None => infer::unet(&checkpoint)?,
        };
        unet.motion = checkpoint
            .has_motion()
            .then(|| motion_config(&configs, motion_folder.as_deref(), &checkpoint))
            .transpose()?;
        unet.validate()?;
        let i2v = i2v_encoder(&checkpoint, &unet)?;
        let vae = vae_sizes(&configs, vae_folder, &checkpoint)?;
        vae.validate()?;
        let mut encoder = checkpoint.clone();
        if matches!(vae, VaeSizes::Kl(_)) {
            let is_encoder =
                |name: &str| name.starts_with("encoder.") || name.starts_with("quant_conv.");
            checkpoint.ignore(Component::Vae, "only the decoder is needed", is_encoder);
            encoder.ignore(Component::Vae, "only the encoder is needed", |n| !is_encoder(n));
        }
        let text = match configs.read("text_encoder")? {
            Some(config) => config,
            None => infer::text(&checkpoint)?,
        };
        text.validate()?;
        agree(&unet, &vae, &text)?;
        let mut scheduler = scheduler(configs.read("scheduler")?, files, &unet, i2v.is_some());
        stated::apply(files, &checkpoint, &mut scheduler)?;
        checkpoint.check(Component::UNet, |vb| UNet::new(&unet, &vb))?;
        checkpoint.check(Component::Vae, |vb| vae.build(&vb))?;
        checkpoint.check(Component::Text, |vb| TextEncoder::new(&text, &vb))?;
        if let Some(config) = &i2v {
            checkpoint.check(Component::I2vEncoder, |vb| I2vEncoder::new(config, &vb))?;
        }

        let (mut loras, mut adapters, mut embeddings) = (Vec::new(), Vec::new(), Vec::new());
        let mut known = BTreeSet::new();
        for lora in &files.loras {
            stop.check()?;
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
                blocks: lora.blocks,
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
            stop.check()?;
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
            own_patches: BTreeMap::new(),
            embeddings,
            side_networks: BTreeMap::new(),
            encoder,
            ip_adapters: BTreeMap::new(),
            image_encoders: BTreeMap::new(),
            depth: None,
            unet,
            i2v,
            vae,
            text,
            scheduler,
            tokenizer: configs.tokenizer(),
            stop: stop.clone(),
        };
        for file in &files.controls {
            stop.check()?;
            let net = OpenSideNetwork::open(file, &models.unet, models.factor())?;
            net.check()?;
            if net.config().sees_latents() && models.encoder.has(Component::Vae) {
                models.encoder.check(Component::Vae, |vb| models.vae.build_encoder(&vb))?;
            }
            models.side_networks.insert(file.name.clone(), net);
        }
        if let Some(path) = &files.depth {
            models.depth = Some(OpenDepth::open(path)?);
        }
        for file in &files.ip_adapters {
            stop.check()?;
            let chosen = files.image_encoder.as_deref();
            let adapter = OpenIpAdapter::open(file, &models.unet, chosen, &models.base)?;
            let encoder = match models.image_encoders.entry(adapter.encoder.clone()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(OpenImageEncoder::open(&adapter.encoder)?),
            };
            adapter.check(&file.name, &encoder.config)?;
            adapter.check_weights()?;
            encoder.check()?;
            models.ip_adapters.insert(file.name.clone(), adapter);
        }
        Ok(models)
    }

    /// Networks of a preset's sizes; their weights are drawn when they are built.
    fn random(preset: Preset, files: &Files, stop: &Stop) -> Result<Self> {
        let is_alone = files.config.is_none()
            && files.checkpoint.is_none()
            && files.vae.is_none()
            && files.loras.is_empty()
            && files.embeddings.is_empty()
            && files.ip_adapters.is_empty()
            && files.depth.is_none()
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
                own_patches: BTreeMap::new(),
                embeddings: vec![],
                side_networks: BTreeMap::new(),
                encoder: Checkpoint::new(),
                ip_adapters: BTreeMap::new(),
                image_encoders: BTreeMap::new(),
                depth: None,
                unet: UNetConfig::sd15(),
                i2v: None,
                vae: VaeSizes::Kl(VaeConfig::default()),
                text: TextConfig::default(),
                scheduler: schedule::Config::default(),
                tokenizer: None,
                stop: stop.clone(),
            },
        };
        models.unet.motion = (files.motion == Motion::Base).then(MotionConfig::default);
        models.scheduler = scheduler(None, files, &models.unet, false);
        let shapes = |inventory: BTreeMap<String, Vec<usize>>| inventory.into_values().collect();
        let unet = random::inventory(|vb| UNet::new(&models.unet, &until(vb, stop)))?;
        let vae = random::inventory(|vb| models.vae.build(&until(vb, stop)))?;
        let text = random::inventory(|vb| TextEncoder::new(&models.text, &until(vb, stop)))?;
        for file in &files.controls {
            let net = OpenSideNetwork::random(file, &models.unet, stop)?;
            models.side_networks.insert(file.name.clone(), net);
        }
        models.drawn = Some(BTreeMap::from([
            (Component::UNet, shapes(unet)),
            (Component::Vae, shapes(vae)),
            (Component::Text, shapes(text)),
        ]));
        Ok(models)
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
        static COUNT: AtomicU64 = AtomicU64::new(0);
        self.own_patches.insert(component, COUNT.fetch_add(1, Ordering::Relaxed));
        self.patches.push(component, patch, strength);
    }
}

/// The last beta of AnimateLCM-I2V, for more noise at the same timesteps, and the steps of its teacher: those of
/// `configs/inference-i2v.yaml` in G-U-N/AnimateLCM@f873122358c101cd191533adb9cd517899fbfb01.
const I2V_SCHEDULE: (f64, usize) = (0.014, 200);

/// What is known of the noise schedule: the model's own word, but AnimateDiff's and AnimateLCM's linear betas where
/// motion modules come from elsewhere or nothing is said.
fn scheduler(
    own: Option<schedule::Config>,
    files: &Files,
    unet: &UNetConfig,
    is_i2v: bool,
) -> schedule::Config {
    let is_own = own.is_some() && !matches!(files.motion, Motion::File(_));
    let config = own.unwrap_or_default();
    if unet.motion.is_none() || is_own {
        return config;
    }
    let (beta_schedule, trained_betas) = (BetaSchedule::Linear, None);
    let config = schedule::Config { beta_schedule, trained_betas, ..config };
    let (beta_end, original_inference_steps) = match I2V_SCHEDULE {
        (beta_end, steps) if is_i2v => (beta_end, Some(steps)),
        _ => (config.beta_end, None),
    };
    schedule::Config { beta_end, original_inference_steps, ..config }
}

/// The sizes of AnimateLCM-I2V's image encoder, where the files have one.
fn i2v_encoder(checkpoint: &Checkpoint, unet: &UNetConfig) -> Result<Option<I2vEncoderConfig>> {
    if !checkpoint.has(Component::I2vEncoder) {
        return Ok(None);
    }
    if unet.layers_per_block < 2 {
        let summary = "acts on the second layer of each down block, the unet has one".to_owned();
        return Err(Error::Weights { component: Component::I2vEncoder.to_string(), summary });
    }
    Ok(Some(I2vEncoderConfig::beside(unet)))
}

/// Fails unless the networks take what the others make of it.
fn agree(unet: &UNetConfig, vae: &VaeSizes, text: &TextConfig) -> Result<()> {
    let latents = match vae {
        VaeSizes::Kl(config) => config.latent_channels,
        VaeSizes::Tiny(config) => config.latent_channels,
    };
    let (component, makes, wanted) = if text.hidden_size != unet.cross_attention_dim {
        (Component::Text, format!("states of {}", text.hidden_size), unet.cross_attention_dim)
    } else if latents != unet.in_channels {
        (Component::Vae, format!("latents of {latents}"), unet.in_channels)
    } else if unet.out_channels != unet.in_channels {
        (Component::UNet, format!("latents of {}", unet.out_channels), unet.in_channels)
    } else {
        let side = unet.sample_size * vae.factor();
        if (LEAST_PIXELS..=MOST_PIXELS).contains(&side) {
            return Ok(());
        }
        let size = unet.sample_size;
        let reason = format!("`sample_size` {size} makes frames of {side}x{side} pixels");
        return Err(Error::Missing { name: "unet config".into(), reason });
    };
    let summary = format!("makes {makes} channels, the unet takes {wanted}");
    Err(Error::Weights { component: component.to_string(), summary })
}

/// Shapes of weights that are in no file.
type DrawnShapes = Vec<Vec<usize>>;

/// Bytes of weights in a dtype.
fn bytes<S: AsRef<[usize]>>(
    shapes: impl IntoIterator<Item = S>,
    dtype: DType,
    quantize: Quantize,
) -> u64 {
    shapes.into_iter().map(|shape| quantize.bytes(shape.as_ref(), dtype)).sum()
}

/// Bytes of a component's weights in a dtype.
fn stored(checkpoint: &Checkpoint, component: Component, dtype: DType, quantize: Quantize) -> u64 {
    let shape = |name| checkpoint.shape_of(component, name).unwrap_or_default();
    bytes(checkpoint.names(component).map(shape), dtype, quantize)
}

/// Adds the motion modules; the folder in which a `config.json` may describe them, if there is one.
fn add_motion(checkpoint: &mut Checkpoint, files: &Files) -> Result<Option<PathBuf>> {
    let remove = |checkpoint: &mut Checkpoint, why| {
        checkpoint.ignore(Component::UNet, why, |name| name.contains(".motion_modules."));
        checkpoint.ignore(Component::I2vEncoder, why, |_| true);
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
        Some(folder) => configs::read(&folder.join("config.json"))?,
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
        let config = own.map(|path| configs::read(&path)).transpose()?.flatten();
        VaeSizes::Tiny(config.unwrap_or_default())
    } else {
        let own = own.map(|path| configs::read(&path)).transpose()?.flatten();
        let config = match own {
            Some(config) => Some(config),
            None => configs.read("vae")?,
        };
        VaeSizes::Kl(match config {
            Some(config) => config,
            None => infer::vae(checkpoint)?,
        })
    })
}

/// Adds a checkpoint, without its autoencoder where another one is given.
fn add_single_file(checkpoint: &mut Checkpoint, file: &Path, files: &Files) -> Result<()> {
    let source = Source::from(file.to_path_buf());
    match files.vae {
        Some(_) => checkpoint.add_single_file_except(Component::Vae, &source),
        None => checkpoint.add_single_file(&source),
    }
}
