//! 2D convolution.

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use crate::kernels::{self, ConvArgs, Weights};

/// Options of a [`Conv2d`].
#[derive(Clone, Copy, Debug)]
pub struct ConvOptions {
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Zero padding before the first and after the last row and column.
    pub padding: (usize, usize),
    /// Stride.
    pub stride: usize,
    /// Whether the layer has a bias.
    pub bias: bool,
}

impl ConvOptions {
    /// A 3×3 convolution that keeps the size.
    pub const SAME_3X3: Self = Self { kernel: 3, padding: (1, 1), stride: 1, bias: true };
    /// A 1×1 convolution.
    pub const POINT: Self = Self { kernel: 1, padding: (0, 0), stride: 1, bias: true };
}

/// A 2D convolution with a square kernel.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weights: Weights,
    options: ConvOptions,
}

impl Conv2d {
    /// Loads `weight` `(outputs, inputs, kernel, kernel)` and `bias` `(outputs)`.
    pub fn new(
        inputs: usize,
        outputs: usize,
        options: ConvOptions,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let weight = vb.get((outputs, inputs, options.kernel, options.kernel), "weight")?;
        let bias = if options.bias { Some(vb.get(outputs, "bias")?) } else { None };
        Ok(Self { weights: Weights::quantized(&weight, bias.as_ref(), vb.quantize())?, options })
    }

    /// Maps `(batch, inputs, height, width)` to `(batch, outputs, height', width')`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, ConvArgs::default())
    }

    /// [`forward`](Self::forward) with fused operations; padding and stride of `args` are replaced by those of the
    /// layer.
    pub fn forward_with(&self, x: &Tensor, args: ConvArgs<'_>) -> Result<Tensor> {
        let ConvOptions { padding, stride, .. } = self.options;
        kernels::conv2d(x, &self.weights, &ConvArgs { padding, stride, ..args })
    }
}
