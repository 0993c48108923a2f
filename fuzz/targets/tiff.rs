//! TIFFs as hints.

use super::support::read_image;

/// Reads all frames.
pub fn run(data: &[u8]) {
    read_image("hint.tiff", data);
}
