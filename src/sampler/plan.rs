//! Step plans of the samplers: the noise levels of the model's evaluations and those stepped to.
//!
//! Every plan is that of the scheduler of the same name in diffusers 0.42.1; LCM's is also that of the official
//! AnimateLCM code.

use super::SamplerKind;
use crate::schedule::{NoiseLevel, NoiseSchedule, Spacing, spacing};
use crate::{Error, Result};

/// A step of a sampler.
///
/// `next` is usually the `at` of the following step; with the DDIM plan of Stable Diffusion it can differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Noise level at which the model is evaluated.
    pub at: NoiseLevel,
    /// Noise level of the latents after the step.
    pub next: NoiseLevel,
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
    /// Timestep spacing; `None` is that of Stable Diffusion 1.5. LCM has its own and accepts no other.
    pub spacing: Option<Spacing>,
    /// Number of teacher steps that LCM's timesteps are taken from.
    pub original_inference_steps: usize,
    /// Share of the steps to run: 1 starts from pure noise, less starts from a noised video.
    pub strength: f64,
    /// Whether DDIM's last step ends at zero noise instead of at the first training timestep.
    pub set_alpha_to_one: bool,
}

impl Default for PlanSettings {
    fn default() -> Self {
        Self {
            steps: 4,
            spacing: None,
            original_inference_steps: 100,
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
        let &PlanSettings { steps, original_inference_steps, strength, .. } = settings;
        if steps == 0 {
            return Err(Error::request("steps", "must be at least 1, got 0"));
        }
        if steps > schedule.train_steps() {
            return Err(Error::request(
                "steps",
                format!("the model was trained with {}, got {steps}", schedule.train_steps()),
            ));
        }
        check_strength(strength)?;
        let spacing = settings.spacing.unwrap_or(Spacing::SD15);
        match self {
            Self::Lcm => {
                if let Some(spacing) = settings.spacing {
                    return Err(Error::request(
                        "spacing",
                        format!("lcm has no `{spacing}` spacing"),
                    )
                    .with_hint(
                        "leave it out; lcm takes its timesteps from --original-inference-steps",
                    ));
                }
                let timesteps = lcm_timesteps(
                    schedule.train_steps(),
                    original_inference_steps,
                    steps,
                    strength,
                )?;
                Ok(Plan::through(&levels(schedule, &timesteps)?, 1.0))
            }
            Self::Ddim => ddim(schedule, spacing, settings)?.last_part(strength),
            Self::Euler | Self::EulerAncestral | Self::Heun => {
                euler(&schedule.above_zero_snr(), spacing, steps)?.last_part(strength)
            }
            Self::Dpmpp2m => {
                let levels = dpmpp_2m(&schedule.above_zero_snr(), spacing, steps)?;
                Plan::through(&levels, 1.0).last_part(strength)
            }
        }
    }
}

impl Plan {
    /// A plan from each level to the following one, and from the last to clean latents.
    fn through(levels: &[NoiseLevel], initial_scale: f64) -> Self {
        let following = levels.iter().skip(1).copied().chain([NoiseLevel::CLEAN]);
        let steps = levels.iter().zip(following).map(|(&at, next)| Step { at, next }).collect();
        Self { steps, initial_scale }
    }
}

/// Timesteps of a latent consistency model.
///
/// The teacher has `original_steps` timesteps; `strength` removes the noisiest of them, and `steps` of the rest are
/// taken at even intervals.
fn lcm_timesteps(
    train_steps: usize,
    original_steps: usize,
    steps: usize,
    strength: f64,
) -> Result<Vec<usize>> {
    let field = "original-inference-steps";
    if original_steps == 0 || original_steps > train_steps {
        let reason = format!("must lie between 1 and {train_steps}, got {original_steps}");
        return Err(Error::request(field, reason));
    }
    let kept = (original_steps as f64 * strength) as usize;
    if steps > kept {
        let reason = if kept == original_steps {
            format!("lcm can take at most {original_steps} here, got {steps}")
        } else {
            format!(
                "lcm can take at most {kept} here ({strength} of {original_steps}), got {steps}"
            )
        };
        return Err(
            Error::request("steps", reason).with_hint(format!("more need a higher --{field}"))
        );
    }
    let stride = train_steps / original_steps;
    let gap = kept as f64 / steps as f64;
    // The i-th from the noisy end; the teacher's timesteps are stride - 1, 2 stride - 1, ...
    Ok((0..steps).map(|i| stride * (kept - (i as f64 * gap) as usize) - 1).collect())
}

/// DDIM plan: each step goes down by a fixed number of timesteps, regardless of where the following step starts.
fn ddim(schedule: &NoiseSchedule, spacing: Spacing, settings: &PlanSettings) -> Result<Plan> {
    let (train_steps, steps) = (schedule.train_steps(), settings.steps);
    let timesteps = match spacing {
        Spacing::Leading { offset } => spacing::leading(train_steps, steps, steps, offset),
        Spacing::Trailing => spacing::trailing(train_steps, steps),
        Spacing::Linspace => rounded(&spacing::linspace(train_steps, steps)),
        Spacing::Karras => {
            return Err(Error::request("spacing", "ddim has no `karras` spacing")
                .with_hint("euler, euler-a, heun and dpmpp-2m have it"));
        }
    };
    let end = if settings.set_alpha_to_one { NoiseLevel::CLEAN } else { schedule.level(0)? };
    let stride = train_steps / steps;
    let steps = levels(schedule, &timesteps)?
        .into_iter()
        .zip(timesteps)
        .map(|(at, timestep)| {
            let next = timestep.checked_sub(stride).map_or(Ok(end), |t| schedule.level(t))?;
            Ok(Step { at, next })
        })
        .collect::<Result<_>>()?;
    Ok(Plan { steps, initial_scale: 1.0 })
}

/// Euler plan: timesteps may be fractional; unless the spacing is leading, the initial latents are `sigma` times
/// noise.
fn euler(schedule: &NoiseSchedule, spacing: Spacing, steps: usize) -> Result<Plan> {
    let train_steps = schedule.train_steps();
    let levels = match spacing {
        Spacing::Leading { offset } => {
            levels(schedule, &spacing::leading(train_steps, steps, steps, offset))?
        }
        Spacing::Trailing => levels(schedule, &spacing::trailing(train_steps, steps))?,
        Spacing::Linspace => spacing::linspace(train_steps, steps)
            .into_iter()
            // The reference keeps timesteps in f32.
            .map(|timestep| schedule.level_at(f64::from(timestep as f32)))
            .collect(),
        Spacing::Karras => spacing::karras(schedule, steps),
    };
    let initial_scale = match (spacing, levels.first()) {
        (Spacing::Leading { .. }, _) | (_, None) => 1.0,
        (_, Some(first)) => first.sigma,
    };
    Ok(Plan::through(&levels, initial_scale))
}

/// DPM++ 2M levels: the clean end counts as a point of the spacing, and timesteps are rounded.
fn dpmpp_2m(schedule: &NoiseSchedule, spacing: Spacing, steps: usize) -> Result<Vec<NoiseLevel>> {
    let train_steps = schedule.train_steps();
    let timesteps = match spacing {
        Spacing::Leading { offset } => spacing::leading(train_steps, steps + 1, steps, offset),
        Spacing::Trailing => spacing::trailing(train_steps, steps),
        Spacing::Linspace => {
            let mut all = rounded(&spacing::linspace(train_steps, steps + 1));
            all.pop();
            all
        }
        Spacing::Karras => {
            let mut levels = spacing::karras(schedule, steps);
            for level in &mut levels {
                level.timestep = level.timestep.round_ties_even();
            }
            return Ok(levels);
        }
    };
    levels(schedule, &timesteps)
}

/// The noise levels of training timesteps.
fn levels(schedule: &NoiseSchedule, timesteps: &[usize]) -> Result<Vec<NoiseLevel>> {
    let last = schedule.train_steps() - 1;
    if let Some(beyond) = timesteps.iter().max().filter(|timestep| **timestep > last) {
        let steps = timesteps.len();
        let reason =
            format!("{steps} of them would start at timestep {beyond}, the last one is {last}");
        return Err(Error::request("steps", reason));
    }
    timesteps.iter().map(|&timestep| schedule.level(timestep)).collect()
}

/// Timesteps rounded to whole numbers, halves to even.
fn rounded(timesteps: &[f64]) -> Vec<usize> {
    timesteps.iter().map(|timestep| timestep.round_ties_even() as usize).collect()
}

/// Rejects strengths outside `(0, 1]`.
fn check_strength(strength: f64) -> Result<()> {
    if strength > 0.0 && strength <= 1.0 {
        return Ok(());
    }
    Err(Error::request("strength", format!("must be above 0 and at most 1, got {strength}")))
}
