//! The one integration-test binary: linking candle once matters.

// Clippy takes functions that tests share for ordinary code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

/// Adapters in a running pipeline.
mod adapters;
/// The layers.
mod architecture;
/// Hostile files and impossible requests, given to the real program.
#[cfg(feature = "cli")]
mod attacks;
/// What `bench` prints.
#[cfg(feature = "cli")]
mod bench;
/// Torch files, large and hostile.
mod checkpoints;
/// The real program, as people and scripts run it.
#[cfg(feature = "cli")]
mod cli;
/// The text encoder.
mod clip;
/// Everything at once.
#[cfg(feature = "cli")]
mod composition;
/// Configurations that lie, and files that contradict them.
#[cfg(feature = "cli")]
mod configs;
/// ControlNets.
mod control;
/// How often clips show what their prompts say.
#[cfg(feature = "cli")]
mod eval;
/// Files that the program writes.
#[cfg(feature = "cli")]
mod files;
/// Published sizes: names lists always, whole passes when asked.
mod full_size;
/// Every parser of a stranger's bytes.
#[cfg(all(feature = "cli", feature = "hub", feature = "train"))]
mod fuzz;
/// The same numbers on a GPU, where there is one.
mod gpu;
/// Gradients of every layer.
mod gradients;
/// Published models and the hub, against a server on loopback.
#[cfg(feature = "hub")]
mod hub;
/// IP-Adapters and the image encoder.
mod ip_adapter;
/// Fast kernels against their plain references.
mod kernels;
/// Every spelling of a LoRA.
mod lora;
/// Images and videos as people have them.
#[cfg(feature = "mp4")]
mod media;
/// Kernels in an interpreter.
mod miniature;
/// Encoders: what is written is read again by other people's decoders.
mod output;
/// The text that clips carry for other programs.
#[cfg(feature = "cli")]
mod parameters;
/// Whole runs.
mod pipeline;
/// A trained adapter of every kind.
#[cfg(feature = "cli")]
mod pocket_adapters;
/// Clips whose captions are the whole truth.
mod procedural;
/// What is typed and where requests come from.
#[cfg(feature = "cli")]
mod requests;
/// torch's generators.
mod rng;
/// Samplers over formulas.
mod sampler;
/// Noise schedules and timesteps.
mod schedule;
/// Signals and limits of the system.
#[cfg(feature = "cli")]
mod signals;
/// SparseCtrl.
mod sparse_ctrl;
/// What clips and files of strangers may not do.
#[cfg(all(feature = "cli", feature = "apng"))]
mod strangers;
mod support;
/// T2I-Adapters.
mod t2i_adapter;
/// Weighted, long and extended prompts.
mod text;
/// CLIP's tokenizer on hard strings.
mod tokenizer;
/// Losses, distillation, stages.
#[cfg(feature = "train")]
mod train;
/// Whole trainings of a tiny model.
#[cfg(feature = "train")]
mod trainings;
/// The denoising network and its motion modules.
mod unet;
/// The autoencoders.
mod vae;
/// Videos as input.
mod video;
/// Every layout of weight files, and attacks on them.
mod weights;
