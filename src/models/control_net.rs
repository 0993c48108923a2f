//! ControlNet: a copy of the UNet's first half that also sees a hint, one for each frame.
//!
//! Zhang, Rao and Agrawala (2023). It knows nothing of motion: every frame is an image to it.

use candle_core::{Result as TensorResult, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::kernels::{Activation, ConvArgs};
use crate::models::motion::MotionNorm;
use crate::models::supported;
use crate::models::unet::{Injection, Place, Residuals, Stage, UNetConfig, UNetInput};
use crate::nn::{Conv2d, ConvOptions, TimestepEmbedding};
use crate::{Error, Result};

/// The sizes of a ControlNet, as in its `config.json`. The defaults are those for Stable Diffusion 1.5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControlNetConfig {
    /// Channels of the hint, 3.
    pub conditioning_channels: usize,
    /// Channels of each level of the network that shrinks the hint: 16, 32, 96, 256.
    pub conditioning_embedding_out_channels: Vec<usize>,
    /// `rgb` or `bgr`.
    pub controlnet_conditioning_channel_order: String,
    /// Whether only the means over height and width are added, as in the "shuffle" network.
    pub global_pool_conditions: bool,
    /// The sizes that it shares with the UNet.
    #[serde(flatten)]
    pub unet: UNetConfig,
}

impl Default for ControlNetConfig {
    fn default() -> Self {
        Self::beside(&UNetConfig::sd15())
    }
}

impl ControlNetConfig {
    /// The usual network beside a UNet.
    pub fn beside(unet: &UNetConfig) -> Self {
        Self {
            conditioning_channels: 3,
            conditioning_embedding_out_channels: vec![16, 32, 96, 256],
            controlnet_conditioning_channel_order: "rgb".into(),
            global_pool_conditions: false,
            unet: UNetConfig { motion: None, ..unet.clone() },
        }
    }

    /// How many pixels of the hint become one value on each side: 8.
    pub fn factor(&self) -> usize {
        1 << self.conditioning_embedding_out_channels.len().saturating_sub(1)
    }

    /// Fails on a configuration that this program does not implement.
    pub fn validate(&self) -> Result<()> {
        let orders = ["rgb", "bgr"].map(str::to_owned);
        let name = "controlnet";
        let order = &self.controlnet_conditioning_channel_order;
        supported(name, "controlnet_conditioning_channel_order", order, &orders)?;
        if self.conditioning_embedding_out_channels.is_empty() {
            return Err(Error::Missing {
                name: "controlnet config".into(),
                reason: "`conditioning_embedding_out_channels` is empty".into(),
            });
        }
        self.trunk().validate()
    }

    /// The UNet whose first half this is; a ControlNet's own configuration says nothing of the way up.
    fn trunk(&self) -> UNetConfig {
        let stages = self.unet.block_out_channels.len();
        let up_block_types = vec!["UpBlock2D".to_owned(); stages];
        UNetConfig { up_block_types, motion: None, ..self.unet.clone() }
    }
}

/// The network.
#[derive(Clone, Debug)]
pub struct ControlNet {
    config: ControlNetConfig,
    time_embedding: TimestepEmbedding,
    conv_in: Conv2d,
    hint: HintEmbedding,
    down: Vec<Stage>,
    mid: Stage,
    skip_outs: Vec<Conv2d>,
    mid_out: Conv2d,
}

impl ControlNet {
    /// Reads the whole network.
    pub fn new(config: &ControlNetConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let trunk = config.trunk();
        let widths = &trunk.block_out_channels;
        let (Some(&first), Some(&deepest)) = (widths.first(), widths.last()) else {
            return Err(Error::Missing {
                name: "controlnet config".into(),
                reason: "`block_out_channels` is empty".into(),
            });
        };
        let down = (0..widths.len())
            .map(|i| Stage::new(&trunk, Place::Down(i), &vb.pp("down_blocks").pp(i)))
            .collect::<TensorResult<_>>()?;
        // What the skips have: the input, every layer, every change of size.
        let mut skips = vec![first];
        for (i, &width) in widths.iter().enumerate() {
            let resampled = usize::from(i + 1 < widths.len());
            skips.extend(std::iter::repeat_n(width, trunk.layers_per_block + resampled));
        }
        let point = |width, vb: &VarBuilder| Conv2d::new(width, width, ConvOptions::POINT, vb);
        let skip_outs = skips
            .iter()
            .enumerate()
            .map(|(i, &width)| point(width, &vb.pp("controlnet_down_blocks").pp(i)))
            .collect::<TensorResult<_>>()?;
        Ok(Self {
            time_embedding: TimestepEmbedding::new(
                first,
                trunk.time_embedding_width(),
                &vb.pp("time_embedding"),
            )?,
            conv_in: Conv2d::new(
                trunk.in_channels,
                first,
                ConvOptions::SAME_3X3,
                &vb.pp("conv_in"),
            )?,
            hint: HintEmbedding::new(config, first, &vb.pp("controlnet_cond_embedding"))?,
            down,
            mid: Stage::new(&trunk, Place::Mid, &vb.pp("mid_block"))?,
            skip_outs,
            mid_out: point(deepest, &vb.pp("controlnet_mid_block"))?,
            config: ControlNetConfig { unet: trunk, ..config.clone() },
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// What the network takes of a hint `(frames, conditioning_channels, height, width)` in `[0, 1]`:
    /// `(frames, channels, height / factor, width / factor)`. It is the same at every step.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn embed(&self, hint: &Tensor) -> TensorResult<Tensor> {
        if self.config.controlnet_conditioning_channel_order == "bgr" {
            let channels: Vec<Tensor> = hint.chunk(self.config.conditioning_channels, 1)?;
            let reversed: Vec<&Tensor> = channels.iter().rev().collect();
            return self.hint.forward(&Tensor::cat(&reversed, 1)?)?.contiguous();
        }
        self.hint.forward(hint)?.contiguous()
    }

    /// What is to be added to a UNet that is given `x` `(images, in_channels, height, width)`.
    ///
    /// `hint` is an [embedded](Self::embed) one with an entry for each image; `context`
    /// `(batch, tokens, cross_attention_dim)` are text states, each for `images / batch` images in a row.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn forward(
        &self,
        x: &Tensor,
        hint: &Tensor,
        timestep: f64,
        context: &Tensor,
    ) -> TensorResult<Residuals> {
        let input = UNetInput {
            timestep,
            frames: 1,
            context,
            motion_norm: MotionNorm::PerFrame,
            injection: &Injection::default(),
        };
        let time = self.config.unet.embed_time(&self.time_embedding, timestep, x)?;

        // Down, as in the UNet.
        let mut x = self
            .conv_in
            .forward_with(x, ConvArgs { residual: Some(hint), ..ConvArgs::default() })?;
        let mut skips = vec![x.clone()];
        for stage in &self.down {
            x = stage.down(x, &time, &input, &mut skips)?;
        }

        // Middle.
        x = self.mid.mid(x, &time, &input)?;

        // Out.
        let outs = self.skip_outs.iter().zip(&skips);
        let skips = outs.map(|(out, skip)| self.pool(out.forward(skip)?));
        let skips = skips.collect::<TensorResult<_>>()?;
        Ok(Residuals { skips, mid: self.pool(self.mid_out.forward(&x)?)? })
    }

    /// Means over height and width in every place, if this network is of that kind.
    fn pool(&self, x: Tensor) -> TensorResult<Tensor> {
        if !self.config.global_pool_conditions {
            return Ok(x);
        }
        x.mean_keepdim((2, 3))?.broadcast_as(x.shape())
    }
}

/// Shrinks a hint to the size of latents.
#[derive(Clone, Debug)]
struct HintEmbedding {
    conv_in: Conv2d,
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
}

impl HintEmbedding {
    fn new(config: &ControlNetConfig, outputs: usize, vb: &VarBuilder) -> TensorResult<Self> {
        let same = ConvOptions::SAME_3X3;
        let halving = ConvOptions { stride: 2, ..same };
        let widths = &config.conditioning_embedding_out_channels;
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
            conv_in: Conv2d::new(config.conditioning_channels, first, same, &vb.pp("conv_in"))?,
            blocks,
            conv_out: Conv2d::new(last, outputs, same, &vb.pp("conv_out"))?,
        })
    }

    fn forward(&self, hint: &Tensor) -> TensorResult<Tensor> {
        let silu = ConvArgs { activation: Activation::Silu, ..ConvArgs::default() };
        let mut x = self.conv_in.forward_with(hint, silu)?;
        for block in &self.blocks {
            x = block.forward_with(&x, silu)?;
        }
        self.conv_out.forward(&x)
    }
}
