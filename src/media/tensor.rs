//! Conversion between tensors and images.

use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};

use crate::{Error, Result};

/// Converts one decoded frame, `(3, height, width)` in `[0, 1]`, to 8-bit RGB.
///
/// Values are rounded half to even, as in PIL and numpy.
///
/// # Errors
///
/// A tensor of another shape, or one that contains NaN.
pub fn to_rgb(frame: &Tensor) -> Result<RgbImage> {
    to_bytes(frame, f32::round_ties_even)
}

/// [`to_rgb`] with values cut to whole numbers, as by numpy's `astype(uint8)`.
///
/// # Errors
///
/// Those of [`to_rgb`].
pub fn to_rgb_cut(frame: &Tensor) -> Result<RgbImage> {
    to_bytes(frame, f32::trunc)
}

fn to_bytes(frame: &Tensor, whole: fn(f32) -> f32) -> Result<RgbImage> {
    let (_, height, width) = frame.dims3()?;
    let planes = frame.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if planes.iter().any(|v| v.is_nan()) {
        return Err(Error::request("frames", "the decoded image holds NaN")
            .with_hint("a half-precision VAE may overflow: try --dtype f32"));
    }
    let area = height * width;
    let mut pixels = Vec::with_capacity(3 * area);
    for i in 0..area {
        for plane in 0..3 {
            pixels.push(whole((planes[plane * area + i] * 255.0).clamp(0.0, 255.0)) as u8);
        }
    }
    RgbImage::from_raw(width as u32, height as u32, pixels)
        .ok_or_else(|| Error::request("frames", "a decoded frame must have three channels"))
}

/// Converts images of one size to `(frames, 3, height, width)` in `[0, 1]`, in f32.
///
/// # Errors
///
/// An empty list, or images of different sizes.
pub fn from_rgb(frames: &[RgbImage], device: &Device) -> Result<Tensor> {
    let (width, height) = one_size(frames)?;
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.as_raw().iter().copied()).collect();
    let pixels = Tensor::from_vec(bytes, (frames.len(), height, width, 3), device)?;
    Ok((pixels.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)? / 255.0)?)
}

/// An image, `(1, 3, height, width)` in f32, whose channels have a `mean` subtracted and are divided by a `deviation`,
/// as by transformers' image processors.
///
/// # Errors
///
/// None that a decoded image can have.
pub fn normalized(image: &RgbImage, mean: [f32; 3], deviation: [f32; 3]) -> Result<Tensor> {
    let values: Vec<f32> = (0..3)
        .flat_map(|channel| {
            image.pixels().map(move |pixel| {
                // In f64 up to here, as in transformers.
                let value = (f64::from(pixel[channel]) * (1.0 / 255.0)) as f32;
                (value - mean[channel]) / deviation[channel]
            })
        })
        .collect();
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu)?)
}

/// Converts images of one size to grayscale `(frames, 1, height, width)` in `[0, 1]`, in f32, like PIL's
/// `convert("L")`.
///
/// # Errors
///
/// Those of [`from_rgb`].
pub fn to_grey(frames: &[RgbImage], device: &Device) -> Result<Tensor> {
    let (width, height) = one_size(frames)?;
    let grey = |frame: &RgbImage| frame.pixels().map(|pixel| luma(*pixel)).collect::<Vec<_>>();
    let bytes: Vec<u8> = frames.iter().flat_map(grey).collect();
    let pixels = Tensor::from_vec(bytes, (frames.len(), 1, height, width), device)?;
    Ok((pixels.to_dtype(DType::F32)? / 255.0)?)
}

/// The grey of a pixel, as PIL's `convert("L")`.
pub fn luma(pixel: Rgb<u8>) -> u8 {
    // ITU-R 601-2 luma weights in 16-bit fixed point, which add up to one.
    let [red, green, blue] = pixel.0.map(u32::from);
    ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16) as u8
}

/// The common width and height of all images.
fn one_size(frames: &[RgbImage]) -> Result<(usize, usize)> {
    let size = frames.first().map(RgbImage::dimensions).unwrap_or_default();
    if size == (0, 0) || frames.iter().any(|frame| frame.dimensions() != size) {
        return Err(Error::request("frames", "images of one size are needed"));
    }
    Ok((size.0 as usize, size.1 as usize))
}
