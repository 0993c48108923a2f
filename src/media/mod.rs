//! Frames of a clip: reading, resizing, and the interface to the encoders.

mod animation;
mod exif;
mod fault;
mod foreign;
mod guard;
pub mod read;
pub mod resize;
mod still;
mod take;
pub mod tensor;
mod video;
mod webp;

pub use image::RgbImage;

use crate::{Error, Result};

/// A consumer of the frames of one clip, in order.
///
/// An error returned from [`frame`](Self::frame) ends the run. A sink that is dropped without [`finish`](Self::finish)
/// leaves no file behind.
pub trait FrameSink {
    /// Consumes the next frame. All frames of a clip have the same size.
    fn frame(&mut self, frame: &RgbImage) -> Result<()>;

    /// Flushes pending output and publishes the file under its name.
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

/// Number of columns of a [`sheet`].
const COLUMNS: usize = 8;

/// A PNG contact sheet of clips: a row per clip, with frames evenly spaced over it.
pub fn sheet(clips: &[Vec<RgbImage>]) -> Result<Vec<u8>> {
    let (width, height) = clips.iter().flatten().next().map_or((1, 1), RgbImage::dimensions);
    let columns = clips.iter().map(Vec::len).max().unwrap_or(1).clamp(1, COLUMNS);
    let mut sheet = RgbImage::new(width * columns as u32, height * clips.len().max(1) as u32);
    for (row, frames) in clips.iter().enumerate() {
        for column in 0..columns {
            let index = column * frames.len().saturating_sub(1) / (columns - 1).max(1);
            let Some(frame) = frames.get(index) else { continue };
            let (x, y) = (column as u32 * width, row as u32 * height);
            image::imageops::replace(&mut sheet, frame, i64::from(x), i64::from(y));
        }
    }
    let mut bytes = std::io::Cursor::new(Vec::new());
    sheet
        .write_to(&mut bytes, image::ImageFormat::Png)
        .map_err(|e| Error::Encode { format: "png", reason: e.to_string() })?;
    Ok(bytes.into_inner())
}
