//! The SHA-256 of a weight file, by which its publisher and a clip's metadata identify it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;

use sha2::{Digest, Sha256};

use super::Source;
use crate::{Error, Result};

/// The SHA-256 of a file's contents, in lowercase hexadecimal.
pub fn sha256(source: &Source) -> Result<String> {
    let mut hash = Sha256::new();
    match source {
        Source::Embedded { bytes, .. } => hash.update(bytes),
        Source::File(path) => {
            let mut file = File::open(path).map_err(Error::file(path))?;
            let mut block = vec![0; 1 << 20];
            loop {
                match file.read(&mut block).map_err(Error::file(path))? {
                    0 => break,
                    read => hash.update(block.get(..read).unwrap_or_default()),
                }
            }
        }
    }
    Ok(hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_file_has_the_published_hash() {
        let source = Source::Embedded { name: "nothing", bytes: b"" };
        assert_eq!(
            sha256(&source).unwrap(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
