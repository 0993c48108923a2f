//! Videos as input: other people's files against FFmpeg's frames, our own files, and broken ones.

#![cfg(feature = "mp4")]

use std::fs;
use std::path::Path;

use animatelcm::media::RgbImage;
use animatelcm::media::read::{self, Selection};
use animatelcm::output::{self, ClipInfo, Existing, Metadata};
use animatelcm::{Result, Stop};
use image::Rgb;

use crate::support::tiny;

fn frames(field: &'static str, path: &Path) -> Result<Vec<RgbImage>> {
    Ok(read::frames(field, path, Selection::default(), &Stop::default())?.images)
}

/// The mean and the largest difference of two clips' values.
fn difference(a: &[u8], b: &[u8]) -> (f64, u8) {
    assert_eq!(a.len(), b.len());
    let each = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = each.clone().map(u64::from).sum();
    (sum as f64 / a.len() as f64, each.max().unwrap())
}

fn values(frames: &[RgbImage]) -> Vec<u8> {
    frames.iter().flat_map(|frame| frame.as_raw().clone()).collect()
}

#[test]
fn frames_of_other_programs_are_those_that_ffmpeg_decodes() {
    let want = tiny::tensors(&["video/frames.safetensors"]);
    // FFmpeg rounds in fixed point.
    for (name, count, size) in
        [("plain.mp4", 7, (64, 48)), ("untagged.mp4", 3, (66, 50)), ("clip.y4m", 3, (34, 26))]
    {
        let got = frames("control", &tiny::path(&format!("video/{name}"))).unwrap();
        assert_eq!((got.len(), got[0].dimensions()), (count, size), "{name}");
        let want = want[name].flatten_all().unwrap().to_vec1::<u8>().unwrap();
        let (mean, largest) = difference(&values(&got), &want);
        assert!(mean < 0.1 && largest <= 1, "{name}: {mean} {largest}");
        // Another order of the frames would show.
        let turned: Vec<RgbImage> = got.into_iter().rev().collect();
        assert!(difference(&values(&turned), &want).0 > 10.0, "{name}");
    }
}

/// Three frames of even size, as H.264 has them, with a ramp and a moving bar.
fn clip() -> Vec<RgbImage> {
    let frame = |i: u32| {
        RgbImage::from_fn(38, 24, |x, y| {
            if (i * 9..i * 9 + 8).contains(&x) {
                Rgb([220, 50, 30])
            } else {
                Rgb([40, 6 * x as u8, 9 * y as u8])
            }
        })
    };
    (0..3).map(frame).collect()
}

fn write(path: &Path) {
    let info = ClipInfo { width: 38, height: 24, frames: 3, fps: 8.0 };
    let mut sink =
        output::open(path, &info, &Metadata::default(), Existing::Refuse, &Stop::default())
            .unwrap();
    for frame in clip() {
        sink.frame(&frame).unwrap();
    }
    sink.finish().unwrap();
}

#[test]
fn our_own_clips_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    // Rounding to YCbCr; and H.264 with a quarter of the chroma.
    for (name, mean, largest) in [("clip.y4m", 0.7, 3), ("clip.mp4", 6.0, 100)] {
        let path = folder.path().join(name);
        write(&path);
        let got = frames("control", &path).unwrap();
        assert_eq!((got.len(), got[0].dimensions()), (3, (38, 24)), "{name}");
        let found = difference(&values(&got), &values(&clip()));
        assert!(found.0 < mean && found.1 <= largest, "{name}: {found:?}");
    }
}

#[test]
fn broken_videos_are_errors_of_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken");
    for name in ["plain.mp4", "clip.y4m"] {
        let whole = fs::read(tiny::path(&format!("video/{name}"))).unwrap();
        // Cut anywhere: an error, or what frames are left. A byte changed anywhere: anything but a panic.
        for at in (0..whole.len()).step_by(37) {
            fs::write(&path, &whole[..at]).unwrap();
            let cut = frames("control", &path);
            let is_ok = cut.as_ref().map_or(true, |frames| frames.len() <= 7);
            assert!(is_ok, "{name} cut at {at}");
            let mut changed = whole.clone();
            changed[at] ^= 0xa5;
            fs::write(&path, &changed).unwrap();
            for error in [cut, frames("control", &path)].into_iter().filter_map(Result::err) {
                assert_eq!(error.to_string().lines().count(), 1, "{name} {at}: {error}");
                assert_eq!(error.kind().exit_code(), 2);
            }
        }
    }
    for (text, reason) in [
        ("YUV4MPEG2 W8 H8", "does not end"),
        ("YUV4MPEG2 W8\n", "no width or height"),
        ("YUV4MPEG2 W8 H-8\n", "`H-8` is not a size"),
        ("YUV4MPEG2 W8 H99999999999\n", "is not a size"),
        ("YUV4MPEG2 W8 H8 C420p10\n", "`420p10` are not read"),
        ("YUV4MPEG2 W8 H8 It\n", "is interlaced"),
        ("YUV4MPEG2 W65535 H65535\nFRAME\n12345", "ends within a frame"),
        ("YUV4MPEG2 W8 H8\nFRAMES\n", "does not begin with FRAME"),
        ("YUV4MPEG2 W8 H8\n", "has no frames"),
    ] {
        fs::write(&path, text).unwrap();
        let error = frames("control", &path).unwrap_err().to_string();
        assert!(error.contains(reason), "{text:?}: {error}");
    }
}
