//! From noise to clean latents.

/// Noise schedules and timesteps.
mod schedule;
/// Samplers over formulas.
mod solvers;
/// Context windows.
mod windows;
