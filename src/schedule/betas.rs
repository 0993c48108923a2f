//! Beta schedules in f32 and in torch's order of operations.

use std::f64::consts::FRAC_PI_2;

use serde::{Deserialize, Serialize};

use crate::spelling::named;

/// Shape of the beta schedule over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BetaSchedule {
    /// Linear: AnimateDiff and AnimateLCM.
    #[serde(rename = "linear")]
    Linear,
    /// Linear in the square roots of the betas: Stable Diffusion.
    #[serde(rename = "scaled-linear", alias = "scaled_linear")]
    ScaledLinear,
    /// Squared cosine in the cumulative products of `1 - beta`: Nichol and Dhariwal (2021).
    #[serde(rename = "squaredcos-cap-v2", alias = "squaredcos_cap_v2")]
    SquaredCos,
}

named!(BetaSchedule, "beta-schedule", {
    Linear = "linear",
    ScaledLinear = "scaled-linear",
    SquaredCos = "squaredcos-cap-v2",
});

/// The betas of `steps` training steps.
pub(super) fn betas(kind: BetaSchedule, start: f64, end: f64, steps: usize) -> Vec<f32> {
    match kind {
        BetaSchedule::Linear => linspace(start as f32, end as f32, steps).collect(),
        BetaSchedule::ScaledLinear => linspace(start.sqrt() as f32, end.sqrt() as f32, steps)
            .map(|root| root * root)
            .collect(),
        BetaSchedule::SquaredCos => (0..steps)
            .map(|step| {
                let signal = |step: usize| {
                    let time = step as f64 / steps as f64;
                    ((time + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2)
                };
                (1.0 - signal(step + 1) / signal(step)).min(0.999) as f32
            })
            .collect(),
    }
}

/// `torch.linspace` in f32, which computes the second half backwards from the end.
fn linspace(start: f32, end: f32, steps: usize) -> impl Iterator<Item = f32> {
    let step = if steps > 1 { (end - start) / (steps - 1) as f32 } else { 0.0 };
    (0..steps).map(move |i| {
        if i < steps / 2 || steps == 1 {
            start + step * i as f32
        } else {
            end - step * (steps - 1 - i) as f32
        }
    })
}
