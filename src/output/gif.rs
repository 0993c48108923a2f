//! GIF with one palette for the whole clip.
//!
//! The palette needs every frame, so frames wait, in memory while they are small and then in an unnamed file
//! beside the output, until the last has come.

use std::fmt;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use ::gif::{DisposalMethod, Encoder, EncodingError, Extension, Frame, Repeat};
use tempfile::SpooledTempFile;

use super::metadata::GIF_APPLICATION;
use super::palette::{Drawn, Histogram};
use super::{ClipInfo, Encode, Fault, Metadata};
use crate::Stop;
use crate::media::RgbImage;

/// Bytes of frames that wait in memory.
const IN_MEMORY: usize = 64 << 20;
/// Maximum number of colours; one of 256 is transparent.
const COLORS: usize = 255;

/// A GIF in the making.
pub(super) struct Gif<W> {
    out: W,
    clip: ClipInfo,
    metadata: Metadata,
    frames: SpooledTempFile,
    histogram: Histogram,
}

impl<W: Write> Gif<W> {
    /// Starts a GIF; `folder` is where frames wait.
    // Like the other encoders, which write their header here and so may fail.
    #[allow(clippy::unnecessary_wraps)]
    pub(super) fn new(
        out: W,
        clip: &ClipInfo,
        metadata: &Metadata,
        folder: &Path,
    ) -> Result<Self, Fault> {
        let frames = tempfile::spooled_tempfile_in(IN_MEMORY, folder);
        let histogram = Histogram::new(COLORS);
        Ok(Self { out, clip: *clip, metadata: metadata.clone(), frames, histogram })
    }
}

impl<W> fmt::Debug for Gif<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gif").field("clip", &self.clip).finish_non_exhaustive()
    }
}

impl<W: Write + Send> Encode<W> for Gif<W> {
    const NAME: &'static str = "gif";

    fn frame(&mut self, frame: &RgbImage) -> Result<(), Fault> {
        self.histogram.add(frame.as_raw());
        self.frames.write_all(frame.as_raw())?;
        Ok(())
    }

    fn finish(self, stop: &Stop) -> Result<W, Fault> {
        let Self { out, clip, metadata, mut frames, histogram } = self;
        let (width, height) = (clip.width as usize, clip.height as usize);
        let mut palette = histogram.palette(stop)?;
        let transparent = palette.colors().len() as u8;
        let mut table = palette.colors().concat();
        table.extend([0; 3]);
        let mut encoder = Encoder::new(out, clip.width as u16, clip.height as u16, &table)?;
        encoder.set_repeat(Repeat::Infinite)?;
        if !metadata.parameters.is_empty() {
            let text = metadata.parameters.as_bytes();
            encoder.write_raw_extension(Extension::Comment.into(), &[text])?;
        }
        if !metadata.request_json.is_empty() {
            let text = metadata.request_json.as_bytes();
            encoder.write_raw_extension(Extension::Application.into(), &[GIF_APPLICATION, text])?;
        }
        frames.seek(SeekFrom::Start(0))?;
        let size = 3 * width * height;
        let (mut before, mut now) = (vec![0; size], vec![0; size]);
        let mut shown: Vec<u8> = Vec::new();
        for index in 0..clip.frames {
            stop.check()?;
            frames.read_exact(&mut now)?;
            let drawn = Drawn { frame: &before, indices: &shown };
            let indices = palette.draw(&now, width, (index > 0).then_some(drawn));
            let part = if index == 0 {
                Part { left: 0, top: 0, width, height }
            } else {
                Part::of_changes(&shown, &indices, width)
            };
            let mut frame = part.frame(&indices, width, None);
            if index > 0 {
                // Holes where nothing changes mostly make the frame smaller, sometimes larger.
                let holed = part.frame(&indices, width, Some((&shown, transparent)));
                if holed.buffer.len() < frame.buffer.len() {
                    frame = holed;
                }
            }
            frame.delay = clip.duration(index, 100).min(u32::from(u16::MAX)) as u16;
            encoder.write_lzw_pre_encoded_frame(&frame)?;
            shown = indices;
            std::mem::swap(&mut before, &mut now);
        }
        Ok(encoder.into_inner()?)
    }
}

impl From<EncodingError> for Fault {
    fn from(error: EncodingError) -> Self {
        match error {
            EncodingError::Io(error) => Self::Io(error),
            other => Self::Codec(other.to_string()),
        }
    }
}

/// A rectangle of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

impl Part {
    /// The smallest one that holds all changes; one pixel when there are none.
    fn of_changes(before: &[u8], now: &[u8], width: usize) -> Self {
        let (mut left, mut right, mut top, mut bottom) = (usize::MAX, 0, usize::MAX, 0);
        for (at, _) in before.iter().zip(now).enumerate().filter(|(_, (a, b))| a != b) {
            let (x, y) = (at % width, at / width);
            (left, right) = (left.min(x), right.max(x));
            (top, bottom) = (top.min(y), bottom.max(y));
        }
        if left == usize::MAX {
            return Self { left: 0, top: 0, width: 1, height: 1 };
        }
        Self { left, top, width: right - left + 1, height: bottom - top + 1 }
    }

    /// Compresses this part of an image, with holes where it equals what is already shown.
    fn frame(self, indices: &[u8], width: usize, holes: Option<(&[u8], u8)>) -> Frame<'static> {
        let rows = self.top..self.top + self.height;
        let places =
            rows.flat_map(|y| (self.left..self.left + self.width).map(move |x| y * width + x));
        let buffer: Vec<u8> = places
            .map(|at| match holes {
                Some((shown, transparent)) if shown[at] == indices[at] => transparent,
                _ => indices[at],
            })
            .collect();
        let mut frame = Frame {
            left: self.left as u16,
            top: self.top as u16,
            width: self.width as u16,
            height: self.height as u16,
            transparent: holes.map(|(_, index)| index),
            dispose: DisposalMethod::Keep,
            buffer: buffer.into(),
            ..Frame::default()
        };
        frame.make_lzw_pre_encoded();
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_that_changes_is_written() {
        let before = [0; 12];
        let mut now = before;
        assert_eq!(
            Part::of_changes(&before, &now, 4),
            Part { left: 0, top: 0, width: 1, height: 1 }
        );
        (now[5], now[10]) = (1, 1); // (1, 1) and (2, 2)
        assert_eq!(
            Part::of_changes(&before, &now, 4),
            Part { left: 1, top: 1, width: 2, height: 2 }
        );
    }
}
