//! Prompts of a request to the states of the text encoder.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};

use super::event::record;
use super::states::{KeyStates, States};
use super::{Event, Observer, Pipeline, Prepared};
use crate::procedural::reading;
use crate::request::{Key, Loop, Request};
use crate::text::editing::{self, Version};
use crate::text::inversion::Inversion;
use crate::text::prompt::PromptMode;
use crate::text::{Chunks, TextModel};
use crate::{Error, Result};

/// Maximum number of chunks that the prompts of a run have together; a chunk's states have 77 × 768 values.
const MOST_CHUNKS: usize = 1024;

/// A prompt of one frame, in the words that the model knows.
#[derive(Debug, PartialEq)]
struct Read {
    frame: usize,
    versions: Vec<Version>,
}

/// Reads prompts, and says everything once.
struct Reader<'a> {
    pipeline: &'a Pipeline,
    text: &'a TextModel,
    request: &'a Request,
    steps: usize,
    observer: &'a mut dyn Observer,
    said: BTreeSet<String>,
    /// Every text that is to be encoded.
    chunks: BTreeMap<String, Chunks>,
}

impl Reader<'_> {
    fn warn(&mut self, message: String) -> Result<()> {
        if self.said.insert(message.clone()) {
            self.observer.event(Event::Warning { message })?;
        }
        Ok(())
    }

    /// Reads a key of the prompt called `name`.
    fn read(&mut self, name: &str, key: &Key) -> Result<Read> {
        let mode = self.request.prompt.mode;
        for note in self.text.notes(&key.text, mode) {
            self.warn(format!("{name}: {note}"))?;
        }
        let mut versions = match mode {
            PromptMode::A1111 => editing::versions(&key.text, self.steps)
                .map_err(|reason| Error::request("prompt", reason))?,
            PromptMode::Plain => vec![Version { until: self.steps, text: key.text.clone() }],
        };
        for version in &mut versions {
            let (text, notes) = self.pipeline.in_known_words(name, &version.text);
            for note in notes {
                self.warn(format!("{name}, for the small model inside the program: {note}"))?;
            }
            version.text = text;
        }
        // What says the same one after the other is one.
        versions.reverse();
        versions.dedup_by(|earlier, later| earlier.text == later.text);
        versions.reverse();
        for version in &versions {
            self.pipeline.stop.check()?;
            if self.chunks.contains_key(&version.text) {
                continue;
            }
            let chunks = self.text.read(&version.text, mode)?;
            if let Some(lost) = chunks.truncated() {
                let lost: String = lost.chars().take(60).collect();
                self.warn(format!("the {name} is too long; it ends before `{lost}`"))?;
            }
            self.chunks.insert(version.text.clone(), chunks);
        }
        Ok(Read { frame: key.frame, versions })
    }
}

impl Pipeline {
    /// The states of the prompt and, with guidance, of the negative prompt.
    pub(super) fn encode(
        &self,
        prepared: &Prepared,
        observer: &mut dyn Observer,
    ) -> Result<(States, Option<States>)> {
        let request = &prepared.request;
        let text = self.text(observer)?;
        let mut reader = Reader {
            pipeline: self,
            text: &text,
            request,
            steps: prepared.plan.steps.len(),
            observer: &mut *observer,
            said: BTreeSet::new(),
            chunks: BTreeMap::new(),
        };
        let mut keys: Vec<Read> = request
            .prompt
            .keys()?
            .iter()
            .map(|key| reader.read("prompt", key))
            .collect::<Result<_>>()?;
        // Keys that say the same are one.
        if keys.windows(2).all(|pair| pair[0].versions == pair[1].versions) {
            keys.truncate(1);
        }
        let negative = Key { frame: 0, text: request.prompt.negative.clone() };
        let negative =
            request.is_guided().then(|| reader.read("negative prompt", &negative)).transpose()?;
        let chunks = reader.chunks;
        // All have the same number of tokens, or they could not share a batch.
        let count = chunks.values().map(Chunks::len).max().unwrap_or(1);
        if chunks.len().saturating_mul(count) > MOST_CHUNKS {
            let reason = format!(
                "its {} versions of {count} chunks are more than {MOST_CHUNKS} chunks",
                chunks.len()
            );
            return Err(Error::request("prompt", reason));
        }
        let mut states: BTreeMap<&str, Tensor> = BTreeMap::new();
        for (words, chunks) in &chunks {
            let encoded = text.states(chunks, count, request.prompt.clip_skip, &self.stop)?;
            states.insert(words, encoded);
        }
        let closed = (request.output.looping == Loop::Closed).then_some(request.frames());
        let of_keys = |keys: &[Read]| {
            let version = |version: &Version| {
                Some((version.until, states.get(version.text.as_str())?.clone()))
            };
            let key = |key: &Read| KeyStates {
                frame: key.frame,
                versions: key.versions.iter().filter_map(version).collect(),
            };
            States::new(keys.iter().map(key).collect(), request.prompt.interpolation, closed)
        };
        let context = of_keys(&keys)?;
        let negative = negative.map(|negative| of_keys(&[negative])).transpose()?;
        let frames: Vec<usize> = (0..request.frames()).collect();
        let first = |states: &States| -> Result<Tensor> {
            Ok(states.at(0, &frames)?.to_dtype(DType::F32)?)
        };
        record(observer, "context", || first(&context))?;
        if let Some(negative) = &negative {
            record(observer, "negative_context", || first(negative))?;
        }
        Ok((context, negative))
    }

    /// A prompt for the model inside the program with synonyms replaced by the words that it knows, and what is to be
    /// said of it. The request, and so the clip, keeps what was asked.
    fn in_known_words(&self, name: &str, prompt: &str) -> (String, Vec<String>) {
        if !self.models.is_embedded() {
            return (prompt.to_owned(), vec![]);
        }
        let words = self.models.embeddings().iter().flat_map(Inversion::words);
        let own: Vec<&str> = words.flat_map(|word| &word.names).map(String::as_str).collect();
        let reading = reading::read(prompt, &own);
        let mut notes = reading.notes;
        // Measured: assets/pocket/README.md.
        let spins = reading.text.split_whitespace().any(|word| word.starts_with("spinning"));
        if spins && name == "prompt" {
            notes.push("it hardly ever shows `spinning`".into());
        }
        (reading.text, notes)
    }
}
