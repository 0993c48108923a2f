//! SparseCtrl: hint images for some frames of a clip.

use candle_core::Tensor;

use super::{Conditioner, ControlSettings, Pass};
use crate::models::sparse_ctrl::SparseCtrl;
use crate::models::unet::{Injection, UNetInput};
use crate::{Result, Stop};

/// A SparseCtrl network with its hints and settings.
#[derive(Debug)]
pub struct SparseControl<'a> {
    net: &'a SparseCtrl,
    /// Embedded hints, `(frames, channels, height, width)`.
    hint: Tensor,
    settings: ControlSettings,
}

/// Hint images for some frames.
#[derive(Clone, Copy, Debug)]
pub struct SparseHint<'a> {
    /// Latents scaled as for the UNet, or pixels in `[0, 1]`, depending on the network;
    /// `(hints, channels, height, width)` in the network's dtype.
    pub hints: &'a Tensor,
    /// Frame index of each hint.
    pub frames: &'a [usize],
    /// Number of frames of the clip.
    pub clip: usize,
}

impl<'a> SparseControl<'a> {
    /// Embeds the hints. Everything that does not depend on the step is computed once here.
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
        self.settings.inject(pass, injection, true, |input| {
            let x = self.settings.of_frames(&self.hint, pass.frames, input.clips)?;
            let input = UNetInput {
                timestep: pass.timestep,
                frames: pass.frames.len(),
                context: input.context,
                motion_norm: pass.motion_norm,
                injection: &Injection::default(),
                stop: pass.stop,
            };
            Ok(self.net.forward(&x, &input)?)
        })
    }
}
