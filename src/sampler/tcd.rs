//! Strategic stochastic sampling of trajectory consistency distillation: Zheng et al. (2024), algorithm 4, as
//! diffusers' `TCDScheduler`.

use candle_core::Tensor;

use super::{Run, Sampler, Step};
use crate::Result;

/// TCD sampler: follows the predicted trajectory to below the next noise level, then adds fresh noise up to it.
///
/// How far below is a matter of the plan: each step's `via`, which [`PlanSettings::gamma`](super::PlanSettings) sets.
/// A step whose `via` is its `next` adds no noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcd;

impl Tcd {
    /// The default of gamma: `eta` of diffusers.
    pub const GAMMA: f64 = 0.3;
}

impl Sampler for Tcd {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        for (i, &Step { at, via, next }) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            x = via.add_noise(&denoised, &at.noise_in(&x, &denoised)?)?;
            if via != next {
                let kept = next.alpha / via.alpha;
                let fresh = (1.0 - kept * kept).max(0.0).sqrt();
                x = ((x * kept)? + (run.noise_like(&denoised)? * fresh)?)?;
            }
        }
        Ok(x)
    }
}
