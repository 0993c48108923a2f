//! How long clips are kept.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Filter, Queue, Record, Status, Store, unix_time};
use crate::Result;

/// Age at which a clip that no record has is nobody's.
const ORPHAN: Duration = Duration::from_secs(3600);

/// How long clips are kept, and how many bytes of them.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The age at which a clip goes; records without clips go at twice that age.
    pub keep: Duration,
    /// Bytes of all clips; the oldest go first.
    pub keep_bytes: u64,
}

impl Retention {
    /// When the clip of a record will go, in seconds since 1970.
    pub fn expires_at(&self, record: &Record) -> Option<f64> {
        let is_completed = record.status == Status::Completed;
        record.finished_at.filter(|_| is_completed).map(|at| at + self.keep.as_secs_f64())
    }

    /// Removes what is kept no longer, and files that belong to no job.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn sweep(&self, queue: &dyn Queue, clips: &dyn Store, uploads: &dyn Store) -> Result<()> {
        let completed = Filter { status: Some(Status::Completed), ..Filter::default() };
        let (mut bytes, mut counted) = (0_u64, BTreeSet::new());
        for record in queue.list(&completed)? {
            let Some(output) = &record.output else { continue };
            if counted.insert(output.sha256.clone()) {
                bytes = bytes.saturating_add(output.bytes);
            }
            let is_old = self.expires_at(&record).is_some_and(|at| at <= unix_time());
            if is_old || bytes > self.keep_bytes {
                queue.expire(&record.id)?;
                if !queue.is_used(&output.sha256)? {
                    clips.remove(&output.sha256)?;
                }
            }
        }
        let gone = unix_time() - 2.0 * self.keep.as_secs_f64();
        for status in [Status::Failed, Status::Cancelled, Status::Expired] {
            let ended = Filter { status: Some(status), ..Filter::default() };
            for record in queue.list(&ended)? {
                if record.finished_at.is_some_and(|at| at <= gone) {
                    queue.remove(&record.id)?;
                }
            }
        }
        for (store, age) in [(clips, ORPHAN), (uploads, self.keep.max(ORPHAN))] {
            for sha256 in store.older(age)? {
                if !queue.is_used(&sha256)? {
                    store.remove(&sha256)?;
                }
            }
        }
        Ok(())
    }
}
