//! `y = x Wᵀ + b`.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

/// A linear layer over the last dimension.
#[derive(Clone, Debug)]
pub struct Linear(candle_nn::Linear);

impl Linear {
    /// With a bias.
    pub fn new(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        let bias = vb.get(outputs, "bias")?;
        Ok(Self(candle_nn::Linear::new(vb.get((outputs, inputs), "weight")?, Some(bias))))
    }

    /// Without a bias.
    pub fn without_bias(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self(candle_nn::Linear::new(vb.get((outputs, inputs), "weight")?, None)))
    }

    /// `(.., inputs)` to `(.., outputs)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}
