//! DEIS sampler: Zhang and Chen (2023), tAB-DEIS in log(rho), as diffusers' `DEISMultistepScheduler`.

use candle_core::Tensor;

use super::multistep::History;
use super::{Run, Sampler, Step};
use crate::Result;

/// DEIS: second-order Adams-Bashforth whose polynomials are those of the log noise level.
///
/// The first step is of first order, and so is a step whose `via` is its `at`: the last one of short runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deis;

impl Sampler for Deis {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        let mut history = History::new(2);
        for (i, &Step { at, via, next }) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            history.push(at, at.noise_in(&x, &denoised)?);
            let is_first_order = next.is_clean() || via == at;
            let weights = match *history.ratios() {
                [newest, older] if !is_first_order => weights(newest, older, next.ratio()).to_vec(),
                _ => vec![next.ratio() - at.ratio()],
            };
            x = history.step(&x, (at, next), &weights)?;
        }
        Ok(x)
    }
}

/// Integrals, from `newest` to `end`, of the lines over the logarithm that are 1 at one of `newest` and `older` and 0
/// at the other.
fn weights(newest: f64, older: f64, end: f64) -> [f64; 2] {
    let integral = |one: f64, zero: f64| {
        let until = |t: f64| t * ((t / zero).ln() - 1.0) / (one / zero).ln();
        until(end) - until(newest)
    };
    [integral(newest, older), integral(older, newest)]
}
