//! The VAE encoder: images to mean and log variance of latents.

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use super::{EPS, Middle, VaeConfig, resnet};
use crate::Stop;
use crate::kernels::ConvArgs;
use crate::nn::{Conv2d, ConvOptions, Downsample, DownsamplePadding, GroupNorm, ResnetBlock};

#[derive(Clone, Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    stages: Vec<(Vec<ResnetBlock>, Option<Downsample>)>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn new(config: &VaeConfig, vb: &VarBuilder) -> Result<Self> {
        let widths = &config.block_out_channels;
        let last = widths.len() - 1;
        let same = ConvOptions::SAME_3X3;
        let padding = DownsamplePadding::RightBottom;
        let stages = (0..widths.len())
            .map(|i| {
                let vb = vb.pp("down_blocks").pp(i);
                let resnets = (0..config.layers_per_block)
                    .map(|j| {
                        let inputs = if j == 0 { widths[i.saturating_sub(1)] } else { widths[i] };
                        let options = resnet(config, inputs, widths[i]);
                        ResnetBlock::new(&options, &vb.pp("resnets").pp(j))
                    })
                    .collect::<Result<_>>()?;
                let downsample = (i < last)
                    .then(|| Downsample::new(widths[i], padding, &vb.pp("downsamplers.0")))
                    .transpose()?;
                Ok((resnets, downsample))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            conv_in: Conv2d::new(config.in_channels, widths[0], same, &vb.pp("conv_in"))?,
            stages,
            middle: Middle::new(config, widths[last], &vb.pp("mid_block"))?,
            norm_out: GroupNorm::new(
                config.norm_num_groups,
                widths[last],
                EPS,
                &vb.pp("conv_norm_out"),
            )?,
            conv_out: Conv2d::new(
                widths[last],
                2 * config.latent_channels,
                same,
                &vb.pp("conv_out"),
            )?,
        })
    }

    /// Maps `(batch, 3, height, width)` to means and log variances, `(batch, 8, height', width')`.
    pub(super) fn forward(&self, x: &Tensor, stop: &Stop) -> Result<Tensor> {
        let args = ConvArgs { stop: Some(stop), ..ConvArgs::default() };
        let mut x = self.conv_in.forward_with(x, args)?;
        for (resnets, downsample) in &self.stages {
            for resnet in resnets {
                x = resnet.forward(&x, None, stop)?;
            }
            if let Some(downsample) = downsample {
                x = downsample.forward(&x, stop)?;
            }
        }
        let x = self.middle.forward(&x, stop)?;
        self.conv_out.forward_with(&self.norm_out.forward_silu(&x)?, args)
    }
}
