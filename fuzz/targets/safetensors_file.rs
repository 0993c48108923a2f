//! safetensors files, as weights of every kind.

use super::support::{file, parts};
use super::weights;

/// Opens the file. An input that begins with a brace is a header up to a zero byte, and then the tensors' bytes.
pub fn run(data: &[u8]) {
    if data.starts_with(b"{") {
        let [header, bytes] = parts(data);
        let length = (header.len() as u64).to_le_bytes();
        weights::open(&file("w.safetensors", &[&length, header, bytes].concat()));
    } else {
        weights::open(&file("w.safetensors", data));
    }
}
