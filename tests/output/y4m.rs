//! Raw video.

#![cfg(all(feature = "gif", feature = "png", feature = "apng", feature = "webp", feature = "mp4"))]

use animatelcm::media::RgbImage;
use image::Rgb;

use crate::support::clips::{encode, frames, info, texts};

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
