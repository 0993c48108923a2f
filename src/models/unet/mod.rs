//! Stable Diffusion's UNet with motion modules.
//!
//! Rombach et al. (2022) and Guo et al. (2023). All frames are folded into the batch; only the motion modules mix
//! frames of a clip.

mod config;
mod free_u;
mod injection;
mod perturbation;
mod stage;

pub use config::{CrossAttention, LayerConfig, Place, StageConfig, Stages, UNetConfig};
pub use free_u::FreeU;
pub(in crate::models) use injection::StageFeatures;
pub use injection::{Injection, Residuals};
pub use perturbation::Perturbation;
pub(super) use stage::Stage;

use crate::weights::VarBuilder;
use candle_core::Tensor;

use crate::models::Predict;
use crate::models::motion::MotionNorm;
use crate::nn::{Conv2d, ConvOptions, GroupNorm, TimestepEmbedding};
use crate::{Error, Result, Stop};

/// The UNet, which predicts what its noise schedule's prediction type says.
#[derive(Clone, Debug)]
pub struct UNet {
    config: UNetConfig,
    time_embedding: TimestepEmbedding,
    conv_in: Conv2d,
    down: Vec<Stage>,
    mid: Stage,
    up: Vec<Stage>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    cross_attentions: usize,
}

/// Inputs of the UNet in addition to the noisy latents.
#[derive(Clone, Copy, Debug)]
pub struct UNetInput<'a> {
    /// Timestep, which encodes the noise level on the training schedule.
    pub timestep: f64,
    /// Number of frames per clip.
    pub frames: usize,
    /// Text embeddings, `(batch, tokens, cross_attention_dim)`.
    pub context: &'a Tensor,
    /// The axes over which the motion modules normalize.
    pub motion_norm: MotionNorm,
    /// Tensors added by conditioners.
    pub injection: &'a Injection,
    /// Cancellation flag, which ends the pass with [`Error::Cancelled`].
    pub stop: &'a Stop,
}

impl UNet {
    /// Loads the network.
    pub fn new(config: &UNetConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let first = config.block_out_channels[0];
        let stages = config.stages()?;
        let load = |stage: &StageConfig| Stage::new(config, stage, vb);
        let same = ConvOptions::SAME_3X3;
        Ok(Self {
            time_embedding: TimestepEmbedding::new(
                first,
                config.time_embedding_width(),
                &vb.pp("time_embedding"),
            )?,
            conv_in: Conv2d::new(config.in_channels, first, same, &vb.pp("conv_in"))?,
            down: stages.down.iter().map(load).collect::<candle_core::Result<_>>()?,
            mid: load(&stages.mid)?,
            up: stages.up.iter().map(load).collect::<candle_core::Result<_>>()?,
            norm_out: GroupNorm::new(
                config.norm_num_groups,
                first,
                config.norm_eps,
                &vb.pp("conv_norm_out"),
            )?,
            conv_out: Conv2d::new(first, config.out_channels, same, &vb.pp("conv_out"))?,
            cross_attentions: config.cross_attentions()?.len(),
            config: config.clone(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The prediction for noisy latents `x`, `(batch*frames, in_channels, height, width)`.
    ///
    /// # Errors
    ///
    /// More frames than the motion modules support, mismatched shapes, or a requested `input.stop`.
    pub fn forward(&self, x: &Tensor, input: &UNetInput<'_>) -> Result<Tensor> {
        self.forward_with_timesteps(x, &[input.timestep], input)
    }

    /// [`forward`](Self::forward) for images of different noise levels, as used in training: `timesteps` replaces the
    /// one of `input`, with each timestep for an equal share of the images, in order.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward), and a number of images that is not a multiple of the number of timesteps.
    pub fn forward_with_timesteps(
        &self,
        x: &Tensor,
        timesteps: &[f64],
        input: &UNetInput<'_>,
    ) -> Result<Tensor> {
        if let Some(motion) = &self.config.motion
            && input.frames > motion.motion_max_seq_length
        {
            return Err(Error::request(
                "frames",
                format!(
                    "{} asked for, the motion modules know {}",
                    input.frames, motion.motion_max_seq_length
                ),
            ));
        }
        if input.frames == 0 || !x.dim(0)?.is_multiple_of(input.frames) {
            return Err(Error::request(
                "frames",
                format!("{} images are not clips of {} frames", x.dim(0)?, input.frames),
            ));
        }

        if timesteps.is_empty() || !x.dim(0)?.is_multiple_of(timesteps.len()) {
            return Err(Error::request(
                "timesteps",
                format!("{} images do not divide over {}", x.dim(0)?, timesteps.len()),
            ));
        }

        input.injection.check_image_contexts(self.cross_attentions)?;
        let time = self.config.embed_time(&self.time_embedding, timesteps, x)?;

        // Down blocks, which also output the skip connections.
        let mut x = self.conv_in.forward(x)?;
        let mut skips = vec![x.clone()];
        let features = input.injection.for_stages(self.down.len())?;
        for (stage, features) in self.down.iter().zip(features) {
            x = stage.down(x, &time, input, features, &mut skips)?;
        }
        input.injection.onto_skips(&mut skips)?;

        // Mid block.
        x = input.injection.onto_mid(self.mid.mid(x, &time, input)?)?;

        // Up blocks.
        for (i, stage) in self.up.iter().enumerate() {
            x = stage.up(x, &time, input, i, &mut skips)?;
        }

        // Output layers.
        input.stop.check()?;
        Ok(self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?.contiguous()?)
    }
}

impl Predict for UNet {
    fn predict(&self, x: &Tensor, input: &UNetInput<'_>) -> Result<Tensor> {
        self.forward(x, input)
    }
}
