//! Prompts.

/// Weighted, long and extended prompts.
mod prompts;
/// CLIP's tokenizer on hard strings.
mod tokenizer;
