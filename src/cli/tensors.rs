//! `--tensors-in` and `--tensors-out`: tensors that people exchange, in diffusers' layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use crate::output::Existing;
use crate::pipeline::Tensors;
use crate::pipeline::request::Job;
use crate::weights::{Source, sha256};
use crate::{Error, Result};

/// Reads `--tensors-in` and writes down which file it was.
pub(super) fn read(job: &mut Job) -> Result<Tensors> {
    let Some(record) = &mut job.tensors_in else { return Ok(Tensors::default()) };
    let path = PathBuf::from(&record.file);
    let field = "tensors-in";
    if let Err(error) = std::fs::File::open(&path) {
        return Err(super::generate::unreadable(field, &path, &error));
    }
    let found = sha256(&Source::from(path.clone()))?;
    if let Some(wanted) = record.sha256.replace(found.clone())
        && wanted != found
    {
        let reason = format!("sha256 is {found}, the clip was made with {wanted}");
        return Err(Error::Refused { name: record.file.clone(), reason });
    }
    let bytes = std::fs::read(&path).map_err(Error::file(&path))?;
    let mut all = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|e| Error::request(field, format!("{}: {e}", path.display())))?;
    let latents = all.remove("latents");
    let noise: Vec<Tensor> = (0..).map_while(|i| all.remove(&format!("noise.{i}"))).collect();
    if let Some(name) = all.keys().min() {
        let reason = format!("`{name}` is neither `latents` nor `noise.0`, `noise.1`, …");
        return Err(Error::request(field, reason));
    }
    if latents.is_none() && noise.is_empty() {
        return Err(Error::request(field, format!("{} holds no tensors", path.display())));
    }
    Ok(Tensors { latents, noise, recorded: None })
}

/// Checks, before any work, that the file can be written.
pub(super) fn check_output(path: &Path, existing: Existing) -> Result<()> {
    let field = "tensors-out";
    if path.is_dir() {
        return Err(Error::request(field, format!("{} is a folder", path.display())));
    }
    if path.exists() && existing == Existing::Refuse {
        let error = Error::request(field, format!("{} exists already", path.display()));
        return Err(error.with_hint("-y overwrites it"));
    }
    let folder = folder_of(path);
    // Only trying tells whether something can be written there.
    if let Err(error) = tempfile::tempfile_in(folder) {
        let reason = format!("cannot write to {}: {error}", folder.display());
        return Err(Error::request(field, reason));
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes the file whole or not at all.
pub(super) fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let draft = tempfile::NamedTempFile::new_in(folder_of(path)).map_err(Error::file(path))?;
    safetensors::serialize_to_file(tensors, None, draft.path())
        .map_err(|e| Error::Encode { format: "safetensors", reason: e.to_string() })?;
    draft.persist(path).map_err(|e| Error::file(path)(e.error))?;
    Ok(())
}
