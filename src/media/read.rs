//! Pictures and animations that the user gives: what adapters follow.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};

use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::imageops::{self, FilterType};
use image::{
    AnimationDecoder, DynamicImage, Frames, ImageDecoder, ImageError, ImageFormat, ImageReader,
    Limits,
};
use serde::{Deserialize, Serialize};

use super::RgbImage;
use crate::{Error, Result};

/// The most frames that are read; a clip never has as many.
const MOST_FRAMES: usize = 4096;

/// What a folder's pictures are told by.
const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "gif"];

/// How a picture comes to another size. Pixels are weighted by Lanczos' window of three lobes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// All of it, whatever becomes of its proportions, as in diffusers.
    #[default]
    Stretch,
    /// Its middle, with proportions kept.
    Crop,
}

impl std::str::FromStr for Fit {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "stretch" => Ok(Self::Stretch),
            "crop" => Ok(Self::Crop),
            _ => Err(Error::request("fit", format!("`{name}` is neither `stretch` nor `crop`"))),
        }
    }
}

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

/// The frames of a picture (one), an animation (GIF, WebP, PNG), or a folder of pictures.
///
/// Transparency is dropped, as PIL does. Nothing is resized.
///
/// # Errors
///
/// When a file cannot be read or holds something else. `field` is what the user called it.
pub fn frames(field: &'static str, path: &Path) -> Result<Vec<RgbImage>> {
    if !path.is_dir() {
        return animation(path).map_err(|error| picture_error(field, path, error));
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

/// A picture at another size.
pub fn resize(picture: &RgbImage, width: u32, height: u32, fit: Fit) -> RgbImage {
    let (from_width, from_height) = picture.dimensions();
    if (from_width, from_height) == (width, height) || from_width == 0 || from_height == 0 {
        return picture.clone();
    }
    let whole = (0, 0, from_width, from_height);
    let (x, y, part_width, part_height) = match fit {
        Fit::Stretch => whole,
        Fit::Crop => {
            // The largest part of the wanted proportions, in the middle.
            let scale = (f64::from(from_width) / f64::from(width))
                .min(f64::from(from_height) / f64::from(height));
            let part =
                |side: u32, limit: u32| ((f64::from(side) * scale).round() as u32).clamp(1, limit);
            let (part_width, part_height) = (part(width, from_width), part(height, from_height));
            let (x, y) = ((from_width - part_width) / 2, (from_height - part_height) / 2);
            (x, y, part_width, part_height)
        }
    };
    let part = imageops::crop_imm(picture, x, y, part_width, part_height);
    imageops::resize(&*part, width, height, FilterType::Lanczos3)
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
        ImageError::Unsupported(_) => wrong(field, path, "is not a GIF, PNG, JPEG or WebP")
            .with_hint("of a video, give the frames as a folder of pictures"),
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
    use image::Rgb;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["f10.png", "f2.png", "f1.png", "f02.png", "a.png", "f2b.png", "f"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a.png", "f", "f1.png", "f02.png", "f2.png", "f2b.png", "f10.png"]);
    }

    #[test]
    fn cropping_keeps_proportions_and_stretching_does_not() {
        // A white square in the middle of a wide black picture.
        let picture =
            RgbImage::from_fn(32, 16, |x, _| Rgb([if (8..24).contains(&x) { 255 } else { 0 }; 3]));
        let cropped = resize(&picture, 8, 8, Fit::Crop);
        assert!(cropped.pixels().all(|pixel| pixel[0] > 250), "{cropped:?}");
        let stretched = resize(&picture, 8, 8, Fit::Stretch);
        assert!(stretched.get_pixel(0, 4)[0] < 5 && stretched.get_pixel(4, 4)[0] > 250);
        assert_eq!(resize(&picture, 32, 16, Fit::Crop), picture);
    }
}
