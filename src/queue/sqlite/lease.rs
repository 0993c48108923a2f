//! A job in one worker's hands.

use std::sync::Arc;

use super::{MOST_UNWRITTEN, Shared, failed, lose, requeue, rows};
use crate::Result;
use crate::queue::happened::Happened;
use crate::queue::{Event, Failure, Go, Lease, Output, Record, Status, unix_time};

pub(super) struct SqliteLease {
    shared: Arc<Shared>,
    record: Record,
    token: String,
    until: f64,
    has_ended: bool,
}

impl SqliteLease {
    pub(super) fn new(shared: Arc<Shared>, record: Record, token: String, until: f64) -> Self {
        Self { shared, record, token, until, has_ended: false }
    }
}

impl Lease for SqliteLease {
    fn record(&self) -> &Record {
        &self.record
    }

    fn beat(&mut self, event: Option<String>, progress: f32) -> Result<Go> {
        let Self { shared, record, token, until, .. } = self;
        let mut inner = shared.lock();
        let failed = |error| failed(&shared.path, error);
        if rows::leased(&inner.db, &record.id, token).map_err(failed)?.is_none() {
            let now = rows::by_id(&inner.db, record.id.as_str()).map_err(failed)?;
            let is_cancelled = now.is_some_and(|record| record.status == Status::Cancelled);
            return Ok(if is_cancelled { Go::Cancelled } else { Go::Lost });
        }
        let lease = shared.lease.as_secs_f64();
        let now = unix_time();
        if *until - now < lease * 0.75 {
            *until = now + lease;
            let sql = "UPDATE jobs SET lease_until = ?2 WHERE id = ?1";
            let values = rusqlite::params![record.id.as_str(), *until];
            inner.db.execute(sql, values).map_err(failed)?;
        }
        inner.progress.insert(record.id.clone(), progress);
        if let Some(json) = event {
            inner.revision += 1;
            let (revision, job) = (inner.revision, record.id.to_string());
            inner.unwritten.push(Event { revision, job, json });
            shared.changed.notify_all();
            if inner.unwritten.len() > MOST_UNWRITTEN {
                shared.change_in(&mut inner, |_, _| Ok(()))?;
            }
        }
        Ok(Go::On)
    }

    fn complete(mut self: Box<Self>, output: Output) -> Result<bool> {
        let is_first = self.shared.change(|db, told| {
            let Some(mut record) = rows::by_id(db, self.record.id.as_str())? else {
                return Ok(false);
            };
            // A clip that is there counts, whoever has the job now.
            if record.status.has_ended() {
                return Ok(false);
            }
            record.finish(output, &self.record);
            rows::update(db, &record, None)?;
            told.add(&record.id, &Happened::Done { record: &record });
            Ok(true)
        })?;
        self.end();
        Ok(is_first)
    }

    fn fail(mut self: Box<Self>, failure: Failure) -> Result<()> {
        self.shared.change(|db, told| match rows::leased(db, &self.record.id, &self.token)? {
            Some(record) => super::end(db, told, record, Status::Failed, &failure),
            None => Ok(()),
        })?;
        self.end();
        Ok(())
    }

    fn give_back(mut self: Box<Self>) -> Result<()> {
        self.shared.change(|db, told| match rows::leased(db, &self.record.id, &self.token)? {
            Some(mut record) => {
                record.attempt = record.attempt.saturating_sub(1);
                requeue(db, told, record)
            }
            None => Ok(()),
        })?;
        self.end();
        Ok(())
    }

    fn pass_on(self: Box<Self>, _why: &str) -> Result<()> {
        // All workers of a process have the same.
        self.give_back()
    }
}

impl SqliteLease {
    fn end(&mut self) {
        self.has_ended = true;
        self.shared.lock().progress.remove(&self.record.id);
    }
}

impl Drop for SqliteLease {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        // Where this fails the lease ends by itself.
        let _ =
            self.shared.change(|db, told| match rows::leased(db, &self.record.id, &self.token)? {
                Some(record) => lose(db, told, record),
                None => Ok(()),
            });
        self.end();
    }
}
