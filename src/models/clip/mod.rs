//! CLIP's text and image encoders.

mod config;
mod layer;
mod text;
mod vision;

pub use config::{TextConfig, VisionConfig};
pub use text::TextEncoder;
pub use vision::VisionEncoder;
