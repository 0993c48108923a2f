//! A queue in an SQLite database, for the threads of one process.
//!
//! One connection, write-ahead log, `synchronous=FULL`: what [`Queue::submit`] accepted is there after a power failure.
//! Progress is kept in memory and written with the next transition; after a crash such a job begins again anyway.

mod events;
mod lease;
mod rows;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, params};

use super::happened::Happened;
use super::{
    Accepted, Event, Failure, Filter, JobId, Lease, MOST_ATTEMPTS, MOST_EVENTS, Queue, Record,
    Status, Submission, unix_time,
};
use crate::{Error, Result};
use events::Told;
use lease::SqliteLease;

/// Version of the tables.
const VERSION: i64 = 1;

const TABLES: &str = "
CREATE TABLE jobs(
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, key TEXT NOT NULL, class TEXT NOT NULL,
  priority INTEGER NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL, sha256 TEXT,
  lease TEXT, lease_until REAL, record TEXT NOT NULL
) STRICT;
CREATE INDEX waiting ON jobs(priority DESC, seq) WHERE status = 'queued';
CREATE INDEX running ON jobs(lease_until) WHERE status = 'running';
CREATE INDEX completed ON jobs(key) WHERE status = 'completed';
CREATE INDEX clips ON jobs(sha256) WHERE status = 'completed';
CREATE TABLE events(rev INTEGER PRIMARY KEY, job TEXT NOT NULL, json TEXT NOT NULL) STRICT;
CREATE INDEX events_of ON events(job, rev);
CREATE TABLE idempotency(
  owner TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, id TEXT NOT NULL, at REAL NOT NULL,
  PRIMARY KEY(owner, name)
) STRICT;
PRAGMA user_version = 1;
";

/// Revisions that are skipped when a database is opened, since a crashed process may have told some that it had not
/// written yet.
const SKIPPED: u64 = 1 << 20;

/// Events in memory that are written without a transition.
const MOST_UNWRITTEN: usize = 4096;

/// Revisions for which events of jobs that were removed are kept.
const MOST_FORGOTTEN: i64 = 100_000;

/// Seconds for which a client's name of a submission counts.
const DAY: f64 = 86_400.0;

/// Time without a beat after which a worker counts as lost.
const LEASE: Duration = Duration::from_secs(30);

/// A queue in an SQLite database. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct SqliteQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    lease: Duration,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    db: Connection,
    /// The newest revision.
    revision: u64,
    /// Events that are not written yet.
    unwritten: Vec<Event>,
    /// Progress of running jobs.
    progress: HashMap<JobId, f32>,
}

impl SqliteQueue {
    /// Opens a database, or makes one. Jobs that ran when its process died wait again, or have failed.
    ///
    /// # Errors
    ///
    /// When the file is of a newer program, no database, or cannot be written.
    pub fn open(path: &Path) -> Result<Self> {
        Self::with_lease(path, LEASE)
    }

    /// Opens a database whose leases last so long.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn with_lease(path: &Path, lease: Duration) -> Result<Self> {
        let failed = |error| failed(path, error);
        let db = Connection::open(path).map_err(failed)?;
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
            .map_err(failed)?;
        let version: i64 =
            db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        match version {
            0 => db.execute_batch(&format!("BEGIN; {TABLES} COMMIT;")).map_err(failed)?,
            VERSION => {}
            _ => {
                let reason =
                    format!("has tables of version {version}, this program knows {VERSION}");
                return Err(Error::format(path, reason));
            }
        }
        let newest: Option<i64> =
            db.query_row("SELECT max(rev) FROM events", [], |row| row.get(0)).map_err(failed)?;
        let revision = newest.map_or(0, |newest| newest as u64 + SKIPPED);
        let inner = Inner { db, revision, unwritten: vec![], progress: HashMap::new() };
        let queue = Self(Arc::new(Shared {
            path: path.to_path_buf(),
            lease,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        }));
        queue.0.reap(f64::INFINITY)?;
        Ok(queue)
    }
}

fn failed(path: &Path, error: rusqlite::Error) -> Error {
    Error::file(path)(std::io::Error::other(error))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the tables as a whole, and tells the events of the change.
    fn change<T>(
        &self,
        work: impl FnOnce(&Connection, &mut Told) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut inner = self.lock();
        self.change_in(&mut inner, work)
    }

    fn change_in<T>(
        &self,
        inner: &mut Inner,
        work: impl FnOnce(&Connection, &mut Told) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut told = Told::after(inner.revision);
        let written = (|| {
            let transaction = inner.db.transaction()?;
            let result = work(&transaction, &mut told)?;
            for event in inner.unwritten.iter().chain(&told.events) {
                events::insert(&transaction, event)?;
            }
            transaction.commit()?;
            Ok(result)
        })();
        let result = written.map_err(|error| failed(&self.path, error))?;
        inner.unwritten.clear();
        inner.revision += told.events.len() as u64;
        self.changed.notify_all();
        Ok(result)
    }

    fn read<T>(&self, work: impl FnOnce(&Inner) -> rusqlite::Result<T>) -> Result<T> {
        work(&self.lock()).map_err(|error| failed(&self.path, error))
    }

    /// Takes running jobs from workers whose leases ended before `now`.
    fn reap(&self, now: f64) -> Result<()> {
        let mut inner = self.lock();
        let lost = rows::lost(&inner.db, now).map_err(|error| failed(&self.path, error))?;
        if lost.is_empty() {
            return Ok(());
        }
        self.change_in(&mut inner, |db, told| {
            lost.into_iter().try_for_each(|record| lose(db, told, record))
        })
    }
}

/// Puts a job back whose worker was lost, the second time as failed.
fn lose(db: &Connection, told: &mut Told, mut record: Record) -> rusqlite::Result<()> {
    record.worker = None;
    if record.attempt >= MOST_ATTEMPTS {
        return end(db, told, record, Status::Failed, &Failure::worker_lost());
    }
    requeue(db, told, record)
}

fn requeue(db: &Connection, told: &mut Told, mut record: Record) -> rusqlite::Result<()> {
    record.put_back();
    rows::update(db, &record, None)?;
    let position = rows::position(db, &record.id)?.unwrap_or(1);
    told.add(&record.id, &Happened::Queued { position });
    Ok(())
}

/// Ends a job without a clip.
fn end(
    db: &Connection,
    told: &mut Told,
    mut record: Record,
    status: Status,
    failure: &Failure,
) -> rusqlite::Result<()> {
    record.end(status, failure.clone());
    rows::update(db, &record, None)?;
    match status {
        Status::Failed => told.add(&record.id, &Happened::Error { failure }),
        _ => told.add(&record.id, &Happened::Cancelled {}),
    }
    Ok(())
}

impl Queue for SqliteQueue {
    fn submit(&self, submission: Submission) -> Result<Accepted> {
        let Submission { mut record, limit, share, idempotency } = submission;
        self.0.change(|db, told| {
            if let Some((name, body)) = &idempotency {
                let sql =
                    "SELECT body, id FROM idempotency WHERE owner = ?1 AND name = ?2 AND at > ?3";
                let known = params![record.owner, name, unix_time() - DAY];
                let found = db.query_row(sql, known, |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
                });
                if let Some((known, id)) = found.optional()? {
                    if known != *body {
                        return Ok(Accepted::Mismatch);
                    }
                    if let Some(earlier) = rows::by_id(db, &id)? {
                        return Ok(Accepted::Same(earlier));
                    }
                }
            }
            let done = rows::completed(db, &record.key)?;
            if done.is_none() {
                let all = rows::count(db, Status::Queued, None)?;
                let own = rows::count(db, Status::Queued, Some(&record.owner))?;
                if all >= limit || own >= share {
                    return Ok(Accepted::Full(all));
                }
            }
            if let Some(done) = done {
                record.take_over(done);
            }
            rows::insert(db, &record)?;
            if let Some((name, body)) = &idempotency {
                let sql = "INSERT OR REPLACE INTO idempotency VALUES (?1, ?2, ?3, ?4, ?5)";
                let values = params![record.owner, name, body, record.id.as_str(), unix_time()];
                db.execute(sql, values)?;
            }
            let position = rows::position(db, &record.id)?;
            match position {
                Some(position) => told.add(&record.id, &Happened::Queued { position }),
                None => told.add(&record.id, &Happened::Done { record: &record }),
            }
            Ok(Accepted::New(record))
        })
    }

    fn get(&self, id: &JobId) -> Result<Option<Record>> {
        self.0.read(|inner| {
            let record = rows::by_id(&inner.db, id.as_str())?;
            Ok(record.map(|record| inner.with_progress(record)))
        })
    }

    fn list(&self, filter: &Filter) -> Result<Vec<Record>> {
        self.0.read(|inner| {
            let records = rows::list(&inner.db, filter)?;
            Ok(records.into_iter().map(|record| inner.with_progress(record)).collect())
        })
    }

    fn position(&self, id: &JobId) -> Result<Option<usize>> {
        self.0.read(|inner| rows::position(&inner.db, id))
    }

    fn count(&self, status: Status) -> Result<usize> {
        self.0.read(|inner| rows::count(&inner.db, status, None))
    }

    fn cancel(&self, id: &JobId) -> Result<Option<Status>> {
        self.0.change(|db, told| {
            let Some(record) = rows::by_id(db, id.as_str())? else { return Ok(None) };
            if record.status.has_ended() {
                return Ok(Some(record.status));
            }
            end(db, told, record, Status::Cancelled, &Failure::cancelled())?;
            Ok(Some(Status::Cancelled))
        })
    }

    fn remove(&self, id: &JobId) -> Result<bool> {
        self.0.change(|db, told| {
            let record = rows::by_id(db, id.as_str())?;
            if !record.is_some_and(|record| record.status.has_ended()) {
                return Ok(false);
            }
            for sql in [
                "DELETE FROM events WHERE job = ?1",
                "DELETE FROM idempotency WHERE id = ?1",
                "DELETE FROM jobs WHERE id = ?1",
            ] {
                db.execute(sql, [id.as_str()])?;
            }
            // Clients that were away for so long begin anew.
            let sql = "DELETE FROM events WHERE rev < ?1 AND job NOT IN (SELECT id FROM jobs)";
            db.execute(sql, [told.revision() as i64 - MOST_FORGOTTEN])?;
            told.add(id, &Happened::Deleted {});
            Ok(true)
        })
    }

    fn expire(&self, id: &JobId) -> Result<bool> {
        self.0.change(|db, told| {
            let record = rows::by_id(db, id.as_str())?;
            let completed = record.filter(|record| record.status == Status::Completed);
            let Some(mut record) = completed else { return Ok(false) };
            record.status = Status::Expired;
            rows::update(db, &record, None)?;
            told.add(id, &Happened::Expired {});
            Ok(true)
        })
    }

    fn is_used(&self, sha256: &str) -> Result<bool> {
        self.0.read(|inner| rows::is_used(&inner.db, sha256))
    }

    fn claim(
        &self,
        worker: &str,
        classes: &[String],
        wait: Duration,
    ) -> Result<Option<Box<dyn Lease>>> {
        let until = Instant::now() + wait;
        loop {
            self.0.reap(unix_time())?;
            let mut inner = self.0.lock();
            let next = rows::next(&inner.db, classes).map_err(|e| failed(&self.0.path, e))?;
            if let Some(mut record) = next {
                let token = JobId::new()?.to_string();
                record.start(worker);
                let lease_until = unix_time() + self.0.lease.as_secs_f64();
                self.0.change_in(&mut inner, |db, _| {
                    rows::update(db, &record, Some((&token, lease_until)))
                })?;
                drop(inner);
                let lease = SqliteLease::new(Arc::clone(&self.0), record, token, lease_until);
                return Ok(Some(Box::new(lease)));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Leases of others end without a word.
            let pause = left.min(self.0.lease / 4);
            drop(self.0.changed.wait_timeout(inner, pause));
        }
    }

    fn events(&self, after: u64, job: Option<&JobId>) -> Result<Vec<Event>> {
        self.0.read(|inner| {
            let mut found = events::list(&inner.db, after, job, MOST_EVENTS)?;
            let is_wanted = |event: &&Event| {
                event.revision > after && job.is_none_or(|job| job.as_str() == event.job)
            };
            found.extend(inner.unwritten.iter().filter(is_wanted).cloned());
            found.truncate(MOST_EVENTS);
            Ok(found)
        })
    }

    fn wait(&self, after: u64, at_most: Duration) -> u64 {
        let until = Instant::now() + at_most;
        let mut inner = self.0.lock();
        while inner.revision == after {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.0.changed.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        inner.revision
    }
}

impl Inner {
    fn with_progress(&self, mut record: Record) -> Record {
        if record.status == Status::Running
            && let Some(progress) = self.progress.get(&record.id)
        {
            record.progress = *progress;
        }
        record
    }
}
