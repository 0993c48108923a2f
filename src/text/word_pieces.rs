//! BERT's vocabulary: from tokens to text.

use std::path::Path;

use tokenizers::Decoder as _;
use tokenizers::decoders::wordpiece::WordPiece;

use crate::weights::read_text;
use crate::{Error, Result};

/// Tokens that are no text.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// The pieces of words by number, as of a `vocab.txt`.
#[derive(Clone, Debug)]
pub struct WordPieces(Vec<String>);

impl WordPieces {
    /// Reads a file with a piece a line.
    ///
    /// # Errors
    ///
    /// When it is missing, no text, or empty.
    pub fn read(path: &Path) -> Result<Self> {
        let pieces: Vec<String> = read_text(path)?.lines().map(str::to_owned).collect();
        if pieces.is_empty() {
            return Err(Error::format(path, "is empty"));
        }
        Ok(Self(pieces))
    }

    /// The text of tokens, as transformers' `BertTokenizer.decode` without special tokens; those beyond the vocabulary
    /// are special, too.
    ///
    /// # Errors
    ///
    /// None that is known.
    pub fn text(&self, tokens: &[u32]) -> Result<String> {
        let piece = |token: &u32| self.0.get(*token as usize).cloned();
        let pieces = tokens.iter().filter_map(piece);
        let pieces = pieces.filter(|piece| !SPECIAL.contains(&piece.as_str())).collect();
        let wrong = |e: tokenizers::Error| Error::Encode { format: "text", reason: e.to_string() };
        WordPiece::default().decode(pieces).map_err(wrong)
    }
}
