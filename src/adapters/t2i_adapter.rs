//! T2I-Adapters: hint features that are added to the down blocks of the UNet.

use candle_core::Tensor;

use super::settings::scale;
use super::{Conditioner, ControlSettings, Pass};
use crate::models::t2i_adapter::T2iAdapter;
use crate::models::unet::Injection;
use crate::{Result, Stop};

/// Hint features of a T2I-Adapter. The network itself is no longer needed.
#[derive(Debug)]
pub struct T2iControl {
    /// Features of each stage, `(frames, channels, height, width)`, or `(1, channels, height, width)` for all frames.
    features: Vec<Tensor>,
    settings: ControlSettings,
}

impl T2iControl {
    /// Encodes a hint, `(frames, in_channels, height, width)` in `[0, 1]` and in the network's dtype. A single image is
    /// used for all frames. Everything is computed once here; guess mode has no effect.
    pub fn new(
        net: &T2iAdapter,
        hint: &Tensor,
        settings: ControlSettings,
        stop: &Stop,
    ) -> Result<Self> {
        Ok(Self { features: net.forward(hint, stop)?, settings })
    }
}

impl Conditioner for T2iControl {
    fn label(&self) -> &str {
        &self.settings.label
    }

    fn inject(&mut self, pass: &Pass<'_>, injection: &mut Injection) -> Result<()> {
        let Some(strengths) = self.settings.strengths(pass) else { return Ok(()) };
        let clips = pass.clips;
        let of_pass = |x: &Tensor| -> Result<Tensor> {
            let x = self.settings.of_frames(x, pass.frames, clips)?;
            Ok(scale(&x, &strengths, clips, 1.0)?)
        };
        let features = self.features.iter().map(of_pass).collect::<Result<_>>()?;
        Ok(injection.add_stage_features(features)?)
    }
}
