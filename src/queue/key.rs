//! What decides on a clip, as one hash.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::job::{self, Names};
use crate::library::{Base, Files, LoraFile, Models};
use crate::output::Format;
use crate::request::{FileRecord, Job};
use crate::weights::{Source, sha256};
use crate::{Error, Result, Stop};

/// How many sets of weights inside the program stay open.
const MOST_INSIDE: usize = 4;

/// Models with the SHA-256 of each of their sources.
#[derive(Debug)]
struct Hashed {
    models: Models,
    weights: Vec<String>,
}

/// Hashes of weights: those of a file are computed once while its length and time stay as they are, and the model
/// inside the program is opened once.
#[derive(Debug, Default)]
pub struct WeightHashes {
    files: Mutex<HashMap<PathBuf, (u64, SystemTime, String)>>,
    inside: Mutex<Vec<(Files, Arc<Hashed>)>>,
}

impl WeightHashes {
    /// The models of some files.
    fn open(&self, files: &Files, stop: &Stop) -> Result<Arc<Hashed>> {
        let lock = || self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = lock().iter().find(|(known, _)| known == files) {
            return Ok(Arc::clone(known));
        }
        let models = Models::open_until(files, stop)?;
        let sources = models.sources();
        let weights = sources.iter().map(|source| self.of(source, stop)).collect::<Result<_>>()?;
        let hashed = Arc::new(Hashed { models, weights });
        let is_inside = |lora: &LoraFile| matches!(lora.source, Source::Embedded { .. });
        let without_loras = Files { loras: vec![], ..files.clone() };
        // Files may be other ones when the next job comes.
        if without_loras == Files::new(Base::Embedded) && files.loras.iter().all(is_inside) {
            let mut inside = lock();
            // Strengths may be any.
            inside.truncate(MOST_INSIDE - 1);
            inside.insert(0, (files.clone(), Arc::clone(&hashed)));
        }
        Ok(hashed)
    }

    fn of(&self, source: &Source, stop: &Stop) -> Result<String> {
        let Source::File(path) = source else { return sha256(source, stop) };
        let facts = path.metadata().and_then(|data| Ok((data.len(), data.modified()?)));
        let (length, modified) = facts.map_err(Error::file(path))?;
        let lock = || self.files.lock().unwrap_or_else(PoisonError::into_inner);
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

/// The [`job::key`] of a job that is not completed: its weights are opened and hashed for it.
///
/// Jobs of the same key have the same clip on the same kind of device. The images of `job` must have their hashes.
///
/// # Errors
///
/// When a name leads nowhere or a file is not what it is used as.
pub fn key(
    job: &Job,
    format: Format,
    names: &Names,
    hashes: &WeightHashes,
    stop: &Stop,
) -> Result<Key> {
    let mut files = job::files(&job.models, names)?;
    files.controls = job::controls(&job.request, names)?;
    files.ip_adapters = job::ip_adapters(&job.request, names)?;
    let opened = hashes.open(&files, stop)?;
    let Hashed { models, weights } = &*opened;
    let native_size = models.native_size();
    // What a request leaves open and what a finished clip says are the same.
    let mut whole = job.clone();
    models.complete(&mut whole.request)?;
    if !whole.request.is_open() {
        whole.request.size.frames = Some(whole.request.frames());
    }
    let hashed = |sha256: &String| FileRecord { file: String::new(), sha256: Some(sha256.clone()) };
    whole.weights = weights.iter().map(hashed).collect();
    whole.program = None;
    Ok(Key { sha256: job::key(&whole, format)?, native_size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_follows_from_what_decides_on_the_clip() {
        let names = Names::new(true).unwrap();
        let hashes = WeightHashes::default();
        let of = |change: &dyn Fn(&mut Job), format| {
            let mut job = Job::default();
            job.request.prompt.text = "a red circle".into();
            job.request.sampling.seed = Some(1);
            change(&mut job);
            key(&job, format, &names, &hashes, &Stop::default()).unwrap().sha256
        };
        let plain = of(&|_| (), Format::Gif);
        assert_eq!(plain, of(&|_| (), Format::Gif));
        assert_eq!(plain, of(&|job| job.request.size.frames = Some(16), Format::Gif));
        // Where it runs is not part of it.
        assert_eq!(plain, of(&|job| job.models.device = "cpu".parse().unwrap(), Format::Gif));
        let others = [
            of(&|_| (), Format::Mp4),
            of(&|job| job.request.sampling.seed = Some(2), Format::Gif),
            of(&|job| job.request.prompt.negative = "blur".into(), Format::Gif),
            of(&|job| job.models.quantize = "int8".parse().unwrap(), Format::Gif),
            of(&|job| job.models.lora_legacy_scale = true, Format::Gif),
        ];
        let all: std::collections::BTreeSet<_> = others.iter().chain([&plain]).collect();
        assert_eq!(all.len(), 6);
    }
}
