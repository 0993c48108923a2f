//! Events of a job's life, as JSON.

use serde::Serialize;
use serde_json::{Value, json};

use super::{Failure, JobId, Record};

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

impl Happened<'_> {
    /// The event's JSON, with the job's name.
    pub(super) fn json(&self, job: &JobId) -> String {
        let mut value = serde_json::to_value(self).unwrap_or_else(|_| json!({}));
        value["job"] = Value::from(job.as_str());
        value.to_string()
    }
}
