//! The second pass at a larger size: the latents that it starts from.

use candle_core::{DType, Tensor};

use super::event::Event;
use super::passes::Start;
use super::source::SourceFrames;
use super::{Decoding, Observer, Pipeline, Prepared, decode};
use crate::Result;
use crate::media::RgbImage;
use crate::media::resize::{Fit, resize};
use crate::models::vae::{Tiled, Vae};
use crate::nn::{Interpolation, interpolate};
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
            Upscale::Bicubic => resampled(latents, (height, width), Interpolation::Bicubic)?,
            Upscale::Nearest => resampled(latents, (height, width), Interpolation::Nearest)?,
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
        let with = Decoding { dtype: self.precision.vae, colors: None, overlay: None };
        decode((&decoder, &self.stop), latents, with, &mut silent, &mut &mut images)?;
        let size = images.first().map_or((0, 0), RgbImage::dimensions);
        let (width, height) = (prepared.width as u32, prepared.height as u32);
        let larger = |image| resize(image, width, height, Fit::Stretch, &self.stop);
        let images = images.iter().map(larger).collect::<Result<_>>()?;
        Ok(SourceFrames { images, size, is_cut: false, colors: None, numbers: vec![] })
    }
}

/// Latents `(clips, frames, channels, ..)` at another height and width.
fn resampled(x: &Tensor, size: (usize, usize), how: Interpolation) -> Result<Tensor> {
    let (clips, frames, channels, height, width) = x.dims5()?;
    let x = x.to_dtype(DType::F32)?.reshape((clips * frames, channels, height, width))?;
    Ok(interpolate(&x, size, how)?.reshape((clips, frames, channels, size.0, size.1))?)
}
