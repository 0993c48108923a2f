//! Few-step video diffusion on candle: a prompt becomes a short clip in about four denoising steps.
//!
//! The method is AnimateLCM (<https://arxiv.org/abs/2402.00769>): Stable Diffusion 1.5 with motion modules, distilled
//! to few steps. Checkpoints, motion modules, LoRAs, ControlNets and IP-Adapters are read as people publish them, and a
//! small model is part of the crate, so that this runs without any download:
//!
//! ```
//! use animatelcm::{Event, Files, Inputs, Pipeline, Request};
//!
//! fn main() -> animatelcm::Result<()> {
//!     let mut pipeline = Pipeline::open(&Files::embedded())?;
//!     let mut request = Request::new("a red circle moving down on a white background");
//!     request.sampling.seed = Some(1);
//!     let prepared = pipeline.prepare(&request, &Inputs::default())?;
//!     let mut frames = Vec::new(); // takes every frame as an `RgbImage`
//!     pipeline.generate(&prepared, &mut |_: Event| Ok(()), &mut &mut frames)?;
//!     assert_eq!(frames.len(), 16);
//!     Ok(())
//! }
//! ```
//!
//! # Where to start
//!
//! | To | Use |
//! |---|---|
//! | name weights | [`Files`] with a [`Base`] and a [`Motion`]; [`LoraFile`] |
//! | make clips | [`Pipeline::prepare`], [`Pipeline::generate`]; [`Residency::KeepAll`] keeps weights between clips |
//! | choose a device and dtypes | [`DeviceChoice`], [`Precision`], [`Pipeline::new`] |
//! | follow a run | an [`Observer`], such as a closure that takes each [`Event`] |
//! | end a run early | [`Stop`] and [`Pipeline::until`] |
//! | receive frames | a [`FrameSink`]: a `Vec`, or a file by [`output::open`] |
//! | run JSON from names to a file | [`Job::from_json`] and [`job::run`] |
//! | add code of your own | [`Pipeline::set_sampler`], [`Pipeline::add_conditioner`], [`Models::add_patch`] |
//!
//! # Features
//!
//! By default `cli`, `hub` (downloads), `gif`, `png`, `apng`, `webp`, `mp4`, `train` and `server` are on. A program that only
//! makes frames needs none of them:
//!
//! ```toml
//! animatelcm = { version = "0.1", default-features = false }
//! ```
//!
//! `nats` shares a queue among machines. `cuda`, `cudnn` and `flash-attn` build for NVIDIA GPUs, `metal` for Apple's; neither has been run on such hardware.
//!
//! # Threads
//!
//! Work on the CPU is spread over rayon's global pool: `RAYON_NUM_THREADS`, or a pool that is built beforehand, sets
//! how many threads there are. A [`Pipeline`] makes one clip at a time.
//!
//! # Layers
//!
//! A module may use itself and any module of a lower layer; `tests/architecture.rs` holds it to that.
//!
//! ```text
//! 13 cli                                        flags to jobs; computes nothing
//! 12 server                                     HTTP over the queue
//! 11 queue    batch                             jobs that wait, workers, stored clips | lists of jobs, shards
//! 10 job      train                             job to file | how models are made
//! 9  pipeline                                   request to frames
//! 8  library                                    files to networks, which stay loaded
//! 7  request                                    what is asked, as text
//! 6  adapters metrics                           LoRA, ControlNet, IP-Adapter | CLIP score, FVD
//! 5  text                                       prompt to context
//! 4  models                                     clip, unet with motion, ControlNet, vae
//! 3  nn       sampler       output   procedural  preprocess  layers | loops | encoders | captioned clips | hints
//! 2  schedule media         weights  hub
//! 1  device   rng       files
//! 0  error    spelling
//!    kernels                                    a crate of its own: `animatelcm-kernels`
//! ```

// The tests, benchmarks and fuzz targets of this repository use all modules. What others build on is re-exported below
// or in the modules that the documentation shows; the rest may change in any release.
#[doc(hidden)]
pub mod adapters;
#[doc(hidden)]
pub mod batch;
#[doc(hidden)]
pub mod device;
mod error;
#[allow(dead_code, unused_imports, reason = "some builds read no text files and write no series")]
mod files;
#[cfg(feature = "hub")]
#[doc(hidden)]
pub mod hub;
pub mod job;
#[doc(hidden)]
pub mod library;
#[doc(hidden)]
pub mod media;
#[doc(hidden)]
pub mod metrics;
#[doc(hidden)]
pub mod models;
#[doc(hidden)]
pub mod nn;
pub mod output;
#[doc(hidden)]
pub mod pipeline;
pub mod preprocess;
#[doc(hidden)]
pub mod procedural;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod queue;
pub mod request;
#[doc(hidden)]
pub mod rng;
pub mod sampler;
#[doc(hidden)]
pub mod schedule;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod server;
mod spelling;
#[doc(hidden)]
pub mod text;
#[cfg(feature = "train")]
#[doc(hidden)]
pub mod train;
#[doc(hidden)]
pub mod weights;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;

#[doc(hidden)]
pub use animatelcm_kernels as kernels;

pub use adapters::Conditioner;
pub use device::{DeviceChoice, DtypeChoice, Precision};
pub use error::{Error, ErrorKind, Result};
pub use kernels::{Quantize, Stop};
pub use library::{Base, ControlFile, Files, IpAdapterFile, Library, LoraFile, Models, Motion};
pub use media::{FrameSink, RgbImage};
pub use pipeline::{Done, Event, Inputs, Observer, Pipeline, Prepared, Residency};
pub use request::{Job, Request};
pub use sampler::{Denoiser, Sampler};
pub use weights::{Component, WeightPatch};
