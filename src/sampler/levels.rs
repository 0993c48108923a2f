//! Noise levels and timesteps of the plans.

use super::{PlanSettings, SamplerKind};
use crate::schedule::{NoiseLevel, NoiseSchedule, Spacing, spacing};
use crate::{Error, Result};

/// Timesteps of a consistency model.
///
/// The teacher has [`PlanSettings::original_inference_steps`] timesteps; `strength` removes the noisiest of them, and
/// `steps` of the rest are taken at even intervals.
pub(super) fn of_teacher(
    kind: SamplerKind,
    train_steps: usize,
    settings: &PlanSettings,
) -> Result<Vec<usize>> {
    let &PlanSettings { steps, original_inference_steps, strength, .. } = settings;
    if let Some(spacing) = settings.spacing {
        return Err(Error::request("spacing", format!("{kind} has no `{spacing}` spacing"))
            .with_hint(format!(
                "leave it out; {kind} takes its timesteps from --original-inference-steps"
            )));
    }
    let field = "original-inference-steps";
    if original_inference_steps == 0 || original_inference_steps > train_steps {
        let reason =
            format!("must lie between 1 and {train_steps}, got {original_inference_steps}");
        return Err(Error::request(field, reason));
    }
    let kept = (original_inference_steps as f64 * strength) as usize;
    if steps > kept {
        let part = if kept == original_inference_steps {
            String::new()
        } else {
            format!(" ({strength} of {original_inference_steps})")
        };
        let reason = format!("{kind} can take at most {kept} here{part}, got {steps}");
        return Err(
            Error::request("steps", reason).with_hint(format!("more need a higher --{field}"))
        );
    }
    let stride = train_steps / original_inference_steps;
    let gap = kept as f64 / steps as f64;
    // The i-th from the noisy end; the teacher's timesteps are stride - 1, 2 stride - 1, ...
    Ok((0..steps).map(|i| stride * (kept - (i as f64 * gap) as usize) - 1).collect())
}

/// Timesteps of the samplers that know no levels between them.
pub(super) fn whole(
    kind: SamplerKind,
    train_steps: usize,
    spacing: Spacing,
    steps: usize,
) -> Result<Vec<usize>> {
    Ok(match spacing {
        Spacing::Leading { offset } => spacing::leading(train_steps, steps, steps, offset),
        Spacing::Trailing if kind != SamplerKind::Pndm => spacing::trailing(train_steps, steps),
        Spacing::Linspace if kind != SamplerKind::Pndm => {
            rounded(&spacing::linspace(train_steps, steps))
        }
        _ => {
            let error = Error::request("spacing", format!("{kind} has no `{spacing}` spacing"));
            return Err(match kind {
                SamplerKind::Pndm => error.with_hint("it has `leading`"),
                _ => error.with_hint("it has `leading`, `trailing` and `linspace`"),
            });
        }
    })
}

/// Levels of Euler's and k-diffusion's samplers, whose timesteps may be fractional.
pub(super) fn fractional(
    schedule: &NoiseSchedule,
    spacing: Spacing,
    steps: usize,
) -> Result<Vec<NoiseLevel>> {
    if let Some(levels) = spacing::noise_levels(spacing, schedule, steps)? {
        return Ok(levels);
    }
    let train_steps = schedule.train_steps();
    match spacing {
        Spacing::Leading { offset } => {
            at(schedule, &spacing::leading(train_steps, steps, steps, offset))
        }
        Spacing::Trailing => at(schedule, &spacing::trailing(train_steps, steps)),
        _ => Ok(spacing::linspace(train_steps, steps)
            .into_iter()
            // The reference keeps timesteps in f32.
            .map(|timestep| schedule.level_at(f64::from(timestep as f32)))
            .collect()),
    }
}

/// Levels of the DPM-Solver family: the clean end counts as a point of the spacing, and timesteps that the references
/// round are rounded.
pub(super) fn with_end(
    schedule: &NoiseSchedule,
    spacing: Spacing,
    steps: usize,
) -> Result<Vec<NoiseLevel>> {
    if let Some(mut levels) = spacing::noise_levels(spacing, schedule, steps)? {
        for NoiseLevel { timestep, .. } in &mut levels {
            match spacing {
                Spacing::Karras => *timestep = timestep.round_ties_even(),
                // The references truncate; in f32 their noisiest one is a little less than the last timestep.
                Spacing::Exponential => *timestep = (*timestep - 1e-5).max(0.0).floor(),
                _ => {}
            }
        }
        return Ok(levels);
    }
    let train_steps = schedule.train_steps();
    let timesteps = match spacing {
        Spacing::Leading { offset } => spacing::leading(train_steps, steps + 1, steps, offset),
        Spacing::Trailing => spacing::trailing(train_steps, steps),
        _ => {
            let mut all = rounded(&spacing::linspace(train_steps, steps + 1));
            all.pop();
            all
        }
    };
    at(schedule, &timesteps)
}

/// The noise levels of training timesteps.
pub(super) fn at(schedule: &NoiseSchedule, timesteps: &[usize]) -> Result<Vec<NoiseLevel>> {
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
