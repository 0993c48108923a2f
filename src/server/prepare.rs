//! From what a client asks to a job in the queue.

use axum::http::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::answer::{Answer, Problem};
use super::names;
use super::state::App;
use crate::files::hex;
use crate::job::resolve_lora_tags;
use crate::output::{ClipInfo, Format};
use crate::queue::random;
use crate::queue::{Accepted, JobId, Priority, Record, Submission, key};
use crate::request::{Job, Request};
use crate::{Error, Result, Stop};

/// Most characters of a prompt.
const MOST_PROMPT: usize = 32_000;

/// Side of a clip whose size its model decides, when its pixels are counted.
const SIDE: usize = 512;

/// What a client asks for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) job: Job,
    pub(super) format: String,
    pub(super) priority: Priority,
    pub(super) owner: String,
    pub(super) notes: Value,
    /// The client's name of the submission, and the SHA-256 of what it sent.
    pub(super) idempotency: Option<(String, String)>,
}

/// Puts a job into the queue. Returns its record, and whether it is new.
pub(super) fn submit(app: &App, asked: Asked) -> Answer<(Record, bool)> {
    if app.stop.is_requested() {
        return Err(draining());
    }
    let Asked { mut job, format, priority, owner, notes, idempotency } = asked;
    let failed = |error: Error| app.problem(&error);
    let format = format_of(&format)?;
    let find = |name: &str| -> Result<String> {
        if app.catalog.has("lora", name) {
            return Ok(name.to_owned());
        }
        let error = Error::request("prompt", format!("there is no LoRA `{name}`"));
        Err(match app.catalog.near("lora", name) {
            Some(near) => error.with_hint(format!("did you mean `{near}`?")),
            None => error.with_hint("`GET /v1/models` lists what is here"),
        })
    };
    let length = job.request.prompt.text.chars().count();
    if length > MOST_PROMPT {
        let message = format!("prompt: has {length} characters, at most {MOST_PROMPT}");
        return Err(Problem::invalid("prompt", message));
    }
    resolve_lora_tags(&mut job, &find).map_err(failed)?;
    names::check(&mut job, &app.catalog, &*app.uploads)?;
    if job.request.sampling.seed.is_none() {
        // As long as can be typed again.
        let digits = random::<4>().map_err(failed)?;
        job.request.sampling.seed = u64::from_str_radix(&digits, 16).ok();
    }
    job.request.validate().map_err(failed)?;
    limits(app, &job.request)?;
    size(format, &job.request).map_err(failed)?;

    let id = JobId::new().map_err(failed)?;
    // What is wrong with a model the worker finds out, too, and says as the job's failure.
    let key = key(&job, format, &app.names, &app.hashes, &Stop::default());
    let native = key.as_ref().ok().map(|key| key.native_size);
    let key = key.map_or_else(|_| id.to_string(), |key| key.sha256);
    let mut record = Record::new(id, key, json!(job), format.name());
    record.class = class(&job);
    (record.priority, record.owner) = (priority, owner);
    record.notes = json!({ "native": native, "of": notes });
    let (limit, share) = (app.limits.queue, app.limits.share);
    let submission = Submission { record, limit, share, idempotency };
    match app.queue.submit(submission).map_err(failed)? {
        Accepted::New(record) => Ok((record, true)),
        Accepted::Same(record) => Ok((record, false)),
        Accepted::Mismatch => {
            let message = "the Idempotency-Key was sent before with another body";
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            Err(Problem::new(status, "idempotency_mismatch", message).param("Idempotency-Key"))
        }
        Accepted::Full(waiting) => {
            let message = format!("the queue is full: {waiting} jobs wait");
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message);
            Err(problem.retry_after(app.retry_after()))
        }
    }
}

pub(super) fn draining() -> Problem {
    let message = "the server is being stopped";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message).retry_after(10)
}

/// The format of a name, if it is one file that this build can write.
fn format_of(name: &str) -> Answer<Format> {
    // One file of frames is what a client can mean by PNG here.
    let name = if name == "png" { "apng" } else { name };
    let known = Format::ALL.iter().filter(|format| **format != Format::Png);
    let mut known = known.filter(|format| format.is_available());
    let names: Vec<_> = known.clone().map(|format| format.name()).collect();
    known.find(|format| format.name() == name).copied().ok_or_else(|| {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
        let message = format!("format: `{shown}` is none of {}", names.join(", "));
        Problem::invalid("format", message)
    })
}

/// Formats that this server writes.
pub(super) fn formats() -> Vec<&'static str> {
    let known = Format::ALL.iter().filter(|format| **format != Format::Png);
    known.filter(|format| format.is_available()).map(|format| format.name()).collect()
}

/// The format of clips for which none is named.
pub(super) fn usual_format() -> &'static str {
    let formats = formats();
    let is_known = |name: &&&str| formats.contains(*name);
    ["mp4", "gif"].iter().find(is_known).copied().unwrap_or("y4m")
}

fn limits(app: &App, request: &Request) -> Answer<()> {
    let frames = request.output.looping.frames(request.frames());
    if frames > app.limits.frames {
        let message = format!("frames: {frames} asked for, at most {}", app.limits.frames);
        return Err(Problem::invalid("frames", message));
    }
    let scale = request.quality.hires.map_or(1.0, |hires| hires.scale.max(1.0));
    let zoom = request.output.zoom as f64 * scale;
    let side = |side: Option<usize>| (side.unwrap_or(SIDE) as f64 * zoom) as u64;
    let pixels = side(request.size.width)
        .saturating_mul(side(request.size.height))
        .saturating_mul(frames as u64);
    if pixels > app.limits.pixels {
        let most = app.limits.pixels;
        let message = format!("size: all frames have {pixels} pixels, at most {most}");
        return Err(Problem::invalid("size", message));
    }
    let zoomed = (request.output.zoom * request.output.zoom) as u64;
    let work = (pixels / zoomed.max(1)).saturating_mul(request.sampling.steps as u64);
    if work > app.limits.work {
        let message = format!("steps: {} are too many for so many pixels", request.sampling.steps);
        return Err(Problem::invalid("steps", message));
    }
    Ok(())
}

/// Fails if the format cannot hold a clip of the size that is asked for.
fn size(format: Format, request: &Request) -> Result<()> {
    let (Some(width), Some(height)) = (request.size.width, request.size.height) else {
        return Ok(());
    };
    let zoom = request.output.zoom;
    format.check_clip(&ClipInfo {
        width: (width * zoom) as u32,
        height: (height * zoom) as u32,
        frames: request.output.looping.frames(request.frames()),
        fps: request.output.fps,
    })
}

/// The weights that a worker must have loaded: LoRAs are exchanged between jobs.
fn class(job: &Job) -> String {
    let models = &job.models;
    let all = json!([models.model, models.checkpoint, models.vae, models.motion, models.lcm_lora]);
    hex(Sha256::new_with_prefix(all.to_string())).chars().take(12).collect()
}
