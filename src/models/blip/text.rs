//! BLIP's decoder of text: BERT with causal attention, and attention to an image in every block.

use candle_core::{D, Tensor};
use serde::Deserialize;

use crate::kernels;
use crate::models::{MOST_CHANNELS, MOST_HEADS, MOST_LAYERS, supported, within};
use crate::nn::{LayerNorm, Linear, causal_mask, check_heads, masked_attention};
use crate::weights::VarBuilder;
use crate::{Result, Stop};

type TensorResult = candle_core::Result<Tensor>;

/// The largest vocabulary.
const MOST_WORDS: usize = 1 << 20;

/// Configuration of a [`BlipText`]; what is missing is as in transformers' `BlipTextConfig`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct BlipTextConfig {
    /// Tokens, those that begin a text included.
    pub vocab_size: usize,
    /// Channels of a token.
    pub hidden_size: usize,
    /// Width of the inner layer of a block.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// The longest text in tokens.
    pub max_position_embeddings: usize,
    /// Activation of the inner layers.
    pub hidden_act: String,
    /// Epsilon of all layer norms.
    pub layer_norm_eps: f64,
    /// The token that begins a text.
    pub bos_token_id: u32,
    /// The token that ends one.
    pub sep_token_id: u32,
}

impl Default for BlipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30524,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 512,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-12,
            bos_token_id: 30522,
            sep_token_id: 102,
        }
    }
}

impl BlipTextConfig {
    /// Checks that every value is possible and supported.
    pub(super) fn validate(&self) -> Result<()> {
        const NAME: &str = "BLIP's text";
        within(NAME, "vocab_size", self.vocab_size, 2..=MOST_WORDS)?;
        within(NAME, "hidden_size", self.hidden_size, 1..=MOST_CHANNELS)?;
        within(NAME, "intermediate_size", self.intermediate_size, 1..=MOST_CHANNELS)?;
        within(NAME, "num_hidden_layers", self.num_hidden_layers, 1..=MOST_LAYERS)?;
        within(NAME, "num_attention_heads", self.num_attention_heads, 1..=MOST_HEADS)?;
        within(NAME, "max_position_embeddings", self.max_position_embeddings, 2..=1 << 16)?;
        within(NAME, "layer_norm_eps", self.layer_norm_eps, 0.0..=1.0)?;
        let last = self.vocab_size as u32 - 1;
        within(NAME, "bos_token_id", self.bos_token_id, 0..=last)?;
        within(NAME, "sep_token_id", self.sep_token_id, 0..=last)?;
        supported(NAME, "hidden_act", &self.hidden_act.as_str(), &["gelu"])
    }
}

/// Keys and values of an image in one block, `(batch, tokens, heads, dim)`.
#[derive(Clone, Debug)]
pub struct Context(Tensor, Tensor);

/// The decoder of text, with the scores of the next token.
#[derive(Clone, Debug)]
pub struct BlipText {
    config: BlipTextConfig,
    words: Tensor,
    positions: Tensor,
    norm: LayerNorm,
    blocks: Vec<Block>,
    transform: Linear,
    transform_norm: LayerNorm,
    bias: Tensor,
}

impl BlipText {
    /// `context` are the channels of an image's tokens.
    pub(super) fn new(config: &BlipTextConfig, context: usize, vb: &VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let (bert, head) = (vb.pp("bert"), vb.pp("cls.predictions"));
        let embeddings = bert.pp("embeddings");
        let places = config.max_position_embeddings;
        let norm =
            |vb: &VarBuilder| LayerNorm::new(width, config.layer_norm_eps, &vb.pp("LayerNorm"));
        let block = |i| Block::new(config, context, &bert.pp("encoder.layer").pp(i));
        let transform = head.pp("transform");
        Ok(Self {
            words: embeddings.get((config.vocab_size, width), "word_embeddings.weight")?,
            positions: embeddings.get((places, width), "position_embeddings.weight")?,
            norm: norm(&embeddings)?,
            blocks: (0..config.num_hidden_layers).map(block).collect::<candle_core::Result<_>>()?,
            transform: Linear::new(width, width, &transform.pp("dense"))?,
            transform_norm: norm(&transform)?,
            bias: head.get(config.vocab_size, "bias")?,
            config: config.clone(),
        })
    }

    /// The tokens that begin and end a text, and the longest text.
    pub(super) fn bounds(&self) -> (u32, u32, usize) {
        let BlipTextConfig { bos_token_id, sep_token_id, max_position_embeddings, .. } =
            self.config;
        (bos_token_id, sep_token_id, max_position_embeddings)
    }

    /// What each block attends to of images, whose tokens are `(batch, tokens, channels)`.
    pub fn contexts(&self, states: &Tensor) -> candle_core::Result<Vec<Context>> {
        self.blocks.iter().map(|block| block.image.context(states)).collect()
    }

    /// The states of texts, `(batch, tokens, hidden_size)`: tokens `(batch, tokens)` of `u32`, each of which knows
    /// those before it.
    ///
    /// # Errors
    ///
    /// More tokens than positions, or a requested `stop`.
    pub fn forward(&self, ids: &Tensor, contexts: &[Context], stop: &Stop) -> TensorResult {
        let (batch, tokens) = ids.dims2()?;
        let words = self.words.index_select(&ids.flatten_all()?, 0)?;
        let words = words.reshape((batch, tokens, self.config.hidden_size))?;
        let x = words.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let mut x = self.norm.forward(&x)?;
        let mask = causal_mask(tokens, ids.device())?;
        for (block, context) in self.blocks.iter().zip(contexts) {
            stop.check()?;
            x = block.forward(&x, &mask, context)?;
        }
        Ok(x)
    }

    /// The scores (logits) of the next token for states `(batch, tokens, hidden_size)`: `(batch, tokens, vocab_size)`.
    pub fn scores(&self, states: &Tensor) -> TensorResult {
        let (batch, tokens, width) = states.dims3()?;
        let x = self.transform_norm.forward(&self.transform.forward(states)?.gelu_erf()?)?;
        let scores = x.reshape((batch * tokens, width))?.matmul(&self.words.t()?)?;
        scores.broadcast_add(&self.bias)?.reshape((batch, tokens, self.bias.dim(D::Minus1)?))
    }
}

/// A post-norm block: attention to the text before, to the image, and an inner layer.
#[derive(Clone, Debug)]
struct Block {
    own: Attention,
    image: Attention,
    intermediate: Linear,
    output: Linear,
    norm: LayerNorm,
}

impl Block {
    fn new(config: &BlipTextConfig, context: usize, vb: &VarBuilder) -> candle_core::Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let output = vb.pp("output");
        Ok(Self {
            own: Attention::new(config, width, &vb.pp("attention"))?,
            image: Attention::new(config, context, &vb.pp("crossattention"))?,
            intermediate: Linear::new(width, inner, &vb.pp("intermediate.dense"))?,
            output: Linear::new(inner, width, &output.pp("dense"))?,
            norm: LayerNorm::new(width, config.layer_norm_eps, &output.pp("LayerNorm"))?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor, context: &Context) -> TensorResult {
        let x = self.own.forward(x, &self.own.context(x)?, Some(mask))?;
        let x = self.image.forward(&x, context, None)?;
        let y = self.intermediate.forward(&x)?.gelu_erf()?;
        self.norm.forward(&self.output.forward_residual(&y, &x)?)
    }
}

#[derive(Clone, Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
    heads: usize,
    dim: usize,
}

impl Attention {
    fn new(config: &BlipTextConfig, context: usize, vb: &VarBuilder) -> candle_core::Result<Self> {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let (inner, output) = (vb.pp("self"), vb.pp("output"));
        let attention = Self {
            query: Linear::new(width, width, &inner.pp("query"))?,
            key: Linear::new(context, width, &inner.pp("key"))?,
            value: Linear::new(context, width, &inner.pp("value"))?,
            dense: Linear::new(width, width, &output.pp("dense"))?,
            norm: LayerNorm::new(width, config.layer_norm_eps, &output.pp("LayerNorm"))?,
            heads,
            dim: width / heads,
        };
        check_heads(width, heads, vb)?;
        Ok(attention)
    }

    fn split(&self, x: &Tensor) -> TensorResult {
        let (batch, tokens, _) = x.dims3()?;
        x.reshape((batch, tokens, self.heads, self.dim))
    }

    fn context(&self, states: &Tensor) -> candle_core::Result<Context> {
        let (keys, values) = (self.key.forward(states)?, self.value.forward(states)?);
        Ok(Context(self.split(&keys)?, self.split(&values)?))
    }

    /// What `x` attends to, added to it and normalized.
    fn forward(&self, x: &Tensor, context: &Context, mask: Option<&Tensor>) -> TensorResult {
        let Context(keys, values) = context;
        let queries = self.split(&self.query.forward(x)?)?;
        let scale = 1.0 / (self.dim as f64).sqrt();
        let y = match mask {
            Some(mask) => masked_attention(&(queries * scale)?, keys, values, mask)?,
            None => kernels::attention(&queries, keys, values, scale)?,
        };
        self.norm.forward(&self.dense.forward_residual(&y.reshape(x.shape())?, x)?)
    }
}
