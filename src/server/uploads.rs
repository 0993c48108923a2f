//! `/v1/uploads` and `/v1/inspect`: what clients send beside requests.

use std::io::Write;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::answer::{Answer, Problem};
use super::body::{self, File};
use super::state::{App, Shared};
use crate::Stop;
use crate::media::read::{Media, Selection};
use crate::output::metadata;
use crate::request::Job;

/// The one file of a form, in its field `file`.
async fn one_file(app: &Shared, request: Request) -> Answer<File> {
    let form = body::read(app, request).await?;
    let mut files = form.files;
    let file = files.remove("file");
    if !files.is_empty() || !form.texts.is_empty() {
        return Err(Problem::invalid("file", "the form has one field, the file `file`"));
    }
    file.ok_or_else(|| Problem::invalid("file", "the form has no file `file`"))
}

/// `POST /v1/uploads`: an image or a video that requests can name.
pub(super) async fn create(
    State(app): State<Shared>,
    request: Request,
) -> Answer<(StatusCode, Json<Value>)> {
    let file = one_file(&app, request).await?;
    let made = app.blocking(move |app| {
        if let Err(problem) = check(app, &file) {
            forget(app, &file);
            return Err(problem);
        }
        let id = format!("upload:{}", file.sha256);
        Ok(json!({"id": id, "object": "upload", "bytes": file.bytes, "name": file.name}))
    });
    made.await.map(|made| (StatusCode::CREATED, Json(made)))
}

/// Fails unless a first frame can be read, by the name that the client has for the file.
pub(super) fn check(app: &App, file: &File) -> Answer<()> {
    let bytes = contents(app, file)?;
    let first = Selection { count: Some(1), ..Selection::default() };
    let frames = Media::new(&file.name, bytes).frames("upload", first, &Stop::default());
    frames.map(|_| ()).map_err(|error| app.problem(&error))
}

fn contents(app: &App, file: &File) -> Answer<Vec<u8>> {
    let gone = || Problem::internal("the upload is not there");
    let path = app.uploads.open(&file.sha256).map_err(|error| app.problem(&error))?;
    std::fs::read(path.ok_or_else(gone)?).map_err(|_| gone())
}

/// Removes an upload that no job has.
fn forget(app: &App, file: &File) {
    if app.queue.is_used(&file.sha256).is_ok_and(|is_used| !is_used) {
        let _ = app.uploads.remove(&file.sha256);
    }
}

/// `POST /v1/inspect`: the request in a clip's metadata. Nothing of the clip is kept.
pub(super) async fn inspect(State(app): State<Shared>, request: Request) -> Answer<Json<Value>> {
    let file = one_file(&app, request).await?;
    let found = app.blocking(move |app| {
        let found = read(app, &file);
        forget(app, &file);
        found
    });
    found.await.map(Json)
}

fn read(app: &App, file: &File) -> Answer<Value> {
    // Its name has no meaning, so it is read under one of our own.
    let mut copy = tempfile::NamedTempFile::new_in(&app.drafts)
        .map_err(|_| Problem::internal("there is no place for the file"))?;
    copy.write_all(&contents(app, file)?)
        .map_err(|_| Problem::internal("there is no place for the file"))?;
    let name = copy.path().to_string_lossy().into_owned();
    let plain = |problem: &crate::Error| {
        let text = problem.to_string().replace(&name, &file.name);
        Problem::invalid("file", text)
    };
    let found = metadata::read(copy.path()).map_err(|error| plain(&error))?;
    let json = found.map(|found| found.request_json).filter(|json| !json.is_empty());
    let Some(json) = json else {
        let message = format!("{}: has no request of this program in it", file.name);
        return Err(Problem::invalid("file", message));
    };
    body::json(&json)?;
    let job = Job::from_json(&json).map_err(|error| plain(&error))?;
    Ok(json!({"job": job, "name": file.name}))
}
