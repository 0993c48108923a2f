//! DINOv2: a vision transformer whose blocks scale their residuals.
//!
//! Oquab et al. (2023).

use candle_core::{DType, Tensor};
use serde::Deserialize;

use crate::kernels;
use crate::models::{MOST_CHANNELS, MOST_HEADS, MOST_LAYERS, supported, within};
use crate::nn::{Conv2d, ConvOptions, Interpolation, LayerNorm, Linear, check_heads, interpolate};
use crate::weights::VarBuilder;
use crate::{Result, Stop};

type TensorResult = candle_core::Result<Tensor>;

/// Longest side of the stored positions, in patches.
const MOST_POSITIONS: usize = 1 << 10;

/// Configuration of a [`Dinov2`], as transformers writes it; what is missing is as in its `Dinov2Config`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Dinov2Config {
    /// Channels of a token.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the inner layer of a block over that of a token.
    pub mlp_ratio: f64,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side in pixels of the images that the positions were trained for.
    pub image_size: usize,
    /// Epsilon of all layer norms.
    pub layer_norm_eps: f64,
    /// The blocks, from 1, whose tokens are returned.
    pub out_indices: Vec<usize>,
    /// Activation of the inner layer.
    pub hidden_act: String,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the inner layer is gated.
    pub use_swiglu_ffn: bool,
    /// Whether returned tokens go through the last norm.
    pub apply_layernorm: bool,
}

impl Default for Dinov2Config {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            mlp_ratio: 4.0,
            patch_size: 14,
            image_size: 224,
            layer_norm_eps: 1e-6,
            out_indices: vec![],
            hidden_act: "gelu".into(),
            qkv_bias: true,
            use_swiglu_ffn: false,
            apply_layernorm: true,
        }
    }
}

impl Dinov2Config {
    /// Checks that every value is possible and supported.
    pub(super) fn validate(&self) -> Result<()> {
        const NAME: &str = "DINOv2";
        within(NAME, "hidden_size", self.hidden_size, 1..=MOST_CHANNELS)?;
        within(NAME, "num_hidden_layers", self.num_hidden_layers, 1..=MOST_LAYERS)?;
        within(NAME, "num_attention_heads", self.num_attention_heads, 1..=MOST_HEADS)?;
        within(NAME, "mlp_ratio", self.mlp_ratio, 0.01..=64.0)?;
        within(NAME, "patch_size", self.patch_size, 1..=256)?;
        within(NAME, "image_size", self.image_size, self.patch_size..=1 << 14)?;
        within(NAME, "positions a side", self.positions(), 1..=MOST_POSITIONS)?;
        within(NAME, "layer_norm_eps", self.layer_norm_eps, 0.0..=1.0)?;
        supported(NAME, "hidden_act", &self.hidden_act.as_str(), &["gelu"])?;
        supported(NAME, "qkv_bias", &self.qkv_bias, &[true])?;
        supported(NAME, "use_swiglu_ffn", &self.use_swiglu_ffn, &[false])?;
        supported(NAME, "apply_layernorm", &self.apply_layernorm, &[true])?;
        let layers = 1..=self.num_hidden_layers;
        self.out_indices
            .iter()
            .try_for_each(|i| within(NAME, "out_indices", *i, layers.clone()))?;
        let is_rising = self.out_indices.windows(2).all(|pair| pair[0] < pair[1]);
        supported(NAME, "order of out_indices", &is_rising, &[true])
    }

    /// Positions a side that are stored.
    fn positions(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// The network, up to the last block that is asked for.
#[derive(Clone, Debug)]
pub struct Dinov2 {
    config: Dinov2Config,
    class_token: Tensor,
    positions: Tensor,
    patches: Conv2d,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Dinov2 {
    /// Loads `embeddings`, `encoder` and `layernorm`.
    pub(super) fn new(config: &Dinov2Config, vb: &VarBuilder) -> candle_core::Result<Self> {
        let width = config.hidden_size;
        let (embeddings, patch) = (vb.pp("embeddings"), config.patch_size);
        let tokens = config.positions() * config.positions() + 1;
        let options = ConvOptions { kernel: patch, padding: (0, 0), stride: patch, bias: true };
        let projection = embeddings.pp("patch_embeddings.projection");
        let block = |i| Block::new(config, &vb.pp("encoder.layer").pp(i));
        Ok(Self {
            class_token: embeddings.get((1, 1, width), "cls_token")?,
            positions: embeddings.get((1, tokens, width), "position_embeddings")?,
            patches: Conv2d::new(3, width, options, &projection)?,
            blocks: (0..config.num_hidden_layers).map(block).collect::<candle_core::Result<_>>()?,
            norm: LayerNorm::new(width, config.layer_norm_eps, &vb.pp("layernorm"))?,
            config: config.clone(),
        })
    }

    /// The tokens of patches after the blocks of `out_indices`, normalized, `(batch, hidden_size, rows, columns)` each,
    /// of pixels `(batch, 3, rows * patch_size, columns * patch_size)`.
    pub(super) fn forward(&self, pixels: &Tensor, stop: &Stop) -> candle_core::Result<Vec<Tensor>> {
        let x = self.patches.forward(pixels)?;
        let (batch, width, rows, columns) = x.dims4()?;
        let x = x.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let class = self.class_token.broadcast_as((batch, 1, width))?;
        let x = Tensor::cat(&[&class, &x], 1)?;
        let mut x = x.broadcast_add(&self.positions_of(rows, columns)?)?;
        let mut found = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            if found.len() == self.config.out_indices.len() {
                break;
            }
            stop.check()?;
            x = block.forward(&x)?;
            if self.config.out_indices.contains(&(i + 1)) {
                let patches = self.norm.forward(&x)?.narrow(1, 1, rows * columns)?;
                let patches = patches.transpose(1, 2)?.contiguous()?;
                found.push(patches.reshape((batch, width, rows, columns))?);
            }
        }
        Ok(found)
    }

    /// The positions of so many patches: those that are stored, resized where there are others.
    fn positions_of(&self, rows: usize, columns: usize) -> TensorResult {
        let (side, width) = (self.config.positions(), self.config.hidden_size);
        if (rows, columns) == (side, side) {
            return Ok(self.positions.clone());
        }
        let class = self.positions.narrow(1, 0, 1)?;
        let patches = self.positions.narrow(1, 1, side * side)?.reshape((1, side, side, width))?;
        let patches = patches.permute((0, 3, 1, 2))?.contiguous()?;
        let patches = interpolate(&patches, (rows, columns), Interpolation::Bicubic)?;
        let patches = patches.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        Tensor::cat(&[&class, &patches], 1)
    }
}

/// Self-attention and an MLP, both pre-norm, with residuals that are scaled by channel.
#[derive(Clone, Debug)]
struct Block {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
    scale1: Tensor,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    scale2: Tensor,
}

impl Block {
    fn new(config: &Dinov2Config, vb: &VarBuilder) -> candle_core::Result<Self> {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let inner = (width as f64 * config.mlp_ratio) as usize;
        let norm = |name: &str| LayerNorm::new(width, config.layer_norm_eps, &vb.pp(name));
        let projection = |name: &str| Linear::new(width, width, &vb.pp("attention").pp(name));
        let block = Self {
            norm1: norm("norm1")?,
            query: projection("attention.query")?,
            key: projection("attention.key")?,
            value: projection("attention.value")?,
            output: projection("output.dense")?,
            heads,
            scale1: vb.get(width, "layer_scale1.lambda1")?,
            norm2: norm("norm2")?,
            fc1: Linear::new(width, inner, &vb.pp("mlp.fc1"))?,
            fc2: Linear::new(inner, width, &vb.pp("mlp.fc2"))?,
            scale2: vb.get(width, "layer_scale2.lambda1")?,
        };
        check_heads(width, heads, vb)?;
        Ok(block)
    }

    /// Maps `(batch, tokens, width)` to the same shape.
    fn forward(&self, x: &Tensor) -> TensorResult {
        let (batch, tokens, width) = x.dims3()?;
        let dim = width / self.heads;
        let y = self.norm1.forward(x)?;
        let split = |layer: &Linear| layer.forward(&y)?.reshape((batch, tokens, self.heads, dim));
        let (q, k, v) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        let y = kernels::attention(&q, &k, &v, 1.0 / (dim as f64).sqrt())?;
        let y = self.output.forward(&y.reshape((batch, tokens, width))?)?;
        let x = (x + y.broadcast_mul(&self.scale1)?)?;
        let y = self.fc1.forward(&self.norm2.forward(&x)?)?;
        // In f32, where the error function is exact enough for both.
        let y = y.to_dtype(DType::F32)?.gelu_erf()?.to_dtype(y.dtype())?;
        let y = self.fc2.forward(&y)?;
        &x + y.broadcast_mul(&self.scale2)?
    }
}
