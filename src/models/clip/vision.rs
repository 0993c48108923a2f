//! CLIP's vision transformer: image patches as tokens, pre-norm blocks with self-attention.
//!
//! Radford et al. (2021), Dosovitskiy et al. (2021).

use crate::weights::VarBuilder;
use candle_core::Tensor;

use super::VisionConfig;
use super::layer::{Layer, LayerOptions};
use crate::media::RgbImage;
use crate::media::resize::square;
use crate::media::tensor::normalized;
use crate::nn::{Conv2d, ConvOptions, LayerNorm, Linear};
use crate::{Result, Stop};

type TensorResult = candle_core::Result<Tensor>;

/// Mean and standard deviation of red, green and blue in CLIP's training images.
pub(in crate::models) const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
pub(in crate::models) const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// CLIP's image encoder with its projection into the joint embedding space.
#[derive(Clone, Debug)]
pub struct VisionEncoder {
    config: VisionConfig,
    class_embedding: Tensor,
    patch_embedding: Conv2d,
    position_embedding: Tensor,
    pre_norm: LayerNorm,
    layers: Vec<Layer>,
    post_norm: LayerNorm,
    projection: Linear,
}

impl VisionEncoder {
    /// Loads all weights under `vision_model`, and `visual_projection`.
    pub fn new(config: &VisionConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let projection = vb.pp("visual_projection");
        let vb = vb.pp("vision_model");
        let width = config.hidden_size;
        let norm = |name: &str| LayerNorm::new(width, config.layer_norm_eps, &vb.pp(name));
        let embeddings = vb.pp("embeddings");
        let patch = config.patch_size;
        let patches = ConvOptions { kernel: patch, padding: (0, 0), stride: patch, bias: false };
        let options = LayerOptions {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            quick_gelu: config.hidden_act == "quick_gelu",
        };
        Ok(Self {
            class_embedding: embeddings.get(width, "class_embedding")?,
            patch_embedding: Conv2d::new(
                config.num_channels,
                width,
                patches,
                &embeddings.pp("patch_embedding"),
            )?,
            position_embedding: embeddings
                .get((config.tokens(), width), "position_embedding.weight")?,
            // Misspelled in every published file.
            pre_norm: norm("pre_layrnorm")?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::new(options, &vb.pp("encoder.layers").pp(i)))
                .collect::<candle_core::Result<_>>()?,
            post_norm: norm("post_layernorm")?,
            projection: Linear::without_bias(width, config.projection_dim, &projection)?,
            config: config.clone(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// The preprocessed image, `(1, 3, side, side)`: resized, cropped to its centre and normalized.
    pub fn pixels(&self, image: &RgbImage) -> Result<Tensor> {
        let side = self.config.image_size;
        let image = square(image, side as u32);
        let like = &self.class_embedding;
        let pixels = normalized(&image, MEAN, DEVIATION)?;
        Ok(pixels.to_dtype(like.dtype())?.to_device(like.device())?)
    }

    /// The image embeddings in the joint space: `(batch, 3, side, side)` to `(batch, projection_dim)`.
    pub fn embed(&self, pixels: &Tensor, stop: &Stop) -> TensorResult {
        let states = self.states(pixels, self.layers.len(), stop)?;
        let class = states.narrow(1, 0, 1)?.squeeze(1)?;
        self.projection.forward(&self.post_norm.forward(&class)?)
    }

    /// The hidden states before the last layer, without a norm: `(batch, 3, side, side)` to
    /// `(batch, tokens, hidden_size)`, with the class token first.
    pub fn penultimate(&self, pixels: &Tensor, stop: &Stop) -> TensorResult {
        self.states(pixels, self.layers.len().saturating_sub(1), stop)
    }

    /// The hidden states after the first `layers` layers.
    fn states(&self, pixels: &Tensor, layers: usize, stop: &Stop) -> TensorResult {
        let patches = self.patch_embedding.forward(pixels)?;
        let patches = patches.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // (batch, patches, width)
        let (batch, _, width) = patches.dims3()?;
        let class = self.class_embedding.broadcast_as((batch, 1, width))?;
        let x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.position_embedding)?;
        let mut x = self.pre_norm.forward(&x)?;
        for layer in self.layers.iter().take(layers) {
            stop.check()?;
            x = layer.forward(&x, None)?;
        }
        Ok(x)
    }
}
