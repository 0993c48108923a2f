//! Decoder of still images: sizes are checked before decoding, and images are rotated upright.

use std::io::Cursor;

use image::codecs::{
    bmp::BmpDecoder, jpeg::JpegDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder,
};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, Limits, RgbImage};

use super::background::Background;
use super::exif;
use super::fault::Fault;
use super::take::{Take, pixels};

/// Reads the image of a file.
pub(super) fn read(format: ImageFormat, bytes: &[u8], take: &mut Take<'_>) -> Result<(), Fault> {
    let input = Cursor::new(bytes);
    let limits = limits(take.budget.left());
    match format {
        ImageFormat::Jpeg => {
            let is_progressive = whole_jpeg(bytes)?;
            // DCT coefficients of all three components.
            let extra = if is_progressive { 6 } else { 0 };
            one(JpegDecoder::new(input)?, extra, take)
        }
        ImageFormat::Png => one(PngDecoder::with_limits(input, limits)?, 0, take),
        ImageFormat::WebP => one(WebPDecoder::new(input)?, 4, take),
        ImageFormat::Bmp => one(BmpDecoder::new(input)?, 0, take),
        ImageFormat::Tiff => {
            let decoder = TiffDecoder::new(input)?;
            // The TIFF decoder copies from a buffer of its own.
            let extra = u64::from(decoder.color_type().bytes_per_pixel());
            one(decoder, extra, take)
        }
        _ => Err("is not an image that is read".into()),
    }
}

/// Decoder limits with a maximum allocation in bytes.
pub(super) fn limits(bytes: u64) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(bytes);
    limits
}

/// Reads the image of a decoder, which needs `extra` bytes per pixel while decoding.
fn one(mut decoder: impl ImageDecoder, extra: u64, take: &mut Take<'_>) -> Result<(), Fault> {
    let orientation = exif::orientation(&mut decoder);
    let size = turned(decoder.dimensions(), orientation);
    check(&decoder, extra, orientation, take)?;
    decoder.set_limits(limits(take.budget.left()))?;
    if take.wants(size)? {
        let image = match decoder.color_type() {
            ColorType::L8 => grey(decoder)?,
            _ => flat(DynamicImage::from_decoder(decoder)?, take.background),
        };
        take.keep(upright(image, orientation));
    }
    Ok(())
}

/// Checks that everything allocated to decode an image is within the budget.
fn check(
    decoder: &impl ImageDecoder,
    extra: u64,
    orientation: Orientation,
    take: &Take<'_>,
) -> Result<(), Fault> {
    let size = decoder.dimensions();
    let rgb = pixels(size).saturating_mul(3);
    let copy = match decoder.color_type() {
        ColorType::L8 | ColorType::Rgb8 | ColorType::Rgba8 => 0,
        // Its alpha is used after the conversion.
        color if color.has_alpha() && take.background.is_some() => pixels(size).saturating_mul(4),
        _ => rgb,
    };
    let values = decoder.total_bytes().max(rgb);
    let decoded = values.saturating_add(copy.max(pixels(size).saturating_mul(extra)));
    let turned = if orientation == Orientation::NoTransforms { 0 } else { rgb.saturating_mul(2) };
    take.budget.fits(size, decoded.max(turned))
}

/// Decodes a grayscale image to RGB, in the memory of the result.
fn grey(decoder: impl ImageDecoder) -> Result<RgbImage, Fault> {
    let (width, height) = decoder.dimensions();
    let count = width as usize * height as usize;
    let mut values = vec![0; 3 * count];
    decoder.read_image(&mut values[..count])?;
    for pixel in (0..count).rev() {
        let value = values[pixel];
        values[3 * pixel..3 * pixel + 3].fill(value);
    }
    Ok(RgbImage::from_raw(width, height, values).unwrap_or_default())
}

/// Puts an image on a colour, or drops its alpha channel if there is none; in place if possible.
pub(super) fn flat(image: DynamicImage, background: Option<Background>) -> RgbImage {
    let image = match background {
        Some(_) if image.color().has_alpha() => DynamicImage::ImageRgba8(image.into_rgba8()),
        _ => image,
    };
    match image {
        DynamicImage::ImageRgba8(mut image) => {
            let (width, height) = image.dimensions();
            for pixel in image.pixels_mut().filter(|pixel| pixel[3] < 255) {
                let Some(background) = background else { break };
                let [red, green, blue] = background.behind(pixel.0);
                *pixel = image::Rgba([red, green, blue, 255]);
            }
            let mut values = image.into_raw();
            for pixel in 0..values.len() / 4 {
                values.copy_within(4 * pixel..4 * pixel + 3, 3 * pixel);
            }
            values.truncate(values.len() / 4 * 3);
            values.shrink_to_fit();
            RgbImage::from_raw(width, height, values).unwrap_or_default()
        }
        other => other.into_rgb8(),
    }
}

/// Width and height of an image after it is rotated upright.
pub(super) fn turned((width, height): (u32, u32), orientation: Orientation) -> (u32, u32) {
    match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (height, width),
        _ => (width, height),
    }
}

/// Rotates an image upright.
pub(super) fn upright(image: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

/// Checks that a JPEG is not truncated, which decoders do not; returns whether it is progressive.
fn whole_jpeg(bytes: &[u8]) -> Result<bool, Fault> {
    const END: u8 = 0xd9;
    const SCAN: u8 = 0xda;
    let cut_off = || Fault::from("is cut off: its end is missing");
    let mut is_progressive = false;
    let mut at = 0;
    loop {
        // Anything that is not a marker is scan data or padding.
        let rest = bytes.get(at..).ok_or_else(cut_off)?;
        at += rest.iter().position(|byte| *byte == 0xff).ok_or_else(cut_off)? + 1;
        match *bytes.get(at).ok_or_else(cut_off)? {
            // Scan data, padding, and markers without a length.
            0 | 1 | 0xd0..=0xd8 => at += 1,
            0xff => {}
            END => return Ok(is_progressive),
            marker => {
                is_progressive |= matches!(marker, 0xc2 | 0xc6 | 0xca | 0xce);
                let length = bytes.get(at + 1..at + 3).ok_or_else(cut_off)?;
                let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                // The scan header is followed by scan data.
                at += 1 + if marker == SCAN { 2 } else { length.max(2) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_ends_where_its_end_is_not_where_a_thumbnail_ends() {
        let whole: &[u8] = b"\xff\xd8\xff\xe1\x00\x06\xff\xd9\xff\xd9\xff\xda\x00\x02\x12\xff\x00\xff\xd3\x34\xff\xff\xd9rest";
        let end = whole.len() - b"rest".len();
        assert!(!whole_jpeg(whole).unwrap() && !whole_jpeg(&whole[..end]).unwrap());
        for cut in 0..end {
            assert!(whole_jpeg(&whole[..cut]).is_err(), "{cut}");
        }
        assert!(whole_jpeg(b"\xff\xd8\xff\xc2\x00\x02\xff\xd9").unwrap());
    }

    #[test]
    fn transparency_is_dropped_in_place() {
        let image = image::RgbaImage::from_fn(3, 2, |x, y| image::Rgba([x as u8, y as u8, 7, 9]));
        let want = DynamicImage::ImageRgba8(image.clone()).to_rgb8();
        assert_eq!(flat(DynamicImage::ImageRgba8(image), None), want);
    }
}
