//! Frames of a clip: reading, resizing, and the interface to the encoders.

mod animation;
mod background;
mod exif;
mod fault;
mod font;
mod foreign;
mod guard;
pub mod hsv;
pub mod read;
pub mod resize;
mod still;
mod take;
pub mod tensor;
mod timing;
mod video;
mod webp;

pub use background::Background;
pub use image::{Rgb, RgbImage};

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

/// At most `most` of a clip's frames, evenly spaced, side by side in one picture.
pub fn row(frames: &[RgbImage], most: usize) -> RgbImage {
    let (width, height) = frames.first().map_or((0, 0), RgbImage::dimensions);
    let columns = frames.len().min(most);
    let mut row = RgbImage::new(width * columns as u32, height);
    for column in 0..columns {
        let index = column * (frames.len() - 1) / (columns - 1).max(1);
        let Some(frame) = frames.get(index) else { continue };
        image::imageops::replace(&mut row, frame, i64::from(column as u32 * width), 0);
    }
    row
}

/// Number of columns of a [`sheet`].
const COLUMNS: usize = 8;

/// A PNG contact sheet of clips: a row per clip, with frames evenly spaced over it.
pub fn sheet(clips: &[Vec<RgbImage>]) -> Result<Vec<u8>> {
    labelled_sheet(&clips.iter().map(|clip| ("", clip.as_slice())).collect::<Vec<_>>())
}

/// A [`sheet`] with a text above each clip.
pub fn labelled_sheet(clips: &[(&str, &[RgbImage])]) -> Result<Vec<u8>> {
    /// Width of frames for each pixel of the face's own.
    const UNIT: u32 = 64;
    let frames = clips.iter().flat_map(|(_, frames)| frames.iter());
    let (width, height) = frames.clone().next().map_or((1, 1), RgbImage::dimensions);
    let columns = clips.iter().map(|(_, frames)| frames.len()).max().unwrap_or(1);
    let columns = columns.clamp(1, COLUMNS);
    let whole = width * columns as u32;
    let scale = (width / UNIT).clamp(1, 8);
    let labels: Vec<RgbImage> =
        clips.iter().map(|(text, _)| font::label(text, whole, scale)).collect();
    let tall: u32 = labels.iter().map(|label| label.height() + height).sum();
    let mut sheet = RgbImage::new(whole, tall.max(height));
    let mut y = 0;
    for ((_, frames), label) in clips.iter().zip(&labels) {
        image::imageops::replace(&mut sheet, label, 0, y);
        y += i64::from(label.height());
        for column in 0..columns {
            let index = column * frames.len().saturating_sub(1) / (columns - 1).max(1);
            let Some(frame) = frames.get(index) else { continue };
            image::imageops::replace(&mut sheet, frame, i64::from(column as u32 * width), y);
        }
        y += i64::from(height);
    }
    let mut bytes = std::io::Cursor::new(Vec::new());
    sheet
        .write_to(&mut bytes, image::ImageFormat::Png)
        .map_err(|e| Error::Encode { format: "png", reason: e.to_string() })?;
    Ok(bytes.into_inner())
}
