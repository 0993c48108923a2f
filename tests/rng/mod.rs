//! Random numbers.

/// Noise of long clips.
mod long;
/// torch's generators.
mod torch;
