//! `y = x Wᵀ + b`.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::kernels;

/// A linear layer over the last dimension.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// With a bias.
    pub fn new(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        let bias = vb.get(outputs, "bias")?;
        Ok(Self { weight: vb.get((outputs, inputs), "weight")?, bias: Some(bias) })
    }

    /// Without a bias.
    pub fn without_bias(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get((outputs, inputs), "weight")?, bias: None })
    }

    /// `(.., inputs)` to `(.., outputs)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::linear(x, &self.weight, self.bias.as_ref())
    }
}
