//! Files of a folder by their SHA-256.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::{Store, Stored};
use crate::files::hex;
use crate::{Error, Result};

/// A folder of files that are named by their SHA-256, in folders of its first two digits.
///
/// A file is written in another folder of the same disk and renamed, so that one that has its name is whole.
#[derive(Clone, Debug)]
pub struct DirStore {
    folder: PathBuf,
    drafts: PathBuf,
}

impl DirStore {
    /// A store in `folder`, with drafts in `drafts`; both are made.
    ///
    /// # Errors
    ///
    /// When a folder cannot be made.
    pub fn new(folder: impl Into<PathBuf>, drafts: impl Into<PathBuf>) -> Result<Self> {
        let store = Self { folder: folder.into(), drafts: drafts.into() };
        for folder in [&store.folder, &store.drafts] {
            fs::create_dir_all(folder).map_err(Error::file(folder))?;
        }
        Ok(store)
    }

    /// The path that a hash has or would have; `None` if it is no hash.
    fn path(&self, sha256: &str) -> Option<PathBuf> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_hash = sha256.len() == 64 && sha256.bytes().all(is_digit);
        is_hash.then(|| self.folder.join(&sha256[..2]).join(sha256))
    }
}

impl Store for DirStore {
    fn put(&self, bytes: &mut dyn Read, limit: u64) -> Result<Stored> {
        let failed = || Error::file(&self.drafts);
        let mut draft = tempfile::NamedTempFile::new_in(&self.drafts).map_err(failed())?;
        let (mut hash, mut length, mut block) = (Sha256::new(), 0_u64, vec![0; 1 << 16]);
        loop {
            let count = match bytes.read(&mut block) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed()(error)),
            };
            let read = block.get(..count).unwrap_or_default();
            length += count as u64;
            if length > limit {
                let reason = format!("has more than {limit} bytes");
                return Err(Error::request("upload", reason));
            }
            hash.update(read);
            draft.write_all(read).map_err(failed())?;
        }
        let sha256 = hex(hash);
        let Some(path) = self.path(&sha256) else {
            return Err(Error::format(&self.drafts, "no hash came of it"));
        };
        if let Ok(there) = File::options().append(true).open(&path) {
            // As good as new: nothing that was just put is swept away.
            there.set_modified(SystemTime::now()).map_err(Error::file(&path))?;
        } else {
            let folder = path.parent().unwrap_or(&self.folder);
            fs::create_dir_all(folder).map_err(Error::file(folder))?;
            draft.as_file().sync_all().map_err(failed())?;
            draft.persist(&path).map_err(|error| Error::file(&path)(error.error))?;
            sync_folder(folder);
        }
        Ok(Stored { sha256, bytes: length })
    }

    fn open(&self, sha256: &str) -> Result<Option<PathBuf>> {
        Ok(self.path(sha256).filter(|path| path.is_file()))
    }

    fn remove(&self, sha256: &str) -> Result<()> {
        let Some(path) = self.path(sha256) else { return Ok(()) };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file(&path)(error))
            }
            _ => Ok(()),
        }
    }

    fn older(&self, age: Duration) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for folder in list(&self.folder)? {
            for path in if folder.is_dir() { list(&folder)? } else { vec![] } {
                let modified = path.metadata().and_then(|data| data.modified());
                let is_old =
                    modified.is_ok_and(|at| at.elapsed().is_ok_and(|passed| passed >= age));
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if is_old && self.path(&name).is_some() {
                    found.push(name);
                }
            }
        }
        Ok(found)
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(Error::file(folder))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(Error::file(folder))).collect()
}

/// Has the disk keep a new name in a folder, where folders can be told so.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}
