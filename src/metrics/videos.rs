//! Real videos of a folder.

use std::path::{Path, PathBuf};

use crate::media::RgbImage;
use crate::media::read::{self, Selection};
use crate::{Error, Result, Stop};

/// Endings of files that are a clip each.
const CLIPS: [&str; 7] = ["mp4", "m4v", "mov", "y4m", "gif", "webp", "apng"];
/// Endings of images, a folder of which is a clip.
const IMAGES: [&str; 6] = ["png", "jpg", "jpeg", "bmp", "tif", "tiff"];
/// Endings of videos that are not read.
const FOREIGN: [&str; 5] = ["avi", "mkv", "webm", "mpg", "mpeg"];
/// The deepest folder that is looked into.
const DEEPEST: usize = 16;

/// The clips of a folder and of those in it, sorted: videos, animations, and folders of images.
///
/// # Errors
///
/// A folder that cannot be read, or without clips.
pub fn find(field: &'static str, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Found::default();
    found.look(field, folder, 0)?;
    if found.clips.is_empty() {
        let error = Error::request(field, format!("{}: has no clips", folder.display()));
        let all = CLIPS.join(", ");
        return Err(error.with_hint(if found.foreign > 0 {
            format!(
                "{} videos are of kinds that are not read; ffmpeg makes .mp4 of them",
                found.foreign
            )
        } else {
            format!("a clip is a file that ends in {all}, or a folder of images")
        }));
    }
    found.clips.sort();
    Ok(found.clips)
}

#[derive(Default)]
struct Found {
    clips: Vec<PathBuf>,
    foreign: usize,
}

impl Found {
    fn look(&mut self, field: &'static str, folder: &Path, depth: usize) -> Result<()> {
        let unreadable = |error: std::io::Error| Error::unreadable(field, folder, &error);
        let mut has_images = false;
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            if path.is_dir() {
                if depth < DEEPEST {
                    self.look(field, &path, depth + 1)?;
                }
                continue;
            }
            let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            let ends_in = |endings: &[&str]| endings.contains(&ending.as_str());
            if ends_in(&CLIPS) {
                self.clips.push(path);
            } else {
                has_images |= ends_in(&IMAGES);
                self.foreign += usize::from(ends_in(&FOREIGN));
            }
        }
        if has_images {
            self.clips.push(folder.to_path_buf());
        }
        Ok(())
    }
}

/// The first `count` of a clip's frames, taking each `every`-th.
///
/// # Errors
///
/// A file that cannot be read, or fewer frames; a requested `stop`.
pub fn frames(
    field: &'static str,
    clip: &Path,
    (count, every): (usize, usize),
    stop: &Stop,
) -> Result<Vec<RgbImage>> {
    let selection = Selection { from: 0, every, count: Some(count) };
    let frames = read::frames(field, clip, selection, stop)?.images;
    if frames.len() < count {
        let reason = format!("{}: has {} of {count} frames", clip.display(), frames.len());
        return Err(Error::request(field, reason));
    }
    Ok(frames)
}

/// The largest centred part of a frame with the shape of `size`, width and height.
pub fn cropped(frame: &RgbImage, size: (usize, usize)) -> RgbImage {
    let (width, height) = (u64::from(frame.width()), u64::from(frame.height()));
    let (across, down) = (size.0.max(1) as u64, size.1.max(1) as u64);
    // Rounded to the nearest pixel.
    let other = |side: u64, over: u64, under: u64| (2 * side * over + under) / (2 * under);
    let (w, h) = if width * down > height * across {
        (other(height, across, down).clamp(1, width.max(1)), height)
    } else {
        (width, other(width, down, across).clamp(1, height.max(1)))
    };
    let (x, y) = ((width - w.min(width)) / 2, (height - h.min(height)) / 2);
    image::imageops::crop_imm(frame, x as u32, y as u32, w as u32, h as u32).to_image()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_are_found_at_any_depth_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        ["b/2.mp4", "b/1.MP4", "a/frames/1.png", "a/frames/2.png", "c.gif", "notes.txt", ".x.mp4"]
            .into_iter()
            .for_each(write);
        let found = find("fvd", folder.path()).unwrap();
        let names: Vec<_> =
            found.iter().map(|path| path.strip_prefix(folder.path()).unwrap()).collect();
        let expected = ["a/frames", "b/1.MP4", "b/2.mp4", "c.gif"].map(Path::new);
        assert_eq!(names, expected);
    }

    #[test]
    fn the_centre_of_a_frame_has_the_shape_of_the_clips() {
        let frame = RgbImage::from_fn(320, 240, |x, y| image::Rgb([x as u8, y as u8, 0]));
        let square = cropped(&frame, (512, 512));
        assert_eq!((square.dimensions(), square.get_pixel(0, 0)[0]), ((240, 240), 40));
        let wide = cropped(&frame, (512, 256));
        assert_eq!((wide.dimensions(), wide.get_pixel(0, 0)[1]), ((320, 160), 40));
        assert_eq!(cropped(&frame, (64, 48)), frame);
        assert_eq!(cropped(&RgbImage::new(1, 9), (9, 1)).dimensions(), (1, 1));
    }

    #[test]
    fn a_folder_without_clips_says_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let hint = || find("fvd", folder.path()).unwrap_err().hint().unwrap().into_owned();
        assert!(hint().contains("mp4"));
        std::fs::write(folder.path().join("v_Archery_g01_c01.avi"), "").unwrap();
        assert!(hint().contains("ffmpeg"));
        assert!(find("fvd", &folder.path().join("none")).is_err());
    }
}
