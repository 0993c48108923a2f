//! ControlNets: hints that the frames of a clip follow.

use candle_core::Tensor;

use super::{ActiveRange, Conditioner, Pass, Strength};
use crate::models::control_net::ControlNet;
use crate::models::unet::{Injection, Residuals};
use crate::{Error, Result};

/// A ControlNet with its hint.
#[derive(Debug)]
pub struct Control<'a> {
    net: &'a ControlNet,
    /// Embedded, `(frames, channels, height, width)` or one for all frames.
    hint: Tensor,
    settings: ControlSettings,
}

/// How a ControlNet is used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ControlSettings {
    /// What messages call it.
    pub label: String,
    /// How strongly it counts, frame by frame.
    pub strength: Strength,
    /// When it works.
    pub range: ActiveRange,
    /// Guess mode: deep residuals count more than shallow ones, and the negative prompt's half goes without.
    pub guess: bool,
}

impl<'a> Control<'a> {
    /// Gives a network its hint, `(frames, 3, height, width)` in `[0, 1]` and in the network's number format. One
    /// picture serves all frames. What does not depend on the step is computed here, once.
    pub fn new(net: &'a ControlNet, hint: &Tensor, settings: ControlSettings) -> Result<Self> {
        // A network that adds means knows no other mode.
        let guess = settings.guess || net.config().global_pool_conditions;
        Ok(Self { net, hint: net.embed(hint)?, settings: ControlSettings { guess, ..settings } })
    }

    /// The hints of some frames, for so many clips.
    fn hints(&self, frames: &[usize], clips: usize) -> Result<Tensor> {
        let count = self.hint.dim(0)?;
        let hint = if count == 1 {
            self.hint.repeat((frames.len(), 1, 1, 1))?
        } else if frames.iter().copied().eq(0..count) {
            self.hint.clone()
        } else {
            if let Some(frame) = frames.iter().find(|frame| **frame >= count) {
                let reason = format!("has hints for {count} frames, frame {frame} is asked for");
                return Err(Error::Adapter { adapter: self.settings.label.clone(), reason });
            }
            let index: Vec<u32> = frames.iter().map(|frame| *frame as u32).collect();
            self.hint.index_select(&Tensor::new(index, self.hint.device())?, 0)?
        };
        Ok(if clips == 1 { hint } else { hint.repeat((clips, 1, 1, 1))? })
    }

    /// In guess mode the factor of each of `count` residuals, 0.1 for the first to 1 for the last.
    fn guess_factor(&self, index: usize, count: usize) -> f64 {
        let is_scaled = self.settings.guess && !self.net.config().global_pool_conditions;
        if is_scaled && count > 1 {
            10f64.powf(index as f64 / (count - 1) as f64 - 1.0)
        } else {
            1.0
        }
    }

    /// Residuals of `clips` clips by the strengths of their frames.
    fn scale(&self, residuals: &Residuals, strengths: &[f64], clips: usize) -> Result<Residuals> {
        let count = residuals.skips.len() + 1;
        let first = strengths.first().copied().unwrap_or_default();
        if strengths.iter().all(|strength| *strength == first) {
            return Ok(residuals.map(|i, x| x * (first * self.guess_factor(i, count)))?);
        }
        let images = strengths.len() * clips;
        let strengths = Tensor::new(strengths, residuals.mid.device())?.repeat(clips)?;
        let strengths = strengths.reshape((images, 1, 1, 1))?;
        Ok(residuals.map(|i, x| {
            let factors = (&strengths * self.guess_factor(i, count))?.to_dtype(x.dtype())?;
            x.broadcast_mul(&factors)
        })?)
    }
}

impl Conditioner for Control<'_> {
    fn label(&self) -> &str {
        &self.settings.label
    }

    fn inject(&mut self, pass: &Pass<'_>, injection: &mut Injection) -> Result<()> {
        let strengths: Vec<f64> =
            pass.frames.iter().map(|frame| self.settings.strength.at(*frame)).collect();
        let clips = pass.clips()?;
        let skipped = if self.settings.guess { pass.negatives } else { 0 };
        let is_idle = strengths.iter().all(|strength| *strength == 0.0)
            || !self.settings.range.contains(pass.progress)
            || skipped >= clips;
        if is_idle {
            return Ok(());
        }
        let clips = clips - skipped;
        let frames = pass.frames.len();
        let x = pass.x.narrow(0, skipped * frames, clips * frames)?;
        let context = pass.context.narrow(0, skipped, clips)?;
        let hint = self.hints(pass.frames, clips)?;
        let residuals = self.net.forward(&x, &hint, pass.timestep, &context)?;
        let mut residuals = self.scale(&residuals, &strengths, clips)?;
        if skipped > 0 {
            residuals = residuals.map(|_, x| {
                let (_, channels, height, width) = x.dims4()?;
                let shape = (skipped * frames, channels, height, width);
                Tensor::cat(&[&Tensor::zeros(shape, x.dtype(), x.device())?, x], 0)
            })?;
        }
        Ok(injection.add_residuals(residuals)?)
    }
}
