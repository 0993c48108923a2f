//! Prompts.

/// Prompts that change between steps.
mod editing;
/// Weighted, long and extended prompts.
mod prompts;
/// CLIP's tokenizer on hard strings.
mod tokenizer;
