//! FreeInit: Wu et al. (2023), arXiv 2312.07537, as `FreeInitMixin` of diffusers 0.42.1.

use std::f64::consts::TAU;

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::request::{Filter, FreeInit};

/// `noise` with the low frequencies of `x`, along frames, height and width. Both are
/// `(clips, frames, channels, height, width)` in f32.
///
/// The mixture is linear: the filter is applied to their difference.
pub(super) fn mixed(x: &Tensor, noise: &Tensor, free_init: &FreeInit) -> Result<Tensor> {
    let (clips, frames, channels, height, width) = noise.dims5()?;
    let exact = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    let difference = (exact(x)? - exact(noise)?)?;
    let volumes = (clips * channels, frames, height, width);
    let difference = difference.transpose(1, 2)?.contiguous()?.reshape(volumes)?;
    let filter = filter(free_init, (frames, height, width));
    let filter = Tensor::from_vec(filter, (1, frames, height, width), &Device::Cpu)?;
    let (real, imaginary) = transform((difference.clone(), difference.zeros_like()?), 1.0)?;
    let spectrum = (real.broadcast_mul(&filter)?, imaginary.broadcast_mul(&filter)?);
    let (low, _) = transform(spectrum, -1.0)?;
    let low = (low / (frames * height * width) as f64)?;
    let low = low.reshape((clips, channels, frames, height, width))?.transpose(1, 2)?;
    let mixture = (exact(noise)? + low)?.to_dtype(DType::F32)?;
    Ok(mixture.contiguous()?.to_device(noise.device())?)
}

/// The discrete Fourier transform of real and imaginary parts along the last three of four axes; with the `sign` -1 its
/// inverse, but for the factor.
fn transform(mut parts: (Tensor, Tensor), sign: f64) -> Result<(Tensor, Tensor)> {
    for _ in 0..3 {
        let (real, imaginary) = parts;
        let shape = real.dims4()?;
        let size = shape.3;
        let angle = |at: usize| TAU * (at / size * (at % size) % size) as f64 / size as f64;
        let matrix = |part: fn(f64) -> f64| {
            let values: Vec<f64> = (0..size * size).map(|at| part(angle(at))).collect();
            Tensor::from_vec(values, (size, size), &Device::Cpu)
        };
        let (cosine, sine) = (matrix(f64::cos)?, (matrix(f64::sin)? * sign)?);
        let times = |x: &Tensor, matrix: &Tensor| x.reshape(((), size))?.matmul(matrix);
        let turned = (
            (times(&real, &cosine)? + times(&imaginary, &sine)?)?,
            (times(&imaginary, &cosine)? - times(&real, &sine)?)?,
        );
        // The next axis becomes the last; after three they are in order again.
        let rotated = |x: Tensor| x.reshape(shape)?.permute((0, 3, 1, 2))?.contiguous();
        parts = (rotated(turned.0)?, rotated(turned.1)?);
    }
    Ok(parts)
}

/// The low-pass filter's factors `(frames, height, width)`, the frequency 0 first as the transform has it.
fn filter(free_init: &FreeInit, (frames, height, width): (usize, usize, usize)) -> Vec<f64> {
    let &FreeInit { filter, order, spatial, temporal, .. } = free_init;
    let mut values = Vec::with_capacity(frames * height * width);
    // Frequencies are counted with 0 in the middle.
    let centred = |at: usize, size: usize| (at + size / 2) % size;
    let distance = |at: usize, size: usize| 2.0 * centred(at, size) as f64 / size as f64 - 1.0;
    let within = |at: usize, size: usize, stop: f64| {
        let reach = ((size / 2) as f64 * stop).round_ties_even();
        let offset = centred(at, size) as f64 - (size / 2) as f64;
        offset >= -reach && offset < reach
    };
    for t in 0..frames {
        for h in 0..height {
            for w in 0..width {
                let value = if spatial == 0.0 || temporal == 0.0 {
                    0.0
                } else {
                    let along = spatial / temporal * distance(t, frames);
                    let (down, across) = (distance(h, height), distance(w, width));
                    let square = along * along + down * down + across * across;
                    match filter {
                        Filter::Butterworth => {
                            1.0 / (1.0 + (square / (spatial * spatial)).powi(order as i32))
                        }
                        Filter::Gaussian => (-square / (2.0 * spatial * spatial)).exp(),
                        // The square of the distance, not the distance, as in diffusers.
                        Filter::Ideal => f64::from(square <= 2.0 * spatial),
                        Filter::Box => f64::from(
                            within(t, frames, temporal)
                                && within(h, height, spatial)
                                && within(w, width, spatial),
                        ),
                    }
                };
                // diffusers keeps its filter in f32.
                values.push(f64::from(value as f32));
            }
        }
    }
    values
}
