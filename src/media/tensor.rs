//! Tensors to pictures and back.

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use crate::{Error, Result};

/// Turns one decoded frame, `(3, height, width)` in `[0, 1]`, into 8-bit RGB.
///
/// Values are rounded to nearest, halves to even, as PIL and numpy do.
///
/// # Errors
///
/// When the tensor has another shape, or holds a value that is not a number.
pub fn to_rgb(frame: &Tensor) -> Result<RgbImage> {
    let (_, height, width) = frame.dims3()?;
    let planes = frame.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if planes.iter().any(|v| v.is_nan()) {
        return Err(Error::request("frames", "the decoded picture holds NaN")
            .with_hint("a half-precision VAE may overflow: try --dtype f32"));
    }
    let area = height * width;
    let mut pixels = Vec::with_capacity(3 * area);
    for i in 0..area {
        for plane in 0..3 {
            pixels
                .push((planes[plane * area + i] * 255.0).clamp(0.0, 255.0).round_ties_even() as u8);
        }
    }
    RgbImage::from_raw(width as u32, height as u32, pixels)
        .ok_or_else(|| Error::request("frames", "a decoded frame must have three channels"))
}

/// Turns pictures of one size into `(frames, 3, height, width)` in `[0, 1]`, in f32.
///
/// # Errors
///
/// When there is no picture, or their sizes differ.
pub fn from_rgb(frames: &[RgbImage], device: &Device) -> Result<Tensor> {
    let size = frames.first().map(RgbImage::dimensions).unwrap_or_default();
    if size == (0, 0) || frames.iter().any(|frame| frame.dimensions() != size) {
        return Err(Error::request("frames", "pictures of one size are needed"));
    }
    let (width, height) = (size.0 as usize, size.1 as usize);
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.as_raw().iter().copied()).collect();
    let pixels = Tensor::from_vec(bytes, (frames.len(), height, width, 3), device)?;
    Ok((pixels.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)? / 255.0)?)
}
