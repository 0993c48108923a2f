//! Drafts: files that are written beside their target under a temporary name and renamed when they are complete.
//!
//! A draft is named `.animatelcm-*.part`. Its writer holds an advisory lock on it while it exists, so a later run can
//! distinguish the drafts of running processes from those of killed ones, and removes the latter.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::place::{Existing, Place};
use super::series;
use crate::{Error, Result};

const PREFIX: &str = ".animatelcm-";
const SUFFIX: &str = ".part";

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
    if fs::symlink_metadata(path)?.is_dir() { series::remove(path) } else { fs::remove_file(path) }
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

/// Removes the drafts of killed processes of the same user from a folder, and completes the series they were
/// renaming, as far as possible. `own` is a file of this process in that folder; `is_renaming` tells whether this
/// process holds the lock for renaming series.
pub(super) fn clean(folder: &Path, own: &File, is_renaming: bool) {
    let (Ok(own), Ok(entries)) = (own.metadata(), fs::read_dir(folder)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_draft =
            name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        if !is_draft {
            continue;
        }
        // Links are not followed, because their targets are not drafts.
        let found = match entry.metadata() {
            Ok(found) if is_of_same_owner(&found, &own) => found,
            _ => continue,
        };
        let path = entry.path();
        if found.is_dir() {
            series::clean(folder, &path, is_renaming);
        } else if found.is_file()
            && let Some(_held) = lock_stale(&path)
        {
            // While it is locked, no process takes it for its own new draft; another process may have removed it
            // first.
            let _ = fs::remove_file(&path);
        }
    }
}

fn is_of_same_owner(found: &fs::Metadata, own: &fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        found.uid() == own.uid()
    }
    #[cfg(not(unix))]
    {
        let _ = (found, own);
        true
    }
}

/// Number of times that a new draft may be taken for an abandoned one before it is locked.
pub(super) const TRIES: usize = 16;

/// A file being written, removed when dropped.
#[derive(Debug)]
pub(crate) struct Draft {
    // Open, and therefore locked, until it is renamed.
    file: BufWriter<File>,
    name: Name,
    place: Place,
}

impl Draft {
    /// Creates a draft beside its target, with the permissions of a normal new file. Stale drafts there are removed.
    pub(super) fn new(place: Place) -> io::Result<Self> {
        #[cfg_attr(not(unix), allow(unused_mut))]
        let mut names = names();
        #[cfg(unix)]
        names.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        for _ in 0..TRIES {
            let mut live = live();
            let (file, mut path) = names.tempfile_in(place.folder()).map_err(plain)?.into_parts();
            path.disable_cleanup(true);
            let name = Name::new(path.to_path_buf(), &mut live);
            drop(live);
            if is_locked(&file) && is_still(&file, name.path()) {
                clean(place.folder(), &file, false);
                return Ok(Self { file: BufWriter::with_capacity(1 << 16, file), name, place });
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Renames the draft to its target.
    pub(crate) fn commit(self) -> Result<()> {
        let Self { file, name, place } = self;
        let written = file.into_inner().map_err(io::IntoInnerError::into_error);
        // Some file systems report a full disk only here.
        let synced = written.and_then(|file| file.sync_all().map(|()| file));
        let file = synced.map_err(Error::file(place.path()))?;
        let mut live = live();
        let renamed = match place.existing() {
            Existing::Replace => fs::rename(name.path(), place.path()),
            Existing::Refuse => rename_to_free(name.path(), place.path()),
        };
        if renamed.is_ok() {
            name.release(&mut live);
        }
        drop(live);
        // Until here the lock kept other processes from taking the draft for an abandoned one.
        drop(file);
        renamed.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => place.exists(),
            _ => Error::file(place.path())(error),
        })
    }
}

/// The same error without the path of the temporary file, which is of no interest to the user.
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

impl Write for Draft {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Draft {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &Path, existing: Existing) -> Place {
        Place::resolve("output", path, existing).unwrap()
    }

    fn entries(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gif");
        let draft = place(&path, Existing::Refuse).draft().unwrap();
        fs::write(&path, "theirs").unwrap();
        let error = draft.commit().unwrap_err();
        assert!(error.to_string().contains("a.gif` exists"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(entries(folder.path()), 1);
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_lives_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let stale = folder.path().join(fixed_name("abc123"));
        let series = folder.path().join(fixed_name("def456"));
        fs::create_dir(&series).unwrap();
        for file in [&stale, &series.join("lock"), &series.join("new-0"), &series.join("old-7")] {
            fs::write(file, "half").unwrap();
        }
        fs::create_dir(folder.path().join(fixed_name("empty1"))).unwrap();
        let strangers = [".animatelcm-notes.txt", "animatelcm-a.part", ".animatelcm-a.part.bak"];
        for name in strangers {
            fs::write(folder.path().join(name), "theirs").unwrap();
        }
        let first = place(&folder.path().join("a.gif"), Existing::Refuse).draft().unwrap();
        assert_eq!(entries(folder.path()), strangers.len() + 1, "only the new draft stays");
        let second = place(&folder.path().join("b.gif"), Existing::Refuse).draft().unwrap();
        assert_eq!(entries(folder.path()), strangers.len() + 2, "both drafts live");
        first.commit().unwrap();
        second.commit().unwrap();
        assert!(folder.path().join("a.gif").exists() && folder.path().join("b.gif").exists());
        assert_eq!(entries(folder.path()), strangers.len() + 2);
    }

    #[test]
    fn drafts_that_people_write_at_once_do_not_remove_each_other() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let folder = folder.path();
                scope.spawn(move || {
                    for index in 0..50 {
                        let path = folder.join(format!("{thread}-{index}"));
                        let mut draft = place(&path, Existing::Refuse).draft().unwrap();
                        draft.write_all(path.as_os_str().as_encoded_bytes()).unwrap();
                        draft.commit().unwrap();
                    }
                });
            }
        });
        assert_eq!(entries(folder.path()), 200);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("real.gif"), folder.path().join("link.gif"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut draft = place(&link, Existing::Replace).draft().unwrap();
        draft.write_all(b"new").unwrap();
        draft.commit().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    }

    #[cfg(unix)]
    #[test]
    fn links_that_are_called_like_drafts_lead_to_nobodys_draft() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("precious");
        fs::write(&file, "theirs").unwrap();
        let link = folder.path().join(fixed_name("link01"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        drop(place(&folder.path().join("a"), Existing::Refuse).draft().unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
        assert!(fs::symlink_metadata(&link).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn outputs_have_the_permissions_of_ordinary_files() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let ordinary = folder.path().join("ordinary");
        fs::write(&ordinary, "").unwrap();
        let path = folder.path().join("a.gif");
        place(&path, Existing::Refuse).draft().unwrap().commit().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&ordinary));
    }
}
