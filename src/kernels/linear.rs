//! Linear layers: candle's, unless they are trained.

use candle_core::{Module, Result, Tensor};

use super::grad;

/// `x Wᵀ + b` over the last dimension: `x` is `(.., inputs)`, `weight` `(outputs, inputs)`, `bias` `(outputs)`.
///
/// # Errors
///
/// When the widths do not agree.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if grad::is_tracked(&[x, weight, bias.unwrap_or(weight)]) {
        return grad::linear(x, weight, bias);
    }
    candle_nn::Linear::new(weight.clone(), bias.cloned()).forward(x)
}
