//! Encoders: what is written is read again by other people's decoders.

#![cfg(all(feature = "gif", feature = "png", feature = "apng", feature = "webp", feature = "mp4"))]

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use animatelcm::media::{FrameSink, RgbImage};
use animatelcm::output::{self, ClipInfo, Existing, Format, Metadata};
use animatelcm::{Error, ErrorKind, Result, Stop};
use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{AnimationDecoder, DynamicImage, Frame, ImageDecoder, Rgb};

/// One output of each format that is a single file.
const FILES: [&str; 5] = ["clip.gif", "clip.webp", "clip.png", "clip.mp4", "clip.y4m"];
/// Those of them that hold texts, and a series.
const WITH_TEXTS: [&str; 5] = ["clip.gif", "clip.webp", "clip.png", "clip.mp4", "clip_%03d.png"];

fn info(width: u32, height: u32, frames: usize, fps: f64) -> ClipInfo {
    ClipInfo { width, height, frames, fps }
}

/// A soft background with a square that moves over it.
fn frames(clip: &ClipInfo) -> Vec<RgbImage> {
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

fn texts() -> Metadata {
    Metadata {
        request_json: r#"{"prompt":"a \"cat\" 猫 <&>\n","seed":42}"#.into(),
        parameters: "a cat, 猫 🐈 <&>\r\nNegative prompt: dog\nSteps: 4, Sampler: LCM".into(),
    }
}

fn write(path: &Path, clip: &ClipInfo, metadata: &Metadata, frames: &[RgbImage]) -> Result<()> {
    output::check(path, Existing::Refuse)?;
    let mut sink = output::open(path, clip, metadata, Existing::Refuse, &Stop::default())?;
    for frame in frames {
        sink.frame(frame)?;
    }
    sink.finish()
}

/// Writes a clip and returns its bytes.
fn encode(name: &str, clip: &ClipInfo, metadata: &Metadata) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    write(&path, clip, metadata, &frames(clip)).unwrap();
    assert_eq!(entries(folder.path()).len(), 1, "{name} left something behind");
    fs::read(&path).unwrap()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The images and their times in milliseconds.
fn images(frames: Vec<Frame>) -> (Vec<RgbImage>, Vec<f64>) {
    frames
        .into_iter()
        .map(|frame| {
            let (num, den) = frame.delay().numer_denom_ms();
            let image = DynamicImage::ImageRgba8(frame.into_buffer()).to_rgb8();
            (image, f64::from(num) / f64::from(den))
        })
        .unzip()
}

fn read_gif(bytes: &[u8]) -> (Vec<RgbImage>, Vec<f64>) {
    let decoder = GifDecoder::new(Cursor::new(bytes)).unwrap();
    images(decoder.into_frames().collect_frames().unwrap())
}

fn read_webp(bytes: &[u8]) -> (Vec<RgbImage>, Vec<f64>) {
    let decoder = WebPDecoder::new(Cursor::new(bytes)).unwrap();
    images(decoder.into_frames().collect_frames().unwrap())
}

fn read_apng(bytes: &[u8]) -> (Vec<RgbImage>, Vec<f64>) {
    let decoder = PngDecoder::new(Cursor::new(bytes)).unwrap().apng().unwrap();
    images(decoder.into_frames().collect_frames().unwrap())
}

/// Decibels; the more the better.
fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let square =
        |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)) * (f64::from(*a) - f64::from(*b));
    let error: f64 = a.as_raw().iter().zip(b.as_raw()).map(square).sum();
    10.0 * (255.0 * 255.0 * a.as_raw().len() as f64 / error.max(1e-9)).log10()
}

/// The brightness of each pixel, by BT.709: what 4:2:0 keeps in full.
fn gray(image: &RgbImage) -> RgbImage {
    let mut gray = image.clone();
    for pixel in gray.pixels_mut() {
        let [r, g, b] = pixel.0.map(f64::from);
        *pixel = Rgb([(0.2126 * r + 0.7152 * g + 0.0722 * b).round() as u8; 3]);
    }
    gray
}

/// The mean colour of eight by eight pixels: what is seen of a dithered image from afar.
fn coarse(image: &RgbImage) -> RgbImage {
    RgbImage::from_fn(image.width() / 8, image.height() / 8, |x, y| {
        let mut sum = [0_u32; 3];
        for (dx, dy) in (0..64).map(|i| (i % 8, i / 8)) {
            let pixel = image.get_pixel(8 * x + dx, 8 * y + dy);
            (0..3).for_each(|c| sum[c] += u32::from(pixel[c]));
        }
        Rgb(sum.map(|sum| (sum / 64) as u8))
    })
}

#[test]
fn names_choose_the_format() {
    for (name, format) in [
        ("a.gif", Format::Gif),
        ("a.GIF", Format::Gif),
        ("a.webp", Format::Webp),
        ("a.png", Format::Apng),
        ("a.APNG", Format::Apng),
        ("a_%03d.png", Format::Png),
        ("a_%d.png", Format::Png),
        ("100%%.png", Format::Apng),
        ("a.mp4", Format::Mp4),
        ("a.y4m", Format::Y4m),
        ("-", Format::Y4m),
    ] {
        assert_eq!(Format::from_path(Path::new(name)).unwrap(), format, "{name}");
    }
}

#[test]
fn unknown_names_are_refused_with_what_is_known() {
    for name in ["a", "a.avi", "a.jpg", ".png", "", "..", "a_%03d.gif", "a_%s.png", "a_%d.apng"] {
        let error = Format::from_path(Path::new(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request, "{name}");
    }
    let message = Format::from_path(Path::new("a.avi")).unwrap_err().to_string();
    for known in ["a.avi", ".gif", ".webp", ".png", ".mp4", ".y4m"] {
        assert!(message.contains(known), "{message}");
    }
}

#[test]
fn lossless_formats_are_exact() {
    for clip in [info(48, 40, 5, 8.0), info(9, 7, 3, 8.0), info(1, 1, 2, 8.0), info(33, 1, 1, 8.0)]
    {
        let expected = frames(&clip);
        assert_eq!(read_webp(&encode("a.webp", &clip, &texts())).0, expected, "{clip:?}");
        assert_eq!(read_apng(&encode("a.png", &clip, &texts())).0, expected, "{clip:?}");
    }
}

#[test]
fn numbered_files_are_exact_and_each_carries_the_texts() {
    let folder = tempfile::tempdir().unwrap();
    let clip = info(9, 7, 3, 8.0);
    let frames = frames(&clip);
    write(&folder.path().join("a_%02d.png"), &clip, &texts(), &frames).unwrap();
    let names = ["a_00.png", "a_01.png", "a_02.png"].map(|name| folder.path().join(name));
    assert_eq!(entries(folder.path()), names);
    for (path, frame) in names.iter().zip(&frames) {
        assert_eq!(image::open(path).unwrap().to_rgb8(), *frame);
        assert_eq!(output::metadata::read(path).unwrap().unwrap(), texts());
    }
}

#[test]
fn a_gif_of_few_colours_is_exact() {
    let clip = info(20, 10, 6, 8.0);
    let frames: Vec<RgbImage> = (0..6_u8)
        .map(|i| {
            RgbImage::from_fn(20, 10, |x, y| {
                if x == u32::from(i) { Rgb([255, i, 0]) } else { Rgb([x as u8, y as u8, 9]) }
            })
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gif");
    write(&path, &clip, &Metadata::default(), &frames).unwrap();
    assert_eq!(read_gif(&fs::read(&path).unwrap()).0, frames);
}

#[test]
fn a_gif_looks_like_the_clip() {
    let clip = info(64, 64, 8, 8.0);
    let (decoded, _) = read_gif(&encode("a.gif", &clip, &texts()));
    assert_eq!(decoded.len(), clip.frames);
    for (decoded, frame) in decoded.iter().zip(&frames(&clip)) {
        let near = psnr(decoded, frame);
        let far = psnr(&coarse(decoded), &coarse(frame));
        assert!(near > 30.0 && far > 40.0, "{near:.1} dB near, {far:.1} dB far");
    }
}

#[test]
fn a_gif_works_at_every_size() {
    for clip in [info(9, 7, 3, 8.0), info(1, 1, 1, 8.0), info(300, 1, 2, 8.0)] {
        let (decoded, _) = read_gif(&encode("a.gif", &clip, &texts()));
        assert_eq!(decoded.len(), clip.frames);
        assert_eq!(decoded[0].dimensions(), (clip.width, clip.height));
    }
}

#[test]
fn clips_keep_their_length() {
    let clip = info(8, 8, 16, 12.0);
    let expected = 16_000.0 / 12.0;
    for (name, read, unit) in [
        ("a.gif", read_gif as fn(&[u8]) -> (Vec<RgbImage>, Vec<f64>), 10.0),
        ("a.webp", read_webp, 1.0),
        ("a.png", read_apng, 1.0),
    ] {
        let (_, times) = read(&encode(name, &clip, &texts()));
        assert_eq!(times.len(), 16, "{name}");
        let total: f64 = times.iter().sum();
        assert!((total - expected).abs() <= unit, "{name}: {total} ms");
        let each = expected / 16.0;
        assert!(times.iter().all(|time| (time - each).abs() <= unit), "{name}: {times:?}");
    }
}

#[test]
fn animations_repeat_for_ever() {
    let clip = info(8, 8, 2, 8.0);
    let gif = encode("a.gif", &clip, &texts());
    assert!(gif.windows(16).any(|w| w == b"NETSCAPE2.0\x03\x01\0\0\0"));
    let webp = encode("a.webp", &clip, &texts());
    assert!(webp.windows(14).any(|w| w == b"ANIM\x06\0\0\0\0\0\0\xff\0\0"));
    let apng = encode("a.png", &clip, &texts());
    assert!(apng.windows(12).any(|w| w == b"acTL\0\0\0\x02\0\0\0\0"));
}

#[test]
fn texts_come_back_from_every_container() {
    let long = Metadata {
        request_json: format!("{{\"prompt\":\"{}\"}}", "ä long \\n prompt ".repeat(6000)),
        parameters: "many\nwords, ".repeat(9000),
    };
    assert!(long.request_json.len() > 100_000 && long.parameters.len() > 100_000);
    let latin = Metadata { request_json: "{}".into(), parameters: "caf\u{e9}".into() };
    let only_request = Metadata { request_json: "[1]".into(), ..Metadata::default() };
    let only_parameters = Metadata { parameters: "a".into(), ..Metadata::default() };
    for metadata in [texts(), long, latin, only_request, only_parameters, Metadata::default()] {
        for name in WITH_TEXTS {
            let folder = tempfile::tempdir().unwrap();
            let clip = info(16, 16, 1, 8.0);
            write(&folder.path().join(name), &clip, &metadata, &frames(&clip)).unwrap();
            let found = output::metadata::read(&entries(folder.path())[0]).unwrap();
            let expected = Some(&metadata).filter(|metadata| !metadata.is_empty());
            assert!(found.as_ref() == expected, "{name}");
        }
    }
}

#[test]
fn other_programs_find_the_texts() {
    let clip = info(16, 16, 1, 8.0);
    let gif = encode("a.gif", &clip, &texts());
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    assert!(options.read_info(Cursor::new(&gif)).unwrap().read_next_frame().unwrap().is_some());
    let webp = encode("a.webp", &clip, &texts());
    let mut decoder = WebPDecoder::new(Cursor::new(&webp)).unwrap();
    let exif = decoder.exif_metadata().unwrap().unwrap();
    assert!(exif.starts_with(b"MM\0*"));
    let utf16: Vec<u8> = texts().parameters.encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert!(exif.ends_with(&[b"UNICODE\0", &utf16[..]].concat()));
    let png = encode("a.png", &clip, &texts());
    let reader = png::Decoder::new(Cursor::new(&png)).read_info().unwrap();
    let found = |key: &str| {
        let chunk = reader.info().utf8_text.iter().find(|chunk| chunk.keyword == key).unwrap();
        chunk.get_text().unwrap()
    };
    assert_eq!(found("parameters"), texts().parameters);
    let request = &reader.info().utf8_text.iter().find(|c| c.keyword == "animatelcm").unwrap();
    assert_eq!(request.get_text().unwrap(), texts().request_json);
    // The keys of an MP4 are in a box of QuickTime's kind, which exiftool insists on.
    let mp4 = encode("a.mp4", &clip, &texts());
    let at = |name: &[u8]| mp4.windows(name.len()).position(|bytes| bytes == name).unwrap();
    assert_eq!(at(b"meta") + 8, at(b"hdlr\0\0\0\0\0\0\0\0mdta"), "no version, no flags");
    assert!(at(b"mdtaanimatelcm") < at(b"mdtaparameters"));
}

#[test]
fn equal_clips_give_equal_bytes() {
    let clip = info(40, 32, 6, 12.0);
    for name in FILES {
        assert!(encode(name, &clip, &texts()) == encode(name, &clip, &texts()), "{name}");
    }
}

#[test]
fn a_stopped_sink_takes_no_frame_and_leaves_nothing() {
    let clip = info(32, 32, 2, 8.0);
    for name in FILES.into_iter().chain(["clip_%d.png"]) {
        for taken in 0..=2 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            let stop = Stop::default();
            let mut sink = output::open(&path, &clip, &texts(), Existing::Refuse, &stop).unwrap();
            for frame in &frames(&clip)[..taken] {
                sink.frame(frame).unwrap();
            }
            stop.request();
            if taken < 2 {
                let stopped = sink.frame(&frames(&clip)[taken]);
                assert!(matches!(stopped, Err(Error::Cancelled)), "{name} {taken}: {stopped:?}");
                drop(sink);
            } else {
                let stopped = sink.finish();
                assert!(matches!(stopped, Err(Error::Cancelled)), "{name}: {stopped:?}");
            }
            assert!(entries(folder.path()).is_empty(), "{name} {taken}");
        }
    }
}

#[test]
fn a_dropped_sink_leaves_nothing() {
    let clip = info(32, 32, 4, 8.0);
    for name in FILES.into_iter().chain(["clip_%d.png"]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let mut sink =
            output::open(&path, &clip, &texts(), Existing::Refuse, &Stop::default()).unwrap();
        assert!(!path.exists(), "{name} is visible too early");
        for frame in &frames(&clip)[..3] {
            sink.frame(frame).unwrap();
        }
        drop(sink);
        assert!(entries(folder.path()).is_empty(), "{name}");
    }
}

#[test]
fn a_clip_of_another_length_or_size_fails_and_leaves_nothing() {
    let clip = info(32, 32, 2, 8.0);
    let frames = frames(&clip);
    for name in FILES.into_iter().chain(["clip_%d.png"]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let open =
            || output::open(&path, &clip, &texts(), Existing::Refuse, &Stop::default()).unwrap();

        let mut short = open();
        short.frame(&frames[0]).unwrap();
        assert!(matches!(short.finish(), Err(Error::Encode { .. })), "{name}");

        let mut long = open();
        long.frame(&frames[0]).unwrap();
        long.frame(&frames[1]).unwrap();
        assert!(matches!(long.frame(&frames[1]), Err(Error::Encode { .. })), "{name}");
        drop(long);

        let wide = open().frame(&RgbImage::new(33, 32)).unwrap_err().to_string();
        assert!(wide.contains("33 by 32") && wide.contains("32 by 32"), "{wide}");
        assert!(entries(folder.path()).is_empty(), "{name}");
    }
}

#[test]
fn what_is_there_is_kept_unless_told_otherwise() {
    let clip = info(16, 16, 2, 8.0);
    for name in FILES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, "mine").unwrap();
        let error = output::check(&path, Existing::Refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request);
        assert!(error.hint().unwrap().contains("-y"));
        assert!(output::open(&path, &clip, &texts(), Existing::Refuse, &Stop::default()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");

        output::check(&path, Existing::Replace).unwrap();
        let mut sink =
            output::open(&path, &clip, &texts(), Existing::Replace, &Stop::default()).unwrap();
        for frame in &frames(&clip) {
            sink.frame(frame).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine", "{name} is gone before the end");
        sink.finish().unwrap();
        assert_ne!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(entries(folder.path()).len(), 1);
    }
}

#[test]
fn a_series_is_kept_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a_%03d.png");
    fs::write(folder.path().join("a_001.png"), "mine").unwrap();
    fs::write(folder.path().join("b_001.png"), "other").unwrap();
    let error = output::check(&path, Existing::Refuse).unwrap_err();
    assert!(error.to_string().contains("a_001.png"), "{error}");

    let clip = info(8, 8, 2, 8.0);
    let mut sink =
        output::open(&path, &clip, &texts(), Existing::Replace, &Stop::default()).unwrap();
    for frame in &frames(&clip) {
        sink.frame(frame).unwrap();
    }
    sink.finish().unwrap();
    let names = ["a_000.png", "a_001.png", "b_001.png"].map(|name| folder.path().join(name));
    assert_eq!(entries(folder.path()), names);
    assert_eq!(image::open(&names[1]).unwrap().to_rgb8(), frames(&clip)[1]);
    assert_eq!(fs::read_to_string(&names[2]).unwrap(), "other");
}

#[test]
fn places_that_cannot_be_written_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("folder.gif")).unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    for (name, expected) in [
        ("folder.gif", "is a folder"),
        ("none/a.gif", "does not exist"),
        ("none/a_%d.png", "does not exist"),
        ("file/a.gif", "file"),
    ] {
        for existing in [Existing::Refuse, Existing::Replace] {
            let error = output::check(&folder.path().join(name), existing).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Request, "{name}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
    assert_eq!(entries(folder.path()).len(), 2);
}

/// Even root may create nothing there.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_takes_no_files_is_refused() {
    for name in ["/proc/a.gif", "/proc/a_%d.png"] {
        let error = output::check(Path::new(name), Existing::Refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request);
        assert!(error.to_string().contains("cannot write to `/proc`"), "{error}");
        assert!(!error.to_string().contains(".part"), "{error}");
    }
}

/// A device on which every write finds the disk full, reached through a link.
#[cfg(target_os = "linux")]
#[test]
fn devices_are_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("a.gif");
    std::os::unix::fs::symlink("/dev/full", &link).unwrap();
    let error = output::check(&link, Existing::Replace).unwrap_err();
    assert!(error.to_string().contains("not an ordinary file"), "{error}");
}

#[test]
fn sizes_that_a_format_cannot_hold_are_refused() {
    for (name, clip) in [
        ("a.mp4", info(9, 7, 1, 8.0)),
        ("a.mp4", info(4096, 64, 1, 8.0)),
        ("a.mp4", info(3000, 3000, 1, 8.0)),
        ("a.gif", info(70_000, 8, 1, 8.0)),
        ("a.gif", info(8, 8, 1, 60.0)),
        ("a.webp", info(16_385, 8, 1, 8.0)),
        ("a.png", info(8, 0, 1, 8.0)),
        ("a.y4m", info(8, 8, 0, 8.0)),
        ("a.y4m", info(8, 8, 1, f64::NAN)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let error =
            output::open(&path, &clip, &texts(), Existing::Refuse, &Stop::default()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Request, "{name} {clip:?}");
        assert!(entries(folder.path()).is_empty());
    }
}

#[test]
fn files_that_are_no_clips_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gif");
    assert!(matches!(output::metadata::read(&path), Err(Error::File { .. })));
    assert!(matches!(
        output::metadata::read(folder.path()),
        Err(Error::File { .. } | Error::Format { .. })
    ));
    for bytes in [&b""[..], b"hello, world", b"GIF89a", b"\x89PNG\r\n\x1a\n\0\0\0\0", b"RIFF"] {
        fs::write(&path, bytes).unwrap();
        assert!(matches!(output::metadata::read(&path), Err(Error::Format { .. })), "{bytes:?}");
    }
}

#[test]
fn cut_files_never_give_half_a_text() {
    let clip = info(16, 16, 1, 8.0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut");
    for name in ["a.gif", "a.webp", "a.png", "a.mp4"] {
        let bytes = encode(name, &clip, &texts());
        for length in (0..bytes.len()).step_by(7) {
            fs::write(&path, &bytes[..length]).unwrap();
            if let Ok(Some(found)) = output::metadata::read(&path) {
                assert!(
                    found.request_json.is_empty() || found.request_json == texts().request_json
                );
                assert!(found.parameters.is_empty() || found.parameters == texts().parameters);
            }
        }
    }
}

#[test]
fn a_request_that_is_not_json_is_refused() {
    let clip = info(16, 16, 1, 8.0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let metadata = Metadata { request_json: "{\"seed\":".into(), ..Metadata::default() };
    write(&path, &clip, &metadata, &frames(&clip)).unwrap();
    assert!(matches!(output::metadata::read(&path), Err(Error::Format { .. })));
}

mod y4m {
    use super::*;

    /// The image of a 4:4:4 frame in BT.601, limited range.
    fn image(planes: &[u8], width: usize, height: usize) -> RgbImage {
        let area = width * height;
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let at = y as usize * width + x as usize;
            let luma = (f64::from(planes[at]) - 16.0) / 219.0;
            let [cb, cr] = [1, 2].map(|p| (f64::from(planes[p * area + at]) - 128.0) / 224.0);
            let (r, b) = (luma + 1.402 * cr, luma + 1.772 * cb);
            let g = (luma - 0.299 * r - 0.114 * b) / 0.587;
            Rgb([r, g, b].map(|v| (255.0 * v).round().clamp(0.0, 255.0) as u8))
        })
    }

    #[test]
    fn the_stream_is_what_its_header_says() {
        for clip in [info(32, 16, 3, 8.0), info(9, 7, 2, 30_000.0 / 1001.0), info(1, 1, 1, 8.0)] {
            let bytes = encode("a.y4m", &clip, &texts());
            let line = bytes.iter().position(|&byte| byte == b'\n').unwrap();
            let header = std::str::from_utf8(&bytes[..line]).unwrap();
            assert!(header.len() < 80, "FFmpeg reads no longer header: {header}");
            let rate = if clip.fps == 8.0 { "F8:1" } else { "F30000:1001" };
            for field in [
                "YUV4MPEG2",
                &format!("W{}", clip.width),
                &format!("H{}", clip.height),
                rate,
                "C444",
                "XCOLORRANGE=LIMITED",
            ] {
                assert!(header.split(' ').any(|found| found == field), "{header}: {field}");
            }
            let (width, height) = (clip.width as usize, clip.height as usize);
            let chunks = bytes[line + 1..].chunks(6 + 3 * width * height);
            assert_eq!(chunks.len(), clip.frames);
            for (chunk, frame) in chunks.zip(&frames(&clip)) {
                assert_eq!(&chunk[..6], b"FRAME\n");
                let found = image(&chunk[6..], width, height);
                let far = |(a, b): (&u8, &u8)| a.abs_diff(*b) > 3;
                assert!(!found.as_raw().iter().zip(frame.as_raw()).any(far));
            }
        }
    }
}

mod mp4 {
    use super::*;
    use openh264::decoder::Decoder;
    use openh264::formats::YUVSource;

    /// The contents of the boxes with this name, within these contents.
    fn find(data: &[u8], name: [u8; 4]) -> Vec<(usize, &[u8])> {
        let (mut at, mut found) = (0, Vec::new());
        while at < data.len() {
            let number = |at: usize| u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
            let (size, header) = match number(at) {
                1 => (number(at + 12) as usize, 16),
                size => (size as usize, 8),
            };
            assert!(size >= header && at + size <= data.len(), "a box does not fit");
            if data[at + 4..at + 8] == name {
                found.push((at + header, &data[at + header..at + size]));
            }
            at += size;
        }
        found
    }

    fn path<'a>(mut data: &'a [u8], names: &[[u8; 4]]) -> &'a [u8] {
        for name in names {
            let found = find(data, *name);
            assert_eq!(found.len(), 1, "{}", name.escape_ascii());
            data = found[0].1;
        }
        data
    }

    fn numbers(data: &[u8]) -> Vec<u32> {
        data.chunks_exact(4).map(|b| u32::from_be_bytes(b.try_into().unwrap())).collect()
    }

    const TABLE: [[u8; 4]; 5] = [*b"moov", *b"trak", *b"mdia", *b"minf", *b"stbl"];

    fn table(bytes: &[u8], name: [u8; 4]) -> &[u8] {
        path(path(bytes, &TABLE), &[name])
    }

    /// The contents of the boxes within the description of the samples.
    fn entry(bytes: &[u8], name: [u8; 4]) -> Vec<&[u8]> {
        let avc1 = path(&table(bytes, *b"stsd")[8..], &[*b"avc1"]);
        find(&avc1[78..], name).into_iter().map(|(_, data)| data).collect()
    }

    /// Goes the way of a player: parameters and samples from the tables, then a decoder.
    fn decode(bytes: &[u8]) -> Vec<RgbImage> {
        let configuration = entry(bytes, *b"avcC")[0];
        let length =
            |at: usize| usize::from(u16::from_be_bytes([configuration[at], configuration[at + 1]]));
        let sps = &configuration[8..8 + length(6)];
        let rest = 8 + sps.len() + 1;
        let pps = &configuration[rest + 2..rest + 2 + length(rest)];
        assert_eq!(rest + 2 + pps.len(), configuration.len());

        let sizes = numbers(&table(bytes, *b"stsz")[12..]);
        let mut at = numbers(&table(bytes, *b"co64")[8..])[1] as usize;
        let (start, media) = find(bytes, *b"mdat")[0];
        assert_eq!((at, sizes.iter().sum::<u32>() as usize), (start, media.len()));
        let mut decoder = Decoder::new().unwrap();
        let mut frames = Vec::new();
        for size in sizes {
            let mut stream = Vec::new();
            if frames.is_empty() {
                stream.extend([&[0, 0, 0, 1], sps, &[0, 0, 0, 1], pps].concat());
            }
            let (sample, mut inside) = (&bytes[at..at + size as usize], 0);
            while inside < sample.len() {
                let length = numbers(&sample[inside..inside + 4])[0] as usize;
                stream.extend([0, 0, 0, 1]);
                stream.extend(&sample[inside + 4..inside + 4 + length]);
                inside += 4 + length;
            }
            at += size as usize;
            let yuv = decoder.decode(&stream).unwrap().expect("a frame");
            let ((width, height), (y_stride, stride, _)) = (yuv.dimensions(), yuv.strides());
            frames.push(RgbImage::from_fn(width as u32, height as u32, |x, y| {
                let (x, y) = (x as usize, y as usize);
                let luma = (f64::from(yuv.y()[y * y_stride + x]) - 16.0) / 219.0;
                // In the columns of even pixels and between two rows, so in between elsewhere.
                let chroma = |plane: &[u8]| {
                    let at = |x: usize, y: usize| {
                        let (x, y) = (x.min(width / 2 - 1), y.min(height / 2 - 1));
                        f64::from(plane[y * stride + x])
                    };
                    let across = |y| f64::midpoint(at(x / 2, y), at(x.div_ceil(2), y));
                    let other = if y % 2 == 0 { (y / 2).saturating_sub(1) } else { y / 2 + 1 };
                    (0.75 * across(y / 2) + 0.25 * across(other) - 128.0) / 224.0
                };
                let (cb, cr) = (chroma(yuv.u()), chroma(yuv.v()));
                // BT.709.
                let (r, b) = (luma + 1.5748 * cr, luma + 1.8556 * cb);
                let g = (luma - 0.2126 * r - 0.0722 * b) / 0.7152;
                Rgb([r, g, b].map(|v| (255.0 * v).round().clamp(0.0, 255.0) as u8))
            }));
        }
        frames
    }

    #[test]
    fn a_player_sees_the_clip() {
        for clip in [info(64, 48, 20, 8.0), info(16, 16, 1, 8.0), info(72, 56, 40, 24.0)] {
            let decoded = decode(&encode("a.mp4", &clip, &texts()));
            assert_eq!(decoded.len(), clip.frames);
            for (index, (decoded, frame)) in decoded.iter().zip(&frames(&clip)).enumerate() {
                let brightness = psnr(&gray(decoded), &gray(frame));
                let color = psnr(&coarse(decoded), &coarse(frame));
                assert!(
                    brightness > 40.0 && color > 38.0,
                    "frame {index} of {clip:?}: {brightness:.1} dB bright, {color:.1} dB colour"
                );
            }
        }
    }

    #[test]
    fn flat_colours_stay_what_they_are() {
        let colors =
            [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0; 3], [90, 140, 30]];
        let clip = info(32, 32, colors.len(), 8.0);
        let frames: Vec<RgbImage> =
            colors.iter().map(|color| RgbImage::from_pixel(32, 32, Rgb(*color))).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mp4");
        write(&path, &clip, &texts(), &frames).unwrap();
        for (decoded, color) in decode(&fs::read(&path).unwrap()).iter().zip(colors) {
            for pixel in decoded.pixels() {
                let far = pixel.0.iter().zip(color).map(|(a, b)| a.abs_diff(b)).max().unwrap();
                assert!(far <= 4, "{:?} instead of {color:?}", pixel.0);
            }
        }
    }

    #[test]
    fn the_index_comes_first() {
        let bytes = encode("a.mp4", &info(32, 32, 3, 8.0), &texts());
        let at = |name| find(&bytes, name)[0].0;
        assert!(at(*b"ftyp") < at(*b"moov") && at(*b"moov") < at(*b"mdat"));
    }

    #[test]
    fn time_is_exact() {
        for (fps, frames, (num, den)) in
            [(8.0, 5, (8, 1)), (30_000.0 / 1001.0, 3, (30_000, 1001)), (12.5, 2, (25, 2))]
        {
            let bytes = encode("a.mp4", &info(16, 16, frames, fps), &texts());
            let header = numbers(&path(&bytes, &[*b"moov", *b"trak", *b"mdia", *b"mdhd"])[..20]);
            let times = numbers(table(&bytes, *b"stts"));
            assert_eq!(times[1..3], [1, frames as u32]);
            assert_eq!(u64::from(header[3]) * den, u64::from(times[3]) * num);
            assert_eq!(header[4], times[3] * frames as u32);
            assert_eq!(numbers(path(&bytes, &[*b"moov", *b"mvhd"]))[4], header[4]);
        }
    }

    #[test]
    fn long_clips_can_be_sought() {
        let bytes = encode("a.mp4", &info(16, 16, 70, 8.0), &texts());
        assert_eq!(numbers(table(&bytes, *b"stss"))[1..], [3, 1, 33, 65]);
    }

    #[test]
    fn colours_are_tagged_in_the_container() {
        let bytes = encode("a.mp4", &info(32, 32, 1, 8.0), &texts());
        assert_eq!(entry(&bytes, *b"colr"), [b"nclx\0\x01\0\x01\0\x01\0"]);
        assert_eq!(entry(&bytes, *b"clap").len(), 0);
    }

    #[test]
    fn odd_sizes_are_padded_and_say_so() {
        let clip = info(33, 19, 2, 8.0);
        let bytes = encode("a.mp4", &clip, &texts());
        let aperture = numbers(entry(&bytes, *b"clap")[0]);
        assert_eq!(aperture, [33, 1, 19, 1, u32::MAX, 2, u32::MAX, 2]); // minus a half
        let decoded = decode(&bytes);
        assert_eq!(decoded[0].dimensions(), (34, 20));
        let shown = image::imageops::crop_imm(&decoded[1], 0, 0, 33, 19).to_image();
        let quality = psnr(&gray(&shown), &gray(&frames(&clip)[1]));
        assert!(quality > 40.0, "{quality:.1} dB");
    }

    #[test]
    fn players_show_the_parameters_as_a_comment() {
        let bytes = encode("a.mp4", &info(16, 16, 1, 8.0), &texts());
        let meta = &path(&bytes, &[*b"moov", *b"udta", *b"meta"])[4..];
        let comment = path(meta, &[*b"ilst", *b"\xa9cmt", *b"data"]);
        assert_eq!(&comment[8..], texts().parameters.as_bytes());
        let prompt = path(meta, &[*b"ilst", *b"desc", *b"data"]);
        assert_eq!(&prompt[8..], "a cat, 猫 🐈 <&>".as_bytes());
    }
}

/// A file in memory that its test keeps.
#[derive(Clone, Default)]
struct Kept(std::sync::Arc<std::sync::Mutex<Cursor<Vec<u8>>>>);

impl std::io::Write for Kept {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(data)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::io::Seek for Kept {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        self.0.lock().unwrap().seek(to)
    }
}

#[test]
fn a_writer_gets_what_a_file_gets() {
    let folder = tempfile::tempdir().unwrap();
    let clip = ClipInfo { width: 32, height: 16, frames: 3, fps: 8.0 };
    let frames: Vec<RgbImage> = (0..3u8)
        .map(|i| RgbImage::from_fn(32, 16, |x, y| image::Rgb([x as u8 * 8, y as u8 * 16, i * 80])))
        .collect();
    let metadata = Metadata { request_json: "{}".into(), parameters: "a cat".into() };
    let stop = Stop::default();
    let write = |mut sink: Box<dyn FrameSink + Send>| {
        for frame in &frames {
            sink.frame(frame).unwrap();
        }
        sink.finish().unwrap();
    };
    for format in [Format::Gif, Format::Webp, Format::Apng, Format::Mp4, Format::Y4m] {
        let path = folder.path().join(format!("clip.{}", format.name()));
        write(output::open(&path, &clip, &metadata, Existing::Refuse, &stop).unwrap());
        let kept = Kept::default();
        write(output::to_writer(format, kept.clone(), &clip, &metadata, &stop).unwrap());
        let written = kept.0.lock().unwrap().get_ref().clone();
        assert_eq!(written, std::fs::read(&path).unwrap(), "{format:?}");
    }
    let series = output::to_writer(Format::Png, Kept::default(), &clip, &metadata, &stop);
    assert_eq!(series.err().unwrap().kind().exit_code(), 2);
}
