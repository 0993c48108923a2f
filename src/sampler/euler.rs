//! Euler's method on the probability flow: Karras et al. (2022), algorithm 2 without churn.

use candle_core::Tensor;

use super::{Denoiser, Observer, Progress, Sampler, Step};
use crate::Result;
use crate::rng::Noise;

/// Follows the slope at each level straight to the next one.
///
/// In the paper's terms the latents are `x / alpha` and their noise is `sigma / alpha`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Euler;

impl Sampler for Euler {
    fn sample(
        &self,
        denoiser: &mut dyn Denoiser,
        mut x: Tensor,
        steps: &[Step],
        _noise: &mut Noise,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        for (step, &Step { at, next }) in steps.iter().enumerate() {
            let denoised = denoiser.denoise(&x, at)?;
            observer.step(Progress { step, steps: steps.len(), at, denoised: &denoised })?;
            let scaled = (x / at.alpha)?;
            let slope = ((&scaled - denoised)? / at.ratio())?;
            let scaled = (scaled + (slope * (next.ratio() - at.ratio()))?)?;
            x = (scaled * next.alpha)?;
        }
        Ok(x)
    }
}
