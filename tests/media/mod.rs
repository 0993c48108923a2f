//! Images and videos that are read.

/// Resizing and colours of AnimateLCM-I2V.
mod colors;
/// Every format, and which frames are taken.
#[cfg(feature = "mp4")]
mod formats;
/// What is broken, or made to hurt.
#[cfg(feature = "mp4")]
mod hostile;
/// Videos as input.
mod video;
