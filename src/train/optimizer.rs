//! AdamW optimizer, learning rate schedule, and gradient clipping.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Vars, Weights};
use crate::{Error, Result};

/// AdamW: Adam with decoupled weight decay, Loshchilov and Hutter (2019), computed as in torch.
///
/// Unlike candle-nn's, its moments are accessible, so that a run can be resumed.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Decay of the first moment, 0.9.
    pub beta1: f64,
    /// Decay of the second moment, 0.999.
    pub beta2: f64,
    /// Term added to the root of the second moment, 1e-8.
    pub eps: f64,
    /// Weight decay, applied to biases and norms too, as by torch's defaults.
    pub decay: f64,
    /// Number of steps taken.
    pub steps: usize,
    /// First moments, by name.
    pub first: Weights,
    /// Second moments, by name.
    pub second: Weights,
}

impl AdamW {
    /// An optimizer with torch's defaults and the given weight decay.
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

    /// Updates the variables by one step with learning rate `rate`.
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

/// Clips gradients to a total norm of at most `limit` and returns their norm before: torch's `clip_grad_norm_`.
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

/// Learning rate schedule: linear warmup, then cosine decay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Peak learning rate.
    pub rate: f64,
    /// Number of warmup steps.
    pub warmup: usize,
    /// Total number of steps.
    pub steps: usize,
    /// Final learning rate as a fraction of the peak.
    pub floor: f64,
}

impl Pace {
    /// Learning rate of step `step`, counted from 0.
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
