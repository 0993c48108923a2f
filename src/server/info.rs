//! What the server is and can do.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::answer::{Answer, Problem};
use super::openapi;
use super::prepare::{self, formats};
use super::state::Shared;
use crate::preprocess::Preprocessor;
use crate::queue::{Filter, Present, Status};
use crate::request::Job;
use crate::sampler::SamplerKind;
use crate::schedule::Spacing;

/// Spacings that a client can choose.
const SPACINGS: [Spacing; 7] = [
    Spacing::SD15,
    Spacing::Trailing,
    Spacing::Linspace,
    Spacing::Karras,
    Spacing::Exponential,
    Spacing::SgmUniform,
    Spacing::Ays,
];

/// `GET /health`: 200 while the process lives.
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /ready`: 200 while jobs are taken.
pub(super) async fn ready(State(app): State<Shared>) -> Answer<Json<Value>> {
    if app.stop.is_requested() {
        return Err(prepare::draining());
    }
    let workers = app.blocking(|app| Ok(app.hands().len())).await?;
    Ok(Json(json!({"status": "ready", "workers": workers})))
}

/// `GET /v1/models`
pub(super) async fn models(State(app): State<Shared>) -> Json<Value> {
    Json(app.catalog.to_json())
}

/// `GET /v1/models/{id}`
pub(super) async fn model(
    State(app): State<Shared>,
    axum::extract::Path(id): axum::extract::Path<String>,
) -> Answer<Json<Value>> {
    let list = app.catalog.to_json();
    let found = list["data"].as_array().and_then(|all| all.iter().find(|entry| entry["id"] == id));
    found.cloned().map(Json).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "model_not_found", "this server has no such model")
    })
}

/// `GET /v1/capabilities`
pub(super) async fn capabilities(State(app): State<Shared>) -> Json<Value> {
    let limits = app.limits;
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "schema": crate::request::SCHEMA,
        "formats": formats(),
        "default_format": prepare::usual_format(),
        "samplers": SamplerKind::ALL.map(SamplerKind::name),
        "spacings": SPACINGS.map(|spacing| spacing.to_string()),
        "preprocessors": Preprocessor::names(),
        "defaults": Job::default(),
        "limits": {
            "queue": limits.queue,
            "upload_bytes": limits.upload,
            "frames": limits.frames,
            "pixels": limits.pixels,
            "prompt_characters": 32_000,
        },
        "keep_seconds": app.retention.keep.as_secs(),
        "needs_key": app.keys.is_some(),
    }))
}

/// `GET /v1/workers`
pub(super) async fn workers(State(app): State<Shared>) -> Answer<Json<Value>> {
    let listed = app.blocking(|app| {
        let running = Filter { status: Some(Status::Running), ..Filter::default() };
        let running = app.queue.list(&running).map_err(|error| app.problem(&error))?;
        let worker = |Present { id, device, version }: &Present| {
            let job = running.iter().find(|record| record.worker.as_ref() == Some(id));
            json!({
                "id": id,
                "device": device,
                "version": version,
                "job": job.map(|record| &record.id),
            })
        };
        let data: Vec<_> = app.hands().iter().map(worker).collect();
        Ok(json!({"object": "list", "data": data}))
    });
    listed.await.map(Json)
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<Shared>) -> Answer {
    let text = app.blocking(|app| {
        for status in Status::ALL {
            let count = app.queue.count(status).map_err(|error| app.problem(&error))?;
            app.metrics.are(status, count);
        }
        app.metrics.text().map_err(|_| Problem::internal("the metrics cannot be written"))
    });
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text.await?).into_response())
}

/// `GET /openapi.json`
pub(super) async fn document() -> Json<Value> {
    Json(openapi::document())
}
