//! Records, and their changes by compare-and-set.

use std::time::Duration;

use async_nats::jetstream::kv::{Operation, UpdateErrorKind};
use serde::{Deserialize, Serialize};

use super::Shared;
use super::link::away;
use crate::Result;
use crate::queue::happened::Happened;
use crate::queue::{Failure, JobId, MOST_ATTEMPTS, Record, Status};

/// A record, and what only the queue knows of the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    /// The place among all submissions: the revision that made the record; 0 in that revision itself.
    #[serde(default)]
    pub(super) seq: u64,
    /// The name of the claim by which a worker has the job, or had it when it ended.
    #[serde(default)]
    pub(super) lease: Option<String>,
    pub(super) record: Record,
}

impl Stored {
    /// Reads an entry of the bucket.
    pub(super) fn read(bytes: &[u8], revision: u64) -> Option<Self> {
        let mut stored: Self = serde_json::from_slice(bytes).ok()?;
        if stored.seq == 0 {
            stored.seq = revision;
        }
        Some(stored)
    }

    /// Whether the claim of this name still holds.
    pub(super) fn is_leased(&self, lease: &str) -> bool {
        self.record.status == Status::Running && self.lease.as_deref() == Some(lease)
    }

    /// Takes the job from a worker that was lost: the second time it has failed.
    pub(super) fn lose(&mut self) -> Status {
        if self.record.attempt >= MOST_ATTEMPTS {
            self.record.worker = None;
            self.record.end(Status::Failed, Failure::worker_lost());
        } else {
            self.record.put_back();
        }
        self.record.status
    }
}

impl Shared {
    /// The record of a job with its revision.
    pub(super) async fn read(&self, id: &JobId) -> Result<Option<(u64, Stored)>> {
        let entry = self.streams.state.entry(id.as_str()).await.map_err(away)?;
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else {
            return Ok(None);
        };
        let stored = Stored::read(&entry.value, entry.revision)
            .ok_or_else(|| away(format!("{id}: the record is of another program")))?;
        Ok(Some((entry.revision, stored)))
    }

    /// Writes a record that is not there yet. Returns its revision.
    pub(super) async fn create(&self, stored: &Stored) -> Result<u64> {
        let id = &stored.record.id;
        let revision = self.write(id, stored, 0).await?;
        revision.ok_or_else(|| away(format!("{id}: there is such a job already")))
    }

    /// Writes a record over its revision; `None` if it has another one.
    async fn write(&self, id: &JobId, stored: &Stored, over: u64) -> Result<Option<u64>> {
        let bytes = serde_json::to_vec(stored).map_err(away)?;
        match self.streams.state.update(id.as_str(), bytes.into(), over).await {
            Ok(revision) => {
                let mut stored = stored.clone();
                if stored.seq == 0 {
                    stored.seq = revision;
                }
                self.mirror.apply(revision, id, Some(stored));
                Ok(Some(revision))
            }
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(away(error)),
        }
    }

    /// Changes a record from the state in which it is: `change` sees every state that is met until one is written, and
    /// answers `None` to leave it. Returns what it answered for the state that was written, with the record and its
    /// revision; `None` also if there is no record.
    ///
    /// Repeated while the server is away, so `change` may see its own work.
    pub(super) async fn change<T>(
        &self,
        id: &JobId,
        at_most: Duration,
        mut change: impl FnMut(&mut Stored) -> Option<T>,
    ) -> Result<Option<(T, u64, Stored)>> {
        let started = std::time::Instant::now();
        loop {
            let left = at_most.saturating_sub(started.elapsed());
            let Some((over, mut stored)) = self.link.again(left, || self.read(id)).await? else {
                return Ok(None);
            };
            let Some(answer) = change(&mut stored) else { return Ok(None) };
            match self.write(id, &stored, over).await {
                Ok(Some(revision)) => return Ok(Some((answer, revision, stored))),
                Ok(None) => {}
                Err(error) if started.elapsed() >= at_most => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Tells what happened to a job. Where the server is away nobody hears it: the record is what counts.
    pub(super) async fn tell(&self, id: &JobId, happened: Happened<'_>) {
        let _ = self.tell_json(id, happened.json(id)).await;
    }

    /// Tells an event. Returns its number.
    pub(super) async fn tell_json(&self, id: &JobId, json: String) -> Result<u64> {
        let subject = super::streams::events_of(id);
        let sent = self.link.context.publish(subject, json.into()).await.map_err(away)?;
        let revision = sent.await.map_err(away)?.sequence;
        self.mirror.told(revision);
        Ok(revision)
    }

    /// Tells what [`Stored::lose`] made of a job.
    pub(super) async fn tell_lost(&self, record: &Record) {
        match &record.error {
            Some(failure) if record.status == Status::Failed => {
                self.tell(&record.id, Happened::Error { failure }).await;
            }
            // It goes before all others.
            _ => self.tell(&record.id, Happened::Queued { position: 1 }).await,
        }
    }
}
