//! Encoders: what is written is read again by other people's decoders.

#![cfg(all(feature = "gif", feature = "png", feature = "apng", feature = "webp", feature = "mp4"))]

use std::fs;
use std::io::Cursor;
use std::path::Path;

use animatelcm::media::{FrameSink, RgbImage};
use animatelcm::output::{self, ClipInfo, Existing, Format, Metadata};
use animatelcm::{ErrorKind, Stop};
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, DynamicImage, Frame, Rgb};

use crate::support::clips::{FILES, coarse, encode, entries, frames, info, psnr, texts, write};

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
fn equal_clips_give_equal_bytes() {
    let clip = info(40, 32, 6, 12.0);
    for name in FILES {
        assert!(encode(name, &clip, &texts()) == encode(name, &clip, &texts()), "{name}");
    }
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
