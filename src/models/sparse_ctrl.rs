//! SparseCtrl: a ControlNet with motion modules, which is given hints for some frames and fills in the others.
//!
//! Guo et al. (2023), "SparseCtrl". It does not see the noisy latents: zeros stand in their place. See
//! `animatediff/models/sparse_controlnet.py` of guoyww/AnimateDiff@cf80ddeb47b69cf0b16f225800de081d486d7f21.

use crate::weights::VarBuilder;
use candle_core::{Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

use crate::models::control_net::{HintEmbedding, HintSizes, hint_factor};
use crate::models::motion::MotionConfig;
use crate::models::trunk::{self, Trunk};
use crate::models::unet::{Residuals, UNetConfig, UNetInput};
use crate::models::{MOST_CHANNELS, possible_widths, supported, within};
use crate::nn::{Conv2d, ConvOptions};
use crate::{Result, Stop};

/// The sizes of a SparseCtrl network, as in diffusers' `config.json`. The defaults are those of the published one that
/// follows pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SparseCtrlConfig {
    /// Channels of the hint without its mask: 4 of latents, 3 of pixels.
    pub conditioning_channels: usize,
    /// Channels of each level of the network that shrinks pixels: 16, 32, 96, 256.
    pub conditioning_embedding_out_channels: Vec<usize>,
    /// `rgb`.
    pub controlnet_conditioning_channel_order: String,
    /// Whether the hint is latents of pictures, which one convolution reads, and not pixels.
    pub use_simplified_condition_embedding: bool,
    /// Whether a last channel of the hint tells frames with a hint from others. True.
    pub concat_conditioning_mask: bool,
    /// Whether only means are added. False.
    pub global_pool_conditions: bool,
    /// Longest clip, in frames: 32.
    pub motion_max_seq_length: usize,
    /// Attention heads of the motion modules, 8.
    pub motion_num_attention_heads: usize,
    /// The sizes that it shares with the UNet.
    #[serde(flatten)]
    pub unet: UNetConfig,
}

impl Default for SparseCtrlConfig {
    fn default() -> Self {
        Self::beside(&UNetConfig::sd15())
    }
}

impl SparseCtrlConfig {
    /// The usual network beside a UNet: it follows pictures.
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

    /// The usual network that follows drawings.
    #[must_use]
    pub fn scribble(self) -> Self {
        Self { conditioning_channels: 3, use_simplified_condition_embedding: false, ..self }
    }

    /// How many pixels of the hint become one value on each side; `None` where the hint is latents.
    pub fn factor(&self) -> Option<usize> {
        (!self.use_simplified_condition_embedding)
            .then(|| hint_factor(&self.conditioning_embedding_out_channels))
    }

    /// Fails on a configuration that this program does not implement.
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
        trunk::whole(&self.with_motion()).validate()
    }

    /// The UNet whose first half this is, with its motion modules: they attend once, and the middle has none.
    pub(crate) fn with_motion(&self) -> UNetConfig {
        self.unet.clone().with_motion(MotionConfig {
            motion_num_attention_heads: self.motion_num_attention_heads,
            motion_max_seq_length: self.motion_max_seq_length,
            use_motion_mid_block: false,
            double_self_attention: false,
        })
    }
}

/// The network.
#[derive(Clone, Debug)]
pub struct SparseCtrl {
    config: SparseCtrlConfig,
    hint: Hint,
    trunk: Trunk,
}

/// What reads a hint and its mask.
#[derive(Clone, Debug)]
enum Hint {
    Latents(Conv2d),
    Pixels(HintEmbedding),
}

impl SparseCtrl {
    /// Reads the whole network.
    pub fn new(config: &SparseCtrlConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let trunk = Trunk::new(&config.with_motion(), vb)?;
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

    /// Its configuration.
    pub fn config(&self) -> &SparseCtrlConfig {
        &self.config
    }

    /// What the network starts from in a clip of `clip` frames, `(clip, channels, height', width')`: the same at
    /// every step.
    ///
    /// `hint` `(hints, conditioning_channels, height, width)` belongs to the frames that `frames` lists, and is
    /// latents or pixels in `[0, 1]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit, or a frame is not in the clip.
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
        // Frames without a hint have zeros; one of them stands for all.
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

    /// What is to be added to the UNet for clips whose [embedded](Self::embed) frames are `x`,
    /// `(batch*frames, channels, height, width)`. `input` is the UNet's.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit, or a clip has more frames than the motion modules know.
    pub fn forward(&self, x: &Tensor, input: &UNetInput<'_>) -> TensorResult<Residuals> {
        self.trunk.forward(x.clone(), input)
    }
}
