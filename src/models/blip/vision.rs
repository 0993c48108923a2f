//! BLIP's vision transformer.

use candle_core::Tensor;
use serde::Deserialize;

use crate::kernels;
use crate::models::{MOST_CHANNELS, MOST_HEADS, MOST_LAYERS, supported, within};
use crate::nn::{Conv2d, ConvOptions, LayerNorm, Linear, check_heads};
use crate::weights::VarBuilder;
use crate::{Result, Stop};

type TensorResult = candle_core::Result<Tensor>;

/// Longest side of an image in patches.
const MOST_PATCHES: usize = 1 << 8;

/// Configuration of a [`BlipVision`]; what is missing is as in transformers' `BlipVisionConfig`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct BlipVisionConfig {
    /// Channels of a token.
    pub hidden_size: usize,
    /// Width of the inner layer of a block.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Side of an image in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Activation of the inner layer.
    pub hidden_act: String,
    /// Epsilon of all layer norms.
    pub layer_norm_eps: f64,
}

impl Default for BlipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 384,
            patch_size: 16,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl BlipVisionConfig {
    /// Checks that every value is possible and supported.
    pub(super) fn validate(&self) -> Result<()> {
        const NAME: &str = "BLIP's vision";
        within(NAME, "hidden_size", self.hidden_size, 1..=MOST_CHANNELS)?;
        within(NAME, "intermediate_size", self.intermediate_size, 1..=MOST_CHANNELS)?;
        within(NAME, "num_hidden_layers", self.num_hidden_layers, 1..=MOST_LAYERS)?;
        within(NAME, "num_attention_heads", self.num_attention_heads, 1..=MOST_HEADS)?;
        within(NAME, "patch_size", self.patch_size, 1..=256)?;
        within(NAME, "image_size", self.image_size, self.patch_size..=1 << 14)?;
        within(NAME, "patches a side", self.patches(), 1..=MOST_PATCHES)?;
        within(NAME, "layer_norm_eps", self.layer_norm_eps, 0.0..=1.0)?;
        supported(NAME, "hidden_act", &self.hidden_act.as_str(), &["gelu"])
    }

    /// Patches a side.
    fn patches(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }
}

/// The encoder of images.
#[derive(Clone, Debug)]
pub struct BlipVision {
    patches: Conv2d,
    class: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl BlipVision {
    pub(super) fn new(config: &BlipVisionConfig, vb: &VarBuilder) -> Result<Self> {
        let (width, patch) = (config.hidden_size, config.patch_size);
        let embeddings = vb.pp("embeddings");
        let options = ConvOptions { kernel: patch, padding: (0, 0), stride: patch, bias: true };
        let tokens = config.patches() * config.patches() + 1;
        let block = |i| Block::new(config, &vb.pp("encoder.layers").pp(i));
        Ok(Self {
            patches: Conv2d::new(3, width, options, &embeddings.pp("patch_embedding"))?,
            class: embeddings.get((1, 1, width), "class_embedding")?,
            positions: embeddings.get((1, tokens, width), "position_embedding")?,
            blocks: (0..config.num_hidden_layers).map(block).collect::<candle_core::Result<_>>()?,
            norm: LayerNorm::new(width, config.layer_norm_eps, &vb.pp("post_layernorm"))?,
        })
    }

    /// The normalized tokens of images `(batch, 3, side, side)`: `(batch, tokens, hidden_size)`, that of the class
    /// first.
    pub fn forward(&self, pixels: &Tensor, stop: &Stop) -> TensorResult {
        let x = self.patches.forward(pixels)?;
        let (batch, width, _, _) = x.dims4()?;
        let x = x.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let class = self.class.broadcast_as((batch, 1, width))?;
        let mut x = Tensor::cat(&[&class, &x], 1)?.broadcast_add(&self.positions)?;
        for block in &self.blocks {
            stop.check()?;
            x = block.forward(&x)?;
        }
        self.norm.forward(&x)
    }
}

/// A pre-norm block whose queries, keys and values come from one layer.
#[derive(Clone, Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    projection: Linear,
    heads: usize,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn new(config: &BlipVisionConfig, vb: &VarBuilder) -> candle_core::Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name: &str| LayerNorm::new(width, config.layer_norm_eps, &vb.pp(name));
        let attention = vb.pp("self_attn");
        let block = Self {
            norm1: norm("layer_norm1")?,
            qkv: Linear::new(width, 3 * width, &attention.pp("qkv"))?,
            projection: Linear::new(width, width, &attention.pp("projection"))?,
            heads: config.num_attention_heads,
            norm2: norm("layer_norm2")?,
            fc1: Linear::new(width, inner, &vb.pp("mlp.fc1"))?,
            fc2: Linear::new(inner, width, &vb.pp("mlp.fc2"))?,
        };
        check_heads(width, config.num_attention_heads, &attention)?;
        Ok(block)
    }

    fn forward(&self, x: &Tensor) -> TensorResult {
        let (batch, tokens, width) = x.dims3()?;
        let dim = width / self.heads;
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let qkv = qkv.reshape((batch, tokens, 3, self.heads, dim))?;
        let part = |i| qkv.narrow(2, i, 1)?.squeeze(2)?.contiguous();
        let scale = 1.0 / (dim as f64).sqrt();
        let y = kernels::attention(&part(0)?, &part(1)?, &part(2)?, scale)?;
        let x = self.projection.forward_residual(&y.reshape((batch, tokens, width))?, x)?;
        let y = self.fc1.forward(&self.norm2.forward(&x)?)?.gelu_erf()?;
        self.fc2.forward_residual(&y, &x)
    }
}
