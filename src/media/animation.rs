//! Decoders of GIF and APNG animations. Transparency is dropped, as in PIL, unless a colour is given.

use std::io::Cursor;

use image::codecs::{gif::GifDecoder, png::PngDecoder};
use image::metadata::Orientation;
use image::{AnimationDecoder, DynamicImage, Frames, ImageDecoder};

use super::exif;
use super::fault::{Convert, Fault};
use super::still::{flat, limits, turned, upright};
use super::take::{Take, pixels};

/// Peak memory of the GIF decoder, in bytes per canvas pixel.
const GIF_CANVAS: u64 = 12;

/// Peak memory of the APNG decoder, which lists the cleared pixels, in bytes per canvas pixel.
const APNG_CANVAS: u64 = 24;

/// Memory in bytes that a frame may take in addition to the canvas.
const DECODER_OVERHEAD: u64 = 64 << 20;

/// Reads the frames of a GIF.
pub(super) fn gif(bytes: &[u8], take: &mut Take<'_>) -> Result<(), Fault> {
    let mut decoder = GifDecoder::new(Cursor::new(bytes))?;
    let size = decoder.dimensions();
    take.budget.canvas(size, GIF_CANVAS)?;
    decoder.set_limits(limits(pixels(size) * GIF_CANVAS + DECODER_OVERHEAD))?;
    all(decoder.into_frames(), size, Orientation::NoTransforms, take)
}

/// Returns whether a PNG is an animation.
pub(super) fn is_apng(bytes: &[u8]) -> bool {
    for (kind, _) in png_chunks(bytes) {
        match kind {
            b"acTL" => return true,
            b"IDAT" | b"IEND" => return false,
            _ => {}
        }
    }
    false
}

/// The chunks of a PNG by kind and contents; the last may be truncated.
pub(super) fn png_chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    const SIGNATURE: usize = 8;
    let mut rest = bytes.get(SIGNATURE..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let body = after.get(..length).unwrap_or(after);
        // A checksum follows.
        rest = length.checked_add(4).and_then(|skip| after.get(skip..)).unwrap_or_default();
        Some((kind, body))
    })
}

/// Reads the frames of an APNG.
pub(super) fn apng(bytes: &[u8], take: &mut Take<'_>) -> Result<(), Fault> {
    let mut decoder = PngDecoder::with_limits(Cursor::new(bytes), limits(take.budget.left()))?;
    let color = decoder.color_type();
    if color.bytes_per_pixel() > color.channel_count() {
        let reason = "is an APNG with 16 bits, only those with 8 are read";
        return Err(Fault::Foreign(reason.into(), Convert::Animation));
    }
    let (size, orientation) = (decoder.dimensions(), exif::orientation(&mut decoder));
    take.budget.canvas(size, APNG_CANVAS)?;
    decoder.set_limits(limits(pixels(size) * APNG_CANVAS + DECODER_OVERHEAD))?;
    all(decoder.apng()?.into_frames(), size, orientation, take)
}

/// Reads all frames of a decoder with a canvas of this size.
fn all(
    mut frames: Frames<'_>,
    size: (u32, u32),
    orientation: Orientation,
    take: &mut Take<'_>,
) -> Result<(), Fault> {
    while !take.is_full() {
        let Some(frame) = frames.next() else { return Ok(()) };
        let frame = frame?;
        if take.wants(turned(size, orientation))? {
            let image = flat(DynamicImage::ImageRgba8(frame.into_buffer()), take.background);
            take.keep(upright(image, orientation));
        }
    }
    Ok(())
}
