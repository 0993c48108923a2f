//! The data folder, and paths in messages.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{DirStore, Queue, SqliteQueue, Store};
use crate::{Error, Result};

/// What is in a data folder: the queue's database, clips, uploads, and files that are being made. Of a queue elsewhere
/// only copies are here.
#[derive(Debug)]
pub struct Places {
    /// The folder.
    pub folder: PathBuf,
    /// The folder of files that are being made.
    pub drafts: PathBuf,
    /// Finished clips.
    pub clips: Arc<dyn Store>,
    /// What clients sent.
    pub uploads: Arc<dyn Store>,
    /// The jobs.
    pub queue: Arc<dyn Queue>,
    /// Locked while the process lives.
    _lock: File,
}

impl Places {
    /// Opens a data folder, which one process has at a time, and removes what a killed one left half made.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when another process has it, and those of the disk.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::with(folder, |folder, clips, uploads| {
            let queue = SqliteQueue::open(&folder.join("queue.sqlite"))?;
            Ok((Arc::new(queue), Arc::new(clips), Arc::new(uploads)))
        })
    }

    /// Opens a data folder whose queue and files are elsewhere: `open` is given the folder and stores of its clips and
    /// uploads.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn with(
        folder: &Path,
        open: impl FnOnce(&Path, DirStore, DirStore) -> Result<Backing>,
    ) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::file(folder))?;
        let folder = &folder.canonicalize().map_err(Error::file(folder))?;
        let path = folder.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(Error::file(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = format!("{} is in use by another process", folder.display());
                return Err(Error::Device { device: "data".into(), reason }
                    .with_hint("--data DIR names another folder"));
            }
            Err(TryLockError::Error(error)) => return Err(Error::file(&path)(error)),
        }
        let drafts = folder.join("tmp");
        match fs::remove_dir_all(&drafts) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file(&drafts)(error));
            }
            _ => {}
        }
        let clips = DirStore::new(folder.join("clips"), &drafts)?;
        let uploads = DirStore::new(folder.join("uploads"), &drafts)?;
        let (queue, clips, uploads) = open(folder, clips, uploads)?;
        Ok(Self { clips, uploads, queue, drafts, folder: folder.clone(), _lock: lock })
    }
}

/// A queue, with the stores of clips and of uploads.
pub type Backing = (Arc<dyn Queue>, Arc<dyn Store>, Arc<dyn Store>);

/// A text in which each of the paths is replaced by the name that clients have for it.
///
/// The longest first, also as JSON writes them.
pub fn hidden(text: &str, paths: &[(String, String)]) -> String {
    let mut sorted: Vec<_> = paths.iter().filter(|(path, _)| path.len() > 1).collect();
    sorted.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    let mut text = text.to_owned();
    for (path, name) in sorted {
        text = text.replace(path.as_str(), name);
        let escaped = path.replace('\\', "\\\\");
        if escaped != *path {
            text = text.replace(&escaped, name);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_has_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::open(folder.path()).unwrap();
        let error = Places::open(folder.path()).unwrap_err();
        assert_eq!(error.kind().exit_code(), 4);
        drop(places);
        assert!(Places::open(folder.path()).is_ok());
    }

    #[test]
    fn paths_are_hidden_the_longest_first() {
        let paths = [("/m".to_owned(), "models".to_owned()), ("/m/a.pt".into(), "a".into())];
        assert_eq!(hidden("`/m/a.pt` in /m/b", &paths), "`a` in models/b");
    }
}
