//! Networks that measure clips.

use std::fs;
use std::path::Path;

use super::golden;

/// Writes the tiny CLIP with its tokenizer, as transformers lays out a folder.
pub(crate) fn clip_folder(folder: &Path) {
    for (from, name) in [
        ("clip_score/model", "config.json"),
        ("clip_score/model", "model.safetensors"),
        ("tiny/extras/tokenizer", "tokenizer.json"),
        ("tiny/extras/tokenizer", "tokenizer_config.json"),
    ] {
        fs::copy(golden::path(from).join(name), folder.join(name)).unwrap();
    }
}
