//! The motion module: temporal attention over the frames of a clip, one sequence per pixel.
//!
//! Guo et al. (2023), "AnimateDiff". AnimateLCM has the same structure with its own weights.

use std::sync::OnceLock;

use crate::weights::VarBuilder;
use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::Stop;
use crate::kernels::layout::{feature_map, tokens};
use crate::kernels::{self, Positions};
use crate::models::{MOST_HEADS, within};
use crate::nn::{Attention, FeedForward, GroupNorm, LayerNorm, Linear, sinusoidal_positions};
use crate::spelling::named;

/// The axes over which the group norm of a motion module normalizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MotionNorm {
    /// Statistics per frame, as in the original code of AnimateDiff and AnimateLCM, with which the weights were
    /// trained.
    #[default]
    PerFrame,
    /// Statistics over all frames of a clip, as in diffusers.
    Pooled,
}

named!(MotionNorm, "motion-norm", {
    PerFrame = "per-frame",
    Pooled = "pooled",
});

/// Configuration of a UNet's motion modules, as in the `config.json` of a diffusers `MotionAdapter`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MotionConfig {
    /// Number of attention heads, 8.
    pub motion_num_attention_heads: usize,
    /// Maximum clip length in frames: 24 (AnimateDiff v1), 32 (v2, v3), 64 (AnimateLCM's own code).
    pub motion_max_seq_length: usize,
    /// Whether the mid block has a motion module: true for AnimateLCM and AnimateDiff v2, false for v1 and v3.
    pub use_motion_mid_block: bool,
    /// Whether a module has two attentions; those of SparseCtrl have one. Not part of any published configuration.
    #[serde(skip)]
    pub double_self_attention: bool,
}

/// Maximum clip length in frames, which is the number of rows of the position table.
const LONGEST: usize = 4096;

impl MotionConfig {
    /// Checks that the configuration is valid.
    pub fn validate(&self) -> crate::Result<()> {
        let config = "motion";
        within(
            config,
            "motion_num_attention_heads",
            self.motion_num_attention_heads,
            1..=MOST_HEADS,
        )?;
        within(config, "motion_max_seq_length", self.motion_max_seq_length, 1..=LONGEST)
    }
}

impl Default for MotionConfig {
    fn default() -> Self {
        Self {
            motion_num_attention_heads: 8,
            motion_max_seq_length: 64,
            use_motion_mid_block: true,
            double_self_attention: true,
        }
    }
}

/// A motion module.
#[derive(Clone, Debug)]
pub struct MotionModule {
    norm: GroupNorm,
    proj_in: Linear,
    block: Block,
    proj_out: Linear,
}

/// One or two temporal self-attentions and a feed-forward network.
///
/// Positions are added after each norm, so they affect the queries, keys and values but not the residual.
#[derive(Clone, Debug)]
struct Block {
    norm1: LayerNorm,
    attn1: Attention,
    second: Option<(LayerNorm, Attention)>,
    norm3: LayerNorm,
    ff: FeedForward,
    positions: Table,
}

/// The position table, computed on first use, because no file header bounds its size.
#[derive(Clone, Debug)]
struct Table {
    longest: usize,
    channels: usize,
    dtype: DType,
    device: Device,
    computed: OnceLock<Tensor>,
}

impl Table {
    /// The first `frames` rows, `(frames, channels)`.
    fn first(&self, frames: usize) -> Result<Tensor> {
        let Self { longest, channels, dtype, device, computed } = self;
        if frames > *longest {
            candle_core::bail!("{frames} frames, but the motion module knows {longest} positions");
        }
        if let Some(table) = computed.get() {
            return table.narrow(0, 0, frames);
        }
        let table = sinusoidal_positions(*longest, *channels, device)?.to_dtype(*dtype)?;
        computed.get_or_init(|| table).narrow(0, 0, frames)
    }
}

impl MotionModule {
    /// Loads a module with `channels` channels; `groups` is the UNet's number of norm groups.
    pub fn new(
        config: &MotionConfig,
        channels: usize,
        groups: usize,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let block = vb.pp("transformer_blocks.0");
        let norm = |name: &str| LayerNorm::new(channels, 1e-5, &block.pp(name));
        let heads = config.motion_num_attention_heads;
        let attention = |name: &str| Attention::new(channels, channels, heads, &block.pp(name));
        Ok(Self {
            norm: GroupNorm::new(groups, channels, 1e-6, &vb.pp("norm"))?,
            proj_in: Linear::new(channels, channels, &vb.pp("proj_in"))?,
            block: Block {
                norm1: norm("norm1")?,
                attn1: attention("attn1")?,
                second: config
                    .double_self_attention
                    .then(|| Ok::<_, candle_core::Error>((norm("norm2")?, attention("attn2")?)))
                    .transpose()?,
                norm3: norm("norm3")?,
                ff: FeedForward::new(channels, &block.pp("ff"))?,
                positions: Table {
                    longest: config.motion_max_seq_length,
                    channels,
                    dtype: vb.dtype(),
                    device: vb.device().clone(),
                    computed: OnceLock::new(),
                },
            },
            proj_out: Linear::new(channels, channels, &vb.pp("proj_out"))?,
        })
    }

    /// Maps `(batch*frames, channels, height, width)` to the same shape.
    ///
    /// # Errors
    ///
    /// More frames than positions.
    pub fn forward(
        &self,
        x: &Tensor,
        frames: usize,
        norm: MotionNorm,
        stop: &Stop,
    ) -> Result<Tensor> {
        self.forward_with(x, frames, norm, &[], stop)
    }

    /// [`forward`](Self::forward) with attentions that are switched off for a part of the batch: `alone` is for each
    /// the number of clips at the end of the batch whose frames attend to themselves alone; 0 if left out.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_with(
        &self,
        x: &Tensor,
        frames: usize,
        norm: MotionNorm,
        alone: &[usize],
        stop: &Stop,
    ) -> Result<Tensor> {
        let (images, channels, height, width) = x.dims4()?;
        let batch = images / frames;
        let y = match norm {
            MotionNorm::PerFrame => self.norm.forward(x)?,
            MotionNorm::Pooled => self.norm.forward_pooled(x, frames)?,
        };
        let (pixels, shape) = (height * width, (batch, frames, height * width, channels));
        let tokens_of = |x: &Tensor| tokens(x)?.reshape(shape);
        // This crate's attention kernels read frames in place. Otherwise frames must be contiguous, and transposing
        // once here, with every pixel as a sequence of its own, avoids doing so in each attention.
        let moved = !kernels::keeps_channels_last(x.device());
        let gather = |y: Tensor| {
            if !moved {
                return Ok(y);
            }
            y.transpose(1, 2)?.reshape((batch * pixels, frames, 1, channels))
        };
        let scatter = |y: Tensor| {
            if !moved {
                return Ok(y);
            }
            y.reshape((batch, pixels, frames, channels))?.transpose(1, 2)?.contiguous()
        };
        let y = self.proj_in.forward_until(&gather(tokens_of(&y)?)?, None, stop)?;
        // Sequences, where each pixel of a clip has its own.
        let each = if moved { pixels } else { 1 };
        let alone = [0, 1].map(|i| alone.get(i).copied().unwrap_or_default() * each);
        let y = self.block.forward(&y, alone, stop)?;
        let y = self.proj_out.forward_until(&scatter(y)?, Some(&tokens_of(x)?), stop)?;
        feature_map(&y.reshape((images, pixels, channels))?, height, width)
    }
}

impl Block {
    /// Maps `(batch, frames, pixels, channels)` to the same shape; `alone` is for each attention the number of entries
    /// at the end of the batch whose frames attend to themselves alone.
    fn forward(&self, x: &Tensor, alone: [usize; 2], stop: &Stop) -> Result<Tensor> {
        let (_, frames, pixels, _) = x.dims4()?;
        let table = self.positions.first(frames)?;
        let positions = Positions { table: &table, run: pixels };
        let y = self.norm1.forward_at(x, &positions)?;
        let mut x = self.attn1.forward_over_frames(&y, x, alone[0], stop)?;
        if let Some((norm, attention)) = &self.second {
            let y = norm.forward_at(&x, &positions)?;
            x = attention.forward_over_frames(&y, &x, alone[1], stop)?;
        }
        self.ff.forward(&self.norm3.forward(&x)?, &x, stop)
    }
}
