//! Linear layer, `y = x Wᵀ + b`.

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use crate::Stop;
use crate::kernels::{self, Weights};

/// A linear layer over the last dimension.
#[derive(Clone, Debug)]
pub struct Linear(Weights);

impl Linear {
    /// Loads a layer with a bias.
    pub fn new(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        let (weight, bias) = (vb.get((outputs, inputs), "weight")?, vb.get(outputs, "bias")?);
        Ok(Self(Weights::quantized(&weight, Some(&bias), vb.quantize())?))
    }

    /// Loads a layer without a bias.
    pub fn without_bias(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self(Weights::quantized(&vb.get((outputs, inputs), "weight")?, None, vb.quantize())?))
    }

    /// Loads a layer with a bias and a gated GELU: values and gates are the first and second half of `2 outputs` rows.
    pub fn gated(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get((2 * outputs, inputs), "weight")?;
        Ok(Self(Weights::gated(&weight, Some(&vb.get(2 * outputs, "bias")?), vb.quantize())?))
    }

    /// Maps `(.., inputs)` to `(.., outputs)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::linear(x, &self.0, None)
    }

    /// [`forward`](Self::forward) plus `residual` `(.., outputs)`.
    pub fn forward_residual(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        kernels::linear(x, &self.0, Some(residual))
    }

    /// [`forward`](Self::forward) or [`forward_residual`](Self::forward_residual), cancelled by `stop`.
    pub fn forward_until(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        stop: &Stop,
    ) -> Result<Tensor> {
        kernels::linear_until(x, &self.0, residual, Some(stop))
    }
}
