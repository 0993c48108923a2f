//! Launches of the kernels over tensors on a GPU.

use candle_core::{DType, Result, Tensor};

use super::launch::{device, launch, unset};
use super::plan::{self, Format, Patches, Reading, View};
use crate::cpu::conv_geometry::ConvGeometry;
use crate::layout::{channels_first, channels_last};
use crate::{Activation, ConvArgs, GroupNormOptions, Positions, Weights};

/// Values of a matrix of patches that exist at once.
const PATCHES: usize = 1 << 26;

fn format(dtype: DType) -> Option<Format> {
    match dtype {
        DType::F32 => Some(Format::F32),
        DType::F16 => Some(Format::F16),
        DType::BF16 => Some(Format::Bf16),
        _ => None,
    }
}

/// The common format of contiguous tensors; `None` if formats differ or have no kernel.
fn reading(tensors: &[&Tensor]) -> Option<Reading> {
    let (first, all) = (tensors.first()?.dtype(), tensors.iter());
    let format = format(first)?;
    let same = all.clone().all(|x| x.dtype() == first);
    let aligned = tensors.iter().all(|x| x.layout().start_offset().is_multiple_of(format.wide()));
    (same && tensors.iter().all(|x| x.is_contiguous())).then_some(Reading { format, aligned })
}

/// `x`, in the dtype of `like` and contiguous.
fn beside(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    x.to_dtype(like.dtype())?.contiguous()
}

/// [`crate::group_norm`].
pub(crate) fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    options: &GroupNormOptions,
) -> Result<Option<Tensor>> {
    let (images, channels, height, width) = x.dims4()?;
    let (x, weight, bias) = (channels_last(x)?, beside(weight, x)?, beside(bias, x)?);
    let plan = reading(&[&x, &weight, &bias])
        .and_then(|reading| plan::group_norm(reading, (images, height * width, channels), options));
    let Some(plan) = plan else { return Ok(None) };
    let device = device(&x)?;
    let [sums, means, scales] =
        [plan.sums, plan.means, plan.means].map(|count| unset(device, DType::F32, count));
    let (sums, means, scales) = (sums?, means?, scales?);
    let y = unset(device, x.dtype(), x.shape())?;
    for pass in &plan.launches {
        launch(pass, &[&x, &weight, &bias, &sums, &means, &scales, &y])?;
    }
    channels_first(&y).map(Some)
}

/// [`crate::layer_norm`].
pub(crate) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    positions: Option<&Positions<'_>>,
) -> Result<Option<Tensor>> {
    let x = x.contiguous()?;
    let width = weight.elem_count();
    let (weight, bias) = (beside(weight, &x)?, beside(bias, &x)?);
    let (table, count, run) = match positions {
        Some(Positions { table, run }) => (beside(table, &x)?, table.dim(0)?, *run),
        None => (bias.clone(), 0, 1),
    };
    let rows = x.elem_count() / width.max(1);
    let plan = reading(&[&x, &weight, &bias, &table])
        .and_then(|reading| plan::layer_norm(reading, (rows, width), (count, run), eps));
    let Some(plan) = plan else { return Ok(None) };
    let y = unset(device(&x)?, x.dtype(), x.shape())?;
    launch(&plan, &[&x, &weight, &bias, &table, &y])?;
    Ok(Some(y))
}

/// [`crate::geglu`], with a bias added first.
pub(crate) fn geglu(x: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
    let x = x.contiguous()?;
    let mut shape = x.dims().to_vec();
    let Some(last) = shape.last_mut() else { return Ok(None) };
    *last /= 2;
    let width = *last;
    let rows = x.elem_count() / (2 * width).max(1);
    let bias = bias.map(|bias| beside(bias, &x)).transpose()?;
    let given = bias.as_ref().unwrap_or(&x);
    let plan = reading(&[&x, given])
        .and_then(|reading| plan::geglu(reading, (rows, width), bias.is_some()));
    let Some(plan) = plan else { return Ok(None) };
    let y = unset(device(&x)?, x.dtype(), shape)?;
    launch(&plan, &[&x, given, &y])?;
    Ok(Some(y))
}

/// Attention over `(batch, tokens, places, heads, dim)`.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Option<Tensor>> {
    let Some(format) = format(q.dtype()) else { return Ok(None) };
    let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
    let inputs = [q, &k, &v];
    let mut views = Vec::new();
    for x in inputs {
        let &[a, b, c, d, 1] = x.stride() else { return Ok(None) };
        let (i, j, l, m, n) = x.dims5()?;
        let start = x.layout().start_offset();
        views.push(View { dims: [i, j, l, m, n], strides: [a, b, c, d], start });
    }
    let views = <[View; 3]>::try_from(views).ok();
    let Some(plan) = views.and_then(|views| plan::attention(format, views, scale)) else {
        return Ok(None);
    };
    let y = unset(device(q)?, q.dtype(), q.shape())?;
    launch(&plan, &[q, &k, &v, &y])?;
    Ok(Some(y))
}

/// Applies the epilogue to the product `y` `(.., width)` in place.
fn finish(
    y: Tensor,
    [bias, shift, residual]: [Option<&Tensor>; 3],
    activation: Activation,
) -> Result<Tensor> {
    let parts = [bias, shift, residual];
    if parts.iter().all(Option::is_none) && activation == Activation::None {
        return Ok(y);
    }
    let given: Vec<_> = parts.iter().flatten().map(|x| beside(x, &y)).collect::<Result<_>>()?;
    let mut given = given.iter();
    let present = parts.map(|part| part.is_some());
    let [bias, shift, residual] = parts.map(|part| part.and_then(|_| given.next()).unwrap_or(&y));
    let width = y.dims().last().copied().unwrap_or(0);
    let sizes = (y.elem_count() / width.max(1), width);
    let all = [&y, bias, shift, residual];
    let plan =
        reading(&all).and_then(|reading| plan::epilogue(reading, sizes, present, activation));
    let Some(plan) = plan else { candle_core::bail!("no kernel for what follows {:?}", y.shape()) };
    launch(&plan, &all)?;
    Ok(y)
}

/// `x Wᵀ` for rows `(.., inputs)` of whatever shape.
fn multiply(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = (weight.dim(0)?, weight.elem_count() / weight.dim(0)?.max(1));
    let weight = weight.reshape((outputs, inputs))?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    x.reshape(((), inputs))?.matmul(&weight.t()?)?.reshape(shape)
}

/// [`crate::linear`].
pub(crate) fn linear(
    x: &Tensor,
    weights: &Weights,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    if format(x.dtype()).is_none() || x.elem_count() == 0 {
        return Ok(None);
    }
    let y = multiply(&x.contiguous()?, &beside(&weights.plain()?, x)?)?;
    if weights.sizes().results() == weights.sizes().outputs {
        return finish(y, [weights.bias(), None, residual], Activation::None).map(Some);
    }
    let Some(y) = geglu(&y, weights.bias())? else { return Ok(None) };
    finish(y, [None, None, residual], Activation::None).map(Some)
}

/// [`crate::conv2d`], whose window has been checked.
pub(crate) fn conv2d(
    x: &Tensor,
    weights: &Weights,
    args: &ConvArgs<'_>,
    window: &ConvGeometry,
) -> Result<Option<Tensor>> {
    let (images, channels, height, width) = x.dims4()?;
    if format(x.dtype()).is_none() || x.elem_count() == 0 {
        return Ok(None);
    }
    let x = channels_last(x)?;
    let (size, kernel, out) = ((height, width), weights.kernel(), window.size());
    let seen = args.stretch.unwrap_or(size);
    let outputs = weights.sizes().outputs;
    let weight = weights.plain()?;
    let weight = if weight.rank() == 4 { channels_last(&weight)? } else { weight };
    let filter = beside(&weight, &x)?;
    let given = Patches {
        images,
        channels,
        size,
        seen,
        out,
        kernel,
        stride: args.stride,
        before: args.padding.0,
    };
    let y = if window.is_identity() && kernel == 1 {
        Some(multiply(&x, &filter)?)
    } else {
        match convolve(&x, &filter, &given, args.padding)? {
            Some(y) => Some(y),
            None => multiply_patches(&x, &filter, &given)?,
        }
    };
    let Some(y) = y else { return Ok(None) };
    let y = y.reshape((images, out.0, out.1, outputs))?;
    let residual = args.residual.map(channels_last).transpose()?;
    let shift = args.shift.map(Tensor::flatten_all).transpose()?;
    let y = finish(y, [weights.bias(), shift.as_ref(), residual.as_ref()], args.activation)?;
    channels_first(&y).map(Some)
}

/// A convolution as the product of gathered patches (im2col) and the filter.
fn multiply_patches(x: &Tensor, filter: &Tensor, given: &Patches) -> Result<Option<Tensor>> {
    let outputs = given.images * given.out.0 * given.out.1;
    let inner = given.kernel * given.kernel * given.channels;
    let rows = (PATCHES / inner.max(1)).clamp(1, outputs.max(1));
    let mut parts = Vec::new();
    for first in (0..outputs).step_by(rows) {
        let count = rows.min(outputs - first);
        let Some(patches) = patches(x, given, first, count)? else { return Ok(None) };
        parts.push(multiply(&patches, filter)?);
    }
    Tensor::cat(&parts, 0).map(Some)
}

fn patches(x: &Tensor, given: &Patches, first: usize, count: usize) -> Result<Option<Tensor>> {
    let plan = reading(&[x]).and_then(|reading| plan::patches(reading, given, first, count));
    let Some(plan) = plan else { return Ok(None) };
    let inner = given.kernel * given.kernel * given.channels;
    let y = unset(device(x)?, x.dtype(), (count, inner))?;
    launch(&plan, &[x, &y])?;
    Ok(Some(y))
}

/// A convolution by cuDNN, if it is part of the build and the padding is the same on both sides.
#[cfg(feature = "cudnn")]
fn convolve(
    x: &Tensor,
    filter: &Tensor,
    given: &Patches,
    (before, after): (usize, usize),
) -> Result<Option<Tensor>> {
    if before != after {
        return Ok(None);
    }
    if given.seen == given.size {
        return super::cudnn::convolve(x, filter, given).map(Some);
    }
    let Patches { images, channels, seen, .. } = *given;
    let stretched = Patches { out: seen, kernel: 1, stride: 1, before: 0, ..*given };
    let Some(x) = patches(x, &stretched, 0, images * seen.0 * seen.1)? else { return Ok(None) };
    let x = x.reshape((images, seen.0, seen.1, channels))?;
    super::cudnn::convolve(&x, filter, &Patches { size: seen, ..*given }).map(Some)
}

#[cfg(not(feature = "cudnn"))]
fn convolve(_: &Tensor, _: &Tensor, _: &Patches, _: (usize, usize)) -> Result<Option<Tensor>> {
    Ok(None)
}
