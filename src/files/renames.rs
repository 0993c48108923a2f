//! Renames of a series: planned, carried out, undone, and completed for a killed process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::live::{self, LOCK, Name, PLAN, boundary, is_still, lock_stale, remove, rename_to_free};
use super::place::exists;
use crate::{Error, Result};

/// Maximum wait for another process that renames, which takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Path of a new file in the draft.
pub(super) fn new_file(draft: &Path, index: usize) -> PathBuf {
    draft.join(format!("new-{index}"))
}

/// Path of an old file in the draft.
fn old_file(draft: &Path, index: usize) -> PathBuf {
    draft.join(format!("old-{index}"))
}

/// Plan of all renames.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Names of the old files to move away.
    pub(super) old: Vec<String>,
    /// Names of the new files.
    pub(super) new: Vec<String>,
    /// Whether a file that appears under one of the names meanwhile may be replaced.
    pub(super) is_replacing: bool,
}

impl Plan {
    /// Reads the plan of a draft; `None` if there is no valid one.
    pub(super) fn read(draft: &Path) -> Option<Self> {
        let bytes = super::read(&draft.join(PLAN), super::MOST_TEXT).ok()?;
        let plan: Self = serde_json::from_slice(&bytes).ok()?;
        // Nothing outside the folder may be touched.
        let is_plain = |name: &String| Path::new(name).file_name() == Some(name.as_ref());
        plan.old.iter().chain(&plan.new).all(is_plain).then_some(plan)
    }
}

/// Failure of a plan.
pub(super) struct Unsettled {
    pub(super) error: Error,
    /// Whether files that could not be restored remain in the draft.
    pub(super) is_kept: bool,
}

/// Completes a plan from any intermediate state, or undoes it if that fails.
pub(super) fn settle(
    field: &'static str,
    folder: &Path,
    draft: &Path,
    plan: &Plan,
) -> Result<(), Unsettled> {
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

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    boundary();
    fs::rename(from, to)
}

/// Syncs the names in a folder to disk, if the system supports it.
pub(super) fn sync(folder: &Path) {
    #[cfg(unix)]
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    #[cfg(not(unix))]
    let _ = folder;
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
pub(super) struct RenameLock {
    // In this order: the name must be removed while the lock is held.
    _name: Name,
    _file: File,
}

impl RenameLock {
    /// Waits for other processes and takes the lock.
    pub(super) fn take(folder: &Path) -> io::Result<Self> {
        let path = folder.join(live::fixed_name("rename"));
        let started = Instant::now();
        loop {
            let mut live = live::live();
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            // On file systems without locks, no process waits.
            let is_locked = live::is_locked(&file);
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
