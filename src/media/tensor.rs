//! Tensors to pictures.

use candle_core::{DType, Tensor};
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
