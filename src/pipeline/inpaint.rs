//! Sampling around parts of a source that stay as they are.
//!
//! The way of diffusers' `StableDiffusionInpaintPipeline` (0.42.1) for UNets of four channels, which is RePaint's without
//! going back: at each noise level the kept latents are those of the source with the same noise, at the end those
//! without any.

use candle_core::Tensor;

use crate::Result;
use crate::sampler::Denoiser;
use crate::schedule::NoiseLevel;

/// A source's latents, of which parts are kept.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// `(1, frames, channels, height, width)` in f32.
    clean: Tensor,
    /// The noise of all levels, of the same shape.
    noise: Tensor,
    /// 1 where latents are made, of the same shape in bytes.
    made: Tensor,
}

impl Known {
    /// The `clean` latents and their `noise` under a mask, 1 where latents are made.
    pub(super) fn new(mask: &Tensor, clean: &Tensor, noise: &Tensor) -> Result<Self> {
        let made = mask.to_device(clean.device())?.broadcast_as(clean.shape())?.contiguous()?;
        Ok(Self { clean: clean.clone(), noise: noise.clone(), made })
    }

    /// Latents `x` whose kept parts are the source's at noise level `at`.
    pub(super) fn noised(&self, x: &Tensor, at: NoiseLevel) -> Result<Tensor> {
        Ok(self.made.where_cond(x, &at.add_noise(&self.clean, &self.noise)?)?)
    }

    /// Latents `x` whose kept parts are the source's without noise.
    pub(super) fn finished(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.made.where_cond(x, &self.clean)?)
    }
}

/// A denoiser that sees and predicts the source's own latents where they are kept, so that any sampler keeps them.
///
/// Samplers compute each latent from its own past alone: made parts are the same as if the sampler's latents had been
/// replaced after every step.
pub(super) struct Inpainted<'a> {
    pub(super) inner: &'a mut dyn Denoiser,
    /// All is made if `None`.
    pub(super) known: Option<&'a Known>,
}

impl Denoiser for Inpainted<'_> {
    fn denoise(&mut self, x: &Tensor, at: NoiseLevel) -> Result<Tensor> {
        match self.known {
            Some(known) => known.finished(&self.inner.denoise(&known.noised(x, at)?, at)?),
            None => self.inner.denoise(x, at),
        }
    }

    fn begin_step(&mut self, step: usize, steps: usize) {
        self.inner.begin_step(step, steps);
    }
}
