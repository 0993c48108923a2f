//! Timestep spacings: the choice of training timesteps for a run of few steps.
//!
//! The first three are those of Lin et al. (2024), table 2, with numpy's rounding; the last is equation 5 of Karras
//! et al. (2022).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{NoiseLevel, NoiseSchedule};
use crate::spelling::{bare, find};
use crate::{Error, Result};

/// Spacing of a run's timesteps over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Spacing {
    /// Multiples of an integer stride, starting at the clean end.
    Leading {
        /// Offset added to each timestep.
        offset: usize,
    },
    /// Even, counted down from the noisy end.
    Trailing,
    /// Even, both ends included.
    Linspace,
    /// Even in the seventh root of the noise level, both ends included.
    Karras,
}

impl Spacing {
    /// The spacing of Stable Diffusion 1.5.
    pub const SD15: Self = Self::Leading { offset: 1 };
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leading { offset: 1 } => f.write_str("leading"),
            Self::Leading { offset } => write!(f, "leading:{offset}"),
            Self::Trailing => f.write_str("trailing"),
            Self::Linspace => f.write_str("linspace"),
            Self::Karras => f.write_str("karras"),
        }
    }
}

impl FromStr for Spacing {
    type Err = Error;

    /// Parses a spacing, also by its name as ComfyUI or stable-diffusion.cpp scheduler or A1111 schedule type; `leading` has offset 1,
    /// `leading:0` sets another.
    fn from_str(name: &str) -> Result<Self> {
        let known = [
            ("leading", Self::SD15),
            ("ddimuniform", Self::SD15),
            ("trailing", Self::Trailing),
            ("sgmuniform", Self::Trailing),
            ("simple", Self::Trailing),
            ("linspace", Self::Linspace),
            ("normal", Self::Linspace),
            ("uniform", Self::Linspace),
            ("discrete", Self::Linspace),
            ("karras", Self::Karras),
        ];
        if let Some(spacing) = find(name, &known) {
            return Ok(spacing);
        }
        if let Some((word, offset)) = name.split_once(':')
            && bare(word) == "leading"
            && let Ok(offset) = offset.parse()
        {
            return Ok(Self::Leading { offset });
        }
        let reason = format!(
            "unknown name `{name}`; expected one of `leading`, `trailing`, `linspace`, `karras`"
        );
        Err(Error::request("spacing", reason))
    }
}

impl From<Spacing> for String {
    fn from(spacing: Spacing) -> Self {
        spacing.to_string()
    }
}

impl TryFrom<String> for Spacing {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

/// `leading`: `steps` multiples of an integer stride, the largest first.
///
/// The stride is `train_steps` divided by `divisor`, which is `steps` or, for solvers that count the end as a step,
/// one more; the largest multiples are taken.
pub(crate) fn leading(
    train_steps: usize,
    divisor: usize,
    steps: usize,
    offset: usize,
) -> Vec<usize> {
    let ratio = train_steps / divisor;
    (0..divisor).rev().take(steps).map(|i| i * ratio + offset).collect()
}

/// `trailing`: `steps` timesteps counted down from the noisiest.
pub(crate) fn trailing(train_steps: usize, steps: usize) -> Vec<usize> {
    let ratio = train_steps as f64 / steps as f64;
    (0..steps)
        .map(|i| (train_steps as f64 - i as f64 * ratio).round_ties_even() as usize)
        .map(|t| t.saturating_sub(1))
        .collect()
}

/// `linspace`: `points` evenly spaced timesteps from the noisiest to the clean end, noisiest first.
pub(crate) fn linspace(train_steps: usize, points: usize) -> Vec<f64> {
    let last = (train_steps - 1) as f64;
    let step = if points > 1 { last / (points - 1) as f64 } else { 0.0 };
    (0..points)
        .rev()
        .map(|i| if i > 0 && i + 1 == points { last } else { i as f64 * step })
        .collect()
}

/// `karras`: `steps` levels between the noisiest and the cleanest timestep, noisiest first.
///
/// Timesteps are fractional.
pub(crate) fn karras(schedule: &NoiseSchedule, steps: usize) -> Vec<NoiseLevel> {
    const RHO: f64 = 7.0;
    let root = |timestep: usize| schedule.ratio(timestep).powf(1.0 / RHO);
    let (noisiest, cleanest) = (root(schedule.train_steps() - 1), root(0));
    (0..steps)
        .map(|i| {
            let ramp = if steps > 1 { i as f64 / (steps - 1) as f64 } else { 0.0 };
            let ratio = (noisiest + ramp * (cleanest - noisiest)).powf(RHO);
            NoiseLevel::from_ratio(schedule.timestep_of(ratio), ratio)
        })
        .collect()
}
