//! Configurations of models by themselves: read, checked, and asked what follows from them.

use animatelcm::Result;
use animatelcm::models::clip::{TextConfig, VisionConfig};
use animatelcm::models::control_net::ControlNetConfig;
use animatelcm::models::motion::MotionConfig;
use animatelcm::models::sparse_ctrl::SparseCtrlConfig;
use animatelcm::models::t2i_adapter::T2iAdapterConfig;
use animatelcm::models::unet::UNetConfig;
use animatelcm::models::vae::{TinyVaeConfig, VaeConfig};
use animatelcm::schedule;
use serde::de::DeserializeOwned;

/// Reads the JSON after the first byte as the configuration that this byte chooses.
pub fn run(data: &[u8]) {
    let Some((kind, json)) = data.split_first() else { return };
    match kind % 10 {
        0 => drop(checked(json, UNetConfig::validate)),
        1 => drop(checked(json, VaeConfig::validate)),
        2 => drop(checked(json, TextConfig::validate)),
        3 => {
            if let Some(config) = checked(json, schedule::Config::validate) {
                let _ = config.schedule();
            }
        }
        4 => drop(checked(json, MotionConfig::validate)),
        5 => drop(checked(json, TinyVaeConfig::validate)),
        6 => drop(checked(json, ControlNetConfig::validate)),
        7 => drop(checked(json, SparseCtrlConfig::validate)),
        8 => drop(checked(json, T2iAdapterConfig::validate)),
        _ => drop(checked(json, VisionConfig::validate)),
    }
}

fn checked<T: DeserializeOwned>(json: &[u8], validate: fn(&T) -> Result<()>) -> Option<T> {
    let config = serde_json::from_slice(json).ok()?;
    validate(&config).ok()?;
    Some(config)
}
