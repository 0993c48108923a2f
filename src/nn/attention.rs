//! Multi-head attention.

use crate::weights::VarBuilder;
use candle_core::{D, DType, Device, Result, Tensor};

use super::Linear;
use crate::{Stop, kernels};

/// Multi-head self-attention or cross-attention.
#[derive(Clone, Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

/// Keys and values of an image prompt for one decoupled cross-attention (IP-Adapter, arXiv 2308.06721, section 3.2).
#[derive(Clone, Debug)]
pub struct ImageContext {
    /// Keys, `(batch / n, tokens, width)`, as [`Attention`] computes them from a context.
    pub keys: Tensor,
    /// Values, of the same shape.
    pub values: Tensor,
    /// Weights of the attention output, broadcast to `(batch, queries, width)`; 1 if `None`.
    pub weights: Option<Tensor>,
}

impl Attention {
    /// The variant of transformer blocks: only the output layer has a bias.
    pub fn new(width: usize, context: usize, heads: usize, vb: &VarBuilder) -> Result<Self> {
        let attention = Self {
            to_q: Linear::without_bias(width, width, &vb.pp("to_q"))?,
            to_k: Linear::without_bias(context, width, &vb.pp("to_k"))?,
            to_v: Linear::without_bias(context, width, &vb.pp("to_v"))?,
            to_out: Linear::new(width, width, &vb.pp("to_out.0"))?,
            heads,
        };
        check_heads(width, heads, vb)?;
        Ok(attention)
    }

    /// The variant of the VAE: all layers have a bias.
    pub fn with_bias(width: usize, heads: usize, vb: &VarBuilder) -> Result<Self> {
        let attention = Self {
            to_q: Linear::new(width, width, &vb.pp("to_q"))?,
            to_k: Linear::new(width, width, &vb.pp("to_k"))?,
            to_v: Linear::new(width, width, &vb.pp("to_v"))?,
            to_out: Linear::new(width, width, &vb.pp("to_out.0"))?,
            heads,
        };
        check_heads(width, heads, vb)?;
        Ok(attention)
    }

    /// Attention from `x` `(batch, tokens, width)` to `context` `(batch / n, tokens', context width)`; `residual`, of
    /// the shape of `x`, is added.
    ///
    /// If a context is shared by `n` consecutive entries of the batch (the frames of a clip), their queries are joined
    /// into one sequence, so keys are neither repeated nor computed twice.
    ///
    /// # Errors
    ///
    /// A batch that is not a multiple of the context's.
    pub fn forward(
        &self,
        x: &Tensor,
        context: &Tensor,
        residual: &Tensor,
        stop: &Stop,
    ) -> Result<Tensor> {
        self.forward_decoupled(x, context, &[], residual, stop)
    }

    /// Self-attention of `x` `(batch, tokens, width)`; `residual`, of the shape of `x`, is added. In the last `alone`
    /// entries of the batch every token attends to itself alone.
    ///
    /// # Errors
    ///
    /// Mismatched shapes.
    pub fn forward_self(
        &self,
        x: &Tensor,
        residual: &Tensor,
        alone: usize,
        stop: &Stop,
    ) -> Result<Tensor> {
        let attend = |x: &Tensor, residual: &Tensor| self.forward(x, x, residual, stop);
        self.with_alone((x, residual), alone, attend, stop)
    }

    /// `attend` over the batch but for its last `alone` entries. These attend to themselves alone: their values are the
    /// attention's output.
    fn with_alone(
        &self,
        (x, residual): (&Tensor, &Tensor),
        alone: usize,
        attend: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
        stop: &Stop,
    ) -> Result<Tensor> {
        if alone == 0 {
            return attend(x, residual);
        }
        let others = x.dim(0)?.saturating_sub(alone);
        let part = |x: &Tensor| x.narrow(0, others, alone);
        let values = self.to_v.forward_until(&part(x)?, None, stop)?;
        let last = self.to_out.forward_until(&values, Some(&part(residual)?), stop)?;
        if others == 0 {
            return Ok(last);
        }
        let first = attend(&x.narrow(0, 0, others)?, &residual.narrow(0, 0, others)?)?;
        Tensor::cat(&[first, last], 0)
    }

    /// [`forward`](Self::forward) with decoupled attention to image contexts, whose outputs are added before the output
    /// layer.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_decoupled(
        &self,
        x: &Tensor,
        context: &Tensor,
        images: &[ImageContext],
        residual: &Tensor,
        stop: &Stop,
    ) -> Result<Tensor> {
        let project = |linear: &Linear, x: &Tensor| linear.forward_until(x, None, stop);
        let (q, k) = (project(&self.to_q, x)?, project(&self.to_k, context)?);
        let mut y = self.attend(&q, &k, &project(&self.to_v, context)?, stop)?;
        for image in images {
            let attended = self.attend(&q, &image.keys, &image.values, stop)?;
            y = match &image.weights {
                Some(weights) => (y + attended.broadcast_mul(weights)?)?,
                None => (y + attended)?,
            };
        }
        self.to_out.forward_until(&y, Some(residual), stop)
    }

    /// The attention output of queries `(batch, tokens, width)` with keys and values `(batch / n, tokens', width)`.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, stop: &Stop) -> Result<Tensor> {
        let (batch, tokens, width) = q.dims3()?;
        let contexts = k.dim(0)?;
        if contexts == 0 || batch % contexts != 0 {
            candle_core::bail!("{batch} sequences do not divide over {contexts} contexts");
        }
        let dim = width / self.heads;
        let split = |y: &Tensor, tokens: usize| y.reshape((contexts, tokens, self.heads, dim));
        let q = split(q, batch / contexts * tokens)?;
        let (k, v) = (split(k, k.dim(1)?)?, split(v, v.dim(1)?)?);
        let y = kernels::attention_until(&q, &k, &v, 1.0 / (dim as f64).sqrt(), Some(stop))?;
        y.reshape((batch, tokens, width))
    }

    /// Attention of every pixel of `x` `(batch, frames, pixels, width)` over all frames; `residual`, of the shape of
    /// `x`, is added. In the last `alone` entries of the batch every frame attends to itself alone.
    ///
    /// # Errors
    ///
    /// Mismatched shapes.
    pub fn forward_over_frames(
        &self,
        x: &Tensor,
        residual: &Tensor,
        alone: usize,
        stop: &Stop,
    ) -> Result<Tensor> {
        let attend = |x: &Tensor, residual: &Tensor| self.attend_over_frames(x, residual, stop);
        self.with_alone((x, residual), alone, attend, stop)
    }

    fn attend_over_frames(&self, x: &Tensor, residual: &Tensor, stop: &Stop) -> Result<Tensor> {
        let project = |linear: &Linear| linear.forward_until(x, None, stop);
        let (batch, frames, pixels, width) = x.dims4()?;
        let dim = width / self.heads;
        let split = |y: Tensor| y.reshape((batch, frames, pixels, self.heads, dim));
        let q = split(project(&self.to_q)?)?;
        let k = split(project(&self.to_k)?)?;
        let v = split(project(&self.to_v)?)?;
        let y = kernels::temporal_attention(&q, &k, &v, 1.0 / (dim as f64).sqrt())?;
        stop.check()?;
        self.to_out.forward_until(&y.reshape(x.shape())?, Some(residual), stop)
    }
}

/// Attention of queries `(batch, tokens, heads, dim)`, scaled before, to keys and values `(batch, tokens', heads,
/// dim)`, with a `mask` `(tokens, tokens')` in f32 that is added to the scores; of the shape of the queries.
///
/// The scores are all in memory: for texts, which are short.
pub(crate) fn masked_attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: &Tensor,
) -> Result<Tensor> {
    let heads_first = |y: &Tensor| y.transpose(1, 2)?.contiguous();
    let (q, k, v) = (heads_first(queries)?, heads_first(keys)?, heads_first(values)?);
    let scores = q.matmul(&k.t()?)?.to_dtype(DType::F32)?.broadcast_add(mask)?;
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(queries.dtype())?;
    weights.matmul(&v)?.transpose(1, 2)
}

/// The causal mask `(tokens, tokens)` in f32: 0 where a token may attend, -∞ where it may not.
pub(crate) fn causal_mask(tokens: usize, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> = (0..tokens * tokens)
        .map(|i| if i % tokens > i / tokens { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    Tensor::from_vec(mask, (tokens, tokens), device)
}

/// Checks that `heads` divides `width`. Called after loading, so that weights of another width are reported first.
pub(crate) fn check_heads(width: usize, heads: usize, vb: &VarBuilder) -> Result<()> {
    if heads == 0 || !width.is_multiple_of(heads) {
        let name = vb.prefix();
        candle_core::bail!("`{name}`: {width} channels do not divide into {heads} heads");
    }
    Ok(())
}
