//! SDE-DPM-Solver++(3M) sampler: `sample_dpmpp_3m_sde` of k-diffusion 0.1.1.

use candle_core::Tensor;

use super::multistep::{Earlier, sde_step};
use super::{Run, Sampler};
use crate::Result;

/// SDE-DPM-Solver++(3M): third-order multistep solver of the diffusion SDE.
///
/// The first step is of first, the second one of second order. A step to zero noise returns the predicted clean
/// latents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dpmpp3mSde;

impl Sampler for Dpmpp3mSde {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        let (mut last, mut before): (Option<Earlier>, Option<Earlier>) = (None, None);
        for (i, &step) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            if step.next.is_clean() {
                x = denoised;
                (last, before) = (None, None);
                continue;
            }
            let h = step.h();
            let predicted = extrapolated(&denoised, last.as_ref(), before.as_ref(), h)?;
            x = sde_step(run, x, step, predicted)?;
            (before, last) = (last, Some(Earlier { denoised, h }));
        }
        Ok(x)
    }
}

/// The constant prediction that has the effect of the polynomial through up to three predictions.
fn extrapolated(
    denoised: &Tensor,
    last: Option<&Earlier>,
    before: Option<&Earlier>,
    h: f64,
) -> Result<Tensor> {
    let Some(last) = last else { return Ok(denoised.clone()) };
    let fresh = -(-2.0 * h).exp_m1();
    // Functions phi of exponential integrators, over a step of 2 h.
    let phi_2 = 1.0 - fresh / (2.0 * h);
    let phi_3 = phi_2 / (2.0 * h) - 0.5;
    let change = last.change(denoised, h)?;
    let Some(before) = before else {
        return Ok((denoised + (change * (phi_2 / fresh))?)?);
    };
    // Divided differences of first and second order at this step.
    let bend = ((&change - before.change(&last.denoised, h)?)? * (h / (last.h + before.h)))?;
    let slope = (change + (&bend * (last.h / h))?)?;
    let bent = ((slope * (phi_2 / fresh))? - (bend * (phi_3 / fresh))?)?;
    Ok((denoised + bent)?)
}
