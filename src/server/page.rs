//! The files of the page, which are inside the program.

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::answer::{Answer, Problem};
use super::state::Shared;

/// The beginning of the addresses of all files but the first.
pub(super) const FOLDER: &str = "/ui/";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Files by name, with their media types.
static FILES: [(&str, &str, &str); 14] = [
    ("api.js", SCRIPT, include_str!("ui/api.js")),
    ("app.js", SCRIPT, include_str!("ui/app.js")),
    ("cards.js", SCRIPT, include_str!("ui/cards.js")),
    ("dom.js", SCRIPT, include_str!("ui/dom.js")),
    ("faults.js", SCRIPT, include_str!("ui/faults.js")),
    ("files.js", SCRIPT, include_str!("ui/files.js")),
    ("form.js", SCRIPT, include_str!("ui/form.js")),
    ("lists.js", SCRIPT, include_str!("ui/lists.js")),
    ("login.js", SCRIPT, include_str!("ui/login.js")),
    ("messages.js", SCRIPT, include_str!("ui/messages.js")),
    ("records.js", SCRIPT, include_str!("ui/records.js")),
    ("style.css", "text/css; charset=utf-8", include_str!("ui/style.css")),
    ("viewer.js", SCRIPT, include_str!("ui/viewer.js")),
    ("weigh.js", SCRIPT, include_str!("ui/weigh.js")),
];

/// `GET /`
pub(super) async fn index(State(app): State<Shared>) -> Answer {
    answer(&app, "text/html; charset=utf-8", include_str!("ui/index.html"))
}

/// `GET /ui/{file}`
pub(super) async fn file(State(app): State<Shared>, Path(name): Path<String>) -> Answer {
    let found = FILES.iter().find(|(known, _, _)| *known == name);
    let &(_, kind, text) = found.ok_or_else(|| Problem::not_found("file"))?;
    answer(&app, kind, text)
}

fn answer(app: &Shared, kind: &'static str, text: &'static str) -> Answer<Response> {
    if !app.has_page {
        return Err(Problem::not_found("page"));
    }
    // A browser asks each time: after an update all files are of one version.
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, text).into_response())
}

#[cfg(test)]
mod tests {
    use super::FILES;

    #[test]
    fn every_module_that_is_imported_is_served() {
        for (name, _, text) in FILES.iter().chain([&("", "", include_str!("ui/index.html"))]) {
            for line in text.lines() {
                let from = line.split_once("from './").or(line.split_once("=\"ui/"));
                let Some(file) = from.and_then(|(_, rest)| rest.split(['\'', '"']).next()) else {
                    continue;
                };
                assert!(FILES.iter().any(|(known, _, _)| *known == file), "{name}: {file}");
            }
        }
    }
}
