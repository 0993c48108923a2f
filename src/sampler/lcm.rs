//! Multistep consistency sampling: Luo et al. (2023), as in AnimateLCM's scheduler.

use candle_core::Tensor;

use super::{Run, Sampler, Step};
use crate::Result;

/// LCM sampler: predicts the clean latents at every step and adds fresh noise of the next level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lcm {
    /// Factor on timesteps in the boundary condition.
    pub timestep_scaling: f64,
    /// Standard deviation of the data in the boundary condition.
    pub sigma_data: f64,
}

impl Default for Lcm {
    fn default() -> Self {
        Self { timestep_scaling: 10.0, sigma_data: 0.5 }
    }
}

impl Lcm {
    /// Boundary scalings `(c_skip, c_out)` of a consistency model (arXiv 2303.01469, section 3).
    ///
    /// `(1, 0)` at timestep 0, close to `(0, 1)` from timestep 100 on.
    pub fn boundary(self, timestep: f64) -> (f64, f64) {
        let scaled = timestep * self.timestep_scaling;
        let sum = scaled * scaled + self.sigma_data * self.sigma_data;
        (self.sigma_data * self.sigma_data / sum, scaled / sum.sqrt())
    }
}

impl Sampler for Lcm {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        for (i, &Step { at, next, .. }) in run.steps().iter().enumerate() {
            let predicted = run.denoise(i, &x)?;
            let (c_skip, c_out) = self.boundary(at.timestep);
            let denoised = ((predicted * c_out)? + (&x * c_skip)?)?;
            x = if next.is_clean() {
                denoised
            } else {
                next.add_noise(&denoised, &run.noise_like(&denoised)?)?
            };
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boundary_is_that_of_the_reference() {
        // From diffusers' get_scalings_for_boundary_condition_discrete.
        let expected = [
            (0.0, 1.0, 0.0),
            (4.0, 1.562_255_897_516e-4, 0.999_921_884_154),
            (19.0, 6.925_159_798e-6, 0.999_996_537_414),
            (999.0, 2.505_007_5e-9, 0.999_999_998_747),
        ];
        for (timestep, skip, out) in expected {
            let (c_skip, c_out) = Lcm::default().boundary(timestep);
            assert!((c_skip - skip).abs() < 1e-12, "c_skip at {timestep}: {c_skip}");
            assert!((c_out - out).abs() < 1e-12, "c_out at {timestep}: {c_out}");
        }
    }
}
