//! Prompts to what the network reads.

pub mod tokenizer;
