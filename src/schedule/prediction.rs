//! Prediction types of a network, for sampling and training.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::NoiseLevel;
use crate::Result;
use crate::spelling::named;

/// Prediction type: the target that a network was trained to output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Prediction {
    /// Noise (epsilon).
    #[default]
    #[serde(rename = "epsilon")]
    Epsilon,
    /// Velocity `alpha * noise - sigma * clean`: Salimans and Ho (2022).
    #[serde(rename = "v-prediction", alias = "v_prediction", alias = "v")]
    V,
    /// Clean latents.
    #[serde(rename = "sample")]
    Sample,
}

impl Prediction {
    /// Converts the network's `output` at `x` to clean latents.
    ///
    /// All three tensors have one shape; `output` is cast to the dtype of `x`, which should be f32: at the noisiest
    /// timestep an error in the output grows 25-fold.
    pub fn denoised(self, x: &Tensor, output: &Tensor, at: NoiseLevel) -> Result<Tensor> {
        let output = output.to_dtype(x.dtype())?;
        Ok(match self {
            Self::Epsilon => ((x - (output * at.sigma)?)? / at.alpha)?,
            Self::V => ((x * at.alpha)? - (output * at.sigma)?)?,
            Self::Sample => output,
        })
    }

    /// The training target for `clean` latents noised with `noise`.
    ///
    /// All three tensors have one shape.
    pub fn target(self, clean: &Tensor, noise: &Tensor, at: NoiseLevel) -> Result<Tensor> {
        Ok(match self {
            Self::Epsilon => noise.clone(),
            Self::V => ((noise * at.alpha)? - (clean * at.sigma)?)?,
            Self::Sample => clean.clone(),
        })
    }
}

named!(Prediction, "prediction", {
    Epsilon = "epsilon" | "eps",
    V = "v-prediction" | "v",
    Sample = "sample",
});
