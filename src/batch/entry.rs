//! An entry of a manifest: one clip, or several that differ in their seeds only.

use serde_json::{Map, Value, json};

use super::FIELD;
use crate::request::{Job, SCHEMA};
use crate::{Error, Result};

/// Fields as JSON.
pub(super) type Fields = Map<String, Value>;

/// Fields of a clip, and where they stand.
#[derive(Debug)]
pub struct Entry {
    /// The line in the manifest, from 1.
    pub line: usize,
    /// The fields; an error if they cannot be read.
    pub(super) fields: Result<Fields>,
    /// Index among the clips that a matrix makes of one place, and their number.
    pub(super) part: (usize, usize),
}

impl Entry {
    /// The only clip of a line.
    pub(super) fn new(line: usize, fields: Result<Fields>) -> Self {
        Self { line, fields, part: (0, 1) }
    }

    /// The job with its name, and how many clips it stands for.
    ///
    /// # Errors
    ///
    /// On an unknown field or a value of the wrong kind.
    pub fn read(self) -> Result<(Job, Option<String>, usize)> {
        let mut fields = self.fields?;
        let name = match fields.remove("name") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name),
            Some(other) => return Err(Error::request("name", format!("{other} is not a text"))),
        };
        let repeat = match fields.remove("repeat") {
            None | Some(Value::Null) => 1,
            Some(value) => match value.as_u64().and_then(|count| usize::try_from(count).ok()) {
                Some(count) if count > 0 => count,
                _ => {
                    let reason = format!("must be a whole number from 1 on, got {value}");
                    return Err(Error::request("repeat", reason));
                }
            },
        };
        fields.entry("schema").or_insert_with(|| json!(SCHEMA));
        let mut job: Job = serde_json::from_value(Value::Object(fields))
            .map_err(|error| Error::request(FIELD, error.to_string()))?;
        // Records of finished clips.
        job.weights.clear();
        job.program = None;
        job.request.forget_hashes();
        if let Some(tensors) = &mut job.tensors_in {
            tensors.sha256 = None;
        }
        Ok((job, name, repeat))
    }
}

/// Sets the field of a path, with all that is above it.
///
/// # Errors
///
/// When something above it has a value that is no object.
pub(super) fn put(fields: &mut Fields, path: &str, value: Value) -> Result<(), String> {
    let (first, rest) = match path.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    };
    let is_prompt = first == "prompt" && (rest.is_some() || fields.contains_key(first));
    let slot = fields.entry(first.to_owned()).or_insert(Value::Null);
    if is_prompt {
        spell_out(slot);
    }
    let Some(rest) = rest else {
        match (slot, value) {
            (Value::Object(prompt), Value::String(text)) if is_prompt => {
                prompt.insert("text".into(), text.into());
            }
            (slot, value) => *slot = value,
        }
        return Ok(());
    };
    if slot.is_null() {
        *slot = json!({});
    }
    match slot {
        Value::Object(inner) => put(inner, rest, value),
        _ => Err(format!("`{first}` has a value and cannot have `{rest}` as well")),
    }
}

/// Returns whether fields have a value at a path such as `size.width`.
pub(super) fn has(fields: &Fields, path: &str) -> bool {
    match path.split_once('.') {
        None => fields.contains_key(path),
        Some((first, rest)) => match fields.get(first) {
            Some(Value::Object(inner)) => has(inner, rest),
            // A prompt as a text.
            Some(_) => true,
            None => false,
        },
    }
}

/// Lays fields over others: objects are merged, anything else is replaced.
pub(super) fn lay_over(below: &mut Fields, above: &Fields) {
    for (key, value) in above {
        let slot = below.entry(key.clone()).or_insert(Value::Null);
        let mut value = value.clone();
        if key == "prompt" {
            spell_out(slot);
            spell_out(&mut value);
        }
        match (slot, value) {
            (Value::Object(below), Value::Object(above)) => lay_over(below, &above),
            (slot, value) => *slot = value,
        }
    }
}

/// A prompt as an object, whose text may be all that is written.
fn spell_out(prompt: &mut Value) {
    if let Value::String(text) = prompt {
        *prompt = json!({ "text": std::mem::take(text) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: Value) -> Fields {
        match value {
            Value::Object(fields) => fields,
            _ => panic!(),
        }
    }

    #[test]
    fn a_prompt_is_a_text_or_an_object() {
        let mut below = fields(json!({"prompt": {"negative": "blur"}, "size": {"frames": 8}}));
        lay_over(&mut below, &fields(json!({"prompt": "a cat", "size": {"width": 64}})));
        let merged = json!({
            "prompt": {"negative": "blur", "text": "a cat"}, "size": {"frames": 8, "width": 64},
        });
        assert_eq!(json!(below), merged);
        let mut own = fields(json!({"prompt": "a cat"}));
        put(&mut own, "prompt.negative", json!("blur")).unwrap();
        put(&mut own, "prompt", json!("a dog")).unwrap();
        put(&mut own, "sampling.steps", json!(3)).unwrap();
        let wanted =
            json!({"prompt": {"text": "a dog", "negative": "blur"}, "sampling": {"steps": 3}});
        assert_eq!(json!(own), wanted);
        assert!(put(&mut own, "sampling.steps.x", json!(3)).is_err());
        assert!(has(&own, "sampling.steps") && !has(&own, "sampling.seed"));
        assert!(has(&fields(json!({"prompt": "x"})), "prompt.text"));
    }

    #[test]
    fn records_of_a_finished_clip_are_not_demanded() {
        let value = json!({
            "schema": SCHEMA, "source": {"image": "a.png", "sha256": "0"}, "repeat": 3, "name": "x",
            "weights": [{"file": "a", "sha256": "1"}],
        });
        let (job, name, repeat) = Entry::new(1, Ok(fields(value))).read().unwrap();
        assert_eq!((name.as_deref(), repeat), (Some("x"), 3));
        assert!(job.weights.is_empty() && job.request.source.unwrap().sha256.is_none());
        for wrong in [json!({"repeat": 0}), json!({"repeat": "2"}), json!({"name": 3})] {
            assert!(Entry::new(1, Ok(fields(wrong))).read().is_err());
        }
    }
}
