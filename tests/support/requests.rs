//! Requests as the program understands them.

use serde_json::Value;

use crate::support::golden;
use crate::support::program::{Folder, Outcome};

pub(crate) fn path(name: &str) -> String {
    golden::path(name).to_str().unwrap().to_owned()
}

/// The request that the words mean.
pub(crate) fn dumped(folder: &Folder, args: &[&str]) -> Value {
    folder.run(&[&["generate", "--dump-request"], args].concat()).ok().json()
}

/// A clip of the tiny model.
pub(crate) fn tiny(folder: &Folder, args: &[&str]) -> Outcome {
    let model = path("tiny/model");
    let all = ["generate", "--model", &model, "--frames=2", "--steps=1", "-y", "-o", "clip.gif"];
    folder.run(&[&all[..], args].concat())
}

/// A PNG of one pixel with a text.
pub(crate) fn png(key: &str, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.add_text_chunk(key.to_owned(), text.to_owned()).unwrap();
    encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
    bytes
}

/// A JPEG whose EXIF has a text as its comment, as A1111 writes it.
pub(crate) fn jpeg(text: &str) -> Vec<u8> {
    let exif = [&b"Exif\0\0"[..], &exif(text)].concat();
    let image = encoded(image::ImageFormat::Jpeg);
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&image[..2], b"\xff\xe1", &length, &exif, &image[2..]].concat()
}

/// A WebP whose EXIF has a text as its comment, as A1111 writes it.
pub(crate) fn webp(text: &str) -> Vec<u8> {
    let image = encoded(image::ImageFormat::WebP);
    let mut exif = exif(text);
    exif.resize(exif.len().next_multiple_of(2), 0);
    let header = b"VP8X\x0a\0\0\0\x08\0\0\0\x07\0\0\x07\0\0";
    let length = (exif.len() as u32).to_le_bytes();
    let body = [b"WEBP", &header[..], &image[12..], b"EXIF", &length, &exif].concat();
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

/// EXIF data in little-endian order, as PIL writes them, with a comment in UTF-16.
fn exif(text: &str) -> Vec<u8> {
    let mut comment = b"UNICODE\0".to_vec();
    comment.extend(text.encode_utf16().flat_map(u16::to_be_bytes));
    let length = (comment.len() as u32).to_le_bytes();
    let outer = b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x1a\0\0\0\0\0\0\0";
    let inner = b"\x01\0\x86\x92\x07\0";
    [&outer[..], inner, &length, b"\x2c\0\0\0\0\0\0\0", &comment].concat()
}

/// A black image of 8x8.
fn encoded(format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(8, 8).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}
