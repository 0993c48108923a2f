//! Fields of items by their path, such as `sampling.seed`. What there is the deserializer of jobs says, so that no
//! second list has to follow it.

use serde_json::{Map, Value, json};

use super::entry::{Fields, put};
use crate::request::{Job, SCHEMA};
use crate::spelling::{bare, nearest};

/// Fields that an item has beside those of its job.
const OWN: [&str; 2] = ["name", "repeat"];

/// The most parts of a path.
const DEEPEST: usize = 8;

/// Form of a field's text in a CSV column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The value itself.
    Text,
    /// JSON: a number, a truth value, a list.
    Json,
}

/// Form of the text of the field at a path; `None` if there is no such field.
pub(super) fn kind(path: &str) -> Option<Kind> {
    match path {
        "name" => return Some(Kind::Text),
        "repeat" => return Some(Kind::Json),
        _ if path.split('.').count() > DEEPEST => return None,
        _ => {}
    }
    match complaint(path, json!("?")) {
        Some(message) if message.contains("unknown field") => None,
        // A path that goes on below a value.
        Some(message) if message.contains("invalid type: map") => None,
        Some(message) if message.contains("invalid type: string") => Some(Kind::Json),
        _ => Some(Kind::Text),
    }
}

/// The field that was probably meant.
pub(super) fn meant(path: &str) -> Option<String> {
    let mut all: Vec<String> = OWN.iter().map(|name| (*name).to_owned()).collect();
    collect("", &mut all);
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let end = last(path);
    let same = all.iter().find(|known| bare(&last(known)) == bare(&end));
    if let Some(known) = same {
        return Some(known.clone());
    }
    let near = nearest(path, all.iter().map(String::as_str)).map(str::to_owned);
    near.or_else(|| {
        let ends: Vec<String> = all.iter().map(|known| last(known)).collect();
        let end = nearest(&end, ends.iter().map(String::as_str))?;
        all.iter().find(|known| last(known) == end).cloned()
    })
}

/// Adds the paths of all fields below `above`, in the order of the schema.
fn collect(above: &str, all: &mut Vec<String>) {
    let below = |name: &str| {
        if above.is_empty() { name.to_owned() } else { format!("{above}.{name}") }
    };
    let message = complaint(&below("?"), Value::Null).unwrap_or_default();
    let Some((_, known)) = message.split_once("unknown field `?`, expected ") else {
        all.push(above.to_owned());
        return;
    };
    for name in known.split('`').skip(1).step_by(2) {
        collect(&below(name), all);
    }
}

/// Error of reading a job that has this field alone.
fn complaint(path: &str, value: Value) -> Option<String> {
    let mut fields: Fields = Map::from_iter([("schema".to_owned(), json!(SCHEMA))]);
    if let Err(reason) = put(&mut fields, path, value) {
        return Some(reason);
    }
    let read = serde_json::from_value::<Job>(Value::Object(fields));
    read.err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_of_jobs() {
        for (path, known) in [
            ("prompt", Some(Kind::Text)),
            ("prompt.text", Some(Kind::Text)),
            ("prompt.clip_skip", Some(Kind::Json)),
            ("prompt.travel.16", Some(Kind::Text)),
            ("sampling.sampler", Some(Kind::Text)),
            ("sampling.seed", Some(Kind::Json)),
            ("sampling.tcd_gamma", Some(Kind::Json)),
            ("models.checkpoint", Some(Kind::Text)),
            ("models.lcm_lora.scale", Some(Kind::Json)),
            ("models.loras", Some(Kind::Json)),
            ("output.loop", Some(Kind::Text)),
            ("source.image", Some(Kind::Text)),
            ("controls", Some(Kind::Json)),
            ("name", Some(Kind::Text)),
            ("repeat", Some(Kind::Json)),
            ("seed", None),
            ("size.hight", None),
            ("size.width.x", None),
            ("models.loras.0", None),
            ("", None),
            ("size.", None),
            (".a.b.c.d.e.f.g.h.i.j", None),
        ] {
            assert_eq!(kind(path), known, "{path}");
        }
    }

    #[test]
    fn the_field_that_was_meant_is_found_by_its_end_too() {
        for (typed, known) in [
            ("seed", Some("sampling.seed")),
            ("frames", Some("size.frames")),
            ("negative", Some("prompt.negative")),
            ("size.hight", Some("size.height")),
            ("sampling.sed", Some("sampling.seed")),
            ("stpes", Some("sampling.steps")),
            ("models.checkpiont", Some("models.checkpoint")),
            ("repeats", Some("repeat")),
            ("colour_of_the_sky", None),
        ] {
            assert_eq!(meant(typed).as_deref(), known, "{typed}");
        }
    }
}
