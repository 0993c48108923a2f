//! The image of AnimateLCM-I2V: features of its encoder that are added before motion modules.

use candle_core::{DType, Tensor};

use super::{Conditioner, Pass};
use crate::models::i2v_encoder::I2vEncoder;
use crate::models::unet::Injection;
use crate::{Error, Result, Stop};

/// Features of the image that a clip starts from. The encoder itself is no longer needed.
#[derive(Debug)]
pub struct I2vControl {
    /// Features of each stage, `(frames, channels, height, width)`.
    features: Vec<Tensor>,
}

/// Strength of an image in AnimateLCM-I2V.
#[derive(Clone, Debug, PartialEq)]
pub struct I2vSettings {
    /// Factor of the frames' positions: with 0 all frames have the same features.
    pub motion_scale: f64,
    /// Factors of the features of each down block; 1 for all if empty.
    pub insertion_weights: Vec<f64>,
}

impl I2vControl {
    /// Encodes scaled latents of an image, `(1, channels, height, width)`, for passes over up to `frames` frames in
    /// `dtype`.
    ///
    /// # Errors
    ///
    /// Another number of weights than the encoder has stages, or mismatched shapes.
    pub fn new(
        net: &I2vEncoder,
        latents: &Tensor,
        frames: usize,
        (settings, dtype): (&I2vSettings, DType),
        stop: &Stop,
    ) -> Result<Self> {
        let latents = latents.to_dtype(dtype)?;
        let mut features = net.forward(&latents, frames, settings.motion_scale, stop)?;
        let weights = &settings.insertion_weights;
        if !weights.is_empty() && weights.len() != features.len() {
            let reason = format!("{} given for {} down blocks", weights.len(), features.len());
            return Err(Error::request("insertion-weights", reason));
        }
        for (feature, weight) in features.iter_mut().zip(weights) {
            *feature = (&*feature * *weight)?;
        }
        Ok(Self { features })
    }
}

impl Conditioner for I2vControl {
    fn label(&self) -> &'static str {
        "image"
    }

    /// Adds the features in both halves of the guidance. Positions are those in the pass: in a context window they begin
    /// again, as in the motion modules and in ComfyUI-AnimateDiff-Evolved.
    fn inject(&mut self, pass: &Pass<'_>, injection: &mut Injection) -> Result<()> {
        let frames = pass.frames.len();
        let of_pass = |feature: &Tensor| -> Result<Tensor> {
            let feature = feature.narrow(0, 0, frames)?;
            Ok(if pass.clips == 1 { feature } else { feature.repeat((pass.clips, 1, 1, 1))? })
        };
        let features = self.features.iter().map(of_pass).collect::<Result<_>>()?;
        Ok(injection.add_motion_inputs(features)?)
    }
}
