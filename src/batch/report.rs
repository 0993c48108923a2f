//! Reports: what became of each item, a line of JSON each, in a file for each shard.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::shard::Shard;
use crate::files::unwritable;
use crate::{Error, Result};

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was made.
    Done,
    /// It was there.
    Skipped,
    /// It could not be made.
    Failed,
    /// The run was interrupted meanwhile.
    Cancelled,
}

impl Status {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// An error in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The exit code of its kind.
    pub code: u8,
    /// The message.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let hint = error.hint().map(std::borrow::Cow::into_owned);
        Self { code: error.kind().exit_code(), message: error.to_string(), hint }
    }
}

/// A line of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The item's number in the manifest, from 1.
    pub number: usize,
    /// Its own name.
    pub name: Option<String>,
    /// Its key.
    pub key: String,
    /// What became of it.
    pub status: Status,
    /// The clip's file.
    pub path: String,
    /// The seed.
    pub seed: u64,
    /// The file's SHA-256, where it was computed.
    pub sha256: Option<String>,
    /// Seconds that it took.
    pub seconds: f64,
    /// `cpu`, `cuda` or `metal`, once that is known.
    pub device: Option<String>,
    /// What went wrong.
    pub error: Option<Failure>,
}

/// The report of a shard, which is written to.
#[derive(Debug)]
pub(super) struct Report {
    file: File,
    path: PathBuf,
}

impl Report {
    /// Opens the report of a shard in an existing folder; what is in it stays.
    ///
    /// # Errors
    ///
    /// When the file cannot be written, or another process writes it.
    pub(super) fn open(folder: &Path, shard: Shard) -> Result<Self> {
        let path = folder.join(shard.report());
        let mut options = File::options();
        let options = options.read(true).append(true).create(true);
        let mut file = options.open(&path).map_err(|error| unwritable("output", folder, &error))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let reason = format!("another run of shard {shard} writes {}", path.display());
            return Err(Error::request("output", reason)
                .with_hint("wait for its end, or give each process a shard of its own"));
        }
        // A run that was killed may have left half a line.
        let mut last = [b'\n'];
        if file.seek(SeekFrom::End(-1)).is_ok() {
            file.read_exact(&mut last).map_err(Error::file(&path))?;
        }
        if last != [b'\n'] {
            file.write_all(b"\n").map_err(Error::file(&path))?;
        }
        Ok(Self { file, path })
    }

    /// Adds a line, which is on the disk afterwards.
    pub(super) fn add(&mut self, record: &Record) -> Result<()> {
        let line = serde_json::to_string(record)
            .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })?;
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(Error::file(&self.path))?;
        // Not every file system can.
        let _ = self.file.sync_data();
        Ok(())
    }
}

/// SHA-256 of the clips that the reports of a folder list, by the file's name and the item's key. Lines that are none
/// are passed over.
pub(super) fn hashes(folder: &Path) -> HashMap<(String, String), String> {
    let mut found = HashMap::new();
    let is_report = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("report.") && name.ends_with(".jsonl") && path.is_file()
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(is_report) {
        let Ok(file) = File::open(path) else { continue };
        for line in BufReader::new(file).lines().map_while(std::io::Result::ok) {
            let Ok(record) = serde_json::from_str::<Record>(&line) else { continue };
            let name = Path::new(&record.path).file_name();
            if let (Some(sha256), Some(name)) = (record.sha256, name) {
                found.insert((name.to_string_lossy().into_owned(), record.key), sha256);
            }
        }
    }
    found
}
