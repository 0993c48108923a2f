//! Settings of control networks, and the code that all of them share.

use candle_core::{Result as TensorResult, Tensor};

use super::{ActiveRange, Pass, Strength};
use crate::models::unet::{Injection, Residuals};
use crate::{Error, Result};

/// Settings of a control network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ControlSettings {
    /// The name used in messages.
    pub label: String,
    /// Strength per frame.
    pub strength: Strength,
    /// The part of the run in which the network is active.
    pub range: ActiveRange,
    /// Guess mode: deep residuals are weighted more than shallow ones, and the unconditional half gets none.
    pub guess: bool,
}

/// The part of a pass that is passed to a control network.
#[derive(Clone, Copy, Debug)]
pub(super) struct NetworkInput<'a> {
    /// Latents, `(batch*frames, channels, height, width)`.
    pub(super) x: &'a Tensor,
    /// Text embeddings, `(batch, tokens, dim)`, or `(batch*frames, tokens, dim)` with one prompt per frame.
    pub(super) context: &'a Tensor,
    /// Number of clips in the batch.
    pub(super) clips: usize,
}

impl ControlSettings {
    /// The strengths of a pass's frames; `None` if the network adds nothing to the pass.
    pub(super) fn strengths(&self, pass: &Pass<'_>) -> Option<Vec<f64>> {
        let strengths: Vec<f64> = pass.frames.iter().map(|f| self.strength.at(*f)).collect();
        let works = self.range.contains(pass.progress) && strengths.iter().any(|s| *s != 0.0);
        works.then_some(strengths)
    }

    /// Adds a network's residuals to a pass. `is_graded` selects whether guess mode weights them by depth.
    pub(super) fn inject(
        &self,
        pass: &Pass<'_>,
        injection: &mut Injection,
        is_graded: bool,
        network: impl FnOnce(NetworkInput<'_>) -> Result<Residuals>,
    ) -> Result<()> {
        let all = pass.clips;
        let skipped = if self.guess { pass.negatives } else { 0 };
        let Some(strengths) = self.strengths(pass).filter(|_| skipped < all) else {
            return Ok(());
        };
        let clips = all - skipped;
        let frames = pass.frames.len();
        // One context per clip, or one per frame.
        let contexts = pass.context.dim(0)? / all;
        let residuals = network(NetworkInput {
            x: &pass.x.narrow(0, skipped * frames, clips * frames)?,
            context: &pass.context.narrow(0, skipped * contexts, clips * contexts)?,
            clips,
        })?;
        let count = residuals.skips.len() + 1;
        let grade = |i| if self.guess && is_graded { guess_factor(i, count) } else { 1.0 };
        let mut residuals = residuals.map(|i, x| scale(x, &strengths, clips, grade(i)))?;
        if skipped > 0 {
            residuals = residuals.map(|_, x| {
                let (_, channels, height, width) = x.dims4()?;
                let shape = (skipped * frames, channels, height, width);
                Tensor::cat(&[&Tensor::zeros(shape, x.dtype(), x.device())?, x], 0)
            })?;
        }
        Ok(injection.add_residuals(residuals)?)
    }

    /// Selects the entries of a pass's frames from a tensor `(frames, ...)`, or repeats a single entry, for `clips`
    /// clips.
    pub(super) fn of_frames(&self, x: &Tensor, frames: &[usize], clips: usize) -> Result<Tensor> {
        let count = x.dim(0)?;
        let mut times = vec![1; x.rank()];
        let x = if count == 1 {
            times[0] = frames.len();
            x.repeat(times.as_slice())?
        } else if frames.iter().copied().eq(0..count) {
            x.clone()
        } else {
            if let Some(frame) = frames.iter().find(|frame| **frame >= count) {
                let reason = format!("has hints for {count} frames, frame {frame} is asked for");
                return Err(Error::Adapter { adapter: self.label.clone(), reason });
            }
            let index: Vec<u32> = frames.iter().map(|frame| *frame as u32).collect();
            x.contiguous()?.index_select(&Tensor::new(index, x.device())?, 0)?
        };
        times[0] = clips;
        Ok(if clips == 1 { x } else { x.repeat(times.as_slice())? })
    }
}

/// The weight in guess mode of residual `index` of `count`: from 0.1 for the first to 1 for the last.
fn guess_factor(index: usize, count: usize) -> f64 {
    if count > 1 { 10f64.powf(index as f64 / (count - 1) as f64 - 1.0) } else { 1.0 }
}

/// Scales `(clips*frames, channels, height, width)` by the strengths of its frames and a factor.
pub(super) fn scale(
    x: &Tensor,
    strengths: &[f64],
    clips: usize,
    factor: f64,
) -> TensorResult<Tensor> {
    let first = strengths.first().copied().unwrap_or_default();
    if strengths.iter().all(|strength| *strength == first) {
        return x * (first * factor);
    }
    let factors = (Tensor::new(strengths, x.device())?.repeat(clips)? * factor)?;
    let factors = factors.reshape((strengths.len() * clips, 1, 1, 1))?;
    x.broadcast_mul(&factors.to_dtype(x.dtype())?)
}
