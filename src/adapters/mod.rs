//! What is added to a model: LoRA.

pub mod lora;
