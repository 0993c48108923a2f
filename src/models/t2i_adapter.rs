//! T2I-Adapter: a small network that encodes a hint into features for every down block of the UNet.
//!
//! Mou et al. (2023). It depends on neither noise nor timestep, so it runs once per clip. See
//! `ldm/modules/encoders/adapter.py` of TencentARC/T2I-Adapter@686de4681515662c0ac2ffa07bf5dda83af1038a.

use crate::weights::VarBuilder;
use candle_core::{Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

use crate::models::unet::UNetConfig;
use crate::models::{MOST_LAYERS, MOST_STAGES, possible_widths, supported, within};
use crate::nn::{Conv2d, ConvOptions};
use crate::{Result, Stop};

/// Configuration of a T2I-Adapter, as in diffusers' `config.json`. The defaults are those for Stable Diffusion 1.5.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct T2iAdapterConfig {
    /// Channels of the hint: 3 for RGB, 1 for grayscale.
    pub in_channels: usize,
    /// Channels of each stage: 320, 640, 1280, 1280. The last stage of a light adapter has the width of the one before
    /// and is not listed.
    pub channels: Vec<usize>,
    /// Number of layers per stage: 2, or 4 in a light adapter.
    pub num_res_blocks: usize,
    /// Pixel unshuffle factor per axis before the first layer, 8.
    pub downscale_factor: usize,
    /// Type of the adapter: `full_adapter` or `light_adapter`.
    pub adapter_type: String,
}

/// The adapter types.
const FULL: &str = "full_adapter";
const LIGHT: &str = "light_adapter";

impl Default for T2iAdapterConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            channels: UNetConfig::sd15().block_out_channels,
            num_res_blocks: 2,
            downscale_factor: 8,
            adapter_type: FULL.into(),
        }
    }
}

impl T2iAdapterConfig {
    /// The light adapter for Stable Diffusion 1.5.
    pub fn light() -> Self {
        Self { channels: vec![320, 640, 1280], num_res_blocks: 4, ..Self::default() }.lighter()
    }

    /// A light adapter with the same sizes.
    #[must_use]
    pub fn lighter(self) -> Self {
        Self { adapter_type: LIGHT.into(), ..self }
    }

    /// Returns whether this is a light adapter.
    pub fn is_light(&self) -> bool {
        self.adapter_type == LIGHT
    }

    /// Channels of the features of each stage.
    pub fn widths(&self) -> Vec<usize> {
        let last = self.channels.last().filter(|_| self.is_light());
        self.channels.iter().chain(last).copied().collect()
    }

    /// Checks that the configuration is supported.
    pub fn validate(&self) -> Result<()> {
        let name = "t2i-adapter";
        let known = [FULL.to_owned(), LIGHT.to_owned()];
        supported(name, "adapter_type", &self.adapter_type, &known)?;
        supported(name, "in_channels", &self.in_channels, &[1, 3])?;
        possible_widths(name, "channels", &self.channels)?;
        within(name, "num_res_blocks", self.num_res_blocks, 0..=MOST_LAYERS)?;
        within(name, "downscale_factor", self.downscale_factor, 1..=1 << (MOST_STAGES - 1))
    }

    /// Input channels of the first layer, after the pixel unshuffle.
    pub(crate) fn unshuffled(&self) -> usize {
        self.in_channels * self.downscale_factor * self.downscale_factor
    }
}

/// A T2I-Adapter.
#[derive(Clone, Debug)]
pub struct T2iAdapter {
    config: T2iAdapterConfig,
    conv_in: Option<Conv2d>,
    stages: Vec<Stage>,
}

/// The layers of one resolution.
#[derive(Clone, Debug)]
struct Stage {
    halves: bool,
    conv_in: Option<Conv2d>,
    layers: Vec<Layer>,
    conv_out: Option<Conv2d>,
}

/// Two convolutions with a ReLU between them, and a residual.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    first: Conv2d,
    second: Conv2d,
}

impl T2iAdapter {
    /// Loads the network.
    pub fn new(config: &T2iAdapterConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let vb = vb.pp("adapter");
        let widths = config.widths();
        let first = widths.first().copied().unwrap_or_default();
        let inputs = config.unshuffled();
        let conv_in = (!config.is_light())
            .then(|| Conv2d::new(inputs, first, ConvOptions::SAME_3X3, &vb.pp("conv_in")))
            .transpose()?;
        let mut before = if config.is_light() { inputs } else { first };
        let mut stages = Vec::new();
        for (i, &width) in widths.iter().enumerate() {
            let vb = vb.pp("body").pp(i);
            let stage = if config.is_light() {
                Stage::light(before, width, config.num_res_blocks, &vb)?
            } else {
                Stage::full(before, width, config.num_res_blocks, &vb)?
            };
            stages.push(Stage { halves: i > 0, ..stage });
            before = width;
        }
        Ok(Self { config: config.clone(), conv_in, stages })
    }

    /// The configuration.
    pub fn config(&self) -> &T2iAdapterConfig {
        &self.config
    }

    /// The features of each stage, `(frames, channels, height', width')`, of a hint
    /// `(frames, in_channels, height, width)` in `[0, 1]`.
    ///
    /// # Errors
    ///
    /// A height or width that is not a multiple of `downscale_factor`, or a wrong number of channels.
    pub fn forward(&self, hint: &Tensor, stop: &Stop) -> TensorResult<Vec<Tensor>> {
        let mut x = unshuffle(hint, self.config.downscale_factor)?;
        if let Some(conv) = &self.conv_in {
            x = conv.forward(&x)?;
        }
        let mut features = Vec::new();
        for stage in &self.stages {
            x = stage.forward(&x, stop)?;
            features.push(x.clone());
        }
        Ok(features)
    }
}

impl Stage {
    fn full(inputs: usize, width: usize, layers: usize, vb: &VarBuilder) -> TensorResult<Self> {
        let conv_in = (inputs != width)
            .then(|| Conv2d::new(inputs, width, ConvOptions::POINT, &vb.pp("in_conv")))
            .transpose()?;
        let layers = (0..layers)
            .map(|i| Layer::new(width, ConvOptions::POINT, &vb.pp("resnets").pp(i)))
            .collect::<TensorResult<_>>()?;
        Ok(Self { halves: false, conv_in, layers, conv_out: None })
    }

    /// A stage of a light adapter, whose layers have a quarter of the channels.
    fn light(inputs: usize, width: usize, layers: usize, vb: &VarBuilder) -> TensorResult<Self> {
        let inner = width / 4;
        let point = |from, to, name: &str| Conv2d::new(from, to, ConvOptions::POINT, &vb.pp(name));
        let layers = (0..layers)
            .map(|i| Layer::new(inner, ConvOptions::SAME_3X3, &vb.pp("resnets").pp(i)))
            .collect::<TensorResult<_>>()?;
        Ok(Self {
            halves: false,
            conv_in: Some(point(inputs, inner, "in_conv")?),
            layers,
            conv_out: Some(point(inner, width, "out_conv")?),
        })
    }

    fn forward(&self, x: &Tensor, stop: &Stop) -> TensorResult<Tensor> {
        let mut x = if self.halves { halve(x)? } else { x.clone() };
        if let Some(conv) = &self.conv_in {
            x = conv.forward(&x)?;
        }
        for layer in &self.layers {
            stop.check()?;
            x = layer.forward(&x)?;
        }
        match &self.conv_out {
            Some(conv) => conv.forward(&x),
            None => Ok(x),
        }
    }
}

impl Layer {
    /// Loads `block1`, 3×3, and `block2`, of the shape `second`.
    pub(super) fn new(width: usize, second: ConvOptions, vb: &VarBuilder) -> TensorResult<Self> {
        Ok(Self {
            first: Conv2d::new(width, width, ConvOptions::SAME_3X3, &vb.pp("block1"))?,
            second: Conv2d::new(width, width, second, &vb.pp("block2"))?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        self.second.forward(&self.first.forward(x)?.relu()?)? + x
    }
}

/// Pixel unshuffle: `(batch, channels, height*factor, width*factor)` to
/// `(batch, channels*factor*factor, height, width)`.
fn unshuffle(x: &Tensor, factor: usize) -> TensorResult<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if height % factor != 0 || width % factor != 0 {
        candle_core::bail!("a hint of {width}x{height} is not divisible by {factor}");
    }
    let (height, width) = (height / factor, width / factor);
    // Six dimensions in two steps, because copies of at most five dimensions are fast.
    x.reshape((batch * channels, height, factor, width, factor))?
        .permute((0, 2, 4, 1, 3))?
        .reshape((batch, channels * factor * factor, height, width))
}

/// 2×2 average pooling; odd edges are averaged over the existing pixels.
pub(super) fn halve(x: &Tensor) -> TensorResult<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    x.pad_with_same(2, 0, height % 2)?.pad_with_same(3, 0, width % 2)?.avg_pool2d(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn pixels_become_channels_in_pytorchs_order() {
        let x = Tensor::arange(0f32, 2.0 * 4.0 * 6.0, &Device::Cpu).unwrap();
        let y = unshuffle(&x.reshape((1, 2, 4, 6)).unwrap(), 2).unwrap();
        assert_eq!(y.dims(), [1, 8, 2, 3]);
        let at = |channel: usize, row: usize, column: usize| {
            let y = y.get(0).unwrap().get(channel).unwrap();
            y.get(row).unwrap().get(column).unwrap().to_scalar::<f32>().unwrap()
        };
        // Channel c, offset (i, j) of pixel (h, w): 24 c + 6 (2h + i) + 2w + j.
        assert_eq!((at(0, 0, 0), at(1, 0, 0), at(2, 0, 0), at(7, 1, 2)), (0.0, 1.0, 6.0, 47.0));
        assert_eq!((at(4, 0, 1), at(6, 1, 0)), (26.0, 42.0));
        assert!(
            unshuffle(&Tensor::zeros((1, 1, 3, 4), DType::F32, &Device::Cpu).unwrap(), 2).is_err()
        );
    }

    #[test]
    fn an_odd_edge_has_the_mean_of_what_is_there() {
        let x =
            Tensor::new(&[[[[1f32, 3.0, 5.0], [3.0, 5.0, 7.0], [10.0, 20.0, 40.0]]]], &Device::Cpu);
        let y = halve(&x.unwrap()).unwrap();
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [3.0, 6.0, 15.0, 40.0]);
    }
}
