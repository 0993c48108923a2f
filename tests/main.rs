//! The one integration-test binary: linking candle once matters.

// Clippy takes functions that tests share for ordinary code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod architecture;
#[cfg(feature = "cli")]
mod bench;
mod clip;
mod full_size;
mod kernels;
mod rng;
mod sampler;
mod schedule;
mod support;
mod tokenizer;
mod unet;
mod vae;

/// Encoders: what is written is read again by other people's decoders.
mod output;
