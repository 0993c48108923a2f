//! The down blocks and mid block of a UNet with an output at every skip connection, shared by ControlNet and
//! SparseCtrl.

use crate::weights::VarBuilder;
use candle_core::{Result as TensorResult, Tensor};

use crate::Result;
use crate::models::unet::{
    Injection, Residuals, Stage, StageConfig, StageFeatures, UNetConfig, UNetInput,
};
use crate::nn::{Conv2d, ConvOptions, TimestepEmbedding};

/// The down blocks and mid block of a UNet, with a 1×1 convolution after each output.
#[derive(Clone, Debug)]
pub(super) struct UNetEncoder {
    config: UNetConfig,
    time_embedding: TimestepEmbedding,
    conv_in: Conv2d,
    down: Vec<Stage>,
    mid: Stage,
    skip_outs: Vec<Conv2d>,
    mid_out: Conv2d,
}

impl UNetEncoder {
    /// Loads the weights under the names of diffusers' ControlNet. `config` does not describe the up blocks.
    pub(super) fn new(config: &UNetConfig, vb: &VarBuilder) -> Result<Self> {
        let config = whole(config);
        config.validate()?;
        let stages = config.stages()?;
        let load = |stage: &StageConfig| Stage::new(&config, stage, vb);
        let (first, last) = (config.block_out_channels[0], stages.down.len() - 1);
        // Widths of the skip connections: the input, every layer, every downsampler.
        let mut skips = vec![first];
        for stage in &stages.down {
            let count = stage.layers.len() + usize::from(stage.level < last);
            skips.extend(std::iter::repeat_n(stage.width, count));
        }
        let point = |width, vb: &VarBuilder| Conv2d::new(width, width, ConvOptions::POINT, vb);
        let skip_outs = skips
            .iter()
            .enumerate()
            .map(|(i, &width)| point(width, &vb.pp("controlnet_down_blocks").pp(i)))
            .collect::<TensorResult<_>>()?;
        let time = config.time_embedding_width();
        Ok(Self {
            time_embedding: TimestepEmbedding::new(first, time, &vb.pp("time_embedding"))?,
            conv_in: Conv2d::new(
                config.in_channels,
                first,
                ConvOptions::SAME_3X3,
                &vb.pp("conv_in"),
            )?,
            down: stages.down.iter().map(load).collect::<TensorResult<_>>()?,
            mid: load(&stages.mid)?,
            skip_outs,
            mid_out: point(stages.mid.width, &vb.pp("controlnet_mid_block"))?,
            config,
        })
    }

    /// The first convolution, applied to latents `(images, in_channels, height, width)`.
    pub(super) fn start(&self, x: &Tensor) -> TensorResult<Tensor> {
        self.conv_in.forward(x)
    }

    /// The residuals for the output of the first convolution, `(images, channels, height, width)`. `input.injection` is
    /// meant for the UNet and ignored.
    ///
    /// `timesteps` replaces the one of `input`, with each timestep for an equal share of the images, in order.
    pub(super) fn forward(
        &self,
        x: Tensor,
        timesteps: &[f64],
        input: &UNetInput<'_>,
    ) -> TensorResult<Residuals> {
        let input = UNetInput { injection: &Injection::default(), ..*input };
        let time = self.config.embed_time(&self.time_embedding, timesteps, &x)?;

        // Down blocks, as in the UNet.
        let mut skips = vec![x.clone()];
        let mut x = x;
        for stage in &self.down {
            x = stage.down(x, &time, &input, StageFeatures::default(), &mut skips)?;
        }

        // Mid block.
        x = self.mid.mid(x, &time, &input)?;

        // Output convolutions.
        input.stop.check()?;
        let outs = self.skip_outs.iter().zip(&skips);
        let skips = outs.map(|(out, skip)| out.forward(skip)).collect::<TensorResult<_>>()?;
        Ok(Residuals { skips, mid: self.mid_out.forward(&x)? })
    }
}

/// The configuration of the UNet to which the down blocks belong.
pub(super) fn whole(config: &UNetConfig) -> UNetConfig {
    let up_block_types = vec!["UpBlock2D".to_owned(); config.block_out_channels.len()];
    UNetConfig { up_block_types, ..config.clone() }
}
