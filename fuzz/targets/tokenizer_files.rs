//! A tokenizer in the files of a diffusers folder, and words for it.

use animatelcm::text::tokenizer::Tokenizer;

use super::support::{file, folder, parts};

/// Ordinary words, special tokens, signs of several bytes.
const WORDS: &str = "A red star, 2 cats<|endoftext|> \u{e9}\u{4e16}\u{1f600} don't";

/// Builds the tokenizer of four files and encodes the fifth part of the input.
pub fn run(data: &[u8]) {
    let [vocab, merges, config, map, words] = parts(data);
    file("vocab.json", vocab);
    file("merges.txt", merges);
    for (name, bytes) in [("tokenizer_config.json", config), ("special_tokens_map.json", map)] {
        let path = file(name, bytes);
        if bytes.is_empty() {
            std::fs::remove_file(path).expect("the file to be there");
        }
    }
    if let Ok(tokenizer) = Tokenizer::open(&folder()) {
        encode(tokenizer, &String::from_utf8_lossy(words));
    }
}

/// Takes words apart in every way.
pub(crate) fn encode(mut tokenizer: Tokenizer, words: &str) {
    for words in [WORDS, words] {
        if let Ok(encoding) = tokenizer.encode(words) {
            assert_eq!(encoding.ids.len(), tokenizer.max_length());
        }
        if let Ok(pieces) = tokenizer.ids_with_starts(words) {
            assert!(pieces.iter().all(|(_, start)| *start <= words.len()));
        }
    }
    if !tokenizer.knows("<new>") && tokenizer.add_token("<new>").is_ok() {
        let _ = tokenizer.ids("a <new> word");
    }
}
