//! The standard hub cache on disk: `models--owner--name/{refs,snapshots,blobs}`.
//!
//! The layout is that of Python's huggingface_hub and of the hf-hub crate, so downloads are shared with both. The
//! additional file `animatelcm.json` beside these three folders records the hash of each file at download.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::Repo;
use serde::{Deserialize, Serialize};

use super::manifest::{Digest, File, Model, Source, is_sha256};
use crate::{Error, Result, files};

/// File of the hash records, beside a repository's folders.
const RECORDS: &str = "animatelcm.json";

/// Temporary file of the hash records.
const RECORDS_DRAFT: &str = "animatelcm.json.part";

/// Temporary file of a ref.
const REF_DRAFT: &str = "animatelcm.ref.part";

/// Lock file for both temporary files.
const RECORDS_LOCK: &str = "animatelcm.lock";

/// An exclusive lock between processes, released when it is dropped. The file remains.
#[derive(Debug)]
pub(super) struct Lock {
    _file: fs::File,
}

impl Lock {
    /// Tries to take a lock; `None` if another process holds it.
    pub(super) fn take(path: &Path) -> Result<Option<Self>> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::file(folder))?;
        }
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        let file = options.open(path).map_err(Error::file(path))?;
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            // File systems without locks are used unlocked.
            Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(Some(Self { _file: file })),
        }
    }

    /// Waits for a lock that is only held briefly.
    fn wait(path: &Path) -> Result<Self> {
        const PAUSE: Duration = Duration::from_millis(20);
        for _ in 0..250 {
            if let Some(lock) = Self::take(path)? {
                return Ok(lock);
            }
            std::thread::sleep(PAUSE);
        }
        let kind = std::io::Error::from(std::io::ErrorKind::WouldBlock);
        Err(Error::file(path)(kind).with_hint("another program holds this lock"))
    }
}

/// Size and hash of a file at download.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) size: u64,
    pub(super) sha256: String,
}

/// Records, by `commit/path`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Records {
    #[serde(default)]
    files: BTreeMap<String, Record>,
}

/// Cache folder of one repository.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(super) fn new(cache: &Path, repo: &str) -> Self {
        Self { root: cache.join(Repo::model(repo.to_owned()).folder_name()) }
    }

    /// Removes temporary files left by a killed process.
    pub(super) fn sweep(&self) {
        for draft in [RECORDS_DRAFT, REF_DRAFT].map(|name| self.root.join(name)) {
            if draft.exists()
                && let Ok(Some(_held)) = Lock::take(&self.root.join(RECORDS_LOCK))
            {
                // If it cannot be removed, the next write replaces it.
                let _ = fs::remove_file(&draft);
            }
        }
    }

    /// Adds a blob to a snapshot: as a relative link, or by moving it where links are not possible.
    pub(super) fn point(&self, commit: &str, path: &str, blob: &Path) -> Result<()> {
        let pointer = self.pointer(commit, path);
        if let Some(folder) = pointer.parent() {
            fs::create_dir_all(folder).map_err(Error::file(folder))?;
        }
        // From `snapshots/COMMIT` and the file's folders in it.
        let mut target: PathBuf = path.split('/').map(|_| "..").collect();
        target.push("..");
        target.push(blob.strip_prefix(&self.root).unwrap_or(blob));
        if fs::read_link(&pointer).is_ok_and(|found| found == target) {
            return Ok(());
        }
        // A dangling link would block the new one, and a link to another blob would remain.
        if fs::symlink_metadata(&pointer).is_ok() {
            fs::remove_file(&pointer).map_err(Error::file(&pointer))?;
        }
        link(&target, &pointer, blob).map_err(Error::file(&pointer))
    }

    /// Writes the ref of a source's revision.
    pub(super) fn name(&self, source: Source<'_>, commit: &str) -> Result<()> {
        let path = self.root.join("refs").join(source.revision);
        if fs::read(&path).is_ok_and(|found| found == commit.as_bytes()) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::file(folder))?;
        }
        let _lock = Lock::wait(&self.root.join(RECORDS_LOCK))?;
        self.replace(&path, REF_DRAFT, commit.as_bytes())
    }

    /// Replaces a file atomically; requires the lock.
    fn replace(&self, path: &Path, draft: &str, contents: &[u8]) -> Result<()> {
        let draft = self.root.join(draft);
        let write = || {
            let mut file = fs::File::create(&draft)?;
            file.write_all(contents)?;
            file.sync_all()?;
            fs::rename(&draft, path)
        };
        write().map_err(Error::file(path))
    }

    /// Commits that may contain a source's files in the cache, in order of preference.
    pub(super) fn commits(&self, source: Source<'_>) -> Vec<String> {
        let mut commits = Vec::new();
        if source.is_pinned() {
            commits.push(source.revision.to_owned());
        }
        // The same files may have been downloaded by branch name.
        for branch in [source.revision, "main"] {
            if let Ok(commit) = files::read_text(&self.root.join("refs").join(branch)) {
                let commit = commit.trim().to_owned();
                let plain = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_hexdigit());
                if plain && !commits.contains(&commit) {
                    commits.push(commit);
                }
            }
        }
        commits
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(super) fn pointer(&self, commit: &str, path: &str) -> PathBuf {
        self.snapshot(commit).join(path)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The file of a snapshot, if it exists with the right size and its blob has the right name.
    pub(super) fn find(&self, commit: &str, file: &File) -> Option<PathBuf> {
        let pointer = self.pointer(commit, &file.path);
        let metadata = fs::metadata(&pointer).ok()?;
        let size_fits = file.size.is_none_or(|size| size == metadata.len());
        let hash_fits = match (&file.sha256, blob_hash(&pointer)) {
            (Digest::Known(known), Some(hash)) => *known == hash,
            _ => true,
        };
        (metadata.is_file() && size_fits && hash_fits).then_some(pointer)
    }

    pub(super) fn record(&self, commit: &str, path: &str) -> Option<Record> {
        self.records().files.remove(&format!("{commit}/{path}"))
    }

    pub(super) fn remember(&self, commit: &str, path: &str, record: Record) -> Result<()> {
        let _lock = Lock::wait(&self.root.join(RECORDS_LOCK))?;
        let mut records = self.records();
        records.files.insert(format!("{commit}/{path}"), record);
        self.write_records(&records)
    }

    /// Reads the records; an unreadable file counts as empty, which only weakens the next check.
    fn records(&self) -> Records {
        files::read(&self.root.join(RECORDS), files::MOST_TEXT)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Writes the records; requires the lock.
    fn write_records(&self, records: &Records) -> Result<()> {
        let path = self.root.join(RECORDS);
        let mut json =
            serde_json::to_vec_pretty(records).map_err(|e| Error::file(&path)(e.into()))?;
        json.push(b'\n');
        self.replace(&path, RECORDS_DRAFT, &json)
    }

    /// Removes a file from one snapshot, and its blob unless another snapshot refers to it. Returns the file's size
    /// in bytes.
    pub(super) fn discard(&self, commit: &str, path: &str) -> Result<u64> {
        let snapshot = self.snapshot(commit);
        let pointer = snapshot.join(path);
        if fs::symlink_metadata(&pointer).is_err() {
            return Ok(0);
        }
        let bytes = fs::metadata(&pointer).map_or(0, |m| m.len());
        let blob = fs::canonicalize(&pointer).ok();
        fs::remove_file(&pointer).map_err(Error::file(&pointer))?;
        // Removes empty parent folders; removing a non-empty one fails, which ends the loop.
        let mut parent = pointer.parent();
        while let Some(folder) = parent {
            if !folder.starts_with(&snapshot) || fs::remove_dir(folder).is_err() {
                break;
            }
            parent = folder.parent();
        }
        let blobs = fs::canonicalize(self.root.join("blobs")).ok();
        if let (Some(blob), Some(blobs)) = (blob, blobs) {
            let ours = blob.starts_with(blobs);
            if ours && blob.exists() && !self.pointers().iter().any(|p| points_to(p, &blob)) {
                fs::remove_file(&blob).map_err(Error::file(&blob))?;
                let _ = fs::remove_file(blob.with_extension("lock"));
            }
        }
        let _lock = Lock::wait(&self.root.join(RECORDS_LOCK))?;
        let mut records = self.records();
        if records.files.remove(&format!("{commit}/{path}")).is_some() {
            self.write_records(&records)?;
        }
        Ok(bytes)
    }

    /// The folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A model's files in all snapshots, and their partial downloads.
    pub(super) fn files_of(&self, model: &Model) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for commit in self.all_commits() {
            let pointers = model.files.iter().map(|file| self.pointer(&commit, &file.path));
            found.extend(pointers.filter(|pointer| fs::symlink_metadata(pointer).is_ok()));
        }
        for file in &model.files {
            if let Digest::Known(hash) = &file.sha256 {
                let partial = self.blob(hash).with_extension("part");
                found.extend(Some(partial).filter(|partial| partial.exists()));
            }
        }
        found
    }

    /// Removes a model's files from all snapshots, and the whole folder if nothing is left in it. Returns the number
    /// of files and bytes removed.
    pub(super) fn remove(&self, model: &Model) -> Result<(usize, u64)> {
        let (mut count, mut bytes) = (0, 0);
        for commit in self.all_commits() {
            for file in &model.files {
                if fs::symlink_metadata(self.pointer(&commit, &file.path)).is_ok() {
                    bytes += self.discard(&commit, &file.path)?;
                    count += 1;
                }
            }
        }
        for file in &model.files {
            // Partial downloads of this file. Those of other files are kept.
            if let Digest::Known(hash) = &file.sha256 {
                let partial = self.blob(hash).with_extension("part");
                if let Ok(metadata) = fs::metadata(&partial) {
                    fs::remove_file(&partial).map_err(Error::file(&partial))?;
                    let _ = fs::remove_file(partial.with_extension("lock"));
                    (count, bytes) = (count + 1, bytes + metadata.len());
                }
            }
        }
        if count > 0 && self.pointers().is_empty() {
            fs::remove_dir_all(&self.root).map_err(Error::file(&self.root))?;
        }
        Ok((count, bytes))
    }

    fn all_commits(&self) -> Vec<String> {
        let Ok(folders) = fs::read_dir(self.root.join("snapshots")) else { return Vec::new() };
        folders.flatten().filter_map(|f| f.file_name().into_string().ok()).collect()
    }

    /// All files and links in all snapshots.
    fn pointers(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.root.join("snapshots")];
        while let Some(folder) = folders.pop() {
            for item in fs::read_dir(folder).into_iter().flatten().flatten() {
                match item.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(item.path()),
                    _ => found.push(item.path()),
                }
            }
        }
        found
    }
}

#[cfg(unix)]
fn link(target: &Path, pointer: &Path, _: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

#[cfg(not(unix))]
fn link(target: &Path, pointer: &Path, blob: &Path) -> std::io::Result<()> {
    #[cfg(windows)]
    if std::os::windows::fs::symlink_file(target, pointer).is_ok() {
        return Ok(());
    }
    let _ = target;
    fs::rename(blob, pointer)
}

fn points_to(pointer: &Path, blob: &Path) -> bool {
    fs::canonicalize(pointer).is_ok_and(|target| target == blob)
}

/// The hash in the name of the blob that a snapshot file links to: large files are stored by their sha256.
pub(super) fn blob_hash(pointer: &Path) -> Option<String> {
    let target = fs::read_link(pointer).ok()?;
    let name = target.file_name()?.to_str()?;
    is_sha256(name).then(|| name.to_owned())
}
