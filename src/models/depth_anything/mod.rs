//! Depth Anything: relative depth of a picture by DINOv2 and a DPT head.
//!
//! Yang et al. (2024), [2406.09414](https://arxiv.org/abs/2406.09414), version 2; Ranftl et al. (2021). The names are
//! those of transformers' files, such as depth-anything/Depth-Anything-V2-Small-hf.

mod dinov2;
mod head;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

pub use dinov2::{Dinov2, Dinov2Config};

use super::{MOST_CHANNELS, supported, within};
use crate::media::RgbImage;
use crate::media::resize::bicubic_to;
use crate::media::tensor::normalized;
use crate::nn::{Interpolation, interpolate};
use crate::preprocess::{DepthMap, EstimateDepth};
use crate::weights::VarBuilder;
use crate::{Result, Stop};
use head::{Head, Neck};

/// Side of a picture for the network in pixels, in the processor of the published models.
const SIDE: usize = 518;

/// Mean and standard deviation of red, green and blue in ImageNet.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// Feature maps that the head is made of.
const STAGES: usize = 4;

/// Configuration of a [`DepthAnything`], as transformers writes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct DepthAnythingConfig {
    /// The vision transformer.
    pub backbone_config: Dinov2Config,
    /// Channels of the fused maps.
    #[serde(default = "fusion_hidden_size")]
    pub fusion_hidden_size: usize,
    /// Channels before the last convolution.
    #[serde(default = "head_hidden_size")]
    pub head_hidden_size: usize,
    /// The fused map that the head takes; only the last, -1.
    #[serde(default = "head_in_index")]
    pub head_in_index: i64,
    /// Channels of the reassembled maps.
    #[serde(default = "neck_hidden_sizes")]
    pub neck_hidden_sizes: Vec<usize>,
    /// Factors of their sizes.
    #[serde(default = "reassemble_factors")]
    pub reassemble_factors: Vec<f64>,
    /// `relative`; metric models are another network.
    #[serde(default = "relative")]
    pub depth_estimation_type: String,
}

fn fusion_hidden_size() -> usize {
    64
}

fn head_hidden_size() -> usize {
    32
}

fn head_in_index() -> i64 {
    -1
}

fn neck_hidden_sizes() -> Vec<usize> {
    vec![48, 96, 192, 384]
}

fn reassemble_factors() -> Vec<f64> {
    vec![4.0, 2.0, 1.0, 0.5]
}

fn relative() -> String {
    "relative".into()
}

impl DepthAnythingConfig {
    /// Checks that every value is possible and supported.
    pub fn validate(&self) -> Result<()> {
        const NAME: &str = "Depth Anything";
        self.backbone_config.validate()?;
        within(NAME, "fusion_hidden_size", self.fusion_hidden_size, 2..=MOST_CHANNELS)?;
        within(NAME, "head_hidden_size", self.head_hidden_size, 1..=MOST_CHANNELS)?;
        supported(NAME, "head_in_index", &self.head_in_index, &[-1, STAGES as i64 - 1])?;
        supported(NAME, "reassemble_factors", &self.reassemble_factors, &[reassemble_factors()])?;
        supported(NAME, "number of neck_hidden_sizes", &self.neck_hidden_sizes.len(), &[STAGES])?;
        let maps = self.backbone_config.out_indices.len();
        supported(NAME, "number of out_indices", &maps, &[STAGES])?;
        for channels in &self.neck_hidden_sizes {
            within(NAME, "neck_hidden_sizes", *channels, 1..=MOST_CHANNELS)?;
        }
        let kind = self.depth_estimation_type.as_str();
        supported(NAME, "depth_estimation_type", &kind, &["relative"])
    }

    /// Why a tensor of a file is not used, if it is none of the network's.
    pub fn ignored(name: &str) -> Option<&'static str> {
        if name == "backbone.embeddings.mask_token" {
            return Some("only training masks patches");
        }
        let first = "neck.fusion_stage.layers.0.residual_layer1.";
        name.starts_with(first).then_some("the first fusion has nothing to add")
    }

    /// Bytes of intermediate results for a picture, in f32; an upper bound for one that is up to twice as wide as high.
    pub fn work_bytes(&self) -> u64 {
        let area = (2 * SIDE * SIDE) as u64;
        // The last two convolutions at full size, each with its input.
        let values = (2 * self.head_hidden_size + 2 * self.fusion_hidden_size) as u64;
        area.saturating_mul(values).saturating_mul(4)
    }

    /// Width and height of the network's picture for one of that size: about the side of the published processor, with
    /// the proportions kept, in whole patches.
    pub fn size(&self, size: (u32, u32), side: usize) -> (usize, usize) {
        let patch = self.backbone_config.patch_size;
        let (width, height) = (f64::from(size.0.max(1)), f64::from(size.1.max(1)));
        let (wide, tall) = (side as f64 / width, side as f64 / height);
        // As little change as possible.
        let scale = if (1.0 - wide).abs() < (1.0 - tall).abs() { wide } else { tall };
        let whole = |side: f64| {
            let patches = (scale * side / patch as f64).round_ties_even() as usize;
            patches.max(1) * patch
        };
        (whole(width), whole(height))
    }
}

/// The network.
#[derive(Clone, Debug)]
pub struct DepthAnything {
    config: DepthAnythingConfig,
    backbone: Dinov2,
    neck: Neck,
    head: Head,
    dtype: DType,
    device: Device,
    side: usize,
}

impl DepthAnything {
    /// Loads `backbone`, `neck` and `head`.
    pub fn new(config: &DepthAnythingConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            backbone: Dinov2::new(&config.backbone_config, &vb.pp("backbone"))?,
            neck: Neck::new(config, &vb.pp("neck"))?,
            head: Head::new(config, &vb.pp("head"))?,
            config: config.clone(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            side: SIDE,
        })
    }

    /// The same network for pictures of another side than the published 518 pixels.
    #[must_use]
    pub fn with_side(self, side: usize) -> Self {
        Self { side, ..self }
    }

    /// Pixels of a picture, `(1, 3, height, width)`: resized with a bicubic filter and normalized, as by
    /// `DPTImageProcessor`.
    pub fn pixels(&self, image: &RgbImage, stop: &Stop) -> Result<Tensor> {
        let (width, height) = self.config.size(image.dimensions(), self.side);
        let image = bicubic_to(image, (width as u32, height as u32), stop)?;
        let pixels = normalized(&image, MEAN, DEVIATION)?;
        Ok(pixels.to_dtype(self.dtype)?.to_device(&self.device)?)
    }

    /// Inverse depths, 0 or more, larger where it is nearer: pixels `(batch, 3, height, width)`, in whole patches, to
    /// `(batch, height, width)`.
    pub fn forward(&self, pixels: &Tensor, stop: &Stop) -> Result<Tensor> {
        let (_, _, height, width) = pixels.dims4()?;
        let features = self.backbone.forward(pixels, stop)?;
        let fused = self.neck.forward(&features, stop)?;
        stop.check()?;
        Ok(self.head.forward(&fused, (height, width), stop)?.squeeze(1)?)
    }
}

impl EstimateDepth for DepthAnything {
    fn depth(&self, image: &RgbImage, stop: &Stop) -> Result<DepthMap> {
        let (width, height) = image.dimensions();
        let depth = self.forward(&self.pixels(image, stop)?, stop)?.unsqueeze(1)?;
        let depth = depth.to_dtype(DType::F32)?;
        let size = (height as usize, width as usize);
        let depth = interpolate(&depth, size, Interpolation::Bicubic)?;
        let values = depth.flatten_all()?.to_vec1()?;
        Ok(DepthMap { width, height, values })
    }
}
