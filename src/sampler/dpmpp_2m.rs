//! DPM-Solver++(2M) sampler: Lu et al. (2022), algorithm 2, the midpoint form.

use candle_core::Tensor;

use super::{Run, Sampler, Step};
use crate::Result;
use crate::schedule::NoiseLevel;

/// DPM-Solver++(2M): second-order multistep solver that extrapolates from the predictions of this and the previous
/// step.
///
/// The first step is of first order. A step to zero noise returns the predicted clean latents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dpmpp2m;

impl Sampler for Dpmpp2m {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        let mut last: Option<(Tensor, f64)> = None;
        for (i, &Step { at, next }) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            if next.is_clean() {
                x = denoised;
                last = None;
                continue;
            }
            let h = lambda(next) - lambda(at);
            let d = match &last {
                None => denoised.clone(),
                Some((old_denoised, h_last)) => {
                    let r = h_last / h;
                    (&denoised + ((&denoised - old_denoised)? * (0.5 / r))?)?
                }
            };
            x = ((x * (next.sigma / at.sigma))? - (d * (next.alpha * (-h).exp_m1()))?)?;
            last = Some((denoised, h));
        }
        Ok(x)
    }
}

/// Half the log signal-to-noise ratio, `ln(alpha / sigma)`.
fn lambda(level: NoiseLevel) -> f64 {
    level.alpha.ln() - level.sigma.ln()
}
