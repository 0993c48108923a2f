//! Ancestral Euler sampler: `sample_euler_ancestral` of k-diffusion@4601bf0.

use candle_core::Tensor;

use super::{Run, Sampler, Step};
use crate::Result;
use crate::schedule::NoiseLevel;

/// Ancestral Euler sampler: an Euler step to below the next noise level, then fresh noise up to that level.
///
/// Noise is drawn at the last step too, where none is added, because the reference does the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EulerAncestral;

impl Sampler for EulerAncestral {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        for (i, &Step { at, next, .. }) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            x = ancestral_step(run, x, denoised, (at, next))?;
        }
        Ok(x)
    }
}

/// A step from one level to another with the prediction `denoised` and as much fresh noise as the diffusion SDE has.
pub(super) fn ancestral_step(
    run: &mut Run<'_>,
    x: Tensor,
    denoised: Tensor,
    (at, next): (NoiseLevel, NoiseLevel),
) -> Result<Tensor> {
    let (from, to) = (at.ratio(), next.ratio());
    let sigma_up = to / from * (from * from - to * to).max(0.0).sqrt();
    let sigma_down = (to * to - sigma_up * sigma_up).max(0.0).sqrt();
    let scaled = (x / at.alpha)?;
    let slope = ((&scaled - denoised)? / from)?;
    let scaled = (scaled + (slope * (sigma_down - from))?)?;
    let scaled = (&scaled + (run.noise_like(&scaled)? * sigma_up)?)?;
    Ok((scaled * next.alpha)?)
}
