//! The denoising network with guidance, as samplers call it.

use candle_core::{DType, Tensor};

use super::states::States;
use crate::adapters::{Conditioner, Pass, Progress};
use crate::models::Predict;
use crate::models::motion::MotionNorm;
use crate::models::unet::{Injection, UNetInput};
use crate::sampler::Denoiser;
use crate::schedule::{NoiseLevel, Prediction};
use crate::{Error, Result, Stop};

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
    /// The dtype of its weights.
    pub dtype: DType,
    /// Over what its motion modules normalize.
    pub motion_norm: MotionNorm,
}

/// The network with a prompt, and perhaps a negative prompt to be guided away from.
#[derive(Debug)]
pub struct Guided<'a> {
    network: &'a dyn Predict,
    settings: Settings,
    context: States,
    /// States of the negative prompt, and the scale.
    negative: Option<(States, f64)>,
    guidance: Guidance,
    conditioners: Vec<Box<dyn Conditioner + 'a>>,
    progress: Progress,
    stop: Stop,
}

impl<'a> Guided<'a> {
    /// The network with a prompt's states, such as a tensor `(batch, tokens, dim)`.
    pub fn new(
        network: &'a dyn Predict,
        settings: Settings,
        context: impl Into<States>,
    ) -> Result<Self> {
        let context = context.into().shared_in(settings.dtype)?;
        Ok(Self {
            network,
            settings,
            context,
            negative: None,
            guidance: Guidance::Batched,
            conditioners: vec![],
            progress: Progress { step: 0, steps: 1 },
            stop: Stop::default(),
        })
    }

    /// Ends a pass with [`Error::Cancelled`] within a layer once `stop` is requested.
    #[must_use]
    pub fn until(self, stop: &Stop) -> Self {
        Self { stop: stop.clone(), ..self }
    }

    /// Guides away from a negative prompt's states, of the shape of the prompt's.
    pub fn guide(
        mut self,
        negative: impl Into<States>,
        scale: f64,
        guidance: Guidance,
    ) -> Result<Self> {
        self.negative = Some((negative.into().shared_in(self.settings.dtype)?, scale));
        self.guidance = guidance;
        Ok(self)
    }

    /// Lets conditioners add to every pass, in order.
    #[must_use]
    pub fn condition(self, conditioners: Vec<Box<dyn Conditioner + 'a>>) -> Self {
        Self { conditioners, ..self }
    }

    /// The clean latents predicted from some frames of a clip, such as those of a context window.
    ///
    /// `x` and the result are `(batch, frames, channels, height, width)` in f32; `frames` are the indices of its frames in
    /// the clip, which hints, masks and strengths follow.
    ///
    /// # Errors
    ///
    /// When `frames` are not as many as `x` has; errors of the network and of conditioners.
    pub fn denoise_frames(
        &mut self,
        x: &Tensor,
        at: NoiseLevel,
        frames: &[usize],
    ) -> Result<Tensor> {
        if frames.len() != x.dim(1)? {
            let reason = format!("{} given for latents of {}", frames.len(), x.dim(1)?);
            return Err(Error::request("frames", reason));
        }
        let output = self.output(x, at, frames)?;
        self.settings.prediction.denoised(x, &output, at)
    }

    /// The guided output of the network, of the shape of `x`.
    fn output(&mut self, x: &Tensor, at: NoiseLevel, frames: &[usize]) -> Result<Tensor> {
        let context = self.states(&self.context, x, frames)?;
        let Some((negative, scale)) = &self.negative else {
            return self.pass(x, &context, 0, (at, frames));
        };
        let (negative, scale) = (self.states(negative, x, frames)?, *scale);
        let clips = x.dim(0)?;
        let (uncond, cond) = match self.guidance {
            Guidance::Batched => {
                let both = Tensor::cat(&[&repeated(&negative, context.dim(0)?)?, &context], 0)?;
                let output = self.pass(&Tensor::cat(&[x, x], 0)?, &both, clips, (at, frames))?;
                let halves = output.chunk(2, 0)?;
                (halves[0].clone(), halves[1].clone())
            }
            Guidance::TwoPasses => {
                let uncond = self.pass(x, &negative, clips, (at, frames))?;
                (uncond, self.pass(x, &context, 0, (at, frames))?)
            }
        };
        Ok((&uncond + ((cond - &uncond)? * scale)?)?)
    }

    /// The states of this step and these frames in the network's dtype: one for each clip in `x`, or one for each of
    /// its frames.
    fn states(&self, states: &States, x: &Tensor, frames: &[usize]) -> Result<Tensor> {
        let at = states.at(self.progress.step, frames)?.to_dtype(self.settings.dtype)?;
        let clips = x.dim(0)?;
        if states.travels() && clips > 1 {
            return Ok(at.repeat((clips, 1, 1))?);
        }
        Ok(at)
    }

    /// One pass over a batch whose first `negatives` clips have the negative prompt.
    fn pass(
        &mut self,
        x: &Tensor,
        context: &Tensor,
        negatives: usize,
        (at, frames): (NoiseLevel, &[usize]),
    ) -> Result<Tensor> {
        let (clips, count) = (x.dim(0)?, x.dim(1)?);
        let folded = x.to_dtype(self.settings.dtype)?.flatten(0, 1)?; // (batch*frames, channels, height, width)
        let pass = Pass {
            x: &folded,
            timestep: at.timestep,
            progress: self.progress,
            clips,
            frames,
            context,
            negatives,
            motion_norm: self.settings.motion_norm,
            stop: &self.stop,
        };
        let mut injection = Injection::default();
        for conditioner in &mut self.conditioners {
            conditioner.inject(&pass, &mut injection).map_err(|error| match error {
                // The tensor library does not know whose shapes are wrong.
                Error::Tensor(error) => Error::Adapter {
                    adapter: conditioner.label().to_owned(),
                    reason: Error::of_tensors(&error),
                },
                other => other,
            })?;
        }
        let input = UNetInput {
            timestep: at.timestep,
            frames: count,
            context,
            motion_norm: self.settings.motion_norm,
            injection: &injection,
            stop: &self.stop,
        };
        let output = self.network.predict(&folded, &input)?;
        // Schedules divide by small numbers: that is done in f32.
        Ok(output.to_dtype(DType::F32)?.reshape(x.shape())?)
    }
}

/// States with each entry as often as it takes to have `count` of them.
fn repeated(states: &Tensor, count: usize) -> Result<Tensor> {
    let (clips, tokens, width) = states.dims3()?;
    if clips == count {
        return Ok(states.clone());
    }
    let each = states.unsqueeze(1)?.repeat((1, count / clips.max(1), 1, 1))?;
    Ok(each.reshape((count, tokens, width))?)
}

impl Denoiser for Guided<'_> {
    fn denoise(&mut self, x: &Tensor, at: NoiseLevel) -> Result<Tensor> {
        let frames: Vec<usize> = (0..x.dim(1)?).collect();
        self.denoise_frames(x, at, &frames)
    }

    fn begin_step(&mut self, step: usize, steps: usize) {
        self.progress = Progress { step, steps };
    }
}
