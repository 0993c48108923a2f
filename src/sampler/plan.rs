//! Step plans of the samplers: the noise levels of the model's evaluations and those stepped to.
//!
//! Every plan is that of the scheduler of the same name in diffusers 0.42.1; LCM's is also that of the official
//! AnimateLCM code.

use super::{SamplerKind, Tcd, levels};
use crate::schedule::{NoiseLevel, NoiseSchedule, Spacing};
use crate::{Error, Result};

/// A step of a sampler.
///
/// `next` is usually the `at` of the following step; with the DDIM plan of Stable Diffusion it can differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Noise level at which the model is evaluated.
    pub at: NoiseLevel,
    /// Noise level that [`Tcd`](super::Tcd), [`DpmppSde`](super::DpmppSde) and [`Pndm`](super::Pndm) pass through, or
    /// `at` if the latter and [`Deis`](super::Deis) are to make a step of first order; for the other samplers `next`.
    pub via: NoiseLevel,
    /// Noise level of the latents after the step.
    pub next: NoiseLevel,
}

impl Step {
    /// A step straight from one level to another.
    pub fn new(at: NoiseLevel, next: NoiseLevel) -> Self {
        Self { at, via: next, next }
    }

    /// The length of the step in [`NoiseLevel::lambda`]; infinite if it ends without noise.
    pub fn h(self) -> f64 {
        self.next.lambda() - self.at.lambda()
    }
}

/// The steps of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The steps, noisiest first; never empty.
    pub steps: Vec<Step>,
    /// Factor on unit noise that gives the initial latents.
    ///
    /// Slightly below 1 for the Euler samplers with some spacings, 1 for all others. Unused when the run starts from
    /// a video.
    pub initial_scale: f64,
}

/// Settings of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanSettings {
    /// Number of steps from pure noise to clean latents.
    pub steps: usize,
    /// Timestep spacing; `None` is that of Stable Diffusion 1.5. LCM and TCD have their own and accept no other.
    pub spacing: Option<Spacing>,
    /// Number of teacher steps that LCM's and TCD's timesteps are taken from.
    pub original_inference_steps: usize,
    /// TCD's gamma, from 0 to 1: share of each next timestep that is passed over and noised again; 0 adds no noise.
    pub gamma: f64,
    /// Share of the steps to run: 1 starts from pure noise, less starts from a noised video.
    pub strength: f64,
    /// Whether the last step of DDIM and PNDM ends at zero noise instead of at the first training timestep.
    pub set_alpha_to_one: bool,
}

impl Default for PlanSettings {
    fn default() -> Self {
        Self {
            steps: 4,
            spacing: None,
            original_inference_steps: 100,
            gamma: Tcd::GAMMA,
            strength: 1.0,
            set_alpha_to_one: false,
        }
    }
}

impl Plan {
    /// Noise level of the initial latents.
    pub fn start(&self) -> NoiseLevel {
        self.steps.first().map_or(NoiseLevel::CLEAN, |step| step.at)
    }

    /// Keeps the last `strength` of the steps, rounded down.
    ///
    /// # Errors
    ///
    /// When no step is left.
    pub fn last_part(mut self, strength: f64) -> Result<Self> {
        let all = self.steps.len();
        self.steps.drain(..all - kept_steps(all, strength)?);
        Ok(self)
    }
}

/// How many of `steps` are made at a `strength`, rounded down: `get_timesteps` of diffusers' pipelines that start from
/// an image or a video.
///
/// # Errors
///
/// A strength outside `(0, 1]`, or one that leaves no step.
pub fn kept_steps(steps: usize, strength: f64) -> Result<usize> {
    check_strength(strength)?;
    let kept = ((steps as f64 * strength) as usize).min(steps);
    if kept == 0 {
        let reason = format!("{strength} of {steps} steps is less than one step");
        // Rounded up, so that what it says is enough.
        let least = (100.0 / steps.max(1) as f64).ceil() / 100.0;
        return Err(Error::request("strength", reason)
            .with_hint(format!("use at least {least}, or more steps")));
    }
    Ok(kept)
}

impl SamplerKind {
    /// The plan of a run with this sampler.
    ///
    /// # Errors
    ///
    /// When the schedule lacks the timesteps or the sampler does not support the spacing.
    pub fn plan(self, schedule: &NoiseSchedule, settings: &PlanSettings) -> Result<Plan> {
        let &PlanSettings { steps, strength, .. } = settings;
        let train_steps = schedule.train_steps();
        if steps == 0 {
            return Err(Error::request("steps", "must be at least 1, got 0"));
        }
        if steps > train_steps {
            let reason = format!("the model was trained with {train_steps}, got {steps}");
            return Err(Error::request("steps", reason));
        }
        check_strength(strength)?;
        let spacing = settings.spacing.unwrap_or(Spacing::SD15);
        let whole = || levels::whole(self, train_steps, spacing, steps);
        // For samplers that divide by alpha.
        let above_zero = schedule.above_zero_snr();
        let plan = match self {
            // The teacher's timesteps have `strength` in them.
            Self::Lcm => {
                let timesteps = levels::of_teacher(self, train_steps, settings)?;
                return Ok(Plan::through(&levels::at(schedule, &timesteps)?));
            }
            Self::Tcd => {
                let timesteps = levels::of_teacher(self, train_steps, settings)?;
                return tcd(schedule, &timesteps, settings.gamma);
            }
            Self::Ddim => strided(schedule, &whole()?, settings)?,
            Self::Pndm => pndm(strided(schedule, &whole()?, settings)?),
            Self::Ddpm => Plan::through(&levels::at(schedule, &whole()?)?),
            Self::Euler | Self::EulerAncestral | Self::Heun | Self::Lms => {
                scaled(&levels::fractional(&above_zero, spacing, steps)?, spacing)
            }
            Self::DpmppSde => {
                let levels = levels::fractional(&above_zero, spacing, steps)?;
                halved(scaled(&levels, spacing), &above_zero)
            }
            Self::Dpmpp2m | Self::Dpmpp2mSde | Self::Dpmpp3mSde | Self::UniPc => {
                Plan::through(&levels::with_end(&above_zero, spacing, steps)?)
            }
            Self::Deis => {
                let levels = levels::with_end(&above_zero, spacing, steps)?;
                deis(Plan::through(&levels), above_zero.level(0)?, spacing)
            }
        };
        plan.last_part(strength)
    }
}

impl Plan {
    /// A plan from each level to the following one, and from the last to clean latents.
    fn through(levels: &[NoiseLevel]) -> Self {
        let following = levels.iter().skip(1).copied().chain([NoiseLevel::CLEAN]);
        let steps = levels.iter().zip(following).map(|(&at, next)| Step::new(at, next)).collect();
        Self { steps, initial_scale: 1.0 }
    }
}

/// TCD plan: each step passes through a timestep that is a share `gamma` below the following one; the last one ends at
/// the first training timestep.
fn tcd(schedule: &NoiseSchedule, timesteps: &[usize], gamma: f64) -> Result<Plan> {
    if !(0.0..=1.0).contains(&gamma) {
        return Err(Error::request("tcd-gamma", format!("must be between 0 and 1, got {gamma}")));
    }
    let following = timesteps.iter().skip(1).copied().chain([0]);
    let steps = timesteps
        .iter()
        .zip(following)
        .map(|(&at, next)| {
            // In f32, as the reference does.
            let via = ((1.0 - gamma) as f32 * next as f32).floor() as usize;
            let [at, via, next] = [at, via, next].map(|timestep| schedule.level(timestep));
            Ok(Step { at: at?, via: via?, next: next? })
        })
        .collect::<Result<_>>()?;
    Ok(Plan { steps, initial_scale: 1.0 })
}

/// DDIM plan: each step goes down by a fixed number of timesteps, regardless of where the following step starts.
fn strided(schedule: &NoiseSchedule, timesteps: &[usize], settings: &PlanSettings) -> Result<Plan> {
    let end = if settings.set_alpha_to_one { NoiseLevel::CLEAN } else { schedule.level(0)? };
    let stride = schedule.train_steps() / settings.steps;
    let steps = levels::at(schedule, timesteps)?
        .into_iter()
        .zip(timesteps)
        .map(|(at, timestep)| {
            let next = timestep.checked_sub(stride).map_or(Ok(end), |t| schedule.level(t))?;
            Ok(Step::new(at, next))
        })
        .collect::<Result<_>>()?;
    Ok(Plan { steps, initial_scale: 1.0 })
}

/// PNDM plan: no step begins where the last one ends, so a second evaluation is not made there.
fn pndm(mut plan: Plan) -> Plan {
    if let Some(last) = plan.steps.last_mut() {
        last.via = last.at;
    }
    plan
}

/// Euler plan: unless the spacing is leading, the initial latents are `sigma` times noise.
fn scaled(levels: &[NoiseLevel], spacing: Spacing) -> Plan {
    let initial_scale = match (spacing, levels.first()) {
        (Spacing::Leading { .. }, _) | (_, None) => 1.0,
        (_, Some(first)) => first.sigma,
    };
    Plan { initial_scale, ..Plan::through(levels) }
}

/// DPM++ SDE plan: steps are halved in log noise.
fn halved(mut plan: Plan, schedule: &NoiseSchedule) -> Plan {
    for step in plan.steps.iter_mut().filter(|step| !step.next.is_clean()) {
        step.via = schedule.level_of((step.at.ratio() * step.next.ratio()).sqrt());
    }
    plan
}

/// DEIS plan: ends at the noise of the first training timestep, which some spacings reach one step before; short runs
/// with a step of first order.
fn deis(mut plan: Plan, first: NoiseLevel, spacing: Spacing) -> Plan {
    const FEW_STEPS: usize = 15;
    let is_short = plan.steps.len() < FEW_STEPS;
    if let Some(last) = plan.steps.last_mut() {
        let is_there = matches!(spacing, Spacing::Karras | Spacing::Exponential);
        last.next = if is_there { last.at } else { first };
        last.via = if is_short { last.at } else { last.next };
    }
    plan
}

/// Rejects strengths outside `(0, 1]`.
fn check_strength(strength: f64) -> Result<()> {
    if strength > 0.0 && strength <= 1.0 {
        return Ok(());
    }
    Err(Error::request("strength", format!("must be above 0 and at most 1, got {strength}")))
}
