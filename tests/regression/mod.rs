//! Faults that people met: each test says what is right, and fails where the fault is back.

/// Files that the program writes.
#[cfg(feature = "cli")]
mod files;
/// What cameras, phones and editors write.
#[cfg(feature = "mp4")]
mod media;
/// What people type.
#[cfg(feature = "cli")]
mod requests;
/// What a single file says of itself.
#[cfg(feature = "cli")]
mod single_files;
