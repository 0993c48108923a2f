//! Denoising in context windows, so that a clip may be longer than the motion modules know.

use candle_core::Tensor;

use super::denoiser::Guided;
use crate::request::{Loop, Request, Windows};
use crate::rng::NoiseKind;
use crate::sampler::{Denoiser, Window, WindowPlan};
use crate::schedule::NoiseLevel;
use crate::{Error, Result};

/// The network with guidance over the windows of each step, blended by their weights.
#[derive(Debug)]
pub struct Windowed<'a> {
    guided: Guided<'a>,
    plan: Option<WindowPlan>,
    step: usize,
}

impl<'a> Windowed<'a> {
    /// Without a plan the clip is denoised as a whole.
    pub fn new(guided: Guided<'a>, plan: Option<WindowPlan>) -> Self {
        Self { guided, plan, step: 0 }
    }
}

impl Denoiser for Windowed<'_> {
    fn denoise(&mut self, x: &Tensor, at: NoiseLevel) -> Result<Tensor> {
        let Some(plan) = self.plan.filter(|plan| !plan.is_whole()) else {
            return self.guided.denoise(x, at);
        };
        let frames = x.dim(1)?;
        if frames != plan.frames() {
            let reason = format!("{frames} in the latents, the windows are for {}", plan.frames());
            return Err(Error::request("frames", reason));
        }
        let x = x.contiguous()?;
        let mut sum = x.zeros_like()?;
        for Window { frames, weights } in plan.at(self.step) {
            let count = frames.len();
            let places: Vec<u32> = frames.iter().map(|frame| *frame as u32).collect();
            let places = Tensor::new(places, x.device())?;
            let part = x.index_select(&places, 1)?;
            let denoised = self.guided.denoise_frames(&part, at, &frames)?;
            let weights: Vec<f32> = weights.into_iter().map(|weight| weight as f32).collect();
            let weights = Tensor::from_vec(weights, (1, count, 1, 1, 1), x.device())?;
            let weighted = denoised.broadcast_mul(&weights)?.contiguous()?;
            sum = sum.index_add(&places, &weighted, 1)?;
        }
        Ok(sum)
    }

    fn begin_step(&mut self, step: usize, steps: usize) {
        self.step = step;
        self.guided.begin_step(step, steps);
    }
}

/// The windows of a request for motion modules that know so many frames. If there are any, the request then says all
/// of them.
pub(super) fn plan(request: &mut Request, longest: Option<usize>) -> Result<Option<WindowPlan>> {
    let frames = request.frames();
    let looping = request.output.looping;
    let is_needed = longest.is_some_and(|longest| frames > longest);
    let is_asked = request.windows != Windows::default()
        || looping == Loop::Closed
        || request.sampling.noise != NoiseKind::Independent;
    if !is_needed && !is_asked {
        return Ok(None);
    }
    let settings = request.windows.settings(longest, looping);
    if let Some(longest) = longest
        && settings.length > longest
    {
        let reason = format!("{} asked for, the motion modules know {longest}", settings.length);
        let error = Error::request("context-length", reason);
        return Err(error.with_hint(format!("use at most {longest}")));
    }
    let plan = WindowPlan::new(frames, settings)?;
    request.windows = settings.into();
    Ok(Some(plan))
}
