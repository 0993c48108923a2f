//! From a request to frames.

/// Networks of other families.
mod family;
/// Whole runs.
mod runs;
