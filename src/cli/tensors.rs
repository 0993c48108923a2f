//! `--tensors-in` and `--tensors-out`: tensors that people exchange, in diffusers' layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::files::{Draft, Place};
use crate::output::{self, Existing};
use crate::pipeline::Tensors;
use crate::pipeline::request::Job;
use crate::weights::{Source, sha256, write_safetensors};
use crate::{Error, Result, Stop};

/// Reads `--tensors-in` and writes down which file it was.
pub(super) fn read(job: &mut Job, stop: &Stop) -> Result<Tensors> {
    let Some(record) = &mut job.tensors_in else { return Ok(Tensors::default()) };
    let path = PathBuf::from(&record.file);
    let field = "tensors-in";
    match std::fs::metadata(&path) {
        // A pipe could not be read twice, and a device has no end.
        Ok(found) if !found.is_file() => {
            let reason = format!("{} is not an ordinary file", path.display());
            return Err(Error::request(field, reason));
        }
        Ok(_) => {}
        Err(error) => return Err(super::generate::unreadable(field, &path, &error)),
    }
    let found = sha256(&Source::from(path.clone()), stop)?;
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
    let mut hint_noise = BTreeMap::new();
    for control in &job.request.controls {
        if let Some(noise) = all.remove(&format!("noise.control.{}", control.name)) {
            hint_noise.insert(control.name.clone(), noise);
        }
    }
    if let Some(name) = all.keys().min() {
        let reason = format!("`{name}` is neither `latents` nor `noise.0`, `noise.1`, …");
        let error = Error::request(field, reason);
        return Err(if name.starts_with("noise.control.") {
            error.with_hint("noise.control.NAME is for the control NAME")
        } else {
            error
        });
    }
    if latents.is_none() && noise.is_empty() && hint_noise.is_empty() {
        return Err(Error::request(field, format!("{} holds no tensors", path.display())));
    }
    Ok(Tensors { latents, noise, hint_noise, recorded: None })
}

/// Checks what was read against the run, whose latents are `wanted`: `(1, channels, frames, height, width)`.
pub(super) fn check(tensors: &Tensors, wanted: [usize; 5]) -> Result<()> {
    let noise = tensors.noise.iter().enumerate().map(|(i, noise)| (format!("noise.{i}"), noise));
    let latents = tensors.latents.iter().map(|latents| ("latents".to_owned(), latents));
    let wrong =
        |name: &str, reason| Err(Error::request("tensors-in", format!("`{name}` {reason}")));
    for (name, tensor) in latents.chain(noise) {
        if tensor.dims() != wanted {
            return wrong(&name, format!("is {:?}, the run needs {wanted:?}", tensor.dims()));
        }
        if let Some(value) = not_finite(tensor)? {
            return wrong(&name, format!("holds the value {value}"));
        }
    }
    // How many hints there are is known where they are encoded.
    for (name, tensor) in &tensors.hint_noise {
        if let Some(value) = not_finite(tensor)? {
            return wrong(&format!("noise.control.{name}"), format!("holds the value {value}"));
        }
    }
    Ok(())
}

/// A value that is no number or without end.
fn not_finite(tensor: &Tensor) -> Result<Option<f32>> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().find(|value| !value.is_finite()))
}

/// Checks, before any work, that the file can be written and is not the clip's.
pub(super) fn check_output(path: &Path, existing: Existing, clip: &Path) -> Result<Place> {
    output::check_beside(clip, "tensors-out", path, existing)
}

/// The file, complete under another name.
pub(super) fn draft(place: Place, tensors: &BTreeMap<String, Tensor>) -> Result<Draft> {
    let path = place.path().to_path_buf();
    let mut draft = place.draft()?;
    write_safetensors(&mut draft, tensors, None).map_err(Error::file(path))?;
    Ok(draft)
}
