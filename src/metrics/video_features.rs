//! Features of videos by an I3D, whose Fréchet distance is the FVD.
//!
//! Unterthiner et al. (2018), "Towards Accurate Generative Models of Video". What is compared are the logits, as there
//! and in AnimateLCM's own measurement.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::media::RgbImage;
use crate::models::i3d::{I3d, I3dConfig, ignored};
use crate::weights::{Standalone, until};
use crate::{Error, Result, Stop};

/// An I3D that was trained on Kinetics-400.
#[derive(Debug)]
pub struct VideoFeatures {
    network: I3d,
    device: Device,
}

impl VideoFeatures {
    /// Opens a file of pytorch-i3d, such as `i3d_pretrained_400.pt` or the same as safetensors.
    ///
    /// # Errors
    ///
    /// Weights that are missing or superfluous, or a requested `stop`.
    pub fn open(path: &Path, device: &Device, stop: &Stop) -> Result<Self> {
        let files = Standalone::open("I3D", path, ignored)?;
        let config = I3dConfig::from_shapes(|name| files.shape_of(name))?;
        let network =
            files.build(DType::F32, device, |vb| Ok(I3d::new(&config, &until(vb, stop))?))?;
        Ok(Self { network, device: device.clone() })
    }

    /// The features of a clip: the logits of its frames, resized to 224×224.
    ///
    /// # Errors
    ///
    /// Fewer than nine frames, or a requested `stop`.
    pub fn of(&self, frames: &[RgbImage], stop: &Stop) -> Result<Vec<f64>> {
        let logits = self.network.logits(&pixels(frames, &self.device)?, stop)?;
        let logits = logits.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        if logits.iter().all(|value| value.is_finite()) {
            return Ok(logits);
        }
        let summary = "its logits are not finite".into();
        Err(Error::Weights { component: "I3D".into(), summary })
    }
}

/// Frames as an I3D takes them, `(frames, 3, 224, 224)` in `[-1, 1]`.
///
/// # Errors
///
/// No memory on `device`.
pub fn pixels(frames: &[RgbImage], device: &Device) -> Result<Tensor> {
    const SIDE: usize = I3d::SIDE;
    let values: Vec<f32> = frames.par_iter().flat_map_iter(stretched).collect();
    Ok(Tensor::from_vec(values, (frames.len(), 3, SIDE, SIDE), &Device::Cpu)?.to_device(device)?)
}

/// A frame, `(3, 224, 224)`, resized bilinearly and without antialiasing, as by torch's `interpolate`.
fn stretched(frame: &RgbImage) -> Vec<f32> {
    let (columns, rows) = (taps(frame.width()), taps(frame.height()));
    let mut values = Vec::with_capacity(3 * rows.len() * columns.len());
    let at = |x: u32, y: u32, channel: usize| f32::from(frame.get_pixel(x, y)[channel]);
    for channel in 0..3 {
        for (top, bottom, down) in &rows {
            for (left, right, across) in &columns {
                let mix = |y: u32| {
                    (1.0 - across) * at(*left, y, channel) + across * at(*right, y, channel)
                };
                let value = (1.0 - down) * mix(*top) + down * mix(*bottom);
                values.push(2.0 * value / 255.0 - 1.0);
            }
        }
    }
    values
}

/// For each of 224 positions the two pixels that it lies between, and how far it is towards the second.
fn taps(size: u32) -> Vec<(u32, u32, f32)> {
    let scale = size as f32 / I3d::SIDE as f32;
    let last = size.saturating_sub(1);
    let tap = |i: usize| {
        let centre = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
        let first = (centre as u32).min(last);
        (first, (first + 1).min(last), centre - first as f32)
    };
    (0..I3d::SIDE).map(tap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_stretched_between_their_pixels() {
        let frame = RgbImage::from_fn(2, 1, |x, _| image::Rgb([255 * x as u8, 0, 255]));
        let values = stretched(&frame);
        assert_eq!(values.len(), 3 * 224 * 224);
        // Red goes from left to right; the outer quarters have the value of their pixel.
        let row = &values[..224];
        assert_eq!((row[0], row[55], row[168], row[223]), (-1.0, -1.0, 1.0, 1.0));
        assert!(row.is_sorted() && (row[111] + row[112]).abs() < 1e-5, "{row:?}");
        assert_eq!(values[..224], values[223 * 224..224 * 224]);
        assert!(values[224 * 224..2 * 224 * 224].iter().all(|v| *v == -1.0));
        assert!(values[2 * 224 * 224..].iter().all(|v| *v == 1.0));
    }
}
