//! Timestep embedding.

use crate::weights::VarBuilder;
use candle_core::{DType, Device, Result, Tensor};

use super::Linear;

/// Sinusoidal features `(1, width)` of a timestep in f32: all sines, then all cosines, or the reverse if
/// `cosines_first`.
///
/// Frequencies are `10000^(-i / (half - shift))`. `cosines_first` is diffusers' `flip_sin_to_cos`.
pub fn timestep_features(
    timestep: f64,
    width: usize,
    cosines_first: bool,
    shift: f64,
    device: &Device,
) -> Result<Tensor> {
    let half = width / 2;
    let angles: Vec<f32> = (0..half)
        .map(|i| {
            let exponent = -(10000f32.ln()) * i as f32 / (half as f64 - shift) as f32;
            timestep as f32 * exponent.exp()
        })
        .collect();
    let sines = angles.iter().map(|a| a.sin());
    let cosines = angles.iter().map(|a| a.cos());
    let mut features: Vec<f32> =
        if cosines_first { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() };
    features.resize(width, 0.0);
    Tensor::from_vec(features, (1, width), device)?.to_dtype(DType::F32)
}

/// Timestep embedding: two linear layers with SiLU between them.
#[derive(Clone, Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Loads the layers from `inputs` features to `outputs`.
    pub fn new(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(inputs, outputs, &vb.pp("linear_1"))?,
            linear_2: Linear::new(outputs, outputs, &vb.pp("linear_2"))?,
        })
    }

    /// Maps `(times, inputs)` to `(times, outputs)`.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&self.linear_1.forward(features)?.silu()?)
    }
}
