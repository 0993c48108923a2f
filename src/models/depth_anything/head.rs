//! The DPT head: feature maps of several blocks at several sizes, fused from the coarsest on.

use candle_core::{Result, Tensor};

use super::DepthAnythingConfig;
use crate::Stop;
use crate::kernels::{self, ConvArgs, Weights};
use crate::nn::{Conv2d, ConvOptions, Interpolation, interpolate};
use crate::weights::VarBuilder;

const NO_BIAS_3X3: ConvOptions = ConvOptions { bias: false, ..ConvOptions::SAME_3X3 };

fn conv(layer: &Conv2d, x: &Tensor, stop: &Stop) -> Result<Tensor> {
    layer.forward_with(x, ConvArgs { stop: Some(stop), ..ConvArgs::default() })
}

/// A transposed convolution whose stride is the side of its kernel: each pixel becomes a square of its own.
#[derive(Clone, Debug)]
struct Enlarge {
    weights: Weights,
    channels: usize,
    factor: usize,
}

impl Enlarge {
    /// Loads `weight` `(channels, channels, factor, factor)`, inputs first, and `bias`.
    fn new(channels: usize, factor: usize, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get((channels, channels, factor, factor), "weight")?;
        let outputs = channels * factor * factor;
        // A 1×1 convolution to all pixels of the square.
        let weight = weight.reshape((channels, outputs))?.t()?.contiguous()?;
        let weight = weight.reshape((outputs, channels, 1, 1))?;
        let bias = vb.get(channels, "bias")?.unsqueeze(1)?;
        let bias = bias.broadcast_as((channels, factor * factor))?.flatten_all()?;
        Ok(Self {
            weights: Weights::quantized(&weight, Some(&bias), vb.quantize())?,
            channels,
            factor,
        })
    }

    fn forward(&self, x: &Tensor, stop: &Stop) -> Result<Tensor> {
        let args = ConvArgs { stop: Some(stop), padding: (0, 0), stride: 1, ..ConvArgs::default() };
        let y = kernels::conv2d(x, &self.weights, &args)?;
        let (batch, _, height, width) = y.dims4()?;
        let (channels, factor) = (self.channels, self.factor);
        let y = y.reshape(&[batch, channels, factor, factor, height, width][..])?;
        let y = y.permute(&[0, 1, 4, 2, 5, 3][..])?.contiguous()?;
        y.reshape((batch, channels, height * factor, width * factor))
    }
}

/// How a map gets its size.
#[derive(Clone, Debug)]
enum Resize {
    Enlarge(Enlarge),
    Keep,
    Halve(Conv2d),
}

/// A feature map with its own channels and size, then with those that are fused.
#[derive(Clone, Debug)]
struct Reassemble {
    projection: Conv2d,
    resize: Resize,
    conv: Conv2d,
}

impl Reassemble {
    fn new(config: &DepthAnythingConfig, i: usize, vb: &VarBuilder) -> Result<Self> {
        let (channels, factor) = (config.neck_hidden_sizes[i], config.reassemble_factors[i]);
        let own = vb.pp("reassemble_stage.layers").pp(i);
        let resize = own.pp("resize");
        let half = ConvOptions { stride: 2, ..ConvOptions::SAME_3X3 };
        Ok(Self {
            projection: Conv2d::new(
                config.backbone_config.hidden_size,
                channels,
                ConvOptions::POINT,
                &own.pp("projection"),
            )?,
            resize: if factor > 1.0 {
                Resize::Enlarge(Enlarge::new(channels, factor as usize, &resize)?)
            } else if factor < 1.0 {
                Resize::Halve(Conv2d::new(channels, channels, half, &resize)?)
            } else {
                Resize::Keep
            },
            conv: Conv2d::new(
                channels,
                config.fusion_hidden_size,
                NO_BIAS_3X3,
                &vb.pp("convs").pp(i),
            )?,
        })
    }

    fn forward(&self, x: &Tensor, stop: &Stop) -> Result<Tensor> {
        let x = conv(&self.projection, x, stop)?;
        let x = match &self.resize {
            Resize::Enlarge(layer) => layer.forward(&x, stop)?,
            Resize::Keep => x,
            Resize::Halve(layer) => conv(layer, &x, stop)?,
        };
        conv(&self.conv, &x, stop)
    }
}

/// Two convolutions after ReLUs, with a residual.
#[derive(Clone, Debug)]
struct Residual {
    first: Conv2d,
    second: Conv2d,
}

impl Residual {
    fn new(channels: usize, vb: &VarBuilder) -> Result<Self> {
        let conv =
            |name: &str| Conv2d::new(channels, channels, ConvOptions::SAME_3X3, &vb.pp(name));
        Ok(Self { first: conv("convolution1")?, second: conv("convolution2")? })
    }

    fn forward(&self, x: &Tensor, stop: &Stop) -> Result<Tensor> {
        let y = conv(&self.first, &x.relu()?, stop)?;
        x + conv(&self.second, &y.relu()?, stop)?
    }
}

/// A step from a coarser map to the next size.
#[derive(Clone, Debug)]
struct Fusion {
    /// For the map that is added; the first step has none.
    added: Option<Residual>,
    residual: Residual,
    projection: Conv2d,
}

impl Fusion {
    fn new(channels: usize, is_first: bool, vb: &VarBuilder) -> Result<Self> {
        let residual = |name: &str| Residual::new(channels, &vb.pp(name));
        Ok(Self {
            added: if is_first { None } else { Some(residual("residual_layer1")?) },
            residual: residual("residual_layer2")?,
            projection: Conv2d::new(channels, channels, ConvOptions::POINT, &vb.pp("projection"))?,
        })
    }

    /// The map with `added`, at the size (height, width) of the next.
    fn forward(
        &self,
        x: Tensor,
        added: &Tensor,
        size: (usize, usize),
        stop: &Stop,
    ) -> Result<Tensor> {
        let x = match &self.added {
            Some(layer) => (x + layer.forward(added, stop)?)?,
            None => x,
        };
        let x = self.residual.forward(&x, stop)?;
        conv(&self.projection, &interpolate(&x, size, Interpolation::BilinearCorners)?, stop)
    }
}

/// All maps, fused.
#[derive(Clone, Debug)]
pub(super) struct Neck {
    maps: Vec<Reassemble>,
    fusions: Vec<Fusion>,
}

impl Neck {
    /// Loads `reassemble_stage`, `convs` and `fusion_stage`.
    pub(super) fn new(config: &DepthAnythingConfig, vb: &VarBuilder) -> Result<Self> {
        let stages = 0..config.neck_hidden_sizes.len();
        let fusion = |i: usize| {
            Fusion::new(config.fusion_hidden_size, i == 0, &vb.pp("fusion_stage.layers").pp(i))
        };
        Ok(Self {
            maps: stages.clone().map(|i| Reassemble::new(config, i, vb)).collect::<Result<_>>()?,
            fusions: stages.map(fusion).collect::<Result<_>>()?,
        })
    }

    /// `(batch, fusion_hidden_size, 8 * rows, 8 * columns)` of maps `(batch, hidden_size, rows, columns)`, those of
    /// early blocks first.
    pub(super) fn forward(&self, features: &[Tensor], stop: &Stop) -> Result<Tensor> {
        let maps = self.maps.iter().zip(features).map(|(map, x)| map.forward(x, stop));
        let mut maps = maps.collect::<Result<Vec<_>>>()?;
        maps.reverse();
        let Some(coarsest) = maps.first() else { candle_core::bail!("no feature maps") };
        let mut x = coarsest.clone();
        for (i, (fusion, map)) in self.fusions.iter().zip(&maps).enumerate() {
            stop.check()?;
            let (_, _, height, width) = maps.get(i + 1).unwrap_or(&x).dims4()?;
            let is_last = i + 1 == maps.len();
            let size = if is_last { (2 * height, 2 * width) } else { (height, width) };
            x = fusion.forward(x, map, size, stop)?;
        }
        Ok(x)
    }
}

/// The depths of the fused map.
#[derive(Clone, Debug)]
pub(super) struct Head {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
}

impl Head {
    /// Loads `conv1`, `conv2` and `conv3`.
    pub(super) fn new(config: &DepthAnythingConfig, vb: &VarBuilder) -> Result<Self> {
        let (fused, inner) = (config.fusion_hidden_size, config.head_hidden_size);
        let (same, point) = (ConvOptions::SAME_3X3, ConvOptions::POINT);
        Ok(Self {
            conv1: Conv2d::new(fused, fused / 2, same, &vb.pp("conv1"))?,
            conv2: Conv2d::new(fused / 2, inner, same, &vb.pp("conv2"))?,
            conv3: Conv2d::new(inner, 1, point, &vb.pp("conv3"))?,
        })
    }

    /// `(batch, 1, height, width)`, 0 or more.
    pub(super) fn forward(&self, x: &Tensor, size: (usize, usize), stop: &Stop) -> Result<Tensor> {
        let x = conv(&self.conv1, x, stop)?;
        let x = interpolate(&x, size, Interpolation::BilinearCorners)?;
        stop.check()?;
        let x = conv(&self.conv2, &x, stop)?.relu()?;
        conv(&self.conv3, &x, stop)?.relu()
    }
}
