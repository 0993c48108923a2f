//! CLIP's text transformer: pre-norm blocks with causal self-attention.

use crate::weights::VarBuilder;
use candle_core::{D, Device, Tensor};

use super::TextConfig;
use super::layer::{Layer, LayerOptions};
use crate::nn::{LayerNorm, causal_mask};
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
    /// The canonical name of the token embedding table.
    pub const TOKENS: &str = "text_model.embeddings.token_embedding.weight";

    /// Loads all weights under `text_model`.
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

    /// The hidden size.
    pub fn width(&self) -> usize {
        self.token_embedding.dims().last().copied().unwrap_or_default()
    }

    /// Maximum number of tokens in a sequence.
    pub fn max_tokens(&self) -> usize {
        self.position_embedding.dims().first().copied().unwrap_or_default()
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        self.token_embedding.device()
    }

    /// Appends `vectors` `(tokens, width)` to the token embedding table and returns the id of the first.
    pub fn add_tokens(&mut self, vectors: &Tensor) -> Result<u32> {
        let table = &self.token_embedding;
        let first = table.dim(0)? as u32;
        let vectors = vectors.to_device(table.device())?.to_dtype(table.dtype())?;
        self.token_embedding = Tensor::cat(&[table, &vectors], 0)?;
        Ok(first)
    }

    /// The hidden states of the last layer after the final norm, `(batch, tokens, width)`.
    ///
    /// `ids` is `(batch, tokens)` of `u32`. With `skip = k` the last `k` layers are skipped, but the final norm is
    /// still applied. Padding tokens are not masked, as in the training of Stable Diffusion 1.5.
    ///
    /// # Errors
    ///
    /// More tokens than positions, no layers left after skipping, or a requested `stop`.
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
