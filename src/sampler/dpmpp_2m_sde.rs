//! SDE-DPM-Solver++(2M) sampler: Lu et al. (2022), equation 18, as diffusers' `DPMSolverMultistepScheduler` with
//! `sde-dpmsolver++`.

use candle_core::Tensor;

use super::multistep::{Earlier, midpoint, sde_step};
use super::{Run, Sampler};
use crate::Result;

/// SDE-DPM-Solver++(2M): as [`Dpmpp2m`](super::Dpmpp2m), on the diffusion SDE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dpmpp2mSde;

impl Sampler for Dpmpp2mSde {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        let mut last: Option<Earlier> = None;
        for (i, &step) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            if step.next.is_clean() {
                x = denoised;
                last = None;
                continue;
            }
            let h = step.h();
            x = sde_step(run, x, step, midpoint(&denoised, last.as_ref(), h)?)?;
            last = Some(Earlier { denoised, h });
        }
        Ok(x)
    }
}
