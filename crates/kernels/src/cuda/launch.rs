//! Kernels by their names, over the memory of tensors.

use candle_core::backend::BackendStorage as _;
use candle_core::cuda::cudarc::driver::{
    CudaStream, DevicePtr, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use candle_core::cuda::{CudaDevice, CudaStorage, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{DType, Device, Error, Layout, Result, Shape, Storage, Tensor};

use super::plan::{Arg, Launch};

/// Keeps freed memory for what comes next: by default the driver gives it back at every synchronization.
#[allow(unsafe_code)]
pub(crate) fn keep_memory(device: &CudaDevice) -> Result<()> {
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

/// The code that `nvcc` compiled from a file of this folder.
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
pub(super) fn launch(launch: &Launch, tensors: &[&Tensor]) -> Result<()> {
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
