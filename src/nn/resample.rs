//! Downsampling and upsampling by a factor of 2.

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use super::{Conv2d, ConvOptions};
use crate::Stop;
use crate::kernels::ConvArgs;

/// Zero padding of a [`Downsample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownsamplePadding {
    /// One pixel on every side, as in the UNet.
    Around,
    /// One pixel on the right and at the bottom, as in the VAE encoder.
    RightBottom,
}

/// A 3×3 convolution with stride 2.
#[derive(Clone, Debug)]
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    /// Loads `conv`.
    pub fn new(channels: usize, padding: DownsamplePadding, vb: &VarBuilder) -> Result<Self> {
        let padding = match padding {
            DownsamplePadding::Around => (1, 1),
            DownsamplePadding::RightBottom => (0, 1),
        };
        let options = ConvOptions { kernel: 3, padding, stride: 2, bias: true };
        Ok(Self { conv: Conv2d::new(channels, channels, options, &vb.pp("conv"))? })
    }

    /// Maps `(batch, channels, height, width)` to `(batch, channels, height / 2, width / 2)`.
    pub fn forward(&self, x: &Tensor, stop: &Stop) -> Result<Tensor> {
        self.conv.forward_with(x, ConvArgs { stop: Some(stop), ..ConvArgs::default() })
    }
}

/// Nearest-neighbour upsampling and a 3×3 convolution.
#[derive(Clone, Debug)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// Loads `conv`.
    pub fn new(channels: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self { conv: Conv2d::new(channels, channels, ConvOptions::SAME_3X3, &vb.pp("conv"))? })
    }

    /// Maps `(batch, channels, height, width)` to `(batch, channels, target height, target width)`.
    ///
    /// The target is twice the size, or the size of the next skip connection if sizes were odd.
    pub fn forward(&self, x: &Tensor, target: (usize, usize), stop: &Stop) -> Result<Tensor> {
        let (stretch, stop) = (Some(target), Some(stop));
        self.conv.forward_with(x, ConvArgs { stretch, stop, ..ConvArgs::default() })
    }
}
