//! From a request to frames.

/// Networks of other families.
mod family;
/// Kept frames and masks.
mod inpaint;
/// What observers see of a clip while it is made.
mod preview;
/// Options for quality.
mod quality;
/// Whole runs.
mod runs;
/// Clips that start from images and videos.
mod source;
/// Prompts that differ between frames and steps.
mod travel;
/// Long clips and loops.
mod windows;
