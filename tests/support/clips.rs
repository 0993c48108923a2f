//! Small clips, written, and how they differ.

use std::fs;
use std::path::{Path, PathBuf};

use animatelcm::media::RgbImage;
use animatelcm::output::{self, ClipInfo, Existing, Metadata};
use animatelcm::{Result, Stop};
use image::Rgb;

/// One output of each format that is a single file.
pub(crate) const FILES: [&str; 5] = ["clip.gif", "clip.webp", "clip.png", "clip.mp4", "clip.y4m"];

pub(crate) fn info(width: u32, height: u32, frames: usize, fps: f64) -> ClipInfo {
    ClipInfo { width, height, frames, fps }
}

/// A soft background with a square that moves over it.
pub(crate) fn frames(clip: &ClipInfo) -> Vec<RgbImage> {
    (0..clip.frames)
        .map(|index| {
            let left = index as u32 * 3 % clip.width;
            RgbImage::from_fn(clip.width, clip.height, |x, y| {
                if (left..left + clip.width / 4).contains(&x) && y > clip.height / 2 {
                    Rgb([230, 40, (index * 10) as u8])
                } else {
                    Rgb([
                        (x * 200 / clip.width) as u8 + 20,
                        (y * 200 / clip.height) as u8 + 20,
                        ((x + y) * 100 / (clip.width + clip.height)) as u8 + 60,
                    ])
                }
            })
        })
        .collect()
}

pub(crate) fn texts() -> Metadata {
    Metadata {
        request_json: r#"{"prompt":"a \"cat\" 猫 <&>\n","seed":42}"#.into(),
        parameters: "a cat, 猫 🐈 <&>\r\nNegative prompt: dog\nSteps: 4, Sampler: LCM".into(),
    }
}

pub(crate) fn write(
    path: &Path,
    clip: &ClipInfo,
    metadata: &Metadata,
    frames: &[RgbImage],
) -> Result<()> {
    output::check(path, Existing::Refuse)?;
    let mut sink = output::open(path, clip, metadata, Existing::Refuse, &Stop::default())?;
    for frame in frames {
        sink.frame(frame)?;
    }
    sink.finish()
}

/// Writes a clip and returns its bytes.
pub(crate) fn encode(name: &str, clip: &ClipInfo, metadata: &Metadata) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    write(&path, clip, metadata, &frames(clip)).unwrap();
    assert_eq!(entries(folder.path()).len(), 1, "{name} left something behind");
    fs::read(&path).unwrap()
}

pub(crate) fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Decibels; the more the better.
pub(crate) fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let square =
        |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)) * (f64::from(*a) - f64::from(*b));
    let error: f64 = a.as_raw().iter().zip(b.as_raw()).map(square).sum();
    10.0 * (255.0 * 255.0 * a.as_raw().len() as f64 / error.max(1e-9)).log10()
}

/// The mean colour of eight by eight pixels: what is seen of a dithered image from afar.
pub(crate) fn coarse(image: &RgbImage) -> RgbImage {
    RgbImage::from_fn(image.width() / 8, image.height() / 8, |x, y| {
        let mut sum = [0_u32; 3];
        for (dx, dy) in (0..64).map(|i| (i % 8, i / 8)) {
            let pixel = image.get_pixel(8 * x + dx, 8 * y + dy);
            (0..3).for_each(|c| sum[c] += u32::from(pixel[c]));
        }
        Rgb(sum.map(|sum| (sum / 64) as u8))
    })
}
