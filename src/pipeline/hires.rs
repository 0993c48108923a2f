//! The second pass at a larger size: the latents that it starts from.

use candle_core::{DType, Device, Tensor};

use super::event::Event;
use super::passes::Start;
use super::source::SourceFrames;
use super::{Decoding, Observer, Pipeline, Prepared, decode};
use crate::Result;
use crate::media::RgbImage;
use crate::media::resize::{Fit, resize};
use crate::models::vae::{Tiled, Vae};
use crate::request::{Hires, Upscale};
use crate::rng::Noise;

impl Pipeline {
    /// The clean `latents` of the first pass, enlarged and at the first noise level of the second one, which is
    /// `prepared`.
    pub(super) fn enlarged(
        &self,
        prepared: &Prepared,
        hires: &Hires,
        (latents, vae): (&Tensor, &Vae),
        noise: &mut Noise,
        observer: &mut dyn Observer,
    ) -> Result<Start> {
        let factor = self.models.factor();
        let (height, width) = (prepared.height / factor, prepared.width / factor);
        let clean = match hires.upscale {
            Upscale::Bicubic => resampled(latents, (height, width), cubic)?,
            Upscale::Nearest => resampled(latents, (height, width), nearest)?,
            Upscale::Pixels => {
                let frames = self.frames(prepared, (latents, vae))?;
                let clean = self.encode_source(prepared, &frames, noise, observer)?;
                return self.noised_source(prepared, &clean, noise);
            }
        };
        let (kind, frames) = (prepared.request.sampling.noise, clean.dim(1)?);
        let windows = prepared.windows.map_or((frames, frames), |w| (w.length(), w.hop()));
        let unit = noise.clip(kind, clean.dims5()?, windows, &self.device)?;
        Ok(Start::Noised(prepared.plan.start().add_noise(&clean, &unit)?, None))
    }

    /// Decoded frames in the size of a second pass, as if they were a video's.
    fn frames(&self, prepared: &Prepared, (latents, vae): (&Tensor, &Vae)) -> Result<SourceFrames> {
        let mut images = Vec::new();
        let decoder = Tiled::new(vae, prepared.tiling);
        let mut silent = |_: Event| Ok(());
        let with = Decoding { dtype: self.precision.vae, colors: None };
        decode((&decoder, &self.stop), latents, with, &mut silent, &mut &mut images)?;
        let size = images.first().map_or((0, 0), RgbImage::dimensions);
        let (width, height) = (prepared.width as u32, prepared.height as u32);
        let larger = |image| resize(image, width, height, Fit::Stretch, &self.stop);
        let images = images.iter().map(larger).collect::<Result<_>>()?;
        Ok(SourceFrames { images, size, is_cut: false, colors: None, numbers: vec![] })
    }
}

/// Latents `(clips, frames, channels, ..)` at another height and width, by a product with `weights` along each: those of
/// every old place in every new one.
fn resampled(
    x: &Tensor,
    (height, width): (usize, usize),
    weights: fn(usize, usize) -> Vec<f32>,
) -> Result<Tensor> {
    let (clips, frames, channels, old_height, old_width) = x.dims5()?;
    let matrix = |old: usize, new: usize| {
        Tensor::from_vec(weights(old, new), (old, new), &Device::Cpu)?.to_device(x.device())
    };
    let images = clips * frames * channels;
    let x = x.to_dtype(DType::F32)?.reshape((images * old_height, old_width))?;
    let x = x.matmul(&matrix(old_width, width)?)?.reshape((images, old_height, width))?;
    let x = x.transpose(1, 2)?.contiguous()?.reshape((images * width, old_height))?;
    let x = x.matmul(&matrix(old_height, height)?)?.reshape((images, width, height))?;
    let x = x.transpose(1, 2)?.contiguous()?;
    Ok(x.reshape((clips, frames, channels, height, width))?)
}

/// Weights of nearest neighbours, as torch's `interpolate` has them.
fn nearest(old: usize, new: usize) -> Vec<f32> {
    let mut weights = vec![0.0; old * new];
    for at in 0..new {
        let from = (at as f64 * old as f64 / new as f64) as usize;
        weights[from.min(old - 1) * new + at] = 1.0;
    }
    weights
}

/// Weights of bicubic interpolation with the parameter -0.75 and repeated edges, as torch's `interpolate` has them.
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
