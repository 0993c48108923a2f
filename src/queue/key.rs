//! What decides on a clip, as one hash.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::files::hex;
use crate::job::{self, Names};
use crate::library::Models;
use crate::request::Job;
use crate::weights::{Source, sha256};
use crate::{Error, Result, Stop};

/// Hashes of weight files, each computed once while its length and time stay as they are.
#[derive(Debug, Default)]
pub struct WeightHashes(Mutex<HashMap<PathBuf, (u64, SystemTime, String)>>);

impl WeightHashes {
    /// The SHA-256 of a source.
    ///
    /// # Errors
    ///
    /// When it cannot be read, and once `stop` is requested.
    pub fn of(&self, source: &Source, stop: &Stop) -> Result<String> {
        let Source::File(path) = source else { return sha256(source, stop) };
        let facts = path.metadata().and_then(|data| Ok((data.len(), data.modified()?)));
        let (length, modified) = facts.map_err(Error::file(path))?;
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, _, hash)) =
            lock().get(path).filter(|known| (known.0, known.1) == (length, modified))
        {
            return Ok(hash.clone());
        }
        let hash = sha256(source, stop)?;
        lock().insert(path.clone(), (length, modified, hash.clone()));
        Ok(hash)
    }
}

/// What decides on a clip, as one hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The hash, lowercase hexadecimal.
    pub sha256: String,
    /// Width and height of the model's clips if a request has none.
    pub native_size: (usize, usize),
}

/// The SHA-256 of all that decides on a job's clip: its request with the seed, the hashes of its images and videos, its
/// weights with their strengths, dtypes, the format and the version of this program.
///
/// Jobs of the same key have the same clip on the same kind of device. The images of `job` must have their hashes.
///
/// # Errors
///
/// When a name leads nowhere or a file is not what it is used as.
pub fn key(
    job: &Job,
    format: &str,
    names: &Names,
    hashes: &WeightHashes,
    stop: &Stop,
) -> Result<Key> {
    let mut files = job::files(&job.models, names)?;
    files.controls = job::controls(&job.request, names)?;
    files.ip_adapters = job::ip_adapters(&job.request, names)?;
    let models = Models::open_until(&files, stop)?;
    let native_size = models.native_size();
    let sources = models.sources();
    let weights: Vec<String> =
        sources.iter().map(|source| hashes.of(source, stop)).collect::<Result<_>>()?;
    let strengths: Vec<Value> = files
        .loras
        .iter()
        .map(|lora| {
            let blocks = lora.blocks.as_ref().map(ToString::to_string);
            json!([lora.scale, lora.text_scale, lora.factor, lora.allow_partial, blocks])
        })
        .collect();
    let words: Vec<_> = job.models.embeddings.iter().map(|embedding| &embedding.word).collect();
    // What a request leaves open and what a finished clip says are the same.
    let mut whole = job.clone();
    models.complete(&mut whole.request)?;
    if !whole.request.is_open() {
        whole.request.size.frames = Some(whole.request.frames());
    }
    let mut request = json!(whole);
    if let Value::Object(sections) = &mut request {
        for section in ["models", "weights", "program"] {
            sections.remove(section);
        }
    }
    let models = &job.models;
    let all = json!({
        "request": request,
        "weights": weights,
        "strengths": strengths,
        "words": words,
        "precision": [json!(models.dtype), json!(models.quantize), json!(models.kernels)],
        "format": format,
        "version": env!("CARGO_PKG_VERSION"),
    });
    Ok(Key { sha256: hex(Sha256::new_with_prefix(canonical(&all))), native_size })
}

/// JSON with sorted keys and without spaces.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            let fields = fields.iter().map(|(name, value)| {
                format!("{}:{}", Value::from(name.as_str()), canonical(value))
            });
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_follows_from_what_decides_on_the_clip() {
        let names = Names::new(true).unwrap();
        let hashes = WeightHashes::default();
        let of = |change: &dyn Fn(&mut Job), format: &str| {
            let mut job = Job::default();
            job.request.prompt.text = "a red circle".into();
            job.request.sampling.seed = Some(1);
            change(&mut job);
            key(&job, format, &names, &hashes, &Stop::default()).unwrap().sha256
        };
        let plain = of(&|_| (), "gif");
        assert_eq!(plain, of(&|_| (), "gif"));
        assert_eq!(plain, of(&|job| job.request.size.frames = Some(16), "gif"));
        // Where it runs is not part of it.
        assert_eq!(plain, of(&|job| job.models.device = "cpu".parse().unwrap(), "gif"));
        let others = [
            of(&|_| (), "mp4"),
            of(&|job| job.request.sampling.seed = Some(2), "gif"),
            of(&|job| job.request.prompt.negative = "blur".into(), "gif"),
            of(&|job| job.models.quantize = "int8".parse().unwrap(), "gif"),
            of(&|job| job.models.lora_legacy_scale = true, "gif"),
        ];
        let all: std::collections::BTreeSet<_> = others.iter().chain([&plain]).collect();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn canonical_json_does_not_depend_on_the_order_of_fields() {
        let text = r#"{"b":[1,{"z":null,"a":0.5}],"a":"\""}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(canonical(&value), r#"{"a":"\"","b":[1,{"a":0.5,"z":null}]}"#);
    }
}
