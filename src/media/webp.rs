//! Animated WebP: every frame is decoded as a still image and composited on the canvas like libwebp's
//! `WebPAnimDecoder`.

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder, RgbaImage};

use super::exif;
use super::fault::Fault;
use super::still::{flat, limits, turned, upright};
use super::take::{MOST_TIMES, Take};

/// Peak memory in bytes per canvas pixel: the canvas, a frame, and its decoder.
const CANVAS: u64 = 16;

/// Length in bytes of the RIFF header before the first chunk.
const HEADER: usize = 12;

/// The animation flag of the `VP8X` chunk.
const IS_ANIMATED: u8 = 1 << 1;

/// Name and contents of a chunk.
type Chunk<'a> = (&'a [u8], &'a [u8]);

/// The consecutive chunks in `bytes`; the last may be truncated.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (&[ref name @ .., a, b, c, d], after) = rest.split_first_chunk::<8>()?;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let (body, after) = after.split_at_checked(length).unwrap_or((after, &[]));
        // Chunks of odd length are padded by one byte.
        rest = after.get(length % 2..).unwrap_or_default();
        Some((&name[..], body))
    })
}

/// The file without trailing data. Checks the declared length of the file and of every chunk: decoders allocate what a
/// chunk declares, and image-webp 0.2.4 looks for chunks slightly beyond the end of the file.
pub(super) fn whole(bytes: &[u8]) -> Result<&[u8], Fault> {
    let cut_off = || Fault::from("is cut off: its end is missing");
    let (_, after) = bytes.split_first_chunk::<4>().ok_or_else(cut_off)?;
    let (length, after) = after.split_first_chunk::<4>().ok_or_else(cut_off)?;
    let length = u32::from_le_bytes(*length) as usize;
    // The padding byte of the last chunk may be missing, and trailing data is allowed.
    if after.len() + 1 < length {
        return Err(cut_off());
    }
    let file = bytes.get(..length.saturating_add(8)).unwrap_or(bytes);
    let mut rest = file.get(HEADER..).filter(|chunks| !chunks.is_empty()).ok_or_else(cut_off)?;
    while let Some((&[.., a, b, c, d], after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let (_, after) = after.split_at_checked(length).ok_or_else(cut_off)?;
        rest = after.get(length % 2..).unwrap_or_default();
    }
    Ok(file)
}

/// Returns whether a WebP file is an animation.
pub(super) fn is_animated(bytes: &[u8]) -> bool {
    let first = bytes.get(HEADER..).and_then(|rest| chunks(rest).next());
    first.is_some_and(|(name, body)| {
        name == b"VP8X" && body.first().is_some_and(|flags| flags & IS_ANIMATED != 0)
    })
}

/// Seconds for which each frame of an animation is shown.
pub(super) fn durations(bytes: &[u8]) -> Vec<f64> {
    let frames = chunks(bytes.get(HEADER..).unwrap_or_default());
    let frames = frames.filter(|(name, _)| *name == b"ANMF");
    // Milliseconds stand behind place and size.
    let duration = |body: &[u8]| Some(f64::from(three(body.get(12..)?)?) / 1000.0);
    frames.map_while(|(_, body)| duration(body)).take(MOST_TIMES).collect()
}

/// Reads the frames of an animation.
pub(super) fn read(bytes: &[u8], take: &mut Take<'_>) -> Result<(), Fault> {
    let body = bytes.get(HEADER..).unwrap_or_default();
    let mut chunks = chunks(body).peekable();
    let size = chunks
        .peek()
        .and_then(|(_, header)| Some((three(header.get(4..)?)? + 1, three(header.get(7..)?)? + 1)));
    let size = size.ok_or("its header is cut off")?;
    take.budget.canvas(size, CANVAS)?;
    let orientation = exif_of(body);
    let mut canvas = RgbaImage::new(size.0, size.1);
    let mut before: Option<Frame<'_>> = None;
    for (_, body) in chunks.filter(|(name, _)| *name == b"ANMF") {
        if take.is_full() {
            return Ok(());
        }
        let frame = Frame::new(body, size).ok_or("a frame is broken")?;
        let is_wanted = take.wants(turned(size, orientation))?;
        let image = frame.decode()?;
        frame.draw(&image, &mut canvas, before.as_ref());
        if is_wanted {
            let image = flat(DynamicImage::ImageRgba8(canvas.clone()), take.background);
            take.keep(upright(image, orientation));
        }
        before = Some(Frame { is_key: frame.is_key(&image, before.as_ref()), ..frame });
    }
    Ok(())
}

/// The orientation in the metadata of a file.
fn exif_of(body: &[u8]) -> image::metadata::Orientation {
    let find = |wanted: &[u8]| chunks(body).find(|(name, _)| *name == wanted).map(|found| found.1);
    let found = find(b"EXIF").and_then(exif::of_exif);
    let found = found.or_else(|| find(b"XMP ").and_then(exif::of_xmp));
    found.unwrap_or(image::metadata::Orientation::NoTransforms)
}

/// Reads a 24-bit little-endian number.
fn three(bytes: &[u8]) -> Option<u32> {
    let [a, b, c] = *bytes.first_chunk::<3>()?;
    Some(u32::from_le_bytes([a, b, c, 0]))
}

/// A frame as stored in the file.
#[allow(clippy::struct_excessive_bools, reason = "the file has them")]
struct Frame<'a> {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    /// Whether the frame covers the canvas.
    is_whole: bool,
    is_blended: bool,
    /// Whether the frame's area is cleared after it was shown.
    is_disposed: bool,
    /// Whether no earlier frame is visible; set after drawing.
    is_key: bool,
    data: &'a [u8],
}

impl<'a> Frame<'a> {
    /// `None` if the frame is truncated or exceeds the canvas.
    fn new(body: &'a [u8], canvas: (u32, u32)) -> Option<Self> {
        let number = |at: usize| three(body.get(at..)?);
        let (left, top) = (2 * number(0)?, 2 * number(3)?);
        let (width, height) = (number(6)? + 1, number(9)? + 1);
        let flags = body.get(15)?;
        let is_within = left + width <= canvas.0 && top + height <= canvas.1;
        is_within.then_some(Self {
            left,
            top,
            width,
            height,
            is_whole: (width, height) == canvas,
            is_blended: flags & 2 == 0,
            is_disposed: flags & 1 != 0,
            is_key: false,
            data: body.get(16..)?,
        })
    }

    /// Decodes the frame's pixels, as a still image of the same chunks.
    fn decode(&self) -> Result<RgbaImage, Fault> {
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        let mut add = |name: &[u8], body: &[u8]| {
            file.extend(name);
            file.extend((body.len() as u32).to_le_bytes());
            file.extend(body);
            file.extend(&[0][..body.len() % 2]);
        };
        let find = |wanted: &[&[u8]]| chunks(self.data).find(|(name, _)| wanted.contains(name));
        let (name, pixels) = find(&[b"VP8 ", b"VP8L"]).ok_or("a frame has no pixels")?;
        if let (b"VP8 ", Some((alpha_name, alpha))) = (name, find(&[b"ALPH"])) {
            const HAS_ALPHA: u8 = 1 << 4;
            let mut header = vec![HAS_ALPHA, 0, 0, 0];
            header.extend(&(self.width - 1).to_le_bytes()[..3]);
            header.extend(&(self.height - 1).to_le_bytes()[..3]);
            add(b"VP8X", &header);
            add(alpha_name, alpha);
        }
        add(name, pixels);
        let length = (file.len() - 8) as u32;
        file[4..8].copy_from_slice(&length.to_le_bytes());
        let mut decoder = WebPDecoder::new(Cursor::new(file))?;
        if decoder.dimensions() != (self.width, self.height) {
            return Err("a frame has another size than it says".into());
        }
        decoder.set_limits(limits(decoder.total_bytes()))?;
        Ok(DynamicImage::from_decoder(decoder)?.into_rgba8())
    }

    /// Returns whether no earlier frame is visible: the canvas is empty, or it is replaced completely.
    fn is_key(&self, image: &RgbaImage, before: Option<&Self>) -> bool {
        let Some(before) = before else { return true };
        // libwebp uses the transparency flag of the bitstream instead.
        let replaces = self.is_whole && (!self.is_blended || image.pixels().all(|p| p[3] == 255));
        replaces || (before.is_disposed && (before.is_whole || before.is_key))
    }

    /// Draws the frame over the previous frames.
    fn draw(&self, image: &RgbaImage, canvas: &mut RgbaImage, before: Option<&Self>) {
        let is_key = self.is_key(image, before);
        if is_key {
            canvas.fill(0);
        } else if let Some(before) = before.filter(|before| before.is_disposed) {
            for y in before.top..before.top + before.height {
                for x in before.left..before.left + before.width {
                    canvas.put_pixel(x, y, image::Rgba([0; 4]));
                }
            }
        }
        let cleared = before.filter(|before| before.is_disposed);
        for (x, y, pixel) in image.enumerate_pixels() {
            let (x, y) = (x + self.left, y + self.top);
            let is_bare = is_key || cleared.is_some_and(|before| before.has(x, y));
            if self.is_blended && !is_bare {
                let below = canvas.get_pixel_mut(x, y);
                below.0 = blend(pixel.0, below.0);
            } else {
                canvas.put_pixel(x, y, *pixel);
            }
        }
    }

    fn has(&self, x: u32, y: u32) -> bool {
        (self.left..self.left + self.width).contains(&x)
            && (self.top..self.top + self.height).contains(&y)
    }
}

/// Blends a pixel over another, in the integer arithmetic of libwebp's `BlendPixelNonPremult`.
fn blend(above: [u8; 4], below: [u8; 4]) -> [u8; 4] {
    let alpha = u32::from(above[3]);
    match alpha {
        0 => return below,
        255 => return above,
        _ => {}
    }
    let rest = (u32::from(below[3]) * (256 - alpha)) >> 8;
    let sum = alpha + rest;
    let scale = (1 << 24) / sum;
    let mix = |i: usize| {
        let value = u32::from(above[i]) * alpha + u32::from(below[i]) * rest;
        ((u64::from(value) * u64::from(scale)) >> 24) as u8
    };
    [mix(0), mix(1), mix(2), sum as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_file_is_not_looked_at() {
        let mut file = b"RIFF\x0e\0\0\0WEBPVP8L\x01\0\0\0x\0".to_vec();
        assert_eq!(whole(&file).unwrap(), file);
        let end = file.len();
        // A chunk of several gigabytes after the end, which decoders would allocate.
        file.extend(b"XMP \xff\xff\xff\xff");
        assert_eq!(whole(&file).unwrap().len(), end);
        file[4] += 8;
        assert!(whole(&file).is_err());
        assert!(whole(b"RIFF\0\0\0\0WEBPVP8L").is_err());
    }
}
