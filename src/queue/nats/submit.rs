//! New jobs.

use async_nats::jetstream::kv::{CreateErrorKind, Operation, UpdateErrorKind};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Shared;
use super::link::{SHORTLY, away};
use super::state::Stored;
use super::streams::Sent;
use crate::Result;
use crate::files::hex;
use crate::queue::happened::Happened;
use crate::queue::{Accepted, JobId, Record, Status, Submission};

/// A client's name for a submission.
#[derive(Serialize, Deserialize)]
struct Named {
    /// The SHA-256 of what it sent.
    body: String,
    id: JobId,
}

/// What a name of a submission stands for.
enum Claimed {
    /// The job that is being submitted, under this key.
    New(String),
    Same(Box<Record>),
    Mismatch,
}

impl Shared {
    /// Takes a job: its record first, then its message.
    pub(super) async fn submit(&self, submission: Submission) -> Result<Accepted> {
        let Submission { mut record, limit, share, idempotency } = submission;
        let name = match &idempotency {
            Some((name, body)) => match self.claim_name(&record, name, body).await? {
                Claimed::New(key) => Some(key),
                Claimed::Same(record) => return Ok(Accepted::Same(*record)),
                Claimed::Mismatch => return Ok(Accepted::Mismatch),
            },
            None => None,
        };
        match self.mirror.completed(&record.key) {
            Some(done) => record.take_over(done),
            None => {
                let all = self.mirror.count(Status::Queued, None);
                let own = self.mirror.count(Status::Queued, Some(&record.owner));
                if all >= limit || own >= share {
                    self.release_name(name).await;
                    return Ok(Accepted::Full(all));
                }
            }
        }
        let stored = Stored { seq: 0, lease: None, record };
        let revision = self.create(&stored).await?;
        let record = stored.record;
        if record.status == Status::Completed {
            self.tell(&record.id, Happened::Done { record: &record }).await;
            return Ok(Accepted::New(record));
        }
        // If this fails the upkeep sends it later.
        let sent = self.link.again(SHORTLY, || self.streams.send(&self.link, &record, false));
        if matches!(sent.await, Ok(Sent::Full)) {
            let purged = self.streams.state.purge(record.id.as_str());
            purged.await.map_err(away)?;
            self.mirror.apply(revision + 1, &record.id, None);
            self.release_name(name).await;
            return Ok(Accepted::Full(self.mirror.count(Status::Queued, None)));
        }
        let position = self.mirror.position(&record.id).unwrap_or(1);
        self.tell(&record.id, Happened::Queued { position }).await;
        Ok(Accepted::New(record))
    }

    /// Takes a client's name for a submission, unless it stands for another one.
    async fn claim_name(&self, record: &Record, name: &str, body: &str) -> Result<Claimed> {
        let Some(names) = &self.streams.names else {
            return Err(away("this user may not submit jobs"));
        };
        let key = hex(Sha256::new_with_prefix(format!("{}\0{name}", record.owner)));
        let named = Named { body: body.to_owned(), id: record.id.clone() };
        let value = serde_json::to_vec(&named).map_err(away)?;
        loop {
            let there = names.entry(&key).await.map_err(away)?;
            let there = there.filter(|there| there.operation == Operation::Put);
            let Some(there) = there else {
                match names.create(&key, value.clone().into()).await {
                    Ok(_) => return Ok(Claimed::New(key)),
                    Err(error) if error.kind() == CreateErrorKind::AlreadyExists => continue,
                    Err(error) => return Err(away(error)),
                }
            };
            let known: Named = serde_json::from_slice(&there.value).map_err(away)?;
            if known.body != body {
                return Ok(Claimed::Mismatch);
            }
            if let Some((_, stored)) = self.read(&known.id).await? {
                return Ok(Claimed::Same(Box::new(self.mirror.with_progress(stored.record))));
            }
            // Whoever had it did not come to the job, or the job is gone.
            match names.update(&key, value.clone().into(), there.revision).await {
                Ok(_) => return Ok(Claimed::New(key)),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
                Err(error) => return Err(away(error)),
            }
        }
    }

    /// Gives a name back under which nothing was submitted.
    async fn release_name(&self, key: Option<String>) {
        if let (Some(names), Some(key)) = (&self.streams.names, key) {
            let _ = names.purge(key).await;
        }
    }
}
