//! `/v1/jobs`: this program's own requests.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, Problem};
use super::auth::Owner;
use super::body::{self, Form};
use super::prepare::{self, Asked};
use super::previews;
use super::state::{App, Shared};
use crate::Error;
use crate::queue::{Filter, JobId, Priority, Record, Status, unix_time};
use crate::request::Job;

/// Most records of a list.
const MOST: usize = 100;

/// Records of a list for which no number is said.
const USUAL: usize = 20;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Options {
    format: Option<String>,
    priority: Option<String>,
}

/// `POST /v1/jobs`
pub(super) async fn create(State(app): State<Shared>, request: Request) -> Answer {
    if app.stop.is_requested() {
        return Err(prepare::draining());
    }
    let owner = request.extensions().get::<Owner>().cloned().unwrap_or_default();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let options = Query::<Options>::try_from_uri(request.uri());
    let Query(options) = options.map_err(|error| Problem::invalid("query", error.body_text()))?;
    let name =
        request.headers().get("idempotency-key").map(|name| name.to_str().map(str::to_owned));
    let name = name
        .transpose()
        .ok()
        .filter(|name| name.as_ref().is_none_or(|name| !name.is_empty() && name.len() <= 255));
    let Some(name) = name else {
        let message = "an Idempotency-Key has from 1 to 255 visible characters";
        return Err(Problem::invalid("Idempotency-Key", message));
    };
    let form = body::read(&app, request).await?;
    let (record, is_new) = app
        .blocking(move |app| {
            let priority = match options.priority.as_deref() {
                None | Some("normal") => Priority::Normal,
                Some("high") => Priority::High,
                Some(_) => {
                    return Err(Problem::invalid("priority", "priority is `normal` or `high`"));
                }
            };
            let asked = Asked {
                job: job(app, &form)?,
                format: options.format.unwrap_or_else(|| prepare::usual_format().to_owned()),
                priority,
                owner: owner.0,
                notes: Value::Null,
                idempotency: name.map(|name| (name, form.sha256(&query))),
            };
            let (record, is_new) = prepare::submit(app, asked)?;
            Ok((view(app, &record)?, is_new))
        })
        .await?;
    let status = if is_new { StatusCode::ACCEPTED } else { StatusCode::OK };
    let place = format!("/v1/jobs/{}", record["id"].as_str().unwrap_or_default());
    let mut answer = (status, Json(record)).into_response();
    if let Ok(place) = HeaderValue::from_str(&place) {
        answer.headers_mut().insert(header::LOCATION, place);
    }
    Ok(answer)
}

/// The job of a body, in which `upload:FIELD` stands for the file of a field.
fn job(app: &App, form: &Form) -> Answer<Job> {
    let field = if form.is_json { "" } else { "job" };
    if let Some(other) = form.texts.keys().find(|name| *name != field) {
        let message = format!("the form has a text field `{other}`; the request is in `job`");
        return Err(Problem::invalid("job", message));
    }
    let Some(text) = form.texts.get(field) else {
        return Err(Problem::invalid("job", "the form has no text field `job`"));
    };
    let mut value = body::json(text)?;
    let names: BTreeMap<String, String> = form
        .files
        .iter()
        .map(|(field, file)| (format!("upload:{field}"), format!("upload:{}", file.sha256)))
        .collect();
    rename(&mut value, &names);

    serde_json::from_value(value)
        .map_err(|error| app.problem(&Error::request("job", format!("not a request: {error}"))))
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::String(text) => {
            if let Some(name) = names.get(text) {
                text.clone_from(name);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, names)),
        Value::Object(fields) => fields.values_mut().for_each(|field| rename(field, names)),
        _ => {}
    }
}

/// A record as clients see it.
pub(super) fn view(app: &App, record: &Record) -> Answer<Value> {
    let position = match record.status {
        Status::Queued => app.queue.position(&record.id).map_err(|error| app.problem(&error))?,
        _ => None,
    };
    let id = record.id.as_str();
    let Record { key, status, attempt, created_at, started_at, finished_at, .. } = record;
    let Record { progress, worker, cached, format, priority, job, output, error, .. } = record;
    Ok(json!({
        "id": id,
        "object": "job",
        "key": key,
        "status": status,
        "position": position,
        "attempt": attempt,
        "priority": priority,
        "created_at": created_at,
        "started_at": started_at,
        "finished_at": finished_at,
        "expires_at": app.retention.expires_at(record),
        "progress": progress,
        "eta_seconds": eta(app, record, position),
        "worker": worker,
        "cached": cached,
        "format": format,
        "job": job,
        "output": output,
        "preview": app.previews.view(&record.id),
        "error": error,
        "links": {
            "self": format!("/v1/jobs/{id}"),
            "events": format!("/v1/jobs/{id}/events"),
            "content": format!("/v1/jobs/{id}/content"),
            "cancel": format!("/v1/jobs/{id}/cancel"),
            "preview": previews::url(id),
        },
    }))
}

/// Seconds until a job is done, as far as can be told.
pub(super) fn eta(app: &App, record: &Record, position: Option<usize>) -> Option<f64> {
    match (record.status, position, record.started_at) {
        (Status::Running, _, Some(started)) if record.progress > 0.0 => {
            let progress = f64::from(record.progress);
            let passed = (unix_time() - started).max(0.0);
            Some(passed / progress * (1.0 - progress))
        }
        (Status::Queued, Some(position), _) => {
            let rounds = (position as f64 / app.hands().len().max(1) as f64).ceil();
            app.pace.median().map(|median| median * rounds)
        }
        _ => None,
    }
}

/// The record of a name.
pub(super) fn find(app: &App, id: &str) -> Answer<Record> {
    let record = match JobId::parse(id) {
        Some(id) => app.queue.get(&id).map_err(|error| app.problem(&error))?,
        None => None,
    };
    record.ok_or_else(|| Problem::not_found("job"))
}

/// `GET /v1/jobs/{id}`
pub(super) async fn get(State(app): State<Shared>, Path(id): Path<String>) -> Answer<Json<Value>> {
    app.blocking(move |app| view(app, &find(app, &id)?)).await.map(Json)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    after: Option<String>,
    limit: Option<usize>,
    order: Option<String>,
    status: Option<String>,
}

impl Page {
    /// The filter that it means.
    fn filter(&self) -> Answer<Filter> {
        let limit = self.limit.unwrap_or(USUAL);
        if limit > MOST {
            return Err(Problem::invalid("limit", format!("limit is at most {MOST}")));
        }
        let is_ascending = match self.order.as_deref() {
            None | Some("desc") => false,
            Some("asc") => true,
            Some(_) => return Err(Problem::invalid("order", "order is `asc` or `desc`")),
        };
        let after = self.after.as_deref().map(|after| {
            JobId::parse(after).ok_or_else(|| Problem::invalid("after", "after is a job's id"))
        });
        let status = self.status.as_deref().map(|status| {
            let known = Status::ALL.map(Status::name).join(", ");
            Status::named(status)
                .ok_or_else(|| Problem::invalid("status", format!("status is one of {known}")))
        });
        // One more tells whether there are more.
        let (after, status) = (after.transpose()?, status.transpose()?);
        Ok(Filter { after, limit: limit + 1, is_ascending, status })
    }
}

/// A page of records in OpenAI's form.
pub(super) async fn page(
    app: &Shared,
    query: Result<Query<Page>, QueryRejection>,
    view: impl Fn(&App, &Record) -> Answer<Value> + Send + 'static,
) -> Answer<Json<Value>> {
    let Query(page) = query.map_err(|error| Problem::invalid("query", error.body_text()))?;
    let filter = page.filter()?;
    app.blocking(move |app| {
        let mut records = app.queue.list(&filter).map_err(|error| app.problem(&error))?;
        let has_more = records.len() >= filter.limit;
        records.truncate(filter.limit - 1);
        let data: Vec<Value> =
            records.iter().map(|record| view(app, record)).collect::<Answer<_>>()?;
        let id = |record: Option<&Record>| record.map(|record| record.id.to_string());
        Ok(Json(json!({
            "object": "list",
            "data": data,
            "first_id": id(records.first()),
            "last_id": id(records.last()),
            "has_more": has_more,
        })))
    })
    .await
}

/// `GET /v1/jobs`
pub(super) async fn list(
    State(app): State<Shared>,
    query: Result<Query<Page>, QueryRejection>,
) -> Answer<Json<Value>> {
    page(&app, query, view).await
}

/// `POST /v1/jobs/{id}/cancel`
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

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Removal {
    #[serde(default)]
    cancel: bool,
}

/// `DELETE /v1/jobs/{id}`
pub(super) async fn delete(
    State(app): State<Shared>,
    Path(id): Path<String>,
    query: Result<Query<Removal>, QueryRejection>,
) -> Answer<Response> {
    let Query(asked) = query.map_err(|error| Problem::invalid("query", error.body_text()))?;
    let removed = app.blocking(move |app| remove(app, &id, asked.cancel));
    removed.await.map(|()| StatusCode::NO_CONTENT.into_response())
}

/// Forgets a job and its clip, unless another job has the same.
pub(super) fn remove(app: &App, id: &str, cancels: bool) -> Answer<()> {
    let failed = |error: Error| app.problem(&error);
    let record = find(app, id)?;
    if cancels {
        app.queue.cancel(&record.id).map_err(failed)?;
    }
    if !app.queue.remove(&record.id).map_err(failed)? {
        let message = "the job has not ended; `?cancel=true` cancels it first";
        // A job that runs now may have ended at the next attempt.
        return Err(Problem::new(StatusCode::CONFLICT, "not_ended", message).retry_after(1));
    }
    if let Some(output) = record.output
        && !app.queue.is_used(&output.sha256).map_err(failed)?
    {
        app.clips.remove(&output.sha256).map_err(failed)?;
    }
    Ok(())
}
