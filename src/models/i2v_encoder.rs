//! The image encoder of AnimateLCM-I2V: latents of an image to features for every down block of the UNet.
//!
//! Wang et al. (2024), "AnimateLCM". Its layers are those of a T2I-Adapter; the features of frames differ only by the
//! positions that are added after the first convolution. See `animatelcm/models/adapter.py` of
//! G-U-N/AnimateLCM@f873122358c101cd191533adb9cd517899fbfb01.

use candle_core::{Result as TensorResult, Tensor};

use crate::models::t2i_adapter::{Layer, halve};
use crate::models::unet::UNetConfig;
use crate::models::{possible_widths, within};
use crate::nn::{Conv2d, ConvOptions, sinusoidal_positions};
use crate::weights::VarBuilder;
use crate::{Error, Result, Stop};

/// Number of layers per stage.
const LAYERS: usize = 2;

/// Configuration of AnimateLCM-I2V's image encoder. There is no file of it: the sizes are the UNet's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct I2vEncoderConfig {
    /// Channels of the latents, 4.
    pub in_channels: usize,
    /// Channels of each stage, as of the UNet's down blocks: 320, 640, 1280, 1280.
    pub channels: Vec<usize>,
}

impl I2vEncoderConfig {
    /// The encoder beside a UNet.
    pub fn beside(unet: &UNetConfig) -> Self {
        Self { in_channels: unet.in_channels, channels: unet.block_out_channels.clone() }
    }

    /// Checks that the configuration is supported.
    pub fn validate(&self) -> Result<()> {
        let name = "i2v encoder";
        within(name, "in_channels", self.in_channels, 1..=64)?;
        possible_widths(name, "channels", &self.channels)
    }
}

/// AnimateLCM-I2V's image encoder.
#[derive(Clone, Debug)]
pub struct I2vEncoder {
    width: usize,
    conv_in: Conv2d,
    blocks: Vec<Block>,
}

/// A layer, after a change of size and of width in the first of a stage.
#[derive(Clone, Debug)]
struct Block {
    halves: bool,
    conv_in: Option<Conv2d>,
    layer: Layer,
}

impl I2vEncoder {
    /// Loads the network.
    pub fn new(config: &I2vEncoderConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let vb = vb.pp("img_encoder");
        let width = config.channels.first().copied().unwrap_or_default();
        let conv_in =
            Conv2d::new(config.in_channels, width, ConvOptions::SAME_3X3, &vb.pp("conv_in"))?;
        let (mut before, mut blocks) = (width, Vec::new());
        for (stage, &width) in config.channels.iter().enumerate() {
            for layer in 0..LAYERS {
                let vb = vb.pp("body").pp(LAYERS * stage + layer);
                let conv_in = (before != width)
                    .then(|| Conv2d::new(before, width, ConvOptions::POINT, &vb.pp("in_conv")))
                    .transpose()?;
                let halves = stage > 0 && layer == 0;
                let layer = Layer::new(width, ConvOptions::POINT, &vb)?;
                blocks.push(Block { halves, conv_in, layer });
                before = width;
            }
        }
        Ok(Self { width, conv_in, blocks })
    }

    /// The features of each stage, `(frames, channels, height', width')`, of an image's scaled latents
    /// `(1, in_channels, height, width)`.
    ///
    /// `motion_scale` multiplies the positions of the frames, the only thing by which their features differ; 0.8 in the
    /// published code.
    ///
    /// # Errors
    ///
    /// A wrong number of channels, several images, or a requested `stop`.
    pub fn forward(
        &self,
        latents: &Tensor,
        frames: usize,
        motion_scale: f64,
        stop: &Stop,
    ) -> Result<Vec<Tensor>> {
        if latents.dim(0)? != 1 {
            let reason = format!("{} given, the encoder takes one", latents.dim(0)?);
            return Err(Error::request("image", reason));
        }
        let positions = sinusoidal_positions(frames, self.width, latents.device())?;
        let positions = (positions * motion_scale)?.to_dtype(latents.dtype())?;
        let positions = positions.reshape((frames, self.width, 1, 1))?;
        let mut x = self.conv_in.forward(latents)?.broadcast_add(&positions)?;
        let mut features = Vec::with_capacity(self.blocks.len() / LAYERS);
        for (i, block) in self.blocks.iter().enumerate() {
            stop.check()?;
            x = block.forward(&x)?;
            if i % LAYERS == LAYERS - 1 {
                features.push(x.clone());
            }
        }
        Ok(features)
    }
}

impl Block {
    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let mut x = if self.halves { halve(x)? } else { x.clone() };
        if let Some(conv) = &self.conv_in {
            x = conv.forward(&x)?;
        }
        self.layer.forward(&x)
    }
}
