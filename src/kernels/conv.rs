//! Two-dimensional convolution.

use candle_core::{DType, Result, Tensor};

/// Convolves `(batch, in, height, width)` with `(out, in, kernel, kernel)` and adds `bias`, `(out)`.
///
/// On the CPU half-precision tensors are computed in f32: candle's own CPU convolution has no bf16, and
/// its f16 is no faster.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: usize,
    stride: usize,
) -> Result<Tensor> {
    let dtype = x.dtype();
    let half_on_cpu = x.device().is_cpu() && dtype != DType::F32;
    let y = if half_on_cpu {
        let x = x.to_dtype(DType::F32)?;
        x.conv2d(&weight.to_dtype(DType::F32)?, padding, stride, 1, 1)?
    } else {
        x.conv2d(weight, padding, stride, 1, 1)?
    };
    let y = match bias {
        Some(bias) => {
            y.broadcast_add(&bias.to_dtype(y.dtype())?.reshape((1, bias.elem_count(), 1, 1))?)?
        }
        None => y,
    };
    y.to_dtype(dtype)
}
