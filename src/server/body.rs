//! Bodies of requests, within limits.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{StatusCode, header};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::answer::{Answer, Problem};
use super::state::Shared;
use crate::files::hex;

/// Most bytes of a JSON body, and of a text field of a form.
const MOST_TEXT: usize = 1 << 20;

/// Most fields of a form.
const MOST_FIELDS: usize = 64;

/// Deepest nesting of JSON.
const DEEPEST: usize = 32;

/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(600);

/// A body: texts by field, and the hashes of files by field.
#[derive(Debug, Default)]
pub(super) struct Form {
    /// Text fields; for a JSON body only `""`, which is all of it.
    pub(super) texts: BTreeMap<String, String>,
    /// Files, which are among the uploads now, with the names that the client has for them.
    pub(super) files: BTreeMap<String, File>,
    /// Whether it was JSON.
    pub(super) is_json: bool,
}

/// A file of a form.
#[derive(Clone, Debug)]
pub(super) struct File {
    /// Its SHA-256 among the uploads.
    pub(super) sha256: String,
    /// Its length.
    pub(super) bytes: u64,
    /// The client's name of it, for messages.
    pub(super) name: String,
}

impl Form {
    /// The SHA-256 of all that was sent.
    pub(super) fn sha256(&self, query: &str) -> String {
        let files: BTreeMap<_, _> =
            self.files.iter().map(|(field, file)| (field, &file.sha256)).collect();
        let all = serde_json::json!([query, self.texts, files]).to_string();
        hex(Sha256::new_with_prefix(all))
    }
}

fn malformed(message: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_request", message)
}

/// Reads a JSON body, or a form whose files go among the uploads.
pub(super) async fn read(app: &Shared, request: Request) -> Answer<Form> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().to_ascii_lowercase();
    let read = async {
        if kind.starts_with("multipart/form-data") {
            let _place = app.bodies.acquire().await;
            return form(app, request).await;
        }
        if kind.starts_with("application/json") {
            let text = text(request, MOST_TEXT).await?;
            let texts = BTreeMap::from([(String::new(), text)]);
            return Ok(Form { texts, is_json: true, ..Form::default() });
        }
        let code = "unsupported_media_type";
        let message = "a body is application/json or multipart/form-data";
        Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code, message))
    };
    let slow = || Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took too long");
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| Err(slow()))
}

/// Reads a JSON object of a few bytes; of no body an empty one.
pub(super) async fn small_json(request: Request) -> Answer<Value> {
    let text = text(request, 64 << 10).await?;
    if text.trim().is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    json(&text)
}

async fn text(request: Request, limit: usize) -> Answer<String> {
    let bytes = to_bytes(request.into_body(), limit).await;
    let bytes = bytes.map_err(|_| Problem::too_large(limit as u64))?;
    String::from_utf8(bytes.into()).map_err(|_| malformed("the body is not UTF-8"))
}

/// Reads JSON that is not nested too deep.
pub(super) fn json(text: &str) -> Answer<Value> {
    if depth(text) > DEEPEST {
        return Err(malformed(format!("the JSON is nested deeper than {DEEPEST}")));
    }
    serde_json::from_str(text).map_err(|error| malformed(format!("not JSON: {error}")))
}

/// How deep JSON is nested, without reading it.
pub(super) fn depth(text: &str) -> usize {
    let (mut depth, mut most) = (0_usize, 0);
    let (mut is_text, mut is_escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            _ if is_text => {}
            b'{' | b'[' => {
                depth += 1;
                most = most.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    most
}

async fn form(app: &Shared, request: Request) -> Answer<Form> {
    let limit = app.limits.upload;
    let failed = |error: axum::extract::multipart::MultipartError| {
        if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Problem::too_large(limit);
        }
        malformed(format!("the form is broken: {}", error.body_text()))
    };
    let parts = Multipart::from_request(request, &()).await;
    let mut parts = parts.map_err(|error| malformed(error.body_text()))?;
    let mut form = Form::default();
    let mut left = limit;
    while let Some(mut part) = parts.next_field().await.map_err(failed)? {
        let field = part.name().unwrap_or_default().to_owned();
        let file_name = part.file_name().map(shown);
        if form.texts.len() + form.files.len() >= MOST_FIELDS {
            return Err(malformed(format!("the form has more than {MOST_FIELDS} fields")));
        }
        if form.texts.contains_key(&field) || form.files.contains_key(&field) {
            return Err(malformed(format!("the form has two fields `{}`", shown(&field))));
        }
        let mut bytes = Vec::new();
        let most = if file_name.is_some() { left } else { left.min(MOST_TEXT as u64) };
        while let Some(chunk) = part.chunk().await.map_err(failed)? {
            if (bytes.len() + chunk.len()) as u64 > most {
                return Err(Problem::too_large(most));
            }
            bytes.extend_from_slice(&chunk);
        }
        left = left.saturating_sub(bytes.len() as u64);
        match file_name {
            Some(name) => {
                let stored = app
                    .blocking(move |app| {
                        let stored = app.uploads.put(&mut bytes.as_slice(), u64::MAX);
                        stored.map_err(|error| app.problem(&error))
                    })
                    .await?;
                let file = File { sha256: stored.sha256, bytes: stored.bytes, name };
                form.files.insert(field, file);
            }
            None => {
                let text = String::from_utf8(bytes);
                let text =
                    text.map_err(|_| malformed(format!("`{}` is not UTF-8", shown(&field))))?;
                form.texts.insert(field, text);
            }
        }
    }
    Ok(form)
}

/// A client's text in a message: the last part of a path, without control characters.
fn shown(text: &str) -> String {
    let last = text.rsplit(['/', '\\']).next().unwrap_or_default();
    last.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_counted_outside_of_texts() {
        assert_eq!(depth(r#"{"a": [1, {"b": "[[[\"[["}]}"#), 3);
        assert_eq!(depth("]]]]["), 1);
        assert!(json(&format!("{}{}", "[".repeat(32), "]".repeat(32))).is_ok());
        assert!(json(&format!("{}{}", "[".repeat(33), "]".repeat(33))).is_err());
        assert!(json(&"[".repeat(1 << 20)).is_err());
    }

    #[test]
    fn names_of_files_are_shown_without_their_folders() {
        assert_eq!(shown("../../etc/passwd"), "passwd");
        assert_eq!(shown("C:\\x\\clip\u{7}.gif"), "clip.gif");
    }
}
