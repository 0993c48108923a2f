//! Tasks that follow what happens on the server.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::OrderedConfig;
use async_nats::jetstream::kv::{self, Operation, Store};
use async_nats::jetstream::stream::Stream;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;

use super::Shared;
use super::link::away;
use super::mirror::Mirror;
use super::state::Stored;
use super::streams::JOBS;
use crate::Result;
use crate::queue::{Event, JobId, MOST_ATTEMPTS, Status};

/// Pause before something is followed anew.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest pause between two looks after quiet jobs.
const ROUND: Duration = Duration::from_secs(10);

/// Follows the records.
pub(super) async fn records(mirror: Arc<Mirror>, store: Store) {
    loop {
        // From the beginning each time: what is known already changes nothing.
        let _ = follow(
            &store,
            &mut |entry: kv::Entry| {
                let Some(id) = JobId::parse(&entry.key) else { return };
                let stored = match entry.operation {
                    Operation::Put => Stored::read(&entry.value, entry.revision),
                    _ => None,
                };
                let is_gone = stored.is_none();
                mirror.apply(entry.revision, &id, stored);
                if is_gone {
                    mirror.forget(&id);
                }
                if entry.delta == 0 {
                    mirror.has_records();
                }
            },
            || mirror.has_records(),
        )
        .await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Follows the workers.
pub(super) async fn workers(mirror: Arc<Mirror>, store: Store) {
    loop {
        let _ = follow(
            &store,
            &mut |entry: kv::Entry| {
                if let Ok(worker) = serde_json::from_slice(&entry.value) {
                    mirror.meet(worker);
                }
            },
            || (),
        )
        .await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Hands out every entry of a bucket, then each change; `is_empty` is called if there is none at first.
async fn follow(
    store: &Store,
    take: &mut (dyn FnMut(kv::Entry) + Send),
    is_empty: impl FnOnce(),
) -> Result<()> {
    let info = store.stream.get_info().await.map_err(away)?;
    let mut changes = store.watch_with_history(">").await.map_err(away)?;
    if info.state.messages == 0 {
        is_empty();
    }
    while let Some(entry) = changes.next().await {
        take(entry.map_err(away)?);
    }
    Ok(())
}

/// Follows the events.
pub(super) async fn events(mirror: Arc<Mirror>, stream: Stream, inbox: String) {
    loop {
        let _ = hear(&mirror, &stream, &inbox).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn hear(mirror: &Mirror, stream: &Stream, inbox: &str) -> Result<()> {
    let info = stream.get_info().await.map_err(away)?;
    let newest = mirror.wait(u64::MAX, Duration::ZERO);
    let config = OrderedConfig {
        deliver_subject: inbox.to_owned(),
        deliver_policy: match newest {
            0 => DeliverPolicy::All,
            _ => DeliverPolicy::ByStartSequence { start_sequence: newest + 1 },
        },
        ..OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(away)?;
    let mut messages = consumer.messages().await.map_err(away)?;
    if info.state.messages == 0 || info.state.last_sequence <= newest {
        mirror.has_events(info.state.last_sequence);
    }
    while let Some(message) = messages.next().await {
        let message = message.map_err(away)?;
        let facts = message.info().map_err(away)?;
        let (revision, left) = (facts.stream_sequence, facts.pending);
        let job = message.subject.rsplit('.').next().unwrap_or_default().to_owned();
        let json = String::from_utf8_lossy(&message.payload).into_owned();
        mirror.heard(Event { revision, job, json });
        if left == 0 {
            mirror.has_events(revision);
        }
    }
    Ok(())
}

/// Sends messages again that are lost, while the queue is there.
pub(super) async fn upkeep(shared: Weak<Shared>, patience: Duration) {
    loop {
        tokio::time::sleep((patience / 4).min(ROUND)).await;
        let Some(shared) = shared.upgrade() else { return };
        for record in shared.mirror.quiet(patience) {
            let Ok(has_message) = shared.streams.has(&record).await else { break };
            if !has_message {
                // The record may have changed since: then its message is there, or whoever takes this one sees it.
                let _ = shared.streams.send(&shared.link, &record, true).await;
            } else if record.status == Status::Queued && shared.mirror.workers().is_empty() {
                let text = "no worker is there that could make the clip";
                if shared.warned(&record.id) {
                    let warning = json!({"event": "warning", "message": text, "job": record.id});
                    let _ = shared.tell_json(&record.id, warning.to_string()).await;
                }
            }
        }
    }
}

/// What the server says of a message that was delivered too often.
#[derive(Deserialize)]
struct Advisory {
    stream_seq: u64,
}

/// Looks at jobs whose messages were delivered too often, while the queue is there.
pub(super) async fn poison(shared: Weak<Shared>, client: async_nats::Client) {
    let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{JOBS}.*");
    loop {
        if let Ok(mut advisories) = client.subscribe(subject.clone()).await {
            while let Some(message) = advisories.next().await {
                let Some(shared) = shared.upgrade() else { return };
                if let Ok(advisory) = serde_json::from_slice::<Advisory>(&message.payload) {
                    let _ = shared.judge(advisory.stream_seq).await;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Shared {
    /// Ends a job that its workers did not survive, or puts it into the stream anew: giving back is a delivery, too.
    async fn judge(&self, sequence: u64) -> Result<()> {
        let message = self.streams.jobs.get_raw_message(sequence).await.map_err(away)?;
        let Some(id) = JobId::parse(&String::from_utf8_lossy(&message.payload)) else {
            return self.streams.jobs.delete_message(sequence).await.map(|_| ()).map_err(away);
        };
        let patience = self.link.persistence;
        let ended = self
            .change(&id, patience, |stored| {
                let record = &stored.record;
                let is_over = record.status == Status::Running && record.attempt >= MOST_ATTEMPTS;
                is_over.then(|| stored.lose())
            })
            .await?;
        self.streams.jobs.delete_message(sequence).await.map_err(away)?;
        if let Some((_, _, stored)) = ended {
            self.tell_lost(&stored.record).await;
        } else if let Some((_, stored)) = self.read(&id).await?
            && !stored.record.status.has_ended()
        {
            self.streams.send(&self.link, &stored.record, true).await?;
        }
        Ok(())
    }
}
