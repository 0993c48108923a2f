//! Images and videos as people have them: cameras', phones', trimmed, of other formats, broken, and made to hurt.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use animatelcm::media::RgbImage;
use animatelcm::media::read::{self, Selection};
use animatelcm::media::resize::{Fit, resize};
use animatelcm::{Error, Result, Stop};

use crate::support::tiny;

fn golden(name: &str) -> PathBuf {
    tiny::path(&format!("media/{name}"))
}

fn try_frames(path: &Path) -> Result<Vec<RgbImage>> {
    Ok(read::frames("control", path, Selection::default(), &Stop::default())?.images)
}

fn frames(name: &str) -> Vec<RgbImage> {
    try_frames(&golden(name)).unwrap()
}

fn png(name: &str) -> RgbImage {
    image::open(golden(name)).unwrap().to_rgb8()
}

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
fn every_way_to_dispose_and_to_blend_is_that_of_libwebp() {
    let (got, want) = (frames("combinations.webp"), png("combinations.png"));
    assert_eq!(got.len(), 32);
    let got: Vec<u8> = got.iter().flat_map(|frame| frame.as_raw().clone()).collect();
    let wrong = got.chunks(360).zip(want.as_raw().chunks(360)).position(|(a, b)| a != b);
    assert_eq!(wrong, None);
    assert_eq!(got.len(), want.as_raw().len());
}

#[test]
fn an_edit_list_hides_frames() {
    let whole = frames("whole.mp4");
    assert_eq!(whole.len(), 16);
    // As ffprobe counts, and ffmpeg decodes.
    assert_eq!(frames("trimmed.mp4"), whole[4..]);
    assert_eq!(frames("fragments.mp4"), whole);
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

/// What a refusal says: its reason and its hint.
fn refusal(path: &Path) -> (String, String) {
    let error = try_frames(path).unwrap_err();
    assert_eq!(error.kind().exit_code(), 2);
    let (text, hint) = (error.to_string(), error.hint().unwrap_or_default().into_owned());
    assert!(text.starts_with("control: ") && text.lines().count() == 1, "{text}");
    assert!(text.contains(&*path.file_name().unwrap().to_string_lossy()), "{text}");
    (text, hint)
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
fn tables_that_lie_are_refused_before_memory_is_taken() {
    for (name, reason) in [
        ("mp4-sample-bomb.mp4", "declares 4294967295 frames"),
        ("mp4-stco-empty.mp4", "`stco`"),
        ("mp4-stsc-empty.mp4", "`stsc`"),
        ("mp4-loop.mp4", ""),
        ("png-65535.png", "65535x65535 pixels need 16.0 GiB"),
        ("apng-canvas.png", "pixels need"),
    ] {
        let start = Instant::now();
        let (text, _) = refusal(&golden(name));
        assert!(text.contains(reason), "{text}");
        assert!(start.elapsed() < Duration::from_secs(1), "{name}");
    }
}

/// `plain.mp4` with the contents of a table replaced by zeros of its own length, or its count by another.
fn damaged(kind: &[u8], count: u32) -> Vec<u8> {
    let mut bytes = fs::read(tiny::path("video/plain.mp4")).unwrap();
    let at = bytes.windows(4).position(|found| found == kind).unwrap() + 8;
    let at = if kind == b"stsz" { at + 4 } else { at };
    bytes[at..at + 4].copy_from_slice(&count.to_be_bytes());
    bytes
}

#[test]
fn counts_of_every_table_may_be_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.mp4");
    for kind in [b"stsz", b"stco", b"stsc", b"stts", b"ctts"] {
        for count in [0, 1, 2, 0xffff, u32::MAX] {
            fs::write(&path, damaged(kind, count)).unwrap();
            let got = try_frames(&path);
            assert!(got.as_ref().map_or(true, |frames| frames.len() <= 7), "{count}");
            // Times are no reason to refuse; places and sizes are.
            if count == 0 && kind != b"ctts" {
                assert!(got.is_err(), "{}", kind.escape_ascii());
            }
        }
    }
}

/// A PNG chunk; its checksum is right.
fn chunk(kind: &[u8], body: &[u8]) -> Vec<u8> {
    let mut sum = u32::MAX;
    for byte in kind.iter().chain(body) {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    let length = (body.len() as u32).to_be_bytes();
    [&length[..], kind, body, &(!sum).to_be_bytes()].concat()
}

fn png_header(width: u32, height: u32, depth: u8, colour: u8) -> Vec<u8> {
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    let header = [&size[..], &[depth, colour, 0, 0, 0]].concat();
    [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header)].concat()
}

#[test]
fn images_larger_than_their_budget_are_refused_with_their_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    let end = [chunk(b"IDAT", b"x\x9cc\0\0\0\x01\0\x01"), chunk(b"IEND", b"")].concat();
    let mut animated = png_header(20_000, 20_000, 8, 6);
    animated.extend(chunk(b"acTL", &[0, 0, 0, 2, 0, 0, 0, 0]));
    let mut webp = b"RIFF\x24\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\xff\xff\xff\0\0".to_vec();
    webp.extend(b"ANIM\x06\0\0\0\0\0\0\0\0\0");
    for (bytes, size) in [
        (png_header(1_000_000, 1_000_000, 8, 2), "1000000x1000000"),
        // A grey one: a library panics where it is made RGB.
        (png_header(30_000, 30_000, 8, 0), "30000x30000"),
        (png_header(30_000, 30_000, 1, 0), "30000x30000"),
        (png_header(13_000, 13_000, 1, 0), "13000x13000"),
        (animated, "20000x20000"),
        (b"GIF89a\xff\xff\xff\xff\0\0\0;".to_vec(), "65535x65535"),
        (webp, "16777216x256"),
    ] {
        fs::write(&path, [bytes, end.clone()].concat()).unwrap();
        let (text, _) = refusal(&path);
        assert!(text.contains(size) || text.contains("limit"), "{text}");
    }
}

/// A GIF of one-pixel frames on a canvas of `side`.
fn gif(side: u16, count: usize) -> Vec<u8> {
    let mut bytes = b"GIF89a".to_vec();
    bytes.extend([side.to_le_bytes(), side.to_le_bytes()].concat());
    bytes.extend([0x80, 0, 0, 0, 0, 0, 255, 255, 255]);
    for _ in 0..count {
        bytes.extend(b"\x21\xf9\x04\0\x0a\0\0\0\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0");
    }
    bytes.push(b';');
    bytes
}

#[test]
fn an_animation_of_many_small_frames_on_a_large_canvas_ends_within_its_budget() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.gif");
    fs::write(&path, gif(2000, 4000)).unwrap();
    let (text, hint) = refusal(&path);
    assert!(text.contains("its frames of 2000x2000 need more than"), "{text}");
    assert!(hint.contains("from=0,every="), "{hint}");
    // A few of them are read.
    let some = Selection { from: 1, every: 2, count: Some(3) };
    let got = read::frames("control", &path, some, &Stop::default()).unwrap();
    assert_eq!((got.images.len(), got.seen), (3, 6));
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
fn what_is_no_ordinary_file_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    #[cfg(unix)]
    {
        assert!(refusal(Path::new("/dev/zero")).0.contains("is not an ordinary file"));
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert!(refusal(&pipe).0.contains("is not an ordinary file"));
    }
    let empty = folder.path().join("empty.png");
    fs::File::create(&empty).unwrap().flush().unwrap();
    assert!(refusal(&empty).0.contains("is empty"));
    assert!(refusal(&folder.path().join("none.png")).0.contains("none.png"));
}

#[test]
fn a_large_image_is_made_small_in_little_time() {
    let image = RgbImage::from_fn(4000, 3000, |x, y| image::Rgb([x as u8, y as u8, 9]));
    let start = Instant::now();
    let small = resize(&image, 64, 64, Fit::Stretch, &Stop::default()).unwrap();
    assert_eq!(small.dimensions(), (64, 64));
    // Means of the ramps.
    assert!(small.pixels().all(|pixel| pixel[2] == 9));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
