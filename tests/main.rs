//! The one integration-test binary: linking candle once matters.

// Clippy takes functions that tests share for ordinary code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod architecture;
mod clip;
mod kernels;
mod lora;
mod rng;
mod sampler;
mod schedule;
mod support;
mod tokenizer;
mod unet;
mod vae;
mod weights;
