//! The weights of a model in memory, from which it can be built again.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

/// The tensors of a built model under their canonical names. They share their memory with the model's own.
///
/// What is forgotten is loaded and patched anew when the model is built again; the rest is taken from here.
///
/// Layers on the CPU pack their weights and let go of the tensors, which would be in memory twice if they were kept.
#[derive(Clone, Debug)]
pub struct Resident {
    dtype: DType,
    device: Device,
    pub(super) keeps: bool,
    pub(super) tensors: BTreeMap<String, Tensor>,
}

impl Resident {
    /// No tensors yet; those to come are of `dtype` (`F32`, `F16` or `BF16`) on `device`.
    pub fn new(dtype: DType, device: &Device) -> Self {
        Self { dtype, device: device.clone(), keeps: true, tensors: BTreeMap::new() }
    }

    /// No tensors, now or later: a model is built of files alone.
    pub fn nothing(dtype: DType, device: &Device) -> Self {
        Self { keeps: false, ..Self::new(dtype, device) }
    }

    /// The number format of the tensors.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Forgets tensors. Their memory is free once no model has them.
    pub fn forget<S: AsRef<str>>(&mut self, names: impl IntoIterator<Item = S>) {
        for name in names {
            self.tensors.remove(name.as_ref());
        }
    }
}
