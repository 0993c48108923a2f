//! Series of files that get their names together: all of them, or none.
//!
//! They are written to a draft folder. On commit, a plan of all renames is first written there; from then on the
//! series counts as complete. The old files move into the draft folder, then the new ones out of it, so that old and
//! new files are never visible together. A process that finds the plan of a killed process completes it. Only one
//! process at a time renames in a folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::live::{self, LOCK, Name, PLAN, is_still, plain};
use super::place::{Existing, exists};
use super::renames::{Plan, RenameLock, new_file, rename, settle, sync};
use super::stale;
use crate::{Error, Result};

/// A draft folder for a series of files, removed when dropped.
#[derive(Debug)]
pub(crate) struct DraftSeries {
    field: &'static str,
    folder: PathBuf,
    name: Name,
    /// Lock held for the lifetime of the draft.
    lock: File,
    existing: Existing,
}

impl DraftSeries {
    /// Creates a draft for files of `folder`. Stale drafts there are removed.
    pub(crate) fn new(field: &'static str, folder: &Path, existing: Existing) -> io::Result<Self> {
        for _ in 0..live::TRIES {
            let mut live = live::live();
            let path = live::names().tempdir_in(folder).map_err(plain)?.keep();
            let name = Name::new(path, &mut live);
            drop(live);
            let place = name.path().join(LOCK);
            let lock = match File::create_new(&place) {
                Ok(lock) => lock,
                // Another process took the folder for an abandoned draft before it was locked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(plain(error)),
            };
            if live::is_locked(&lock) && is_still(&lock, &place) {
                stale::clean(folder, &lock, false);
                let folder = folder.to_path_buf();
                return Ok(Self { field, folder, name, lock, existing });
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Creates a file of the series.
    pub(crate) fn file(&self, index: usize) -> io::Result<File> {
        let _live = live::live();
        File::create_new(new_file(self.name.path(), index))
    }

    /// Renames the files from 0 to `count` to their final names. Files of a longer, older series are removed together
    /// with the replaced ones.
    pub(crate) fn commit(self, count: usize, name: impl Fn(usize) -> String) -> Result<()> {
        let lock = RenameLock::take(&self.folder).map_err(Error::file(&self.folder))?;
        stale::clean(&self.folder, &self.lock, true);
        let is_there = |name: &String| fs::symlink_metadata(self.folder.join(name)).is_ok();
        let new: Vec<String> = (0..count).map(&name).collect();
        let mut old: Vec<String> = new.iter().filter(|name| is_there(name)).cloned().collect();
        if self.existing == Existing::Refuse {
            if let Some(name) = old.first() {
                return Err(exists(self.field, &self.folder.join(name)));
            }
        } else {
            old.extend((count..).map(&name).take_while(is_there));
        }
        let plan = Plan { old, new, is_replacing: self.existing == Existing::Replace };
        let mut live = live::live();
        let done = self.write(&plan).and_then(|()| {
            settle(self.field, &self.folder, self.name.path(), &plan).map_err(|unsettled| {
                if unsettled.is_kept {
                    // Files that could not be restored are kept there.
                    self.name.release(&mut live);
                }
                unsettled.error
            })
        });
        drop(live);
        drop(self);
        drop(lock);
        done
    }

    fn write(&self, plan: &Plan) -> Result<()> {
        let path = self.name.path().join(PLAN);
        let write = || {
            let draft = path.with_extension("new");
            let mut file = File::create_new(&draft)?;
            file.write_all(&serde_json::to_vec(plan)?)?;
            file.sync_all()?;
            rename(&draft, &path)
        };
        write().map_err(Error::file(&self.folder))?;
        sync(self.name.path());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::files::live::kill::{LEFT, SLOW};
    use crate::files::renames::new_file;
    use std::process::Command;
    use std::sync::atomic::Ordering;

    /// Environment variable of a test that runs itself as a child process: where it works and when it aborts.
    const VICTIM: &str = "ANIMATELCM_TEST_VICTIM";

    fn name(index: usize) -> String {
        format!("{index}.png")
    }

    /// Visible files in a folder, with their contents.
    fn seen(folder: &Path) -> Vec<(String, String)> {
        let mut seen: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
            .filter(|(name, _)| !name.starts_with('.'))
            .map(|(name, path)| (name, fs::read_to_string(path).unwrap()))
            .collect();
        seen.sort_by_key(|(name, _)| (name.len(), name.clone()));
        seen
    }

    fn clip(word: &str, count: usize) -> Vec<(String, String)> {
        (0..count).map(|index| (name(index), format!("{word} {index}"))).collect()
    }

    fn put(folder: &Path, word: &str, count: usize) {
        for (name, text) in clip(word, count) {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    fn draft(folder: &Path, word: &str, count: usize, existing: Existing) -> DraftSeries {
        let draft = DraftSeries::new("output", folder, existing).unwrap();
        for (index, (_, text)) in clip(word, count).into_iter().enumerate() {
            draft.file(index).unwrap().write_all(text.as_bytes()).unwrap();
        }
        draft
    }

    fn write(folder: &Path, word: &str, count: usize) -> Result<()> {
        draft(folder, word, count, Existing::Replace).commit(count, name)
    }

    fn entries(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_killed_process_leaves_one_series_whole() {
        if let Ok(victim) = std::env::var(VICTIM) {
            let (left, folder) = victim.split_once(':').unwrap();
            LEFT.store(left.parse().unwrap(), Ordering::SeqCst);
            write(Path::new(folder), "new", 3).unwrap();
            return;
        }
        let this = "files::series::tests::a_killed_process_leaves_one_series_whole";
        for (old, count) in [("longer", 5), ("shorter", 1), ("none", 0)] {
            let (mut kept, mut made) = (0, 0);
            for left in 0.. {
                let folder = tempfile::tempdir().unwrap();
                put(folder.path(), old, count);
                let status = Command::new(std::env::current_exe().unwrap())
                    .args([this, "--exact", "--test-threads=1"])
                    .env(VICTIM, format!("{left}:{}", folder.path().display()))
                    .output()
                    .unwrap()
                    .status;
                // Old and new files are never visible together, even before any cleanup.
                let now = seen(folder.path());
                let is_of = |word: &str| now.iter().all(|(_, text)| text.starts_with(word));
                assert!(is_of(old) || is_of("new"), "{old} {left}: {now:?}");
                if status.success() {
                    assert!(kept > 0 && made > 0, "{old}: killed {left} times, {kept} {made}");
                    assert_eq!(entries(folder.path()), 3);
                    break;
                }
                // A later draft, even one that is dropped, cleans up.
                drop(DraftSeries::new("output", folder.path(), Existing::Refuse).unwrap());
                let now = seen(folder.path());
                assert!(now == clip(old, count) || now == clip("new", 3), "{old} {left}: {now:?}");
                if now == clip("new", 3) {
                    made += 1;
                } else {
                    kept += 1;
                }
                assert_eq!(entries(folder.path()), now.len(), "{old} {left}: something stays");
                write(folder.path(), "next", 2).unwrap();
                assert_eq!(seen(folder.path()), clip("next", 2), "{old} {left}");
            }
        }
    }

    #[test]
    #[allow(clippy::exit, reason = "as the second signal does")]
    fn a_process_that_ends_while_a_draft_is_dropped_leaves_nothing() {
        if let Ok(folder) = std::env::var(VICTIM) {
            let draft = draft(Path::new(&folder), "new", 5, Existing::Replace);
            SLOW.store(0, Ordering::SeqCst);
            thread::spawn(move || drop(draft));
            while SLOW.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            live::remove_drafts();
            std::process::exit(0);
        }
        let this =
            "files::series::tests::a_process_that_ends_while_a_draft_is_dropped_leaves_nothing";
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args([this, "--exact", "--test-threads=1"])
            .env(VICTIM, folder.path())
            .output()
            .unwrap()
            .status;
        assert!(status.success());
        assert_eq!(entries(folder.path()), 0);
    }

    #[test]
    fn a_shorter_series_replaces_all_of_a_longer_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "old", 7);
        for other in ["20260101.png", "0.gif", "x0.png"] {
            fs::write(folder.path().join(other), "another's").unwrap();
        }
        write(folder.path(), "new", 4).unwrap();
        let now = seen(folder.path());
        assert_eq!(now.iter().filter(|(_, text)| text.starts_with("new")).count(), 4);
        assert_eq!(now.iter().filter(|(_, text)| text == "another's").count(), 3);
        assert_eq!(now.len(), 7, "{now:?}");
    }

    #[test]
    fn a_series_that_cannot_be_completed_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "old", 2);
        let draft = draft(folder.path(), "new", 3, Existing::Replace);
        // There is no frame 3.
        assert!(draft.commit(4, name).is_err());
        assert_eq!(seen(folder.path()), clip("old", 2));
        assert_eq!(entries(folder.path()), 2);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let draft = draft(folder.path(), "new", 3, Existing::Refuse);
        fs::write(folder.path().join("2.png"), "theirs").unwrap();
        let error = draft.commit(3, name).unwrap_err();
        assert!(error.to_string().contains("2.png` exists"), "{error}");
        assert_eq!(seen(folder.path()), [("2.png".into(), "theirs".into())]);
        assert_eq!(entries(folder.path()), 1);
    }

    #[test]
    fn of_two_writers_one_wins_wholly() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..8 {
            let existing = if round == 0 { Existing::Refuse } else { Existing::Replace };
            let done: Vec<bool> = thread::scope(|scope| {
                let write = |word: &'static str, count| {
                    let folder = folder.path();
                    scope.spawn(move || draft(folder, word, count, existing).commit(count, name))
                };
                let writers = [write("long", 40), write("short", 20)];
                writers.map(|writer| writer.join().unwrap().is_ok()).to_vec()
            });
            let now = seen(folder.path());
            assert!(now == clip("long", 40) || now == clip("short", 20), "{now:?}");
            assert_eq!(done.iter().filter(|done| **done).count(), 1 + usize::from(round > 0));
            assert_eq!(entries(folder.path()), now.len());
        }
    }

    #[test]
    fn a_plan_for_other_folders_is_not_carried_out() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "theirs").unwrap();
        let folder = outside.path().join("folder");
        let draft = folder.join(live::fixed_name("planted"));
        fs::create_dir_all(&draft).unwrap();
        for name in ["../precious", "..", "a/../../precious", ""] {
            fs::write(draft.join(LOCK), "").unwrap();
            fs::write(new_file(&draft, 0), "new").unwrap();
            let plan = Plan { old: vec![name.into()], new: vec![], is_replacing: true };
            fs::write(draft.join(PLAN), serde_json::to_vec(&plan).unwrap()).unwrap();
            assert!(Plan::read(&draft).is_none(), "{name}");
            drop(DraftSeries::new("output", &folder, Existing::Refuse).unwrap());
            assert_eq!(fs::read_to_string(outside.path().join("precious")).unwrap(), "theirs");
        }
    }
}
