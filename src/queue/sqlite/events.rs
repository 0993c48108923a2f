//! Events in the database.

use rusqlite::{Connection, params};
use serde::Serialize;
use serde_json::{Value, json};

use crate::queue::{Event, Failure, JobId, Record};

/// What happens to a job beside what its worker tells.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Happened<'a> {
    Queued {
        position: usize,
    },
    #[serde(serialize_with = "done")]
    Done {
        record: &'a Record,
    },
    #[serde(serialize_with = "error")]
    Error {
        failure: &'a Failure,
    },
    Cancelled {},
    Expired {},
    Deleted {},
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it so")]
fn done<S: serde::Serializer>(record: &&Record, to: S) -> Result<S::Ok, S::Error> {
    let output = record.output.as_ref();
    json!({
        "seed": record.job.pointer("/sampling/seed"),
        "sha256": output.map(|output| &output.sha256),
        "bytes": output.map(|output| output.bytes),
        "format": record.format,
        "width": output.map(|output| output.width),
        "height": output.map(|output| output.height),
        "frames": output.map(|output| output.frames),
        "fps": output.map(|output| output.fps),
        "seconds": output.map(|output| output.job_seconds),
        "step_seconds": output.map(|output| &output.step_seconds),
        "cached": record.cached,
    })
    .serialize(to)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it so")]
fn error<S: serde::Serializer>(failure: &&Failure, to: S) -> Result<S::Ok, S::Error> {
    json!({
        "code": failure.exit_code,
        "kind": failure.code,
        "message": failure.message,
        "hint": failure.hint,
    })
    .serialize(to)
}

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

    pub(super) fn add(&mut self, job: &JobId, happened: Happened<'_>) {
        let mut value = serde_json::to_value(happened).unwrap_or_else(|_| json!({}));
        value["job"] = Value::from(job.as_str());
        self.add_json(job, value.to_string());
    }

    pub(super) fn add_json(&mut self, job: &JobId, json: String) {
        self.revision += 1;
        let job = job.as_str().to_owned();
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
