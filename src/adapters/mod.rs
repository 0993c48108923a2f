//! Adapters: LoRAs, which change a model's weights, and conditioners, which run next to the UNet.

pub mod control_net;
pub mod i2v;
pub mod ip_adapter;
pub mod lora;
mod mask;
mod range;
mod settings;
pub mod sparse_ctrl;
mod strength;
pub mod t2i_adapter;

use std::fmt;

use candle_core::Tensor;

use crate::models::motion::MotionNorm;
use crate::models::unet::Injection;
use crate::{Result, Stop};

pub use self::mask::Mask;
pub use self::range::ActiveRange;
pub use self::settings::ControlSettings;
pub use self::strength::Strength;

/// A network that runs next to the UNet and adds to its activations.
pub trait Conditioner: fmt::Debug + Send {
    /// The name used in messages.
    fn label(&self) -> &str;

    /// Adds the conditioner's contribution to a pass of the UNet. Adding nothing leaves the pass unchanged, bit for
    /// bit.
    fn inject(&mut self, pass: &Pass<'_>, injection: &mut Injection) -> Result<()>;
}

/// Inputs of one evaluation of the UNet, passed to conditioners beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Input of the UNet, `(clips*frames, channels, height, width)`.
    pub x: &'a Tensor,
    /// Timestep passed to the UNet.
    pub timestep: f64,
    /// The current step of the run.
    pub progress: Progress,
    /// Number of clips in the batch, unconditional ones included.
    pub clips: usize,
    /// Indices of the frames, from 0: all frames of the clip in order, or those of a context window.
    pub frames: &'a [usize],
    /// Text embeddings, `(clips, tokens, dim)`, or `(clips*frames, tokens, dim)` with one prompt per frame.
    pub context: &'a Tensor,
    /// Number of unconditional clips (with the negative prompt), which come first in the batch.
    pub negatives: usize,
    /// The axes over which the group norms of motion modules normalize.
    pub motion_norm: MotionNorm,
    /// Cancellation flag of the pass.
    pub stop: &'a Stop,
}

/// Position of a step in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Index of the step, from 0.
    pub step: usize,
    /// Number of steps.
    pub steps: usize,
}
