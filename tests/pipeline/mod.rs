//! From a request to frames.

/// Whole runs.
mod runs;
