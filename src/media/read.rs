//! Images, animations and videos that the user gives: what adapters follow.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use image::ImageFormat;

use super::fault::Fault;
use super::guard::guarded;
use super::take::{Budget, MOST_FRAMES, Take, Taken};
use super::{RgbImage, animation, foreign, still, video, webp};
use crate::{Result, Stop, files};

/// The most bytes of one file: a gigabyte.
pub(crate) const MOST_BYTES: u64 = 1 << 30;

/// What a folder's images are told by.
const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];

/// Which frames of an animation, a video or a folder are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The first, from 0.
    pub from: usize,
    /// Every so many; at least 1.
    pub every: usize,
    /// How many at most; all if left out. What comes after them is not even read.
    pub count: Option<usize>,
}

impl Default for Selection {
    fn default() -> Self {
        Self { from: 0, every: 1, count: None }
    }
}

impl Selection {
    /// Whether it has the frame of that number, were there no limit to their count.
    pub(super) fn has(&self, number: usize) -> bool {
        number.checked_sub(self.from).is_some_and(|after| after.is_multiple_of(self.every.max(1)))
    }
}

/// What was read of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// The frames that were selected.
    pub images: Vec<RgbImage>,
    /// How many frames were seen: all that the input has, unless [`Selection::count`] was reached.
    pub seen: usize,
}

/// The files of an image, an animation, or a folder of images, in order.
///
/// Those of a folder are ordered by name, with numbers as numbers: `2.png` before `10.png`. Files of other kinds and
/// hidden ones are passed over.
///
/// # Errors
///
/// When there is no such file, or no image in the folder. `field` is what the user called it.
pub fn files(field: &'static str, path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let wrong = |reason: String| Fault::from(reason).error(field, path);
    let unreadable = |e: std::io::Error| wrong(e.to_string());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if EXTENSIONS.contains(&extension.as_str()) && !name.starts_with('.') && file.is_file() {
            found.push((name, file));
        }
    }
    if found.is_empty() {
        return Err(wrong(format!("no image in it ({})", EXTENSIONS.join(", "))));
    }
    found.sort_by(|(a, _), (b, _)| natural(a, b));
    Ok(found.into_iter().map(|(_, file)| file).collect())
}

/// The frames of an image (one), an animation (GIF, WebP, PNG), a video (H.264 in MP4, Y4M), or a folder of images.
///
/// They are upright, as their metadata say. Transparency is dropped, as PIL does. Nothing is resized. What an input
/// would need in memory is known and bounded before it is allocated.
///
/// # Errors
///
/// When a file cannot be read, holds something else, or has more pixels than are read; [`crate::Error::Cancelled`] once
/// `stop` is requested. `field` is what the user called it.
pub fn frames(
    field: &'static str,
    path: &Path,
    selection: Selection,
    stop: &Stop,
) -> Result<Frames> {
    if !path.is_dir() {
        let bytes = bytes(path).map_err(|fault| fault.error(field, path))?;
        let take = Take::new(selection, Budget::new(bytes.len() as u64), stop);
        let taken = file(&bytes, take).and_then(|taken| match taken.seen {
            0 => Err("has no frames".into()),
            _ => Ok(taken),
        });
        let taken = taken.map_err(|fault| fault.error(field, path))?;
        return Ok(Frames { images: taken.frames, seen: taken.seen });
    }
    let files = files(field, path)?;
    let chosen = (0..files.len()).filter(|number| selection.has(*number));
    let chosen: Vec<usize> = chosen.take(selection.count.unwrap_or(usize::MAX)).collect();
    if chosen.len() > MOST_FRAMES {
        let reason = format!("{} images, at most {MOST_FRAMES} are read", chosen.len());
        return Err(Fault::TooLong(reason).error(field, path));
    }
    let length = |at: &usize| std::fs::metadata(&files[*at]).map_or(0, |found| found.len());
    let mut budget = Budget::new(chosen.iter().map(length).sum());
    let mut images = Vec::with_capacity(chosen.len());
    for at in chosen {
        let path = &files[at];
        let first = Selection { count: Some(1), ..Selection::default() };
        let taken = bytes(path).and_then(|bytes| file(&bytes, Take::new(first, budget, stop)));
        let taken = taken.map_err(|fault| fault.error(field, path))?;
        images.extend(taken.frames);
        budget = taken.budget;
    }
    Ok(Frames { images, seen: files.len() })
}

/// The bytes of an ordinary file.
fn bytes(path: &Path) -> Result<Vec<u8>, Fault> {
    files::read(path, MOST_BYTES).map_err(|error| error.to_string().into())
}

/// Takes the frames of a file with these bytes.
fn file(bytes: &[u8], mut take: Take<'_>) -> Result<Taken, Fault> {
    take.check()?;
    guarded(|| {
        if let Some((name, convert)) = foreign::of_brand(bytes) {
            return Err(Fault::Foreign(format!("is {name}, which is not read"), convert));
        }
        if let Some(kind) = video::Kind::of(bytes) {
            return video::read(kind, bytes, &mut take);
        }
        let format = image::guess_format(bytes);
        let bytes = match format {
            Ok(ImageFormat::WebP) => webp::whole(bytes)?,
            _ => bytes,
        };
        match format {
            Ok(ImageFormat::Gif) => animation::gif(bytes, &mut take),
            Ok(ImageFormat::Png) if animation::is_apng(bytes) => animation::apng(bytes, &mut take),
            Ok(ImageFormat::WebP) if webp::is_animated(bytes) => webp::read(bytes, &mut take),
            Ok(
                format @ (ImageFormat::Png
                | ImageFormat::WebP
                | ImageFormat::Jpeg
                | ImageFormat::Bmp
                | ImageFormat::Tiff),
            ) => still::read(format, bytes, &mut take),
            _ => Err(foreign::fault(bytes)),
        }
    })?;
    Ok(take.finish())
}

/// Compares names with the numbers in them taken as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (text, number, rest) = piece(left);
        let (other_text, other_number, other_rest) = piece(right);
        let order = text.cmp(other_text).then(number.cmp(&other_number));
        if order != Ordering::Equal || (rest.is_empty() && other_rest.is_empty()) {
            return order.then(rest.cmp(other_rest)).then(a.cmp(b));
        }
        (left, right) = (rest, other_rest);
    }
}

/// The text before the first number, that number (its length without zeros before it, then its digits), and the rest.
fn piece(name: &str) -> (&str, (usize, &str), &str) {
    let start = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
    let (text, rest) = name.split_at(start);
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, rest) = rest.split_at(end);
    let digits = digits.trim_start_matches('0');
    (text, (digits.len(), digits), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["f10.png", "f2.png", "f1.png", "f02.png", "a.png", "f2b.png", "f"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a.png", "f", "f1.png", "f02.png", "f2.png", "f2b.png", "f10.png"]);
    }
}
