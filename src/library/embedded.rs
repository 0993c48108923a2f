//! The small trained model that is part of the program; see assets/pocket/README.md.

use crate::weights::Source;

/// The parts of the embedded model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Embedded;

macro_rules! asset {
    ($path:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pocket/", $path))
    };
}

macro_rules! text_asset {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pocket/base/", $path))
    };
}

impl Embedded {
    pub(super) const UNET: Source = Source::Embedded {
        name: "pocket/unet",
        bytes: asset!("base/unet/diffusion_pytorch_model.safetensors"),
    };
    pub(super) const VAE: Source = Source::Embedded {
        name: "pocket/vae",
        bytes: asset!("base/vae/diffusion_pytorch_model.safetensors"),
    };
    pub(super) const TEXT: Source = Source::Embedded {
        name: "pocket/text_encoder",
        bytes: asset!("base/text_encoder/model.safetensors"),
    };
    pub(super) const MOTION: Source =
        Source::Embedded { name: "pocket/motion", bytes: asset!("motion_lcm.safetensors") };
    pub(super) const LCM_LORA: Source =
        Source::Embedded { name: "pocket/lora", bytes: asset!("animatelcm_lora.safetensors") };

    pub(super) const VOCABULARY: &str = text_asset!("tokenizer/vocab.json");
    pub(super) const MERGES: &str = text_asset!("tokenizer/merges.txt");

    /// A component's `config.json`.
    pub(super) fn config(folder: &str) -> Option<&'static str> {
        match folder {
            "unet" => Some(text_asset!("unet/config.json")),
            "vae" => Some(text_asset!("vae/config.json")),
            "text_encoder" => Some(text_asset!("text_encoder/config.json")),
            "scheduler" => Some(text_asset!("scheduler/scheduler_config.json")),
            _ => None,
        }
    }
}
