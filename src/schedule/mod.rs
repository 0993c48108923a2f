//! Noise schedules and noise levels of a model's training.
//!
//! All values are host-side `f64`, except that betas are rounded to f32 as in the reference.

mod betas;
mod config;
mod prediction;
pub(crate) mod spacing;

use candle_core::Tensor;

pub use self::betas::BetaSchedule;
pub use self::config::Config;
pub use self::prediction::Prediction;
pub use self::spacing::Spacing;
use crate::{Error, Result};

/// A noise level: `x = alpha * clean + sigma * noise`.
///
/// Stable Diffusion 1.5 is variance-preserving: `alpha² + sigma² = 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// Timestep given to the network; may be fractional.
    pub timestep: f64,
    /// Factor on the clean latents.
    pub alpha: f64,
    /// Factor on the unit noise.
    pub sigma: f64,
}

impl NoiseLevel {
    /// Zero noise, the end of every sampler.
    pub const CLEAN: Self = Self { timestep: 0.0, alpha: 1.0, sigma: 0.0 };

    /// The variance-preserving level with `sigma / alpha = ratio`.
    pub fn from_ratio(timestep: f64, ratio: f64) -> Self {
        let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
        Self { timestep, alpha, sigma: ratio * alpha }
    }

    /// `sigma / alpha`: the noise level (sigma) of Karras et al. (2022).
    pub fn ratio(self) -> f64 {
        self.sigma / self.alpha
    }

    /// Half the log signal-to-noise ratio, `ln(alpha / sigma)`: lambda of Lu et al. (2022). Infinite without noise.
    pub fn lambda(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }

    /// Returns whether the noise is zero.
    pub fn is_clean(self) -> bool {
        self.sigma == 0.0
    }

    /// Noises `clean` latents to this level with `noise` of the same shape.
    pub fn add_noise(self, clean: &Tensor, noise: &Tensor) -> Result<Tensor> {
        Ok(((clean * self.alpha)? + (noise * self.sigma)?)?)
    }

    /// The unit noise in latents `x` of this level, which must have some, whose clean part is `clean`.
    pub fn noise_in(self, x: &Tensor, clean: &Tensor) -> Result<Tensor> {
        Ok(((x - (clean * self.alpha)?)? / self.sigma)?)
    }
}

/// Noise levels of all training timesteps.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    /// Cumulative products of `1 - beta`: the clean latents' share of the variance.
    cumulative: Vec<f64>,
}

impl NoiseSchedule {
    /// The schedule of `train_steps` steps with betas from `beta_start` to `beta_end`.
    ///
    /// [`BetaSchedule::SquaredCos`] depends on `train_steps` alone.
    pub fn new(
        kind: BetaSchedule,
        beta_start: f64,
        beta_end: f64,
        train_steps: usize,
    ) -> Result<Self> {
        for (field, beta) in [("beta-start", beta_start), ("beta-end", beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(Error::request(field, format!("must lie between 0 and 1, got {beta}")));
            }
        }
        Self::from_betas(&betas::betas(kind, beta_start, beta_end, train_steps))
    }

    /// The schedule with the given betas.
    pub fn from_betas(betas: &[f32]) -> Result<Self> {
        if betas.is_empty() {
            return Err(Error::request("betas", "a schedule needs at least one training step"));
        }
        if let Some((step, beta)) =
            betas.iter().enumerate().find(|(_, b)| !(**b > 0.0 && **b < 1.0))
        {
            let reason = format!("beta {step} must lie between 0 and 1, got {beta}");
            return Err(Error::request("betas", reason));
        }
        Ok(Self::of_alphas(betas.iter().map(|beta| 1.0 - beta)))
    }

    /// The schedule with the given `1 - beta` of each step.
    fn of_alphas(alphas: impl Iterator<Item = f32>) -> Self {
        // torch accumulates the product in f64 and rounds each result to f32.
        let mut product = 1.0;
        let round = |alpha| {
            product *= f64::from(alpha);
            f64::from(product as f32)
        };
        Self { cumulative: alphas.map(round).collect() }
    }

    /// The schedule rescaled to a zero signal-to-noise ratio at the last timestep: Lin et al. (2024), algorithm 1, in
    /// f32 and in torch's order of operations.
    ///
    /// A schedule of one timestep is returned unchanged.
    pub(crate) fn to_zero_snr(&self) -> Self {
        let roots: Vec<f32> = self.cumulative.iter().map(|share| (*share as f32).sqrt()).collect();
        let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
            return self.clone();
        };
        if first <= last {
            return self.clone();
        }
        let scale = first / (first - last);
        let shares: Vec<f32> = roots.iter().map(|root| ((root - last) * scale).powi(2)).collect();
        let before = std::iter::once(&1.0).chain(&shares);
        // torch stores the betas, so their rounding must be reproduced.
        let betas = shares.iter().zip(before).map(|(share, before)| 1.0 - share / before);
        Self::of_alphas(betas.map(|beta| 1.0 - beta))
    }

    /// The schedule for samplers that divide by `alpha`: a zero last value is replaced by the smallest positive f16
    /// number, as in diffusers.
    pub(crate) fn above_zero_snr(&self) -> Self {
        let mut cumulative = self.cumulative.clone();
        if let Some(last) = cumulative.last_mut() {
            *last = last.max(2f64.powi(-24));
        }
        Self { cumulative }
    }

    /// The number of training timesteps.
    pub fn train_steps(&self) -> usize {
        self.cumulative.len()
    }

    /// The cumulative products of `1 - beta`, one per timestep: `alphas_cumprod`.
    pub fn cumulative(&self) -> &[f64] {
        &self.cumulative
    }

    /// The noise level of a training timestep.
    ///
    /// # Errors
    ///
    /// When the timestep is beyond the last training timestep.
    pub fn level(&self, timestep: usize) -> Result<NoiseLevel> {
        let share = self.cumulative.get(timestep).ok_or_else(|| {
            let last = self.train_steps() - 1;
            Error::request("timestep", format!("the last one is {last}, got {timestep}"))
        })?;
        Ok(NoiseLevel {
            timestep: timestep as f64,
            alpha: share.sqrt(),
            sigma: (1.0 - share).sqrt(),
        })
    }

    /// The noise level at a fractional timestep: `sigma / alpha` is interpolated linearly.
    ///
    /// Beyond the ends it is the noise of the nearest end.
    pub fn level_at(&self, timestep: f64) -> NoiseLevel {
        let last = self.train_steps() - 1;
        let place = timestep.clamp(0.0, last as f64);
        let low = place as usize;
        let high = (low + 1).min(last);
        let weight = place - low as f64;
        let ratio = self.ratio(low) * (1.0 - weight) + self.ratio(high) * weight;
        NoiseLevel::from_ratio(timestep, ratio)
    }

    /// The level at a fractional timestep up to the last one: the log of `sigma / alpha` is interpolated linearly, as
    /// in k-diffusion's `t_to_sigma`.
    fn level_at_log(&self, timestep: f64) -> NoiseLevel {
        let low = timestep as usize;
        let weight = timestep - low as f64;
        let (from, to) = (self.ratio(low), self.ratio((low + 1).min(self.train_steps() - 1)));
        let ratio = (from.ln() * (1.0 - weight) + to.ln() * weight).exp();
        NoiseLevel::from_ratio(timestep, ratio)
    }

    /// The level of a `sigma / alpha`: its timestep is interpolated in log space.
    pub(crate) fn level_of(&self, ratio: f64) -> NoiseLevel {
        NoiseLevel::from_ratio(self.timestep_of(ratio), ratio)
    }

    /// The fractional timestep at which `sigma / alpha` is `ratio`, interpolated in log space.
    fn timestep_of(&self, ratio: f64) -> f64 {
        let last = self.train_steps() - 1;
        if last == 0 {
            return 0.0;
        }
        let reached = self.cumulative.partition_point(|share| share_to_ratio(*share) <= ratio);
        let low = reached.saturating_sub(1).min(last - 1);
        let (from, to) = (self.ratio(low).ln(), self.ratio(low + 1).ln());
        low as f64 + ((ratio.ln() - from) / (to - from)).clamp(0.0, 1.0)
    }

    /// `sigma / alpha` of a training timestep, which must exist.
    fn ratio(&self, timestep: usize) -> f64 {
        share_to_ratio(self.cumulative[timestep])
    }
}

/// `sigma / alpha` for a share `share` of the variance in the clean latents.
fn share_to_ratio(share: f64) -> f64 {
    ((1.0 - share) / share).sqrt()
}
