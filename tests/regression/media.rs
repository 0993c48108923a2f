//! Images and videos as cameras, phones and editors write them.

use std::fs;
use std::time::{Duration, Instant};

use animatelcm::Stop;
use animatelcm::media::RgbImage;
use animatelcm::media::resize::{Fit, resize};

use crate::support::media::{frames, golden, png, refusal, try_frames};

/// The mean difference of two images of one size.
fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let sum: u64 = a.iter().zip(b.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.len() as f64
}

#[test]
fn images_are_upright_whatever_the_camera_wrote() {
    for ending in ["png", "webp", "jpg"] {
        let upright = &frames(&format!("o1.{ending}"))[0];
        let turned = &frames(&format!("o6.{ending}"))[0];
        assert_eq!(turned.dimensions(), (64, 48), "{ending}");
        // JPEG's blocks lie otherwise in the turned image.
        let most = if ending == "jpg" { 3.0 } else { 0.0 };
        let found = difference(upright, turned);
        assert!(found <= most, "{ending}: {found}");
    }
    // Also in a folder of images.
    let folder = tempfile::tempdir().unwrap();
    for name in ["o1.png", "o6.png"] {
        fs::copy(golden(name), folder.path().join(name)).unwrap();
    }
    let both = try_frames(folder.path()).unwrap();
    assert_eq!(both, [frames("o1.png"), frames("o1.png")].concat());
}

#[test]
fn frames_of_animated_webp_are_cleared_as_they_say() {
    let want: Vec<RgbImage> = (0..4).map(|i| png(&format!("expected{i}.png"))).collect();
    for name in ["pillow_default.webp", "same.gif", "same.png"] {
        assert_eq!(frames(name), want, "{name}");
    }
    // Squares of 20 pixels a side instead of 21.
    for name in ["part_dispose.webp", "part_dispose_opaque.webp"] {
        let got = frames(name);
        assert_eq!(got.len(), 4);
        for (got, want) in got.iter().zip(&want) {
            let differ = got.pixels().zip(want.pixels()).filter(|(a, b)| a != b).count();
            assert_eq!(differ, 41, "{name}");
        }
    }
}

#[test]
fn an_edit_list_hides_frames() {
    let whole = frames("whole.mp4");
    assert_eq!(whole.len(), 16);
    // As ffprobe counts, and ffmpeg decodes.
    assert_eq!(frames("trimmed.mp4"), whole[4..]);
    assert_eq!(frames("fragments.mp4"), whole);
}

#[test]
fn a_movie_is_read_whatever_box_comes_first_or_last() {
    let whole = frames("avc3.mp4");
    assert_eq!(whole.len(), 16);
    for name in [
        "mdat_first_no_ftyp.mov",
        "wide_first_no_ftyp.mov",
        "trailing_garbage.mp4",
        "moov_meta_quicktime_style.mp4",
    ] {
        assert_eq!(frames(name).len(), 16, "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.mov");
    // Offsets in the file do not change where a box only replaces the first.
    let plain = fs::read(golden("whole.mp4")).unwrap();
    for kind in [b"free", b"skip", b"pnot", b"uuid"] {
        let mut bytes = plain.clone();
        bytes[4..8].copy_from_slice(kind);
        fs::write(&path, bytes).unwrap();
        assert_eq!(try_frames(&path).unwrap().len(), 16);
    }
}

#[test]
fn an_image_that_is_cut_short_is_an_error() {
    assert!(refusal(&golden("truncated.jpg")).0.contains("is cut off"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut");
    for name in ["o1.jpg", "o1.png", "o1.webp", "still.bmp", "still.tiff"] {
        let whole = fs::read(golden(name)).unwrap();
        for part in [2, 3, 5, 9] {
            fs::write(&path, &whole[..whole.len() * (part - 1) / part]).unwrap();
            assert!(try_frames(&path).is_err(), "{name}: {part}");
        }
    }
    // What follows the end of a JPEG does not matter, as in photos with a video behind them.
    let mut longer = fs::read(golden("o1.jpg")).unwrap();
    longer.extend(b"and a video");
    fs::write(&path, longer).unwrap();
    assert_eq!(try_frames(&path).unwrap(), frames("o1.jpg"));
}

#[test]
fn a_large_image_is_made_small_in_little_time() {
    let image = RgbImage::from_fn(4000, 3000, |x, y| image::Rgb([x as u8, y as u8, 9]));
    let start = Instant::now();
    let small = resize(&image, 64, 64, Fit::Stretch, &Stop::default()).unwrap();
    assert_eq!(small.dimensions(), (64, 64));
    // Means of the ramps.
    assert!(small.pixels().all(|pixel| pixel[2] == 9));
    // Without optimisation, on a busy machine.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
