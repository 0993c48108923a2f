//! ControlNet: a copy of the UNet's down blocks and mid block that is conditioned on a hint image per frame.
//!
//! Zhang, Rao and Agrawala (2023). It has no motion modules: every frame is processed as an independent image.

use crate::weights::VarBuilder;
use candle_core::{Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

use crate::kernels::layout::add;
use crate::kernels::{Activation, ConvArgs};
use crate::models::motion::MotionNorm;
use crate::models::unet::{Injection, Residuals, UNetConfig, UNetInput};
use crate::models::unet_encoder::{self, UNetEncoder};
use crate::models::{MOST_CHANNELS, possible_widths, supported, within};
use crate::nn::{Conv2d, ConvOptions};
use crate::{Result, Stop};

/// Configuration of a ControlNet, as in its `config.json`. The defaults are those for Stable Diffusion 1.5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControlNetConfig {
    /// Channels of the hint, 3.
    pub conditioning_channels: usize,
    /// Channels of each level of the hint embedding: 16, 32, 96, 256.
    pub conditioning_embedding_out_channels: Vec<usize>,
    /// Channel order of the hint: `rgb` or `bgr`.
    pub controlnet_conditioning_channel_order: String,
    /// Whether the residuals are averaged over height and width, as in the "shuffle" ControlNet.
    pub global_pool_conditions: bool,
    /// The configuration shared with the UNet.
    #[serde(flatten)]
    pub unet: UNetConfig,
}

impl Default for ControlNetConfig {
    fn default() -> Self {
        Self::beside(&UNetConfig::sd15())
    }
}

impl ControlNetConfig {
    /// The standard ControlNet for a UNet.
    pub fn beside(unet: &UNetConfig) -> Self {
        Self {
            conditioning_channels: 3,
            conditioning_embedding_out_channels: vec![16, 32, 96, 256],
            controlnet_conditioning_channel_order: "rgb".into(),
            global_pool_conditions: false,
            unet: UNetConfig { motion: None, ..unet.clone() },
        }
    }

    /// Downsampling factor of the hint per axis: 8.
    pub fn factor(&self) -> usize {
        hint_factor(&self.conditioning_embedding_out_channels)
    }

    /// Checks that the configuration is supported.
    pub fn validate(&self) -> Result<()> {
        let orders = ["rgb", "bgr"].map(str::to_owned);
        let name = "controlnet";
        let order = &self.controlnet_conditioning_channel_order;
        supported(name, "controlnet_conditioning_channel_order", order, &orders)?;
        within(name, "conditioning_channels", self.conditioning_channels, 1..=MOST_CHANNELS)?;
        let widths = &self.conditioning_embedding_out_channels;
        possible_widths(name, "conditioning_embedding_out_channels", widths)?;
        unet_encoder::whole(&self.unet).validate()
    }
}

/// A ControlNet.
#[derive(Clone, Debug)]
pub struct ControlNet {
    config: ControlNetConfig,
    hint: HintEmbedding,
    trunk: UNetEncoder,
}

impl ControlNet {
    /// Loads the network.
    pub fn new(config: &ControlNetConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let unet = UNetConfig { motion: None, ..config.unet.clone() };
        let trunk = UNetEncoder::new(&unet, vb)?;
        let inner = HintSizes {
            channels: config.conditioning_channels,
            widths: &config.conditioning_embedding_out_channels,
            outputs: unet.block_out_channels.first().copied().unwrap_or_default(),
        };
        let hint = HintEmbedding::new(&inner, &vb.pp("controlnet_cond_embedding"))?;
        Ok(Self { config: ControlNetConfig { unet, ..config.clone() }, hint, trunk })
    }

    /// The configuration.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// The embedding of a hint `(frames, conditioning_channels, height, width)` in `[0, 1]`:
    /// `(frames, channels, height / factor, width / factor)`. It is the same at every step.
    ///
    /// # Errors
    ///
    /// Mismatched shapes.
    pub fn embed(&self, hint: &Tensor, stop: &Stop) -> TensorResult<Tensor> {
        if self.config.controlnet_conditioning_channel_order == "bgr" {
            let channels: Vec<Tensor> = hint.chunk(self.config.conditioning_channels, 1)?;
            let reversed: Vec<&Tensor> = channels.iter().rev().collect();
            return self.hint.forward(&Tensor::cat(&reversed, 1)?, stop)?.contiguous();
        }
        self.hint.forward(hint, stop)?.contiguous()
    }

    /// The residuals for a UNet with the input `x` `(images, in_channels, height, width)`.
    ///
    /// `hint` is an [embedded](Self::embed) hint with an entry per image; `context`
    /// `(batch, tokens, cross_attention_dim)` are text embeddings, each for `images / batch` consecutive images.
    ///
    /// # Errors
    ///
    /// Mismatched shapes.
    pub fn forward(
        &self,
        x: &Tensor,
        hint: &Tensor,
        timestep: f64,
        context: &Tensor,
        stop: &Stop,
    ) -> TensorResult<Residuals> {
        self.forward_with_timesteps(x, hint, &[timestep], context, stop)
    }

    /// [`forward`](Self::forward) for images of different noise levels, as used in training: each timestep is for an
    /// equal share of the images, in order.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_with_timesteps(
        &self,
        x: &Tensor,
        hint: &Tensor,
        timesteps: &[f64],
        context: &Tensor,
        stop: &Stop,
    ) -> TensorResult<Residuals> {
        let input = UNetInput {
            timestep: 0.0,
            frames: 1,
            context,
            motion_norm: MotionNorm::PerFrame,
            injection: &Injection::default(),
            stop,
        };
        let residuals = self.trunk.forward(add(&self.trunk.start(x)?, hint)?, timesteps, &input)?;
        residuals.map(|_, x| self.pool(x))
    }

    /// Replaces values by their means over height and width, if `global_pool_conditions` is set.
    fn pool(&self, x: &Tensor) -> TensorResult<Tensor> {
        if !self.config.global_pool_conditions {
            return Ok(x.clone());
        }
        x.mean_keepdim((2, 3))?.broadcast_as(x.shape())
    }
}

/// Downsampling factor per axis of a hint embedding with these widths.
pub(super) fn hint_factor(widths: &[usize]) -> usize {
    let halvings = u32::try_from(widths.len().saturating_sub(1)).unwrap_or(u32::MAX);
    1usize.checked_shl(halvings).unwrap_or(usize::MAX)
}

/// Sizes of a [`HintEmbedding`].
#[derive(Clone, Copy, Debug)]
pub(super) struct HintSizes<'a> {
    /// Channels of the hint.
    pub(super) channels: usize,
    /// Channels of each resolution, starting with the full one.
    pub(super) widths: &'a [usize],
    /// Channels of the UNet's first down block.
    pub(super) outputs: usize,
}

/// Convolutions that embed a hint at the resolution of the latents.
#[derive(Clone, Debug)]
pub(super) struct HintEmbedding {
    conv_in: Conv2d,
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
}

impl HintEmbedding {
    pub(super) fn new(sizes: &HintSizes<'_>, vb: &VarBuilder) -> TensorResult<Self> {
        let same = ConvOptions::SAME_3X3;
        let halving = ConvOptions { stride: 2, ..same };
        let widths = sizes.widths;
        let mut blocks = Vec::new();
        for pair in widths.windows(2) {
            if let [from, to] = *pair {
                let next = |i: usize| vb.pp("blocks").pp(i);
                blocks.push(Conv2d::new(from, from, same, &next(blocks.len()))?);
                blocks.push(Conv2d::new(from, to, halving, &next(blocks.len()))?);
            }
        }
        let first = widths.first().copied().unwrap_or_default();
        let last = widths.last().copied().unwrap_or_default();
        Ok(Self {
            conv_in: Conv2d::new(sizes.channels, first, same, &vb.pp("conv_in"))?,
            blocks,
            conv_out: Conv2d::new(last, sizes.outputs, same, &vb.pp("conv_out"))?,
        })
    }

    pub(super) fn forward(&self, hint: &Tensor, stop: &Stop) -> TensorResult<Tensor> {
        let plain = ConvArgs { stop: Some(stop), ..ConvArgs::default() };
        let silu = ConvArgs { activation: Activation::Silu, ..plain };
        let mut x = self.conv_in.forward_with(hint, silu)?;
        for block in &self.blocks {
            x = block.forward_with(&x, silu)?;
        }
        self.conv_out.forward_with(&x, plain)
    }
}
