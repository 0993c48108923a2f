//! A tokenizer in one file, and words for it.

use animatelcm::text::tokenizer::{Settings, Tokenizer};

use super::support::parts;
use super::tokenizer_files::encode;

/// Builds the tokenizer that is described up to a zero byte, and encodes what follows.
pub fn run(data: &[u8]) {
    let [json, words] = parts::<2>(data);
    let Ok(json) = std::str::from_utf8(json) else { return };
    if let Ok(tokenizer) = Tokenizer::from_tokenizer_json(json, &Settings::default()) {
        encode(tokenizer, &String::from_utf8_lossy(words));
    }
}
