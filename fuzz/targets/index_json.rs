//! The index of weights that come in several files.

use std::fs;

use animatelcm::weights::{Checkpoint, Component, Source};

use super::support::{file, folder};

/// A safetensors file with one tensor.
const ONE: &[u8] = b"{\"conv_in.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
/// Another.
const TWO: &[u8] = b"{\"conv_in.bias\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";

/// Opens a folder with two shards and the index that the input is.
pub fn run(data: &[u8]) {
    for (name, header) in [("1.safetensors", ONE), ("2.safetensors", TWO)] {
        let path = folder().join(name);
        if !path.exists() {
            let length = (header.len() as u64).to_le_bytes();
            fs::write(path, [&length, header, &[0; 4]].concat()).expect("room for a shard");
        }
    }
    file("diffusion_pytorch_model.safetensors.index.json", data);
    let _ = Checkpoint::new().add_component(Component::UNet, &Source::from(folder()));
}
