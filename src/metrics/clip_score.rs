//! CLIP score: the similarity of frames and their prompt.
//!
//! Radford et al. (2021); as CLIPSIM in Wu et al. (2021), "GODIVA".

use std::path::Path;

use candle_core::{D, DType, Device, Tensor};

use crate::media::RgbImage;
use crate::models::clip::{Clip, JointConfig};
use crate::text::tokenizer::Tokenizer;
use crate::weights::{Standalone, read_text, until};
use crate::{Error, Result, Stop};

/// Frames that are encoded at a time.
const AT_ONCE: usize = 16;

/// A CLIP with its tokenizer.
#[derive(Debug)]
pub struct ClipScore {
    clip: Clip,
    tokenizer: Tokenizer,
}

impl ClipScore {
    /// Opens a folder of transformers' `CLIPModel`: `config.json`, `model.safetensors` or `pytorch_model.bin`, and the
    /// tokenizer. Without a tokenizer it is CLIP's own.
    ///
    /// # Errors
    ///
    /// Weights that are missing or do not fit the configuration, a tokenizer with more tokens than the text encoder, or
    /// a requested `stop`.
    pub fn open(folder: &Path, device: &Device, stop: &Stop) -> Result<Self> {
        let path = folder.join("config.json");
        let config: JointConfig = serde_json::from_str(&read_text(&path)?)
            .map_err(|e| Error::format(&path, format!("cannot be read: {e}")))?;
        config.validate()?;
        let has = |name: &str| folder.join(name).exists();
        let tokenizer = if has("tokenizer.json") || has("vocab.json") {
            Tokenizer::open(folder)?
        } else {
            Tokenizer::clip()?
        };
        let (known, embedded) = (tokenizer.vocab_size(), config.text_config.vocab_size);
        if known > embedded {
            let summary = format!("the tokenizer knows {known} tokens, the weights {embedded}");
            return Err(Error::Weights { component: "CLIP".into(), summary });
        }
        let clip = Standalone::open("CLIP", folder, ignored)?
            .build(DType::F32, device, |vb| Clip::new(&config, &until(vb, stop)))?;
        Ok(Self { clip, tokenizer })
    }

    /// The score of a clip: 100 times the cosine of frame and prompt, averaged over frames. What of the prompt does
    /// not fit is cut.
    ///
    /// # Errors
    ///
    /// No frames, or a requested `stop`.
    pub fn score(&self, frames: &[RgbImage], prompt: &str, stop: &Stop) -> Result<f64> {
        let scores = self.scores(frames, prompt, stop)?;
        Ok(scores.iter().sum::<f64>() / scores.len().max(1) as f64)
    }

    /// The score of every frame.
    ///
    /// # Errors
    ///
    /// No frames, or a requested `stop`.
    pub fn scores(&self, frames: &[RgbImage], prompt: &str, stop: &Stop) -> Result<Vec<f64>> {
        if frames.is_empty() {
            return Err(Error::request("frames", "a clip without frames has no CLIP score"));
        }
        let text = unit(&self.clip.embed_text(&self.tokens(prompt)?, stop)?)?;
        let mut scores = Vec::with_capacity(frames.len());
        for frames in frames.chunks(AT_ONCE) {
            let images = unit(&self.clip.embed_images(frames, stop)?)?;
            let cosines = images.broadcast_mul(&text)?.sum(D::Minus1)?.to_vec1::<f32>()?;
            scores.extend(cosines.into_iter().map(|cosine| 100.0 * f64::from(cosine)));
        }
        Ok(scores)
    }

    /// The tokens of a prompt up to its end, without padding.
    fn tokens(&self, prompt: &str) -> Result<Vec<u32>> {
        let most = self.clip.max_tokens().min(self.tokenizer.max_length()).max(2);
        let mut ids = vec![self.tokenizer.bos()];
        // A prompt may name the end token itself, whose first place is the text's end in CLIP.
        let of_text = self.tokenizer.ids(prompt)?;
        ids.extend(of_text.into_iter().take_while(|id| *id != self.tokenizer.eos()).take(most - 2));
        ids.push(self.tokenizer.eos());
        Ok(ids)
    }
}

/// Why a tensor of a CLIP is not used.
fn ignored(name: &str) -> Option<&'static str> {
    match name {
        "logit_scale" => Some("scales what is compared by a softmax; a cosine has none"),
        "text_model.embeddings.position_ids" | "vision_model.embeddings.position_ids" => {
            Some("counts 0, 1, 2, ...")
        }
        _ => None,
    }
}

/// Vectors divided by their length, in f32.
fn unit(x: &Tensor) -> Result<Tensor> {
    let x = x.to_dtype(DType::F32)?;
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    Ok(x.broadcast_div(&length)?)
}
