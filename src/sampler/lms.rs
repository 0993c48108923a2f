//! Linear multistep sampler: `sample_lms` of k-diffusion@4601bf0, as diffusers' `LMSDiscreteScheduler`.

use candle_core::Tensor;

use super::multistep::History;
use super::{Run, Sampler, Step};
use crate::Result;

/// Linear multistep sampler: fourth-order Adams-Bashforth over uneven steps.
///
/// Starts with lower orders, an Euler step first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lms;

impl Sampler for Lms {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        let mut history = History::new(4);
        for (i, &Step { at, next, .. }) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            history.push(at, at.noise_in(&x, &denoised)?);
            let weights = weights(history.ratios(), next.ratio());
            x = history.step(&x, (at, next), &weights)?;
        }
        Ok(x)
    }
}

/// Integrals, from the first of `ratios` to `end`, of the polynomials that are 1 at one of `ratios` and 0 at the
/// others.
fn weights(ratios: &[f64], end: f64) -> Vec<f64> {
    let Some(&start) = ratios.first() else { return Vec::new() };
    let (middle, half) = (f64::midpoint(start, end), (end - start) / 2.0);
    // Gauss's two points, exact up to degree three.
    let points = [middle - half / 3f64.sqrt(), middle + half / 3f64.sqrt()];
    (0..ratios.len())
        .map(|j| {
            let others = || ratios.iter().enumerate().filter(|(k, _)| *k != j);
            let at = |point: f64| -> f64 {
                others().map(|(_, ratio)| (point - ratio) / (ratios[j] - ratio)).product()
            };
            half * points.map(at).iter().sum::<f64>()
        })
        .collect()
}
