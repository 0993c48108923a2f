//! The one integration-test binary: linking candle once matters.

// Clippy takes functions that tests share for ordinary code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

/// What changes a model or stands beside it: LoRA, controls, image prompts.
mod adapters;
/// The layers of the crate.
mod architecture;
/// Hostile files and impossible requests, given to the real program and to every parser.
#[cfg(feature = "cli")]
mod attacks;
/// Many clips of one list.
mod batch;
/// The real program, as people and scripts run it.
#[cfg(feature = "cli")]
mod cli;
/// Published models and the hub, against a server on loopback.
#[cfg(feature = "hub")]
mod hub;
/// From what is asked to a file, and from files to requests.
mod job;
/// Operations on tensors.
mod kernels;
/// Images and videos that are read.
mod media;
/// CLIP score and FVD.
mod metrics;
/// Networks.
mod models;
/// Encoders of clips.
mod output;
/// From a request to frames.
mod pipeline;
/// Hints made of pictures.
mod preprocess;
/// Clips whose captions are the whole truth.
mod procedural;
/// Jobs that wait, and workers.
#[cfg(feature = "server")]
mod queue;
/// Faults that people met.
mod regression;
/// Random numbers.
mod rng;
/// From noise to clean latents.
mod sampler;
/// The server, over real sockets.
#[cfg(all(feature = "server", feature = "cli"))]
mod server;
mod support;
/// Prompts.
mod text;
/// Making models.
#[cfg(feature = "train")]
mod train;
/// Weight files of every layout.
mod weights;
