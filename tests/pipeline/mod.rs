//! From a request to frames.

/// Networks of other families.
mod family;
/// Whole runs.
mod runs;
/// Clips that start from images and videos.
mod source;
/// Long clips and loops.
mod windows;
