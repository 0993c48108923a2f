//! PNDM sampler: Liu et al. (2022), linear multistep without Runge-Kutta steps (PLMS), as diffusers' `PNDMScheduler`
//! with `skip_prk_steps`.

use candle_core::Tensor;

use super::multistep::History;
use super::{Run, Sampler, Step};
use crate::Result;

/// PNDM: fourth-order Adams-Bashforth over even steps.
///
/// The first step of a run evaluates the model again at its end, at `via`, and takes the mean; the following ones are
/// of order two and three. A step whose `via` is its `at` has no second evaluation: the only step of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pndm;

impl Sampler for Pndm {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        let mut history = History::new(4);
        for (i, &Step { at, via, next }) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            history.push(at, at.noise_in(&x, &denoised)?);
            let stride = next.ratio() - at.ratio();
            let weights = shares(history.ratios().len()).iter().map(|share| share * stride);
            let mut end = history.step(&x, (at, next), &weights.collect::<Vec<_>>())?;
            if i == 0 && via != at {
                let denoised = run.denoise_at(&end, via)?;
                let mut both = History::new(1);
                both.push(via, via.noise_in(&end, &denoised)?);
                let second = both.step(&x, (at, next), &[stride])?;
                end = ((end + second)? / 2.0)?;
            }
            x = end;
        }
        Ok(x)
    }
}

/// The coefficients of Adams and Bashforth for so many predictions, the newest first.
fn shares(predictions: usize) -> &'static [f64] {
    match predictions {
        1 => &[1.0],
        2 => &[3.0 / 2.0, -1.0 / 2.0],
        3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
        _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
    }
}
