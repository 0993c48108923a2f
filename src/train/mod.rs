//! How models are made: the stages of AnimateLCM, from pictures with captions to a sampler of few steps.
//!
//! Wang et al. (2024), "AnimateLCM", arXiv 2402.00769. A stage teaches some weights and leaves the rest alone:
//!
//! | Stage | Learns | From |
//! |---|---|---|
//! | `vae` | the autoencoder | frames |
//! | `base` | the UNet and the text encoder | single frames with captions |
//! | `lora` | a low-rank change of the spatial weights | consistency along the base's own trajectories of single frames |
//! | `motion` | motion modules | clips with captions; all else is frozen |
//! | `lcm` | motion modules of a consistency model | consistency along the trajectories of `base` and `motion`, with `lora` in place |
//!
//! The parts are plain: [`Loss`], [`Grid`] and its cells, [`LowRank`], [`AdamW`], [`Distillation`]. All of them are held
//! against torch in `tests/train.rs`. Training runs in f32. What a stage writes is in the layouts that people publish,
//! so everything that reads those reads it.

mod bounds;
mod compute;
mod consistency;
mod data;
mod distill;
mod files;
mod initial;
mod latents;
mod loss;
mod low_rank;
mod memory;
mod optimizer;
pub mod plan;
mod plot;
mod quality;
mod run;
mod stages;
mod text;
mod weights;
mod written;

pub use compute::Compute;
use compute::Network;
pub use consistency::{Cell, Grid, PerImage};
pub use distill::{Batch, Distillation, Insertion, Student};
#[allow(unused_imports, reason = "what the command line writes beside")]
pub(crate) use files::write_bytes;
pub use initial::fresh;
pub use loss::Loss;
pub use low_rank::{LowRank, is_spatial_module};
pub use memory::memory;
pub use optimizer::{AdamW, Pace, clip};
pub use plan::Plan;
pub use quality::{Quality, quality};
pub use run::{Listener, Metric, Options, Tick, course, run};
pub use stages::{Lock, Places, Stage};
pub use weights::{Vars, Weights, animatediff_name, builder, gradients, move_towards, variables};
