//! The text transformer: pre-norm blocks with causal self attention.

use crate::weights::VarBuilder;
use candle_core::{D, Device, Tensor};

use super::TextConfig;
use super::layer::{Layer, LayerOptions};
use crate::nn::LayerNorm;
use crate::{Result, Stop};

/// CLIP's text encoder.
#[derive(Clone, Debug)]
pub struct TextEncoder {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
}

impl TextEncoder {
    /// The canonical name of the table of tokens.
    pub const TOKENS: &str = "text_model.embeddings.token_embedding.weight";

    /// Reads everything under `text_model`.
    pub fn new(config: &TextConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let vb = vb.pp("text_model");
        let width = config.hidden_size;
        let embeddings = vb.pp("embeddings");
        let options = LayerOptions {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            quick_gelu: config.hidden_act == "quick_gelu",
        };
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::new(options, &vb.pp("encoder.layers").pp(i)))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self {
            token_embedding: embeddings
                .get((config.vocab_size, width), "token_embedding.weight")?,
            position_embedding: embeddings
                .get((config.max_position_embeddings, width), "position_embedding.weight")?,
            layers,
            final_layer_norm: LayerNorm::new(
                width,
                config.layer_norm_eps,
                &vb.pp("final_layer_norm"),
            )?,
        })
    }

    /// Width of a token.
    pub fn width(&self) -> usize {
        self.token_embedding.dims().last().copied().unwrap_or_default()
    }

    /// The most tokens that can be encoded together.
    pub fn max_tokens(&self) -> usize {
        self.position_embedding.dims().first().copied().unwrap_or_default()
    }

    /// Makes the vocabulary larger by `vectors`, `(tokens, width)`, and returns the first one's id.
    pub fn add_tokens(&mut self, vectors: &Tensor) -> Result<u32> {
        let table = &self.token_embedding;
        let first = table.dim(0)? as u32;
        let vectors = vectors.to_device(table.device())?.to_dtype(table.dtype())?;
        self.token_embedding = Tensor::cat(&[table, &vectors], 0)?;
        Ok(first)
    }

    /// The states of the last layer after the final norm, `(batch, tokens, width)`.
    ///
    /// `ids` is `(batch, tokens)` of `u32`. With `skip = k` the last `k` layers are left out, and the final norm
    /// still follows. Padding takes part: Stable Diffusion 1.5 was trained so.
    ///
    /// # Errors
    ///
    /// When there are more tokens than positions, fewer layers than are skipped, or `stop` is requested.
    pub fn forward(&self, ids: &Tensor, skip: usize, stop: &Stop) -> Result<Tensor> {
        let (batch, tokens) = ids.dims2()?;
        let Some(kept) = self.layers.len().checked_sub(skip).filter(|kept| *kept > 0) else {
            return Err(crate::Error::request(
                "clip-skip",
                format!("{skip} of {} layers cannot be skipped", self.layers.len()),
            ));
        };
        let embedded = self.token_embedding.index_select(&ids.flatten_all()?, 0)?;
        let embedded = embedded.reshape((batch, tokens, self.token_embedding.dim(D::Minus1)?))?;
        let mut x = embedded.broadcast_add(&self.position_embedding.narrow(0, 0, tokens)?)?;
        let mask = causal_mask(tokens, ids.device())?;
        for layer in &self.layers[..kept] {
            stop.check()?;
            x = layer.forward(&x, Some(&mask))?;
        }
        Ok(self.final_layer_norm.forward(&x)?)
    }
}

/// `(tokens, tokens)` in f32: 0 where a token may look, -∞ where it may not.
fn causal_mask(tokens: usize, device: &Device) -> candle_core::Result<Tensor> {
    let mask: Vec<f32> = (0..tokens * tokens)
        .map(|i| if i % tokens > i / tokens { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    Tensor::from_vec(mask, (tokens, tokens), device)
}
