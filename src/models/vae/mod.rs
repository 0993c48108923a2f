//! Autoencoders: images to latents and back.
//!
//! [`AutoencoderKl`] is Stable Diffusion's VAE; [`AutoencoderTiny`] (TAESD) is a distilled version that is far cheaper
//! and a little softer.

mod config;
mod decoder;
mod encoder;
mod latent_rgb;
mod tiling;
mod tiny;

pub use config::{TinyVaeConfig, VaeConfig};
pub use latent_rgb::latent_rgb;
pub use tiling::{Tiled, Tiling};
pub use tiny::AutoencoderTiny;

use crate::weights::VarBuilder;
use candle_core::Tensor;

use crate::kernels::layout::{feature_map, tokens};
use crate::models::Decode;
use crate::nn::{Attention, Conv2d, ConvOptions, GroupNorm, ResnetBlock, ResnetOptions};
use crate::{Error, Result, Stop};
use decoder::Decoder;
use encoder::Encoder;

/// The supported autoencoders.
#[derive(Clone, Debug)]
pub enum Vae {
    /// Stable Diffusion's VAE.
    Kl(Box<AutoencoderKl>),
    /// TAESD.
    Tiny(Box<AutoencoderTiny>),
}

impl Vae {
    /// Encodes images `(batch, 3, height, width)` in `[-1, 1]` to the mean of the scaled latents.
    pub fn encode(&self, images: &Tensor, stop: &Stop) -> Result<Tensor> {
        Ok(match self {
            Self::Kl(vae) => (vae.encode(images, stop)?.mean * vae.config.scaling_factor)?,
            Self::Tiny(vae) => (vae.encode(images, stop)? * vae.config().scaling_factor)?,
        })
    }
}

impl Decode for Vae {
    /// Every frame by itself; values are not clamped.
    fn decode(&self, latents: &Tensor, _: usize, stop: &Stop) -> Result<Tensor> {
        match self {
            Self::Kl(vae) => vae.decode(&(latents / vae.config.scaling_factor)?, stop),
            Self::Tiny(vae) => vae.decode(&(latents / vae.config().scaling_factor)?, stop),
        }
    }
}

/// The encoder of one of the supported autoencoders.
#[derive(Clone, Debug)]
pub enum VaeEncoder {
    /// The encoder of Stable Diffusion's VAE.
    Kl(Box<KlEncoder>),
    /// TAESD, whose encoder is not loaded separately, as it is small.
    Tiny(Box<AutoencoderTiny>),
}

impl VaeEncoder {
    /// Encodes images `(batch, 3, height, width)` in `[-1, 1]` to scaled latents, `(batch, 4, height', width')`,
    /// sampled from their distribution with standard normal `noise` of the latents' shape; a single image as often as
    /// there is noise. TAESD is deterministic and ignores the values of `noise`.
    pub fn sample(&self, images: &Tensor, noise: &Tensor, stop: &Stop) -> Result<Tensor> {
        self.scaled(&self.moments(images, stop)?, noise)
    }

    /// What the network makes of images: unscaled means and log variances, or TAESD's latents.
    fn moments(&self, images: &Tensor, stop: &Stop) -> Result<Tensor> {
        match self {
            Self::Kl(vae) => vae.moments(images, stop),
            Self::Tiny(vae) => vae.encode(images, stop),
        }
    }

    /// Scaled latents of what the network made, sampled with `noise`.
    fn scaled(&self, moments: &Tensor, noise: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Kl(vae) => (Posterior::new(moments)?.sample(noise)? * vae.config.scaling_factor)?,
            Self::Tiny(vae) => (moments * vae.config().scaling_factor)?
                .broadcast_as(noise.shape())?
                .contiguous()?,
        })
    }

    /// Returns whether the values of the noise matter.
    pub fn is_random(&self) -> bool {
        matches!(self, Self::Kl(_))
    }
}

/// Stable Diffusion's variational autoencoder.
#[derive(Clone, Debug)]
pub struct AutoencoderKl {
    config: VaeConfig,
    encoder: Option<KlEncoder>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
}

/// The encoder of Stable Diffusion's VAE.
#[derive(Clone, Debug)]
pub struct KlEncoder {
    config: VaeConfig,
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
}

/// The posterior of the encoder: a normal distribution of every latent.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// Mean, `(batch, latent_channels, height, width)`.
    pub mean: Tensor,
    /// Log variance, clamped to `[-30, 20]`; of the same shape.
    pub log_variance: Tensor,
}

impl Posterior {
    /// The posterior of means and log variances, `(batch, 2 * latent_channels, height, width)`.
    fn new(moments: &Tensor) -> Result<Self> {
        let halves = moments.contiguous()?.chunk(2, 1)?;
        Ok(Self { mean: halves[0].clone(), log_variance: halves[1].clamp(-30.0, 20.0)? })
    }

    /// Samples latents with standard normal `noise` of the same shape; those of a single image as often as there is
    /// noise.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        let deviation = (&self.log_variance * 0.5)?.exp()?;
        Ok(self.mean.broadcast_add(&deviation.broadcast_mul(noise)?)?)
    }
}

impl AutoencoderKl {
    /// Loads encoder and decoder.
    pub fn new(config: &VaeConfig, vb: &VarBuilder) -> Result<Self> {
        let encoder = Some(KlEncoder::new(config, vb)?);
        Ok(Self { encoder, ..Self::decoder_only(config, vb)? })
    }

    /// Loads the decoder only; [`encode`](Self::encode) then returns an error.
    pub fn decoder_only(config: &VaeConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            encoder: None,
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| point(config.latent_channels, "post_quant_conv", vb))
                .transpose()?,
            decoder: Decoder::new(config, &vb.pp("decoder"))?,
            config: config.clone(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Decodes unscaled latents `(batch, 4, height', width')` to images `(batch, 3, height, width)`, about `[-1, 1]`.
    ///
    /// # Errors
    ///
    /// Mismatched shapes, or a requested `stop`.
    pub fn decode(&self, z: &Tensor, stop: &Stop) -> Result<Tensor> {
        let z = match &self.post_quant_conv {
            Some(conv) => conv.forward(z)?,
            None => z.clone(),
        };
        Ok(self.decoder.forward(&z, stop)?.contiguous()?)
    }

    /// The posterior of unscaled latents of images `(batch, 3, height, width)` in `[-1, 1]`.
    ///
    /// # Errors
    ///
    /// An autoencoder without its encoder.
    pub fn encode(&self, images: &Tensor, stop: &Stop) -> Result<Posterior> {
        match &self.encoder {
            Some(encoder) => encoder.encode(images, stop),
            None => Err(Error::Missing {
                name: "vae".into(),
                reason: "its encoder was not loaded".into(),
            }),
        }
    }
}

impl KlEncoder {
    /// Loads the encoder only.
    pub fn new(config: &VaeConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            encoder: Encoder::new(config, &vb.pp("encoder"))?,
            quant_conv: config
                .use_quant_conv
                .then(|| point(2 * config.latent_channels, "quant_conv", vb))
                .transpose()?,
            config: config.clone(),
        })
    }

    /// The posterior of unscaled latents of images `(batch, 3, height, width)` in `[-1, 1]`.
    pub fn encode(&self, images: &Tensor, stop: &Stop) -> Result<Posterior> {
        Posterior::new(&self.moments(images, stop)?)
    }

    /// Means and log variances, not clamped, `(batch, 2 * latent_channels, height', width')`.
    fn moments(&self, images: &Tensor, stop: &Stop) -> Result<Tensor> {
        let y = self.encoder.forward(images, stop)?;
        Ok(match &self.quant_conv {
            Some(conv) => conv.forward(&y)?,
            None => y,
        })
    }
}

/// A 1×1 convolution with `width` input and output channels.
fn point(width: usize, name: &str, vb: &VarBuilder) -> candle_core::Result<Conv2d> {
    Conv2d::new(width, width, ConvOptions::POINT, &vb.pp(name))
}

/// The mid block of encoder and decoder: residual block, self-attention over all pixels, residual block.
#[derive(Clone, Debug)]
struct Middle {
    first: ResnetBlock,
    attention: Option<(GroupNorm, Attention)>,
    second: ResnetBlock,
}

impl Middle {
    fn new(config: &VaeConfig, channels: usize, vb: &VarBuilder) -> candle_core::Result<Self> {
        let options = resnet(config, channels, channels);
        let attention = vb.pp("attentions.0");
        Ok(Self {
            first: ResnetBlock::new(&options, &vb.pp("resnets.0"))?,
            attention: config
                .mid_block_add_attention
                .then(|| {
                    let groups = config.norm_num_groups;
                    Ok::<_, candle_core::Error>((
                        GroupNorm::new(groups, channels, EPS, &attention.pp("group_norm"))?,
                        Attention::with_bias(channels, 1, &attention)?,
                    ))
                })
                .transpose()?,
            second: ResnetBlock::new(&options, &vb.pp("resnets.1"))?,
        })
    }

    fn forward(&self, x: &Tensor, stop: &Stop) -> candle_core::Result<Tensor> {
        let mut x = self.first.forward(x, None, stop)?;
        if let Some((norm, attention)) = &self.attention {
            let (_, _, height, width) = x.dims4()?;
            let y = tokens(&norm.forward(&x)?)?;
            x = feature_map(&attention.forward(&y, &y, &tokens(&x)?, stop)?, height, width)?;
        }
        self.second.forward(&x, None, stop)
    }
}

/// Epsilon of every group norm of the autoencoder.
const EPS: f64 = 1e-6;

fn resnet(config: &VaeConfig, inputs: usize, outputs: usize) -> ResnetOptions {
    let groups = config.norm_num_groups;
    ResnetOptions { inputs, outputs, time_embedding: None, groups, eps: EPS }
}
