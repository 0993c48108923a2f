//! What a front end knows without asking: all records, recent events, the workers that are there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::link::away;
use super::state::Stored;
use super::streams::PRESENCE;
use crate::Result;
use crate::queue::{Event, Filter, JobId, Present, Record, Status};

/// Events that are remembered.
const MOST_HEARD: usize = 65_536;

/// How long the first look at the server may take.
const FIRST_LOOK: Duration = Duration::from_secs(20);

/// How long to wait for an event of one's own.
const ECHO: Duration = Duration::from_secs(2);

/// Copies of what is on the server. What this process writes is here at once, what others write soon after.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    follows_records: bool,
    has_records: bool,
    jobs: HashMap<JobId, Known>,
    /// Names in the order of their submission.
    order: BTreeMap<u64, JobId>,
    has_events: bool,
    events: VecDeque<Event>,
    /// The newest event that was heard, and the newest of one's own.
    newest: u64,
    told: u64,
    progress: HashMap<JobId, f32>,
    workers: HashMap<String, (Instant, Present)>,
}

#[derive(Debug)]
struct Known {
    revision: u64,
    /// Since when it is so.
    at: Instant,
    /// `None` when it was removed.
    stored: Option<Stored>,
}

impl Mirror {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on records are kept.
    pub(super) fn follow_records(&self) {
        self.lock().follows_records = true;
    }

    /// All records that there were have come.
    pub(super) fn has_records(&self) {
        self.lock().has_records = true;
        self.changed.notify_all();
    }

    /// All events that there were have come; the newest had this number.
    pub(super) fn has_events(&self, newest: u64) {
        let mut inner = self.lock();
        inner.has_events = true;
        inner.newest = inner.newest.max(newest);
        self.changed.notify_all();
    }

    fn until(&self, is_met: impl Fn(&Inner) -> bool, at_most: Duration) -> bool {
        let mut inner = self.lock();
        let until = Instant::now() + at_most;
        while !is_met(&inner) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner =
                self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits for the first look at the records.
    pub(super) fn wait_for_records(&self) -> Result<()> {
        let is_there = self.until(|inner| inner.has_records, FIRST_LOOK);
        if is_there { Ok(()) } else { Err(away("the records of the jobs do not come")) }
    }

    /// Waits for the first look at the events, then for those of one's own.
    pub(super) fn wait_for_events(&self) -> Result<()> {
        if !self.until(|inner| inner.has_events, FIRST_LOOK) {
            return Err(away("the events do not come"));
        }
        self.until(|inner| inner.newest >= inner.told, ECHO);
        Ok(())
    }

    /// Takes a record of a revision, unless a newer one is known.
    pub(super) fn apply(&self, revision: u64, id: &JobId, stored: Option<Stored>) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let known = inner.jobs.get(id);
        if !inner.follows_records || known.is_some_and(|known| known.revision >= revision) {
            return;
        }
        if stored.as_ref().is_none_or(|stored| stored.record.status != Status::Running) {
            inner.progress.remove(id);
        }
        if let Some(Known { stored: Some(old), .. }) = known {
            let seq = old.seq;
            inner.order.remove(&seq);
        }
        if let Some(stored) = &stored {
            inner.order.insert(stored.seq, id.clone());
        }
        inner.jobs.insert(id.clone(), Known { revision, at: Instant::now(), stored });
        self.changed.notify_all();
    }

    /// Forgets a removed job: nothing older of it can come any more.
    pub(super) fn forget(&self, id: &JobId) {
        let mut inner = self.lock();
        if inner.jobs.get(id).is_some_and(|known| known.stored.is_none()) {
            inner.jobs.remove(id);
        }
    }

    /// Notes how far a job is.
    pub(super) fn progress(&self, id: &JobId, progress: f32) {
        self.lock().note(id, progress);
    }

    /// A record with the progress of a job that runs.
    pub(super) fn with_progress(&self, record: Record) -> Record {
        self.lock().with_progress(record)
    }

    pub(super) fn list(&self, filter: &Filter) -> Vec<Record> {
        let inner = self.lock();
        let after = filter.after.as_ref().map(|id| inner.stored(id).map_or(0, |stored| stored.seq));
        let is_wanted = |(seq, record): &(u64, &Record)| {
            let is_after = after
                .is_none_or(|after| if filter.is_ascending { *seq > after } else { *seq < after });
            is_after && filter.status.is_none_or(|status| record.status == status)
        };
        let limit = if filter.limit == 0 { usize::MAX } else { filter.limit };
        let found: Vec<&Record> = if filter.is_ascending {
            inner.in_order().filter(is_wanted).map(|(_, record)| record).take(limit).collect()
        } else {
            inner.in_order().rev().filter(is_wanted).map(|(_, record)| record).take(limit).collect()
        };
        found.into_iter().map(|record| inner.with_progress(record.clone())).collect()
    }

    pub(super) fn position(&self, id: &JobId) -> Option<usize> {
        let inner = self.lock();
        let own = inner.stored(id).filter(|own| own.record.status == Status::Queued)?;
        let is_before = |(seq, record): &(u64, &Record)| {
            let priority = record.priority;
            record.status == Status::Queued
                && (priority > own.record.priority
                    || priority == own.record.priority && *seq <= own.seq)
        };
        Some(inner.in_order().filter(is_before).count())
    }

    /// The number of jobs in a state, perhaps of one owner.
    pub(super) fn count(&self, status: Status, owner: Option<&str>) -> usize {
        let is_counted = |(_, record): &(u64, &Record)| {
            record.status == status && owner.is_none_or(|owner| record.owner == owner)
        };
        self.lock().in_order().filter(is_counted).count()
    }

    /// A completed job of a key.
    pub(super) fn completed(&self, key: &str) -> Option<Record> {
        let inner = self.lock();
        let is_done = |record: &&Record| record.status == Status::Completed && record.key == key;
        inner.in_order().map(|(_, record)| record).find(is_done).cloned()
    }

    pub(super) fn is_used(&self, sha256: &str) -> bool {
        let is_user = |(_, record): (u64, &Record)| match record.status {
            Status::Completed => {
                record.output.as_ref().is_some_and(|output| output.sha256 == sha256)
            }
            Status::Queued | Status::Running => record.job.to_string().contains(sha256),
            _ => false,
        };
        self.lock().in_order().any(is_user)
    }

    /// Jobs that have not ended, and whose records have been as they are for so long.
    pub(super) fn quiet(&self, time: Duration) -> Vec<Record> {
        let inner = self.lock();
        let is_quiet = |known: &&Known| known.at.elapsed() >= time;
        let open = |known: &Known| {
            let record = &known.stored.as_ref()?.record;
            (!record.status.has_ended()).then(|| record.clone())
        };
        inner.jobs.values().filter(is_quiet).filter_map(open).collect()
    }

    /// An event of one's own is on the server.
    pub(super) fn told(&self, revision: u64) {
        let mut inner = self.lock();
        inner.told = inner.told.max(revision);
    }

    /// Takes an event.
    pub(super) fn heard(&self, event: Event) {
        #[derive(Deserialize)]
        struct Facts {
            #[serde(default)]
            event: String,
            progress: Option<f32>,
        }
        let mut inner = self.lock();
        inner.newest = inner.newest.max(event.revision);
        if let Ok(facts) = serde_json::from_str::<Facts>(&event.json) {
            if facts.event == "deleted" {
                inner.events.retain(|other| other.job != event.job);
            }
            if let (Some(progress), Some(id)) = (facts.progress, JobId::parse(&event.job)) {
                inner.note(&id, progress);
            }
        }
        inner.events.push_back(event);
        if inner.events.len() > MOST_HEARD {
            inner.events.pop_front();
        }
        self.changed.notify_all();
    }

    pub(super) fn events(&self, after: u64, job: Option<&JobId>, most: usize) -> Vec<Event> {
        let inner = self.lock();
        let is_wanted = |event: &&Event| {
            event.revision > after && job.is_none_or(|job| job.as_str() == event.job)
        };
        inner.events.iter().filter(is_wanted).take(most).cloned().collect()
    }

    /// The newest event, as soon as it is not `after`, or after so long.
    pub(super) fn wait(&self, after: u64, at_most: Duration) -> u64 {
        self.until(|inner| inner.newest != after, at_most);
        self.lock().newest
    }

    /// A worker is there.
    pub(super) fn meet(&self, worker: Present) {
        self.lock().workers.insert(worker.id.clone(), (Instant::now(), worker));
    }

    /// The workers that are there, by name.
    pub(super) fn workers(&self) -> Vec<Present> {
        let mut inner = self.lock();
        inner.workers.retain(|_, (at, _)| at.elapsed() < PRESENCE);
        let mut found: Vec<_> = inner.workers.values().map(|(_, worker)| worker.clone()).collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found
    }
}

impl Inner {
    fn stored(&self, id: &JobId) -> Option<&Stored> {
        self.jobs.get(id)?.stored.as_ref()
    }

    /// Records in the order of their submission.
    fn in_order(&self) -> impl DoubleEndedIterator<Item = (u64, &Record)> {
        self.order.iter().filter_map(|(seq, id)| Some((*seq, &self.stored(id)?.record)))
    }

    fn note(&mut self, id: &JobId, progress: f32) {
        if self.stored(id).is_some_and(|stored| stored.record.status == Status::Running) {
            self.progress.insert(id.clone(), progress);
        }
    }

    fn with_progress(&self, mut record: Record) -> Record {
        if record.status == Status::Running
            && let Some(progress) = self.progress.get(&record.id)
        {
            record.progress = *progress;
        }
        record
    }
}
