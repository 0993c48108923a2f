//! Resizing of feature maps, with the weights of torch's `interpolate`.

use candle_core::{DType, Device, Result, Tensor};

/// How values between pixels are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// `nearest`: the pixel that a place lies in.
    Nearest,
    /// `bicubic` with the parameter -0.75 and repeated edges; pixels are areas (`align_corners=False`).
    Bicubic,
    /// `bilinear` where corners stay in place (`align_corners=True`).
    BilinearCorners,
}

/// A map `(batch, channels, height, width)` at another height and width, computed in f32 by a product along each axis,
/// and of the same dtype.
pub fn interpolate(
    x: &Tensor,
    (height, width): (usize, usize),
    how: Interpolation,
) -> Result<Tensor> {
    let (batch, channels, old_height, old_width) = x.dims4()?;
    let weights = match how {
        Interpolation::Nearest => nearest,
        Interpolation::Bicubic => cubic,
        Interpolation::BilinearCorners => linear_corners,
    };
    let matrix = |old: usize, new: usize| {
        Tensor::from_vec(weights(old, new), (old, new), &Device::Cpu)?.to_device(x.device())
    };
    let dtype = x.dtype();
    let images = batch * channels;
    let x = x.to_dtype(DType::F32)?.reshape((images * old_height, old_width))?;
    let x = x.matmul(&matrix(old_width, width)?)?.reshape((images, old_height, width))?;
    let x = x.transpose(1, 2)?.contiguous()?.reshape((images * width, old_height))?;
    let x = x.matmul(&matrix(old_height, height)?)?.reshape((images, width, height))?;
    let x = x.transpose(1, 2)?.contiguous()?;
    x.reshape((batch, channels, height, width))?.to_dtype(dtype)
}

/// Weights of every old place in every new one, `(old, new)`.
fn nearest(old: usize, new: usize) -> Vec<f32> {
    let mut weights = vec![0.0; old * new];
    for at in 0..new {
        let from = (at as f64 * old as f64 / new as f64) as usize;
        weights[from.min(old - 1) * new + at] = 1.0;
    }
    weights
}

fn cubic(old: usize, new: usize) -> Vec<f32> {
    const A: f64 = -0.75;
    let kernel = |x: f64| match x.abs() {
        x if x <= 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
        _ => 0.0,
    };
    let mut weights = vec![0.0; old * new];
    for at in 0..new {
        let place = (at as f64 + 0.5) * old as f64 / new as f64 - 0.5;
        for neighbour in -1..=2 {
            let from = place.floor() + f64::from(neighbour);
            let edge = from.clamp(0.0, (old - 1) as f64) as usize;
            weights[edge * new + at] += kernel(place - from) as f32;
        }
    }
    weights
}

fn linear_corners(old: usize, new: usize) -> Vec<f32> {
    let scale = if new > 1 { (old - 1) as f64 / (new - 1) as f64 } else { 0.0 };
    let mut weights = vec![0.0; old * new];
    for at in 0..new {
        let place = scale * at as f64;
        let first = (place as usize).min(old - 1);
        let second = (first + 1).min(old - 1);
        let share = (place - first as f64) as f32;
        weights[first * new + at] += 1.0 - share;
        weights[second * new + at] += share;
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_stay_and_places_between_are_mixed() {
        let x = Tensor::new(&[0f32, 10.0, 30.0], &Device::Cpu).unwrap();
        let x = x.reshape((1, 1, 1, 3)).unwrap();
        let at = |width| {
            let y = interpolate(&x, (2, width), Interpolation::BilinearCorners).unwrap();
            y.squeeze(0).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(at(5), vec![vec![0.0, 5.0, 10.0, 20.0, 30.0]; 2]);
        assert_eq!(at(1), vec![vec![0.0]; 2]);
    }
}
