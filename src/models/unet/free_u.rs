//! FreeU: Si et al. (2023), arXiv 2309.11497, as `enable_freeu` of diffusers 0.42.1.

use std::f64::consts::TAU;

use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::kernels::layout::{feature_map, tokens};

/// Factors of FreeU on the first two up blocks: on half of the backbone's channels, and on the lowest frequencies of
/// the skip connections. All 1 has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreeU {
    /// Factor on the first half of the backbone's channels in the first up block.
    pub b1: f64,
    /// The same in the second.
    pub b2: f64,
    /// Factor on the lowest frequencies of the skip connections in the first up block.
    pub s1: f64,
    /// The same in the second.
    pub s2: f64,
}

impl Default for FreeU {
    /// Those that diffusers recommends for Stable Diffusion 1.5.
    fn default() -> Self {
        Self { b1: 1.5, b2: 1.6, s1: 0.9, s2: 0.2 }
    }
}

impl FreeU {
    /// Changes a layer's inputs in an up block, counted from 0: the backbone's `x` and the `skip` connection, both
    /// `(batch, channels, height, width)`.
    ///
    /// # Errors
    ///
    /// Other shapes.
    pub fn apply(self, block: usize, x: &Tensor, skip: &Tensor) -> Result<(Tensor, Tensor)> {
        let (backbone, low) = match block {
            0 => (self.b1, self.s1),
            1 => (self.b2, self.s2),
            _ => return Ok((x.clone(), skip.clone())),
        };
        Ok((scale_half(x, backbone)?, scale_lowest(skip, low)?))
    }
}

/// `x` with the first half of its channels times `factor`.
fn scale_half(x: &Tensor, factor: f64) -> Result<Tensor> {
    let (_, channels, height, width) = x.dims4()?;
    let factors: Vec<f32> =
        (0..channels).map(|i| if i < channels / 2 { factor as f32 } else { 1.0 }).collect();
    let factors = Tensor::new(factors, x.device())?.to_dtype(x.dtype())?;
    feature_map(&tokens(x)?.broadcast_mul(&factors)?, height, width)
}

/// `x` with its lowest frequencies times `factor`, computed in f32.
///
/// They are four, or fewer where a side is 1: 0 and -1 on each axis, which is diffusers' square in the middle of the
/// spectrum. Of so few the transform and its inverse are two products.
fn scale_lowest(x: &Tensor, factor: f64) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let waves = waves(height, width, x.device())?;
    let flat = tokens(x)?.to_dtype(DType::F32)?; // (batch, height*width, channels)
    let weight = (factor - 1.0) / (height * width) as f64;
    let spectrum = waves.t()?.contiguous()?.broadcast_matmul(&flat)?;
    let lowest = waves.broadcast_matmul(&spectrum)?;
    feature_map(&(flat + (lowest * weight)?)?.to_dtype(x.dtype())?, height, width)
}

/// Real and imaginary parts of the lowest frequencies' waves, `(height*width, waves)`.
fn waves(height: usize, width: usize, device: &Device) -> Result<Tensor> {
    let lowest = |size: usize| if size == 1 { 0..=0 } else { -1..=0 };
    let mut values = Vec::new();
    for row in 0..height {
        for column in 0..width {
            for u in lowest(height) {
                for v in lowest(width) {
                    let turns = f64::from(u) * row as f64 / height as f64
                        + f64::from(v) * column as f64 / width as f64;
                    let (sine, cosine) = (TAU * turns).sin_cos();
                    values.extend([cosine as f32, sine as f32]);
                }
            }
        }
    }
    let count = values.len() / (height * width).max(1);
    Tensor::from_vec(values, (height * width, count), device)
}
