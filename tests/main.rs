//! The one integration-test binary: linking candle once matters.

mod support;

mod output;
