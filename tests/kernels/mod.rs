//! Operations on tensors: fast kernels against their plain references, over odd shapes, strides and values.

/// Attention.
mod attention;
/// Convolutions.
mod convolutions;
/// The same numbers on a GPU, where there is one.
mod gpu;
/// Gradients of every layer.
mod gradients;
/// Kernels in an interpreter.
mod miniature;
/// Norms and gates.
mod norms;
/// Products of matrices, in every precision.
mod products;
