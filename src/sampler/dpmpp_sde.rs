//! DPM-Solver++ SDE sampler: `sample_dpmpp_sde` of k-diffusion@4601bf0, as diffusers' `DPMSolverSDEScheduler`.

use candle_core::Tensor;

use super::euler_ancestral::ancestral_step;
use super::{Run, Sampler, Step};
use crate::Result;

/// DPM-Solver++ SDE: an ancestral step to `via`, halfway in log noise, then one over the whole step with the model's
/// prediction from there. Two model evaluations per step.
///
/// The noises of both are independent, as with k-diffusion's default noise sampler; the reference's are increments of
/// one Brownian path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DpmppSde;

impl Sampler for DpmppSde {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        for (i, &Step { at, via, next }) in run.steps().iter().enumerate() {
            let mut denoised = run.denoise(i, &x)?;
            if next.is_clean() {
                x = denoised;
                continue;
            }
            let halfway = ancestral_step(run, x.clone(), denoised, (at, via))?;
            denoised = run.denoise_at(&halfway, via)?;
            x = ancestral_step(run, x, denoised, (at, next))?;
        }
        Ok(x)
    }
}
