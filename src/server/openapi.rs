//! The description of the API, as OpenAPI 3.1.

use serde_json::{Map, Value, json};

/// A call: method, path, summary, body, and the schema or media type of its answer.
type Call = (&'static str, &'static str, &'static str, Body, u16, &'static str);

/// What a call takes.
#[derive(Clone, Copy)]
enum Body {
    None,
    /// JSON of a schema.
    Json(&'static str),
    /// A form of a schema, or JSON of another.
    Form(&'static str, Option<&'static str>),
}

const CALLS: [Call; 33] = [
    ("get", "/", "The page", Body::None, 200, "text/html"),
    ("get", "/ui/{file}", "A script or the style of the page", Body::None, 200, "text/*"),
    ("get", "/health", "Whether the process lives", Body::None, 200, "Health"),
    ("get", "/ready", "Whether jobs are taken", Body::None, 200, "Ready"),
    ("get", "/metrics", "Counts and times", Body::None, 200, "application/openmetrics-text"),
    ("get", "/openapi.json", "This document", Body::None, 200, "Document"),
    ("get", "/v1/models", "What requests can name", Body::None, 200, "Models"),
    ("get", "/v1/models/{id}", "One of these", Body::None, 200, "Model"),
    ("get", "/v1/capabilities", "What this server can do", Body::None, 200, "Capabilities"),
    ("get", "/v1/workers", "Who makes clips", Body::None, 200, "Workers"),
    ("post", "/v1/login", "A key for a cookie", Body::Json("Login"), 200, "LoggedIn"),
    ("delete", "/v1/login", "Forgets the cookie", Body::None, 204, ""),
    (
        "post",
        "/v1/uploads",
        "Sends an image or a video",
        Body::Form("FileForm", None),
        201,
        "Upload",
    ),
    (
        "post",
        "/v1/inspect",
        "The request in a clip",
        Body::Form("FileForm", None),
        200,
        "Inspected",
    ),
    ("post", "/v1/jobs", "Makes a clip", Body::Form("JobForm", Some("Job")), 202, "Record"),
    ("get", "/v1/jobs", "Jobs, newest first", Body::None, 200, "Records"),
    ("get", "/v1/jobs/{id}", "A job", Body::None, 200, "Record"),
    ("delete", "/v1/jobs/{id}", "Forgets a job that has ended", Body::None, 204, ""),
    ("post", "/v1/jobs/{id}/cancel", "Cancels a job", Body::None, 200, "Record"),
    ("get", "/v1/jobs/{id}/events", "Events of a job", Body::None, 200, "text/event-stream"),
    ("get", "/v1/jobs/{id}/content", "The clip", Body::None, 200, "application/octet-stream"),
    (
        "get",
        "/v1/jobs/{id}/preview",
        "What a running clip looks like",
        Body::None,
        200,
        "image/jpeg",
    ),
    ("get", "/v1/events", "Events of all jobs", Body::None, 200, "text/event-stream"),
    (
        "post",
        "/v1/videos",
        "Makes a clip",
        Body::Form("VideoForm", Some("VideoForm")),
        200,
        "Video",
    ),
    ("get", "/v1/videos", "Videos, newest first", Body::None, 200, "Videos"),
    ("post", "/v1/videos/edits", "Not offered", Body::None, 400, "Error"),
    ("post", "/v1/videos/extensions", "Not offered", Body::None, 400, "Error"),
    ("post", "/v1/videos/characters", "Not offered", Body::None, 400, "Error"),
    ("get", "/v1/videos/{id}", "A video", Body::None, 200, "Video"),
    ("delete", "/v1/videos/{id}", "Cancels and forgets", Body::None, 200, "Deleted"),
    ("post", "/v1/videos/{id}/cancel", "Cancels", Body::None, 200, "Video"),
    (
        "post",
        "/v1/videos/{id}/remix",
        "The same with another prompt",
        Body::Json("Remix"),
        200,
        "Video",
    ),
    ("get", "/v1/videos/{id}/content", "The clip", Body::None, 200, "application/octet-stream"),
];

/// Parameters of the query by path and method.
fn query(method: &str, path: &str) -> Vec<Value> {
    let parameter =
        |name: &str, schema: Value| json!({"name": name, "in": "query", "schema": schema});
    let words = |words: &[&str]| json!({"type": "string", "enum": words});
    let status = ["queued", "running", "completed", "failed", "cancelled", "expired"];
    match (method, path) {
        ("get", "/v1/jobs" | "/v1/videos") => vec![
            parameter("after", json!({"type": "string"})),
            parameter("limit", json!({"type": "integer", "minimum": 0, "maximum": 100})),
            parameter("order", words(&["asc", "desc"])),
            parameter("status", words(&status)),
        ],
        ("post", "/v1/jobs") => vec![
            parameter("format", json!({"type": "string"})),
            parameter("priority", words(&["normal", "high"])),
        ],
        ("delete", "/v1/jobs/{id}") => vec![parameter("cancel", json!({"type": "boolean"}))],
        ("get", path) if path.ends_with("/content") => {
            vec![parameter("variant", words(&["video", "thumbnail", "spritesheet"]))]
        }
        _ => vec![],
    }
}

/// The document.
pub(super) fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for (method, path, summary, body, status, answer) in CALLS {
        let mut parameters = query(method, path);
        let name = path.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        if let Some((name, _)) = name {
            let schema = json!({"type": "string"});
            parameters
                .push(json!({"name": name, "in": "path", "required": true, "schema": schema}));
        }
        let mut call = json!({
            "summary": summary,
            "operationId": operation(method, path),
            "parameters": parameters,
            "responses": {
                status.to_string(): response(summary, answer),
                "default": response("What is wrong", "Error"),
            },
        });
        let schema = |name: &str| json!({"schema": reference(name)});
        match body {
            Body::None => {}
            Body::Json(name) => {
                call["requestBody"] = json!({"content": {"application/json": schema(name)}});
            }
            Body::Form(form, json) => {
                let mut content = json!({"multipart/form-data": schema(form)});
                if let Some(name) = json {
                    content["application/json"] = schema(name);
                }
                call["requestBody"] = json!({"required": true, "content": content});
            }
        }
        let place = paths.entry(path.to_owned()).or_insert_with(|| json!({}));
        place[method] = call;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "animatelcm",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "animatelcm"},
            },
        },
        "security": [{}, {"bearer": []}, {"cookie": []}],
    })
}

fn operation(method: &str, path: &str) -> String {
    let words =
        path.split(['/', '.', '{', '}', '_']).filter(|word| !word.is_empty() && *word != "v1");
    let name: Vec<_> = std::iter::once(method).chain(words).collect();
    name.join("_")
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// An answer: a schema's JSON, another media type, or nothing.
fn response(description: &str, answer: &str) -> Value {
    if answer.is_empty() {
        return json!({"description": description});
    }
    let (kind, schema) = if answer.contains('/') {
        (answer, json!({"type": "string"}))
    } else {
        ("application/json", reference(answer))
    };
    json!({"description": description, "content": {kind: {"schema": schema}}})
}

/// An object with fields, those that end in `?` not always there. Other fields may stand beside them.
fn object(fields: &[(&str, Value)]) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (name, schema) in fields {
        let plain = name.trim_end_matches('?');
        if plain == *name {
            required.push(plain);
        }
        properties.insert(plain.to_owned(), schema.clone());
    }
    json!({"type": "object", "properties": properties, "required": required})
}

fn list(of: &str) -> Value {
    let id = || json!({"type": ["string", "null"]});
    object(&[
        ("object", json!({"const": "list"})),
        ("data", json!({"type": "array", "items": reference(of)})),
        ("first_id", id()),
        ("last_id", id()),
        ("has_more", json!({"type": "boolean"})),
    ])
}

fn schemas() -> Value {
    let text = || json!({"type": "string"});
    let number = || json!({"type": "number"});
    let whole = || json!({"type": "integer"});
    let truth = || json!({"type": "boolean"});
    // Fields of a form are text.
    let count = || json!({"type": ["integer", "string"]});
    let amount = || json!({"type": ["number", "string"]});
    let any = || json!({"type": "object"});
    let texts = || json!({"type": "array", "items": {"type": "string"}});
    let or_null = |kind: &str| json!({"type": [kind, "null"]});
    let file = || json!({"type": "string", "contentMediaType": "application/octet-stream"});
    let section = |what: &str| json!({"type": "object", "description": what});
    json!({
        "Error": object(&[("error", object(&[
            ("message", text()),
            ("type", json!({"enum": ["invalid_request_error", "server_error"]})),
            ("param", or_null("string")),
            ("code", text()),
            ("hint?", text()),
        ]))]),
        "Health": object(&[("status", json!({"const": "ok"})), ("version", text())]),
        "Ready": object(&[("status", json!({"const": "ready"})), ("workers", whole())]),
        "Document": any(),
        "Model": object(&[
            ("id", text()), ("object", json!({"const": "model"})), ("created", whole()), ("owned_by", text()),
            ("kind", text()), ("title", or_null("string")), ("license", or_null("string")), ("embedded", truth()),
        ]),
        "Models": object(&[
            ("object", json!({"const": "list"})),
            ("data", json!({"type": "array", "items": reference("Model")})),
        ]),
        "Workers": object(&[
            ("object", json!({"const": "list"})),
            ("data", json!({"type": "array", "items": object(&[
                ("id", text()), ("device", text()), ("version", text()), ("job", or_null("string")),
            ])})),
        ]),
        "Capabilities": object(&[
            ("version", text()), ("schema", text()), ("formats", texts()), ("default_format", text()),
            ("samplers", texts()), ("spacings", texts()), ("preprocessors", texts()),
            ("defaults", reference("Job")), ("limits", any()), ("keep_seconds", whole()), ("needs_key", truth()),
        ]),
        "Login": object(&[("key", text())]),
        "LoggedIn": object(&[("owner", or_null("string"))]),
        "FileForm": object(&[("file", file())]),
        "Upload": object(&[
            ("id", text()), ("object", json!({"const": "upload"})), ("bytes", whole()), ("name", text()),
        ]),
        "Inspected": object(&[("job", reference("Job")), ("name", text())]),
        "JobForm": {
            "type": "object",
            "properties": {"job": {"type": "string", "description": "the JSON of a Job"}},
            "required": ["job"],
            "additionalProperties": file(),
            "description": "files by field; `upload:FIELD` in the job names them",
        },
        "Job": {
            "type": "object",
            "description": "a request of this program, as `animatelcm generate --dump-request` prints one",
            "properties": {
                "schema": {"const": "animatelcm/v1"},
                "models": section("weights by names of /v1/models"),
                "prompt": {"type": ["string", "object"]},
                "source": section("an image or video to start from"),
                "size": section("width, height, frames"),
                "sampling": section("sampler, steps, cfg_scale, seed"),
                "schedule": section("noise levels"),
                "quality": section("options for quality"),
                "controls": {"type": "array", "items": {"type": "object"}},
                "ip_adapters": {"type": "array", "items": {"type": "object"}},
                "windows": section("context windows of long clips"),
                "output": section("fps, zoom, loop"),
            },
            "required": ["schema"],
        },
        "Output": object(&[
            ("format", text()), ("bytes", whole()), ("sha256", text()), ("width", whole()), ("height", whole()),
            ("frames", whole()), ("fps", number()), ("seconds", number()), ("job_seconds", number()),
            ("step_seconds", json!({"type": "array", "items": {"type": "number"}})), ("device", text()),
        ]),
        "Preview": object(&[
            ("url", text()), ("frames", whole()), ("columns", whole()), ("width", whole()), ("height", whole()),
        ]),
        "Failure": object(&[
            ("code", text()), ("message", text()), ("hint?", or_null("string")), ("exit_code", whole()),
        ]),
        "Record": object(&[
            ("id", text()), ("object", json!({"const": "job"})), ("key", text()),
            ("status", json!({"enum": ["queued", "running", "completed", "failed", "cancelled", "expired"]})),
            ("position", or_null("integer")), ("attempt", whole()), ("priority", json!({"enum": ["normal", "high"]})),
            ("created_at", number()), ("started_at", or_null("number")), ("finished_at", or_null("number")),
            ("expires_at", or_null("number")), ("progress", number()), ("eta_seconds", or_null("number")),
            ("worker", or_null("string")), ("cached", truth()), ("format", text()), ("job", reference("Job")),
            ("output", json!({"anyOf": [reference("Output"), {"type": "null"}]})),
            ("preview", json!({"anyOf": [reference("Preview"), {"type": "null"}]})),
            ("error", json!({"anyOf": [reference("Failure"), {"type": "null"}]})),
            ("links", any()),
        ]),
        "Records": list("Record"),
        "VideoForm": object(&[
            ("prompt", json!({"type": "string", "minLength": 1, "maxLength": 32000})),
            ("model?", text()), ("seconds?", json!({"type": ["string", "number"]})), ("size?", text()),
            ("input_reference?", json!({"type": ["string", "object"]})),
            ("num_frames?", count()), ("frames?", count()),
            ("fps?", amount()), ("width?", count()),
            ("height?", count()),
            ("num_inference_steps?", count()),
            ("guidance_scale?", amount()), ("seed?", count()),
            ("negative_prompt?", text()), ("lora?", json!({"type": ["string", "array", "object"]})),
            ("request?", json!({"type": ["string", "object"]})), ("output_format?", text()),
        ]),
        "Remix": object(&[("prompt", text())]),
        "Video": object(&[
            ("id", text()), ("object", json!({"const": "video"})), ("model", text()),
            ("status", json!({"enum": ["queued", "in_progress", "completed", "failed"]})),
            ("progress", json!({"type": "integer", "minimum": 0, "maximum": 100})), ("created_at", whole()),
            ("completed_at", or_null("integer")), ("expires_at", or_null("integer")), ("prompt", or_null("string")),
            ("size", text()), ("seconds", text()), ("remixed_from_video_id", or_null("string")),
            ("error", json!({"anyOf": [object(&[("code", text()), ("message", text())]), {"type": "null"}]})),
            ("seed", or_null("integer")), ("fps", number()), ("num_frames", whole()),
            ("queue_position", or_null("integer")), ("eta_seconds", or_null("number")),
            ("sha256", or_null("string")), ("cached", truth()),
        ]),
        "Videos": list("Video"),
        "Deleted": object(&[
            ("id", text()), ("object", json!({"const": "video.deleted"})), ("deleted", json!({"const": true})),
        ]),
    })
}
