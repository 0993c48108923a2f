//! The plain candle versions: the definition of correct.

use candle_core::{D, DType, Module, Result, Tensor};

use super::{Activation, ConvArgs, GroupNormOptions, Positions};

/// `softmax(q kᵀ · scale) v`, all scores at once.
///
/// `q` is `(batch, queries, heads, dim)`, `k` and `v` are `(batch, keys, heads, dim)`; the result has the
/// shape of `q`. Computed in f32.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    let dtype = q.dtype();
    let heads_first = |x: &Tensor| x.to_dtype(DType::F32)?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (heads_first(q)?, heads_first(k)?, heads_first(v)?);
    let scores = (q.matmul(&k.t()?)? * scale)?;
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
    weights.matmul(&v)?.transpose(1, 2)?.contiguous()?.to_dtype(dtype)
}

/// Group normalization of `(batch*frames, channels, height, width)`, with SiLU if asked.
///
/// Statistics in f32, over one image or pooled over `options.frames` consecutive ones.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    options: &GroupNormOptions,
) -> Result<Tensor> {
    let (images, channels, height, width) = x.dims4()?;
    let dtype = x.dtype();
    let shape = (
        images / options.frames,
        options.frames,
        options.groups,
        channels / options.groups * height * width,
    );
    let y = x.to_dtype(DType::F32)?.reshape(shape)?;
    let mean = y.mean_keepdim((1, 3))?;
    let y = y.broadcast_sub(&mean)?;
    let variance = y.sqr()?.mean_keepdim((1, 3))?;
    let y = y.broadcast_div(&(variance + options.eps)?.sqrt()?)?;
    let per_channel = |t: &Tensor| t.to_dtype(DType::F32)?.reshape((1, channels, 1, 1));
    let y = y
        .reshape((images, channels, height, width))?
        .broadcast_mul(&per_channel(weight)?)?
        .broadcast_add(&per_channel(bias)?)?;
    let y = if options.silu { y.silu()? } else { y };
    y.to_dtype(dtype)
}

/// Layer normalization over the last dimension, then the positions if there are any.
///
/// Statistics in f32.
pub fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    positions: Option<&Positions<'_>>,
) -> Result<Tensor> {
    let dtype = x.dtype();
    let y = x.to_dtype(DType::F32)?;
    let y = y.broadcast_sub(&y.mean_keepdim(D::Minus1)?)?;
    let variance = y.sqr()?.mean_keepdim(D::Minus1)?;
    let y = y.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let y = y
        .broadcast_mul(&weight.to_dtype(DType::F32)?)?
        .broadcast_add(&bias.to_dtype(DType::F32)?)?;
    match positions {
        Some(positions) => add_positions(&y, positions)?.to_dtype(dtype),
        None => y.to_dtype(dtype),
    }
}

/// Adds positions to rows `(.., width)`, the number of which they divide.
pub fn add_positions(rows: &Tensor, positions: &Positions<'_>) -> Result<Tensor> {
    let Positions { table, run } = positions;
    let (count, width) = table.dims2()?;
    let table = table.to_dtype(rows.dtype())?.reshape((1, count, 1, width))?;
    rows.reshape(((), count, *run, width))?.broadcast_add(&table)?.reshape(rows.shape())
}

/// Gated GELU: the last dimension holds values, then gates; the result is `value · gelu(gate)`, half as wide.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let halves = x.chunk(2, D::Minus1)?;
    &halves[0] * halves[1].contiguous()?.gelu_erf()?
}

/// Convolution of `(batch, in, height, width)` with `(out, in, kernel, kernel)`, and `bias`, `(out)`.
///
/// First the input is stretched and padded, last come the shift, the activation and the residual.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    args: &ConvArgs<'_>,
) -> Result<Tensor> {
    // candle's CPU convolutions know no bf16.
    let wide = if x.device().is_cpu() { DType::F32 } else { x.dtype() };
    let (dtype, weight) = (x.dtype(), &weight.to_dtype(wide)?);
    let x = x.to_dtype(wide)?.contiguous()?;
    let x = match args.stretch {
        Some((height, width)) => x.upsample_nearest2d(height, width)?,
        None => x,
    };
    let (before, after) = args.padding;
    let mut y = if before == after {
        x.conv2d(weight, before, args.stride, 1, 1)?
    } else {
        let x = x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?;
        x.conv2d(weight, 0, args.stride, 1, 1)?
    };
    for row in [bias, args.shift].into_iter().flatten() {
        y = y.broadcast_add(&row.to_dtype(wide)?.reshape((1, row.elem_count(), 1, 1))?)?;
    }
    let y = match args.activation {
        Activation::None => y,
        Activation::Silu => y.silu()?,
        Activation::Relu => y.relu()?,
    };
    let y = y.to_dtype(dtype)?;
    match args.residual {
        Some(residual) => y + residual,
        None => Ok(y),
    }
}

/// `x Wᵀ + b`; see [`super::linear`].
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    candle_nn::Linear::new(weight.clone(), bias.cloned()).forward(x)
}

/// Adds a value to each channel; see [`super::add_per_channel`].
pub fn add_per_channel(x: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let (images, channels, height, width) = x.dims4()?;
    let shifts = shift.dim(0)?;
    x.reshape((shifts, images / shifts.max(1), channels, height * width))?
        .broadcast_add(&shift.reshape((shifts, 1, channels, 1))?)?
        .reshape((images, channels, height, width))
}
