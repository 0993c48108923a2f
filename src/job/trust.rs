//! Files that a clip's metadata names. A stranger may have written them, so nothing is opened for what it is called:
//! a file is parsed only if the metadata have its SHA-256.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::resolve::Names;
use crate::request::{Job, Spec};
use crate::weights::{Source, sha256};
use crate::{Error, Result, Stop};

/// Endings of files with weights.
const WEIGHTS: [&str; 6] = ["safetensors", "ckpt", "bin", "pt", "pth", "th"];

/// Fails unless everything on this machine that a clip's job names is what the clip was made with.
///
/// Names of published models are no paths and pass; those that lead into folders of one's own do not. Hints and images have their hashes beside their names, and are
/// compared where they are read; here they only must have one.
///
/// # Errors
///
/// [`Error::Refused`] for the first path that cannot be trusted, which was then at most hashed.
pub fn check(job: &Job, names: &Names, stop: &Stop) -> Result<Known> {
    let mut hashes = Known::default();
    let known: BTreeSet<String> = job
        .weights
        .iter()
        .filter_map(|record| record.sha256.as_ref())
        .map(|hash| hash.to_ascii_lowercase())
        .collect();
    if let Some(folder) = job.models.model_config.as_ref().filter(|word| Path::new(word).exists()) {
        return Err(refused(folder, "configurations have no SHA-256 in a clip"));
    }
    for (field, word) in weights(job) {
        let path = Path::new(word);
        let path = if path.exists() { Some(path.to_path_buf()) } else { names.own(field, word)? };
        // What is not there is a published model's name, or missing.
        if let Some(path) = path
            && !is_known(&path, &known, &mut hashes, stop)?
        {
            return Err(refused(word, &why(job, &path, &mut hashes, stop)?));
        }
    }
    for (file, hash) in files(job) {
        if hash.is_none() {
            return Err(refused(file, "the clip has no SHA-256 of it"));
        }
    }
    Ok(hashes)
}

/// Hashes of weight files that were computed before, so that none is computed twice while its size and the time of its
/// last change stay the same.
#[derive(Clone, Debug, Default)]
pub struct Known(BTreeMap<PathBuf, (Stamp, String)>);

/// Size, and time of the last change where the system knows it.
type Stamp = (u64, Option<SystemTime>);

impl Known {
    /// The SHA-256 of a weight file, lowercase hexadecimal.
    ///
    /// # Errors
    ///
    /// Those of [`sha256`].
    pub(super) fn sha256(&mut self, source: &Source, stop: &Stop) -> Result<String> {
        let Source::File(path) = source else { return sha256(source, stop) };
        let key = path.canonicalize().map_err(Error::file(path))?;
        let found = std::fs::metadata(&key).map_err(Error::file(path))?;
        let stamp = (found.len(), found.modified().ok());
        if let Some((known, hash)) = self.0.get(&key)
            && *known == stamp
        {
            return Ok(hash.clone());
        }
        let hash = sha256(source, stop)?;
        self.0.insert(key, (stamp, hash.clone()));
        Ok(hash)
    }
}

fn refused(name: &str, why: &str) -> Error {
    let reason = format!("is named by the clip and was not opened: {why}");
    Error::Refused { name: name.to_owned(), reason }.with_hint(
        "--trust-paths opens whatever the clip names; do that for clips of your own only",
    )
}

/// What is wrong with a file or folder that is not known.
fn why(job: &Job, path: &Path, hashes: &mut Known, stop: &Stop) -> Result<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let same = job.weights.iter().find(|record| record.file == name);
    Ok(match same.and_then(|record| record.sha256.as_ref()).filter(|_| path.is_file()) {
        Some(wanted) => {
            let found = hashes.sha256(&Source::from(path.to_path_buf()), stop)?;
            format!("its sha256 is {found}, the clip was made with {wanted}")
        }
        None => "the clip has no SHA-256 of it".into(),
    })
}

/// Everything that weights are read from, and the field that names it.
fn weights(job: &Job) -> impl Iterator<Item = (&'static str, &str)> {
    let Spec { model, checkpoint, vae, motion, lcm_lora, loras, embeddings, .. } = &job.models;
    let Spec { image_encoder, depth_model, .. } = &job.models;
    let parts = [
        ("model", model),
        ("checkpoint", checkpoint),
        ("vae", vae),
        ("motion", motion),
        ("image-encoder", image_encoder),
        ("depth-model", depth_model),
    ];
    let parts = parts.into_iter().filter_map(|(field, word)| Some((field, word.as_ref()?)));
    let lcm_lora = lcm_lora.iter().map(|lora| ("lcm-lora", &lora.file));
    let loras = loras.iter().map(|lora| ("lora", &lora.file));
    let embeddings = embeddings.iter().map(|embedding| ("embedding", &embedding.file));
    let controls = job.request.controls.iter().map(|control| ("control", &control.model));
    let adapters = job.request.ip_adapters.iter().map(|adapter| ("ip-adapter", &adapter.model));
    let all = parts.chain(lcm_lora).chain(loras).chain(embeddings).chain(controls).chain(adapters);
    all.map(|(field, word)| (field, word.as_str()))
}

/// Every other file, and its SHA-256 if the clip has it.
fn files(job: &Job) -> impl Iterator<Item = (&str, Option<&str>)> {
    let hints = job.request.controls.iter().map(|control| (&control.hint, &control.sha256));
    let adapters = job.request.ip_adapters.iter();
    let images = adapters.flat_map(|adapter| adapter.images.iter().chain(&adapter.masks));
    let mask = job.request.source.iter().filter_map(|source| source.mask.as_ref());
    let records =
        images.chain(mask).chain(&job.tensors_in).map(|record| (&record.file, &record.sha256));
    let source = job.request.source.iter().map(|source| (source.file(), source.sha256.as_deref()));
    let hints = hints.map(|(file, hash)| (file.as_str(), hash.as_deref()));
    let records = records.map(|(file, hash)| (file.as_str(), hash.as_deref()));
    source.chain(hints).chain(records)
}

/// Whether a file is one that the clip was made with, or a folder has one.
fn is_known(
    path: &Path,
    known: &BTreeSet<String>,
    hashes: &mut Known,
    stop: &Stop,
) -> Result<bool> {
    if known.is_empty() {
        return Ok(false);
    }
    if path.is_dir() {
        for file in weight_files(path, 1) {
            if is_known(&file, known, hashes, stop)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    // A pipe or a device is not even opened.
    if !path.is_file() {
        return Ok(false);
    }
    let hash = hashes.sha256(&Source::from(path.to_path_buf()), stop)?;
    Ok(known.contains(&hash))
}

/// The weight files of a folder and of those in it, so many levels deep. What cannot be listed has none.
fn weight_files(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let is_weights = |path: &Path| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        ending.is_some_and(|ending| WEIGHTS.iter().any(|known| known.eq_ignore_ascii_case(ending)))
    };
    let mut found: Vec<PathBuf> =
        paths.iter().filter(|path| path.is_file() && is_weights(path)).cloned().collect();
    if depth > 0 {
        for inner in paths.iter().filter(|path| path.is_dir()) {
            found.extend(weight_files(inner, depth - 1));
        }
    }
    found
}
