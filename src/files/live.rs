//! Names of drafts: who holds them, and their removal.
//!
//! A draft is called `.animatelcm-*.part`. Its writer holds an advisory lock on it for as long as it lives.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) const PREFIX: &str = ".animatelcm-";
pub(super) const SUFFIX: &str = ".part";

/// Number of attempts to remove a draft that is still written to, before it is left to the next run.
const TRIES_TO_REMOVE: usize = 100;

/// Drafts of this process.
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Exclusive access to the drafts of this process: while it is held, none is created, renamed or removed.
pub(super) fn live() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all drafts of this process, which must then exit: creating, renaming or dropping a draft afterwards blocks
/// forever, so no new ones can appear.
pub(crate) fn remove_drafts() {
    let drafts = live();
    for path in drafts.iter() {
        // A frame of a series may be created in the folder while that is emptied.
        let is_gone = |_: &usize| remove(path).is_ok() || fs::symlink_metadata(path).is_err();
        let _ = (0..TRIES_TO_REMOVE).find(is_gone);
    }
    std::mem::forget(drafts);
}

/// Removes a file, or a folder with its contents.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { remove_series(path) } else { fs::remove_file(path) }
}

/// Builder of draft names.
pub(super) fn names() -> tempfile::Builder<'static, 'static> {
    let mut names = tempfile::Builder::new();
    names.prefix(PREFIX).suffix(SUFFIX);
    names
}

/// A fixed name of the same form as a draft's.
pub(super) fn fixed_name(word: &str) -> String {
    format!("{PREFIX}{word}{SUFFIX}")
}

/// Name of an existing draft, which is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Name(PathBuf);

impl Name {
    /// Takes ownership of a draft. `live` proves that no other draft is created at the same time.
    pub(super) fn new(path: PathBuf, live: &mut BTreeSet<PathBuf>) -> Self {
        live.insert(path.clone());
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Gives up ownership, so that the draft is not removed.
    pub(super) fn release(&self, live: &mut BTreeSet<PathBuf>) {
        live.remove(&self.0);
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // Held until the draft is removed: a process that exits meanwhile would leave the rest of it behind.
        let mut live = live();
        if live.remove(&self.0) {
            let _ = remove(&self.0);
        }
    }
}

/// Tries to lock a new file; returns whether no other process holds the lock. True on file systems without locks.
pub(super) fn is_locked(file: &File) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Returns whether `path` still refers to the open `file`.
pub(super) fn is_still(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        match (file.metadata(), fs::symlink_metadata(path)) {
            (Ok(open), Ok(found)) => (open.dev(), open.ino()) == (found.dev(), found.ino()),
            _ => false,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        fs::symlink_metadata(path).is_ok()
    }
}

/// Opens and locks the file of a draft whose writer is gone. `None` if the writer is running or that is unknown.
pub(super) fn lock_stale(path: &Path) -> Option<File> {
    let file = OpenOptions::new().write(true).open(path).ok()?;
    (file.try_lock().is_ok() && is_still(&file, path)).then_some(file)
}

/// Number of times that a new draft may be taken for an abandoned one before it is locked.
pub(super) const TRIES: usize = 16;

/// Removes the path of the temporary file, which is of no interest to the user, from an error.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn plain(error: io::Error) -> io::Error {
    error.kind().into()
}

/// Renames a file unless the new name exists.
pub(super) fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    let renamed = tempfile::TempPath::try_from_path(from)?.persist_noclobber(to);
    renamed.map_err(|mut failed| {
        failed.path.disable_cleanup(true);
        failed.error
    })
}

/// File of a draft folder whose writer holds its lock.
pub(super) const LOCK: &str = "lock";
/// File of a draft folder with the renames to be made.
pub(super) const PLAN: &str = "plan";

/// Removes a draft. The plan is removed first and the lock last, so that the draft counts as abandoned wherever this
/// is interrupted.
fn remove_series(draft: &Path) -> io::Result<()> {
    let entries: io::Result<Vec<_>> = fs::read_dir(draft)?.collect();
    let mut paths: Vec<PathBuf> = entries?.iter().map(fs::DirEntry::path).collect();
    let rank = |path: &PathBuf| match path.file_name() {
        Some(name) if name == PLAN => 0,
        Some(name) if name == LOCK => 2,
        _ => 1,
    };
    paths.sort_by_key(rank);
    for path in paths {
        boundary();
        fs::remove_file(path)?;
    }
    boundary();
    fs::remove_dir(draft)
}

/// Point at which tests kill the process.
pub(super) fn boundary() {
    #[cfg(test)]
    kill::boundary();
}

/// Moments at which tests kill or delay the process.
#[cfg(test)]
pub(super) mod kill {
    use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    /// Number of boundaries left before the process aborts.
    pub(in crate::files) static LEFT: AtomicUsize = AtomicUsize::new(usize::MAX);
    /// Number of boundaries reached slowly; negative if none is slow.
    pub(in crate::files) static SLOW: AtomicIsize = AtomicIsize::new(-1);

    pub(in crate::files) fn boundary() {
        if SLOW.load(Ordering::SeqCst) >= 0 {
            SLOW.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
        }
        if LEFT.load(Ordering::SeqCst) != usize::MAX && LEFT.fetch_sub(1, Ordering::SeqCst) == 0 {
            // As abrupt as SIGKILL: no destructor runs.
            std::process::abort();
        }
    }
}
