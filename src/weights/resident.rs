//! The weights of a model kept in memory for rebuilding it.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

/// The tensors of a built model by canonical name, which share memory with the model's own.
///
/// When the model is rebuilt, forgotten tensors are loaded and patched again; all others are reused.
///
/// On the CPU, layers pack their weights and drop the tensors, so keeping them here would hold the weights in memory
/// twice.
#[derive(Clone, Debug)]
pub struct Resident {
    dtype: DType,
    device: Device,
    pub(super) keeps: bool,
    pub(super) tensors: BTreeMap<String, Tensor>,
}

impl Resident {
    /// Creates an empty cache for tensors of `dtype` (`F32`, `F16` or `BF16`) on `device`.
    pub fn new(dtype: DType, device: &Device) -> Self {
        Self { dtype, device: device.clone(), keeps: true, tensors: BTreeMap::new() }
    }

    /// Creates a cache that never stores tensors: models are always built from files.
    pub fn empty(dtype: DType, device: &Device) -> Self {
        Self { keeps: false, ..Self::new(dtype, device) }
    }

    /// The dtype of the tensors.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device of the tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Drops tensors from the cache. Their memory is freed once no model uses them.
    pub fn forget<S: AsRef<str>>(&mut self, names: impl IntoIterator<Item = S>) {
        for name in names {
            self.tensors.remove(name.as_ref());
        }
    }
}
