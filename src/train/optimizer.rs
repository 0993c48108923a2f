//! AdamW, its pace, and limits on gradients.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Vars, Weights};
use crate::{Error, Result};

/// Adam with decoupled weight decay: Loshchilov and Hutter (2019), as torch computes it.
///
/// candle-nn's keeps its moments to itself, so that a run could not be resumed.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Decay of the first moment, 0.9.
    pub beta1: f64,
    /// Decay of the second moment, 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment, 1e-8.
    pub eps: f64,
    /// Weight decay; biases and norms have it too, as with torch's defaults.
    pub decay: f64,
    /// Steps taken.
    pub steps: usize,
    /// The first moments, by name.
    pub first: Weights,
    /// The second moments, by name.
    pub second: Weights,
}

impl AdamW {
    /// With torch's defaults but the given decay.
    pub fn new(decay: f64) -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            decay,
            steps: 0,
            first: Weights::new(),
            second: Weights::new(),
        }
    }

    /// Changes the variables by one step at learning rate `rate`.
    ///
    /// # Errors
    ///
    /// When a variable's gradient is missing.
    pub fn step(&mut self, vars: &Vars, gradients: &Weights, rate: f64) -> Result<()> {
        self.steps += 1;
        let count = self.steps as f64;
        let first_share = 1.0 - self.beta1.powf(count);
        let second_share = (1.0 - self.beta2.powf(count)).sqrt();
        for (name, var) in vars {
            let Some(gradient) = gradients.get(name) else {
                let name = format!("weight `{name}`");
                return Err(Error::Missing { name, reason: "has no gradient".into() });
            };
            let moment = |list: &Weights, beta: f64, new: &Tensor| -> Result<Tensor> {
                let new = (new * (1.0 - beta))?;
                Ok(match list.get(name) {
                    Some(old) => ((old * beta)? + new)?,
                    None => new,
                })
            };
            let first = moment(&self.first, self.beta1, gradient)?;
            let second = moment(&self.second, self.beta2, &gradient.sqr()?)?;
            let size = ((second.sqrt()? / second_share)? + self.eps)?;
            let change = ((&first / size)? * (rate / first_share))?;
            let kept = (var.as_detached_tensor() * (1.0 - rate * self.decay))?;
            var.set(&(kept - change)?)?;
            self.first.insert(name.clone(), first);
            self.second.insert(name.clone(), second);
        }
        Ok(())
    }
}

/// Scales gradients so that their norm is at most `limit`, and returns the norm that they had: torch's
/// `clip_grad_norm_`.
pub fn clip(gradients: &mut Weights, limit: f64) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients.values() {
        sum += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let norm = sum.sqrt();
    let scale = limit / (norm + 1e-6);
    if scale < 1.0 {
        for gradient in gradients.values_mut() {
            *gradient = (&*gradient * scale)?;
        }
    }
    Ok(norm)
}

/// How the learning rate runs: linearly up, then along half a cosine down to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// The highest learning rate.
    pub rate: f64,
    /// Steps on the way up.
    pub warmup: usize,
    /// All steps.
    pub steps: usize,
    /// What of the highest rate is left at the end.
    pub floor: f64,
}

impl Pace {
    /// The learning rate of step `step`, from 0.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.rate * (step + 1) as f64 / self.warmup as f64;
        }
        let rest = self.steps.saturating_sub(self.warmup).max(1);
        let done = ((step - self.warmup) as f64 / rest as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.rate * (self.floor + (1.0 - self.floor) * cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls() {
        let pace = Pace { rate: 2.0, warmup: 4, steps: 12, floor: 0.1 };
        let rates: Vec<f64> = (0..=12).map(|step| pace.at(step)).collect();
        assert_eq!(&rates[..5], [0.5, 1.0, 1.5, 2.0, 2.0]);
        assert!(rates[4..].windows(2).all(|pair| pair[1] < pair[0]));
        assert!((rates[8] - 2.0 * 0.55).abs() < 1e-12 && (rates[12] - 0.2).abs() < 1e-12);
        assert!((pace.at(1000) - 0.2).abs() < 1e-12);
    }
}
