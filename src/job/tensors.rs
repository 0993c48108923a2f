//! Tensors that people exchange in safetensors files, in diffusers' layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::files::{self, Draft, Place};
use crate::output::{self, Existing};
use crate::pipeline::Inputs;
use crate::request::Job;
use crate::weights::write_safetensors;
use crate::{Error, Result, Stop};

/// Reads the job's tensors into its inputs and writes down which file it was.
pub(super) fn read(job: &mut Job, inputs: &mut Inputs, stop: &Stop) -> Result<()> {
    let Some(record) = &mut job.tensors_in else { return Ok(()) };
    let path = PathBuf::from(&record.file);
    let field = "tensors-in";
    let bytes =
        files::read(&path, u64::MAX).map_err(|error| Error::unreadable(field, &path, &error))?;
    stop.check()?;
    let found = files::hex(Sha256::new_with_prefix(&bytes));
    if let Some(wanted) = record.sha256.replace(found.clone())
        && wanted != found
    {
        let reason = format!("sha256 is {found}, the clip was made with {wanted}");
        return Err(Error::Refused { name: record.file.clone(), reason });
    }
    let mut all = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|e| Error::request(field, format!("{}: {e}", path.display())))?;
    inputs.latents = all.remove("latents");
    inputs.noise = (0..).map_while(|i| all.remove(&format!("noise.{i}"))).collect();
    if job.request.source.is_some() {
        inputs.source_noise = all.remove("noise.source");
    }
    for control in &job.request.controls {
        if let Some(noise) = all.remove(&format!("noise.control.{}", control.name)) {
            inputs.hint_noise.insert(control.name.clone(), noise);
        }
    }
    if let Some(name) = all.keys().min() {
        let reason = format!("`{name}` is neither `latents` nor `noise.0`, `noise.1`, …");
        let error = Error::request(field, reason);
        return Err(if name.starts_with("noise.control.") {
            error.with_hint("noise.control.NAME is for the control NAME")
        } else if name == "noise.source" {
            error.with_hint("noise.source is for --image and --video")
        } else {
            error
        });
    }
    let has_latents = inputs.latents.is_some() || inputs.source_noise.is_some();
    if !has_latents && inputs.noise.is_empty() && inputs.hint_noise.is_empty() {
        return Err(Error::request(field, format!("{} holds no tensors", path.display())));
    }
    Ok(())
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
