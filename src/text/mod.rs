//! Prompts to what the network reads.

pub mod tokenizer;

use candle_core::{Device, Tensor};

use crate::Result;
use crate::models::clip::TextEncoder;
use tokenizer::Tokenizer;

/// A tokenizer and the encoder that knows its tokens.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Tokenizer,
    encoder: TextEncoder,
    device: Device,
}

/// An encoded prompt.
#[derive(Clone, Debug)]
pub struct EncodedText {
    /// `(1, tokens, dim)`.
    pub states: Tensor,
    /// The end of the prompt that did not fit, if any.
    pub truncated: Option<String>,
}

impl TextModel {
    /// Joins the two; the encoder's weights are on `device`.
    pub fn new(tokenizer: Tokenizer, encoder: TextEncoder, device: &Device) -> Self {
        Self { tokenizer, encoder, device: device.clone() }
    }

    /// Encodes a prompt, leaving out the encoder's last `skip` layers.
    pub fn encode(&self, prompt: &str, skip: usize) -> Result<EncodedText> {
        let encoding = self.tokenizer.encode(prompt)?;
        let ids = Tensor::new(encoding.ids.as_slice(), &self.device)?.unsqueeze(0)?;
        Ok(EncodedText { states: self.encoder.forward(&ids, skip)?, truncated: encoding.truncated })
    }
}
