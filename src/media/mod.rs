//! Frames, where they come from and where they go: the meeting point of the pipeline and the encoders.

pub mod read;
pub mod resize;
pub mod tensor;
mod video;

pub use image::RgbImage;

use crate::Result;

/// Takes the frames of one clip, in order.
///
/// An error returned from [`frame`](Self::frame) stops the run. A sink that is dropped without
/// [`finish`](Self::finish) leaves no file behind.
pub trait FrameSink {
    /// Takes the next frame. All frames of a clip have the same size.
    fn frame(&mut self, frame: &RgbImage) -> Result<()>;

    /// Writes what is left and makes the result visible under its name.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Collects the frames in memory.
impl FrameSink for &mut Vec<RgbImage> {
    fn frame(&mut self, frame: &RgbImage) -> Result<()> {
        self.push(frame.clone());
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
