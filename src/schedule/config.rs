//! A model's `scheduler_config.json`.

use serde::{Deserialize, Serialize};

use super::{BetaSchedule, NoiseSchedule, Prediction, Spacing};
use crate::{Error, Result};

/// Upper limit on the number of training timesteps.
const MOST_STEPS: usize = 100_000;

/// Contents of a model's `scheduler_config.json`.
///
/// Missing fields take the values of Stable Diffusion 1.5. Fields of schedulers that this crate does not have are
/// ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Number of training timesteps.
    pub num_train_timesteps: usize,
    /// The first beta.
    pub beta_start: f64,
    /// The last beta.
    pub beta_end: f64,
    /// Shape of the schedule from the first beta to the last.
    pub beta_schedule: BetaSchedule,
    /// Explicit betas, in place of the three fields above.
    pub trained_betas: Option<Vec<f32>>,
    /// Prediction type of the network.
    pub prediction_type: Prediction,
    /// Name of the timestep spacing, without its offset.
    pub timestep_spacing: String,
    /// Offset added to each timestep by `leading` spacing.
    pub steps_offset: usize,
    /// Whether DDIM's last step ends at zero noise instead of at the first training timestep.
    pub set_alpha_to_one: bool,
    /// Number of teacher steps of a latent consistency model.
    pub original_inference_steps: Option<usize>,
    /// Factor on timesteps in a consistency model's boundary condition.
    pub timestep_scaling: f64,
    /// Whether the betas are rescaled to zero terminal signal-to-noise ratio: Lin et al. (2024).
    pub rescale_betas_zero_snr: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            trained_betas: None,
            prediction_type: Prediction::Epsilon,
            timestep_spacing: "leading".to_owned(),
            steps_offset: 1,
            set_alpha_to_one: false,
            original_inference_steps: None,
            timestep_scaling: 10.0,
            rescale_betas_zero_snr: false,
        }
    }
}

impl Config {
    /// Checks that all values are valid for a trained model.
    pub fn validate(&self) -> Result<()> {
        let wrong = |field: &str, reason: String| {
            let reason = format!("`{field}` {reason}");
            Err(Error::Missing { name: "scheduler config".into(), reason })
        };
        let steps = self.num_train_timesteps;
        if !(1..=MOST_STEPS).contains(&steps) {
            return wrong(
                "num_train_timesteps",
                format!("{steps} is not between 1 and {MOST_STEPS}"),
            );
        }
        for (field, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return wrong(field, format!("{beta} does not lie between 0 and 1"));
            }
        }
        if self.beta_end < self.beta_start {
            let (first, last) = (self.beta_start, self.beta_end);
            return wrong("beta_end", format!("{last} is less than `beta_start`, {first}"));
        }
        if let Some(betas) = &self.trained_betas
            && !(1..=MOST_STEPS).contains(&betas.len())
        {
            let count = betas.len();
            return wrong(
                "trained_betas",
                format!("lists {count}, not between 1 and {MOST_STEPS}"),
            );
        }
        if let Some(beta) =
            self.trained_betas.iter().flatten().find(|beta| !(**beta > 0.0 && **beta < 1.0))
        {
            return wrong("trained_betas", format!("{beta} does not lie between 0 and 1"));
        }
        if let Some(original) = self.original_inference_steps
            && !(1..=steps).contains(&original)
        {
            let field = "original_inference_steps";
            return wrong(field, format!("{original} is not between 1 and {steps}"));
        }
        if self.steps_offset > steps {
            let offset = self.steps_offset;
            return wrong(
                "steps_offset",
                format!("{offset} is beyond the last of {steps} timesteps"),
            );
        }
        Ok(())
    }

    /// The model's noise schedule.
    pub fn schedule(&self) -> Result<NoiseSchedule> {
        let schedule = match &self.trained_betas {
            Some(betas) => NoiseSchedule::from_betas(betas),
            None => NoiseSchedule::new(
                self.beta_schedule,
                self.beta_start,
                self.beta_end,
                self.num_train_timesteps,
            ),
        }?;
        Ok(if self.rescale_betas_zero_snr { schedule.to_zero_snr() } else { schedule })
    }

    /// The model's timestep spacing.
    pub fn spacing(&self) -> Result<Spacing> {
        Ok(match self.timestep_spacing.parse()? {
            Spacing::Leading { .. } => Spacing::Leading { offset: self.steps_offset },
            other => other,
        })
    }
}
