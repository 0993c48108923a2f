//! Pictures and animations that the user gives: what adapters follow.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{
    AnimationDecoder, DynamicImage, Frames, ImageDecoder, ImageError, ImageFormat, ImageReader,
    Limits,
};

use super::RgbImage;
use super::video;
use crate::{Error, Result};

/// The most frames that are read; a clip never has as many.
const MOST_FRAMES: usize = 4096;

/// The most bytes of a video, on disk and of its frames: a gigabyte.
const MOST_BYTES: u64 = 1 << 30;

/// What tells a video.
const VIDEO_HEAD: u64 = 16;

/// What a folder's pictures are told by.
const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "gif"];

/// The files of a picture, an animation, or a folder of pictures, in order.
///
/// Those of a folder are ordered by name, with numbers as numbers: `2.png` before `10.png`. Files of other kinds and
/// hidden ones are passed over.
///
/// # Errors
///
/// When there is no such file, or no picture in the folder. `field` is what the user called it.
pub fn files(field: &'static str, path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let unreadable = |e: std::io::Error| wrong(field, path, e);
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
        return Err(wrong(field, path, format!("no picture in it ({})", EXTENSIONS.join(", "))));
    }
    found.sort_by(|(a, _), (b, _)| natural(a, b));
    Ok(found.into_iter().map(|(_, file)| file).collect())
}

/// The frames of a picture (one), an animation (GIF, WebP, PNG), a video (H.264 in MP4, Y4M), or a folder of pictures.
///
/// Transparency is dropped, as PIL does. Nothing is resized.
///
/// # Errors
///
/// When a file cannot be read or holds something else. `field` is what the user called it.
pub fn frames(field: &'static str, path: &Path) -> Result<Vec<RgbImage>> {
    if !path.is_dir() {
        let unreadable = |e: std::io::Error| wrong(field, path, e);
        let mut head = Vec::new();
        let mut file = File::open(path).map_err(unreadable)?;
        file.by_ref().take(VIDEO_HEAD).read_to_end(&mut head).map_err(unreadable)?;
        return match video::Kind::of(&head) {
            Some(kind) => film(file, kind).map_err(|reason| wrong(field, path, reason)),
            None => animation(path).map_err(|error| picture_error(field, path, error)),
        };
    }
    let files = files(field, path)?;
    if files.len() > MOST_FRAMES {
        let reason = format!("{} pictures, at most {MOST_FRAMES} are read", files.len());
        return Err(wrong(field, path, reason));
    }
    files
        .iter()
        .map(|file| {
            let picture = open(file).and_then(ImageReader::decode);
            Ok(picture.map_err(|error| picture_error(field, file, error))?.to_rgb8())
        })
        .collect()
}

/// All frames of a video.
fn film(mut file: File, kind: video::Kind) -> Result<Vec<RgbImage>, String> {
    let unreadable = |e: std::io::Error| e.to_string();
    let mut bytes = Vec::new();
    file.rewind().map_err(unreadable)?;
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let mut left = MOST_BYTES.checked_sub(bytes.len() as u64).ok_or("is larger than a gigabyte")?;
    let mut frames = Vec::new();
    video::read(kind, &bytes, &mut |frame| {
        let is_room = frames.len() < MOST_FRAMES;
        let room = left.checked_sub(frame.as_raw().len() as u64).filter(|_| is_room);
        left = room.ok_or("is too long")?;
        frames.push(frame);
        Ok(())
    })?;
    if frames.is_empty() { Err("has no frames".into()) } else { Ok(frames) }
}

fn open(path: &Path) -> Result<ImageReader<BufReader<File>>, ImageError> {
    Ok(ImageReader::open(path)?.with_guessed_format()?)
}

/// All frames of a file.
fn animation(path: &Path) -> Result<Vec<RgbImage>, ImageError> {
    let reader = open(path)?;
    let format = reader.format();
    let mut bytes = reader.into_inner();
    bytes.rewind()?;
    match format {
        Some(ImageFormat::Gif) => {
            let mut decoder = GifDecoder::new(bytes)?;
            decoder.set_limits(Limits::default())?;
            all(decoder.into_frames())
        }
        Some(ImageFormat::WebP) => {
            let mut decoder = WebPDecoder::new(bytes)?;
            decoder.set_limits(Limits::default())?;
            if decoder.has_animation() {
                all(decoder.into_frames())
            } else {
                Ok(vec![DynamicImage::from_decoder(decoder)?.to_rgb8()])
            }
        }
        Some(ImageFormat::Png) => {
            let decoder = PngDecoder::with_limits(bytes, Limits::default())?;
            if decoder.is_apng()? {
                all(decoder.apng()?.into_frames())
            } else {
                Ok(vec![DynamicImage::from_decoder(decoder)?.to_rgb8()])
            }
        }
        _ => Ok(vec![open(path)?.decode()?.to_rgb8()]),
    }
}

fn all(frames: Frames<'_>) -> Result<Vec<RgbImage>, ImageError> {
    frames
        .take(MOST_FRAMES + 1)
        .enumerate()
        .map(|(i, frame)| {
            if i == MOST_FRAMES {
                let reason = format!("more than {MOST_FRAMES} frames");
                return Err(ImageError::IoError(std::io::Error::other(reason)));
            }
            Ok(DynamicImage::ImageRgba8(frame?.into_buffer()).to_rgb8())
        })
        .collect()
}

fn picture_error(field: &'static str, path: &Path, error: ImageError) -> Error {
    match error {
        ImageError::IoError(error) => wrong(field, path, error),
        ImageError::Unsupported(_) => {
            wrong(field, path, "is not a GIF, PNG, JPEG, WebP, MP4 or Y4M")
                .with_hint("of another kind of video, give the frames as a folder of pictures")
        }
        error => wrong(field, path, error),
    }
}

fn wrong(field: &'static str, path: &Path, reason: impl std::fmt::Display) -> Error {
    // Decoders may say more than a line.
    let reason = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    Error::request(field, format!("{}: {reason}", path.display()))
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
