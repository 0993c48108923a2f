//! `/v1/videos`: the shape of OpenAI's API of videos, over the same jobs.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::answer::{Answer, Problem};
use super::auth::Owner;
use super::body::{self, File, Form};
use super::content;
use super::jobs::{Page, eta, find, page, remove};
use super::prepare::{self, Asked};
use super::state::{App, Shared};
use super::uploads;
use crate::Error;
use crate::job::apply_defaults;
use crate::media::read::Media;
use crate::queue::{Priority, Record, Status};
use crate::request::{Job, SCHEMA, Source, WeightedFile};

/// Fields of a request.
const FIELDS: [&str; 17] = [
    "prompt",
    "model",
    "seconds",
    "size",
    "input_reference",
    "num_frames",
    "frames",
    "fps",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "seed",
    "negative_prompt",
    "lora",
    "request",
    "output_format",
];

/// Milliseconds after which a client that polls is to come again.
const POLL: (HeaderName, &str) = (HeaderName::from_static("openai-poll-after-ms"), "500");

/// A request's fields as text.
struct Fields(BTreeMap<String, String>);

impl Fields {
    fn of(form: &Form) -> Answer<Self> {
        let mut texts = form.texts.clone();
        if form.is_json {
            let value = body::json(&texts.remove("").unwrap_or_default())?;
            let Value::Object(fields) = value else {
                return Err(Problem::invalid("body", "the body is no JSON object"));
            };
            for (name, value) in fields {
                match value {
                    Value::Null => None,
                    Value::String(text) => texts.insert(name, text),
                    other => texts.insert(name, other.to_string()),
                };
            }
        }
        for name in texts.keys().chain(form.files.keys()) {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
            if name.contains('[') {
                let message = format!("`{shown}`: nested fields are not read");
                let hint =
                    "send the JSON text of all of it in one field, such as `lora` or `request`";
                return Err(Problem::unsupported(shown, message).hint(hint));
            }
            if !FIELDS.contains(&name.as_str()) {
                let message = format!("there is no field `{shown}`");
                let problem = Problem::invalid(shown, message);
                return Err(problem.hint("`request` takes the JSON of all others"));
            }
        }
        Ok(Self(texts))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number<T: std::str::FromStr>(&self, name: &'static str) -> Answer<Option<T>> {
        let read = |text: &str| {
            let wrong = |_| Problem::invalid(name, format!("{name}: not a number that fits"));
            text.trim().parse().map_err(wrong)
        };
        self.text(name).map(read).transpose()
    }
}

/// `POST /v1/videos`
pub(super) async fn create(State(app): State<Shared>, request: Request) -> Answer {
    if app.stop.is_requested() {
        return Err(prepare::draining());
    }
    let owner = request.extensions().get::<Owner>().cloned().unwrap_or_default();
    let form = body::read(&app, request).await?;
    let made = app
        .blocking(move |app| {
            let fields = Fields::of(&form)?;
            let format = fields.text("output_format").unwrap_or(prepare::usual_format()).to_owned();
            let job = job(app, &fields, &form)?;
            let (priority, notes) = (Priority::Normal, Value::Null);
            let asked = Asked { job, format, priority, owner: owner.0, notes, idempotency: None };
            let (record, _) = prepare::submit(app, asked)?;
            view(app, &record)
        })
        .await?;
    Ok(([POLL], Json(made)).into_response())
}

/// The job of a request's fields.
fn job(app: &App, fields: &Fields, form: &Form) -> Answer<Job> {
    let failed = |error: Error| app.problem(&error);
    let prompt = fields.text("prompt").unwrap_or_default();
    if prompt.is_empty() {
        return Err(Problem::invalid("prompt", "prompt: is missing"));
    }
    let mut start = Job::default();
    start.models.model = fields.text("model").map(str::to_owned);
    apply_defaults(&app.names, &start.models, &mut start.request).map_err(failed)?;
    let mut value = json!(start);
    if let Some(text) = fields.text("request") {
        merge(&mut value, body::json(text)?);
        value["schema"] = SCHEMA.into();
    }
    let job = serde_json::from_value(value);
    let mut job: Job =
        job.map_err(|error| Problem::invalid("request", format!("request: {error}")))?;
    let request = &mut job.request;
    prompt.clone_into(&mut request.prompt.text);
    if let Some(text) = fields.text("negative_prompt") {
        text.clone_into(&mut request.prompt.negative);
    }
    if let Some(model) = fields.text("model") {
        job.models.model = Some(model.to_owned());
    }
    let (width, height) = match fields.text("size") {
        Some(size) => {
            let sides = size.split_once(['x', 'X']).and_then(|(width, height)| {
                Some((width.trim().parse().ok()?, height.trim().parse().ok()?))
            });
            let sides: Option<(usize, usize)> = sides;
            let sides = sides.ok_or_else(|| Problem::invalid("size", "size is `WIDTHxHEIGHT`"))?;
            (Some(sides.0), Some(sides.1))
        }
        None => (fields.number("width")?, fields.number("height")?),
    };
    request.size.width = width.or(request.size.width);
    request.size.height = height.or(request.size.height);
    request.output.fps = fields.number("fps")?.unwrap_or(request.output.fps);
    let frames = match (fields.number("num_frames")?, fields.number("frames")?) {
        (None, None) => {
            let seconds: Option<f64> = fields.number("seconds")?;
            if seconds.is_some_and(|seconds| !(seconds > 0.0 && seconds < 1e6)) {
                return Err(Problem::invalid("seconds", "seconds: must be more than 0"));
            }
            seconds.map(|seconds| (seconds * request.output.fps).round().max(1.0) as usize)
        }
        (one, other) => one.or(other),
    };
    request.size.frames = frames.or(request.size.frames);
    let sampling = &mut request.sampling;
    sampling.steps = fields.number("num_inference_steps")?.unwrap_or(sampling.steps);
    sampling.cfg_scale = fields.number("guidance_scale")?.unwrap_or(sampling.cfg_scale);
    // As everywhere else -1 is a random one.
    match fields.text("seed").map(str::trim) {
        Some("-1") => sampling.seed = None,
        Some(_) => sampling.seed = fields.number("seed")?,
        None => {}
    }
    if let Some(text) = fields.text("lora") {
        job.models.loras.extend(loras(&body::json(text)?)?);
    }
    if let Some(file) = reference(app, fields, form)? {
        uploads::check(app, &file)?;
        let name = format!("upload:{}", file.sha256);
        let path = app.uploads.open(&file.sha256).map_err(failed)?.unwrap_or_default();
        let bytes = std::fs::read(path);
        let bytes = bytes.map_err(|_| Problem::internal("the upload is not there"))?;
        let is_video = Media::new(&file.name, bytes).durations("input_reference");
        let is_video = is_video.map_err(failed)?.is_some();
        let source = if is_video { Source::video(name) } else { Source::image(name) };
        let rest = job.request.source.take().unwrap_or_default();
        job.request.source = Some(Source { image: source.image, video: source.video, ..rest });
    }
    Ok(job)
}

/// Lays the fields of one JSON over those of another.
fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                merge(under.entry(name).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

/// LoRAs as `[{"name", "scale"}]`.
fn loras(value: &Value) -> Answer<Vec<WeightedFile>> {
    let wrong = || {
        let message = "lora is the JSON of `[{\"name\": NAME, \"scale\": NUMBER}]`";
        Problem::invalid("lora", message)
    };
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let read = |entry: &Value| {
        let fields = entry.as_object().ok_or_else(wrong)?;
        if let Some(other) = fields.keys().find(|name| !matches!(name.as_str(), "name" | "scale")) {
            let message = format!("lora: `{other}` is not read: LoRAs have a name of `/v1/models`");
            return Err(Problem::unsupported("lora", message));
        }
        let name = fields.get("name").and_then(Value::as_str).ok_or_else(wrong)?;
        let scale = match fields.get("scale") {
            None => 1.0,
            Some(scale) => scale.as_f64().ok_or_else(wrong)?,
        };
        Ok(WeightedFile::new(name, scale))
    };
    list.iter().map(read).collect()
}

/// The image or video that a clip starts from.
fn reference(app: &App, fields: &Fields, form: &Form) -> Answer<Option<File>> {
    if let Some(other) = form.files.keys().find(|name| *name != "input_reference") {
        return Err(Problem::invalid(other.clone(), format!("`{other}` is no file")));
    }
    if let Some(file) = form.files.get("input_reference") {
        return Ok(Some(file.clone()));
    }
    let Some(text) = fields.text("input_reference") else { return Ok(None) };
    let wrong = |message: &str| Problem::invalid("input_reference", message);
    let value = body::json(text)
        .map_err(|_| wrong("input_reference is a file, `{\"image_url\"}` or `{\"file_id\"}`"))?;
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let name = "input_reference".to_owned();
    if let Some(id) = text("file_id") {
        let sha256 = id.strip_prefix("upload:").unwrap_or_default().to_owned();
        let path = app.uploads.open(&sha256).map_err(|error| app.problem(&error))?;
        path.ok_or_else(|| wrong("there is no upload of that id"))?;
        return Ok(Some(File { sha256, bytes: 0, name }));
    }
    let Some(url) = text("image_url") else {
        return Err(wrong("input_reference has no `image_url` and no `file_id`"));
    };
    let data = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
    let Some((_, data)) = data else {
        let message = "image_url: nothing is fetched";
        return Err(Problem::unsupported("input_reference", message)
            .hint("send the file, or `data:image/png;base64,…`"));
    };
    let bytes = STANDARD.decode(data).map_err(|_| wrong("image_url: not base64"))?;
    let stored = app.uploads.put(&mut bytes.as_slice(), app.limits.upload);
    let stored = stored.map_err(|error| app.problem(&error))?;
    Ok(Some(File { sha256: stored.sha256, bytes: stored.bytes, name }))
}

/// A record as OpenAI's `Video`.
pub(super) fn view(app: &App, record: &Record) -> Answer<Value> {
    let position = match record.status {
        Status::Queued => app.queue.position(&record.id).map_err(|error| app.problem(&error))?,
        _ => None,
    };
    let status = match record.status {
        Status::Queued => "queued",
        Status::Running => "in_progress",
        Status::Completed | Status::Expired => "completed",
        // A client's poll ends at any other word, too, but only this one it takes for an end.
        Status::Failed | Status::Cancelled => "failed",
    };
    let job = &record.job;
    let output = record.output.as_ref();
    let number = |pointer: &str| job.pointer(pointer).and_then(Value::as_u64);
    let side = |pointer: &str, at: usize| {
        number(pointer).or_else(|| record.notes["native"][at].as_u64()).unwrap_or_default()
    };
    let (width, height) = output.map_or_else(
        || (side("/size/width", 0), side("/size/height", 1)),
        |output| (output.width as u64, output.height as u64),
    );
    let fps = output.map(|output| output.fps);
    let fps = fps.or_else(|| job.pointer("/output/fps")?.as_f64()).unwrap_or(8.0);
    let frames = output.map(|output| output.frames as u64);
    let frames = frames.or_else(|| number("/size/frames")).unwrap_or(16);
    let seconds = (frames as f64 / fps * 1000.0).round() / 1000.0;
    let progress = match record.status {
        Status::Completed | Status::Expired => 100,
        _ => (record.progress * 100.0).floor().min(99.0) as u64,
    };
    let error = record.error.as_ref();
    let model = job.pointer("/models/model").and_then(Value::as_str);
    Ok(json!({
        "id": record.id,
        "object": "video",
        "model": model.unwrap_or(super::catalog::EMBEDDED),
        "status": status,
        "progress": progress,
        "created_at": record.created_at as u64,
        "completed_at": record.finished_at.filter(|_| output.is_some()).map(|at| at as u64),
        "expires_at": app.retention.expires_at(record).map(|at| at as u64),
        "prompt": job.pointer("/prompt/text").or(job.get("prompt")),
        "size": format!("{width}x{height}"),
        "seconds": seconds.to_string(),
        "remixed_from_video_id": record.notes["of"]["remixed_from"],
        "error": error.map(|error| json!({"code": error.code, "message": error.message})),
        "seed": job.pointer("/sampling/seed"),
        "fps": fps,
        "num_frames": frames,
        "queue_position": position,
        "eta_seconds": eta(app, record, position),
        "sha256": output.map(|output| &output.sha256),
        "cached": record.cached,
    }))
}

/// `GET /v1/videos/{id}`
pub(super) async fn get(State(app): State<Shared>, Path(id): Path<String>) -> Answer {
    let found = app.blocking(move |app| view(app, &find(app, &id)?)).await?;
    Ok(([POLL], Json(found)).into_response())
}

/// `GET /v1/videos`
pub(super) async fn list(
    State(app): State<Shared>,
    query: Result<Query<Page>, QueryRejection>,
) -> Answer<Json<Value>> {
    page(&app, query, view).await
}

/// `DELETE /v1/videos/{id}`: cancels, and forgets.
pub(super) async fn delete(
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    let removed = app.blocking(move |app| {
        remove(app, &id, true)?;
        Ok(json!({"id": id, "object": "video.deleted", "deleted": true}))
    });
    removed.await.map(Json)
}

/// `POST /v1/videos/{id}/cancel`
pub(super) async fn cancel(
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    let cancelled = app.blocking(move |app| {
        let record = find(app, &id)?;
        app.queue.cancel(&record.id).map_err(|error| app.problem(&error))?;
        view(app, &find(app, &id)?)
    });
    cancelled.await.map(Json)
}

/// `POST /v1/videos/{id}/remix`: the same with another prompt.
pub(super) async fn remix(
    State(app): State<Shared>,
    Path(id): Path<String>,
    request: Request,
) -> Answer<Json<Value>> {
    let owner = request.extensions().get::<Owner>().cloned().unwrap_or_default();
    let body = body::small_json(request).await?;
    let made = app.blocking(move |app| {
        let record = find(app, &id)?;
        let prompt = body.get("prompt").and_then(Value::as_str).filter(|text| !text.is_empty());
        let prompt = prompt.ok_or_else(|| Problem::invalid("prompt", "prompt: is missing"))?;
        let job = serde_json::from_value(record.job.clone());
        let mut job: Job =
            job.map_err(|_| Problem::internal("the job is of another version of the program"))?;
        prompt.clone_into(&mut job.request.prompt.text);
        let asked = Asked {
            job,
            format: record.format,
            priority: record.priority,
            owner: owner.0,
            notes: json!({"remixed_from": record.id}),
            idempotency: None,
        };
        let (record, _) = prepare::submit(app, asked)?;
        view(app, &record)
    });
    made.await.map(Json)
}

/// `GET /v1/videos/{id}/content`
pub(super) async fn content(
    State(app): State<Shared>,
    Path(id): Path<String>,
    query: Result<Query<content::Options>, QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    let not_ready = |_: &App, record: &Record| {
        let message = format!("the video is not complete: it is {}", record.status.name());
        Problem::new(StatusCode::NOT_FOUND, "not_ready", message)
    };
    content::answer(&app, id, query, &headers, not_ready).await
}

/// Calls of OpenAI's API that this program has no work for.
pub(super) async fn unsupported() -> Problem {
    let message = "edits, extensions and characters are not offered";
    Problem::unsupported("path", message).hint("`request.source` starts a clip from a video")
}
