//! The gated feed-forward part of a transformer block.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::Linear;
use crate::kernels;

/// `Linear(width → 8 width)`, gated GELU, `Linear(4 width → width)`.
#[derive(Clone, Debug)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    /// Reads `net.0.proj` and `net.2`.
    pub fn new(width: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            proj: Linear::new(width, 8 * width, &vb.pp("net.0.proj"))?,
            out: Linear::new(4 * width, width, &vb.pp("net.2"))?,
        })
    }

    /// `(batch, tokens, width)` to the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out.forward(&kernels::geglu(&self.proj.forward(x)?)?)
    }
}
