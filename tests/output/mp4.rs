//! MP4, as a player reads it.

#![cfg(all(feature = "gif", feature = "png", feature = "apng", feature = "webp", feature = "mp4"))]

use std::fs;

use animatelcm::media::RgbImage;
use image::Rgb;
use openh264::decoder::Decoder;
use openh264::formats::YUVSource;

use crate::support::clips::{coarse, encode, frames, info, psnr, texts, write};

/// The brightness of each pixel, by BT.709: what 4:2:0 keeps in full.
fn gray(image: &RgbImage) -> RgbImage {
    let mut gray = image.clone();
    for pixel in gray.pixels_mut() {
        let [r, g, b] = pixel.0.map(f64::from);
        *pixel = Rgb([(0.2126 * r + 0.7152 * g + 0.0722 * b).round() as u8; 3]);
    }
    gray
}

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
    let colors = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0; 3], [90, 140, 30]];
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
