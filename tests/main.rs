//! The one integration-test binary: linking candle once matters.

// Clippy takes functions that tests share for ordinary code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(feature = "hub")]
mod hub;
mod support;
mod tokenizer;
mod unet;
mod vae;

mod output;
