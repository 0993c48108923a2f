//! Random numbers.

/// torch's generators.
mod torch;
