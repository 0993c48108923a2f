//! Manifests as CSV: a header of fields, whose dots nest, and a line for each clip; an empty cell is the default.

use csv::{Reader, ReaderBuilder, StringRecord, Trim};
use serde_json::Value;

use super::FIELD;
use super::entry::{Entry, Fields, put};
use super::fields::{self, Kind};
use super::lines::Lines;
use crate::{Error, Result};

/// The clips of a text.
///
/// # Errors
///
/// When the header has a column that is no field, or one twice.
pub(super) fn read(text: &str) -> Result<impl Iterator<Item = Entry> + '_> {
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(Trim::None)
        .from_reader(text.as_bytes());
    let mut header = StringRecord::new();
    let wrong = |reason: String| Error::request(FIELD, reason).at("line 1");
    if !reader.read_record(&mut header).map_err(|error| wrong(broken(&error)))? {
        return Err(wrong("has no header".into()));
    }
    let mut columns: Vec<(String, Kind)> = Vec::new();
    for name in header.iter().map(str::trim) {
        let Some(kind) = fields::kind(name) else {
            let error = wrong(format!("the column `{name}` is no field"));
            return Err(match fields::meant(name) {
                Some(known) => error.with_hint(format!("did you mean `{known}`?")),
                None => error.with_hint("columns are fields of requests, such as `sampling.seed`"),
            });
        };
        if columns.iter().any(|(known, _)| known == name) {
            return Err(wrong(format!("the column `{name}` is there twice")));
        }
        columns.push((name.to_owned(), kind));
    }
    Ok(Rows { text, lines: Lines::of(text), reader, columns })
}

/// Lines below a header.
struct Rows<'a> {
    text: &'a str,
    lines: Lines,
    reader: Reader<&'a [u8]>,
    columns: Vec<(String, Kind)>,
}

impl Iterator for Rows<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let mut row = StringRecord::new();
        // The reader counts a line break of two characters as a part of the next line.
        let start = self.reader.position().byte() as usize;
        let rest = self.text.get(start..).unwrap_or_default();
        let breaks = rest.len() - rest.trim_start_matches(['\r', '\n']).len();
        let line = self.lines.at(start + breaks);
        match self.reader.read_record(&mut row) {
            Ok(false) => None,
            Ok(true) => Some(Entry::new(line, fields_of(&self.columns, &row))),
            Err(error) => Some(Entry::new(line, Err(Error::request(FIELD, broken(&error))))),
        }
    }
}

fn fields_of(columns: &[(String, Kind)], row: &StringRecord) -> Result<Fields> {
    if row.len() != columns.len() {
        let reason = format!("has {} cells, the header {}", row.len(), columns.len());
        return Err(
            Error::request(FIELD, reason).with_hint("a cell with commas goes into double quotes")
        );
    }
    let mut fields = Fields::new();
    for ((name, kind), cell) in columns.iter().zip(row).filter(|(_, cell)| !cell.is_empty()) {
        let value = match kind {
            Kind::Text => Value::String(cell.to_owned()),
            Kind::Json => value(cell),
        };
        put(&mut fields, name, value).map_err(|reason| Error::request(FIELD, reason))?;
    }
    Ok(fields)
}

/// A cell as JSON, also with the `TRUE` of spreadsheets; as a text if it is none, which the field then refuses.
fn value(cell: &str) -> Value {
    let cell = cell.trim();
    let json = serde_json::from_str(cell).or_else(|_| serde_json::from_str(&cell.to_lowercase()));
    json.unwrap_or_else(|_| Value::String(cell.to_owned()))
}

/// Message of an error of the CSV reader, without its position.
fn broken(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "is not UTF-8 text".into(),
        _ => error.to_string(),
    }
}
