//! Images, animations and videos: what can be seen of them.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::media::read::{Media, Selection};
use crate::{Result, Stop};

/// What can be seen of an image, an animation or a video.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Seen {
    kind: &'static str,
    width: u32,
    height: u32,
    /// Number of frames; none of a file that is too long to be read whole.
    frames: Option<usize>,
}

impl Seen {
    /// Looks at a file.
    ///
    /// # Errors
    ///
    /// When it is no image, animation or video that can be read.
    pub(super) fn of(path: &Path, stop: &Stop) -> Result<Self> {
        let media = Media::read("file", path, |_| true, stop)?;
        let one = Selection { count: Some(1), ..Selection::default() };
        let (frames, is_whole) = match media.frames("file", Selection::default(), stop) {
            Ok(frames) => (frames, true),
            Err(_) => (media.frames("file", one, stop)?, false),
        };
        let (width, height) = frames.images.first().map_or((0, 0), image::RgbImage::dimensions);
        let is_video = ["mp4", "m4v", "mov", "y4m"]
            .iter()
            .any(|known| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(known)));
        let kind = match frames.images.len() {
            _ if is_video => "a video",
            1 if is_whole => "an image",
            _ => "an animation",
        };
        Ok(Self { kind, width, height, frames: is_whole.then_some(frames.seen) })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, width, height, frames } = self;
        match frames {
            Some(1) if *kind == "an image" => write!(f, "{kind}, {width}x{height}"),
            Some(frames) => write!(f, "{kind} of {frames} frames, {width}x{height}"),
            None => write!(f, "{kind} of many frames, {width}x{height}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_videos_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let seen = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            Seen::of(&path, &Stop::default()).map(|seen| seen.to_string())
        };
        let y4m = b"YUV4MPEG2 W2 H2 F8:1 C444\nFRAME\n\0\0\0\0\x80\x80\x80\x80\x80\x80\x80\x80";
        assert_eq!(seen("a.y4m", y4m).unwrap(), "a video of 1 frames, 2x2");
        let mut bmp = Vec::new();
        image::RgbImage::new(3, 2)
            .write_to(&mut std::io::Cursor::new(&mut bmp), image::ImageFormat::Bmp)
            .unwrap();
        assert_eq!(seen("a.bmp", &bmp).unwrap(), "an image, 3x2");
        assert!(seen("a.txt", b"text").is_err());
    }
}
