//! Configurations of the autoencoders, as in their `config.json`.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::{MOST_CHANNELS, MOST_LAYERS, possible_widths, supported, within};

/// Configuration of Stable Diffusion's autoencoder. The defaults are those of version 1.5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Number of input channels, 3.
    pub in_channels: usize,
    /// Number of output channels, 3.
    pub out_channels: usize,
    /// Number of latent channels, 4.
    pub latent_channels: usize,
    /// Channels of each resolution: 128, 256, 512, 512.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per resolution of the encoder, 2; the decoder has one more.
    pub layers_per_block: usize,
    /// Number of groups of all group norms, 32.
    pub norm_num_groups: usize,
    /// Height and width of the images in training, 512; those of a tile.
    #[serde(deserialize_with = "first_of")]
    pub sample_size: usize,
    /// Factor that scales latents for the UNet, 0.18215.
    pub scaling_factor: f64,
    /// Whether the encoder ends with a 1×1 convolution. True.
    pub use_quant_conv: bool,
    /// Whether the decoder begins with a 1×1 convolution. True.
    pub use_post_quant_conv: bool,
    /// Whether the mid block has attention. True.
    pub mid_block_add_attention: bool,
    /// Activation, `silu`.
    pub act_fn: String,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            sample_size: 512,
            scaling_factor: 0.18215,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            act_fn: "silu".into(),
        }
    }
}

/// A number, or the first of a list.
fn first_of<'de, D: serde::Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Sizes {
        One(usize),
        Many(Vec<usize>),
    }
    Ok(match Sizes::deserialize(from)? {
        Sizes::One(size) => size,
        Sizes::Many(sizes) => sizes.first().copied().unwrap_or_default(),
    })
}

/// Valid scaling factors: divisions by them stay finite.
const SCALES: RangeInclusive<f64> = 1e-6..=1e6;

impl VaeConfig {
    /// Checks that the configuration is supported.
    pub fn validate(&self) -> Result<()> {
        let known = ["silu".to_owned(), "swish".to_owned()];
        let config = "vae";
        supported(config, "act_fn", &self.act_fn, &known)?;
        supported(config, "in_channels", &self.in_channels, &[3])?;
        supported(config, "out_channels", &self.out_channels, &[3])?;
        within(config, "latent_channels", self.latent_channels, 1..=MOST_CHANNELS)?;
        within(config, "layers_per_block", self.layers_per_block, 1..=MOST_LAYERS)?;
        within(config, "norm_num_groups", self.norm_num_groups, 1..=MOST_CHANNELS)?;
        within(config, "scaling_factor", self.scaling_factor, SCALES)?;
        possible_widths(config, "block_out_channels", &self.block_out_channels)
    }

    /// Size ratio per axis of images to latents.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len().max(1) - 1)
    }
}

/// Configuration of TAESD. The defaults are those of the published model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TinyVaeConfig {
    /// Number of input channels, 3.
    pub in_channels: usize,
    /// Number of output channels, 3.
    pub out_channels: usize,
    /// Number of latent channels, 4.
    pub latent_channels: usize,
    /// Channels of each resolution of the encoder, 64 each.
    pub encoder_block_out_channels: Vec<usize>,
    /// Channels of each resolution of the decoder, 64 each.
    pub decoder_block_out_channels: Vec<usize>,
    /// Residual blocks of each resolution of the encoder: 1, 3, 3, 3.
    pub num_encoder_blocks: Vec<usize>,
    /// Residual blocks of each resolution of the decoder: 3, 3, 3, 1.
    pub num_decoder_blocks: Vec<usize>,
    /// Magnitude to which latents are softly clamped before decoding, 3.
    pub latent_magnitude: f64,
    /// Factor that scales latents for the UNet, 1.
    pub scaling_factor: f64,
    /// Size ratio of adjacent resolutions, 2.
    pub upsampling_scaling_factor: usize,
    /// Activation, `relu`.
    pub act_fn: String,
}

impl Default for TinyVaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            latent_magnitude: 3.0,
            scaling_factor: 1.0,
            upsampling_scaling_factor: 2,
            act_fn: "relu".into(),
        }
    }
}

impl TinyVaeConfig {
    /// Checks that the configuration is supported.
    pub fn validate(&self) -> Result<()> {
        supported("vae", "act_fn", &self.act_fn, &["relu".to_owned()])?;
        supported("vae", "upsampling_scaling_factor", &self.upsampling_scaling_factor, &[2])?;
        let config = "vae";
        supported(config, "in_channels", &self.in_channels, &[3])?;
        supported(config, "out_channels", &self.out_channels, &[3])?;
        within(config, "latent_channels", self.latent_channels, 1..=MOST_CHANNELS)?;
        within(config, "scaling_factor", self.scaling_factor, SCALES)?;
        within(config, "latent_magnitude", self.latent_magnitude, SCALES)?;
        let (encoder, decoder) =
            (&self.encoder_block_out_channels, &self.decoder_block_out_channels);
        for (field, widths, blocks, counts) in [
            ("encoder_block_out_channels", encoder, "num_encoder_blocks", &self.num_encoder_blocks),
            ("decoder_block_out_channels", decoder, "num_decoder_blocks", &self.num_decoder_blocks),
        ] {
            possible_widths(config, field, widths)?;
            supported(config, blocks, &counts.len(), &[widths.len()])?;
            counts.iter().try_for_each(|n| within(config, blocks, *n, 0..=MOST_LAYERS))?;
        }
        Ok(())
    }

    /// Size ratio per axis of images to latents.
    pub fn factor(&self) -> usize {
        1 << (self.decoder_block_out_channels.len().max(1) - 1)
    }
}
