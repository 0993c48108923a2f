//! Textual inversion: embedding files with vectors for words of a prompt.
//!
//! Gal et al. (2022), "An Image is Worth One Word". There are four layouts, as safetensors or torch files: `{word:
//! vectors}` (diffusers), `emb_params` (kohya and safetensors of AUTOMATIC1111), `string_to_param["*"]` with a `name`
//! (AUTOMATIC1111), and a bare tensor.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};

use crate::weights::{Archive, Source, quoted};
use crate::{Error, Result};

/// Tensor names that are not words.
const NAMELESS: [&str; 2] = ["*", "emb_params"];

/// Tensor names in files for models with two text encoders.
const TWO_ENCODERS: [&str; 4] = ["clip_g", "clip_l", "text_encoders_0", "text_encoders_1"];

/// Maximum number of tensors; files with more are not embeddings.
const MOST_WORDS: usize = 64;

/// Maximum number of values per word; far more than a prompt's 75 vectors.
const MOST_VALUES: usize = 1 << 20;

/// A textual inversion file: its words and their vectors.
#[derive(Clone, Debug)]
pub struct Inversion {
    source: Source,
    words: Vec<Word>,
}

/// Vectors of a textual inversion and their names.
#[derive(Clone, Debug)]
pub struct Word {
    /// Names of the word in a prompt; each stands for the same vectors.
    pub names: Vec<String>,
    /// Vectors of shape `(vectors, dim)` in f32, at least one.
    pub vectors: Tensor,
}

impl Inversion {
    /// Reads a textual inversion file.
    ///
    /// Its word is `name`, if given. Otherwise both the name stored in the file and the file name without extension,
    /// which AUTOMATIC1111 uses, are accepted in a prompt.
    ///
    /// # Errors
    ///
    /// When the file is not a textual inversion, or a name is given for several words.
    pub fn open(source: &Source, name: Option<&str>) -> Result<Self> {
        let archive = Archive::open(source)?;
        let path = source.path();
        let tensors: Vec<_> = archive.tensors().collect();
        if let Some((key, _)) = tensors.iter().find(|(key, _)| TWO_ENCODERS.contains(key)) {
            let reason = format!(
                "is a textual inversion for two text encoders, as SDXL has: {} is in it",
                quoted(key)
            );
            return Err(Error::format(path, reason).with_hint("use one for Stable Diffusion 1.5"));
        }
        // Tensors with names of network weights are not words.
        let is_word = |key: &str| !key.ends_with(".weight") && !key.ends_with(".bias");
        let is_vectors = |shape: &[usize]| matches!(shape.len(), 1 | 2) && !shape.contains(&0);
        let odd = tensors.iter().find(|(key, info)| !(is_word(key) && is_vectors(&info.shape)));
        if let Some((key, info)) = odd.or_else(|| tensors.get(MOST_WORDS)) {
            let reason = format!(
                "is not a textual inversion: it has {} tensors such as {} of shape {:?}",
                tensors.len(),
                quoted(key),
                info.shape
            );
            return Err(
                Error::format(path, reason).with_hint("`animatelcm inspect` tells what it is")
            );
        }

        let stem = path.file_stem().map(|stem| stem.to_string_lossy().trim().to_owned());
        let own_name = archive.metadata().get("name").map(|name| name.trim().to_owned());
        let mut words = Vec::with_capacity(tensors.len());
        for (key, info) in &tensors {
            let is_only = tensors.len() == 1;
            let names: Vec<String> = match name {
                Some(_) if !is_only => {
                    let reason = format!("has {} words, they cannot all be one", tensors.len());
                    return Err(Error::format(path, reason));
                }
                Some(name) => vec![name.trim().to_owned()],
                None if NAMELESS.contains(key) => own_name.iter().chain(&stem).cloned().collect(),
                None if is_only => {
                    [key.trim().to_owned()].into_iter().chain(stem.clone()).collect()
                }
                None => vec![key.trim().to_owned()],
            };
            let mut seen = BTreeSet::new();
            let names: Vec<String> = names
                .into_iter()
                .filter(|name| !name.is_empty() && seen.insert(name.to_lowercase()))
                .collect();
            if names.is_empty() {
                return Err(Error::format(path, "does not say what word it is for")
                    .with_hint("name one: --embedding FILE:WORD"));
            }
            let vectors = archive.values(key, MOST_VALUES)?;
            let vectors = Tensor::from_vec(vectors, info.shape.as_slice(), &Device::Cpu)?;
            let vectors = if info.shape.len() == 1 { vectors.unsqueeze(0)? } else { vectors };
            words.push(Word { names, vectors });
        }
        if words.is_empty() {
            return Err(Error::format(path, "holds no vectors"));
        }
        Ok(Self { source: source.clone(), words })
    }

    /// Reads words from tensors of another kind of file; `words` are pairs of a word and the name of its tensor.
    pub(crate) fn bundled(archive: &Archive, words: &[(&str, &str)]) -> Result<Self> {
        if words.len() > MOST_WORDS {
            let reason = format!("brings {} words, at most {MOST_WORDS} are read", words.len());
            return Err(Error::format(archive.path(), reason));
        }
        let words = words.iter().map(|(word, stored)| {
            let shape = archive.info(stored).map(|info| info.shape.as_slice()).unwrap_or_default();
            let (count, width) = match *shape {
                [width] if width > 0 => (1, width),
                [count, width] if count > 0 && width > 0 => (count, width),
                _ => {
                    let reason = format!("{} holds no vectors: {shape:?}", quoted(stored));
                    return Err(Error::format(archive.path(), reason));
                }
            };
            let vectors = archive.values(stored, MOST_VALUES)?;
            let vectors = Tensor::from_vec(vectors, (count, width), &Device::Cpu)?;
            Ok(Word { names: vec![word.trim().to_owned()], vectors })
        });
        Ok(Self { source: archive.source().clone(), words: words.collect::<Result<_>>()? })
    }

    /// Source of the file.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The words, in file order.
    pub fn words(&self) -> &[Word] {
        &self.words
    }

    /// Model family of the embedding, if its width determines it.
    pub fn family(&self) -> Option<&'static str> {
        self.words.first().and_then(|word| family(word.vectors.dim(1).ok()?))
    }

    /// Checks that all vectors are `width` wide; the error names the model family they belong to.
    pub fn check_width(&self, width: usize) -> Result<()> {
        for word in &self.words {
            let own = word.vectors.dim(1)?;
            if own != width {
                let family = family(own).map(|name| format!(" ({name})")).unwrap_or_default();
                let reason = format!("is {own} wide{family}, the text encoder {width}");
                return Err(self.refused(reason));
            }
        }
        Ok(())
    }

    /// An [`Error::Adapter`] for this file.
    pub(super) fn refused(&self, reason: impl Into<String>) -> Error {
        let adapter = self.source.path().display().to_string();
        Error::Adapter { adapter, reason: reason.into() }
    }
}

/// Model family whose text encoder is `width` wide.
fn family(width: usize) -> Option<&'static str> {
    match width {
        768 => Some("Stable Diffusion 1"),
        1024 => Some("Stable Diffusion 2"),
        1280 => Some("SDXL"),
        _ => None,
    }
}
