//! Jobs that wait, the workers that do them, and the store in which clips and uploads lie.
//!
//! Three traits, blocking and object-safe: a [`Queue`] knows the jobs, a [`Lease`] is a job in one worker's hands, a
//! [`Store`] has files by their SHA-256. [`SqliteQueue`] and [`DirStore`] keep both on this machine; with the feature
//! `nats`, `NatsQueue` and `NatsStore` keep them on a NATS server, for many. A job is done at least once and ends once:
//! its record changes only at transitions, and only from a state that has not ended.
//!
//! ```text
//! submit > queued > claim > running > complete > completed > expired > gone
//!             ^               |-- fail ------> failed
//!             '- lease lost --'-- cancel ----> cancelled
//! ```

mod files;
mod happened;
mod key;
#[cfg(feature = "nats")]
mod nats;
mod record;
mod retention;
mod sqlite;
mod store;
mod worker;

use std::fmt::Debug;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

pub use files::{Backing, Places, hidden};
pub use key::{Key, WeightHashes, key};
#[cfg(feature = "nats")]
pub use nats::{NatsQueue, NatsSettings, NatsStore};
pub(crate) use record::random;
pub use record::{Event, Failure, JobId, Output, Priority, Record, Status, unix_time};
pub use retention::Retention;
pub use sqlite::SqliteQueue;
pub use store::DirStore;
pub use worker::{Shop, Worker};

use serde::{Deserialize, Serialize};

use crate::Result;

/// Attempts after which a job that its workers did not survive is given up.
pub const MOST_ATTEMPTS: u32 = 2;

/// Where jobs wait.
///
/// Blocking: workers are threads.
pub trait Queue: Debug + Send + Sync {
    /// Takes a job, unless it is there already or there is no place.
    ///
    /// A job whose key a completed one has is completed at once.
    ///
    /// # Errors
    ///
    /// Those of the disk, as for all others.
    fn submit(&self, submission: Submission) -> Result<Accepted>;

    /// The record of a job.
    fn get(&self, id: &JobId) -> Result<Option<Record>>;

    /// Records in the order of their submission, or the reverse.
    fn list(&self, filter: &Filter) -> Result<Vec<Record>>;

    /// The place in the queue, from 1; `None` unless the job waits.
    fn position(&self, id: &JobId) -> Result<Option<usize>>;

    /// Number of jobs in a state.
    fn count(&self, status: Status) -> Result<usize>;

    /// Cancels a job that has not ended. Returns the state after it.
    fn cancel(&self, id: &JobId) -> Result<Option<Status>>;

    /// Forgets a job that has ended. Returns whether it did.
    fn remove(&self, id: &JobId) -> Result<bool>;

    /// Marks a completed job as one whose clip is no longer kept. Returns whether it was completed.
    fn expire(&self, id: &JobId) -> Result<bool>;

    /// Whether a completed job has this clip, or one that has not ended names this upload.
    fn is_used(&self, sha256: &str) -> Result<bool>;

    /// The next job of one of the classes, of any if there are none; waits so long for one.
    fn claim(
        &self,
        worker: &str,
        classes: &[String],
        wait: Duration,
    ) -> Result<Option<Box<dyn Lease>>>;

    /// Events after a revision, of one job or of all, the oldest first; at most [`MOST_EVENTS`].
    fn events(&self, after: u64, job: Option<&JobId>) -> Result<Vec<Event>>;

    /// The newest revision, as soon as it is not `after`, or after so long.
    ///
    /// The one call that may be made where nothing may block, if `at_most` is zero.
    fn wait(&self, after: u64, at_most: Duration) -> u64;

    /// Tells other processes that a worker is there; for half a minute.
    fn announce(&self, worker: &Present) -> Result<()> {
        let _ = worker;
        Ok(())
    }

    /// Workers that have told that they are there; a queue of one process has none.
    fn workers(&self) -> Result<Vec<Present>> {
        Ok(vec![])
    }
}

/// A worker of any process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Present {
    /// Its name in records.
    pub id: String,
    /// Its device.
    pub device: String,
    /// The version of its program.
    pub version: String,
}

/// Most events that [`Queue::events`] answers at once.
pub const MOST_EVENTS: usize = 256;

/// A job in one worker's hands. Dropping it without an end gives the job back, which counts as a lost attempt.
pub trait Lease: Send {
    /// The record at the time of the claim.
    fn record(&self) -> &Record;

    /// Keeps the lease, perhaps with an event (the JSON of an object) and the progress from 0 to 1.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    fn beat(&mut self, event: Option<String>, progress: f32) -> Result<Go>;

    /// Ends the job with a clip that is in the store. Returns `false` if it had ended before.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    fn complete(self: Box<Self>, output: Output) -> Result<bool>;

    /// Ends the job without a clip.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    fn fail(self: Box<Self>, failure: Failure) -> Result<()>;

    /// Puts the job back to its place; the attempt does not count.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    fn give_back(self: Box<Self>) -> Result<()>;

    /// Leaves the job to other workers, since this one has not what it needs; the attempt does not count.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    fn pass_on(self: Box<Self>, why: &str) -> Result<()>;
}

/// What a worker that beats is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// Go on.
    On,
    /// The job is cancelled.
    Cancelled,
    /// The lease is over: another worker has the job, or it has ended.
    Lost,
}

/// Files by their SHA-256.
pub trait Store: Debug + Send + Sync {
    /// Keeps what is read, at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// Those of the reader and of the disk, and [`crate::Error::Request`] for more bytes than `limit`.
    fn put(&self, bytes: &mut dyn Read, limit: u64) -> Result<Stored>;

    /// The path of a file; `None` if there is none of that hash.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    fn open(&self, sha256: &str) -> Result<Option<PathBuf>>;

    /// Forgets a file, if it is there.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    fn remove(&self, sha256: &str) -> Result<()>;

    /// The hashes of files that are at least so old.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    fn older(&self, age: Duration) -> Result<Vec<String>>;

    /// Removes copies of files that were not used for long, where this is not the place of the files themselves.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    fn tidy(&self) -> Result<()> {
        Ok(())
    }
}

/// A file in a [`Store`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its SHA-256, lowercase hexadecimal.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}

/// A job that is to be taken.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The record of the new job.
    pub record: Record,
    /// Most jobs that may wait.
    pub limit: usize,
    /// Most jobs of one owner that may wait.
    pub share: usize,
    /// The client's name for this submission, and the SHA-256 of what it sent.
    pub idempotency: Option<(String, String)>,
}

/// What became of a submission.
#[derive(Clone, Debug, PartialEq)]
pub enum Accepted {
    /// A new job, perhaps completed already.
    New(Record),
    /// The job of an earlier submission of the same name.
    Same(Record),
    /// The name belongs to another submission.
    Mismatch,
    /// There is no place; so many wait.
    Full(usize),
}

/// Which records to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Those that follow this one.
    pub after: Option<JobId>,
    /// At most so many; 0 for all.
    pub limit: usize,
    /// The oldest first; else the newest.
    pub is_ascending: bool,
    /// Those in this state only.
    pub status: Option<Status>,
}
