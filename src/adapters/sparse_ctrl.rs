//! SparseCtrl: hints for some frames of a clip.

use candle_core::Tensor;

use super::{Conditioner, ControlSettings, Pass};
use crate::models::sparse_ctrl::SparseCtrl;
use crate::models::unet::{Injection, UNetInput};
use crate::{Result, Stop};

/// A SparseCtrl network with its hints.
#[derive(Debug)]
pub struct SparseControl<'a> {
    net: &'a SparseCtrl,
    /// Embedded, `(frames, channels, height, width)`.
    hint: Tensor,
    settings: ControlSettings,
}

/// Hints for some frames.
#[derive(Clone, Copy, Debug)]
pub struct SparseHint<'a> {
    /// Latents as the UNet knows them, or pixels in `[0, 1]`, as the network wants; `(hints, channels, height, width)`
    /// in the network's number format.
    pub hints: &'a Tensor,
    /// The frame of each hint.
    pub frames: &'a [usize],
    /// How many frames the clip has.
    pub clip: usize,
}

impl<'a> SparseControl<'a> {
    /// Gives a network its hints. What does not depend on the step is computed here, once.
    pub fn new(
        net: &'a SparseCtrl,
        hint: SparseHint<'_>,
        settings: ControlSettings,
        stop: &Stop,
    ) -> Result<Self> {
        let hint = net.embed(hint.hints, hint.frames, hint.clip, stop)?;
        Ok(Self { net, hint, settings })
    }
}

impl Conditioner for SparseControl<'_> {
    fn label(&self) -> &str {
        &self.settings.label
    }

    fn inject(&mut self, pass: &Pass<'_>, injection: &mut Injection) -> Result<()> {
        self.settings.inject(pass, injection, true, |seen| {
            let x = self.settings.of_frames(&self.hint, pass.frames, seen.clips)?;
            let input = UNetInput {
                timestep: pass.timestep,
                frames: pass.frames.len(),
                context: seen.context,
                motion_norm: pass.motion_norm,
                injection: &Injection::default(),
                stop: pass.stop,
            };
            Ok(self.net.forward(&x, &input)?)
        })
    }
}
