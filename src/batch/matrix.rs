//! Manifests as TOML: `[defaults]`, `[[clip]]`, and a `[matrix]` of lists, of which every combination makes a clip.

use serde_json::{Number, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::entry::{Entry, Fields, has, lay_over, put};
use super::lines::Lines;
use super::{FIELD, MOST_ITEMS, fields};
use crate::{Error, Result, spelling};

/// The deepest tables.
const DEEPEST: usize = 16;

/// The tables of a manifest.
const TABLES: [&str; 3] = ["defaults", "clip", "matrix"];

/// Clips, and what is varied in each.
#[derive(Debug)]
pub(super) struct Matrix {
    /// Fields with the line that they begin on: those that are written, and with the defaults.
    clips: Vec<(usize, Fields)>,
    axes: Vec<Axis>,
    /// The number of combinations.
    each: usize,
}

/// A field and its values.
#[derive(Debug)]
struct Axis {
    field: String,
    values: Vec<Value>,
}

impl Matrix {
    /// Reads a text.
    ///
    /// # Errors
    ///
    /// When it is not TOML, has other tables or an unknown field in the matrix, or means too many clips.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let lines = Lines::of(text);
        let document = DeTable::parse(text).map_err(|error| {
            let line = lines.at(error.span().map_or(0, |span| span.start));
            wrong(line, error.message().replace('\n', " "))
        })?;
        let (mut defaults, mut clips, mut axes) = (Fields::new(), Vec::new(), Vec::new());
        for (key, value) in document.get_ref() {
            let line = lines.at(key.span().start);
            match (&**key.get_ref(), value.get_ref()) {
                ("defaults", DeValue::Table(table)) => defaults = object(table, &lines, 0)?,
                ("clip", DeValue::Array(tables)) => {
                    for table in tables {
                        let line = lines.at(table.span().start);
                        let DeValue::Table(fields) = table.get_ref() else {
                            return Err(wrong(line, "`clip` is not a list of tables"));
                        };
                        clips.push((line, object(fields, &lines, 0)?));
                    }
                }
                ("matrix", DeValue::Table(table)) => {
                    let mut found = Vec::new();
                    collect("", table, &lines, &mut found)?;
                    // As they are written, whatever order a table has.
                    found.sort_by_key(|(at, _)| *at);
                    axes = found.into_iter().map(|(_, axis)| axis).collect();
                }
                (known @ ("defaults" | "matrix"), _) => {
                    return Err(wrong(line, format!("`{known}` is not a table")));
                }
                ("clip", _) => {
                    return Err(wrong(line, "`clip` is not a list of tables")
                        .with_hint("every clip begins with [[clip]]"));
                }
                (other, _) => {
                    let error = wrong(line, format!("`{other}` is none of {}", TABLES.join(", ")));
                    let near = spelling::nearest(other, TABLES);
                    return Err(match near {
                        Some(near) => error.with_hint(format!("did you mean `{near}`?")),
                        None => error.with_hint("fields of all clips stand under [defaults]"),
                    });
                }
            }
        }
        if clips.is_empty() && !axes.is_empty() {
            clips.push((1, Fields::new()));
        }
        let each =
            axes.iter().try_fold(1_usize, |count, axis| count.checked_mul(axis.values.len()));
        let count = each.and_then(|each| each.checked_mul(clips.len()));
        let Some(each) = each.filter(|_| count.is_some_and(|count| count <= MOST_ITEMS)) else {
            let count = count.map_or("too many".to_owned(), |count| count.to_string());
            let reason = format!("the matrix makes {count} clips, at most {MOST_ITEMS}");
            return Err(Error::request(FIELD, reason));
        };
        for (line, clip) in &mut clips {
            if let Some(axis) = axes.iter().find(|axis| has(clip, &axis.field)) {
                let reason = format!("the clip has `{}`, which the matrix varies", axis.field);
                return Err(wrong(*line, reason));
            }
            let mut all = defaults.clone();
            lay_over(&mut all, clip);
            *clip = all;
        }
        Ok(Self { clips, axes, each })
    }

    /// The clips in the order that they are written in, each with all combinations; the last field changes first.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.clips.iter().flat_map(move |(line, clip)| {
            (0..self.each).map(move |at| {
                let fields = self.combined(clip, at);
                Entry { line: *line, fields, part: (at, self.each) }
            })
        })
    }

    /// A clip with the values of combination `at`.
    fn combined(&self, clip: &Fields, at: usize) -> Result<Fields> {
        let (mut fields, mut rest, mut block) = (clip.clone(), at, self.each);
        for Axis { field, values } in &self.axes {
            block /= values.len();
            let value = values.get(rest / block).cloned().unwrap_or_default();
            put(&mut fields, field, value).map_err(|reason| Error::request("matrix", reason))?;
            rest %= block;
        }
        Ok(fields)
    }
}

/// Adds the lists below a path, with their places in the text.
fn collect(
    above: &str,
    table: &DeTable<'_>,
    lines: &Lines,
    found: &mut Vec<(usize, Axis)>,
) -> Result<()> {
    for (key, value) in table {
        let at = key.span().start;
        let field = if above.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{above}.{}", key.get_ref())
        };
        let wrong = |reason: &str| wrong(lines.at(at), format!("the matrix' `{field}` {reason}"));
        match value.get_ref() {
            DeValue::Table(inner) if field.split('.').count() < DEEPEST => {
                collect(&field, inner, lines, found)?;
            }
            DeValue::Array(values) if values.is_empty() => return Err(wrong("is an empty list")),
            DeValue::Array(values) => {
                if matches!(field.as_str(), "name" | "repeat" | "schema") {
                    return Err(wrong("cannot be varied"));
                }
                if fields::kind(&field).is_none() {
                    let error = wrong("is no field");
                    return Err(match fields::meant(&field) {
                        Some(known) => error.with_hint(format!("did you mean `{known}`?")),
                        None => error,
                    });
                }
                if found.iter().any(|(_, axis)| axis.field == field) {
                    return Err(wrong("is there twice"));
                }
                let values = values.iter().map(|value| json(value, lines, 0));
                found.push((at, Axis { values: values.collect::<Result<_>>()?, field }));
            }
            _ => return Err(wrong("is not a list")),
        }
    }
    Ok(())
}

fn object(table: &DeTable<'_>, lines: &Lines, depth: usize) -> Result<Fields> {
    let fields = table
        .iter()
        .map(|(key, value)| Ok((key.get_ref().to_string(), json(value, lines, depth + 1)?)));
    fields.collect()
}

/// A value as JSON.
fn json(value: &Spanned<DeValue<'_>>, lines: &Lines, depth: usize) -> Result<Value> {
    let wrong = |reason: String| wrong(lines.at(value.span().start), reason);
    if depth > DEEPEST {
        return Err(wrong(format!("more than {DEEPEST} tables within each other")));
    }
    let whole = |text: &str, radix| {
        let number = u64::from_str_radix(text, radix).map(Number::from);
        number.or_else(|_| i64::from_str_radix(text, radix).map(Number::from)).ok()
    };
    let number = match value.get_ref() {
        DeValue::String(text) => return Ok(Value::String(text.to_string())),
        DeValue::Boolean(is_true) => return Ok(Value::Bool(*is_true)),
        DeValue::Array(values) => {
            return values.iter().map(|value| json(value, lines, depth + 1)).collect();
        }
        DeValue::Table(table) => return object(table, lines, depth).map(Value::Object),
        DeValue::Datetime(time) => return Err(wrong(format!("{time} is a time; quote it"))),
        DeValue::Integer(number) => whole(number.as_str(), number.radix()),
        DeValue::Float(number) => number.as_str().parse().ok().and_then(Number::from_f64),
    };
    number.map(Value::Number).ok_or_else(|| wrong("a number that no field can have".into()))
}

fn wrong(line: usize, reason: impl Into<String>) -> Error {
    Error::request(FIELD, reason).at(format!("line {line}"))
}
