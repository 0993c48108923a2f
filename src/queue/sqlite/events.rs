//! Events in the database.

use rusqlite::{Connection, params};

use crate::queue::happened::Happened;
use crate::queue::{Event, JobId};

/// Events of one change.
pub(super) struct Told {
    revision: u64,
    pub(super) events: Vec<Event>,
}

impl Told {
    /// Those that follow a revision.
    pub(super) fn after(revision: u64) -> Self {
        Self { revision, events: vec![] }
    }

    /// The newest revision.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn add(&mut self, job: &JobId, happened: &Happened<'_>) {
        self.revision += 1;
        let (json, job) = (happened.json(job), job.as_str().to_owned());
        self.events.push(Event { revision: self.revision, job, json });
    }
}

pub(super) fn insert(db: &Connection, event: &Event) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached("INSERT INTO events(rev, job, json) VALUES (?1, ?2, ?3)")?;
    insert.execute(params![event.revision as i64, event.job, event.json])?;
    Ok(())
}

/// Written events after a revision, the oldest first.
pub(super) fn list(
    db: &Connection,
    after: u64,
    job: Option<&JobId>,
    most: usize,
) -> rusqlite::Result<Vec<Event>> {
    let sql = match job {
        Some(_) => {
            "SELECT rev, job, json FROM events WHERE rev > ?1 AND job = ?3 ORDER BY rev LIMIT ?2"
        }
        None => {
            "SELECT rev, job, json FROM events WHERE rev > ?1 AND ?3 IS NULL ORDER BY rev LIMIT ?2"
        }
    };
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let values = params![after, most as i64, job.map(JobId::as_str)];
    let mut select = db.prepare_cached(sql)?;
    let rows = select.query_map(values, |row| {
        Ok(Event { revision: row.get::<_, i64>(0)? as u64, job: row.get(1)?, json: row.get(2)? })
    })?;
    rows.collect()
}
