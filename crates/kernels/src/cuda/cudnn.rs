//! Convolutions by cuDNN, of images with their channels innermost, summed in f32.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::cuda::cudarc::cudnn::sys::{
    cudnnConvolutionFwdAlgo_t as Algorithm, cudnnConvolutionMode_t as Mode,
    cudnnMathType_t as Math, cudnnTensorFormat_t as Order,
};
use candle_core::cuda::cudarc::cudnn::{ConvForward, Cudnn, CudnnDataType};
use candle_core::cuda::cudarc::driver::CudaSlice;
use candle_core::cuda::{CudaDType, CudaDevice, CudaStorage, DeviceId};
use candle_core::op::BackpropOp;
use candle_core::{DType, Error, Result, Storage, Tensor, WithDType};
use half::{bf16, f16};

use super::launch::device;
use super::plan::Patches;

/// Properties by which cuDNN's choice is cached.
type Key = (DeviceId, DType, usize, Patches);

thread_local! {
    /// A handle belongs to a thread.
    static HANDLES: RefCell<HashMap<DeviceId, Arc<Cudnn>>> = RefCell::default();
    /// Algorithms that cuDNN chose, with the bytes of their workspaces. Asking takes longer than a small convolution.
    static CHOICES: RefCell<HashMap<Key, (Algorithm, usize)>> = RefCell::default();
}

fn handle(device: &CudaDevice) -> Result<Arc<Cudnn>> {
    HANDLES.with_borrow_mut(|handles| {
        if let Some(handle) = handles.get(&device.id()) {
            return Ok(handle.clone());
        }
        let handle = Cudnn::new(device.cuda_stream()).map_err(Error::wrap)?;
        handles.insert(device.id(), handle.clone());
        Ok(handle)
    })
}

/// `(images, height, width, channels)` with a filter `(outputs, kernel, kernel, channels)`, to `(images, height',
/// width', outputs)`; `given.seen` is `given.size`.
pub(super) fn convolve(x: &Tensor, filter: &Tensor, given: &Patches) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => run::<f32>(x, filter, given, Math::CUDNN_FMA_MATH),
        DType::F16 => run::<f16>(x, filter, given, Math::CUDNN_TENSOR_OP_MATH),
        DType::BF16 => run::<bf16>(x, filter, given, Math::CUDNN_TENSOR_OP_MATH),
        other => candle_core::bail!("no convolution of {other:?}"),
    }
}

#[allow(unsafe_code)]
fn run<T: CudnnDataType + CudaDType + WithDType + candle_core::cuda::cudarc::driver::DeviceRepr>(
    x: &Tensor,
    filter: &Tensor,
    given: &Patches,
    math: Math,
) -> Result<Tensor> {
    let device = device(x)?;
    let handle = handle(device)?;
    let Patches { images, channels, size, out, kernel, stride, before, .. } = *given;
    let outputs = filter.dim(0)?;
    let sizes = |sizes: [usize; 4]| -> Result<[i32; 4]> {
        let all: std::result::Result<Vec<_>, _> = sizes.iter().map(|n| i32::try_from(*n)).collect();
        all.ok().and_then(|all| all.try_into().ok()).ok_or_else(|| {
            Error::Msg(format!("a convolution of {sizes:?} values is too large for cuDNN"))
        })
    };
    let [stride, before, ..] = sizes([stride, before, 0, 0])?;
    let inner = Order::CUDNN_TENSOR_NHWC;
    let from = handle
        .create_4d_tensor::<T>(inner, sizes([images, channels, size.0, size.1])?)
        .map_err(Error::wrap)?;
    let weights = handle
        .create_4d_filter::<T>(inner, sizes([outputs, channels, kernel, kernel])?)
        .map_err(Error::wrap)?;
    let to = handle
        .create_4d_tensor::<T>(inner, sizes([images, outputs, out.0, out.1])?)
        .map_err(Error::wrap)?;
    let mut conv = handle
        .create_conv2d::<f32>([before; 2], [stride; 2], [1; 2], Mode::CUDNN_CROSS_CORRELATION)
        .map_err(Error::wrap)?;
    conv.set_math_type(math).map_err(Error::wrap)?;
    let forward = ConvForward { conv: &conv, x: &from, w: &weights, y: &to };
    let key = (device.id(), x.dtype(), outputs, *given);
    let known = CHOICES.with_borrow(|choices| choices.get(&key).copied());
    let (algorithm, bytes) = match known {
        Some(choice) => choice,
        None => {
            let algorithm = forward.pick_algorithm().map_err(Error::wrap)?;
            let bytes = forward.get_workspace_size(algorithm).map_err(Error::wrap)?;
            CHOICES.with_borrow_mut(|choices| choices.insert(key, (algorithm, bytes)));
            (algorithm, bytes)
        }
    };
    let (x, x_layout) = x.storage_and_layout();
    let (filter, filter_layout) = filter.storage_and_layout();
    let (Storage::Cuda(x), Storage::Cuda(filter)) = (&*x, &*filter) else {
        candle_core::bail!("a tensor off the GPU")
    };
    let x = x.as_cuda_slice::<T>()?.slice(x_layout.start_offset()..);
    let filter = filter.as_cuda_slice::<T>()?.slice(filter_layout.start_offset()..);
    let count = images * out.0 * out.1 * outputs;
    // SAFETY: cuDNN writes all of the result, and reads nothing of its workspace before it has written it.
    let (mut y, mut workspace) =
        unsafe { (device.alloc::<T>(count)?, device.alloc::<u8>(bytes.max(1))?) };
    // SAFETY: the descriptors have the sizes, the order and the format of the slices.
    unsafe {
        forward.launch::<CudaSlice<u8>, _, _, _>(
            algorithm,
            Some(&mut workspace),
            (T::one(), T::zero()),
            &x,
            &filter,
            &mut y,
        )
    }
    .map_err(Error::wrap)?;
    let storage = CudaStorage::wrap_cuda_slice(y, device.clone());
    let shape = (images, out.0, out.1, outputs);
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}
