//! A CLIP transformer block: self-attention and an MLP, both pre-norm with a residual.

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use crate::kernels;
use crate::nn::{LayerNorm, Linear, check_heads, masked_attention};

/// Sizes of a [`Layer`].
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerOptions {
    pub(super) width: usize,
    /// Hidden size of the MLP.
    pub(super) inner: usize,
    pub(super) heads: usize,
    pub(super) eps: f64,
    /// OpenAI's approximation of GELU rather than the exact one.
    pub(super) quick_gelu: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Layer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    quick_gelu: bool,
}

impl Layer {
    pub(super) fn new(options: LayerOptions, vb: &VarBuilder) -> Result<Self> {
        let LayerOptions { width, inner, heads, eps, quick_gelu } = options;
        let norm = |name: &str| LayerNorm::new(width, eps, &vb.pp(name));
        let attention = vb.pp("self_attn");
        let projection = |name: &str| Linear::new(width, width, &attention.pp(name));
        let layer = Self {
            layer_norm1: norm("layer_norm1")?,
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            heads,
            layer_norm2: norm("layer_norm2")?,
            fc1: Linear::new(width, inner, &vb.pp("mlp.fc1"))?,
            fc2: Linear::new(inner, width, &vb.pp("mlp.fc2"))?,
            quick_gelu,
        };
        check_heads(width, heads, &attention)?;
        Ok(layer)
    }

    /// Maps `(batch, tokens, width)` to the same shape; `mask` `(tokens, tokens)` is added to the attention scores.
    pub(super) fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let x = (self.attend(&self.layer_norm1.forward(x)?, mask)? + x)?;
        let y = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        let y = if self.quick_gelu {
            (&y * candle_nn::ops::sigmoid(&(&y * 1.702)?)?)?
        } else {
            y.gelu_erf()?
        };
        self.fc2.forward(&y)? + x
    }

    fn attend(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let dim = width / self.heads;
        let scale = 1.0 / (dim as f64).sqrt();
        let split = |y: Tensor| y.reshape((batch, tokens, self.heads, dim));
        let (k, v) = (split(self.k_proj.forward(x)?)?, split(self.v_proj.forward(x)?)?);
        let Some(mask) = mask else {
            let y = kernels::attention(&split(self.q_proj.forward(x)?)?, &k, &v, scale)?;
            return self.out_proj.forward(&y.reshape((batch, tokens, width))?);
        };
        let q = split((self.q_proj.forward(x)? * scale)?)?;
        let y = masked_attention(&q, &k, &v, mask)?.reshape((batch, tokens, width))?;
        self.out_proj.forward(&y)
    }
}
