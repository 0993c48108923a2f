//! Answers: JSON, and errors in OpenAI's form.

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::{Error, ErrorKind};

/// What a handler that fails answers.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
    hint: Option<String>,
    retry_after: Option<u64>,
}

/// An answer, or what is wrong.
pub(super) type Answer<T = Response> = Result<T, Problem>;

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, code, message, param: None, hint: None, retry_after: None }
    }

    /// A wrong value of a field.
    pub(super) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message).param(param)
    }

    /// Something that is not offered.
    pub(super) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unsupported", message).param(param)
    }

    pub(super) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"))
    }

    pub(super) fn too_large(limit: u64) -> Self {
        let message = format!("the body has more than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    /// An error of the library; `plain` removes paths from texts.
    pub(super) fn of(error: &Error, plain: &dyn Fn(&str) -> String) -> Self {
        let (status, code) = match error.kind() {
            ErrorKind::Request => (StatusCode::BAD_REQUEST, "invalid_request"),
            ErrorKind::Weights => (StatusCode::NOT_FOUND, "model_not_found"),
            ErrorKind::Refused => (StatusCode::BAD_REQUEST, "refused"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        let mut inner = error;
        while let Error::Hinted { error, .. } = inner {
            inner = error;
        }
        let param = match inner {
            Error::Request { field, .. } => Some(field.to_string()),
            _ => None,
        };
        let message = plain(&error.to_string()).replace('\n', " ");
        let hint = error.hint().map(|hint| plain(&hint).replace('\n', " "));
        Self { param, hint, ..Self::new(status, code, message) }
    }

    pub(super) fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// When to try again, in seconds.
    pub(super) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, code, message, param, hint, retry_after } = self;
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        let mut error = json!({"message": message, "type": kind, "param": param, "code": code});
        if let Some(hint) = hint {
            error["hint"] = hint.into();
        }
        let mut headers = HeaderMap::new();
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        } else if status.is_server_error() {
            // A client that tried again would meet the same.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        (status, headers, Json(json!({"error": error}))).into_response()
    }
}
