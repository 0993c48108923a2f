//! Convolution over an image.

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use crate::kernels::{self, ConvArgs, Weights};

/// The sizes of a [`Conv2d`].
#[derive(Clone, Copy, Debug)]
pub struct ConvOptions {
    /// Side of the square kernel.
    pub kernel: usize,
    /// Zeros before the first and after the last line and column.
    pub padding: (usize, usize),
    /// Step between outputs.
    pub stride: usize,
    /// Whether a bias is stored.
    pub bias: bool,
}

impl ConvOptions {
    /// 3×3 that keeps the size.
    pub const SAME_3X3: Self = Self { kernel: 3, padding: (1, 1), stride: 1, bias: true };
    /// 1×1.
    pub const POINT: Self = Self { kernel: 1, padding: (0, 0), stride: 1, bias: true };
}

/// A convolution with a square kernel.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weights: Weights,
    options: ConvOptions,
}

impl Conv2d {
    /// Reads `weight` `(outputs, inputs, kernel, kernel)` and `bias` `(outputs)`.
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

    /// `(batch, inputs, height, width)` to `(batch, outputs, height', width')`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, ConvArgs::default())
    }

    /// [`forward`](Self::forward) with what else is to be done on the way; padding and stride are those of this layer,
    /// whatever `args` says.
    pub fn forward_with(&self, x: &Tensor, args: ConvArgs<'_>) -> Result<Tensor> {
        let ConvOptions { padding, stride, .. } = self.options;
        kernels::conv2d(x, &self.weights, &ConvArgs { padding, stride, ..args })
    }
}
