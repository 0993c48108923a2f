//! One function an op: the fastest implementation that applies wins.
//!
//! Callers never ask which implementation runs. Every fast path sits beside the plain candle version
//! in [`mod@reference`], which defines what is correct, and `tests/kernels.rs` holds the two together.
//!
//! | op | CPU | other devices |
//! |---|---|---|
//! | [`attention()`] | blocks of queries, threads over heads and blocks | blocks of queries by matmul |
//! | [`group_norm()`] | one pass for the statistics, one for the result | [`reference::group_norm`] |
//! | [`geglu()`] | one pass | [`reference::geglu`] |
//! | [`conv2d()`] | tiles gathered in cache, then multiplied | [`reference::conv2d`] |
//! | [`linear()`], [`layer_norm()`] | candle-nn's | candle-nn's |
//! | [`shift_channels()`], [`upsample_nearest()`] | candle's | candle's |
//!
//! Tensors that take part in a gradient go other ways, with the same values; see `grad/mod.rs`.

pub mod attention;
pub mod conv;
mod geglu;
mod grad;
mod linear;
pub mod math;
mod norm;
pub mod reference;
mod resize;
mod shift;

pub use attention::attention;
pub use conv::conv2d;
pub use geglu::geglu;
pub use linear::linear;
pub use norm::{GroupNormOptions, group_norm, layer_norm};
pub use resize::upsample_nearest;
pub use shift::shift_channels;

use candle_core::{CpuStorage, DType, Result, Tensor};

/// Runs a CPU kernel that knows f32 only on a tensor of any float type.
fn in_f32(x: &Tensor, op: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if x.dtype() == DType::F32 { op(x) } else { op(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype()) }
}

/// The `len` values from `offset` of an f32 storage.
fn f32_slice(storage: &CpuStorage, offset: usize, len: usize) -> Result<&[f32]> {
    match storage {
        CpuStorage::F32(values) => values.get(offset..offset + len).ok_or_else(|| {
            candle_core::Error::Msg(format!("{len} values from {offset} of {}", values.len()))
        }),
        _ => candle_core::bail!("this kernel wants f32"),
    }
}
