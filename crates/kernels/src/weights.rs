//! The weights of linear layers and convolutions, packed for the CPU when they are loaded.

use std::fmt;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, DType, Result, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::cpu::float::{Byte, Stored};
use super::cpu::pack::{Columns, Packed, Sizes};
use super::layout::{channels_first, channels_last};
use crate::Quantize;

/// A weight matrix `(outputs, inputs)` or kernel `(outputs, inputs, k, k)`, and a bias.
///
/// On the CPU the weights are stored in the order in which products read them, and only there. Those that are
/// trained, and those on other devices, stay what they are.
#[derive(Clone)]
pub struct Weights(Arc<Inner>);

struct Inner {
    form: Form,
    shape: Vec<usize>,
    dtype: DType,
    sizes: Sizes,
    bias: Option<Tensor>,
    packed_bias: Option<Vec<f32>>,
    /// The matrix, where something that tracks gradients asked for it.
    plain: OnceLock<Tensor>,
}

pub(super) enum Form {
    Plain(Tensor),
    F32(Packed<f32>),
    Bf16(Packed<bf16>),
    F16(Packed<f16>),
    /// Integers with a scale for every packed column.
    Int8 {
        values: Packed<i8>,
        scales: Vec<f32>,
    },
    /// 8-bit integers for products with quantized rows: a scale, and the sum of the integers, for every packed column.
    Bytes {
        values: Packed<Byte>,
        scales: Vec<f32>,
        totals: Vec<f32>,
    },
}

impl Quantize {
    /// Bytes of a weight of `dtype` in memory.
    pub fn bytes(self, shape: &[usize], dtype: DType) -> u64 {
        let values = shape.iter().product::<usize>() as u64;
        match *shape {
            [outputs, inputs, ..] if self != Self::None && is_large(outputs, inputs) => {
                values + 4 * outputs as u64
            }
            _ => values * dtype.size_in_bytes() as u64,
        }
    }
}

/// Returns whether a layer is large enough for quantization to save memory. The first and the last layer of a network,
/// which are the most sensitive, are not.
fn is_large(outputs: usize, inputs: usize) -> bool {
    outputs >= 32 && inputs >= 32 && inputs.is_multiple_of(i8::GROUP)
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weights({:?}, {:?})", self.0.shape, self.0.dtype)
    }
}

impl Weights {
    /// Takes a weight and a bias `(outputs)`.
    ///
    /// # Errors
    ///
    /// When the shapes do not agree.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        Self::quantized(weight, bias, Quantize::None)
    }

    /// [`new`](Self::new) with quantization; on the CPU the weights are rounded, unless the layer is small.
    ///
    /// # Errors
    ///
    /// When the shapes do not agree.
    pub fn quantized(weight: &Tensor, bias: Option<&Tensor>, quantize: Quantize) -> Result<Self> {
        Self::with_columns(weight, bias, (Columns::Plain, quantize))
    }

    /// [`quantized`](Self::quantized) for a layer whose outputs are values, then their gates; see
    /// [`linear`](super::linear()).
    ///
    /// # Errors
    ///
    /// When the shapes do not agree, or the number of outputs is odd.
    pub fn gated(weight: &Tensor, bias: Option<&Tensor>, quantize: Quantize) -> Result<Self> {
        if weight.dim(0)? % 2 != 0 {
            candle_core::bail!("gated gelu wants an even width, got {}", weight.dim(0)?);
        }
        Self::with_columns(weight, bias, (Columns::Gated, quantize))
    }

    fn with_columns(
        weight: &Tensor,
        bias: Option<&Tensor>,
        (columns, quantize): (Columns, Quantize),
    ) -> Result<Self> {
        let (outputs, channels, kernel) = match *weight.dims() {
            [outputs, channels] => (outputs, channels, 1),
            [outputs, channels, kernel, width] if kernel == width => (outputs, channels, kernel),
            _ => candle_core::bail!("weights of shape {:?}", weight.dims()),
        };
        if let Some(bias) = bias
            && bias.dims() != [outputs]
        {
            candle_core::bail!("a bias {:?} for {outputs} outputs", bias.dims());
        }
        let sizes = Sizes { outputs, taps: kernel * kernel, channels, columns };
        let trained = weight.track_op() || bias.is_some_and(Tensor::track_op);
        let packable = weight.device().is_cpu() && !trained && weight.elem_count() > 0;
        let form = if packable {
            pack(weight, sizes, quantize)?
        } else if weight.rank() == 4 && !trained && super::has_own(weight.device()) {
            Form::Plain(channels_first(&channels_last(weight)?)?)
        } else {
            Form::Plain(weight.clone())
        };
        let packed_bias = match (&form, bias) {
            (Form::Plain(_), _) | (_, None) => None,
            (_, Some(bias)) => Some(spread(&sizes, &f32_vec(bias)?)),
        };
        Ok(Self(Arc::new(Inner {
            form,
            shape: weight.dims().to_vec(),
            dtype: weight.dtype(),
            sizes,
            bias: bias.cloned(),
            packed_bias,
            plain: OnceLock::new(),
        })))
    }

    pub(super) fn form(&self) -> &Form {
        &self.0.form
    }

    pub(super) fn sizes(&self) -> Sizes {
        self.0.sizes
    }

    /// Side of the kernel.
    pub(super) fn kernel(&self) -> usize {
        self.0.shape.get(2).copied().unwrap_or(1)
    }

    /// The bias as it was given.
    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.0.bias.as_ref()
    }

    /// The bias for packed columns, with `shift` `(outputs)` added to it.
    pub(super) fn packed_bias(&self, shift: Option<&Tensor>) -> Result<Option<Vec<f32>>> {
        let Some(shift) = shift else { return Ok(self.0.packed_bias.clone()) };
        let shift = f32_vec(shift)?;
        if shift.len() != self.0.sizes.outputs {
            candle_core::bail!("a shift of {} for {} outputs", shift.len(), self.0.sizes.outputs);
        }
        let mut shift = spread(&self.0.sizes, &shift);
        if let Some(bias) = &self.0.packed_bias {
            shift.iter_mut().zip(bias).for_each(|(shift, bias)| *shift += bias);
        }
        Ok(Some(shift))
    }

    /// Factors of the sums of packed columns.
    pub(super) fn scales(&self) -> Option<&[f32]> {
        match &self.0.form {
            Form::Int8 { scales, .. } | Form::Bytes { scales, .. } => Some(scales),
            _ => None,
        }
    }

    /// Returns whether the weights are packed for the CPU's kernels.
    pub(super) fn is_packed(&self) -> bool {
        !matches!(self.0.form, Form::Plain(_))
    }

    /// Returns whether the weight or the bias takes part in a gradient.
    pub(super) fn track(&self) -> bool {
        matches!(&self.0.form, Form::Plain(weight) if weight.track_op())
            || self.0.bias.as_ref().is_some_and(Tensor::track_op)
    }

    /// The weight as it was given.
    pub(super) fn plain(&self) -> Result<Tensor> {
        let Inner { form, shape, dtype, sizes, plain, .. } = &*self.0;
        if let Form::Plain(weight) = form {
            return Ok(weight.clone());
        }
        if let Some(weight) = plain.get() {
            return Ok(weight.clone());
        }
        let values = match form {
            Form::Plain(_) => vec![],
            Form::F32(packed) => unpack(packed, sizes),
            Form::Bf16(packed) => unpack(packed, sizes),
            Form::F16(packed) => unpack(packed, sizes),
            Form::Int8 { values, scales } => scaled(unpack(values, sizes), sizes, scales),
            Form::Bytes { values, scales, .. } => scaled(unpack(values, sizes), sizes, scales),
        };
        let device = candle_core::Device::Cpu;
        let weight = Tensor::from_vec(values, shape.as_slice(), &device)?.to_dtype(*dtype)?;
        Ok(plain.get_or_init(|| weight).clone())
    }
}

fn pack(weight: &Tensor, sizes: Sizes, quantize: Quantize) -> Result<Form> {
    let weight = weight.contiguous()?;
    let (storage, layout) = weight.storage_and_layout();
    let start = layout.start_offset();
    let Storage::Cpu(storage) = &*storage else { candle_core::bail!("weights off the CPU") };
    let (inner, taps) = (sizes.channels * sizes.taps, sizes.taps);
    let place = move |o: usize, t: usize, c: usize| start + o * inner + c * taps + t;
    if quantize != Quantize::None && is_large(sizes.outputs, sizes.channels) {
        let grouped = sizes.channels.is_multiple_of(Byte::GROUP);
        let bytes = quantize == Quantize::W8A8 && taps == 1 && grouped;
        return Ok(match storage {
            CpuStorage::F32(v) => rounded(sizes, bytes, |o, t, c| v[place(o, t, c)]),
            CpuStorage::BF16(v) => rounded(sizes, bytes, |o, t, c| v[place(o, t, c)].widen()),
            CpuStorage::F16(v) => rounded(sizes, bytes, |o, t, c| v[place(o, t, c)].widen()),
            _ => Form::Plain(weight.clone()),
        });
    }
    Ok(match storage {
        CpuStorage::F32(v) => Form::F32(Packed::new(sizes, |o, t, c| v[place(o, t, c)])),
        CpuStorage::BF16(v) if sizes.channels.is_multiple_of(bf16::GROUP) => {
            Form::Bf16(Packed::new(sizes, |o, t, c| v[place(o, t, c)]))
        }
        CpuStorage::BF16(v) => Form::F32(Packed::new(sizes, |o, t, c| v[place(o, t, c)].to_f32())),
        CpuStorage::F16(v) => Form::F16(Packed::new(sizes, |o, t, c| v[place(o, t, c)])),
        _ => Form::Plain(weight.clone()),
    })
}

/// Packs `at(output, tap, channel)` as whole numbers up to 127 and a scale for every output; as `bytes` where the other
/// operand is to be rounded, too.
fn rounded(sizes: Sizes, bytes: bool, at: impl Fn(usize, usize, usize) -> f32 + Sync) -> Form {
    let scale = |output: usize| {
        let values = (0..sizes.taps).flat_map(|t| (0..sizes.channels).map(move |c| (t, c)));
        // A NaN makes the scale NaN, and with it all results.
        let most = values
            .map(|(t, c)| at(output, t, c).abs())
            .fold(0f32, |most, v| if v > most || v.is_nan() { v } else { most });
        most / 127.0
    };
    let scales: Vec<f32> = (0..sizes.outputs).into_par_iter().map(scale).collect();
    // A row of zeros divides by zero, and NaN becomes 0.
    let whole = |o, t, c| (at(o, t, c) / scales[o]).round_ties_even() as i8;
    let spread_scales = spread(&sizes, &scales);
    if !bytes {
        return Form::Int8 { values: Packed::new(sizes, whole), scales: spread_scales };
    }
    let total = |o| (0..sizes.channels).map(|c| i32::from(whole(o, 0, c))).sum::<i32>() as f32;
    let totals: Vec<f32> = (0..sizes.outputs).into_par_iter().map(total).collect();
    Form::Bytes {
        values: Packed::new(sizes, |o, t, c| Byte(whole(o, t, c))),
        scales: spread_scales,
        totals: spread(&sizes, &totals),
    }
}

/// Multiplies each output's weights by its scale.
fn scaled(mut weight: Vec<f32>, sizes: &Sizes, scales: &[f32]) -> Vec<f32> {
    let inner = sizes.channels * sizes.taps;
    for (column, scale) in scales.iter().enumerate() {
        if let Some(output) = sizes.output(column) {
            weight[output * inner..][..inner].iter_mut().for_each(|v| *v *= scale);
        }
    }
    weight
}

fn unpack<T: Stored>(packed: &Packed<T>, sizes: &Sizes) -> Vec<f32> {
    let mut values = vec![0f32; sizes.outputs * sizes.channels * sizes.taps];
    packed.unpack(|o, t, c, v| values[(o * sizes.channels + c) * sizes.taps + t] = v.widen());
    values
}

/// Spreads values of output channels over the packed columns.
fn spread(sizes: &Sizes, values: &[f32]) -> Vec<f32> {
    (0..sizes.width()).map(|column| sizes.output(column).map_or(0.0, |o| values[o])).collect()
}

fn f32_vec(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
