//! A clip and the same clip made again: identical, or how they differ.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::media::RgbImage;
use crate::media::read::{Frames, Selection, frames};
use crate::{Result, Stop, files};

/// How alike two clips are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Likeness {
    /// The same bytes.
    Identical,
    /// The same frames in files of other bytes: other metadata, or another encoder.
    SameFrames,
    /// Other frames of the same number and size.
    Differs {
        /// Share of the pixels that differ, 0 to 1.
        pixels: f64,
        /// The largest difference of a channel, of 255.
        most: u8,
    },
    /// Another number or size of frames.
    OtherShape,
}

impl fmt::Display for Likeness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identical => f.write_str("identical"),
            Self::SameFrames => f.write_str("the same frames, in a file of other bytes"),
            Self::Differs { pixels, most } => {
                write!(
                    f,
                    "differs in {:.2} % of the pixels, by at most {most} of 255",
                    pixels * 100.0
                )
            }
            Self::OtherShape => f.write_str("has another number or size of frames"),
        }
    }
}

/// Compares two clips. `frame` is the one of `is` that `was` shows, where `was` is a single frame of a clip.
///
/// # Errors
///
/// When one cannot be read, or `stop` is requested.
pub fn compare(was: &Path, is: &Path, frame: Option<usize>, stop: &Stop) -> Result<Likeness> {
    let bytes = |path: &Path| files::sha256(path, |_| Ok(stop.check()?));
    if bytes(was)? == bytes(is)? {
        return Ok(Likeness::Identical);
    }
    let read = |path: &Path| -> Result<Vec<RgbImage>> {
        let Frames { images, .. } = frames("clip", path, Selection::default(), stop)?;
        Ok(images)
    };
    let (was, mut is) = (read(was)?, read(is)?);
    if let (1, Some(frame)) = (was.len(), frame)
        && frame < is.len()
    {
        is = vec![is.swap_remove(frame)];
    }
    Ok(between(&was, &is))
}

fn between(was: &[RgbImage], is: &[RgbImage]) -> Likeness {
    let is_same_shape = was.len() == is.len()
        && was.iter().zip(is).all(|(was, is)| was.dimensions() == is.dimensions());
    if !is_same_shape {
        return Likeness::OtherShape;
    }
    let (mut all, mut differing, mut most) = (0_u64, 0_u64, 0);
    for (was, is) in was.iter().zip(is) {
        for (was, is) in was.pixels().zip(is.pixels()) {
            let by = was.0.iter().zip(is.0).map(|(was, is)| was.abs_diff(is)).max().unwrap_or(0);
            all += 1;
            differing += u64::from(by > 0);
            most = most.max(by);
        }
    }
    match differing {
        0 => Likeness::SameFrames,
        _ => Likeness::Differs { pixels: differing as f64 / all as f64, most },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_counted_by_pixel() {
        let black = RgbImage::new(2, 2);
        let mut other = black.clone();
        other.put_pixel(0, 1, image::Rgb([0, 15, 3]));
        assert_eq!(
            between(std::slice::from_ref(&black), std::slice::from_ref(&black)),
            Likeness::SameFrames
        );
        let found = between(&[black.clone(), black.clone()], &[black.clone(), other]);
        assert_eq!(found, Likeness::Differs { pixels: 0.125, most: 15 });
        assert_eq!(found.to_string(), "differs in 12.50 % of the pixels, by at most 15 of 255");
        assert_eq!(between(&[black], &[RgbImage::new(2, 1)]), Likeness::OtherShape);
    }
}
