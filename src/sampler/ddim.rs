//! Denoising diffusion implicit models: Song et al. (2021), equation 12.

use candle_core::Tensor;

use super::{Denoiser, Observer, Progress, Sampler, Step};
use crate::Result;
use crate::rng::Noise;

/// Keeps the predicted noise and changes its amount.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ddim {
    /// The share of fresh noise: 0 adds none, 1 is the ancestral sampling of DDPM.
    pub eta: f64,
}

impl Sampler for Ddim {
    fn sample(
        &self,
        denoiser: &mut dyn Denoiser,
        mut x: Tensor,
        steps: &[Step],
        noise: &mut Noise,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        for (step, &Step { at, next }) in steps.iter().enumerate() {
            let denoised = denoiser.denoise(&x, at)?;
            observer.step(Progress { step, steps: steps.len(), at, denoised: &denoised })?;
            let predicted_noise = ((x - (&denoised * at.alpha)?)? / at.sigma)?;
            let kept = (1.0 - (at.alpha / next.alpha).powi(2)).max(0.0).sqrt();
            let fresh = self.eta * (next.sigma / at.sigma) * kept;
            let old = (next.sigma * next.sigma - fresh * fresh).max(0.0).sqrt();
            x = ((denoised * next.alpha)? + (predicted_noise * old)?)?;
            if self.eta > 0.0 {
                x = (&x + (noise.like(&x)? * fresh)?)?;
            }
        }
        Ok(x)
    }
}
