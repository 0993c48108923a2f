//! Drafts: files that are written beside their target under a temporary name and renamed when they are complete.
//!
//! A draft is named `.animatelcm-*.part`. Its writer holds an advisory lock on it while it exists, so a later run can
//! distinguish the drafts of running processes from those of killed ones, and removes the latter.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use super::live::{Name, TRIES, is_locked, is_still, live, names, plain, rename_to_free};
use super::place::{Existing, Place, unwritable};
use super::stale::clean;
use crate::{Error, Result};

impl Place {
    /// Checks that the folder is writable, by creating a draft.
    pub(crate) fn probe(&self) -> Result<()> {
        match Draft::new(self.clone()) {
            Ok(_) => Ok(()),
            Err(error) => Err(unwritable(self.field(), self.folder(), &error)),
        }
    }

    /// Creates a draft beside the target, which is renamed on commit.
    pub(crate) fn draft(self) -> Result<Draft> {
        let path = self.path().to_path_buf();
        Draft::new(self).map_err(Error::file(path))
    }

    /// Writes the whole file atomically: afterwards it holds either the new content or the old.
    pub(crate) fn write(self, bytes: &[u8]) -> Result<()> {
        let path = self.path().to_path_buf();
        let mut draft = self.draft()?;
        draft.write_all(bytes).map_err(Error::file(path))?;
        draft.commit()
    }
}

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
    use std::path::Path;

    use super::*;
    use crate::files::live::fixed_name;

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
