//! The weight source that layer constructors take.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;

use crate::Quantize;

/// candle's [`VarBuilder`](candle_nn::VarBuilder) with the quantization that layers apply to their weights.
#[derive(Clone)]
pub struct VarBuilder<'a> {
    inner: candle_nn::VarBuilder<'a>,
    quantize: Quantize,
}

impl<'a> VarBuilder<'a> {
    /// Creates a builder over tensors in memory.
    pub fn from_tensors(
        tensors: std::collections::HashMap<String, Tensor>,
        dtype: DType,
        device: &Device,
    ) -> Self {
        candle_nn::VarBuilder::from_tensors(tensors, dtype, device).into()
    }

    pub(super) fn from_backend(
        backend: Box<dyn SimpleBackend + 'a>,
        dtype: DType,
        device: Device,
    ) -> Self {
        candle_nn::VarBuilder::from_backend(backend, dtype, device).into()
    }

    /// The builder with another quantization of layer weights.
    #[must_use]
    pub fn quantized(self, quantize: Quantize) -> Self {
        Self { quantize, ..self }
    }

    /// The quantization that layers apply to their weights.
    pub fn quantize(&self) -> Quantize {
        self.quantize
    }

    /// The builder for the weights below `name`.
    #[must_use]
    pub fn pp(&self, name: impl ToString) -> Self {
        Self { inner: self.inner.pp(name), quantize: self.quantize }
    }

    /// The weight with the given name and shape.
    ///
    /// # Errors
    ///
    /// A weight that is missing or has another shape.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        self.inner.get(shape, name)
    }

    /// Returns whether a weight with this name exists.
    pub fn contains_tensor(&self, name: &str) -> bool {
        self.inner.contains_tensor(name)
    }

    /// The current name prefix, joined by dots.
    pub fn prefix(&self) -> String {
        self.inner.prefix()
    }

    /// The dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.inner.dtype()
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        self.inner.device()
    }
}

impl<'a> From<candle_nn::VarBuilder<'a>> for VarBuilder<'a> {
    fn from(inner: candle_nn::VarBuilder<'a>) -> Self {
        Self { inner, quantize: Quantize::None }
    }
}

/// Converts for layers of other crates.
impl<'a> From<VarBuilder<'a>> for candle_nn::VarBuilder<'a> {
    fn from(vb: VarBuilder<'a>) -> Self {
        vb.inner
    }
}

impl std::fmt::Debug for VarBuilder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("VarBuilder");
        fields.field("prefix", &self.prefix()).field("dtype", &self.dtype());
        fields.field("quantize", &self.quantize).finish_non_exhaustive()
    }
}
