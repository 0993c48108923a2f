//! Euler's method with fresh noise at every step: `sample_euler_ancestral` of k-diffusion@4601bf0.

use candle_core::Tensor;

use super::{Denoiser, Observer, Progress, Sampler, Step};
use crate::Result;
use crate::rng::Noise;

/// Goes a little further down than the next level and climbs back up with noise.
///
/// It draws noise at its last step too, where none is added, because the reference does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EulerAncestral;

impl Sampler for EulerAncestral {
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
            let (from, to) = (at.ratio(), next.ratio());
            let sigma_up = to / from * (from * from - to * to).max(0.0).sqrt();
            let sigma_down = (to * to - sigma_up * sigma_up).max(0.0).sqrt();
            let scaled = (x / at.alpha)?;
            let slope = ((&scaled - denoised)? / from)?;
            let scaled = (scaled + (slope * (sigma_down - from))?)?;
            let scaled = (&scaled + (noise.like(&scaled)? * sigma_up)?)?;
            x = (scaled * next.alpha)?;
        }
        Ok(x)
    }
}
