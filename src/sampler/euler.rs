//! Euler sampler on the probability flow ODE: Karras et al. (2022), algorithm 2 without churn.

use candle_core::Tensor;

use super::{Run, Sampler, Step};
use crate::Result;

/// Euler sampler: one first-order step along the slope of the ODE per noise level.
///
/// In the paper's terms the latents are `x / alpha` and the noise level is `sigma / alpha`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Euler;

impl Sampler for Euler {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        for (i, &Step { at, next, .. }) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            let scaled = (x / at.alpha)?;
            let slope = ((&scaled - denoised)? / at.ratio())?;
            let scaled = (scaled + (slope * (next.ratio() - at.ratio()))?)?;
            x = (scaled * next.alpha)?;
        }
        Ok(x)
    }
}
