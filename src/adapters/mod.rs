//! What is added to a model: LoRA changes its weights, conditioners run beside it.

pub mod control_net;
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

/// Runs beside the UNet and adds to what it computes.
pub trait Conditioner: fmt::Debug + Send {
    /// What messages call it.
    fn label(&self) -> &str;

    /// Adds its part to a pass of the UNet. Adding nothing leaves the pass as it is, bit for bit.
    fn inject(&mut self, pass: &Pass<'_>, injection: &mut Injection) -> Result<()>;
}

/// Inputs of one evaluation of the UNet, as conditioners see them beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Input of the UNet, `(clips*frames, channels, height, width)`.
    pub x: &'a Tensor,
    /// Timestep that the UNet is given.
    pub timestep: f64,
    /// Step of the run.
    pub progress: Progress,
    /// Number of clips in the batch, unconditional ones included.
    pub clips: usize,
    /// Indices of the frames, from 0: all of the clip in order, or those of a context window.
    pub frames: &'a [usize],
    /// Text states, `(clips, tokens, dim)`, or `(clips*frames, tokens, dim)` where each frame has its own.
    pub context: &'a Tensor,
    /// Number of clips, at the beginning of the batch, that are unconditional: they have the negative prompt.
    pub negatives: usize,
    /// What the group norms of motion modules normalize over.
    pub motion_norm: MotionNorm,
    /// Cancellation of the pass.
    pub stop: &'a Stop,
}

/// A step of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Index of the step, from 0.
    pub step: usize,
    /// Number of steps.
    pub steps: usize,
}
