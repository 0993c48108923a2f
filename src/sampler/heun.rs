//! Heun sampler on the probability flow ODE: Karras et al. (2022), algorithm 1, as diffusers'
//! `HeunDiscreteScheduler`.

use candle_core::Tensor;

use super::{Run, Sampler, Step};
use crate::Result;

/// Heun sampler: second order, two model evaluations per step, the mean of the slopes at both ends.
///
/// The last step, which ends at zero noise, is an Euler step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heun;

impl Sampler for Heun {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        for (i, &Step { at, next, .. }) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            let scaled = (x / at.alpha)?;
            let mut slope = ((&scaled - denoised)? / at.ratio())?;
            let stride = next.ratio() - at.ratio();
            if !next.is_clean() {
                let euler = (&scaled + (&slope * stride)?)?;
                let denoised = run.denoise_at(&(&euler * next.alpha)?, next)?;
                slope = ((slope + ((euler - denoised)? / next.ratio())?)? / 2.0)?;
            }
            x = ((scaled + (slope * stride)?)? * next.alpha)?;
        }
        Ok(x)
    }
}
