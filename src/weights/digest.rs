//! SHA-256 of a weight file, as published with it and stored in a clip's metadata.

use sha2::{Digest, Sha256};

use super::Source;
use crate::{Result, Stop, files};

/// Bytes hashed between two checks of the stop flag.
const BLOCK: usize = 1 << 20;

/// The SHA-256 of a file's contents, in lowercase hexadecimal.
///
/// # Errors
///
/// A file that cannot be read or is not a regular file; [`crate::Error::Cancelled`] once `stop` was requested.
pub fn sha256(source: &Source, stop: &Stop) -> Result<String> {
    let mut hash = Sha256::new();
    match source {
        Source::Embedded { bytes, .. } => {
            for block in bytes.chunks(BLOCK) {
                stop.check()?;
                hash.update(block);
            }
        }
        Source::File(path) => return files::sha256(path, |_| Ok(stop.check()?)),
    }
    Ok(files::hex(hash))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::Error;

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
        // A sparse file that would take an hour to hash.
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
