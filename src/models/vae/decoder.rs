//! The VAE decoder: latents to images.

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use super::{EPS, Middle, VaeConfig, resnet};
use crate::Stop;
use crate::kernels::ConvArgs;
use crate::nn::{Conv2d, ConvOptions, GroupNorm, ResnetBlock, Upsample};

#[derive(Clone, Debug)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    middle: Middle,
    stages: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn new(config: &VaeConfig, vb: &VarBuilder) -> Result<Self> {
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let last = widths.len() - 1;
        let same = ConvOptions::SAME_3X3;
        let stages = (0..widths.len())
            .map(|i| {
                let vb = vb.pp("up_blocks").pp(i);
                let resnets = (0..=config.layers_per_block)
                    .map(|j| {
                        let inputs = if j == 0 { widths[i.saturating_sub(1)] } else { widths[i] };
                        let options = resnet(config, inputs, widths[i]);
                        ResnetBlock::new(&options, &vb.pp("resnets").pp(j))
                    })
                    .collect::<Result<_>>()?;
                let upsample = (i < last)
                    .then(|| Upsample::new(widths[i], &vb.pp("upsamplers.0")))
                    .transpose()?;
                Ok((resnets, upsample))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            conv_in: Conv2d::new(config.latent_channels, widths[0], same, &vb.pp("conv_in"))?,
            middle: Middle::new(config, widths[0], &vb.pp("mid_block"))?,
            stages,
            norm_out: GroupNorm::new(
                config.norm_num_groups,
                widths[last],
                EPS,
                &vb.pp("conv_norm_out"),
            )?,
            conv_out: Conv2d::new(widths[last], config.out_channels, same, &vb.pp("conv_out"))?,
        })
    }

    /// Maps `(batch, 4, height, width)` to `(batch, 3, height', width')`.
    pub(super) fn forward(&self, z: &Tensor, stop: &Stop) -> Result<Tensor> {
        let mut x = self.middle.forward(&self.conv_in.forward(z)?, stop)?;
        for (resnets, upsample) in &self.stages {
            for resnet in resnets {
                x = resnet.forward(&x, None, stop)?;
            }
            if let Some(upsample) = upsample {
                let (_, _, height, width) = x.dims4()?;
                x = upsample.forward(&x, (2 * height, 2 * width), stop)?;
            }
        }
        let args = ConvArgs { stop: Some(stop), ..ConvArgs::default() };
        self.conv_out.forward_with(&self.norm_out.forward_silu(&x)?, args)
    }
}
