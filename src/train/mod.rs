//! Training: the stages of AnimateLCM, from images with captions to a few-step sampler.
//!
//! Wang et al. (2024), "AnimateLCM", arXiv 2402.00769. Each stage trains some weights and freezes the rest:
//!
//! | Stage | Trains | Data or objective |
//! |---|---|---|
//! | `vae` | the autoencoder | frames |
//! | `base` | the UNet and the text encoder | single frames with captions |
//! | `lora` | a LoRA of the spatial weights | consistency along the base model's trajectories of single frames |
//! | `motion` | motion modules | clips with captions; all else is frozen |
//! | `lcm` | motion modules of a consistency model | consistency along trajectories of `base` + `motion`, with `lora` |
//! | `adapt` | a control network that there is already | consistency of pairs with the same noise, beside `lcm` |
//! | `i2v` | an image encoder, and motion modules with it | the same, clips with their first frames |
//!
//! The building blocks are [`Loss`], [`Grid`] and its cells, [`LowRank`], [`AdamW`] and [`Distillation`], all tested
//! against torch in `tests/train/parts.rs`. Trained weights, losses and the optimizer state are f32; networks compute
//! in the dtype of [`Compute`]. Stages write the published layouts, so results work with all programs that read those.

mod adapt;
mod bounds;
mod compute;
mod consistency;
mod data;
mod distill;
mod files;
mod image_to_video;
mod initial;
mod latents;
mod loss;
mod low_rank;
mod memory;
mod metric;
mod optimizer;
mod pairs;
mod places;
pub mod plan;
mod plot;
mod quality;
mod run;
mod settings;
mod stages;
mod text;
mod weights;
mod written;

pub use adapt::{Adaptation, HintedBatch, layers};
pub use compute::Compute;
use compute::Network;
pub use consistency::{Cell, Grid, PerImage};
pub use distill::{Batch, Distillation, Insertion, Student};
#[allow(unused_imports, reason = "what the command line writes beside")]
pub(crate) use files::write_bytes;
pub use image_to_video::{ImageToVideo, first_encoder};
pub use initial::fresh;
pub use loss::Loss;
pub use low_rank::{LowRank, is_spatial_module};
pub use memory::memory;
pub use metric::Metric;
pub use optimizer::{AdamW, Pace, clip};
pub use pairs::Pairs;
pub use places::{Lock, Places};
pub use plan::Plan;
pub use quality::{Quality, quality};
pub use run::{Listener, Options, Tick, course, run};
pub use stages::Stage;
use weights::restore;
pub use weights::{Vars, Weights, animatediff_name, builder, gradients, move_towards, variables};
