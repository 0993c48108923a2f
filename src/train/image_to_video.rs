//! A training step of AnimateLCM-I2V without a teacher: an image encoder from scratch, and motion modules with it.

use candle_core::{Device, Tensor};

use super::{
    Compute, Loss, Pairs, PerImage, Vars, Weights, builder, fresh, move_towards, restore, variables,
};
use crate::Result;
use crate::models::i2v_encoder::{I2vEncoder, I2vEncoderConfig};
use crate::models::motion::MotionNorm;
use crate::models::unet::{Injection, UNet, UNetConfig};

/// The weights of an image encoder before it learns. As published, its first convolution, those that change widths and
/// the last of each block are zero.
///
/// # Errors
///
/// Impossible sizes.
pub fn first_encoder(config: &I2vEncoderConfig, seed: u64, device: &Device) -> Result<Weights> {
    let is_zero = |name: &str| {
        let module = name.strip_suffix(".weight").unwrap_or_default();
        ["conv_in", "in_conv", "block2"].iter().any(|end| module.ends_with(end))
    };
    fresh(|vb| I2vEncoder::new(config, &vb), seed, is_zero, device)
}

/// A UNet whose motion modules learn together with an image encoder, and the target that follows both.
#[derive(Debug)]
pub struct ImageToVideo {
    unet: UNetConfig,
    encoder: I2vEncoderConfig,
    norm: MotionNorm,
    motion_scale: f64,
    compute: Compute,
    /// All weights of the UNet.
    base: Weights,
    /// Motion modules and the encoder, whose names begin with `img_encoder.`.
    vars: Vars,
    target: Weights,
}

impl ImageToVideo {
    /// The UNet of `base`, and an image encoder beside it. The target begins as a copy.
    ///
    /// # Errors
    ///
    /// When weights do not fit.
    pub fn new(
        (unet, base): (&UNetConfig, Weights),
        norm: MotionNorm,
        encoder: Weights,
        motion_scale: f64,
        compute: &Compute,
    ) -> Result<Self> {
        let is_motion = |name: &str| name.contains(".motion_modules.");
        let modules = base.iter().filter(|(name, _)| is_motion(name));
        let mut learning: Weights =
            modules.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        learning.extend(encoder);
        let vars = variables(&learning)?;
        let copy = |(name, tensor): (String, Tensor)| Ok((name, tensor.copy()?));
        let target: Weights = learning.into_iter().map(copy).collect::<Result<_>>()?;
        let this = Self {
            encoder: I2vEncoderConfig::beside(unet),
            unet: unet.clone(),
            norm,
            motion_scale,
            compute: compute.clone(),
            base,
            vars,
            target,
        };
        this.networks(&this.target)?;
        Ok(this)
    }

    /// What learns.
    pub fn vars(&self) -> &Vars {
        &self.vars
    }

    /// Weights of the target that follow those.
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

    fn networks(&self, learned: &Weights) -> Result<(UNet, I2vEncoder)> {
        let unet = UNet::new(&self.unet, &builder(&[&self.base, learned], &self.compute))?;
        let encoder = I2vEncoder::new(&self.encoder, &builder(&[learned], &self.compute))?;
        Ok((unet, encoder))
    }

    /// Loss of a batch, each clip of which is told of its own first frame; gradients reach [`vars`](Self::vars).
    ///
    /// # Errors
    ///
    /// When the shapes of the batch do not match.
    pub fn loss(&self, batch: &Pairs, loss: Loss) -> Result<Tensor> {
        let online: Weights =
            self.vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        batch.loss(
            &self.compute,
            loss,
            |x, at| self.predict(&online, x, at, batch),
            |x, at| self.predict(&self.target, x, at, batch),
        )
    }

    /// Noise that the UNet predicts with these motion modules and this encoder.
    fn predict(
        &self,
        learned: &Weights,
        x: &Tensor,
        at: &PerImage,
        batch: &Pairs,
    ) -> Result<Tensor> {
        let Pairs { clean, context, frames, cells, .. } = batch;
        let (unet, encoder) = self.networks(learned)?;
        let clean = self.compute.narrow(clean)?;
        let features = |clip: usize| {
            let first = clean.narrow(0, clip * frames, 1)?;
            encoder.forward(&first, *frames, self.motion_scale, &self.compute.stop)
        };
        let clips = (0..cells.len()).map(features).collect::<Result<Vec<_>>>()?;
        let stages = clips.first().map_or(0, Vec::len);
        let of_stage = |stage: usize| {
            let each: Vec<&Tensor> = clips.iter().filter_map(|clip| clip.get(stage)).collect();
            Ok(Tensor::cat(&each, 0)?)
        };
        let mut injection = Injection::default();
        injection.add_motion_inputs((0..stages).map(of_stage).collect::<Result<_>>()?)?;
        let how = (*frames, self.norm);
        self.compute.predict_with(&unet, x, at, (context, &injection), how)
    }

    /// Updates the target after an optimizer step: `target ← μ target + (1 - μ) online`.
    pub fn follow(&mut self, mu: f64) -> Result<()> {
        let now = self.vars.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor()));
        move_towards(&mut self.target, &now.collect(), 1.0 - mu)
    }
}
