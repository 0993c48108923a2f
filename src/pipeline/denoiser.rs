//! The denoising network with guidance, as samplers call it.

use candle_core::{DType, Tensor};

use super::perturbed::Perturbed;
use super::rescale::rescaled;
use super::states::States;
use crate::adapters::{Conditioner, Pass, Progress};
use crate::models::Predict;
use crate::models::motion::MotionNorm;
use crate::models::unet::{FreeU, Injection, UNetInput};
use crate::sampler::Denoiser;
use crate::schedule::{NoiseLevel, Prediction};
use crate::{Error, Result, Stop};

/// How the outputs that guidance is made of are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guidance {
    /// All in one batch: faster.
    Batched,
    /// One after the other: half the memory, or a third.
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

/// Outputs for the same latents, each of their shape.
struct Branches {
    /// For the negative prompt, with classifier-free guidance.
    uncond: Option<Tensor>,
    /// For the prompt.
    cond: Tensor,
    /// For the prompt with some self-attentions switched off, with perturbed-attention guidance.
    perturbed: Option<Tensor>,
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
    /// Share in which guidance is rescaled.
    rescale: f64,
    free_u: Option<FreeU>,
    perturbed: Option<Perturbed>,
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
            rescale: 0.0,
            free_u: None,
            perturbed: None,
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

    /// Computes the outputs that guidance is made of in one batch, or one after the other.
    #[must_use]
    pub fn computed(self, guidance: Guidance) -> Self {
        Self { guidance, ..self }
    }

    /// Rescales guidance in a share from 0 to 1: arXiv 2305.08891, section 3.4.
    #[must_use]
    pub fn rescale(self, share: f64) -> Self {
        Self { rescale: share, ..self }
    }

    /// Runs the network with FreeU's factors.
    #[must_use]
    pub fn with_free_u(self, free_u: Option<FreeU>) -> Self {
        Self { free_u, ..self }
    }

    /// Guides away from the output of the network with some self-attentions switched off.
    #[must_use]
    pub fn perturb(self, perturbed: Option<Perturbed>) -> Self {
        Self { perturbed, ..self }
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
        let output = self.output(x, (at, frames))?;
        self.settings.prediction.denoised(x, &output, at)
    }

    /// The guided output of the network, of the shape of `x`.
    fn output(&mut self, x: &Tensor, place: (NoiseLevel, &[usize])) -> Result<Tensor> {
        let Branches { uncond, cond, perturbed } = self.branches(x, place)?;
        let mut output = match (&uncond, &self.negative) {
            (Some(uncond), Some((_, scale))) => (uncond + ((&cond - uncond)? * *scale)?)?,
            _ => cond.clone(),
        };
        if let (Some(perturbed), Some(pag)) = (&perturbed, &self.perturbed) {
            output = pag.guide(&output, (&cond, perturbed), place.0.timestep)?;
        }
        if uncond.is_some() && self.rescale > 0.0 {
            output = rescaled(&output, &cond, self.rescale)?;
        }
        Ok(output)
    }

    /// The outputs that guidance is made of.
    fn branches(&mut self, x: &Tensor, place: (NoiseLevel, &[usize])) -> Result<Branches> {
        let context = self.states(&self.context, x, place.1)?;
        let negative = self.negative.as_ref();
        let negative = negative.map(|(states, _)| self.states(states, x, place.1)).transpose()?;
        let clips = x.dim(0)?;
        let (is_guided, is_perturbed) = (negative.is_some(), self.perturbed.is_some());
        let again = is_perturbed.then(|| context.clone());
        let contexts: Vec<Tensor> = negative.into_iter().chain([context]).chain(again).collect();
        let count = contexts.len();
        let part = |is_there: bool| if is_there { clips } else { 0 };
        let mut outputs = match self.guidance {
            Guidance::Batched if count > 1 => {
                let all = Tensor::cat(&vec![x; count], 0)?;
                let special = (part(is_guided), part(is_perturbed));
                let sizes = contexts.iter().map(|context| context.dim(0));
                let most = sizes.collect::<candle_core::Result<Vec<_>>>()?.into_iter().max();
                let each = contexts.iter().map(|context| repeated(context, most.unwrap_or(1)));
                let contexts = Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)?;
                self.pass(&all, &contexts, special, place)?.chunk(count, 0)?
            }
            _ => {
                let each = contexts.iter().enumerate().map(|(i, context)| {
                    let special = (part(is_guided && i == 0), part(is_perturbed && i + 1 == count));
                    self.pass(x, context, special, place)
                });
                each.collect::<Result<_>>()?
            }
        }
        .into_iter();
        let mut next = || {
            let missing = || Error::Missing { name: "guidance".into(), reason: "no output".into() };
            outputs.next().ok_or_else(missing)
        };
        Ok(Branches {
            uncond: is_guided.then(&mut next).transpose()?,
            cond: next()?,
            perturbed: is_perturbed.then(next).transpose()?,
        })
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

    /// One pass over a batch whose first `negatives` clips have the negative prompt, and whose last `perturbed` ones
    /// self-attentions that are switched off.
    fn pass(
        &mut self,
        x: &Tensor,
        context: &Tensor,
        (negatives, perturbed): (usize, usize),
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
        let perturbation =
            self.perturbed.as_ref().filter(|_| perturbed > 0).map(|pag| pag.of(perturbed));
        let mut injection = Injection::default();
        (injection.free_u, injection.perturbation) = (self.free_u, perturbation);
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
