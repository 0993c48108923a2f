//! Events as they come: SSE, which goes on after a break where it stopped.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::answer::{Answer, Problem};
use super::jobs::find;
use super::previews;
use super::state::Shared;
use crate::queue::{Event, JobId};

/// Time between comments that keep a connection open.
const ALIVE: Duration = Duration::from_secs(15);

/// When a client whose server is being stopped is to come again.
const RETRY: Duration = Duration::from_secs(2);

/// Events after which a job has no more.
const LAST: [&str; 5] = ["done", "error", "cancelled", "expired", "deleted"];

/// A client that listens.
struct Listener {
    app: Shared,
    job: Option<JobId>,
    after: u64,
    waiting: VecDeque<Event>,
    revision: watch::Receiver<u64>,
    has_ended: bool,
    _place: OwnedSemaphorePermit,
}

/// `GET /v1/events`: of all jobs, from now or from `Last-Event-ID` on.
pub(super) async fn all(State(app): State<Shared>, headers: HeaderMap) -> Answer {
    let after = last(&headers).unwrap_or_else(|| app.queue.wait(u64::MAX, Duration::ZERO));
    listen(app, None, after)
}

/// `GET /v1/jobs/{id}/events`: of one job, from its beginning or from `Last-Event-ID` on.
pub(super) async fn of_job(
    State(app): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let after = last(&headers).unwrap_or(0);
    let (record, has_more) = app
        .blocking(move |app| {
            let record = find(app, &id)?;
            let events = app.queue.events(after, Some(&record.id));
            let events = events.map_err(|error| app.problem(&error))?;
            let has_more = !record.status.has_ended() || !events.is_empty();
            Ok((record, has_more))
        })
        .await?;
    if !has_more {
        // With this status a browser does not come again.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    listen(app, Some(record.id), after)
}

fn last(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.trim().parse().ok()
}

fn listen(app: Shared, job: Option<JobId>, after: u64) -> Answer<Response> {
    let Ok(place) = app.streams.clone().try_acquire_owned() else {
        let message = "too many connections listen to events";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", message);
        return Err(problem.retry_after(5));
    };
    let revision = app.revision.clone();
    let listener = Listener {
        app,
        job,
        after,
        waiting: VecDeque::new(),
        revision,
        has_ended: false,
        _place: place,
    };
    let messages = stream::unfold(listener, |mut listener| async move {
        let message = listener.next().await?;
        Some((Ok::<_, Infallible>(message), listener))
    });
    let mut answer =
        Sse::new(messages).keep_alive(KeepAlive::new().interval(ALIVE)).into_response();
    // Proxies that gather answers would keep events back.
    answer.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    Ok(answer)
}

impl Listener {
    /// The next message; `None` after the last.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                self.after = event.revision;
                return Some(self.message(&event));
            }
            if self.has_ended {
                return None;
            }
            // What comes between the look and the wait is not missed.
            self.revision.mark_unchanged();
            let (after, job) = (self.after, self.job.clone());
            let look = self.app.blocking(move |app| {
                let events = app.queue.events(after, job.as_ref());
                let events = events.map_err(|error| app.problem(&error))?;
                let record = job.map(|job| app.queue.get(&job)).transpose();
                let record = record.map_err(|error| app.problem(&error))?.flatten();
                Ok((events, record.is_some_and(|record| !record.status.has_ended())))
            });
            let (events, goes_on) = look.await.ok()?;
            self.waiting.extend(events);
            if !self.waiting.is_empty() {
                continue;
            }
            if self.job.is_some() && !goes_on {
                return None;
            }
            if self.app.stop.is_requested() {
                self.has_ended = true;
                return Some(
                    Message::default().retry(RETRY).comment("the server is being stopped"),
                );
            }
            // Also wakes to see that the server is being stopped.
            let changed = self.revision.changed();
            if let Ok(Err(_)) = tokio::time::timeout(Duration::from_millis(500), changed).await {
                return None;
            }
        }
    }

    fn message(&mut self, event: &Event) -> Message {
        let mut value: Value = serde_json::from_str(&event.json).unwrap_or_default();
        let name = value["event"].as_str().unwrap_or("message").to_owned();
        match name.as_str() {
            "done" => value["url"] = format!("/v1/jobs/{}/content", event.job).into(),
            "preview" => {
                value["url"] = previews::url(&event.job).into();
                value["columns"] = value["frames"].clone();
            }
            _ => {}
        }
        if self.job.is_some() && LAST.contains(&name.as_str()) && self.waiting.is_empty() {
            self.has_ended = true;
        }
        Message::default().id(event.revision.to_string()).event(name).data(value.to_string())
    }
}
