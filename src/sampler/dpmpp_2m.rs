//! DPM-Solver++(2M) sampler: Lu et al. (2022), algorithm 2, the midpoint form.

use candle_core::Tensor;

use super::multistep::{Earlier, midpoint, ode_step};
use super::{Run, Sampler};
use crate::Result;

/// DPM-Solver++(2M): second-order multistep solver that extrapolates from the predictions of this and the previous
/// step.
///
/// The first step is of first order. A step to zero noise returns the predicted clean latents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dpmpp2m;

impl Sampler for Dpmpp2m {
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
            x = ode_step(x, step, midpoint(&denoised, last.as_ref(), h)?)?;
            last = Some(Earlier { denoised, h });
        }
        Ok(x)
    }
}
