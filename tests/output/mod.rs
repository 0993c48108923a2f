//! Encoders: what is written is read again by other people's decoders.

/// Every format, and the choice of one.
mod formats;
/// MP4, as a player reads it.
mod mp4;
/// Names and files: what is kept, what is left.
mod places;
/// Texts in clips.
mod texts;
/// Raw video.
mod y4m;
