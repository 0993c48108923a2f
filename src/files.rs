//! File I/O: size-limited reads, texts line by line, atomic writes.

mod draft;
mod lines;
mod live;
mod place;
mod renames;
mod series;
mod stale;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

pub(crate) use draft::Draft;
pub(crate) use lines::{Lines, text_name};
pub(crate) use live::remove_drafts;
pub use place::Existing;
pub(crate) use place::{Place, exists, folder_of, unwritable};
pub(crate) use series::DraftSeries;

use crate::{Error, Result};

/// Maximum size in bytes of a text file: a config, a manifest, a plan, a vocabulary.
pub(crate) const MOST_TEXT: u64 = 64 << 20;

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidInput`] for anything but a regular file (a pipe, a device, a folder), which is never
/// opened, and [`io::ErrorKind::FileTooLarge`] for a larger one, regardless of its metadata.
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
    // Files in /proc and similar report no length.
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

/// Bytes left for this user on the disk of a path that need not exist yet; `None` where that is unknown.
pub(crate) fn free_space(path: &Path) -> Option<u64> {
    let path = path.ancestors().find(|path| path.exists())?;
    free_space_at(path)
}

#[cfg(unix)]
fn free_space_at(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_space_at(_: &Path) -> Option<u64> {
    None
}

/// Reads a regular UTF-8 file of at most [`MOST_TEXT`] bytes, as [`read`] does.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path, MOST_TEXT)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8 text"))
}

/// A SHA-256 in lowercase hexadecimal.
pub(crate) fn hex(hash: Sha256) -> String {
    hex_of(&hash.finalize())
}

/// Bytes in lowercase hexadecimal.
pub(crate) fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of a regular file of any size, in lowercase hexadecimal. `watch` receives the number of bytes hashed so
/// far.
///
/// # Errors
///
/// Errors of reading and of `watch`; anything but a regular file is not opened.
pub(crate) fn sha256(path: &Path, mut watch: impl FnMut(u64) -> Result<()>) -> Result<String> {
    // Before opening, because opening a pipe would wait for a writer.
    if !fs::metadata(path).map_err(Error::file(path))?.is_file() {
        return Err(Error::format(path, "is not an ordinary file"));
    }
    let mut file = File::open(path).map_err(Error::file(path))?;
    let (mut hash, mut block, mut done) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        watch(done)?;
        match file.read(&mut block) {
            Ok(0) => return Ok(hex(hash)),
            Ok(read) => {
                hash.update(block.get(..read).unwrap_or_default());
                done += read as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::file(path)(e)),
        }
    }
}

/// Writes a file atomically: afterwards it holds either the new content or the old. `field` is used in messages.
pub(crate) fn write(field: &'static str, path: &Path, bytes: &[u8]) -> Result<()> {
    Place::resolve(field, path, Existing::Replace)?.write(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_abc_is_the_published_one() {
        // FIPS 180-2, appendix B.1.
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        let hash = sha256(file.path(), |_| Ok(())).unwrap();
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(sha256(file.path(), |_| Err(Error::Cancelled)).is_err());
    }

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
