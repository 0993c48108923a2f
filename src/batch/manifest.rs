//! Manifests of every form to entries.

use std::path::Path;

use serde_json::Value;

use super::columns;
use super::entry::Entry;
use super::matrix::Matrix;
use super::{FIELD, MOST_ITEMS};
use crate::files::{self, Lines, MOST_TEXT};
use crate::{Error, Result, Stop};

/// The form of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// JSON lines.
    Jsonl,
    /// A header of fields, and lines.
    Csv,
    /// Tables, and perhaps a matrix.
    Toml,
}

impl Kind {
    /// The form that a name says; standard input, as `-`, has JSON lines.
    ///
    /// # Errors
    ///
    /// When the name has none of the known endings.
    pub fn of(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::Jsonl);
        }
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("jsonl" | "ndjson") => Ok(Self::Jsonl),
            Some("csv") => Ok(Self::Csv),
            Some("toml") => Ok(Self::Toml),
            _ => {
                let reason =
                    format!("{} has none of the endings .jsonl .csv .toml", path.display());
                Err(Error::request(FIELD, reason).with_hint("- reads JSON lines from a pipe"))
            }
        }
    }
}

/// The text of a manifest.
pub(super) fn text(path: &Path, stop: &Stop) -> Result<String> {
    if Kind::of(path)? != Kind::Jsonl {
        return files::read_text(path).map_err(|error| Error::unreadable(FIELD, path, &error));
    }
    // Perhaps a pipe that somebody still writes to.
    let mut lines = Lines::open(FIELD, path)?;
    let mut text = String::new();
    while let Some(line) = lines.next_line(stop)? {
        text.push_str(&line);
        if text.len() as u64 > MOST_TEXT {
            return Err(lines.wrong(&format!("is larger than {} MiB", MOST_TEXT >> 20)));
        }
    }
    Ok(text)
}

/// Gives every entry of a manifest's text to `each`.
///
/// # Errors
///
/// When the text as a whole is not of its kind, has more than [`MOST_ITEMS`] entries or none, or `each` fails.
pub fn entries(kind: Kind, text: &str, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut count = 0;
    let mut counted = |entry| {
        count += 1;
        if count > MOST_ITEMS {
            return Err(too_many());
        }
        each(entry)
    };
    match kind {
        Kind::Jsonl => json_lines(text).try_for_each(&mut counted)?,
        Kind::Csv if text.trim().is_empty() => {}
        Kind::Csv => columns::read(text)?.try_for_each(&mut counted)?,
        Kind::Toml => Matrix::parse(text)?.entries().try_for_each(&mut counted)?,
    }
    if count == 0 {
        return Err(Error::request(FIELD, "has no clips"));
    }
    Ok(())
}

pub(super) fn too_many() -> Error {
    Error::request(FIELD, format!("has more than {MOST_ITEMS} clips"))
}

/// Lines that are not empty.
fn json_lines(text: &str) -> impl Iterator<Item = Entry> + '_ {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(at, line)| {
        let fields = match serde_json::from_str(line) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(_) => Err("is not a JSON object".to_owned()),
            Err(error) => Err(format!("is not JSON: {error}")),
        };
        Entry::new(at + 1, fields.map_err(|reason| Error::request(FIELD, reason)))
    })
}
