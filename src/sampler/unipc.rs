//! UniPC sampler: Zhao et al. (2023), B2(h) in data prediction, as diffusers' `UniPCMultistepScheduler`.

use candle_core::Tensor;

use super::multistep::{Earlier, midpoint, ode_step};
use super::{Run, Sampler, Step};
use crate::Result;

/// UniPC: the second-order predictor of [`Dpmpp2m`](super::Dpmpp2m), whose steps are made again once the model was
/// evaluated at their end.
///
/// The first step is of lower order. A step to zero noise returns the predicted clean latents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UniPc;

/// The step before: where it began, and the predictions there and one step earlier.
struct Last {
    x: Tensor,
    step: Step,
    denoised: Tensor,
    before: Option<Earlier>,
}

impl Sampler for UniPc {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        let mut last: Option<Last> = None;
        for (i, &step) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            if step.next.is_clean() {
                x = denoised;
                last = None;
                continue;
            }
            let mut before = None;
            if let Some(last) = last {
                x = last.corrected(&denoised)?;
                before = Some(Earlier { denoised: last.denoised, h: last.step.h() });
            }
            let predicted = midpoint(&denoised, before.as_ref(), step.h())?;
            let end = ode_step(x.clone(), step, predicted)?;
            last = Some(Last { x, step, denoised, before });
            x = end;
        }
        Ok(x)
    }
}

impl Last {
    /// The end of the step, with the prediction `after` of there.
    fn corrected(&self, after: &Tensor) -> Result<Tensor> {
        let h = self.step.h();
        let change = (after - &self.denoised)?;
        let predicted = match &self.before {
            None => (&self.denoised + (change * 0.5)?)?,
            Some(before) => {
                let (slope, end) = weights(before.h / h, h);
                let earlier = before.change(&self.denoised, h)?;
                ((&self.denoised + (earlier * slope)?)? + (change * end)?)?
            }
        };
        ode_step(self.x.clone(), self.step, predicted)
    }
}

/// Weights of the change before a step and of that over it (equations 9 to 11), for a step of length `h` after one `r`
/// times as long.
fn weights(r: f64, h: f64) -> (f64, f64) {
    let b = (-h).exp_m1();
    let phi_2 = -b / h - 1.0;
    let phi_3 = -phi_2 / h - 0.5;
    let (first, second) = (phi_2 / b, 2.0 * phi_3 / b);
    // The sum is `first`; with the places -r and 1 as factors it is `second`.
    let slope = (first - second) / (1.0 + r);
    (slope, first - slope)
}
