//! What a clip will look like, as far as a step tells.
//!
//! Latents of Stable Diffusion 1.5 become pixels by [`latent_rgb`](crate::models::vae::latent_rgb), a product with a 4×3
//! matrix. Those of TAESD, of the model inside the program and of other autoencoders are decoded by their own decoder.

use std::fmt;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Serialize;

use super::{Decoding, Event, Pipeline, Prepared, decode};
use crate::media::resize::{Fit, resize};
use crate::media::tensor::to_rgb_cut;
use crate::media::{RgbImage, row};
use crate::models::vae::{Tiled, latent_rgb};
use crate::{Error, Result};

/// The longest side of a preview's frames, in pixels.
const SIDE: u32 = 256;

/// The most frames of a preview; of longer clips it has every second, third and so on.
const MOST_FRAMES: usize = 32;

/// The clip as the model expects it after a step, in small.
///
/// Its JSON has no pixels.
#[derive(Clone, Serialize)]
pub struct Preview {
    /// Which step is done, from 1; counted as in [`Event::Step`].
    pub step: usize,
    /// Of how many.
    pub steps: usize,
    /// Number of frames, at most 32.
    pub frames: usize,
    /// Width of the frames in pixels, at most 256.
    pub width: u32,
    /// Height of the frames in pixels, at most 256.
    pub height: u32,
    /// Frames a second at which they last as long as the clip.
    pub fps: f64,
    /// The file that they were written to, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The frames.
    #[serde(skip)]
    pub images: Arc<[RgbImage]>,
}

impl Preview {
    /// At most `most` of the frames, evenly spaced, side by side in one picture.
    pub fn row(&self, most: usize) -> RgbImage {
        row(&self.images, most)
    }
}

impl fmt::Debug for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, frames, width, height, .. } = self;
        write!(f, "Preview {{ step: {step}, {frames} frames of {width}x{height} }}")
    }
}

impl Pipeline {
    /// The preview of the `step`-th of `steps` steps, which predicts the clean latents `denoised`,
    /// `(1, frames, channels, height, width)`.
    pub(super) fn preview(
        &self,
        prepared: &Prepared,
        denoised: &Tensor,
        (step, steps): (usize, usize),
    ) -> Result<Event> {
        let all = denoised.dim(1)?;
        let every = all.div_ceil(MOST_FRAMES).max(1);
        let chosen: Vec<u32> = (0..all as u32).step_by(every).collect();
        let frames = chosen.len();
        let chosen = Tensor::from_vec(chosen, frames, denoised.device())?;
        let latents = denoised.contiguous()?.index_select(&chosen, 1)?;
        let images = self.seen(prepared, &latents)?;
        let (width, height) = images.first().map_or((0, 0), |image| small(image.dimensions()));
        let shrink = |image: &RgbImage| {
            let is_small = image.dimensions() == (width, height);
            let fit = Fit::Stretch;
            if is_small { Ok(image.clone()) } else { resize(image, width, height, fit, &self.stop) }
        };
        let images: Vec<RgbImage> = images.iter().map(shrink).collect::<Result<_>>()?;
        let fps = prepared.request.output.fps / every as f64;
        let images = images.into();
        Ok(Event::Preview(Preview { step, steps, frames, width, height, fps, path: None, images }))
    }

    /// Pictures of latents `(1, frames, channels, height, width)`.
    fn seen(&self, prepared: &Prepared, latents: &Tensor) -> Result<Vec<RgbImage>> {
        if !self.models.has_sd_latents() {
            let Some(vae) = &self.vae else {
                let reason = "is not loaded while the clip is sampled".to_owned();
                return Err(Error::Missing { name: "vae".into(), reason });
            };
            let mut images = Vec::new();
            let decoder = Tiled::new(vae, prepared.tiling);
            let mut silent = |_: Event| Ok(());
            let with = Decoding { dtype: self.precision.vae, colors: self.colors, overlay: None };
            decode((&decoder, &self.stop), latents, with, &mut silent, &mut &mut images)?;
            return Ok(images);
        }
        let pixels = latent_rgb(&latents.squeeze(0)?)?.to_device(&Device::Cpu)?;
        let image = |i| {
            let mut image = to_rgb_cut(&pixels.get(i)?)?;
            if let Some(mean) = self.colors {
                mean.apply(&mut image);
            }
            Ok(image)
        };
        (0..pixels.dim(0)?).map(image).collect()
    }
}

/// The size of a preview's frames: that of its images, or smaller in the same shape.
fn small((width, height): (u32, u32)) -> (u32, u32) {
    let scale = (f64::from(SIDE) / f64::from(width.max(height).max(1))).min(1.0);
    let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
    (side(width), side(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pictures_are_shown_small() {
        assert_eq!(small((64, 48)), (64, 48));
        assert_eq!(small((512, 384)), (256, 192));
        assert_eq!(small((4096, 8)), (256, 1));
    }
}
