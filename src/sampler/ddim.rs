//! DDIM sampler: Song et al. (2021), equation 12.

use candle_core::Tensor;

use super::{Run, Sampler, Step};
use crate::Result;

/// DDIM: steps to the next noise level with the predicted noise, plus fresh noise in proportion to `eta`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ddim {
    /// Share of fresh noise: 0 adds none, 1 is the ancestral sampling of DDPM.
    pub eta: f64,
}

impl Sampler for Ddim {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        for (i, &Step { at, next, .. }) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            let predicted_noise = ((x - (&denoised * at.alpha)?)? / at.sigma)?;
            let sqrt_beta = (1.0 - (at.alpha / next.alpha).powi(2)).max(0.0).sqrt();
            let std_dev = self.eta * (next.sigma / at.sigma) * sqrt_beta;
            let direction = (next.sigma * next.sigma - std_dev * std_dev).max(0.0).sqrt();
            x = ((denoised * next.alpha)? + (predicted_noise * direction)?)?;
            if std_dev > 0.0 {
                x = (&x + (run.noise_like(&x)? * std_dev)?)?;
            }
        }
        Ok(x)
    }
}
