//! Text encoding: prompts to the text states of the UNet's cross-attention.

mod chunks;
pub mod editing;
mod foreign;
pub mod inversion;
pub mod prompt;
pub mod tokenizer;
pub mod word_pieces;

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::models::clip::TextEncoder;
use crate::{Error, Result, Stop};
use chunks::{Chunk, Chunker};
use inversion::Inversion;
use prompt::{Part, PromptMode};
use tokenizer::Tokenizer;

/// Maximum number of chunks of a prompt; limits the time spent on text.
const MOST_CHUNKS: usize = 32;

/// A tokenizer, its text encoder, and the embeddings added to both.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Tokenizer,
    encoder: TextEncoder,
    device: Device,
    /// Rows of the encoder's embedding table for each added token.
    added: BTreeMap<u32, Range<u32>>,
}

/// A tokenized prompt, in as many chunks as it needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunks {
    chunks: Vec<Chunk>,
    truncated: Option<String>,
}

impl Chunks {
    /// Number of chunks, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// The end of the prompt that did not fit; starts at the cut or at most a few words later.
    pub fn truncated(&self) -> Option<&str> {
        self.truncated.as_deref()
    }
}

/// An encoded prompt.
#[derive(Clone, Debug)]
pub struct EncodedText {
    /// Text states of shape `(1, tokens, dim)`.
    pub states: Tensor,
    /// The end of the prompt that did not fit, if any.
    pub truncated: Option<String>,
}

impl TextModel {
    /// A text model of a tokenizer and an encoder; the encoder's weights are on `device`.
    pub fn new(tokenizer: Tokenizer, encoder: TextEncoder, device: &Device) -> Self {
        Self { tokenizer, encoder, device: device.clone(), added: BTreeMap::new() }
    }

    /// Adds a textual inversion, so that its words stand for its vectors.
    ///
    /// A word of several vectors stands for all of them, and `word_1`, `word_2` and so on for the second, the third
    /// and so on alone, as in diffusers.
    ///
    /// # Errors
    ///
    /// When the vectors' width differs from the encoder's, there are more vectors than a prompt holds, or all names
    /// of a word are in the vocabulary already.
    pub fn add(&mut self, inversion: &Inversion) -> Result<()> {
        inversion.check_width(self.encoder.width())?;
        let room = self.room()?;
        for word in inversion.words() {
            let count = word.vectors.dim(0)?;
            if count > room {
                let reason = format!("has {count} vectors, a prompt holds {room}");
                return Err(inversion.refused(reason));
            }
            let free: Vec<&String> =
                word.names.iter().filter(|name| !self.tokenizer.knows(name)).collect();
            if free.is_empty() {
                let name = word.names.first().map(String::as_str).unwrap_or_default();
                let reason = format!("its word `{name}` is in the vocabulary already");
                return Err(inversion
                    .refused(reason)
                    .with_hint("name another: --embedding FILE:WORD"));
            }
            let first = self.encoder.add_tokens(&word.vectors)?;
            let rows = first..first + count as u32;
            let mut tokens = Vec::new();
            for name in free {
                tokens.push((name.clone(), rows.clone()));
                let single = rows.clone().enumerate().skip(1);
                tokens.extend(single.map(|(i, row)| (format!("{name}_{i}"), row..row + 1)));
            }
            let (names, rows): (Vec<String>, Vec<Range<u32>>) = tokens.into_iter().unzip();
            self.added.extend(self.tokenizer.add_tokens(&names)?.into_iter().zip(rows));
        }
        Ok(())
    }

    /// Tokenizes a prompt.
    ///
    /// # Errors
    ///
    /// When the syntax of the prompt is invalid, see [`prompt`](mod@prompt) and [`prompt::parse`].
    pub fn read(&self, prompt: &str, mode: PromptMode) -> Result<Chunks> {
        match mode {
            PromptMode::A1111 => self.chunked(prompt),
            PromptMode::Plain => self.cut(prompt),
        }
    }

    /// Messages about prompt syntax of other programs that is read as words or left out, one per line.
    pub fn notes(&self, prompt: &str, mode: PromptMode) -> Vec<String> {
        match mode {
            PromptMode::A1111 => foreign::notes(prompt, |tag| self.tokenizer.knows(tag)),
            PromptMode::Plain => vec![],
        }
    }

    /// Text states of a prompt, `(1, count*tokens, dim)`, padded with empty chunks up to `count`.
    ///
    /// The encoder's last `skip` layers are left out. Each chunk's states are multiplied by the weights of their
    /// tokens and then by one factor that restores their mean, as in AUTOMATIC1111.
    ///
    /// # Errors
    ///
    /// When the encoder has too few layers to skip, weights cancel each other out, or `stop` is requested.
    pub fn states(
        &self,
        prompt: &Chunks,
        count: usize,
        skip: usize,
        stop: &Stop,
    ) -> Result<Tensor> {
        let empty = Chunk::default();
        let chunks = prompt.chunks.iter().chain(std::iter::repeat(&empty));
        let states: Vec<Tensor> = chunks
            .take(count.max(prompt.len()))
            .map(|chunk| self.encode_chunk(chunk, skip, stop))
            .collect::<Result<_>>()?;
        Ok(Tensor::cat(&states, 1)?)
    }

    /// Tokenizes and encodes one prompt in the default mode.
    pub fn encode(&self, prompt: &str, skip: usize) -> Result<EncodedText> {
        let chunks = self.read(prompt, PromptMode::default())?;
        let states = self.states(&chunks, 1, skip, &Stop::default())?;
        Ok(EncodedText { states, truncated: chunks.truncated })
    }

    /// Number of tokens that fit between begin and end.
    fn room(&self) -> Result<usize> {
        let most = self.tokenizer.max_length().min(self.encoder.max_tokens());
        most.checked_sub(2).filter(|room| *room > 0).ok_or_else(|| Error::Weights {
            component: "text encoder".into(),
            summary: format!("holds {most} tokens, a prompt needs 3"),
        })
    }

    fn rows(&self, token: u32) -> Range<u32> {
        self.added.get(&token).cloned().unwrap_or(token..token.saturating_add(1))
    }

    fn chunked(&self, prompt: &str) -> Result<Chunks> {
        let parts = prompt::parse(prompt).map_err(|reason| Error::request("prompt", reason))?;
        let mut chunker = Chunker::new(self.room()?, self.tokenizer.id(",</w>"));
        let mut truncated = None;
        'parts: for part in parts {
            let Part::Text { text, weight } = part else {
                chunker.close();
                continue;
            };
            for (token, start) in self.tokenizer.ids_with_starts(&text)? {
                chunker.push(token, self.rows(token), weight as f32);
                if chunker.count() > MOST_CHUNKS {
                    truncated = text.get(start..).map(|lost| lost.trim().to_owned());
                    break 'parts;
                }
            }
        }
        let mut chunks = chunker.finish();
        chunks.truncate(MOST_CHUNKS);
        Ok(Chunks { chunks, truncated })
    }

    fn cut(&self, prompt: &str) -> Result<Chunks> {
        let room = self.room()?;
        let mut ids = Vec::with_capacity(room);
        let mut truncated = None;
        for (token, start) in self.tokenizer.ids_with_starts(prompt)? {
            let rows = self.rows(token);
            let left = room - ids.len();
            let fits = rows.len() <= left;
            ids.extend(rows.take(left));
            if !fits {
                truncated = prompt.get(start..).map(|lost| lost.trim().to_owned());
                break;
            }
        }
        let weights = vec![1.0; ids.len()];
        Ok(Chunks { chunks: vec![Chunk { ids, weights }], truncated })
    }

    /// Text states of one chunk, `(1, tokens, dim)`.
    fn encode_chunk(&self, chunk: &Chunk, skip: usize, stop: &Stop) -> Result<Tensor> {
        let length = self.room()? + 2;
        let mut ids = Vec::with_capacity(length);
        ids.push(self.tokenizer.bos());
        ids.extend_from_slice(&chunk.ids);
        ids.push(self.tokenizer.eos());
        ids.resize(length, self.tokenizer.pad());
        let ids = Tensor::new(ids.as_slice(), &self.device)?.unsqueeze(0)?;
        weigh(&self.encoder.forward(&ids, skip, stop)?, &chunk.weights)
    }
}

/// Multiplies states `(1, tokens, dim)` by the weights of the tokens after the first, then restores their mean.
fn weigh(states: &Tensor, weights: &[f32]) -> Result<Tensor> {
    if weights.iter().all(|weight| *weight == 1.0) {
        return Ok(states.clone());
    }
    let mut all = Vec::with_capacity(states.dim(1)?);
    all.push(1.0);
    all.extend_from_slice(weights);
    all.resize(states.dim(1)?, 1.0);
    let weights = Tensor::from_vec(all, (1, states.dim(1)?, 1), states.device())?;
    let original = states.to_dtype(DType::F32)?;
    let weighted = original.broadcast_mul(&weights)?;
    let ratio = mean(&original)? / mean(&weighted)?;
    if !ratio.is_finite() {
        return Err(Error::request("prompt", "its weights cancel each other out"));
    }
    Ok((weighted * ratio)?.to_dtype(states.dtype())?)
}

/// Mean of all values, summed in f64 because they may nearly cancel.
fn mean(x: &Tensor) -> Result<f64> {
    let values: Vec<f32> = x.flatten_all()?.to_vec1()?;
    Ok(values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len().max(1) as f64)
}
