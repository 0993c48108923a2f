//! Weight files of every layout.

/// Torch files, large and hostile.
mod checkpoints;
/// Damaged and hostile files.
mod damaged;
/// Every layout gives the same tensors.
mod layouts;
/// Changes of weights.
mod patches;
/// Published names.
mod published;
/// Weights that do not fit, and files that are something else.
mod refusals;
/// Weights in 8 bits with scales.
mod scaled;
