//! Hostile files and impossible requests, given to the real program and to every parser.

/// Configurations that lie, and files that contradict them.
mod configs;
/// Places that take no clip.
#[cfg(target_os = "linux")]
mod disks;
/// Every parser of a stranger's bytes.
#[cfg(all(feature = "cli", feature = "hub", feature = "train"))]
mod fuzz;
/// Impossible requests, damaged clips, false tensors.
mod requests;
/// What clips and files of strangers may not do.
#[cfg(all(feature = "cli", feature = "apng"))]
mod strangers;
/// Files of weights.
mod weights;
