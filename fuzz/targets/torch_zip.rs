//! torch's zip files, byte for byte: the container above all, since most changes break its checksums.

use super::support::file;
use super::weights;

/// Opens the file.
pub fn run(data: &[u8]) {
    weights::open(&file("w.ckpt", data));
}
