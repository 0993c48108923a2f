//! The `VarBuilder` backend: looks up, patches and converts weights, and records which were used.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Storage, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;

use super::Located;
use super::format::{Archive, misfit, quoted};
use super::patch::PatchEntry;
use crate::{Error, Result};

/// Record of the weights a constructor requested.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) used: BTreeSet<String>,
    pub(super) bytes: u64,
    /// Number of weights each patch changed.
    pub(super) patched: Vec<usize>,
    /// Tensors that need not be loaded; afterwards, if `keeps` is set, all tensors served.
    pub(super) resident: BTreeMap<String, Tensor>,
    pub(super) keeps: bool,
    /// Number of tensors served from `resident`.
    pub(super) reused: usize,
    /// The first error not related to names and shapes.
    pub(super) failure: Option<Error>,
}

/// The first value of an `f32` CPU tensor that `dtype` cannot represent.
fn misfit_of(tensor: &Tensor, dtype: DType) -> Result<Option<f32>> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
    else {
        return Ok(None);
    };
    let values = storage.as_slice::<f32>()?;
    Ok(misfit(values.get(start..end).unwrap_or_default(), dtype))
}

/// Serves the weights of one component.
pub(super) struct Backend {
    pub(super) archives: Vec<Arc<Archive>>,
    /// Every weight in the shape that will be requested.
    pub(super) index: Arc<BTreeMap<String, Located>>,
    pub(super) patches: Vec<PatchEntry>,
    pub(super) record: Arc<Mutex<Record>>,
}

impl Backend {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the error, which candle's error type cannot carry.
    fn fail(&self, error: Error) -> candle_core::Error {
        let message = error.to_string();
        self.record().failure.get_or_insert(error);
        candle_core::Error::msg(message)
    }

    /// The patches of a weight, with their indices among all patches.
    fn patches_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (usize, &'a PatchEntry)> {
        let entries = self.patches.iter().enumerate();
        entries.filter(move |(_, entry)| entry.patch.names().contains(name))
    }

    fn load(&self, name: &str, at: &Located, dtype: DType, device: &Device) -> Result<Tensor> {
        let archive = self
            .archives
            .get(at.archive)
            .ok_or_else(|| Error::format(name, "its file is not open"))?;
        let mut patches = self.patches_of(name).peekable();
        if patches.peek().is_none() {
            let tensor = archive.tensor(&at.stored, dtype, device)?;
            return Ok(tensor.reshape(at.shape.as_slice())?);
        }
        // In f32 on the CPU, so that a patched weight is the same on every device.
        let mut tensor =
            archive.tensor(&at.stored, DType::F32, &Device::Cpu)?.reshape(at.shape.as_slice())?;
        for (_, entry) in patches {
            let patched = entry.patch.apply(name, &tensor, entry.strength)?;
            if patched.dims() != tensor.dims() || patched.dtype() != DType::F32 {
                return Err(Error::Adapter {
                    adapter: entry.patch.label().to_owned(),
                    reason: format!(
                        "made {} of shape {:?} into {:?}",
                        quoted(name),
                        tensor.dims(),
                        patched.dims()
                    ),
                });
            }
            tensor = patched;
        }
        if let Some(value) = misfit_of(&tensor, dtype)? {
            let labels: Vec<&str> =
                self.patches_of(name).map(|(_, entry)| entry.patch.label()).collect();
            return Err(Error::Adapter {
                adapter: labels.join(" + "),
                reason: format!(
                    "brings {} to {value}, too large for {}",
                    quoted(name),
                    dtype.as_str()
                ),
            });
        }
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }

    fn serve(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let Some(at) = self.index.get(name) else {
            candle_core::bail!("{} is missing", quoted(name));
        };
        let mut record = self.record();
        record.used.insert(name.to_owned());
        let resident = record.resident.get(name).cloned();
        drop(record);
        let is_resident = resident.is_some();
        let tensor = match resident {
            Some(tensor) => tensor,
            None => self.load(name, at, dtype, device).map_err(|error| self.fail(error))?,
        };
        let mut record = self.record();
        record.bytes += (tensor.elem_count() * dtype.size_in_bytes()) as u64;
        record.reused += usize::from(is_resident);
        for (number, _) in self.patches_of(name) {
            if let Some(count) = record.patched.get_mut(number) {
                *count += 1;
            }
        }
        if record.keeps {
            record.resident.insert(name.to_owned(), tensor.clone());
        }
        Ok(tensor)
    }
}

impl SimpleBackend for Backend {
    fn get(
        &self,
        _: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.serve(name, dtype, device)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.serve(name, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("tensors", &self.index.len()).finish_non_exhaustive()
    }
}
