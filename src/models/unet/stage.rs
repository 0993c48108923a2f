//! One resolution of the UNet: a down block, mid block or up block.

use std::ops::Range;

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use super::perturbation::{spatial, temporal};
use super::{LayerConfig, Place, StageConfig, StageFeatures, UNetConfig, UNetInput};
use crate::kernels::layout::{add, cat};
use crate::models::motion::MotionModule;
use crate::nn::{
    Downsample, DownsamplePadding, ResnetBlock, ResnetOptions, SpatialTransformer,
    TransformerOptions, Upsample,
};

#[derive(Clone, Debug)]
pub(in crate::models) struct Stage {
    layers: Vec<Layer>,
    downsample: Option<Downsample>,
    upsample: Option<Upsample>,
}

/// Index of a down block's layer whose motion module has features added to its input.
const MOTION_INPUT: usize = 1;

/// A residual block, followed by spatial attention and a motion module.
#[derive(Clone, Debug)]
struct Layer {
    /// Name of its stage, and its place there.
    place: (String, usize),
    resnet: ResnetBlock,
    attention: Option<SpatialTransformer>,
    /// Indices of the layer's cross-attentions among the UNet's.
    cross_attentions: Range<usize>,
    motion: Option<MotionModule>,
}

impl Stage {
    /// Loads one of `config.stages()`; `vb` is the UNet's.
    pub(in crate::models) fn new(
        config: &UNetConfig,
        stage: &StageConfig,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let vb = vb.pp(stage.name());
        let (width, last) = (stage.width, config.block_out_channels.len() - 1);
        let depth = config.transformer_layers_per_block;
        let first = stage.cross_attentions.start;
        let layers = stage
            .layers
            .iter()
            .enumerate()
            .map(|(j, &LayerConfig { inputs, attention, motion })| {
                Ok(Layer {
                    place: (stage.name(), j),
                    resnet: ResnetBlock::new(
                        &ResnetOptions {
                            inputs,
                            outputs: width,
                            time_embedding: Some(config.time_embedding_width()),
                            groups: config.norm_num_groups,
                            eps: config.norm_eps,
                        },
                        &vb.pp("resnets").pp(j),
                    )?,
                    attention: attention
                        .then(|| {
                            let options = TransformerOptions {
                                channels: width,
                                heads: config.heads(),
                                context: config.cross_attention_dim,
                                depth,
                                groups: config.norm_num_groups,
                                linear_projection: config.use_linear_projection,
                            };
                            SpatialTransformer::new(&options, &vb.pp("attentions").pp(j))
                        })
                        .transpose()?,
                    cross_attentions: first + j * depth..first + (j + 1) * depth,
                    motion: config
                        .motion
                        .as_ref()
                        .filter(|_| motion)
                        .map(|motion| {
                            let vb = vb.pp("motion_modules").pp(j);
                            MotionModule::new(motion, width, config.norm_num_groups, &vb)
                        })
                        .transpose()?,
                })
            })
            .collect::<Result<_>>()?;
        let around = DownsamplePadding::Around;
        Ok(Self {
            layers,
            downsample: matches!(stage.place, Place::Down(i) if i < last)
                .then(|| Downsample::new(width, around, &vb.pp("downsamplers.0")))
                .transpose()?,
            upsample: matches!(stage.place, Place::Up(i) if i < last)
                .then(|| Upsample::new(width, &vb.pp("upsamplers.0")))
                .transpose()?,
        })
    }

    /// Runs the layers and the downsampler; every output is also pushed to `skips`.
    pub(in crate::models) fn down(
        &self,
        mut x: Tensor,
        time: &Tensor,
        input: &UNetInput<'_>,
        features: StageFeatures<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for (i, layer) in self.layers.iter().enumerate() {
            let motion_input = features.motion_input.filter(|_| i == MOTION_INPUT);
            x = layer.forward(&x, motion_input, time, input)?;
            if let Some(feature) = features.output.filter(|_| i + 1 == self.layers.len()) {
                x = add(&x, feature)?;
            }
            skips.push(x.clone());
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(&x, input.stop)?;
            skips.push(x.clone());
        }
        Ok(x)
    }

    pub(in crate::models) fn mid(
        &self,
        mut x: Tensor,
        time: &Tensor,
        input: &UNetInput<'_>,
    ) -> Result<Tensor> {
        for layer in &self.layers {
            x = layer.forward(&x, None, time, input)?;
        }
        Ok(x)
    }

    /// Concatenates every layer's input with a skip connection, newest first, then upsamples to the size of the next
    /// one. The stage is the `place`-th on the way up, from 0.
    pub(in crate::models) fn up(
        &self,
        mut x: Tensor,
        time: &Tensor,
        input: &UNetInput<'_>,
        place: usize,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for layer in &self.layers {
            let Some(mut skip) = skips.pop() else { candle_core::bail!("the skips ran out") };
            if let Some(free_u) = input.injection.free_u {
                (x, skip) = free_u.apply(place, &x, &skip)?;
            }
            x = layer.forward(&cat(&[&x, &skip])?, None, time, input)?;
        }
        if let Some(upsample) = &self.upsample {
            let (_, _, height, width) = match skips.last() {
                Some(skip) => skip.dims4()?,
                None => candle_core::bail!("the skips ran out"),
            };
            x = upsample.forward(&x, (height, width), input.stop)?;
        }
        Ok(x)
    }
}

impl Layer {
    /// The number of clips at the end of the batch for which each of `count` self-attentions is switched off; nothing
    /// where none is.
    fn switched_off(
        &self,
        input: &UNetInput<'_>,
        name: fn(&str, usize, usize) -> String,
        count: usize,
    ) -> Vec<usize> {
        let Some(perturbation) = &input.injection.perturbation else { return vec![] };
        let (stage, layer) = &self.place;
        (0..count).map(|i| perturbation.clips(&name(stage, *layer, i))).collect()
    }

    /// `motion_input` is added before the motion module.
    fn forward(
        &self,
        x: &Tensor,
        motion_input: Option<&Tensor>,
        time: &Tensor,
        input: &UNetInput<'_>,
    ) -> Result<Tensor> {
        input.stop.check()?;
        let mut x = self.resnet.forward(x, Some(time), input.stop)?;
        if let Some(attention) = &self.attention {
            let images = input.injection.image_contexts(self.cross_attentions.clone());
            let alone = self.switched_off(input, spatial, attention.depth());
            let alone: Vec<usize> = alone.iter().map(|clips| clips * input.frames).collect();
            x = attention.forward(&x, input.context, (images, &alone), input.stop)?;
        }
        if let Some(feature) = motion_input {
            x = add(&x, feature)?;
        }
        if let Some(motion) = &self.motion {
            let alone = self.switched_off(input, temporal, 2);
            x = motion.forward_with(&x, input.frames, input.motion_norm, &alone, input.stop)?;
        }
        Ok(x)
    }
}
