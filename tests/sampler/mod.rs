//! From noise to clean latents.

/// Runs of every sampler and spacing against their references.
mod references;
/// Noise schedules and timesteps.
mod schedule;
/// Samplers over formulas.
mod solvers;
/// Context windows.
mod windows;
