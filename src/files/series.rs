//! Series of files that get their names together: all of them, or none.
//!
//! They are written to a draft folder. On commit, a plan of all renames is first written there; from then on the
//! series counts as complete. The old files move into the draft folder, then the new ones out of it, so that old and
//! new files are never visible together. A process that finds the plan of a killed process completes it. Only one
//! process at a time renames in a folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::draft::{self, Name, is_still, lock_stale, plain, rename_to_free};
use super::place::{Existing, exists};
use crate::{Error, Result};

const LOCK: &str = "lock";
const PLAN: &str = "plan";

/// Maximum wait for another process that renames, which takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

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
        for _ in 0..draft::TRIES {
            let mut live = draft::live();
            let path = draft::names().tempdir_in(folder).map_err(plain)?.keep();
            let name = Name::new(path, &mut live);
            drop(live);
            let place = name.path().join(LOCK);
            let lock = match File::create_new(&place) {
                Ok(lock) => lock,
                // Another process took the folder for an abandoned draft before it was locked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(plain(error)),
            };
            if draft::is_locked(&lock) && is_still(&lock, &place) {
                draft::clean(folder, &lock, false);
                let folder = folder.to_path_buf();
                return Ok(Self { field, folder, name, lock, existing });
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Creates a file of the series.
    pub(crate) fn file(&self, index: usize) -> io::Result<File> {
        let _live = draft::live();
        File::create_new(new_file(self.name.path(), index))
    }

    /// Renames the files from 0 to `count` to their final names. Files of a longer, older series are removed together
    /// with the replaced ones.
    pub(crate) fn commit(self, count: usize, name: impl Fn(usize) -> String) -> Result<()> {
        let lock = RenameLock::take(&self.folder).map_err(Error::file(&self.folder))?;
        draft::clean(&self.folder, &self.lock, true);
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
        let mut live = draft::live();
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

/// Path of a new file in the draft.
fn new_file(draft: &Path, index: usize) -> PathBuf {
    draft.join(format!("new-{index}"))
}

/// Path of an old file in the draft.
fn old_file(draft: &Path, index: usize) -> PathBuf {
    draft.join(format!("old-{index}"))
}

/// Plan of all renames.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    /// Names of the old files to move away.
    old: Vec<String>,
    /// Names of the new files.
    new: Vec<String>,
    /// Whether a file that appears under one of the names meanwhile may be replaced.
    is_replacing: bool,
}

impl Plan {
    /// Reads the plan of a draft; `None` if there is no valid one.
    fn read(draft: &Path) -> Option<Self> {
        let bytes = super::read(&draft.join(PLAN), super::MOST_TEXT).ok()?;
        let plan: Self = serde_json::from_slice(&bytes).ok()?;
        // Nothing outside the folder may be touched.
        let is_plain = |name: &String| Path::new(name).file_name() == Some(name.as_ref());
        plan.old.iter().chain(&plan.new).all(is_plain).then_some(plan)
    }
}

/// Failure of a plan.
struct Unsettled {
    error: Error,
    /// Whether files that could not be restored remain in the draft.
    is_kept: bool,
}

/// Completes a plan from any intermediate state, or undoes it if that fails.
fn settle(field: &'static str, folder: &Path, draft: &Path, plan: &Plan) -> Result<(), Unsettled> {
    finish(folder, draft, plan).map_err(|(name, error)| {
        let path = folder.join(name);
        let error = match error.kind() {
            io::ErrorKind::AlreadyExists => exists(field, &path),
            _ => Error::file(&path)(error),
        };
        match undo(folder, draft, plan) {
            Ok(()) => Unsettled { error, is_kept: false },
            Err(_) => {
                let hint = format!("the files before are in `{}`", draft.display());
                Unsettled { error: error.with_hint(hint), is_kept: true }
            }
        }
    })
}

/// Moves the old files into the draft and the new ones out of it. An error includes the name of its file.
fn finish<'a>(folder: &Path, draft: &Path, plan: &'a Plan) -> Result<(), (&'a str, io::Error)> {
    // The first new file moves when all old ones are gone. Until then the names belong to the old files.
    if is_there(&new_file(draft, 0)) {
        for (index, name) in plan.old.iter().enumerate() {
            let (from, to) = (folder.join(name), old_file(draft, index));
            if is_there(&from) && !is_there(&to) {
                rename(&from, &to).map_err(|error| (name.as_str(), error))?;
            }
        }
    }
    for (index, name) in plan.new.iter().enumerate() {
        let (from, to) = (new_file(draft, index), folder.join(name));
        if is_there(&from) {
            boundary();
            let renamed =
                if plan.is_replacing { fs::rename(&from, &to) } else { rename_to_free(&from, &to) };
            renamed.map_err(|error| (name.as_str(), error))?;
        } else if !is_there(&to) {
            return Err((name.as_str(), io::ErrorKind::NotFound.into()));
        }
    }
    sync(folder);
    Ok(())
}

/// Restores the state before the plan.
fn undo(folder: &Path, draft: &Path, plan: &Plan) -> io::Result<()> {
    // Backwards, so that the first file comes back last: `finish` can then resume if this is interrupted.
    for (index, name) in plan.new.iter().enumerate().rev() {
        let (from, to) = (folder.join(name), new_file(draft, index));
        if is_there(&from) && !is_there(&to) {
            rename(&from, &to)?;
        }
    }
    for (index, name) in plan.old.iter().enumerate() {
        let (from, to) = (old_file(draft, index), folder.join(name));
        if is_there(&to) && is_there(&from) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if is_there(&from) {
            rename(&from, &to)?;
        }
    }
    Ok(())
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    boundary();
    fs::rename(from, to)
}

/// Point at which tests kill the process.
fn boundary() {
    #[cfg(test)]
    tests::boundary();
}

/// Syncs the names in a folder to disk, if the system supports it.
fn sync(folder: &Path) {
    #[cfg(unix)]
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    #[cfg(not(unix))]
    let _ = folder;
}

/// Removes a draft. The plan is removed first and the lock last, so that the draft counts as abandoned wherever this
/// is interrupted.
pub(super) fn remove(draft: &Path) -> io::Result<()> {
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

/// Removes a draft whose writer is gone; if that was renaming, its plan is completed first.
pub(super) fn clean(folder: &Path, draft: &Path, is_renaming: bool) {
    let (lock, plan) = (draft.join(LOCK), draft.join(PLAN));
    if !is_there(&lock) {
        // Another process is creating or removing it, or was killed while doing so; non-empty folders stay.
        let _ = fs::remove_dir(draft);
        return;
    }
    let is_planned = is_there(&plan);
    // In this order, so that a process that renames can wait for the other lock.
    let renaming = if is_planned && !is_renaming { RenameLock::take(folder).ok() } else { None };
    let may_rename = is_renaming || renaming.is_some();
    let _held = if is_planned && may_rename {
        // No writer is renaming now, so its lock can only be held briefly.
        let Ok(file) = OpenOptions::new().write(true).open(&lock) else { return };
        if file.lock().is_err() || !is_still(&file, &lock) {
            return;
        }
        file
    } else {
        let Some(file) = lock_stale(&lock) else { return };
        file
    };
    if is_there(&plan) {
        let Some(plan) = may_rename.then(|| Plan::read(draft)).flatten() else { return };
        if settle("output", folder, draft, &plan).is_err_and(|unsettled| unsettled.is_kept) {
            return;
        }
    }
    let _ = remove(draft);
}

/// Lock for renaming series in a folder, held by one process at a time.
struct RenameLock {
    // In this order: the name must be removed while the lock is held.
    _name: Name,
    _file: File,
}

impl RenameLock {
    /// Waits for other processes and takes the lock.
    fn take(folder: &Path) -> io::Result<Self> {
        let path = folder.join(draft::fixed_name("rename"));
        let started = Instant::now();
        loop {
            let mut live = draft::live();
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            // On file systems without locks, no process waits.
            let is_locked = draft::is_locked(&file);
            if is_locked && is_still(&file, &path) {
                return Ok(Self { _name: Name::new(path, &mut live), _file: file });
            }
            drop(live);
            if started.elapsed() > PATIENCE {
                let reason = "another process is giving a series its names";
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

    /// Number of boundaries left before the process aborts.
    static LEFT: AtomicUsize = AtomicUsize::new(usize::MAX);
    /// Environment variable of a test that runs itself as a child process: where it works and when it aborts.
    const VICTIM: &str = "ANIMATELCM_TEST_VICTIM";

    /// Number of boundaries reached slowly; negative if none is slow.
    static SLOW: AtomicIsize = AtomicIsize::new(-1);

    pub(super) fn boundary() {
        if SLOW.load(Ordering::SeqCst) >= 0 {
            SLOW.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
        }
        if LEFT.load(Ordering::SeqCst) != usize::MAX && LEFT.fetch_sub(1, Ordering::SeqCst) == 0 {
            // As abrupt as SIGKILL: no destructor runs.
            std::process::abort();
        }
    }

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
            draft::remove_drafts();
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
        let draft = folder.join(draft::fixed_name("planted"));
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
