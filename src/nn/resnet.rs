//! The residual block of the UNet and the VAE.

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use super::{Conv2d, ConvOptions, GroupNorm, Linear};
use crate::Stop;
use crate::kernels::{self, ConvArgs};

/// Options of a [`ResnetBlock`].
#[derive(Clone, Copy, Debug)]
pub struct ResnetOptions {
    /// Number of input channels.
    pub inputs: usize,
    /// Number of output channels.
    pub outputs: usize,
    /// Width of the time embedding; `None` in the VAE.
    pub time_embedding: Option<usize>,
    /// Number of groups of both norms.
    pub groups: usize,
    /// Epsilon of both norms.
    pub eps: f64,
}

/// A residual block: norm, SiLU and convolution, twice, plus the input.
#[derive(Clone, Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// Loads `norm1`, `conv1`, `time_emb_proj`, `norm2`, `conv2` and, if the widths differ, `conv_shortcut`.
    pub fn new(options: &ResnetOptions, vb: &VarBuilder) -> Result<Self> {
        let ResnetOptions { inputs, outputs, time_embedding, groups, eps } = *options;
        let same = ConvOptions::SAME_3X3;
        Ok(Self {
            norm1: GroupNorm::new(groups, inputs, eps, &vb.pp("norm1"))?,
            conv1: Conv2d::new(inputs, outputs, same, &vb.pp("conv1"))?,
            time_emb_proj: time_embedding
                .map(|width| Linear::new(width, outputs, &vb.pp("time_emb_proj")))
                .transpose()?,
            norm2: GroupNorm::new(groups, outputs, eps, &vb.pp("norm2"))?,
            conv2: Conv2d::new(outputs, outputs, same, &vb.pp("conv2"))?,
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2d::new(inputs, outputs, ConvOptions::POINT, &vb.pp("conv_shortcut")))
                .transpose()?,
        })
    }

    /// Maps `(batch, inputs, height, width)` to `(batch, outputs, height, width)`.
    ///
    /// `time` is the SiLU of the time embedding, `(times, width)`: each row applies to `batch / times` consecutive
    /// images.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>, stop: &Stop) -> Result<Tensor> {
        let plain = ConvArgs { stop: Some(stop), ..ConvArgs::default() };
        let shift = match (&self.time_emb_proj, time) {
            (Some(proj), Some(time)) => Some(proj.forward(time)?),
            _ => None,
        };
        // A shift shared by all images is fused into the convolution at no cost.
        let (alike, each) = match shift {
            Some(shift) if shift.dim(0)? == 1 => (Some(shift.squeeze(0)?), None),
            other => (None, other),
        };
        let args = ConvArgs { shift: alike.as_ref(), ..plain };
        let mut y = self.conv1.forward_with(&self.norm1.forward_silu(x)?, args)?;
        if let Some(each) = each {
            y = kernels::add_per_channel(&y, &each)?;
        }
        let y = self.norm2.forward_silu(&y)?;
        let shortcut = match &self.conv_shortcut {
            Some(shortcut) => &shortcut.forward_with(x, plain)?,
            None => x,
        };
        self.conv2.forward_with(&y, ConvArgs { residual: Some(shortcut), ..plain })
    }
}
