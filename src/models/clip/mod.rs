//! CLIP's text encoder.

mod config;
mod text;

pub use config::TextConfig;
pub use text::TextEncoder;
