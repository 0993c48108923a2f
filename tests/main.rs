//! The one integration-test binary: linking candle once matters.

mod clip;
mod kernels;
mod support;
mod unet;
mod vae;
