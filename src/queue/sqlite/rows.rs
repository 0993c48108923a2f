//! Records in the database.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use crate::queue::{Filter, JobId, Priority, Record, Status};

fn number(priority: Priority) -> i64 {
    match priority {
        Priority::Normal => 0,
        Priority::High => 1,
    }
}

fn to_json(record: &Record) -> rusqlite::Result<String> {
    serde_json::to_string(record)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// The record in a row's first column.
fn read(row: &Row<'_>) -> rusqlite::Result<Record> {
    let text: String = row.get(0)?;
    serde_json::from_str(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))
}

fn sha256(record: &Record) -> Option<&str> {
    record.output.as_ref().map(|output| output.sha256.as_str())
}

pub(super) fn insert(db: &Connection, record: &Record) -> rusqlite::Result<()> {
    let sql = "INSERT INTO jobs(id, key, class, priority, owner, status, sha256, record) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let Record { id, key, class, priority, owner, status, .. } = record;
    let (priority, status) = (number(*priority), status.name());
    let (hash, json) = (sha256(record), to_json(record)?);
    db.execute(sql, params![id.as_str(), key, class, priority, owner, status, hash, json])?;
    Ok(())
}

/// Writes a record, with the lease of who has it.
pub(super) fn update(
    db: &Connection,
    record: &Record,
    lease: Option<(&str, f64)>,
) -> rusqlite::Result<()> {
    let sql = "UPDATE jobs SET status = ?2, sha256 = ?3, lease = ?4, lease_until = ?5, record = ?6 WHERE id = ?1";
    let (token, until) = (lease.map(|lease| lease.0), lease.map(|lease| lease.1));
    let (id, status, hash) = (record.id.as_str(), record.status.name(), sha256(record));
    db.execute(sql, params![id, status, hash, token, until, to_json(record)?])?;
    Ok(())
}

pub(super) fn by_id(db: &Connection, id: &str) -> rusqlite::Result<Option<Record>> {
    let mut select = db.prepare_cached("SELECT record FROM jobs WHERE id = ?1")?;
    select.query_row([id], read).optional()
}

/// The record of a job that is still in the hands of who has the lease `token`.
pub(super) fn leased(db: &Connection, id: &JobId, token: &str) -> rusqlite::Result<Option<Record>> {
    let sql = "SELECT record FROM jobs WHERE id = ?1 AND lease = ?2 AND status = 'running'";
    db.prepare_cached(sql)?.query_row([id.as_str(), token], read).optional()
}

/// A completed job of a key.
pub(super) fn completed(db: &Connection, key: &str) -> rusqlite::Result<Option<Record>> {
    let sql =
        "SELECT record FROM jobs WHERE key = ?1 AND status = 'completed' ORDER BY seq LIMIT 1";
    db.query_row(sql, [key], read).optional()
}

/// Running jobs whose leases ended before `now`.
pub(super) fn lost(db: &Connection, now: f64) -> rusqlite::Result<Vec<Record>> {
    let sql = "SELECT record FROM jobs WHERE status = 'running' AND lease_until < ?1 ORDER BY seq";
    db.prepare_cached(sql)?.query_map([now], read)?.collect()
}

/// The job whose turn it is.
pub(super) fn next(db: &Connection, classes: &[String]) -> rusqlite::Result<Option<Record>> {
    let places = vec!["?"; classes.len()].join(", ");
    let of = if classes.is_empty() { String::new() } else { format!(" AND class IN ({places})") };
    let sql = format!(
        "SELECT record FROM jobs WHERE status = 'queued'{of} ORDER BY priority DESC, seq LIMIT 1"
    );
    db.prepare_cached(&sql)?.query_row(params_from_iter(classes), read).optional()
}

/// The place of a waiting job, from 1.
pub(super) fn position(db: &Connection, id: &JobId) -> rusqlite::Result<Option<usize>> {
    let sql = "SELECT count(*) FROM jobs AS other, jobs AS own \
               WHERE own.id = ?1 AND own.status = 'queued' AND other.status = 'queued' \
               AND (other.priority > own.priority OR other.priority = own.priority AND other.seq <= own.seq)";
    let count: i64 = db.prepare_cached(sql)?.query_row([id.as_str()], |row| row.get(0))?;
    Ok((count > 0).then_some(count as usize))
}

/// The number of jobs in a state, perhaps of one owner.
pub(super) fn count(
    db: &Connection,
    status: Status,
    owner: Option<&str>,
) -> rusqlite::Result<usize> {
    let sql = "SELECT count(*) FROM jobs WHERE status = ?1 AND (?2 IS NULL OR owner = ?2)";
    let mut select = db.prepare_cached(sql)?;
    let count: i64 = select.query_row(params![status.name(), owner], |row| row.get(0))?;
    Ok(count as usize)
}

pub(super) fn list(db: &Connection, filter: &Filter) -> rusqlite::Result<Vec<Record>> {
    let (sign, order) = if filter.is_ascending { (">", "ASC") } else { ("<", "DESC") };
    let sql = format!(
        "SELECT record FROM jobs WHERE (?1 IS NULL OR status = ?1) \
         AND (?2 IS NULL OR seq {sign} (SELECT seq FROM jobs WHERE id = ?2)) ORDER BY seq {order} LIMIT ?3"
    );
    let limit = if filter.limit == 0 { -1 } else { filter.limit as i64 };
    let (status, after) = (filter.status.map(Status::name), filter.after.as_ref());
    let values = params![status, after.map(JobId::as_str), limit];
    db.prepare_cached(&sql)?.query_map(values, read)?.collect()
}

pub(super) fn is_used(db: &Connection, sha256: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS(SELECT 1 FROM jobs WHERE status = 'completed' AND sha256 = ?1) \
               OR EXISTS(SELECT 1 FROM jobs WHERE status IN ('queued', 'running') AND instr(record, ?1))";
    db.prepare_cached(sql)?.query_row([sha256], |row| row.get(0))
}
