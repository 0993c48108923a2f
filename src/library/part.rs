//! The networks of opened models: their size, and what makes two of them the same.

use std::fmt::Write;
use std::path::PathBuf;

use candle_core::{DType, Device};
use sha2::{Digest, Sha256};

use super::{Models, OpenSideNetwork, bytes, stored};
use crate::Quantize;
use crate::adapters::lora::LoraOptions;
use crate::device::Precision;
use crate::files;
use crate::text::inversion::Inversion;
use crate::weights::{Checkpoint, Component, random};
use crate::{Error, Result};

/// A network of opened [`Models`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The text encoder.
    Text,
    /// The UNet with its motion modules.
    UNet,
    /// AnimateLCM-I2V's image encoder.
    I2vEncoder,
    /// The VAE's decoder; a tiny VAE as a whole.
    Vae,
    /// The VAE's encoder.
    VaeEncoder,
    /// A ControlNet, SparseCtrl network or T2I-Adapter, by name.
    SideNetwork(String),
    /// An IP-Adapter, by name.
    IpAdapter(String),
    /// An image encoder, by path.
    ImageEncoder(PathBuf),
    /// The network for hints of depth.
    Depth,
}

/// What makes a loaded network: files, configuration, patches, device and dtype.
///
/// A file is known by path, length and time of change, a textual inversion by its vectors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(pub(super) String);

impl Models {
    /// The name of a part in events.
    pub(crate) fn part_name(&self, part: &Part) -> &'static str {
        match part {
            Part::Text => "text",
            Part::UNet => "unet",
            Part::I2vEncoder => "i2v-encoder",
            Part::Vae => "vae",
            Part::VaeEncoder => "vae-encoder",
            Part::SideNetwork(name) => {
                self.side_config(name).map_or("controlnet", |config| config.component().name())
            }
            Part::IpAdapter(_) => "ip-adapter",
            Part::ImageEncoder(_) => "image-encoder",
            Part::Depth => "depth-anything",
        }
    }

    /// Bytes of a network's weights; 0 if the files have none.
    pub fn bytes(&self, part: &Part, precision: Precision) -> u64 {
        let own = |component, dtype, quantize| match &self.drawn {
            Some(drawn) => bytes(drawn.get(&component).into_iter().flatten(), dtype, quantize),
            None => stored(&self.checkpoint, component, dtype, quantize),
        };
        match part {
            Part::Text => own(Component::Text, precision.text, Quantize::None),
            Part::UNet => own(Component::UNet, precision.unet, precision.quantize),
            Part::I2vEncoder => own(Component::I2vEncoder, precision.unet, precision.quantize),
            Part::Vae => own(Component::Vae, precision.vae, Quantize::None),
            Part::VaeEncoder if self.drawn.is_some() => {
                let shapes = random::inventory(|vb| self.vae.build_encoder(&vb));
                let shapes = shapes.unwrap_or_default().into_values();
                bytes(shapes, precision.vae, Quantize::None)
            }
            Part::VaeEncoder => {
                stored(&self.encoder, Component::Vae, precision.vae, Quantize::None)
            }
            Part::SideNetwork(name) => {
                self.side_networks.get(name).map_or(0, |net| net.bytes(precision))
            }
            Part::IpAdapter(name) => {
                self.ip_adapters.get(name).map_or(0, |adapter| adapter.bytes(precision.text))
            }
            Part::ImageEncoder(path) => {
                self.image_encoders.get(path).map_or(0, |encoder| encoder.bytes(precision.text))
            }
            Part::Depth => self.depth.as_ref().map_or(0, |depth| depth.bytes(precision.text)),
        }
    }

    /// What makes a part, with the strengths that its LoRAs have now.
    ///
    /// # Errors
    ///
    /// When there is no such part.
    pub(crate) fn key(&self, part: &Part, precision: Precision, device: &Device) -> Result<Key> {
        let Precision { unet, vae, text, quantize } = precision;
        let missing = |name: String| Error::Missing { name, reason: "was not opened".into() };
        Ok(Key(match part {
            Part::Text => {
                let mut key = self.key_of(Component::Text, &self.text, text, device);
                let _ = write!(key, " {:?}", self.tokenizer);
                for inversion in &self.embeddings {
                    key += &identity(inversion)?;
                }
                key
            }
            Part::UNet => {
                let key = self.key_of(Component::UNet, &self.unet, unet, device);
                format!("{key} {quantize:?}")
            }
            Part::I2vEncoder => {
                let key = self.key_of(Component::I2vEncoder, &self.i2v, unet, device);
                format!("{key} {quantize:?}")
            }
            Part::Vae => self.key_of(Component::Vae, &self.vae, vae, device),
            Part::VaeEncoder => {
                let files = files_of(&self.encoder, Component::Vae, self.drawn.is_some());
                format!("vae encoder {files} {:?} {vae:?} {device:?}", self.vae)
            }
            Part::SideNetwork(name) => {
                let net = self.side_networks.get(name).ok_or_else(|| missing(name.clone()))?;
                let OpenSideNetwork { checkpoint, config, drawn } = net;
                let files = files_of(checkpoint, config.component(), drawn.is_some());
                format!("{files} {config:?} {unet:?} {quantize:?} {device:?}")
            }
            Part::IpAdapter(name) => {
                let adapter = self.open_ip_adapter(name)?;
                let files = files_of(&adapter.checkpoint, Component::IpAdapter, false);
                format!("{files} {:?} {text:?} {device:?}", adapter.config)
            }
            Part::ImageEncoder(path) => {
                let encoder = self.open_image_encoder(path)?;
                let files = files_of(&encoder.checkpoint, Component::ImageEncoder, false);
                format!("{files} {:?} {text:?} {device:?}", encoder.config)
            }
            Part::Depth => {
                let depth = self.open_depth()?;
                format!("depth {} {:?} {text:?} {device:?}", depth.identity(), depth.config)
            }
        }))
    }

    /// What makes a component of the base files: those, its configuration, and the LoRAs that change it.
    fn key_of(
        &self,
        component: Component,
        config: &impl std::fmt::Debug,
        dtype: DType,
        device: &Device,
    ) -> String {
        let files = files_of(&self.checkpoint, component, self.drawn.is_some());
        let mut key = format!("{files} {config:?} {dtype:?} {device:?}");
        for lora in &self.loras {
            if !lora.patches.names(component).is_empty() {
                // The strength in other components changes nothing here.
                let options = match component {
                    Component::Text => LoraOptions { unet_strength: 0.0, ..lora.options },
                    _ => LoraOptions { text_strength: 0.0, ..lora.options },
                };
                let _ = write!(key, " {} {options:?}", lora.lora.archive().identity());
            }
        }
        if let Some(patches) = self.own_patches.get(&component) {
            let _ = write!(key, " patches {patches}");
        }
        key
    }
}

fn files_of(checkpoint: &Checkpoint, component: Component, is_drawn: bool) -> String {
    let files = if is_drawn { "random".to_owned() } else { checkpoint.identity(component) };
    format!("{component} of {files}")
}

/// The words of a textual inversion and a hash of their vectors.
fn identity(inversion: &Inversion) -> Result<String> {
    let mut text = String::new();
    for word in inversion.words() {
        let mut hash = Sha256::new();
        for value in word.vectors.flatten_all()?.to_vec1::<f32>()? {
            hash.update(value.to_le_bytes());
        }
        let _ = write!(text, " {:?} {}", word.names, files::hex(hash));
    }
    Ok(text)
}
