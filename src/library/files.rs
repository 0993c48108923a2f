//! What is to be loaded, as files.

use std::path::PathBuf;

use super::embedded::Embedded;
use super::{ControlFile, IpAdapterFile};
use crate::adapters::lora::BlockFactors;
use crate::spelling::named;
use crate::weights::Source;

/// The base model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// The one inside the program.
    Embedded,
    /// A diffusers pipeline's folder.
    Folder(PathBuf),
    /// One file with UNet and perhaps VAE and text encoder.
    File(PathBuf),
    /// No file: weights drawn by [`random`](crate::weights::random), to measure time and memory with.
    Random(Preset),
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

/// The sizes of a model without files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Stable Diffusion 1.5 with AnimateLCM's motion modules.
    Sd15,
}

named!(Preset, "random-weights", {
    Sd15 = "sd15",
});

/// Where everything is: names already turned into local files.
#[derive(Clone, Debug, PartialEq)]
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
    /// The network for hints of depth: a folder, or a file with its configuration beside it.
    pub depth: Option<PathBuf>,
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
    /// From nowhere: images without motion.
    None,
}

/// A LoRA to apply.
#[derive(Clone, Debug, PartialEq)]
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
    /// Factors of the strengths, block by block.
    pub blocks: Option<BlockFactors>,
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
            blocks: None,
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
            depth: None,
        }
    }

    /// The small model inside the program, with its motion modules and its consistency LoRA.
    pub fn embedded() -> Self {
        let loras = vec![LoraFile::new(Self::embedded_lora())];
        Self { loras, ..Self::new(Base::Embedded) }
    }

    /// The consistency LoRA of the embedded model.
    pub fn embedded_lora() -> Source {
        Embedded::LCM_LORA
    }
}
