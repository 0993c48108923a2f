//! State of one sampling run: the model, the steps, the noise source and the observer.

use std::fmt;

use candle_core::Tensor;

use super::{Denoiser, Step};
use crate::Result;
use crate::rng::Noise;
use crate::schedule::NoiseLevel;

/// A run of a sampler.
pub struct Run<'a> {
    denoiser: &'a mut dyn Denoiser,
    steps: &'a [Step],
    noise: &'a mut Noise,
    observer: Option<&'a mut dyn Observer>,
}

/// State of a run at one step.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Index of the step, from 0.
    pub step: usize,
    /// Number of steps.
    pub steps: usize,
    /// Noise level at which the step begins.
    pub at: NoiseLevel,
    /// Latents at that level, `(batch, frames, channels, height, width)`.
    pub x: &'a Tensor,
    /// The model's prediction of the clean latents, of the same shape: a preview of the result.
    pub denoised: &'a Tensor,
}

/// Callback that receives each step's latents and prediction.
///
/// An error ends the run; [`Error::Cancelled`](crate::Error::Cancelled) cancels it.
pub trait Observer {
    /// Called once per step, after its first model evaluation.
    fn step(&mut self, progress: Progress<'_>) -> Result<()>;
}

impl<F: FnMut(Progress<'_>) -> Result<()>> Observer for F {
    fn step(&mut self, progress: Progress<'_>) -> Result<()> {
        self(progress)
    }
}

impl<'a> Run<'a> {
    /// A run of `steps` without an observer.
    pub fn new(denoiser: &'a mut dyn Denoiser, steps: &'a [Step], noise: &'a mut Noise) -> Self {
        Self { denoiser, steps, noise, observer: None }
    }

    /// Sets the `observer` that is called at each step.
    #[must_use]
    pub fn with_observer(self, observer: &'a mut dyn Observer) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// The steps, noisiest first.
    pub fn steps(&self) -> &'a [Step] {
        self.steps
    }

    /// Predicts the clean latents from `x` at the start of step `step`, counted from 0, and reports them to the
    /// observer.
    ///
    /// # Errors
    ///
    /// Errors of the model and of the observer.
    pub fn denoise(&mut self, step: usize, x: &Tensor) -> Result<Tensor> {
        let (at, steps) = (self.steps[step].at, self.steps.len());
        self.denoiser.begin_step(step, steps);
        let denoised = self.denoiser.denoise(x, at)?;
        if let Some(observer) = &mut self.observer {
            observer.step(Progress { step, steps, at, x, denoised: &denoised })?;
        }
        Ok(denoised)
    }

    /// Predicts the clean latents from `x` at any noise level: a further evaluation within the step, not reported.
    ///
    /// # Errors
    ///
    /// Errors of the model.
    pub fn denoise_at(&mut self, x: &Tensor, at: NoiseLevel) -> Result<Tensor> {
        self.denoiser.denoise(x, at)
    }

    /// Standard normal noise of the shape and device of `x`.
    pub fn noise_like(&mut self, x: &Tensor) -> Result<Tensor> {
        self.noise.like(x)
    }
}

impl fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("steps", &self.steps).finish_non_exhaustive()
    }
}
