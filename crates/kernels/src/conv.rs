//! Two-dimensional convolution.
//!
//! On the CPU images lie in memory with their channels innermost, though shapes say `(batch, channels, height,
//! width)`: results are views, and the next layer takes them as they are.

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor};
use half::bf16;

use super::clock::{self, Kind};
use super::cpu::amx::MatrixUnit as _;
use super::cpu::conv_geometry::ConvGeometry;
use super::cpu::float::{self, Byte, Float};
use super::cpu::gemm::{self, Activation, Epilogue};
use super::cpu::isa::Isa;
use super::cpu::pack::{Columns, Packed, Panels, Widened};
use super::cpu::quantize::{QuantizedInt, QuantizedRows};
use super::cpu::winograd;
use super::layout::{channels_first, channels_last};
use super::weights::{Form, Weights};
use super::{autograd, reference};
use crate::Stop;

/// Options of a convolution. By default: stride 1, no padding, nothing fused.
#[derive(Clone, Copy, Debug)]
pub struct ConvArgs<'a> {
    /// Zeros before the first and after the last line and column.
    pub padding: (usize, usize),
    /// Step between outputs.
    pub stride: usize,
    /// Height and width to which the input is first stretched, by nearest neighbours.
    pub stretch: Option<(usize, usize)>,
    /// Added to every pixel beside the bias, `(outputs)`.
    pub shift: Option<&'a Tensor>,
    /// Activation after the bias and the shift.
    pub activation: Activation,
    /// Added last; of the shape of the result.
    pub residual: Option<&'a Tensor>,
    /// Cancellation flag, which ends the call with [`Cancelled`](crate::Cancelled) inside the tensor
    /// library's error.
    pub stop: Option<&'a Stop>,
}

impl Default for ConvArgs<'_> {
    fn default() -> Self {
        Self {
            padding: (0, 0),
            stride: 1,
            stretch: None,
            shift: None,
            activation: Activation::None,
            residual: None,
            stop: None,
        }
    }
}

/// Convolves `(batch, in, height, width)` with `(out, in, kernel, kernel)`; see [`reference::conv2d`].
///
/// On the CPU half-precision products are summed in f32.
///
/// # Errors
///
/// When shapes do not agree, or the kernel is larger than the padded image.
pub fn conv2d(x: &Tensor, weights: &Weights, args: &ConvArgs<'_>) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let (sizes, kernel) = (weights.sizes(), weights.kernel());
    let seen = args.stretch.unwrap_or((height, width));
    let window = (args.stride > 0 && height * width > 0)
        .then(|| {
            ConvGeometry::convolution(
                batch,
                (height, width),
                seen,
                kernel,
                args.padding,
                args.stride,
            )
        })
        .flatten();
    let Some(window) = window.filter(|_| sizes.channels == channels) else {
        candle_core::bail!(
            "convolution of {:?} with {weights:?}, padding {:?}, stride {}",
            x.dims(),
            args.padding,
            args.stride
        );
    };
    let (out_height, out_width) = window.size();
    let shape = (batch, sizes.outputs, out_height, out_width);
    if let Some(residual) = args.residual
        && residual.dims4()? != shape
    {
        candle_core::bail!("a residual {:?} for a convolution to {shape:?}", residual.dims());
    }
    let taps = kernel * kernel;
    clock::count(&[batch, out_height, out_width, sizes.outputs, channels, taps]);
    let mut given = [Some(x), args.shift, args.residual].into_iter().flatten();
    let track = weights.track() || given.any(Tensor::track_op);
    if track {
        return autograd::conv2d_with(x, &weights.plain()?, weights.bias(), args);
    }
    #[cfg(feature = "cuda")]
    if super::has_own(x.device())
        && let Some(y) = super::cuda::conv2d(x, weights, args, &window)?
    {
        return Ok(y);
    }
    if !weights.is_packed() {
        return reference::conv2d(x, &weights.plain()?, weights.bias(), args);
    }
    let residual = args.residual.map(channels_last).transpose()?;
    let op = Multiply {
        weights,
        window,
        bias: weights.packed_bias(args.shift)?,
        activation: args.activation,
        shape: Shape::from((batch, out_height, out_width, sizes.results())),
        stop: args.stop,
    };
    let kind = if kernel > 1 { Kind::Convolution } else { Kind::Linear };
    clock::timed(kind, || channels_first(&op.run(&channels_last(x)?, residual.as_ref())?))
}

/// `x Wᵀ + b` over the last dimension of `(.., inputs)`, then perhaps a `residual` `(.., outputs)` that is added.
///
/// Of [gated](Weights::gated) weights the result is `value · gelu(gate)`, half as wide; see [`reference::geglu`].
///
/// # Errors
///
/// When shapes do not agree.
pub fn linear(x: &Tensor, weights: &Weights, residual: Option<&Tensor>) -> Result<Tensor> {
    linear_until(x, weights, residual, None)
}

/// [`linear`], which `stop` ends early as it does [`conv2d`].
///
/// # Errors
///
/// As [`linear`], and [`Cancelled`](crate::Cancelled) inside the tensor library's error.
pub fn linear_until(
    x: &Tensor,
    weights: &Weights,
    residual: Option<&Tensor>,
    stop: Option<&Stop>,
) -> Result<Tensor> {
    let sizes = weights.sizes();
    let mut shape = x.dims().to_vec();
    if shape.last() != Some(&sizes.channels) || weights.kernel() != 1 {
        candle_core::bail!("a linear layer of {:?} with {weights:?}", x.dims());
    }
    if let Some(last) = shape.last_mut() {
        *last = sizes.results();
    }
    if residual.is_some_and(|residual| residual.dims() != shape) {
        candle_core::bail!("a residual of another shape than {shape:?}");
    }
    clock::count(&[x.elem_count(), sizes.outputs]);
    let mut given = [Some(x), residual].into_iter().flatten();
    let track = weights.track() || given.any(Tensor::track_op);
    #[cfg(feature = "cuda")]
    if super::has_own(x.device())
        && !track
        && let Some(y) = super::cuda::linear(x, weights, residual)?
    {
        return Ok(y);
    }
    if track || !weights.is_packed() {
        let (weight, bias) = (weights.plain()?, weights.bias());
        let y = if track {
            autograd::linear(x, &weight, bias)?
        } else {
            reference::linear(x, &weight, bias)?
        };
        let y = if sizes.columns == Columns::Gated { super::geglu(&y)? } else { y };
        return match residual {
            Some(residual) => y + residual,
            None => Ok(y),
        };
    }
    let op = Multiply {
        weights,
        window: ConvGeometry::rows(x.elem_count() / sizes.channels),
        bias: weights.packed_bias(None)?,
        activation: Activation::None,
        shape: Shape::from(shape),
        stop,
    };
    clock::timed(Kind::Linear, || {
        op.run(&x.contiguous()?, residual.map(Tensor::contiguous).transpose()?.as_ref())
    })
}

/// A product whose left operand has its channels innermost.
struct Multiply<'a> {
    weights: &'a Weights,
    window: ConvGeometry,
    bias: Option<Vec<f32>>,
    activation: Activation,
    /// Shape of the result.
    shape: Shape,
    stop: Option<&'a Stop>,
}

impl Multiply<'_> {
    fn run(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let dtype = x.dtype();
        // bf16 needs no copy where it is multiplied as it is, transformed or rounded first.
        let native = self.multiplies_bf16(dtype)
            || self.takes_bf16(dtype) && (self.is_transformed(dtype) || self.rounds());
        let format = if native { DType::BF16 } else { DType::F32 };
        let x = x.to_dtype(format)?;
        let y = match residual {
            Some(residual) => x.apply_op2_no_bwd(&residual.to_dtype(format)?, self)?,
            None => x.apply_op1_no_bwd(self)?,
        };
        if let Some(stop) = self.stop {
            stop.check()?;
        }
        y.to_dtype(dtype)
    }

    /// Returns whether a convolution of values in `dtype` uses Winograd's algorithm.
    fn is_transformed(&self, dtype: DType) -> bool {
        let sizes = self.weights.sizes();
        // Speed of products relative to f32 when memory is not the limit.
        let times = match Isa::current() {
            _ if !self.multiplies_bf16(dtype) => 1.0,
            isa if bf16::fits_tiles(isa, sizes.channels) => 10.0,
            _ => 2.0,
        };
        winograd::pays(&sizes, &self.window, times)
    }

    /// Returns whether there is a kernel that reads values in bf16.
    fn takes_bf16(&self, dtype: DType) -> bool {
        let weights = match self.weights.form() {
            Form::Bf16(_) | Form::Int8 { .. } => true,
            Form::Bytes { .. } => self.rounds(),
            Form::F32(_) | Form::F16(_) | Form::Plain(_) => false,
        };
        dtype == DType::BF16 && weights
    }

    /// Returns whether values are multiplied in bf16.
    fn multiplies_bf16(&self, dtype: DType) -> bool {
        self.takes_bf16(dtype) && !self.rounds() && Isa::current().multiplies_bf16()
    }

    /// Returns whether values are quantized to 8 bits.
    fn rounds(&self) -> bool {
        matches!(self.weights.form(), Form::Bytes { .. }) && self.window.is_identity()
    }

    /// Hands the slices to `kernel`.
    fn call<T: Float>(
        &self,
        x: Operand<'_>,
        residual: Option<Operand<'_>>,
        kernel: impl FnOnce(&[T], &Epilogue<'_, T>) -> Vec<T>,
    ) -> Result<CpuStorage> {
        let epilogue = Epilogue {
            rows: None,
            scales: self.weights.scales(),
            bias: self.bias.as_deref(),
            activation: self.activation,
            residual: residual.map(slice).transpose()?,
            stop: self.stop,
        };
        Ok(T::storage(kernel(slice(x)?, &epilogue)))
    }

    /// Quantizes values to 8 bits, and multiplies those by weights whose columns add up to `totals`.
    fn multiply_rounded<T: Float>(
        &self,
        x: Operand<'_>,
        residual: Option<Operand<'_>>,
        (values, totals): (&Packed<Byte>, &[f32]),
    ) -> Result<CpuStorage> {
        /// [`multiply_rounded`](Multiply::multiply_rounded) with the integers stored as `W`.
        fn multiply<T: Float, W: QuantizedInt + gemm::Operand>(
            (isa, x, window): (Isa, &[T], &ConvGeometry),
            (panels, totals): (&impl Panels<W::Weight>, &[f32]),
            epilogue: &Epilogue<'_, T>,
        ) -> Vec<T> {
            let x = QuantizedRows::<W>::new(isa, x, panels.sizes().channels);
            let epilogue = Epilogue { rows: Some(x.rows(totals)), ..*epilogue };
            gemm::product(isa, &x.values, window, panels, &epilogue)
        }
        let isa = Isa::current();
        self.call::<T>(x, residual, |x, epilogue| {
            let x = (isa, x, &self.window);
            if isa.multiplies_bytes() {
                multiply::<T, u8>(x, (values, totals), epilogue)
            } else {
                multiply::<T, f32>(x, (&Widened(values), totals), epilogue)
            }
        })
    }

    fn dispatch(
        &self,
        x: Operand<'_>,
        residual: Option<Operand<'_>>,
    ) -> Result<(CpuStorage, Shape)> {
        let (isa, window) = (Isa::current(), &self.window);
        let transformed = self.is_transformed(x.0.dtype());
        let form = self.weights.form();
        macro_rules! with {
            ($kernel:path, $panels:expr) => {
                self.call(x, residual, |x, epilogue| $kernel(isa, x, window, $panels, epilogue))
            };
        }
        let y = match (form, x.0) {
            (Form::Bf16(packed), CpuStorage::BF16(_)) if transformed => {
                with!(winograd::convolve::<bf16>, &Widened(packed))
            }
            (Form::Bf16(packed), CpuStorage::BF16(_)) => with!(gemm::product::<bf16, _>, packed),
            (Form::F32(packed), _) if transformed => with!(winograd::convolve::<f32>, packed),
            (Form::F32(packed), _) => with!(gemm::product::<f32, _>, packed),
            (Form::Bf16(packed), _) => with!(gemm::product::<f32, _>, &Widened(packed)),
            (Form::F16(packed), _) if transformed => {
                with!(winograd::convolve::<f32>, &Widened(packed))
            }
            (Form::F16(packed), _) => with!(gemm::product::<f32, _>, &Widened(packed)),
            (Form::Int8 { values, .. }, CpuStorage::BF16(_)) if transformed => {
                with!(winograd::convolve::<bf16>, &Widened(values))
            }
            (Form::Int8 { values, .. }, CpuStorage::BF16(_)) => {
                with!(gemm::product::<bf16, _>, &Widened(values))
            }
            (Form::Int8 { values, .. }, _) if transformed => {
                with!(winograd::convolve::<f32>, &Widened(values))
            }
            (Form::Int8 { values, .. }, _) => with!(gemm::product::<f32, _>, &Widened(values)),
            (Form::Bytes { values, .. }, _) if !self.rounds() => {
                with!(gemm::product::<f32, _>, &Widened(values))
            }
            (Form::Bytes { values, totals, .. }, CpuStorage::BF16(_)) => {
                self.multiply_rounded::<bf16>(x, residual, (values, totals))
            }
            (Form::Bytes { values, totals, .. }, _) => {
                self.multiply_rounded::<f32>(x, residual, (values, totals))
            }
            (Form::Plain(_), _) => candle_core::bail!("these weights are not packed"),
        };
        Ok((y?, self.shape.clone()))
    }
}

/// A contiguous tensor that a kernel is given.
type Operand<'a> = (&'a CpuStorage, &'a Layout);

fn slice<T: Float>((storage, layout): Operand<'_>) -> Result<&[T]> {
    float::slice(storage, layout.start_offset(), layout.shape().elem_count())
}

impl CustomOp1 for Multiply<'_> {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.dispatch((x, layout), None)
    }
}

impl CustomOp2 for Multiply<'_> {
    fn name(&self) -> &'static str {
        "product-and-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.dispatch((x, layout), Some((residual, residual_layout)))
    }
}
