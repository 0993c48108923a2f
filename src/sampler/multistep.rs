//! Steps that multistep samplers share, with the predictions that they keep.
//!
//! There are two families. Those of [`History`] keep the predicted noise, which is the slope of `x / alpha` over
//! `sigma / alpha`, and add multiples of it: Adams-Bashforth methods. The others keep the predicted clean latents, for
//! which the linear part of the ODE is solved exactly: exponential integrators over [`NoiseLevel::lambda`].

use candle_core::Tensor;

use super::{Run, Step};
use crate::Result;
use crate::schedule::NoiseLevel;

/// The predicted noise of the last few steps, the newest first.
pub(super) struct History {
    most: usize,
    ratios: Vec<f64>,
    noises: Vec<Tensor>,
}

impl History {
    /// An empty history of at most `most` steps.
    pub(super) fn new(most: usize) -> Self {
        Self { most, ratios: Vec::new(), noises: Vec::new() }
    }

    /// Adds the noise that was predicted at a level.
    pub(super) fn push(&mut self, at: NoiseLevel, noise: Tensor) {
        self.ratios.insert(0, at.ratio());
        self.noises.insert(0, noise);
        self.ratios.truncate(self.most);
        self.noises.truncate(self.most);
    }

    /// The `sigma / alpha` of each step.
    pub(super) fn ratios(&self) -> &[f64] {
        &self.ratios
    }

    /// Steps from one level to another with a weight for each step's noise; the weights of a constant noise would have
    /// the sum `to.ratio() - from.ratio()`.
    pub(super) fn step(
        &self,
        x: &Tensor,
        (from, to): (NoiseLevel, NoiseLevel),
        weights: &[f64],
    ) -> Result<Tensor> {
        let mut x = (x * (to.alpha / from.alpha))?;
        for (noise, weight) in self.noises.iter().zip(weights) {
            x = (x + (noise * (to.alpha * weight))?)?;
        }
        Ok(x)
    }
}

/// The clean latents predicted at an earlier step, and the length of that step in lambda.
pub(super) struct Earlier {
    pub(super) denoised: Tensor,
    pub(super) h: f64,
}

impl Earlier {
    /// The change of the prediction per lambda since then, times `h`.
    pub(super) fn change(&self, denoised: &Tensor, h: f64) -> Result<Tensor> {
        Ok(((denoised - &self.denoised)? * (h / self.h))?)
    }
}

/// The prediction in the middle of a step of length `h`, extrapolated from this and the earlier one.
pub(super) fn midpoint(denoised: &Tensor, earlier: Option<&Earlier>, h: f64) -> Result<Tensor> {
    match earlier {
        None => Ok(denoised.clone()),
        Some(earlier) => {
            let r = earlier.h / h;
            Ok((denoised + ((denoised - &earlier.denoised)? * (0.5 / r))?)?)
        }
    }
}

/// A step of the probability flow ODE with the prediction `denoised` throughout: Lu et al. (2022), equation 9.
pub(super) fn ode_step(x: Tensor, step: Step, denoised: Tensor) -> Result<Tensor> {
    let Step { at, next, .. } = step;
    let grown = next.alpha * (-step.h()).exp_m1();
    Ok(((x * (next.sigma / at.sigma))? - (denoised * grown)?)?)
}

/// The same of the diffusion SDE, whose noise is drawn from the run: Lu et al. (2022), equation 17.
pub(super) fn sde_step(
    run: &mut Run<'_>,
    x: Tensor,
    step: Step,
    denoised: Tensor,
) -> Result<Tensor> {
    let Step { at, next, .. } = step;
    let h = step.h();
    let fresh = -(-2.0 * h).exp_m1();
    let mean = ((x * (next.sigma / at.sigma * (-h).exp()))? + (denoised * (next.alpha * fresh))?)?;
    Ok((&mean + (run.noise_like(&mean)? * (next.sigma * fresh.sqrt()))?)?)
}
