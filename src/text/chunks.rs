//! Prompts of any length, split into chunks of the text encoder's length.
//!
//! The algorithm is that of AUTOMATIC1111's web UI: tokens fill chunks of 75; where a chunk ends in the middle of a
//! phrase, the words after a comma at most 20 tokens back move to the next chunk.

use std::ops::Range;

/// Maximum distance to the last comma, in tokens, for the words after it to move to the next chunk.
const BACKTRACK: usize = 20;

/// Tokens that are encoded together, without begin, end and padding.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Chunk {
    /// Rows of the encoder's embedding table.
    pub(super) ids: Vec<u32>,
    /// Weight of each token.
    pub(super) weights: Vec<f32>,
}

impl Chunk {
    fn push(&mut self, rows: Range<u32>, weight: f32) {
        self.weights.resize(self.ids.len() + rows.len(), weight);
        self.ids.extend(rows);
    }

    /// Splits off everything from `at` on.
    fn split_off(&mut self, at: usize) -> Self {
        Self { ids: self.ids.split_off(at), weights: self.weights.split_off(at) }
    }
}

/// Builder of chunks from a stream of tokens.
#[derive(Debug)]
pub(super) struct Chunker {
    room: usize,
    comma: Option<u32>,
    full: Vec<Chunk>,
    current: Chunk,
    last_comma: Option<usize>,
}

impl Chunker {
    /// An empty builder for chunks of `room` tokens; `comma` is the token after which a chunk may end early.
    pub(super) fn new(room: usize, comma: Option<u32>) -> Self {
        Self { room, comma, full: vec![], current: Chunk::default(), last_comma: None }
    }

    /// Adds a token with its rows of the embedding table, one or more, which stay in one chunk.
    pub(super) fn push(&mut self, token: u32, rows: Range<u32>, weight: f32) {
        let length = self.current.ids.len();
        if self.comma == Some(token) {
            self.last_comma = Some(length);
        } else if let Some(comma) = self.last_comma
            && length == self.room
            && length - comma <= BACKTRACK
        {
            let moved = self.current.split_off(comma + 1);
            self.close();
            self.current = moved;
        }
        if self.current.ids.len() + rows.len() > self.room {
            self.close();
        }
        self.current.push(rows, weight);
    }

    /// Ends the current chunk, full or not.
    pub(super) fn close(&mut self) {
        self.full.push(std::mem::take(&mut self.current));
        self.last_comma = None;
    }

    /// Number of chunks so far, including the current one.
    pub(super) fn count(&self) -> usize {
        self.full.len() + 1
    }

    /// Returns all chunks, at least one.
    pub(super) fn finish(mut self) -> Vec<Chunk> {
        if !self.current.ids.is_empty() || self.full.is_empty() {
            self.close();
        }
        self.full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMA: u32 = 0;

    /// Lengths of the chunks of a text in which `,` is a comma, `|` a break and `3` an embedding of 3 vectors.
    fn lengths(text: &str) -> Vec<usize> {
        let mut chunker = Chunker::new(75, Some(COMMA));
        for c in text.chars() {
            match c {
                '|' => chunker.close(),
                ',' => chunker.push(COMMA, COMMA..COMMA + 1, 1.0),
                '3' => chunker.push(7, 100..103, 1.0),
                _ => chunker.push(1, 1..2, 1.0),
            }
        }
        let chunks = chunker.finish();
        assert!(chunks.iter().all(|chunk| chunk.ids.len() == chunk.weights.len()));
        chunks.iter().map(|chunk| chunk.ids.len()).collect()
    }

    fn words(count: usize) -> String {
        "w".repeat(count)
    }

    #[test]
    fn chunks_hold_75_tokens_and_there_is_always_one() {
        assert_eq!(lengths(""), [0]);
        assert_eq!(lengths(&words(75)), [75]);
        assert_eq!(lengths(&words(76)), [75, 1]);
        assert_eq!(lengths(&words(200)), [75, 75, 50]);
    }

    #[test]
    fn a_break_ends_a_chunk_even_an_empty_one() {
        assert_eq!(lengths("www|ww"), [3, 2]);
        assert_eq!(lengths("|ww"), [0, 2]);
        assert_eq!(lengths("ww|"), [2]);
        assert_eq!(lengths("||"), [0, 0]);
    }

    #[test]
    fn a_phrase_moves_to_the_next_chunk_from_a_comma_that_is_near() {
        // The comma is token 55, 20 from the end.
        assert_eq!(lengths(&format!("{},{}", words(55), words(20))), [56, 20]);
        assert_eq!(lengths(&format!("{},{}", words(54), words(21))), [75, 1]);
        // Nothing moves when everything fits, and a comma may be the last or the first token.
        assert_eq!(lengths(&format!("{},{}", words(55), words(19))), [75]);
        assert_eq!(lengths(&format!("{},{}", words(74), words(5))), [75, 5]);
        assert_eq!(lengths(&format!("{},{}", words(75), words(5))), [75, 6]);
    }

    #[test]
    fn an_embedding_is_never_split() {
        assert_eq!(lengths(&format!("{}3", words(72))), [75]);
        assert_eq!(lengths(&format!("{}3", words(73))), [73, 3]);
    }
}
