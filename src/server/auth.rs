//! Keys and cookies of requests.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answer::{Answer, Problem};
use super::body;
use super::page;
use super::sessions::LASTS;
use super::state::{App, Shared};
use crate::queue::random;

const COOKIE: &str = "animatelcm";

/// Routes that need no key.
const OPEN: [&str; 6] = ["/", "/health", "/ready", "/openapi.json", "/v1/login", "/favicon.ico"];

/// Whether a path needs no key.
fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || path.starts_with(page::FOLDER)
}

/// The owner of the key that a request came with; empty if none is needed.
#[derive(Clone, Debug, Default)]
pub(super) struct Owner(pub(super) String);

/// Lets requests with a key or a cookie pass, and tells handlers whose it is.
pub(super) async fn authenticate(
    State(app): State<Shared>,
    mut request: Request,
    next: Next,
) -> Response {
    let owner = match &app.keys {
        None => Some(String::new()),
        Some(_) if is_open(request.uri().path()) => Some(String::new()),
        Some(_) => owner(&app, request.headers()),
    };
    let Some(owner) = owner else {
        let message = "this server needs a key: `Authorization: Bearer KEY`";
        let code = "invalid_api_key";
        return Problem::new(StatusCode::UNAUTHORIZED, code, message).into_response();
    };
    request.extensions_mut().insert(Owner(owner));
    next.run(request).await
}

fn owner(app: &App, headers: &HeaderMap) -> Option<String> {
    let keys = app.keys.as_ref()?;
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    if let Some(key) = bearer.or(text("x-api-key")) {
        return keys.owner(key);
    }
    // A key that was removed takes its cookies along.
    app.sessions.owner(token(headers)?).filter(|owner| keys.has(owner))
}

/// The token in a request's cookie.
fn token(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then_some(value))
}

fn cookie(headers: &HeaderMap, token: &str, seconds: u64) -> Option<HeaderValue> {
    let is_https = headers.get("x-forwarded-proto").is_some_and(|value| value == "https");
    let secure = if is_https { "; Secure" } else { "" };
    let text =
        format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age={seconds}{secure}");
    HeaderValue::from_str(&text).ok()
}

/// `POST /v1/login`: a key for a cookie, since event streams and videos of a page send no header.
pub(super) async fn log_in(State(app): State<Shared>, request: Request) -> Answer {
    let headers = request.headers().clone();
    let body = body::small_json(request).await?;
    let key = body.get("key").and_then(Value::as_str).unwrap_or_default();
    let Some(keys) = &app.keys else { return Ok(Json(json!({"owner": null})).into_response()) };
    let Some(owner) = keys.owner(key) else {
        let message = "this is not a key of the server";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
    };
    let token = random::<32>().map_err(|error| app.problem(&error))?;
    let mut answer = Json(json!({"owner": owner})).into_response();
    if let Some(cookie) = cookie(&headers, &token, LASTS.as_secs()) {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    app.sessions.add(token, owner);
    Ok(answer)
}

/// `DELETE /v1/login`: forgets the cookie.
pub(super) async fn log_out(State(app): State<Shared>, headers: HeaderMap) -> Answer {
    if let Some(token) = token(&headers) {
        app.sessions.remove(token);
    }
    let mut answer = StatusCode::NO_CONTENT.into_response();
    if let Some(cookie) = cookie(&headers, "", 0) {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(answer)
}
