//! SparseCtrl: a ControlNet with motion modules that takes hints for some frames and propagates them to the others.
//!
//! Guo et al. (2023), "SparseCtrl". Its input is zeros in place of the noisy latents. See
//! `animatediff/models/sparse_controlnet.py` of guoyww/AnimateDiff@cf80ddeb47b69cf0b16f225800de081d486d7f21.

use crate::weights::VarBuilder;
use candle_core::{Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

use crate::models::control_net::{HintEmbedding, HintSizes, hint_factor};
use crate::models::motion::MotionConfig;
use crate::models::unet::{Residuals, UNetConfig, UNetInput};
use crate::models::unet_encoder::{self, UNetEncoder};
use crate::models::{MOST_CHANNELS, possible_widths, supported, within};
use crate::nn::{Conv2d, ConvOptions};
use crate::{Result, Stop};

/// Configuration of a SparseCtrl network, as in diffusers' `config.json`. The defaults are those of the published RGB
/// network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SparseCtrlConfig {
    /// Channels of the hint without its mask: 4 for latents, 3 for pixels.
    pub conditioning_channels: usize,
    /// Channels of each level of the hint embedding for pixels: 16, 32, 96, 256.
    pub conditioning_embedding_out_channels: Vec<usize>,
    /// Channel order of the hint: `rgb`.
    pub controlnet_conditioning_channel_order: String,
    /// Whether the hint is latents, embedded by a single convolution, rather than pixels.
    pub use_simplified_condition_embedding: bool,
    /// Whether the hint has a mask channel that marks frames with a hint. True.
    pub concat_conditioning_mask: bool,
    /// Whether residuals are averaged over height and width. False.
    pub global_pool_conditions: bool,
    /// Maximum clip length in frames: 32.
    pub motion_max_seq_length: usize,
    /// Number of attention heads of the motion modules, 8.
    pub motion_num_attention_heads: usize,
    /// The configuration shared with the UNet.
    #[serde(flatten)]
    pub unet: UNetConfig,
}

impl Default for SparseCtrlConfig {
    fn default() -> Self {
        Self::beside(&UNetConfig::sd15())
    }
}

impl SparseCtrlConfig {
    /// The standard RGB network for a UNet.
    pub fn beside(unet: &UNetConfig) -> Self {
        Self {
            conditioning_channels: 4,
            conditioning_embedding_out_channels: vec![16, 32, 96, 256],
            controlnet_conditioning_channel_order: "rgb".into(),
            use_simplified_condition_embedding: true,
            concat_conditioning_mask: true,
            global_pool_conditions: false,
            motion_max_seq_length: 32,
            motion_num_attention_heads: 8,
            unet: UNetConfig { motion: None, ..unet.clone() },
        }
    }

    /// The standard scribble network.
    #[must_use]
    pub fn scribble(self) -> Self {
        Self { conditioning_channels: 3, use_simplified_condition_embedding: false, ..self }
    }

    /// Downsampling factor of the hint per axis; `None` if the hint is latents.
    pub fn factor(&self) -> Option<usize> {
        (!self.use_simplified_condition_embedding)
            .then(|| hint_factor(&self.conditioning_embedding_out_channels))
    }

    /// Checks that the configuration is supported.
    pub fn validate(&self) -> Result<()> {
        let name = "sparsectrl";
        let order = &self.controlnet_conditioning_channel_order;
        supported(name, "controlnet_conditioning_channel_order", order, &["rgb".to_owned()])?;
        supported(name, "concat_conditioning_mask", &self.concat_conditioning_mask, &[true])?;
        supported(name, "global_pool_conditions", &self.global_pool_conditions, &[false])?;
        within(name, "conditioning_channels", self.conditioning_channels, 1..=MOST_CHANNELS)?;
        if self.factor().is_some() {
            let widths = &self.conditioning_embedding_out_channels;
            possible_widths(name, "conditioning_embedding_out_channels", widths)?;
        }
        unet_encoder::whole(&self.with_motion()).validate()
    }

    /// Configuration of the UNet with SparseCtrl's motion modules: a single attention each, and none in the mid block.
    pub(crate) fn with_motion(&self) -> UNetConfig {
        self.unet.clone().with_motion(MotionConfig {
            motion_num_attention_heads: self.motion_num_attention_heads,
            motion_max_seq_length: self.motion_max_seq_length,
            use_motion_mid_block: false,
            double_self_attention: false,
        })
    }
}

/// A SparseCtrl network.
#[derive(Clone, Debug)]
pub struct SparseCtrl {
    config: SparseCtrlConfig,
    hint: Hint,
    trunk: UNetEncoder,
}

/// The embedding of a hint and its mask.
#[derive(Clone, Debug)]
enum Hint {
    Latents(Conv2d),
    Pixels(HintEmbedding),
}

impl SparseCtrl {
    /// Loads the network.
    pub fn new(config: &SparseCtrlConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let trunk = UNetEncoder::new(&config.with_motion(), vb)?;
        let channels = config.conditioning_channels + 1;
        let outputs = config.unet.block_out_channels.first().copied().unwrap_or_default();
        let vb = vb.pp("controlnet_cond_embedding");
        let hint = if config.use_simplified_condition_embedding {
            Hint::Latents(Conv2d::new(channels, outputs, ConvOptions::SAME_3X3, &vb)?)
        } else {
            let widths = &config.conditioning_embedding_out_channels;
            Hint::Pixels(HintEmbedding::new(&HintSizes { channels, widths, outputs }, &vb)?)
        };
        Ok(Self { config: config.clone(), hint, trunk })
    }

    /// The configuration.
    pub fn config(&self) -> &SparseCtrlConfig {
        &self.config
    }

    /// The embedded hints of a clip of `clip` frames, `(clip, channels, height', width')`: the same at every step.
    ///
    /// `hint` `(hints, conditioning_channels, height, width)` belongs to the frames in `frames`; it is latents or
    /// pixels in `[0, 1]`.
    ///
    /// # Errors
    ///
    /// Mismatched shapes, or a frame outside of the clip.
    pub fn embed(
        &self,
        hint: &Tensor,
        frames: &[usize],
        clip: usize,
        stop: &Stop,
    ) -> TensorResult<Tensor> {
        let (hints, channels, height, width) = hint.dims4()?;
        if hints != frames.len() {
            candle_core::bail!("{hints} hints for {} frames", frames.len());
        }
        // Frames without a hint are zeros; a single one of them is embedded.
        let (dtype, device) = (hint.dtype(), hint.device());
        let mask = Tensor::ones((hints, 1, height, width), dtype, device)?;
        let masked = Tensor::cat(&[hint, &mask], 1)?;
        let nothing = Tensor::zeros((1, channels + 1, height, width), dtype, device)?;
        let x = Tensor::cat(&[&masked, &nothing], 0)?; // (hints + 1, channels + 1, height, width)
        let x = match &self.hint {
            Hint::Latents(conv) => conv.forward(&x)?,
            Hint::Pixels(embedding) => embedding.forward(&x, stop)?,
        };
        let mut places = vec![hints as u32; clip];
        for (i, &frame) in frames.iter().enumerate() {
            match places.get_mut(frame) {
                Some(place) => *place = i as u32,
                None => candle_core::bail!("frame {frame} of a clip of {clip}"),
            }
        }
        let x = x.contiguous()?.index_select(&Tensor::new(places, device)?, 0)?;
        let (_, _, height, width) = x.dims4()?;
        let zeros = (1, self.config.unet.in_channels, height, width);
        x.broadcast_add(&self.trunk.start(&Tensor::zeros(zeros, dtype, device)?)?)
    }

    /// The residuals for clips with the [embedded](Self::embed) frames `x`, `(batch*frames, channels, height, width)`.
    /// `input` is the UNet's.
    ///
    /// # Errors
    ///
    /// Mismatched shapes, or more frames than the motion modules support.
    pub fn forward(&self, x: &Tensor, input: &UNetInput<'_>) -> TensorResult<Residuals> {
        self.forward_with_timesteps(x, &[input.timestep], input)
    }

    /// [`forward`](Self::forward) for clips of different noise levels, as used in training: `timesteps` replaces the
    /// one of `input`, with each for an equal share of the images, in order.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_with_timesteps(
        &self,
        x: &Tensor,
        timesteps: &[f64],
        input: &UNetInput<'_>,
    ) -> TensorResult<Residuals> {
        self.trunk.forward(x.clone(), timesteps, input)
    }
}
