//! Operations on tensors, each with the fastest implementation that applies.
//!
//! Callers never ask which implementation runs. Every fast path sits beside the plain candle version
//! in [`mod@reference`], which defines what is correct, and `tests/kernels` holds the two together.
//!
//! | op | CPU | other devices |
//! |---|---|---|
//! | [`conv2d()`], [`linear()`] | packed weights, the input read where it lies, all that follows in one pass | [`reference::conv2d`] |
//! | [`attention()`] | keys and values packed, blocks of keys under a running maximum | blocks of queries by matmul |
//! | [`group_norm()`], [`layer_norm()`] | one pass for the statistics, one for the result | [`mod@reference`] |
//! | [`geglu()`] | one pass | [`reference::geglu`] |
//!
//! Where [asked for](choose), there are own kernels for most on NVIDIA GPUs, see `cuda/mod.rs`, and attention in one on
//! Apple's. No GPU has run them.
//!
//! On the CPU the instructions are chosen when the program runs, see [`cpu::isa::Isa`]; bf16 and bytes go through the
//! matrix unit where there is one. Tensors that take part in a gradient go other ways, with the same values; see
//! `autograd/mod.rs`.

// A function is compiled for the instructions of the one that it is inlined into; see `isa`.
#![allow(clippy::inline_always)]

pub mod attention;
mod autograd;
pub mod clock;
pub mod conv;
pub mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod geglu;
pub mod layout;
mod norm;
mod quantize;
pub mod reference;
mod resize;
mod shift;
mod stop;
mod weights;

pub use attention::{attention, attention_until, temporal_attention};
pub use conv::{ConvArgs, conv2d, linear, linear_until};
pub use cpu::gemm::Activation;
pub use geglu::geglu;
pub use norm::{GroupNormOptions, Positions, group_norm, layer_norm};
pub use quantize::Quantize;
pub use resize::upsample_nearest;
pub use shift::add_per_channel;
pub use stop::{Cancelled, Stop};
pub use weights::Weights;

use std::sync::{PoisonError, RwLock};

use candle_core::{DType, Device, Result, Tensor};

/// The GPUs, as they were opened, on which experimental kernels run.
static EXPERIMENTAL: RwLock<Vec<Device>> = RwLock::new(Vec::new());

/// Chooses the kernels of `device`, as it was opened: the same GPU opened once more may have others. Experimental ones
/// are for GPUs; on a CPU this changes nothing.
///
/// # Errors
///
/// Errors of the device.
pub fn choose(experimental: bool, device: &Device) -> Result<()> {
    let experimental = experimental && !device.is_cpu();
    #[cfg(feature = "cuda")]
    if let (true, Device::Cuda(device)) = (experimental, device) {
        cuda::keep_memory(device)?;
    }
    let mut all = EXPERIMENTAL.write().unwrap_or_else(PoisonError::into_inner);
    all.retain(|other| !other.same_device(device));
    if experimental {
        all.push(device.clone());
    }
    Ok(())
}

fn is_experimental(device: &Device) -> bool {
    let all = EXPERIMENTAL.read().unwrap_or_else(PoisonError::into_inner);
    all.iter().any(|other| other.same_device(device))
}

/// Returns whether this crate's kernels run on `device`, a GPU.
fn has_own(device: &Device) -> bool {
    cfg!(feature = "cuda") && device.is_cuda() && is_experimental(device)
}

/// Returns whether images are channels-last on `device`, and attention reads tokens in place.
pub fn keeps_channels_last(device: &Device) -> bool {
    device.is_cpu() || has_own(device)
}

/// Runs a CPU kernel that knows f32 only on a tensor of any float type.
fn in_f32(x: &Tensor, op: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if x.dtype() == DType::F32 { op(x) } else { op(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype()) }
}
