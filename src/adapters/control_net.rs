//! ControlNets: hint images that the frames of a clip follow.

use candle_core::Tensor;

use super::{Conditioner, ControlSettings, Pass};
use crate::models::control_net::ControlNet;
use crate::models::unet::Injection;
use crate::{Result, Stop};

/// A ControlNet with its hint and settings.
#[derive(Debug)]
pub struct Control<'a> {
    net: &'a ControlNet,
    /// Embedded hint, `(frames, channels, height, width)`, or `(1, channels, height, width)` for all frames.
    hint: Tensor,
    settings: ControlSettings,
}

impl<'a> Control<'a> {
    /// Embeds a hint, `(frames, 3, height, width)` in `[0, 1]` and in the network's dtype. A single image is used for
    /// all frames. Everything that does not depend on the step is computed once here.
    pub fn new(
        net: &'a ControlNet,
        hint: &Tensor,
        settings: ControlSettings,
        stop: &Stop,
    ) -> Result<Self> {
        // A ControlNet with global pooling (`global_pool_conditions`) always runs in guess mode.
        let guess = settings.guess || net.config().global_pool_conditions;
        let hint = net.embed(hint, stop)?;
        Ok(Self { net, hint, settings: ControlSettings { guess, ..settings } })
    }
}

impl Conditioner for Control<'_> {
    fn label(&self) -> &str {
        &self.settings.label
    }

    fn inject(&mut self, pass: &Pass<'_>, injection: &mut Injection) -> Result<()> {
        let is_graded = !self.net.config().global_pool_conditions;
        self.settings.inject(pass, injection, is_graded, |input| {
            let hint = self.settings.of_frames(&self.hint, pass.frames, input.clips)?;
            Ok(self.net.forward(input.x, &hint, pass.timestep, input.context, pass.stop)?)
        })
    }
}
