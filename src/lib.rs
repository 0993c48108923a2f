#![doc = include_str!("../README.md")]
//!
//! # Floors
//!
//! A module may use itself and any module on a lower floor; `tests/architecture.rs` holds it to that.
//!
//! ```text
//! 9  cli                                        wires everything; computes nothing
//! 7  pipeline                                   request to frames
//! 6  adapters                                   LoRA, ControlNet, IP-Adapter
//! 5  text                                       prompt to context
//! 4  models                                     clip, unet with motion, ControlNet, vae
//! 3  nn       sampler       output              layers | sampling loops | encoders
//! 2  kernels  schedule      media  weights  hub
//! 1  device   rng
//! 0  error
//! ```

pub mod adapters;
pub mod device;
pub mod error;
#[cfg(feature = "hub")]
pub mod hub;
pub mod kernels;
pub mod media;
pub mod models;
pub mod nn;
pub mod output;
pub mod pipeline;
pub mod rng;
pub mod sampler;
pub mod schedule;
pub mod text;
pub mod weights;

#[cfg(feature = "cli")]
pub mod cli;

pub use error::{Error, ErrorKind, Result};
