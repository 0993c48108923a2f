//! The one integration-test binary: linking candle once matters.

mod support;

/// Encoders: what is written is read again by other people's decoders.
mod output;
