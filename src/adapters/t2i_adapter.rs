//! T2I-Adapters: hints whose features are added on the UNet's way down.

use candle_core::Tensor;

use super::settings::scale;
use super::{Conditioner, ControlSettings, Pass};
use crate::models::t2i_adapter::T2iAdapter;
use crate::models::unet::Injection;
use crate::{Result, Stop};

/// What a T2I-Adapter made of its hint. The network itself is no longer needed.
#[derive(Debug)]
pub struct T2iControl {
    /// Of each stage, `(frames, channels, height, width)` or one for all frames.
    features: Vec<Tensor>,
    settings: ControlSettings,
}

impl T2iControl {
    /// Gives a network its hint, `(frames, in_channels, height, width)` in `[0, 1]` and in the network's number
    /// format. One picture serves all frames. Everything is computed here, once; guess mode has no meaning.
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
