//! What is known of a job.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files;
use crate::{Error, Result};

/// Random bytes of the system in hexadecimal.
///
/// # Errors
///
/// When the system has no random numbers.
pub(crate) fn random<const BYTES: usize>() -> Result<String> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        let reason = format!("the system has no random numbers: {error}");
        Error::Device { device: "cpu".into(), reason }
    })?;
    Ok(files::hex_of(&bytes))
}

/// The name of a job: `video_` and 32 hexadecimal digits, 48 bits of milliseconds and 80 random ones.
///
/// Later names sort after earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// A name that no job has.
    ///
    /// # Errors
    ///
    /// When the system has no random numbers.
    pub fn new() -> Result<Self> {
        let milliseconds = (unix_time() * 1000.0) as u64 & 0xffff_ffff_ffff;
        Ok(Self(format!("video_{milliseconds:012x}{}", random::<10>()?)))
    }

    /// Reads a name; `None` if it is of another form.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("video_")?;
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (digits.len() == 32 && digits.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}

impl TryFrom<String> for JobId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("not a job's name")
    }
}

/// State of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waits for a worker.
    Queued,
    /// A worker has it.
    Running,
    /// Its clip is in the store.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended by a client.
    Cancelled,
    /// Completed once; its clip is no longer kept.
    Expired,
}

impl Status {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// The state of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether nothing more will happen to the job by itself.
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// How soon a job's turn comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// After all that came before.
    #[default]
    Normal,
    /// Before those of normal priority.
    High,
}

/// A finished clip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// The format's name.
    pub format: String,
    /// Length of the file.
    pub bytes: u64,
    /// The file's SHA-256.
    pub sha256: String,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Number of frames.
    pub frames: usize,
    /// Frames a second.
    pub fps: f64,
    /// Seconds that the clip lasts.
    pub seconds: f64,
    /// Seconds that its making took.
    pub job_seconds: f64,
    /// Seconds of each denoising step.
    pub step_seconds: Vec<f64>,
    /// The kind of device that made it.
    pub device: String,
}

/// Why a job has no clip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind: `invalid_request`, `weights`, `refused`, `device`, `internal`, `worker_lost` or `cancelled`.
    pub code: String,
    /// What went wrong, in one line.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
    /// The program's exit code for this kind of error.
    pub exit_code: u8,
}

impl Failure {
    /// The failure of a job whose workers died twice.
    pub fn worker_lost() -> Self {
        Self {
            code: "worker_lost".into(),
            message: "the worker was lost twice while it made the clip".into(),
            hint: Some("the log of the server may tell why; a smaller clip needs less".into()),
            exit_code: 1,
        }
    }

    /// The failure that stands for a cancelled job.
    pub fn cancelled() -> Self {
        Self { code: "cancelled".into(), message: "cancelled".into(), hint: None, exit_code: 130 }
    }
}

/// All that is known of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub id: JobId,
    /// Hash of all that decides on the clip; jobs of the same key have the same clip.
    pub key: String,
    /// The weights that it needs: a worker that has them loaded makes it soonest.
    pub class: String,
    /// How soon its turn comes.
    pub priority: Priority,
    /// The name of the API key that it came with; empty without one.
    pub owner: String,
    /// Its state.
    pub status: Status,
    /// How often a worker took it.
    pub attempt: u32,
    /// When it came, in seconds since 1970.
    pub created_at: f64,
    /// When a worker last took it.
    pub started_at: Option<f64>,
    /// When it ended.
    pub finished_at: Option<f64>,
    /// Share that is done, from 0 to 1.
    pub progress: f32,
    /// Who has it, or made it.
    pub worker: Option<String>,
    /// Whether an earlier job's clip was taken.
    pub cached: bool,
    /// The clip's format.
    pub format: String,
    /// The job as JSON, with its seed.
    pub job: Value,
    /// What a front end notes for itself.
    #[serde(default)]
    pub notes: Value,
    /// The clip.
    pub output: Option<Output>,
    /// Why there is none.
    pub error: Option<Failure>,
}

impl Record {
    /// A job that has just come.
    pub fn new(id: JobId, key: String, job: Value, format: impl Into<String>) -> Self {
        Self {
            id,
            key,
            class: String::new(),
            priority: Priority::Normal,
            owner: String::new(),
            status: Status::Queued,
            attempt: 0,
            created_at: unix_time(),
            started_at: None,
            finished_at: None,
            progress: 0.0,
            worker: None,
            cached: false,
            format: format.into(),
            job,
            notes: Value::Null,
            output: None,
            error: None,
        }
    }

    /// A worker takes the job.
    pub(super) fn start(&mut self, worker: &str) {
        self.attempt += 1;
        (self.status, self.progress) = (Status::Running, 0.0);
        (self.worker, self.started_at) = (Some(worker.to_owned()), Some(unix_time()));
    }

    /// The job waits again.
    pub(super) fn put_back(&mut self) {
        (self.status, self.progress, self.worker) = (Status::Queued, 0.0, None);
    }

    /// The job ends without a clip.
    pub(super) fn end(&mut self, status: Status, failure: Failure) {
        (self.status, self.finished_at) = (status, Some(unix_time()));
        self.error = Some(failure);
    }

    /// The job ends with a clip of the worker that took it as `taken`.
    pub(super) fn finish(&mut self, output: Output, taken: &Self) {
        (self.status, self.finished_at) = (Status::Completed, Some(unix_time()));
        (self.progress, self.output) = (1.0, Some(output));
        (self.worker, self.started_at) = (taken.worker.clone(), taken.started_at);
    }

    /// The job is done before it began, by the clip of another one.
    pub(super) fn take_over(&mut self, done: Self) {
        self.status = Status::Completed;
        (self.started_at, self.finished_at) = (Some(self.created_at), Some(unix_time()));
        (self.output, self.worker) = (done.output, done.worker);
        (self.cached, self.progress) = (true, 1.0);
    }
}

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number, which grows from event to event.
    pub revision: u64,
    /// The job's name.
    pub job: String,
    /// A JSON object whose field `event` says what happened.
    pub json: String,
}

/// Seconds since 1970.
pub fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_jobs_are_never_paths_and_sort_by_time() {
        let id = JobId::new().unwrap();
        assert_eq!(JobId::parse(id.as_str()), Some(id.clone()));
        std::thread::sleep(std::time::Duration::from_millis(3));
        assert!(JobId::new().unwrap() > id);
        let digits = &id.as_str()[6..];
        for wrong in [
            "video_",
            "video_../../etc/passwd",
            &format!("video_{}", digits.to_uppercase().replace('0', "A")),
            &format!("video_{digits}0"),
            &format!("audio_{digits}"),
            &format!("video_{}\0", &digits[1..]),
            digits,
        ] {
            assert_eq!(JobId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn states_have_the_names_of_their_json() {
        for status in Status::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.name());
            assert_eq!(Status::named(status.name()), Some(status));
        }
    }
}
