//! CLIP's text and image encoders.

mod config;
mod joint;
mod layer;
mod text;
mod vision;

pub use config::{JointConfig, TextConfig, VisionConfig};
pub use joint::Clip;
pub use text::TextEncoder;
pub use vision::VisionEncoder;
pub(super) use vision::{DEVIATION, MEAN};
