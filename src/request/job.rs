//! A whole document: what runs, what is asked, and what became of it.

use serde::{Deserialize, Serialize};

use super::{
    Control, IpAdapter, Output, Prompt, Quality, Request, Sampling, Schedule, Size, Source, Spec,
    Windows, is_default,
};
use crate::media::Background;
use crate::{Error, Result};

/// The name of this version's vocabulary.
pub const SCHEMA: &str = "animatelcm/v1";

/// Everything that is needed to make a clip.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct Job {
    /// Weights by name or path, and where they run.
    pub models: Spec,
    /// The request.
    pub request: Request,
    /// Tensors in place of drawn ones.
    pub tensors_in: Option<FileRecord>,
    /// Every weight file that a finished clip was made with.
    pub weights: Vec<FileRecord>,
    /// The program that made a finished clip.
    pub program: Option<Program>,
}

/// A file that a clip depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Its name or path.
    pub file: String,
    /// Its SHA-256; in a clip always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The program that made a clip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// `animatelcm`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The device: bytes may differ between kinds of devices.
    pub device: String,
}

impl Job {
    /// A job without records of a finished clip.
    pub fn new(models: Spec, request: Request) -> Self {
        Self { models, request, ..Self::default() }
    }

    /// Reads a job.
    ///
    /// # Errors
    ///
    /// On another schema, an unknown field or a value of the wrong kind.
    pub fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json)
            .map_err(|e| Error::request("request", format!("not a request: {e}")))
    }
}

/// The JSON of a [`Job`]: the sections of its request stand beside each other.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: String,
    #[serde(default)]
    models: Spec,
    #[serde(default)]
    prompt: Prompt,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    #[serde(default)]
    size: Size,
    #[serde(default)]
    sampling: Sampling,
    #[serde(default)]
    schedule: Schedule,
    #[serde(default, skip_serializing_if = "is_default")]
    quality: Quality,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    controls: Vec<Control>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ip_adapters: Vec<IpAdapter>,
    #[serde(default, skip_serializing_if = "is_default")]
    windows: Windows,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    background_color: Option<Background>,
    #[serde(default)]
    output: Output,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tensors_in: Option<FileRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    weights: Vec<FileRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    program: Option<Program>,
}

impl TryFrom<Document> for Job {
    type Error = String;

    fn try_from(document: Document) -> Result<Self, String> {
        let Document { schema, models, prompt, source, size, sampling, schedule, .. } = document;
        if schema != SCHEMA {
            return Err(format!("schema `{schema}` is not `{SCHEMA}`"));
        }
        let Document { quality, controls, ip_adapters, windows, background_color, .. } = document;
        let Document { output, tensors_in, weights, program, .. } = document;
        let request = Request {
            prompt,
            source,
            size,
            sampling,
            schedule,
            quality,
            controls,
            ip_adapters,
            windows,
            background_color,
            output,
        };
        Ok(Self { models, request, tensors_in, weights, program })
    }
}

impl From<Job> for Document {
    fn from(job: Job) -> Self {
        let Job { models, request, tensors_in, weights, program } = job;
        let Request { prompt, source, size, sampling, schedule, .. } = request;
        let Request { quality, controls, ip_adapters, windows, background_color, output, .. } =
            request;
        Self {
            schema: SCHEMA.to_owned(),
            models,
            prompt,
            source,
            size,
            sampling,
            schedule,
            quality,
            controls,
            ip_adapters,
            windows,
            background_color,
            output,
            tensors_in,
            weights,
            program,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_back_as_written() {
        let mut request = Request::new("a cat");
        request.sampling.seed = Some(7);
        let lcm_lora = Some("a:b.safetensors:0.8".parse().unwrap());
        let job = Job::new(Spec { lcm_lora, ..Spec::default() }, request);
        let json = serde_json::to_string(&job).unwrap();
        assert_eq!(Job::from_json(&json).unwrap(), job);
    }

    #[test]
    fn numbers_are_read_back_to_the_last_bit() {
        for cfg_scale in [446_744_073.709_551_63, 23.976_023_976_023_978, 1.0 / 3.0] {
            let sampling = Sampling { cfg_scale, ..Sampling::default() };
            let request = Request { sampling, ..Request::default() };
            let json = serde_json::to_string(&Job::new(Spec::default(), request)).unwrap();
            assert_eq!(Job::from_json(&json).unwrap().request.sampling.cfg_scale, cfg_scale);
        }
    }

    #[test]
    fn unknown_fields_and_other_schemas_are_refused() {
        for json in [
            r#"{"schema":"animatelcm/v1","promt":"a"}"#,
            r#"{"schema":"animatelcm/v1","prompt":{"txt":"a"}}"#,
            r#"{"schema":"animatelcm/v1","size":{"widht":8}}"#,
            r#"{"schema":"animatelcm/v1","request":{}}"#,
            r#"{"schema":"animatelcm/v9"}"#,
            r#"{"prompt":"a"}"#,
            "[]",
            "",
        ] {
            assert_eq!(Job::from_json(json).unwrap_err().kind().exit_code(), 2, "{json}");
        }
        assert!(Job::from_json(r#"{"schema":"animatelcm/v1"}"#).is_ok());
    }
}
