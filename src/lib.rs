#![doc = include_str!("../README.md")]
//!
//! # Layers
//!
//! A module may use itself and any module of a lower layer; `tests/architecture.rs` holds it to that.
//!
//! ```text
//! 11 cli                                        flags to jobs; computes nothing
//! 10 job      train                             job to file | how models are made
//! 9  pipeline                                   request to frames
//! 8  library                                    files to networks, which stay loaded
//! 7  request                                    what is asked, as text
//! 6  adapters                                   LoRA, ControlNet, IP-Adapter
//! 5  text                                       prompt to context
//! 4  models                                     clip, unet with motion, ControlNet, vae
//! 3  nn       sampler       output   procedural layers | sampling loops | encoders | clips with captions
//! 2  kernels  schedule      media  weights  hub
//! 1  device   rng       files
//! 0  error    stop      spelling
//! ```

pub mod adapters;
pub mod device;
pub mod error;
#[allow(dead_code, unused_imports, reason = "some builds read no text files and write no series")]
mod files;
#[cfg(feature = "hub")]
pub mod hub;
pub mod job;
pub mod kernels;
pub mod library;
pub mod media;
pub mod models;
pub mod nn;
pub mod output;
pub mod pipeline;
pub mod procedural;
pub mod request;
pub mod rng;
pub mod sampler;
pub mod schedule;
mod spelling;
mod stop;
pub mod text;
#[cfg(feature = "train")]
pub mod train;
pub mod weights;

#[cfg(feature = "cli")]
pub mod cli;

pub use device::{DeviceChoice, DtypeChoice, Precision};
pub use error::{Error, ErrorKind, Result};
pub use library::{Base, Files, Library, LoraFile, Models, Motion};
pub use media::{FrameSink, RgbImage};
pub use pipeline::{Event, Inputs, Observer, Pipeline, Prepared, Residency};
pub use request::{Job, Request};
pub use sampler::{Denoiser, Sampler};
pub use stop::Stop;
