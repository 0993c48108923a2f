//! Colours of Stable Diffusion 1.5's latents without a decoder.

use candle_core::{DType, Tensor};

use crate::Result;

/// What each channel of a latent adds to red, green and blue in `[-1, 1]`: ComfyUI's fit for Stable Diffusion 1.5
/// (v0.3.48, `comfy/latent_formats.py`, `SD15.latent_rgb_factors`).
const SD15: [[f32; 3]; 4] = [
    [0.3512, 0.2297, 0.3227],
    [0.3250, 0.4974, 0.2350],
    [-0.2829, 0.1762, 0.2721],
    [-0.2120, -0.2616, -0.7177],
];

/// Pixels of Stable Diffusion 1.5's scaled latents `(frames, 4, height, width)`, one for each latent:
/// `(frames, 3, height, width)` in `[0, 1]`.
pub fn latent_rgb(latents: &Tensor) -> Result<Tensor> {
    let (frames, channels, height, width) = latents.dims4()?;
    let factors = Tensor::new(&SD15, latents.device())?;
    let rows = latents.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?.contiguous()?;
    let colors = rows.reshape((frames * height * width, channels))?.matmul(&factors)?;
    let images = colors.reshape((frames, height, width, 3))?.permute((0, 3, 1, 2))?;
    Ok(images.contiguous()?.affine(0.5, 0.5)?.clamp(0f32, 1f32)?)
}
