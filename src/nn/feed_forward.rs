//! The gated feed-forward network of a transformer block.

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use super::Linear;
use crate::Stop;

/// Feed-forward network: `Linear(width → 8 width)`, gated GELU, `Linear(4 width → width)`.
#[derive(Clone, Debug)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    /// Loads `net.0.proj` and `net.2`.
    pub fn new(width: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            proj: Linear::gated(width, 4 * width, &vb.pp("net.0.proj"))?,
            out: Linear::new(4 * width, width, &vb.pp("net.2"))?,
        })
    }

    /// Maps `(batch, tokens, width)` to the same shape; `residual` is added.
    pub fn forward(&self, x: &Tensor, residual: &Tensor, stop: &Stop) -> Result<Tensor> {
        self.out.forward_until(&self.proj.forward_until(x, None, stop)?, Some(residual), stop)
    }
}
