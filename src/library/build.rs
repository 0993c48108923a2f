//! Networks of what was opened.

use std::path::Path;

use candle_core::{DType, Device};

use super::embedded::Embedded;
use super::{Base, Models, OpenDepth, OpenImageEncoder, OpenIpAdapter, SideNetwork, VaeSizes};
use crate::Quantize;
use crate::device::Precision;
use crate::models::clip::{TextEncoder, VisionEncoder};
use crate::models::depth_anything::DepthAnything;
use crate::models::i2v_encoder::I2vEncoder;
use crate::models::image_projection::IpAdapter;
use crate::models::unet::UNet;
use crate::models::vae::{AutoencoderKl, AutoencoderTiny, KlEncoder, Vae, VaeEncoder};
use crate::text::TextModel;
use crate::text::tokenizer::{Settings, Tokenizer};
use crate::weights::{Component, LoadReport, PatchStack, Resident, VarBuilder, random, until};
use crate::{Error, Result, Stop};

impl VaeSizes {
    pub(super) fn build(&self, vb: &VarBuilder) -> Result<Vae> {
        Ok(match self {
            Self::Kl(config) => Vae::Kl(Box::new(AutoencoderKl::decoder_only(config, vb)?)),
            Self::Tiny(config) => Vae::Tiny(Box::new(AutoencoderTiny::new(config, vb)?)),
        })
    }

    pub(super) fn build_encoder(&self, vb: &VarBuilder) -> Result<VaeEncoder> {
        Ok(match self {
            Self::Kl(config) => VaeEncoder::Kl(Box::new(KlEncoder::new(config, vb)?)),
            Self::Tiny(config) => VaeEncoder::Tiny(Box::new(AutoencoderTiny::new(config, vb)?)),
        })
    }
}

impl Models {
    /// Ends every later build with [`Error::Cancelled`] once `stop` is requested.
    pub(crate) fn stop_with(&mut self, stop: &Stop) {
        self.stop = stop.clone();
    }

    /// Builds the tokenizer and the text encoder.
    pub fn text(&self, dtype: DType, device: &Device) -> Result<(TextModel, LoadReport)> {
        self.rebuild_text(&mut Resident::empty(dtype, device))
    }

    /// Builds the tokenizer and the text encoder of what is `resident` and the files; see
    /// [`Checkpoint::rebuild`](crate::weights::Checkpoint::rebuild).
    pub fn rebuild_text(&self, resident: &mut Resident) -> Result<(TextModel, LoadReport)> {
        let (encoder, report) =
            self.build(Component::Text, resident, |vb| TextEncoder::new(&self.text, &vb))?;
        let tokenizer = match (&self.tokenizer, &self.base) {
            (Some(folder), _) => Tokenizer::open(folder)?,
            (None, Base::Embedded) => {
                Tokenizer::from_files(Embedded::VOCABULARY, Embedded::MERGES, &Settings::default())?
            }
            (None, Base::Folder(_) | Base::File(_) | Base::Random(_)) => Tokenizer::clip()?,
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
        self.rebuild_unet(&mut Resident::empty(dtype, device), Quantize::None)
    }

    /// Builds the UNet of what is `resident` and the files; see [`Checkpoint::rebuild`](crate::weights::Checkpoint::rebuild).
    pub fn rebuild_unet(
        &self,
        resident: &mut Resident,
        quantize: Quantize,
    ) -> Result<(UNet, LoadReport)> {
        let build = |vb: VarBuilder<'static>| UNet::new(&self.unet, &vb.quantized(quantize));
        self.build(Component::UNet, resident, build)
    }

    /// Builds AnimateLCM-I2V's image encoder.
    ///
    /// # Errors
    ///
    /// When the files have none, or its weights do not fit.
    pub fn i2v_encoder(
        &self,
        precision: Precision,
        device: &Device,
    ) -> Result<(I2vEncoder, LoadReport)> {
        let Some(config) = &self.i2v else {
            let name = Component::I2vEncoder.to_string();
            return Err(Error::Missing { name, reason: "is in none of the files".into() });
        };
        let Precision { unet: dtype, quantize, .. } = precision;
        let build = |vb: VarBuilder<'static>| I2vEncoder::new(config, &vb.quantized(quantize));
        self.build(Component::I2vEncoder, &mut Resident::empty(dtype, device), build)
    }

    /// Builds the autoencoder's encoder.
    ///
    /// # Errors
    ///
    /// When the files have none, or its weights do not fit.
    pub fn vae_encoder(&self, dtype: DType, device: &Device) -> Result<(VaeEncoder, LoadReport)> {
        let build = |vb: VarBuilder<'static>| self.vae.build_encoder(&until(vb, &self.stop));
        if self.drawn.is_some() {
            return random::build(Component::Vae, dtype, device, build);
        }
        self.check_encoder()?;
        self.encoder.build(Component::Vae, dtype, device, &PatchStack::new(), build)
    }

    /// Fails where the files have no encoder of the autoencoder.
    pub(crate) fn check_encoder(&self) -> Result<()> {
        if self.drawn.is_some() || self.encoder.has(Component::Vae) {
            return Ok(());
        }
        let error = Error::Missing { name: "vae".into(), reason: "has no encoder".into() };
        Err(error.with_hint("name a whole autoencoder with --vae"))
    }

    /// Builds the autoencoder.
    pub fn vae(&self, dtype: DType, device: &Device) -> Result<(Vae, LoadReport)> {
        let mut resident = Resident::empty(dtype, device);
        self.build(Component::Vae, &mut resident, |vb| self.vae.build(&vb))
    }

    fn build<T>(
        &self,
        component: Component,
        resident: &mut Resident,
        model: impl Fn(VarBuilder<'static>) -> Result<T>,
    ) -> Result<(T, LoadReport)> {
        let model = |vb| model(until(vb, &self.stop));
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

    /// Builds a network beside the UNet.
    ///
    /// # Errors
    ///
    /// When none of that name was opened, or its weights do not fit.
    pub fn side_network(
        &self,
        name: &str,
        precision: Precision,
        device: &Device,
    ) -> Result<(SideNetwork, LoadReport)> {
        match self.side_networks.get(name) {
            Some(net) => net.build(precision, device, &self.stop),
            None => Err(Error::Missing { name: name.into(), reason: "was not opened".into() }),
        }
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
        self.open_ip_adapter(name)?.build(dtype, device, &self.stop)
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
        self.open_image_encoder(path)?.build(dtype, device, &self.stop)
    }

    /// Builds the network for hints of depth.
    ///
    /// # Errors
    ///
    /// When none was opened, or its weights do not fit.
    pub fn depth(&self, dtype: DType, device: &Device) -> Result<DepthAnything> {
        self.open_depth()?.build(dtype, device, &self.stop)
    }

    pub(super) fn open_depth(&self) -> Result<&OpenDepth> {
        let missing = || Error::Missing {
            name: "the network for depth".into(),
            reason: "was not opened".into(),
        };
        self.depth.as_ref().ok_or_else(missing)
    }

    pub(super) fn open_ip_adapter(&self, name: &str) -> Result<&OpenIpAdapter> {
        let missing = || Error::Missing { name: name.to_owned(), reason: "was not opened".into() };
        self.ip_adapters.get(name).ok_or_else(missing)
    }

    pub(super) fn open_image_encoder(&self, path: &Path) -> Result<&OpenImageEncoder> {
        let name = || path.display().to_string();
        let missing = || Error::Missing { name: name(), reason: "was not opened".into() };
        self.image_encoders.get(path).ok_or_else(missing)
    }
}
