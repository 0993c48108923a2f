//! The SHA-256 of a weight file, by which its publisher and a clip's metadata identify it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;

use sha2::{Digest, Sha256};

use super::Source;
use crate::{Error, Result, Stop};

/// Bytes between two looks at the stop.
const BLOCK: usize = 1 << 20;

/// The SHA-256 of a file's contents, in lowercase hexadecimal.
///
/// # Errors
///
/// A file that cannot be read or is no ordinary file; [`Error::Cancelled`] once `stop` was requested.
pub fn sha256(source: &Source, stop: &Stop) -> Result<String> {
    let mut hash = Sha256::new();
    match source {
        Source::Embedded { bytes, .. } => {
            for block in bytes.chunks(BLOCK) {
                stop.check()?;
                hash.update(block);
            }
        }
        Source::File(path) => {
            // Before opening, because opening a pipe would wait for a writer.
            if !fs::metadata(path).map_err(Error::file(path))?.is_file() {
                return Err(Error::format(path, "is not an ordinary file"));
            }
            let mut file = File::open(path).map_err(Error::file(path))?;
            let mut block = vec![0; BLOCK];
            loop {
                stop.check()?;
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
            sha256(&source, &Stop::default()).unwrap(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn hashing_stops_when_it_is_asked_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        // A sparse file whose hash would take an hour.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let (source, stop) = (Source::from(path), Stop::default());
        let asked = stop.clone();
        let timer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            asked.request();
        });
        assert!(matches!(sha256(&source, &stop), Err(Error::Cancelled)));
        timer.join().unwrap();
        assert!(matches!(sha256(&Source::from(folder.path()), &stop), Err(Error::Format { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_not_hashed() {
        let error = sha256(&Source::from("/dev/zero"), &Stop::default()).unwrap_err();
        assert_eq!(error.to_string(), "/dev/zero: is not an ordinary file");
    }
}
