//! Captions to text states of the UNet's cross-attention.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};

use super::files::{self, TOKENIZER};
use super::{Compute, builder};
use crate::models::clip::{TextConfig, TextEncoder};
use crate::text::tokenizer::{Settings, Tokenizer};
use crate::weights::Component;
use crate::{Result, Stop};

/// A tokenizer that pads to the encoder's length.
#[derive(Debug)]
pub(super) struct Ids {
    tokenizer: Tokenizer,
    length: usize,
    device: Device,
}

impl Ids {
    /// The built-in tokenizer, of models trained from scratch.
    pub(super) fn own(text: &TextConfig, device: &Device) -> Result<Self> {
        let [(_, vocab), (_, merges), ..] = TOKENIZER;
        let tokenizer = Tokenizer::from_files(vocab, merges, &Settings::default())?;
        Ok(Self { tokenizer, length: text.max_position_embeddings, device: device.clone() })
    }

    /// The tokenizer of a diffusers folder.
    pub(super) fn open(base: &Path, text: &TextConfig, device: &Device) -> Result<Self> {
        let folder = base.join("tokenizer");
        let tokenizer =
            if folder.is_dir() { Tokenizer::open(&folder)? } else { Tokenizer::clip()? };
        Ok(Self { tokenizer, length: text.max_position_embeddings, device: device.clone() })
    }

    /// Token ids `(captions, tokens)`: begin, the caption as far as it fits, end, and padding, as in generation.
    pub(super) fn of(&self, captions: &[String]) -> Result<Tensor> {
        let mut all = Vec::with_capacity(captions.len() * self.length);
        for caption in captions {
            let mut ids = vec![self.tokenizer.bos()];
            let room = self.length.saturating_sub(2);
            ids.extend(self.tokenizer.ids(caption)?.into_iter().take(room));
            ids.push(self.tokenizer.eos());
            ids.resize(self.length, self.tokenizer.pad());
            all.extend(ids);
        }
        Ok(Tensor::from_vec(all, (captions.len(), self.length), &self.device)?)
    }
}

/// A frozen text encoder with a cache of its text states.
#[derive(Debug)]
pub(super) struct Frozen {
    ids: Ids,
    encoder: TextEncoder,
    known: Mutex<HashMap<String, Tensor>>,
    stop: Stop,
}

impl Frozen {
    pub(super) fn open(base: &Path, compute: &Compute) -> Result<Self> {
        let device = &compute.device;
        let config: TextConfig = files::read_json(&base.join("text_encoder/config.json"))?;
        let weights = files::read_component(base, Component::Text, device)?;
        let encoder = TextEncoder::new(&config, &builder(&[&weights], &Compute::exact(device)))?;
        let ids = Ids::open(base, &config, device)?;
        Ok(Self { ids, encoder, known: Mutex::default(), stop: compute.stop.clone() })
    }

    /// Text states `(captions, tokens, dim)`.
    pub(super) fn states(&self, captions: &[String]) -> Result<Tensor> {
        /// Maximum number of cached captions; more than a grammar has.
        const MOST: usize = 8192;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut states = Vec::with_capacity(captions.len());
        for caption in captions {
            if let Some(kept) = known.get(caption) {
                states.push(kept.clone());
                continue;
            }
            let ids = self.ids.of(std::slice::from_ref(caption))?;
            let new = self.encoder.forward(&ids, 0, &self.stop)?;
            if known.len() < MOST {
                known.insert(caption.clone(), new.clone());
            }
            states.push(new);
        }
        Ok(Tensor::cat(&states, 0)?)
    }
}
