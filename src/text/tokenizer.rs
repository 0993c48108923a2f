//! CLIP's tokenizer: text to token ids, equal to `CLIPTokenizer` of transformers 5.
//!
//! Text is NFC-normalized, runs of white space become one space, and letters become lower case; then words, single
//! digits and runs of symbols are split by byte-pair encoding. Special tokens in the text become their ids.
//! transformers 5 has only this form; the slow tokenizer of 4.x treats some symbols differently.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Splitters;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, SplitDelimiterBehavior};

use crate::weights::{find_text, quoted, read_text};
use crate::{Error, Result};

/// Suffix of the last piece of a word.
const WORD_END: &str = "</w>";

/// The merges of OpenAI's CLIP, under the license in `assets/clip/LICENSE`.
const CLIP_MERGES: &str = include_str!("../../assets/clip/merges.txt");

/// Maximum number of added tokens; CLIP's vocabulary has 49408.
const MOST_ADDED: usize = 1 << 16;

/// A special token and how it is matched in text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Special {
    /// Text of the token.
    pub content: String,
    /// Whether it is matched after the text is normalized, so in upper case too.
    pub normalized: bool,
}

impl Special {
    /// A token that is matched before normalization.
    pub fn new(content: impl Into<String>) -> Self {
        Self { content: content.into(), normalized: false }
    }
}

/// Settings of a tokenizer folder besides its vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Token at the beginning of every sequence.
    pub bos: Special,
    /// Token at the end of every sequence.
    pub eos: Special,
    /// Padding token; Stable Diffusion 1.5 uses the end token, 2.x an exclamation mark.
    pub pad: Special,
    /// Token for text that the vocabulary cannot represent.
    pub unk: Special,
    /// Length of a sequence in tokens, begin and end included.
    pub max_length: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let end = Special::new("<|endoftext|>");
        Self {
            bos: Special::new("<|startoftext|>"),
            eos: end.clone(),
            pad: end.clone(),
            unk: end,
            max_length: 77,
        }
    }
}

impl Settings {
    /// Reads `tokenizer_config.json` and `special_tokens_map.json`, if they exist.
    ///
    /// The second takes precedence, except where the first lists its added tokens, as newer files do.
    fn read(folder: &Path) -> Result<Self> {
        let mut settings = Self::default();
        let config = read_json(&folder.join("tokenizer_config.json"))?;
        let map = read_json(&folder.join("special_tokens_map.json"))?;
        if let Some(config) = &config {
            settings.take_specials(config);
            // Tokenizers without a limit have 1e30 here.
            let limit = config.get("model_max_length").and_then(Value::as_f64);
            if let Some(limit) = limit.filter(|limit| *limit < 1e6) {
                settings.max_length = limit as usize;
            }
        }
        let complete = config.is_some_and(|config| config.get("added_tokens_decoder").is_some());
        if let Some(map) = map.filter(|_| !complete) {
            settings.take_specials(&map);
        }
        Ok(settings)
    }

    /// Sets the special tokens that `json` contains.
    fn take_specials(&mut self, json: &Value) {
        let slots = [
            ("bos_token", &mut self.bos),
            ("eos_token", &mut self.eos),
            ("pad_token", &mut self.pad),
            ("unk_token", &mut self.unk),
        ];
        for (key, slot) in slots {
            let Some(value) = json.get(key) else { continue };
            let content = value.get("content").unwrap_or(value);
            if let Some(content) = content.as_str() {
                let normalized = value.get("normalized").and_then(Value::as_bool);
                *slot = Special {
                    content: content.to_owned(),
                    normalized: normalized.unwrap_or(false),
                };
            }
        }
    }
}

/// A tokenized text, as the text encoder takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Begin, the text, end, padded to [`Tokenizer::max_length`].
    pub ids: Vec<u32>,
    /// The end of the text that did not fit, if any.
    pub truncated: Option<String>,
}

/// CLIP tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
    max_length: usize,
}

impl Tokenizer {
    /// CLIP's own tokenizer, whose merges are embedded in the program.
    pub fn clip() -> Result<Self> {
        Self::from_merges(CLIP_MERGES, &Settings::default())
    }

    /// Opens the `tokenizer` folder of a diffusers model: `tokenizer.json`, or `vocab.json` and `merges.txt`.
    pub fn open(folder: &Path) -> Result<Self> {
        let settings = Settings::read(folder)?;
        let whole = folder.join("tokenizer.json");
        if let Some(json) = find_text(&whole)? {
            return Source::from_json(&json, &whole)?.build(&settings);
        }
        let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        let (pieces, lines) = (read_text(&vocab)?, read_text(&merges)?);
        Source::from_pair((&pieces, &vocab), (&lines, &merges))?.build(&settings)
    }

    /// Builds a tokenizer from the contents of a `vocab.json` and a `merges.txt`.
    pub fn from_files(vocab_json: &str, merges_txt: &str, settings: &Settings) -> Result<Self> {
        let vocab = (vocab_json, Path::new("vocab.json"));
        let merges = (merges_txt, Path::new("merges.txt"));
        Source::from_pair(vocab, merges)?.build(settings)
    }

    /// Builds a tokenizer from the vocabulary, merges and added tokens of a `tokenizer.json`.
    ///
    /// Its other settings are the same for every CLIP tokenizer.
    pub fn from_tokenizer_json(json: &str, settings: &Settings) -> Result<Self> {
        Source::from_json(json, Path::new("tokenizer.json"))?.build(settings)
    }

    /// Builds a tokenizer from merges alone.
    ///
    /// CLIP's vocabulary is the 256 bytes, the 256 bytes as ends of words, the result of each merge, and begin and
    /// end.
    pub fn from_merges(merges_txt: &str, settings: &Settings) -> Result<Self> {
        let path = Path::new("merges.txt");
        let merges = parse_merges(merges_txt, path)?;
        let bytes = byte_alphabet();
        let pieces = (bytes.iter().map(ToString::to_string))
            .chain(bytes.iter().map(|byte| format!("{byte}{WORD_END}")))
            .chain(merges.iter().map(|(a, b)| format!("{a}{b}")))
            .chain([settings.bos.content.clone(), settings.eos.content.clone()]);
        let mut vocab = Vocab::default();
        for piece in pieces {
            let id = vocab.len() as u32;
            vocab.entry(piece).or_insert(id);
        }
        Source { vocab, merges, added: Vec::new(), path }.build(settings)
    }

    /// Encodes `text` to exactly [`max_length`](Self::max_length) ids.
    pub fn encode(&self, text: &str) -> Result<Encoding> {
        let encoded = self.pieces(text)?;
        let room = self.max_length - 2;
        let kept = encoded.len().min(room);
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(self.bos);
        ids.extend_from_slice(&encoded.get_ids()[..kept]);
        ids.push(self.eos);
        ids.resize(self.max_length, self.pad);
        let truncated = encoded
            .get_offsets()
            .get(kept)
            .and_then(|(start, _)| text.get(*start..))
            .map(|lost| lost.trim().to_owned());
        Ok(Encoding { ids, truncated })
    }

    /// The ids of `text` alone, of any length, without begin, end and padding.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.pieces(text)?.get_ids().to_vec())
    }

    /// The ids of [`ids`](Self::ids), each with the byte offset in `text` at which it begins.
    pub fn ids_with_starts(&self, text: &str) -> Result<Vec<(u32, usize)>> {
        let encoded = self.pieces(text)?;
        let starts = encoded.get_offsets().iter().map(|(start, _)| *start);
        Ok(encoded.get_ids().iter().copied().zip(starts).collect())
    }

    /// Adds a token that is matched wherever it occurs in a text, and returns its id.
    ///
    /// Case is ignored. A token that begins or ends with a letter, digit or underscore is not matched in the middle
    /// of a longer word.
    ///
    /// # Errors
    ///
    /// When the token exists already.
    pub fn add_token(&mut self, token: &str) -> Result<u32> {
        let ids = self.add_tokens(&[token.to_owned()])?;
        let missing = || Error::request("token", format!("`{token}`: cannot be a token"));
        ids.first().copied().ok_or_else(missing)
    }

    /// Adds several tokens as [`add_token`](Self::add_token) does, and returns their ids.
    ///
    /// Faster than one by one, because each call rebuilds the search for all added tokens.
    ///
    /// # Errors
    ///
    /// When one of the tokens exists already or is listed twice; nothing is added then.
    pub fn add_tokens(&mut self, tokens: &[String]) -> Result<Vec<u32>> {
        let mut seen = HashSet::with_capacity(tokens.len());
        for token in tokens {
            if self.id(token).is_some() || !seen.insert(token) {
                let reason = format!("`{token}` is in the vocabulary already");
                return Err(Error::request("token", reason));
            }
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let added = tokens.iter().map(|token| {
            let is_single = token.starts_with(is_word) || token.ends_with(is_word);
            AddedToken::from(token.as_str(), false).single_word(is_single)
        });
        self.inner
            .add_tokens(added)
            .map_err(|error| Error::request("token", format!("cannot be added: {error}")))?;
        let id = |token: &String| {
            let failed = || Error::request("token", format!("`{token}`: cannot be a token"));
            self.id(token).ok_or_else(failed)
        };
        tokens.iter().map(id).collect()
    }

    /// The id of a token, if it exists.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns whether a text is a token or a whole word of the vocabulary, ignoring case.
    pub fn knows(&self, text: &str) -> bool {
        let lower = text.to_lowercase();
        [text, &lower, &format!("{lower}{WORD_END}")].iter().any(|token| self.id(token).is_some())
            || self
                .inner
                .get_added_tokens_decoder()
                .values()
                .any(|t| t.content.to_lowercase() == lower)
    }

    /// Id of the begin token.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Id of the end token.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Id of the padding token.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Number of ids that [`encode`](Self::encode) returns.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    fn pieces(&self, text: &str) -> Result<tokenizers::Encoding> {
        self.inner
            .encode(text, false)
            .map_err(|error| Error::request("prompt", format!("cannot be tokenized: {error}")))
    }
}

/// Parts of a tokenizer, and the file named in errors.
struct Source<'a> {
    vocab: Vocab,
    merges: Vec<(String, String)>,
    added: Vec<AddedEntry>,
    path: &'a Path,
}

/// An added token of a `tokenizer.json`.
#[derive(Deserialize)]
struct AddedEntry {
    id: u32,
    content: String,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

impl<'a> Source<'a> {
    /// Parses a `vocab.json` and a `merges.txt`.
    fn from_pair(vocab: (&str, &'a Path), merges: (&str, &Path)) -> Result<Self> {
        let (json, path) = vocab;
        let vocab: HashMap<String, u32> = serde_json::from_str(json)
            .map_err(|error| Error::format(path, format!("not a vocabulary: {error}")))?;
        let merges = parse_merges(merges.0, merges.1)?;
        Ok(Self { vocab: vocab.into_iter().collect(), merges, added: Vec::new(), path })
    }

    /// Parses a `tokenizer.json`, whose merges are strings or pairs.
    fn from_json(json: &str, path: &'a Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct File {
            model: Model,
            #[serde(default)]
            added_tokens: Vec<AddedEntry>,
        }
        #[derive(Deserialize)]
        struct Model {
            vocab: HashMap<String, u32>,
            merges: Vec<Merge>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Merge {
            Pair(String, String),
            Line(String),
        }
        let file: File = serde_json::from_str(json)
            .map_err(|error| Error::format(path, format!("not a BPE tokenizer: {error}")))?;
        let merges = file.model.merges.into_iter().enumerate().map(|(i, merge)| match merge {
            Merge::Pair(a, b) => Ok((a, b)),
            Merge::Line(line) => parse_merge(&line, i + 1, path),
        });
        Ok(Self {
            merges: merges.collect::<Result<_>>()?,
            vocab: file.model.vocab.into_iter().collect(),
            added: file.added_tokens,
            path,
        })
    }

    /// Validates the parts and builds the tokenizer.
    fn build(mut self, settings: &Settings) -> Result<Tokenizer> {
        let blame = |reason: String| Error::format(self.path, reason);
        let failed = |error: tokenizers::Error| Error::format(self.path, error.to_string());
        if settings.max_length < 2 {
            let reason =
                format!("the longest sequence must have 2 tokens, got {}", settings.max_length);
            return Err(blame(reason));
        }
        if let Some(piece) = self.merges.iter().find_map(|(a, b)| {
            [a.clone(), b.clone(), format!("{a}{b}")]
                .into_iter()
                .find(|piece| !self.vocab.contains_key(piece))
        }) {
            return Err(blame(format!("the merges need `{piece}`, which the vocabulary lacks")));
        }

        let mut bpe = BPE::builder().end_of_word_suffix(WORD_END.to_owned());
        if self.vocab.contains_key(&settings.unk.content) {
            bpe = bpe.unk_token(settings.unk.content.clone());
        }
        let (vocab, merges) = (std::mem::take(&mut self.vocab), std::mem::take(&mut self.merges));
        let bpe = bpe.vocab_and_merges(vocab, merges).build().map_err(failed)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_normalizer(Some(normalizer().map_err(failed)?)).map_err(failed)?;
        inner.with_pre_tokenizer(Some(splitter().map_err(failed)?));

        let Settings { bos, eos, unk, pad, .. } = settings;
        let specials = [bos, eos, unk, pad]
            .map(|token| AddedToken::from(&token.content, true).normalized(token.normalized));
        inner.add_special_tokens(specials).map_err(failed)?;
        if self.added.len() > MOST_ADDED {
            let count = self.added.len();
            return Err(blame(format!("adds {count} tokens, at most {MOST_ADDED} are read")));
        }
        self.added.sort_by_key(|token| token.id);
        // In one call, because each call rebuilds the search for all added tokens.
        let tokens =
            self.added.iter().map(|AddedEntry { content, normalized, special, .. }| {
                AddedToken::from(content, *special).normalized(*normalized)
            });
        inner.add_tokens(tokens).map_err(failed)?;
        for AddedEntry { id, content, .. } in &self.added {
            if inner.token_to_id(content) != Some(*id) {
                let content = quoted(content);
                return Err(blame(format!("the added token {content} cannot have id {id}")));
            }
        }

        let id = |token: &Special| {
            let missing = || blame(format!("there is no token `{}`", token.content));
            inner.token_to_id(&token.content).ok_or_else(missing)
        };
        let (bos, eos, pad) = (id(bos)?, id(eos)?, id(pad)?);
        Ok(Tokenizer { inner, bos, eos, pad, max_length: settings.max_length })
    }
}

/// Normalizer: NFC, single spaces, lower case.
fn normalizer() -> tokenizers::Result<NormalizerWrapper> {
    let spaces =
        Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()), " ")?;
    Ok(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()]).into())
}

/// Pre-tokenizer: splits into words, single digits and runs of symbols, each mapped to byte characters.
fn splitter() -> tokenizers::Result<Splitters> {
    let pattern = SplitPattern::Regex(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
            .to_owned(),
    );
    let split = Split::new(pattern, SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::default().add_prefix_space(false);
    Ok(Splitters::new(vec![split.into(), bytes.into()]))
}

/// Parses the lines of a `merges.txt`; the first may be a version comment.
fn parse_merges(text: &str, path: &Path) -> Result<Vec<(String, String)>> {
    text.lines()
        .enumerate()
        .filter(|(i, line)| !(line.is_empty() || *i == 0 && line.starts_with("#version")))
        .map(|(i, line)| parse_merge(line, i + 1, path))
        .collect()
}

/// Parses one merge: two pieces separated by a space.
fn parse_merge(line: &str, number: usize, path: &Path) -> Result<(String, String)> {
    match line.split_once(' ') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => {
            Ok((a.to_owned(), b.to_owned()))
        }
        _ => {
            Err(Error::format(path, format!("merge {number} is not two pieces: `{}`", line.trim())))
        }
    }
}

/// The characters for the 256 bytes, in the order of CLIP's vocabulary: printable bytes as themselves, then the
/// others as characters from 256 on.
fn byte_alphabet() -> Vec<char> {
    let is_plain = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..=u8::MAX).filter(|byte| !is_plain(byte)).count() as u32;
    let plain = (0..=u8::MAX).filter(is_plain).map(char::from);
    plain.chain((0..others).filter_map(|i| char::from_u32(256 + i))).collect()
}

/// Reads a JSON file; `None` if it does not exist.
fn read_json(path: &Path) -> Result<Option<Value>> {
    let json = find_text(path)?.map(|text| serde_json::from_str(&text)).transpose();
    json.map_err(|error| Error::format(path, format!("not JSON: {error}")))
}
