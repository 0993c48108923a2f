//! Multistep consistency sampling: Luo et al. (2023), as AnimateLCM's scheduler does it.

use candle_core::Tensor;

use super::{Denoiser, Observer, Progress, Sampler, Step};
use crate::Result;
use crate::rng::Noise;

/// Jumps to the clean latents at every step and adds fresh noise of the next level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lcm {
    /// What timesteps are multiplied by in the boundary condition.
    pub timestep_scaling: f64,
    /// The data's standard deviation in the boundary condition.
    pub sigma_data: f64,
}

impl Default for Lcm {
    fn default() -> Self {
        Self { timestep_scaling: 10.0, sigma_data: 0.5 }
    }
}

impl Lcm {
    /// How much of the noisy latents, and how much of the prediction, makes the answer.
    ///
    /// Timestep 0 is its own answer; from a hundred on the prediction alone counts.
    pub fn boundary(self, timestep: f64) -> (f64, f64) {
        let scaled = timestep * self.timestep_scaling;
        let sum = scaled * scaled + self.sigma_data * self.sigma_data;
        (self.sigma_data * self.sigma_data / sum, scaled / sum.sqrt())
    }
}

impl Sampler for Lcm {
    fn sample(
        &self,
        denoiser: &mut dyn Denoiser,
        mut x: Tensor,
        steps: &[Step],
        noise: &mut Noise,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        for (step, &Step { at, next }) in steps.iter().enumerate() {
            let predicted = denoiser.denoise(&x, at)?;
            let (c_skip, c_out) = self.boundary(at.timestep);
            let denoised = ((predicted * c_out)? + (&x * c_skip)?)?;
            observer.step(Progress { step, steps: steps.len(), at, denoised: &denoised })?;
            x = if next.is_clean() {
                denoised
            } else {
                next.add_noise(&denoised, &noise.like(&denoised)?)?
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
