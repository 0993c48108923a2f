//! torch's files from before version 1.6: a row of pickles, then storages.

use super::support::file;
use super::weights;

/// The magic number and the version, which no other file begins with.
const HEAD: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";

/// Opens the file, of which the input may leave out the head.
pub fn run(data: &[u8]) {
    if data.starts_with(&HEAD[..14]) {
        weights::open(&file("w.pt", data));
    } else {
        weights::open(&file("w.pt", &[HEAD, data].concat()));
    }
}
