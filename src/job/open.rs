//! What a job runs on: device, dtypes and networks.

use super::resolve::{self, Names};
use crate::device::Precision;
use crate::library::{Files, Models};
use crate::pipeline::{Pipeline, Residency};
use crate::request::{Job, Spec};
use crate::{Result, Stop};

/// The pipeline of a job, with every network open that its request uses.
///
/// # Errors
///
/// When a name leads nowhere, or a file is not what it is used as.
pub fn open(
    job: &Job,
    names: &Names,
    residency: Residency,
    stop: &Stop,
) -> Result<(Pipeline, Files)> {
    let mut files = resolve::files(&job.models, names)?;
    files.controls = resolve::controls(&job.request, names)?;
    files.depth = resolve::depth(&job.request, &job.models, names)?;
    files.ip_adapters = resolve::ip_adapters(&job.request, names)?;
    Ok((open_files(&job.models, &files, residency, stop)?, files))
}

/// The pipeline of files, on the device and in the dtypes of a spec.
///
/// # Errors
///
/// When a device is missing, or a file is not what it is used as.
pub fn open_files(
    spec: &Spec,
    files: &Files,
    residency: Residency,
    stop: &Stop,
) -> Result<Pipeline> {
    let device = spec.device.open()?;
    spec.kernels.apply(&device)?;
    let precision = Precision::new(spec.dtype, &device).quantized(spec.quantize, &device)?;
    let models = Models::open_until(files, stop)?;
    Ok(Pipeline::new(models, device, precision, residency).until(stop))
}
