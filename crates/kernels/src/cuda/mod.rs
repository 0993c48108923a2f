//! Kernels of our own for NVIDIA GPUs. They have not yet run on one, so they serve only where [asked
//! for](super::choose).
//!
//! `*.cu` are their sources, `plan.rs` says how an op launches them, and tests run the two together on the CPU. The
//! rest of this folder hands tensors to them, and convolutions to cuDNN: images lie with their channels innermost, as
//! on the CPU, where tensor cores want them.
//!
//! A function returns `None` for what no kernel fits: other dtypes, sizes beyond 32 bits.

mod plan;

#[cfg(feature = "cudnn")]
mod cudnn;
#[cfg(test)]
mod emulator;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod ops;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub(super) use launch::keep_memory;
#[cfg(feature = "cuda")]
pub(super) use ops::{attention, conv2d, geglu, group_norm, layer_norm, linear};
