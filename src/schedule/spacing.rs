//! Timestep spacings: the choice of training timesteps for a run of few steps.
//!
//! The first three are those of Lin et al. (2024), table 2, with numpy's rounding. The others are lists of noise
//! levels: equation 5 of Karras et al. (2022), those of k-diffusion, and Align Your Steps of Sabour et al. (2024).

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
    /// Even in the log of the noise level, both ends included.
    Exponential,
    /// Even from the noisy end, where the clean end counts as one timestep more: Stability AI's generative models.
    SgmUniform,
    /// Align Your Steps: optimized for Stable Diffusion 1.5 and 10 steps, interpolated for other numbers of steps.
    Ays,
}

impl Spacing {
    /// The spacing of Stable Diffusion 1.5.
    pub const SD15: Self = Self::Leading { offset: 1 };

    /// The names of all spacings, of other programs too, without capitals, spaces, hyphens and underscores.
    const NAMES: [(&'static str, Self); 13] = [
        ("leading", Self::SD15),
        ("trailing", Self::Trailing),
        ("linspace", Self::Linspace),
        ("karras", Self::Karras),
        ("exponential", Self::Exponential),
        ("sgmuniform", Self::SgmUniform),
        ("ays", Self::Ays),
        ("alignyoursteps", Self::Ays),
        ("ddimuniform", Self::SD15),
        ("simple", Self::Trailing),
        ("normal", Self::Linspace),
        ("uniform", Self::Linspace),
        ("discrete", Self::Linspace),
    ];
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leading { offset: 1 } => f.write_str("leading"),
            Self::Leading { offset } => write!(f, "leading:{offset}"),
            Self::Trailing => f.write_str("trailing"),
            Self::Linspace => f.write_str("linspace"),
            Self::Karras => f.write_str("karras"),
            Self::Exponential => f.write_str("exponential"),
            Self::SgmUniform => f.write_str("sgm-uniform"),
            Self::Ays => f.write_str("ays"),
        }
    }
}

impl FromStr for Spacing {
    type Err = Error;

    /// Parses a spacing, also by its name as ComfyUI or stable-diffusion.cpp scheduler or A1111 schedule type; `leading` has offset 1,
    /// `leading:0` sets another.
    fn from_str(name: &str) -> Result<Self> {
        if let Some(spacing) = find(name, &Self::NAMES) {
            return Ok(spacing);
        }
        if let Some((word, offset)) = name.split_once(':')
            && bare(word) == "leading"
            && let Ok(offset) = offset.parse()
        {
            return Ok(Self::Leading { offset });
        }
        let reason = format!(
            "unknown name `{name}`; expected one of `leading`, `trailing`, `linspace`, `karras`, `exponential`, \
             `sgm-uniform`, `ays`"
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

/// Timesteps of the levels that Align Your Steps gives to 10 steps of Stable Diffusion 1.5:
/// `AysSchedules["StableDiffusionTimesteps"]` of diffusers 0.42.1.
const AYS: [usize; 10] = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24];

/// The `steps` levels of a spacing that is a list of noise levels, noisiest first; none of the others.
///
/// Timesteps are fractional.
///
/// # Errors
///
/// With [`Spacing::Ays`], when the schedule has not the number of timesteps that it was made for.
pub(crate) fn noise_levels(
    spacing: Spacing,
    schedule: &NoiseSchedule,
    steps: usize,
) -> Result<Option<Vec<NoiseLevel>>> {
    let last = schedule.train_steps() - 1;
    let ends = (schedule.ratio(last), schedule.ratio(0));
    // Levels that are even in a function of the noise, given the function and its inverse.
    let even = |forth: fn(f64) -> f64, back: fn(f64) -> f64| {
        let (noisiest, cleanest) = (forth(ends.0), forth(ends.1));
        let level = |i: usize| {
            let ramp = if steps > 1 { i as f64 / (steps - 1) as f64 } else { 0.0 };
            schedule.level_of(back(noisiest + ramp * (cleanest - noisiest)))
        };
        (0..steps).map(level).collect()
    };
    Ok(Some(match spacing {
        Spacing::Leading { .. } | Spacing::Trailing | Spacing::Linspace => return Ok(None),
        Spacing::Karras => even(|ratio| ratio.powf(1.0 / 7.0), |root| root.powf(7.0)),
        Spacing::Exponential => even(f64::ln, f64::exp),
        Spacing::SgmUniform => {
            let timesteps = linspace(last + 1, steps + 1).into_iter().take(steps);
            timesteps.map(|timestep| schedule.level_at_log(timestep)).collect()
        }
        Spacing::Ays => ays(schedule, steps)?,
    }))
}

/// Align Your Steps: the log noise between the levels of the table and the cleanest timestep is interpolated linearly.
fn ays(schedule: &NoiseSchedule, steps: usize) -> Result<Vec<NoiseLevel>> {
    const TRAIN_STEPS: usize = 1000;
    if schedule.train_steps() != TRAIN_STEPS {
        let count = schedule.train_steps();
        let reason = format!("ays is for models of {TRAIN_STEPS} timesteps, this one has {count}");
        return Err(Error::request("spacing", reason));
    }
    let level = |i: usize| {
        let place = (i * AYS.len()) as f64 / steps as f64;
        let low = place as usize;
        let (from, to) = (AYS[low], AYS.get(low + 1).copied().unwrap_or(0));
        let weight = place - low as f64;
        if weight == 0.0 {
            return schedule.level(from);
        }
        let (from, to) = (schedule.ratio(from).ln(), schedule.ratio(to).ln());
        Ok(schedule.level_of((from * (1.0 - weight) + to * weight).exp()))
    };
    (0..steps).map(level).collect()
}
