//! A job in one worker's hands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{AckKind, Message};
use serde_json::json;

use super::Shared;
use super::link::SHORTLY;
use crate::queue::happened::Happened;
use crate::queue::{Failure, Go, Lease, MOST_ATTEMPTS, Output, Record, Status};
use crate::{ErrorKind, Result};

/// How long a beat waits for the server; a job goes on without its answer.
const BEAT: Duration = Duration::from_secs(2);

/// How long a job is left to others that its worker could not make.
const OTHERS: Duration = Duration::from_secs(2);

pub(super) struct NatsLease {
    shared: Arc<Shared>,
    record: Record,
    /// The claim's name in the record.
    name: String,
    message: Message,
    /// Time without a beat after which the server gives the message to another.
    time: Duration,
    beaten: Instant,
    has_ended: bool,
}

impl NatsLease {
    pub(super) fn new(
        shared: Arc<Shared>,
        record: Record,
        name: String,
        message: Message,
        time: Duration,
    ) -> Self {
        Self { shared, record, name, message, time, beaten: Instant::now(), has_ended: false }
    }

    /// Answers the message. If that fails the message comes again, and its record says that there is nothing to do.
    async fn answer(&self, kind: AckKind) {
        let answered = self.message.double_ack_with(kind);
        let _ = tokio::time::timeout(BEAT, answered).await;
    }

    /// Puts the job back if it is still this lease's.
    fn put_back(
        &mut self,
        counts: bool,
        nak: Option<Duration>,
        warning: Option<&str>,
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        shared.link.wait(async {
            let id = &self.record.id;
            // If this fails the lease ends by itself.
            let put = shared.change(id, SHORTLY, |stored| {
                if !stored.is_leased(&self.name) {
                    return None;
                }
                if !counts {
                    stored.record.attempt = stored.record.attempt.saturating_sub(1);
                }
                stored.record.put_back();
                Some(())
            });
            if let Some(((), _, stored)) = put.await? {
                if let Some(warning) = warning {
                    let event = json!({"event": "warning", "message": warning, "job": id});
                    let _ = shared.tell_json(id, event.to_string()).await;
                }
                shared.tell_lost(&stored.record).await;
                self.answer(AckKind::Nak(nak)).await;
                shared.link.wake().await;
            }
            Ok(())
        })
    }
}

impl Lease for NatsLease {
    fn record(&self) -> &Record {
        &self.record
    }

    fn beat(&mut self, event: Option<String>, progress: f32) -> Result<Go> {
        let shared = Arc::clone(&self.shared);
        let id = &self.record.id;
        shared.mirror.progress(id, progress);
        if !shared.link.is_connected() {
            // The clip is made all the same; who has the job is seen when the server is back.
            return Ok(Go::On);
        }
        let beat = async {
            if self.beaten.elapsed() >= self.time / 4
                && self.message.ack_with(AckKind::Progress).await.is_ok()
            {
                self.beaten = Instant::now();
            }
            match shared.read(id).await {
                Ok(Some((_, stored))) if stored.is_leased(&self.name) => {}
                Ok(Some((_, stored))) if stored.record.status == Status::Cancelled => {
                    return Go::Cancelled;
                }
                Ok(_) => return Go::Lost,
                Err(_) => return Go::On,
            }
            if let Some(json) = event {
                let _ = shared.tell_json(id, json).await;
            }
            Go::On
        };
        Ok(shared.link.wait(async { tokio::time::timeout(BEAT, beat).await.unwrap_or(Go::On) }))
    }

    fn complete(mut self: Box<Self>, output: Output) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        let is_first = shared.link.wait(async {
            let id = &self.record.id;
            let done = shared.change(id, shared.link.persistence, |stored| {
                let is_own = stored.lease.as_ref() == Some(&self.name);
                if is_own && stored.record.status == Status::Completed {
                    return Some(());
                }
                // A clip that is there counts, whoever has the job now.
                if stored.record.status.has_ended() {
                    return None;
                }
                stored.record.finish(output.clone(), &self.record);
                stored.lease = Some(self.name.clone());
                Some(())
            });
            let done = done.await?;
            if let Some(((), _, stored)) = &done {
                shared.tell(id, Happened::Done { record: &stored.record }).await;
            }
            self.answer(AckKind::Ack).await;
            Ok::<_, crate::Error>(done.is_some())
        })?;
        self.has_ended = true;
        Ok(is_first)
    }

    fn fail(mut self: Box<Self>, failure: Failure) -> Result<()> {
        let is_device = failure.exit_code == ErrorKind::Environment.exit_code();
        if is_device && self.record.attempt < MOST_ATTEMPTS {
            // Another worker may have what this one lacks.
            self.put_back(true, Some(OTHERS), Some(&failure.message))?;
            self.has_ended = true;
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        shared.link.wait(async {
            let id = &self.record.id;
            let failed = shared.change(id, shared.link.persistence, |stored| {
                stored.is_leased(&self.name).then(|| {
                    stored.record.end(Status::Failed, failure.clone());
                })
            });
            if failed.await?.is_some() {
                shared.tell(id, Happened::Error { failure: &failure }).await;
                self.answer(AckKind::Term).await;
            }
            Ok::<_, crate::Error>(())
        })?;
        self.has_ended = true;
        Ok(())
    }

    fn give_back(mut self: Box<Self>) -> Result<()> {
        self.put_back(false, None, None)?;
        self.has_ended = true;
        Ok(())
    }

    fn pass_on(mut self: Box<Self>, why: &str) -> Result<()> {
        self.shared.rest(&self.message);
        self.put_back(false, Some(OTHERS), Some(why))?;
        self.has_ended = true;
        Ok(())
    }
}

impl Drop for NatsLease {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        // Where this fails the lease ends by itself.
        let shared = Arc::clone(&self.shared);
        shared.link.wait(async {
            let lost = shared.change(&self.record.id, BEAT, |stored| {
                stored.is_leased(&self.name).then(|| stored.lose())
            });
            if let Ok(Some((status, _, stored))) = lost.await {
                shared.tell_lost(&stored.record).await;
                match status {
                    Status::Failed => self.answer(AckKind::Term).await,
                    _ => self.answer(AckKind::Nak(None)).await,
                }
                shared.link.wake().await;
            }
        });
    }
}
