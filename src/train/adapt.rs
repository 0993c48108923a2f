//! A training step of adaptation without a teacher: a network beside the UNet learns to steer few-step sampling.
//!
//! See [`Pairs`] for the way without a teacher. The UNet is that of few steps and frozen; the network learns by a LoRA
//! over all of its linear layers and convolutions.

use candle_core::Tensor;

use super::{
    Compute, Loss, LowRank, Pairs, PerImage, Vars, Weights, builder, move_towards, restore,
};
use crate::Result;
use crate::library::{SideConfig, SideNetwork};
use crate::models::motion::MotionNorm;
use crate::models::unet::{Injection, UNet, UNetConfig, UNetInput};

/// Clips of one training step, with their hints.
#[derive(Clone, Debug)]
pub struct HintedBatch {
    /// The clips.
    pub pairs: Pairs,
    /// Hints as the network takes them, `(clips*hints, channels, height, width)`: one for every frame, or those of
    /// `hinted`.
    pub hints: Tensor,
    /// The frames of a clip that a SparseCtrl network has hints for.
    pub hinted: Vec<usize>,
}

/// A frozen UNet, the network beside it that learns, and the target that follows it.
#[derive(Debug)]
pub struct Adaptation {
    unet: UNet,
    norm: MotionNorm,
    compute: Compute,
    config: SideConfig,
    /// Weights of the network before it learns.
    base: Weights,
    lora: LowRank,
    /// Weights of the target that differ from `base`.
    target: Weights,
}

/// Weights of a network's linear layers and convolutions, over which its LoRA is.
pub fn layers(weights: &Weights) -> Weights {
    let is_layer = |name: &str, tensor: &Tensor| name.ends_with(".weight") && tensor.rank() > 1;
    let layers = weights.iter().filter(|(name, tensor)| is_layer(name, tensor));
    layers.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
}

impl Adaptation {
    /// The network of `config` and `base` beside a UNet; `lora` is over its [`layers`]. The target begins as the
    /// network with the LoRA.
    ///
    /// # Errors
    ///
    /// When weights do not fit.
    pub fn new(
        (unet, weights): (&UNetConfig, &Weights),
        norm: MotionNorm,
        (config, base): (SideConfig, Weights),
        lora: LowRank,
        compute: &Compute,
    ) -> Result<Self> {
        let unet = UNet::new(unet, &builder(&[weights], compute))?;
        config.build(&builder(&[&base], compute))?;
        let target = lora.composed(&base, true)?;
        Ok(Self { unet, norm, compute: compute.clone(), config, base, lora, target })
    }

    /// What learns: both factors of every layer.
    pub fn vars(&self) -> &Vars {
        self.lora.vars()
    }

    /// What the network is.
    pub fn config(&self) -> &SideConfig {
        &self.config
    }

    /// Weights of the target that differ from those the network had at first.
    pub fn target(&self) -> &Weights {
        &self.target
    }

    /// Restores a target from a checkpoint.
    ///
    /// # Errors
    ///
    /// When its weight names differ.
    pub fn set_target(&mut self, target: Weights) -> Result<()> {
        restore(&mut self.target, target)
    }

    /// All weights of the network with a LoRA of these factors.
    ///
    /// # Errors
    ///
    /// When factors are missing.
    pub fn weights(&self, factors: &Weights) -> Result<Weights> {
        let mut all = self.base.clone();
        all.extend(self.lora.with_factors(factors)?.composed(&self.base, true)?);
        Ok(all)
    }

    /// Loss of a batch; gradients reach [`vars`](Self::vars).
    ///
    /// # Errors
    ///
    /// When the shapes of the batch do not match.
    pub fn loss(&self, batch: &HintedBatch, loss: Loss) -> Result<Tensor> {
        let online = self.lora.composed(&self.base, false)?;
        batch.pairs.loss(
            &self.compute,
            loss,
            |x, at| self.predict(&online, x, at, batch),
            |x, at| self.predict(&self.target, x, at, batch),
        )
    }

    /// Noise that the UNet predicts beside the network with `changed` weights.
    fn predict(
        &self,
        changed: &Weights,
        x: &Tensor,
        at: &PerImage,
        batch: &HintedBatch,
    ) -> Result<Tensor> {
        let HintedBatch { pairs, hints, hinted } = batch;
        let Pairs { context, frames, cells, .. } = pairs;
        let (compute, stop) = (&self.compute, &self.compute.stop);
        let network = self.config.build(&builder(&[&self.base, changed], compute))?;
        let (narrow, hints) = (compute.narrow(x)?, compute.narrow(hints)?);
        let context_of_network = compute.narrow(context)?;
        let mut injection = Injection::default();
        match &network {
            SideNetwork::ControlNet(net) => {
                let (hint, times) = (net.embed(&hints, stop)?, at.timesteps());
                let context = &context_of_network;
                injection.add_residuals(
                    net.forward_with_timesteps(&narrow, &hint, &times, context, stop)?,
                )?;
            }
            SideNetwork::SparseCtrl(net) => {
                let count = hinted.len();
                let embed = |clip: usize| {
                    net.embed(&hints.narrow(0, clip * count, count)?, hinted, *frames, stop)
                };
                let clips = 0..cells.len();
                let hints: Vec<Tensor> = clips.map(embed).collect::<candle_core::Result<_>>()?;
                let input = UNetInput {
                    timestep: 0.0,
                    frames: *frames,
                    context: &context_of_network,
                    motion_norm: self.norm,
                    injection: &Injection::default(),
                    stop,
                };
                let hints = Tensor::cat(&hints, 0)?;
                injection.add_residuals(net.forward_with_timesteps(
                    &hints,
                    &at.timesteps(),
                    &input,
                )?)?;
            }
            SideNetwork::T2iAdapter(net) => {
                injection.add_stage_features(net.forward(&hints, stop)?)?;
            }
        }
        compute.predict_with(&self.unet, x, at, (context, &injection), (*frames, self.norm))
    }

    /// Updates the target after an optimizer step: `target ← μ target + (1 - μ) online`.
    pub fn follow(&mut self, mu: f64) -> Result<()> {
        let online = self.lora.composed(&self.base, true)?;
        move_towards(&mut self.target, &online, 1.0 - mu)
    }
}
