//! From tensors on a GPU to launches.

use candle_core::backend::BackendStorage as _;
use candle_core::cuda::cudarc::driver::{
    CudaStream, DevicePtr, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use candle_core::cuda::{CudaDevice, CudaStorage, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{DType, Device, Error, Layout, Result, Shape, Storage, Tensor};

use super::plan::{self, Arg, Format, Launch, Patches, Reading, View};
use crate::kernels::layout::{channels_first, channels_last};
use crate::kernels::window::Window;
use crate::kernels::{Activation, ConvArgs, GroupNormOptions, Positions, Weights};

/// Values of a matrix of patches that exist at once.
const PATCHES: usize = 1 << 26;

/// Keeps freed memory for what comes next: by default the driver gives it back at every synchronization.
#[allow(unsafe_code)]
pub(in crate::kernels) fn keep_memory(device: &CudaDevice) -> Result<()> {
    use candle_core::cuda::cudarc::driver::{result, sys};
    let mut most = u64::MAX;
    let stream = device.cuda_stream();
    // SAFETY: the device is open, the pool is its own, and the attribute is a number of 64 bits that is copied.
    let set = unsafe {
        result::device::get_default_mem_pool(stream.context().cu_device()).and_then(|pool| {
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(pool, attribute, (&raw mut most).cast())
        })
    };
    set.map_err(Error::wrap)
}

fn format(dtype: DType) -> Option<Format> {
    match dtype {
        DType::F32 => Some(Format::F32),
        DType::F16 => Some(Format::F16),
        DType::BF16 => Some(Format::Bf16),
        _ => None,
    }
}

/// What `nvcc` made of a file of this folder.
fn code(module: &str) -> Result<&'static str> {
    Ok(match module {
        "attention" => include_str!(concat!(env!("OUT_DIR"), "/attention.ptx")),
        "elementwise" => include_str!(concat!(env!("OUT_DIR"), "/elementwise.ptx")),
        "norm" => include_str!(concat!(env!("OUT_DIR"), "/norm.ptx")),
        _ => candle_core::bail!("no kernels in {module}"),
    })
}

pub(super) fn device(x: &Tensor) -> Result<&CudaDevice> {
    match x.device() {
        Device::Cuda(device) => Ok(device),
        _ => candle_core::bail!("a tensor on another device"),
    }
}

/// Memory for a result, with whatever is in it: every launch writes all of its result.
#[allow(unsafe_code)]
pub(super) fn unset(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let count = shape.elem_count();
    // SAFETY: kernels only write it before something reads it.
    let slice = unsafe {
        match dtype {
            DType::F32 => CudaStorageSlice::F32(device.alloc(count)?),
            DType::F16 => CudaStorageSlice::F16(device.alloc(count)?),
            DType::BF16 => CudaStorageSlice::BF16(device.alloc(count)?),
            _ => candle_core::bail!("no kernels for {dtype:?}"),
        }
    };
    let storage = Storage::Cuda(CudaStorage { slice, device: device.clone() });
    Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
}

/// The address of a view's first value; holding the guard keeps the order of events.
fn address<'a>(
    storage: &'a Storage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(u64, SyncOnDrop<'a>)> {
    let Storage::Cuda(storage) = storage else { candle_core::bail!("a tensor off the GPU") };
    let (start, guard) = match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(stream),
        CudaStorageSlice::F16(slice) => slice.device_ptr(stream),
        CudaStorageSlice::BF16(slice) => slice.device_ptr(stream),
        _ => candle_core::bail!("no kernels for {:?}", storage.dtype()),
    };
    let offset = layout.start_offset() * storage.dtype().size_in_bytes();
    Ok((start + offset as u64, guard))
}

/// Runs a kernel over the memory of `tensors`, in the order of its plan.
#[allow(unsafe_code)]
fn launch(launch: &Launch, tensors: &[&Tensor]) -> Result<()> {
    let Some(first) = tensors.first() else { candle_core::bail!("a launch over nothing") };
    let device = device(first)?;
    let stream = device.cuda_stream();
    let held: Vec<_> = tensors.iter().map(|x| x.storage_and_layout()).collect();
    let addresses: Vec<_> = held
        .iter()
        .map(|(storage, layout)| address(storage, layout, &stream))
        .collect::<Result<_>>()?;
    let name = format!("animatelcm-{}", launch.module);
    let function = device.get_or_load_custom_func(&launch.kernel, &name, code(launch.module)?)?;
    let mut builder = function.builder();
    for arg in &launch.args {
        match arg {
            Arg::Word(word) => builder.arg(word),
            Arg::Buffer(number) => match addresses.get(*number) {
                Some((address, _)) => builder.arg(address),
                None => candle_core::bail!("{}: no buffer {number}", launch.kernel),
            },
        };
    }
    let config = LaunchConfig {
        grid_dim: (launch.blocks, 1, 1),
        block_dim: (launch.threads, 1, 1),
        shared_mem_bytes: launch.shared,
    };
    // SAFETY: the plan has the kernel's arguments in their order, all of 4 bytes but the addresses, and sizes that are
    // those of the tensors; tests run the same plans over buffers whose ends are guarded.
    unsafe { builder.launch(config) }.map_err(Error::wrap)?;
    Ok(())
}

/// How contiguous tensors are read together; `None` where their formats differ or have no kernel.
fn reading(tensors: &[&Tensor]) -> Option<Reading> {
    let (first, all) = (tensors.first()?.dtype(), tensors.iter());
    let format = format(first)?;
    let same = all.clone().all(|x| x.dtype() == first);
    let aligned = tensors.iter().all(|x| x.layout().start_offset().is_multiple_of(format.wide()));
    (same && tensors.iter().all(|x| x.is_contiguous())).then_some(Reading { format, aligned })
}

/// `x`, in the number format of `like` and contiguous.
fn beside(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    x.to_dtype(like.dtype())?.contiguous()
}

/// [`crate::kernels::group_norm`].
pub(in crate::kernels) fn group_norm(
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

/// [`crate::kernels::layer_norm`].
pub(in crate::kernels) fn layer_norm(
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

/// [`crate::kernels::geglu`], with a bias added first.
pub(in crate::kernels) fn geglu(x: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
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
pub(in crate::kernels) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
) -> Result<Option<Tensor>> {
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

/// What follows the product `y` `(.., width)`, in its memory.
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

/// [`crate::kernels::linear`].
pub(in crate::kernels) fn linear(
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

/// [`crate::kernels::conv2d`], whose window has been checked.
pub(in crate::kernels) fn conv2d(
    x: &Tensor,
    weights: &Weights,
    args: &ConvArgs<'_>,
    window: &Window,
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

/// What outputs see, row by row, times the filter.
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

/// By cuDNN, where it is part of the build and the padding is the same on both sides.
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
