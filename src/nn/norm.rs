//! Group and layer normalization with f32 statistics.

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use crate::kernels::{self, GroupNormOptions, Positions};

/// Group normalization of images, optionally followed by SiLU.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Loads `weight` and `bias`, `(channels)` each.
    pub fn new(groups: usize, channels: usize, eps: f64, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get(channels, "weight")?;
        let bias = vb.get(channels, "bias")?;
        if groups == 0 || !channels.is_multiple_of(groups) {
            let name = vb.prefix();
            candle_core::bail!("`{name}`: {channels} channels do not divide into {groups} groups");
        }
        Ok(Self { weight, bias, groups, eps })
    }

    /// Normalizes every image of `(batch, channels, height, width)` separately.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, 1, false)
    }

    /// [`forward`](Self::forward) followed by SiLU.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, 1, true)
    }

    /// Normalizes `(batch*frames, channels, height, width)` with statistics pooled over the frames of a clip.
    pub fn forward_pooled(&self, x: &Tensor, frames: usize) -> Result<Tensor> {
        self.run(x, frames, false)
    }

    fn run(&self, x: &Tensor, frames: usize, silu: bool) -> Result<Tensor> {
        let options = GroupNormOptions { groups: self.groups, eps: self.eps, frames, silu };
        kernels::group_norm(x, &self.weight, &self.bias, &options)
    }
}

/// Layer normalization over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Loads `weight` and `bias`, `(width)` each.
    pub fn new(width: usize, eps: f64, vb: &VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get(width, "weight")?, bias: vb.get(width, "bias")?, eps })
    }

    /// Maps `(.., width)` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::layer_norm(x, &self.weight, &self.bias, self.eps, None)
    }

    /// [`forward`](Self::forward) plus positions.
    pub fn forward_at(&self, x: &Tensor, positions: &Positions<'_>) -> Result<Tensor> {
        kernels::layer_norm(x, &self.weight, &self.bias, self.eps, Some(positions))
    }
}
