//! Images and videos of every format: what is read, what is refused, which frames are taken.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use animatelcm::media::RgbImage;
use animatelcm::media::read::{self, Selection};
use animatelcm::media::resize::{Fit, resize};
use animatelcm::{Error, Stop};

use crate::support::media::{frames, gif, golden, png, refusal, try_frames};
use crate::support::tiny;

#[test]
fn every_orientation_is_undone_as_pil_does() {
    // A JPEG's EXIF ends in the orientation; its place is found by the tag.
    let whole = fs::read(golden("o6.jpg")).unwrap();
    let tag = whole.windows(4).position(|bytes| bytes == [1, 0x12, 0, 3]);
    let (at, is_big) = tag.map_or_else(
        || (whole.windows(4).position(|bytes| bytes == [0x12, 1, 3, 0]).unwrap() + 8, false),
        |at| (at + 9, true),
    );
    assert_eq!(whole[at], 6, "{is_big}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jpg");
    let stored = image::open(golden("o6.jpg")).unwrap().to_rgb8();
    let (width, height) = stored.dimensions();
    for orientation in 1..=8u8 {
        let mut bytes = whole.clone();
        bytes[at] = orientation;
        fs::write(&path, &bytes).unwrap();
        let got = &try_frames(&path).unwrap()[0];
        // Where a pixel of the upright image is stored, from EXIF's definition.
        let (right, bottom) = (width - 1, height - 1);
        let place = |x: u32, y: u32| match orientation {
            1 => (x, y),
            2 => (right - x, y),
            3 => (right - x, bottom - y),
            4 => (x, bottom - y),
            5 => (y, x),
            6 => (y, bottom - x),
            7 => (right - y, bottom - x),
            _ => (right - y, x),
        };
        let is_turned = orientation > 4;
        let size = if is_turned { (height, width) } else { (width, height) };
        assert_eq!(got.dimensions(), size, "{orientation}");
        for (x, y, pixel) in got.enumerate_pixels() {
            let (x, y) = place(x, y);
            assert_eq!(pixel, stored.get_pixel(x, y), "{orientation}");
        }
    }
}

#[test]
fn every_way_to_dispose_and_to_blend_is_that_of_libwebp() {
    let (got, want) = (frames("combinations.webp"), png("combinations.png"));
    assert_eq!(got.len(), 32);
    let got: Vec<u8> = got.iter().flat_map(|frame| frame.as_raw().clone()).collect();
    let wrong = got.chunks(360).zip(want.as_raw().chunks(360)).position(|(a, b)| a != b);
    assert_eq!(wrong, None);
    assert_eq!(got.len(), want.as_raw().len());
}

/// `trimmed.mp4` with other entries of its edit list: durations in units of the movie, first times in those of the
/// track.
fn edited(entry: (u32, i32)) -> Vec<u8> {
    let mut bytes = fs::read(golden("trimmed.mp4")).unwrap();
    let at = bytes.windows(4).position(|kind| kind == b"elst").unwrap() + 12;
    assert_eq!(bytes[at - 4..at], [0, 0, 0, 1]);
    bytes[at..at + 4].copy_from_slice(&entry.0.to_be_bytes());
    bytes[at + 4..at + 8].copy_from_slice(&entry.1.to_be_bytes());
    bytes
}

#[test]
fn edit_lists_of_any_range_show_what_lies_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.mp4");
    let bytes = fs::read(golden("trimmed.mp4")).unwrap();
    let number = |kind: &[u8], at: usize| {
        let start = bytes.windows(4).position(|bytes| bytes == kind).unwrap() + 4 + at;
        u32::from_be_bytes(bytes[start..start + 4].try_into().unwrap())
    };
    let (movie, each) = (number(b"mvhd", 12), number(b"stts", 12));
    let first_time = number(b"elst", 12) as i32 - 4 * each as i32;
    let whole = frames("whole.mp4");
    let frame_length = movie * each / number(b"mdhd", 12);
    let after = |frames: i32| first_time + frames * each as i32;
    for (entry, want) in [
        ((3 * frame_length, after(2)), 2..5),
        ((frame_length, after(15)), 15..16),
        // Without a length: until the end. Beyond the end, or nothing at all: as if there were none.
        ((0, after(10)), 10..16),
        ((5, after(99)), 0..16),
        ((1000, -1), 0..16),
        ((u32::MAX, i32::MAX), 0..16),
    ] {
        fs::write(&path, edited(entry)).unwrap();
        assert_eq!(try_frames(&path).unwrap(), whole[want], "{entry:?}");
    }
}

#[test]
fn selections_take_what_they_say_of_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("many");
    fs::create_dir(&place).unwrap();
    for (i, frame) in frames("whole.mp4").iter().enumerate() {
        frame.save(place.join(format!("{i}.png"))).unwrap();
    }
    let select = |path: &Path, from, every, count| {
        let selection = Selection { from, every, count };
        read::frames("control", path, selection, &Stop::default()).unwrap()
    };
    for path in [
        golden("whole.mp4"),
        place,
        tiny::path("video/clip.y4m"),
        golden("same.gif"),
        golden("same.png"),
        golden("pillow_default.webp"),
    ] {
        let all = try_frames(&path).unwrap();
        for (from, every, count) in [(0, 1, Some(2)), (1, 2, None), (2, 1, Some(9)), (99, 1, None)]
        {
            let got = select(&path, from, every, count);
            let most = count.unwrap_or(usize::MAX);
            let want: Vec<_> = all.iter().skip(from).step_by(every).take(most).cloned().collect();
            assert_eq!(got.images, want, "{} {from} {every} {count:?}", path.display());
            // Where the count was not reached, all was seen.
            if got.images.len() < most {
                assert_eq!(got.seen, all.len(), "{}", path.display());
            }
        }
    }
}

#[test]
fn what_is_not_read_is_called_by_name_and_can_be_converted() {
    for (name, reason, output) in [
        ("mpeg4part2.mp4", "holds MPEG-4 part 2,", "-h264.mp4"),
        ("mpeg2.mp4", "holds MPEG-2,", "-h264.mp4"),
        ("mjpeg.mov", "holds Motion JPEG,", "-h264.mp4"),
        ("prores.mov", "holds ProRes,", "-h264.mp4"),
        ("hevc.mp4", "holds HEVC (H.265),", "-h264.mp4"),
        ("h264_lossless_qp0.mp4", "High 4:4:4 Predictive (lossless)", "-h264.mp4"),
        ("ten_bits.mp4", "High 10 (4:2:0, 10 bits)", "-h264.mp4"),
        ("vp8.webm", "is a Matroska or WebM,", "-h264.mp4"),
        ("picture.avif", "is an AVIF,", ".png"),
        ("deep.png", "is an APNG with 16 bits,", "-8bit.png"),
    ] {
        let (text, hint) = refusal(&golden(name));
        assert!(text.contains(reason), "{text}");
        assert!(hint.starts_with("convert it: ffmpeg -i ") && hint.ends_with(output), "{hint}");
    }
    let (text, hint) = refusal(&golden("encrypted.mp4"));
    assert!(text.contains("is encrypted") && hint.is_empty(), "{text} {hint}");
}

#[test]
fn bmp_and_tiff_are_images() {
    let want = frames("o1.png");
    for name in ["still.bmp", "still.tiff", "turned.tiff"] {
        assert_eq!(frames(name), want, "{name}");
    }
}

#[test]
fn a_stop_ends_every_reading_and_resizing() {
    let stop = Stop::default();
    stop.request();
    for name in ["whole.mp4", "same.gif", "same.png", "pillow_default.webp", "o1.png"] {
        let error = read::frames("control", &golden(name), Selection::default(), &stop);
        assert!(matches!(error, Err(Error::Cancelled)), "{name}");
    }
    let image = RgbImage::new(64, 64);
    assert!(matches!(resize(&image, 32, 32, Fit::Crop, &stop), Err(Error::Cancelled)));

    // While it reads: the GIF alone takes far longer.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.gif");
    fs::write(&path, gif(600, 40_000)).unwrap();
    let stop = Stop::default();
    let other = stop.clone();
    let thread = std::thread::spawn(move || {
        let late = Selection { from: 39_999, every: 1, count: None };
        read::frames("control", &path, late, &other)
    });
    std::thread::sleep(Duration::from_millis(50));
    stop.request();
    let start = Instant::now();
    assert!(matches!(thread.join().unwrap(), Err(Error::Cancelled)));
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn every_depth_and_transparency_is_read_and_put_on_a_colour_as_pillow_does() {
    let color = Some("#c81e5a".parse().unwrap());
    for name in [
        "rgba.png",
        "rgba.webp",
        "rgba.tiff",
        "la.png",
        "palette.png",
        "palette.gif",
        "none.png",
        "bit.png",
        "grey16.png",
        "la16.png",
        "rgba16.png",
    ] {
        let path = golden(&format!("alpha-{name}"));
        let want = png(&format!("alpha-{}-read.png", name.replace('.', "-")));
        let media = read::Media::read("image", &path, |_| true, &Stop::default()).unwrap();
        for (left, background) in [(0, None), (13, color)] {
            let read = media.on(background);
            let got = read.frames("image", Selection::default(), &Stop::default()).unwrap();
            let [got] = got.images.as_slice() else { panic!("{name}") };
            assert_eq!(got.dimensions(), (13, 12), "{name}");
            // Clear pixels of a GIF are black here, in Pillow they have a colour of the palette.
            if background.is_none() && name.ends_with(".gif") {
                continue;
            }
            let want = image::imageops::crop_imm(&want, left, 0, 13, 12).to_image();
            assert_eq!(*got, want, "{name} {background:?}");
        }
    }
}

#[test]
fn animations_are_put_on_a_colour_where_they_are_clear() {
    let red = Some("red".parse().unwrap());
    for name in ["combinations.webp", "clear-apng.png"] {
        let media = read::Media::read("video", &golden(name), |_| true, &Stop::default()).unwrap();
        let read = |color| {
            media.on(color).frames("video", Selection::default(), &Stop::default()).unwrap()
        };
        let (dropped, on) = (read(None), read(red));
        assert_eq!(dropped.images.len(), on.images.len(), "{name}");
        let is_red = |frame: &RgbImage| frame.pixels().any(|pixel| pixel.0 == [255, 0, 0]);
        assert!(on.images.iter().any(is_red), "{name}");
        assert!(!dropped.images.iter().any(is_red), "{name}");
        let numbers = media.on(red).frames_at("video", &[1], &Stop::default()).unwrap();
        assert_eq!(numbers.images, on.images[1..2], "{name}");
    }
}
