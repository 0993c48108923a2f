//! Kernels for the CPU: matrix products and what they are made of, for every set of instructions.

pub(super) mod amx;
pub(super) mod buffer;
pub(super) mod conv_geometry;
pub(super) mod float;
pub(super) mod gemm;
#[cfg(all(test, target_os = "linux", not(miri)))]
mod guarded;
pub mod isa;
pub(super) mod lanes;
pub mod math;
pub(super) mod microkernel;
pub(super) mod pack;
pub(super) mod quantize;
pub(super) mod winograd;
