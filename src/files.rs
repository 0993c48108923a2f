//! Files: read whole within a limit, and written so that a name never leads to half of one.

mod draft;
mod place;
mod series;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

pub(crate) use draft::{Draft, remove_drafts};
pub use place::Existing;
pub(crate) use place::{Place, exists, folder_of, unwritable};
pub(crate) use series::DraftSeries;

use crate::{Error, Result};

/// The most bytes of a text file that a person or a tool writes: a config, a manifest, a plan, a vocabulary.
pub(crate) const MOST_TEXT: u64 = 64 << 20;

/// The bytes of an ordinary file of at most `limit` bytes.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidInput`] for what is no ordinary file (a pipe, a device, a folder), which is never opened,
/// and [`io::ErrorKind::FileTooLarge`] for a larger one, whatever its metadata say.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let found = fs::metadata(path)?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not an ordinary file"));
    }
    let too_large = || {
        let reason = format!("is larger than {} MiB", limit >> 20);
        io::Error::new(io::ErrorKind::FileTooLarge, reason)
    };
    if found.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(found.len() as usize);
    // Files of /proc and the like have no length beforehand.
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

/// The text of an ordinary UTF-8 file of at most [`MOST_TEXT`] bytes, as [`read`] reads it.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path, MOST_TEXT)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8 text"))
}

/// Writes a file at once: either it is there whole, or what was there before is. `field` is for messages.
pub(crate) fn write(field: &'static str, path: &Path, bytes: &[u8]) -> Result<()> {
    Place::resolve(field, path, Existing::Replace)?.write(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ordinary_files_within_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, [7; 9]).unwrap();
        assert_eq!(read(&file, 9).unwrap(), [7; 9]);
        assert_eq!(read(&file, 8).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(folder.path(), 8).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        #[cfg(unix)]
        {
            let device = read(Path::new("/dev/zero"), 8).unwrap_err();
            assert_eq!(device.kind(), io::ErrorKind::InvalidInput);
        }
        fs::write(&file, [0xff]).unwrap();
        assert_eq!(read_text(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
