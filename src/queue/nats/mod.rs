//! A queue on a NATS server with JetStream, for many machines.
//!
//! Records are in a bucket and change by compare-and-set; a message in a work queue says that a job waits, and is
//! acknowledged last. So a message that comes twice, late or never does no harm: the record decides.
//!
//! ```text
//! ANIM_JOBS     anim.jobs.<class>.<high|normal>.<job>   a message for each job that has not ended: its name
//! ANIM_STATE    <job>                                   records
//! ANIM_EVENTS   anim.events.<job>                       what happened; numbers are revisions
//! ANIM_NAMES    <hash>                                  clients' names for submissions, for a day
//! ANIM_WORKERS  <worker>                                who is there, for half a minute
//! ANIM_CLIPS, ANIM_INPUTS                               files by their SHA-256
//! ```

mod claim;
mod consumers;
mod lease;
mod link;
mod mirror;
mod state;
mod store;
mod streams;
mod submit;
mod watch;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::UpdateErrorKind;
use futures_util::StreamExt;
use tokio::sync::watch as signal;

use super::happened::Happened;
use super::{
    Accepted, Event, Failure, Filter, JobId, Lease, MOST_EVENTS, Present, Queue, Record, Status,
    Submission,
};
use crate::Result;
use link::{Link, SHORTLY, WAKE, away};
use mirror::Mirror;
use streams::Streams;

pub use link::NatsSettings;
pub use store::NatsStore;

/// A queue on a NATS server. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct NatsQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    link: Link,
    streams: Streams,
    mirror: Arc<Mirror>,
    /// Once it is started, what follows the server.
    follows: [Once; 3],
    /// Claims so far, by which classes take turns.
    claims: AtomicUsize,
    /// Changes when there may be work.
    woken: signal::Sender<u64>,
    /// Consumers of which this worker takes nothing for a while.
    resting: Mutex<HashMap<String, Instant>>,
    /// Jobs whose waiting was told.
    warned: Mutex<BTreeSet<JobId>>,
    /// Held while a job is counted and added.
    submitting: Mutex<()>,
}

impl NatsQueue {
    /// Connects as a front end: makes what is not there yet, and sends messages of jobs again that are lost.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached, is too old, has no JetStream, or refuses the user.
    pub fn open(settings: &NatsSettings) -> Result<Self> {
        let queue = Self::connect(settings, true)?;
        queue.0.follow_records()?;
        queue.0.follow_events()?;
        let shared = &queue.0;
        shared.link.spawn(watch::upkeep(Arc::downgrade(shared), settings.patience));
        shared.link.spawn(watch::poison(Arc::downgrade(shared), shared.link.client.clone()));
        Ok(queue)
    }

    /// Connects as a worker, to what a front end has made.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached, or no front end has been there.
    pub fn join(settings: &NatsSettings) -> Result<Self> {
        Self::connect(settings, false)
    }

    fn connect(settings: &NatsSettings, makes: bool) -> Result<Self> {
        let link = Link::open(settings)?;
        let streams = link.wait(Streams::open(&link, settings, makes))?;
        Ok(Self(Arc::new(Shared {
            link,
            streams,
            mirror: Arc::default(),
            follows: [const { Once::new() }; 3],
            claims: AtomicUsize::new(0),
            woken: signal::channel(0).0,
            resting: Mutex::default(),
            warned: Mutex::default(),
            submitting: Mutex::default(),
        })))
    }
}

impl Shared {
    /// Knows all records from then on.
    fn follow_records(&self) -> Result<()> {
        self.follows[0].call_once(|| {
            self.mirror.follow_records();
            let (mirror, store) = (Arc::clone(&self.mirror), self.streams.state.clone());
            self.link.spawn(watch::records(mirror, store));
        });
        self.mirror.wait_for_records()
    }

    /// Knows events and workers from then on.
    fn follow_events(&self) -> Result<()> {
        self.follows[1].call_once(|| {
            let (mirror, stream) = (Arc::clone(&self.mirror), self.streams.events.clone());
            self.link.spawn(watch::events(mirror, stream, self.link.client.new_inbox()));
            let (mirror, store) = (Arc::clone(&self.mirror), self.streams.workers.clone());
            self.link.spawn(watch::workers(mirror, store));
        });
        self.mirror.wait_for_events()
    }

    /// Hears when there may be work from then on.
    fn follow_work(&self) {
        self.follows[2].call_once(|| {
            let (client, woken) = (self.link.client.clone(), self.woken.clone());
            self.link.spawn(async move {
                let Ok(mut words) = client.subscribe(WAKE).await else { return };
                while words.next().await.is_some() {
                    woken.send_modify(|count| *count += 1);
                }
            });
        });
    }

    /// Whether the waiting of a job has not been told yet.
    fn warned(&self, id: &JobId) -> bool {
        self.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone())
    }

    /// Removes the record of an ended job. Returns whether it did.
    async fn remove(&self, id: &JobId) -> Result<bool> {
        loop {
            let Some((revision, stored)) = self.read(id).await? else { return Ok(false) };
            if !stored.record.status.has_ended() {
                return Ok(false);
            }
            let removed = self.streams.state.purge_expect_revision(id.as_str(), Some(revision));
            match removed.await {
                Ok(()) => {}
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => continue,
                Err(error) => return Err(away(error)),
            }
            self.mirror.apply(revision + 1, id, None);
            let _ = self.streams.forget(&stored.record).await;
            let events = self.streams.events.purge().filter(streams::events_of(id));
            events.await.map_err(away)?;
            self.tell(id, Happened::Deleted {}).await;
            return Ok(true);
        }
    }
}

impl Queue for NatsQueue {
    fn submit(&self, submission: Submission) -> Result<Accepted> {
        self.0.follow_records()?;
        let _one = self.0.submitting.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.link.wait(self.0.submit(submission))
    }

    fn get(&self, id: &JobId) -> Result<Option<Record>> {
        let found = self.0.link.wait(self.0.read(id))?;
        Ok(found.map(|(_, stored)| self.0.mirror.with_progress(stored.record)))
    }

    fn list(&self, filter: &Filter) -> Result<Vec<Record>> {
        self.0.follow_records()?;
        Ok(self.0.mirror.list(filter))
    }

    fn position(&self, id: &JobId) -> Result<Option<usize>> {
        self.0.follow_records()?;
        Ok(self.0.mirror.position(id))
    }

    fn count(&self, status: Status) -> Result<usize> {
        self.0.follow_records()?;
        Ok(self.0.mirror.count(status, None))
    }

    fn cancel(&self, id: &JobId) -> Result<Option<Status>> {
        let shared = &self.0;
        shared.link.wait(async {
            let mut seen = None;
            let cancelled = shared.change(id, SHORTLY, |stored| {
                seen = Some(stored.record.status);
                let is_open = !stored.record.status.has_ended();
                is_open.then(|| stored.record.end(Status::Cancelled, Failure::cancelled()))
            });
            let Some(((), _, stored)) = cancelled.await? else { return Ok(seen) };
            // A worker that has the job sees it at its next beat.
            let _ = shared.streams.forget(&stored.record).await;
            shared.tell(id, Happened::Cancelled {}).await;
            Ok(Some(Status::Cancelled))
        })
    }

    fn remove(&self, id: &JobId) -> Result<bool> {
        self.0.link.wait(self.0.remove(id))
    }

    fn expire(&self, id: &JobId) -> Result<bool> {
        let shared = &self.0;
        shared.link.wait(async {
            let expired = shared.change(id, Duration::ZERO, |stored| {
                let is_completed = stored.record.status == Status::Completed;
                is_completed.then(|| stored.record.status = Status::Expired)
            });
            let is_expired = expired.await?.is_some();
            if is_expired {
                shared.tell(id, Happened::Expired {}).await;
            }
            Ok(is_expired)
        })
    }

    fn is_used(&self, sha256: &str) -> Result<bool> {
        self.0.follow_records()?;
        Ok(self.0.mirror.is_used(sha256))
    }

    fn claim(
        &self,
        worker: &str,
        classes: &[String],
        wait: Duration,
    ) -> Result<Option<Box<dyn Lease>>> {
        self.0.follow_work();
        let lease = self.0.link.wait(self.0.claim(worker, classes, wait))?;
        Ok(lease.map(|lease| Box::new(lease) as Box<dyn Lease>))
    }

    fn events(&self, after: u64, job: Option<&JobId>) -> Result<Vec<Event>> {
        self.0.follow_events()?;
        Ok(self.0.mirror.events(after, job, MOST_EVENTS))
    }

    fn wait(&self, after: u64, at_most: Duration) -> u64 {
        self.0.mirror.wait(after, at_most)
    }

    fn announce(&self, worker: &Present) -> Result<()> {
        let key: String = worker
            .id
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
            .collect();
        let value = serde_json::to_vec(worker).map_err(away)?;
        let put = self.0.streams.workers.put(key, value.into());
        self.0.link.wait(put).map(|_| ()).map_err(away)
    }

    fn workers(&self) -> Result<Vec<Present>> {
        self.0.follow_events()?;
        Ok(self.0.mirror.workers())
    }
}
