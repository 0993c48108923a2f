//! The one integration-test binary: linking candle once matters.

mod architecture;
mod rng;
mod sampler;
mod schedule;
mod support;
mod tokenizer;
