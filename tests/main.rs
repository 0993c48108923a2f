//! The one integration-test binary: linking candle once matters.

mod architecture;
mod clip;
mod kernels;
mod rng;
mod sampler;
mod schedule;
mod support;
mod tokenizer;
mod unet;
mod vae;
