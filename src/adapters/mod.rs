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

/// A pass of the UNet that is about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// What the UNet will be given, `(batch*frames, channels, height, width)`.
    pub x: &'a Tensor,
    /// What the UNet will be told about the noise.
    pub timestep: f64,
    /// How far the run is.
    pub progress: Progress,
    /// Which frames of the clip these are: all in order, or those of a window.
    pub frames: &'a [usize],
    /// Text states, `(batch, tokens, dim)`.
    pub context: &'a Tensor,
    /// How many clips of the batch, at its beginning, have the negative prompt.
    pub negatives: usize,
    /// Over what motion modules normalize.
    pub motion_norm: MotionNorm,
    /// What ends the pass early.
    pub stop: &'a Stop,
}

impl Pass<'_> {
    /// Clips in the batch, those with the negative prompt included.
    pub fn clips(&self) -> Result<usize> {
        Ok(self.context.dim(0)?)
    }
}

/// A step of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which, from 0.
    pub step: usize,
    /// Of how many.
    pub steps: usize,
}
