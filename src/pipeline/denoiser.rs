//! UNet and guidance: what a sampler asks.

use candle_core::{DType, Tensor};

use crate::Result;
use crate::models::motion::MotionNorm;
use crate::models::unet::{UNet, UNetInput};
use crate::sampler::Denoiser;
use crate::schedule::{NoiseLevel, Prediction};

/// How the two halves of classifier-free guidance are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guidance {
    /// Both in one batch: faster.
    Batched,
    /// One after the other: half the memory.
    TwoPasses,
}

/// How the network is run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What its output means.
    pub prediction: Prediction,
    /// The number format of its weights.
    pub dtype: DType,
    /// Over what its motion modules normalize.
    pub motion_norm: MotionNorm,
}

/// The network with a prompt, and perhaps a negative prompt to be guided away from.
#[derive(Debug)]
pub struct Guided<'a> {
    unet: &'a UNet,
    settings: Settings,
    /// `(batch, tokens, dim)`.
    context: Tensor,
    /// The same for the negative prompt, and the scale.
    negative: Option<(Tensor, f64)>,
    guidance: Guidance,
}

impl<'a> Guided<'a> {
    /// The network with a prompt's states, `(batch, tokens, dim)`.
    pub fn new(unet: &'a UNet, settings: Settings, context: &Tensor) -> Result<Self> {
        let context = context.to_dtype(settings.dtype)?;
        Ok(Self { unet, settings, context, negative: None, guidance: Guidance::Batched })
    }

    /// Guides away from a negative prompt's states, of the shape of the prompt's.
    pub fn guide(mut self, negative: &Tensor, scale: f64, guidance: Guidance) -> Result<Self> {
        self.negative = Some((negative.to_dtype(self.settings.dtype)?, scale));
        self.guidance = guidance;
        Ok(self)
    }

    /// The network's output for `x` `(batch, frames, channels, height, width)` in f32, guided; the same shape.
    fn output(&self, x: &Tensor, timestep: f64) -> Result<Tensor> {
        let Some((negative, scale)) = &self.negative else {
            return self.pass(x, &self.context, timestep);
        };
        let (away, towards) = match self.guidance {
            Guidance::Batched => {
                let both = Tensor::cat(&[negative, &self.context], 0)?;
                let halves = self.pass(&Tensor::cat(&[x, x], 0)?, &both, timestep)?.chunk(2, 0)?;
                (halves[0].clone(), halves[1].clone())
            }
            Guidance::TwoPasses => {
                (self.pass(x, negative, timestep)?, self.pass(x, &self.context, timestep)?)
            }
        };
        Ok((&away + ((towards - &away)? * *scale)?)?)
    }

    fn pass(&self, x: &Tensor, context: &Tensor, timestep: f64) -> Result<Tensor> {
        let frames = x.dim(1)?;
        let folded = x.to_dtype(self.settings.dtype)?.flatten(0, 1)?; // (batch*frames, channels, height, width)
        let output = self.unet.forward(
            &folded,
            &UNetInput { timestep, frames, context, motion_norm: self.settings.motion_norm },
        )?;
        // Schedules divide by small numbers: that is done in f32.
        Ok(output.to_dtype(DType::F32)?.reshape(x.shape())?)
    }
}

impl Denoiser for Guided<'_> {
    fn denoise(&mut self, x: &Tensor, at: NoiseLevel) -> Result<Tensor> {
        let output = self.output(x, at.timestep)?;
        self.settings.prediction.denoised(x, &output, at)
    }
}
