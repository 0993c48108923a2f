//! The sizes of a CLIP text encoder, as in its `config.json`.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::supported;

/// A CLIP text encoder. The defaults are those of Stable Diffusion 1.5's ViT-L/14.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Tokens known, 49408.
    pub vocab_size: usize,
    /// Width of a token, 768.
    pub hidden_size: usize,
    /// Width inside the MLP, 3072.
    pub intermediate_size: usize,
    /// Layers, 12.
    pub num_hidden_layers: usize,
    /// Attention heads, 12.
    pub num_attention_heads: usize,
    /// Longest prompt in tokens, 77.
    pub max_position_embeddings: usize,
    /// The MLP's activation: `quick_gelu` or `gelu`.
    pub hidden_act: String,
    /// Epsilon of the norms, 1e-5.
    pub layer_norm_eps: f64,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl TextConfig {
    /// Fails on a configuration that this program does not implement.
    pub fn validate(&self) -> Result<()> {
        let known = ["quick_gelu".to_owned(), "gelu".to_owned()];
        supported("text encoder", "hidden_act", &self.hidden_act, &known)
    }
}
