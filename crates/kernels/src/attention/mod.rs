//! Attention that never holds the whole score matrix.
//!
//! On the CPU sequences are long or short: see `long.rs`, `tiled.rs` for a matrix unit, and `short.rs`. All multiply
//! bf16 as bf16 where the processor does, everything else as f32. Elsewhere blocks of queries go through batched
//! matmuls, or, where asked for, through kernels that no GPU has run: `../cuda`, and `sdpa.rs` for Metal.

mod long;
mod sdpa;
mod short;
mod tiled;

use std::mem::MaybeUninit;

#[cfg(feature = "flash-attn")]
use candle_core::DType;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::clock::{self, Kind};
use super::cpu::amx::{self, MatrixUnit};
use super::cpu::buffer::{Aligned, Shared, abandon, filled, operand};
use super::cpu::float::{self, Float};
use super::cpu::isa::Isa;
use super::cpu::lanes::Lanes;
use super::cpu::math;
use super::cpu::microkernel::{LANES, PANEL, ROWS};
use super::{autograd, reference};
use crate::Stop;
use long::Piece;
use short::Short;
use tiled::Tiled;

/// Queries for which keys and values are worth packing.
const QUERIES: usize = 192;

/// Queries and keys of a sequence that is not worth packing.
const SHORT: usize = 2 * LANES;

/// Values of a token at neighbouring places that are read at once.
const SHORT_PLACES: usize = 1 << 10;

/// Work below which a second thread is not worth waking, in floating-point operations.
const SERIAL: usize = 1 << 19;

/// Scores that exist at once on other devices.
const MAX_SCORES: usize = 1 << 28;

/// `softmax(q kᵀ · scale) v`.
///
/// `q` is `(batch, queries, heads, dim)`, `k` and `v` are `(batch, keys, heads, dim)`, all possibly views;
/// the result is a contiguous tensor of the shape of `q`.
///
/// # Errors
///
/// When the shapes do not agree.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    attention_until(q, k, v, scale, None)
}

/// [`attention`], which `stop` ends early.
///
/// # Errors
///
/// As [`attention`], and [`Cancelled`](crate::Cancelled) inside the tensor library's error.
pub fn attention_until(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    stop: Option<&Stop>,
) -> Result<Tensor> {
    let (batch, queries, heads, dim) = q.dims4()?;
    let keys = k.dim(1)?;
    if k.dims() != [batch, keys, heads, dim] || v.dims() != k.dims() {
        candle_core::bail!(
            "attention of {:?} over keys {:?} and values {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    // Scores, and sums of values.
    clock::count(&[2, batch, queries, keys, heads, dim]);
    if autograd::is_tracked(&[q, k, v]) {
        return autograd::attention(q, k, v, scale);
    }
    if q.device().is_cpu() {
        let [q, k, v] = [q, k, v].map(|x| x.unsqueeze(2));
        let run = || Blocked { scale, stop }.run(&q?, &k?, &v?)?.squeeze(2);
        return clock::timed(Kind::Attention, run);
    }
    #[cfg(feature = "flash-attn")]
    if super::has_own(q.device())
        && let Some(y) = flash(q, k, v, scale)?
    {
        return Ok(y);
    }
    #[cfg(feature = "cuda")]
    if super::has_own(q.device()) {
        let [q, k, v] = [q, k, v].map(|x| x.unsqueeze(2));
        if let Some(y) = super::cuda::attention(&q?, &k?, &v?, scale)? {
            return y.squeeze(2);
        }
    }
    if q.device().is_metal()
        && super::is_experimental(q.device())
        && let Some(y) = sdpa::attention(q, k, v, scale)?
    {
        return Ok(y);
    }
    let rows = (MAX_SCORES / (heads * keys).max(1)).max(1);
    let mut out = Vec::new();
    if rows >= queries {
        // Whole sequences, as many at once as the budget allows.
        let step = (rows / queries.max(1)).max(1);
        for start in (0..batch).step_by(step) {
            let n = step.min(batch - start);
            let part = |x: &Tensor| x.narrow(0, start, n);
            out.push(reference::attention(&part(q)?, &part(k)?, &part(v)?, scale)?);
        }
        return Tensor::cat(&out, 0);
    }
    for i in 0..batch {
        let part = |x: &Tensor| x.narrow(0, i, 1);
        let (q, k, v) = (part(q)?, part(k)?, part(v)?);
        let mut blocks = Vec::new();
        for start in (0..queries).step_by(rows) {
            let q = q.narrow(1, start, rows.min(queries - start))?;
            blocks.push(reference::attention(&q, &k, &v, scale)?);
        }
        out.push(Tensor::cat(&blocks, 1)?);
    }
    Tensor::cat(&out, 0)
}

/// [`attention`] by FlashAttention (Dao 2023); `None` for formats and sizes that it does not know.
#[cfg(feature = "flash-attn")]
fn flash(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Option<Tensor>> {
    let (batch, _, _, dim) = q.dims4()?;
    let known = matches!(q.dtype(), DType::F16 | DType::BF16) && dim.is_multiple_of(8);
    // Its grid has no room for more.
    if !known || dim > 512 || batch > 65535 {
        return Ok(None);
    }
    let prepare = |x: &Tensor| {
        let x = x.to_dtype(q.dtype())?;
        if x.stride().last() == Some(&1) { Ok(x) } else { x.contiguous() }
    };
    let (q, k, v) = (prepare(q)?, prepare(k)?, prepare(v)?);
    candle_flash_attn::flash_attn(&q, &k, &v, scale as f32, false).map(Some)
}

/// [`attention`] along the second of five dimensions: `q`, `k` and `v` are `(batch, tokens, places, heads, dim)`, and
/// every place is a sequence of its own. Nothing is moved.
///
/// # Errors
///
/// When the shapes do not agree.
pub fn temporal_attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    let (batch, tokens, places, heads, dim) = q.dims5()?;
    if k.dims() != q.dims() || v.dims() != q.dims() {
        candle_core::bail!(
            "attention of {:?} over keys {:?} and values {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    let count = || clock::count(&[2, batch, tokens, tokens, places, heads, dim]);
    if q.device().is_cpu() && !autograd::is_tracked(&[q, k, v]) {
        count();
        return clock::timed(Kind::TemporalAttention, || {
            Blocked { scale, stop: None }.run(q, k, v)
        });
    }
    #[cfg(feature = "cuda")]
    if super::has_own(q.device())
        && !autograd::is_tracked(&[q, k, v])
        && let Some(y) = super::cuda::attention(q, k, v, scale)?
    {
        count();
        return Ok(y);
    }
    let sequences = |x: &Tensor| x.transpose(1, 2)?.reshape((batch * places, tokens, heads, dim));
    attention(&sequences(q)?, &sequences(k)?, &sequences(v)?, scale)?
        .reshape((batch, places, tokens, heads, dim))?
        .transpose(1, 2)?
        .contiguous()
}

struct Blocked<'a> {
    scale: f64,
    stop: Option<&'a Stop>,
}

impl Blocked<'_> {
    /// Over `(batch, tokens, places, heads, dim)`.
    fn run(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
        let prepare = |x: &Tensor| if x.stride()[4] == 1 { Ok(x.clone()) } else { x.contiguous() };
        let y = prepare(q)?.apply_op3_no_bwd(&prepare(&k)?, &prepare(&v)?, self)?;
        if let Some(stop) = self.stop {
            stop.check()?;
        }
        Ok(y)
    }
}

/// A `(batch, tokens, places, heads, dim)` view into a slice, `dim` being contiguous.
struct View<'a, T> {
    values: &'a [T],
    stride: [usize; 4],
    dims: [usize; 5],
}

impl<'a, T: Float> View<'a, T> {
    fn new((storage, layout): (&'a CpuStorage, &Layout)) -> Result<Self> {
        let &[batch, token, place, head, 1] = layout.stride() else {
            candle_core::bail!("attention wants contiguous heads");
        };
        let &[a, b, c, d, e] = layout.dims() else {
            candle_core::bail!("attention of {:?}", layout.dims());
        };
        let lasts = layout.dims().iter().zip(layout.stride());
        let extent = lasts.map(|(d, s)| d.saturating_sub(1) * s).sum::<usize>() + 1;
        let extent = if layout.shape().elem_count() == 0 { 0 } else { extent };
        let values = float::slice(storage, layout.start_offset(), extent)?;
        Ok(Self { values, stride: [batch, token, place, head], dims: [a, b, c, d, e] })
    }

    #[inline(always)]
    fn token(&self, unit: &Unit, token: usize) -> &'a [T] {
        self.values(unit, token, self.dims[4])
    }

    /// `len` values of a token, from the first value of a head.
    #[inline(always)]
    fn values(&self, unit: &Unit, token: usize, len: usize) -> &'a [T] {
        let place = [unit.batch, token, unit.place, unit.head];
        let start: usize = place.iter().zip(&self.stride).map(|(i, s)| i * s).sum();
        &self.values[start..start + len]
    }
}

/// Indices of one head of one sequence.
struct Unit {
    batch: usize,
    place: usize,
    head: usize,
}

/// Memory that a thread keeps from one attention to the next; products are of `E`.
#[derive(Debug, Default)]
struct Scratch<E> {
    /// Packed keys, for every panel of keys `(dim / GROUP, width, GROUP)`.
    keys: Aligned<E>,
    /// Packed values, for every panel of `dim` `(keys / GROUP, width, GROUP)`.
    values: Aligned<E>,
    /// Queries `(ROWS, dim)`.
    queries: Aligned<E>,
    /// Attention scores, for every panel of keys of a block `(ROWS, width)`.
    scores: Aligned<f32>,
    /// Attention weights, in the order of the scores.
    weights: Aligned<E>,
    /// Sums of weighted values, for every panel of `dim` `(ROWS, width)`.
    sums: Aligned<f32>,
    offsets: Vec<usize>,
    /// Queries, keys and values of [`Short`] sequences: all that a token has at some places.
    rows: [Vec<E>; 3],
}

/// Element types of queries, keys, values and weights in products.
trait Operand: MatrixUnit<Weight = Self> + Float {
    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R;
}

operand!(f32);
operand!(bf16);

impl CustomOp3 for Blocked<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = q_layout.shape().clone();
        let keys = k_layout.dims()[1];
        let all = [(q, q_layout), (k, k_layout), (v, v_layout)];
        let y = match q {
            CpuStorage::F32(_) => self.attend::<f32, f32>(all, &shape, keys)?,
            CpuStorage::BF16(_) if Isa::current().multiplies_bf16() => {
                self.attend::<bf16, bf16>(all, &shape, keys)?
            }
            CpuStorage::BF16(_) => self.attend::<bf16, f32>(all, &shape, keys)?,
            CpuStorage::F16(_) => self.attend::<f16, f32>(all, &shape, keys)?,
            _ => candle_core::bail!("attention wants f32, bf16 or f16"),
        };
        Ok((y, shape))
    }
}

impl Blocked<'_> {
    /// Attention over values of `T`, with products of `E`.
    #[allow(unsafe_code)]
    fn attend<T: Float, E: Operand>(
        &self,
        [q, k, v]: [(&CpuStorage, &Layout); 3],
        shape: &Shape,
        keys: usize,
    ) -> Result<CpuStorage> {
        let &[batch, queries, places, heads, dim] = shape.dims() else {
            candle_core::bail!("attention of {shape:?}");
        };
        let len = shape.elem_count();
        if len == 0 || keys == 0 {
            return Ok(T::storage(vec![T::default(); len]));
        }
        let (q, k, v) = (View::<T>::new(q)?, View::<T>::new(k)?, View::<T>::new(v)?);
        let isa = Isa::current();
        let scale = Scale::new(self.scale as f32);
        let units = batch * places * heads;
        let flops = 4 * units * queries * keys * dim;
        let inputs = &Inputs { keys, scale, isa, operands: [&q, &k, &v] };
        if queries.max(keys) <= SHORT && dim.is_multiple_of(E::GROUP) {
            let group = (SHORT_PLACES / (heads * dim)).clamp(1, places);
            let groups = places.div_ceil(group);
            let fill = |out: &mut [MaybeUninit<T>]| {
                let out = &Shared::new(out);
                in_parallel(batch * groups, flops, |task| {
                    let (batch, first) = (task / groups, task % groups * group);
                    let end = (first + group).min(places);
                    E::with_scratch(|scratch| {
                        isa.vectorize(Short { batch, places: first..end, inputs, out, scratch });
                    });
                });
            };
            // SAFETY: every place is in a group, for all queries and heads.
            return Ok(T::storage(unsafe { filled(len, T::narrow(f32::NAN), fill) }));
        }
        // As few pieces as keep all threads busy, because each packs the keys again.
        let wanted = (4 * rayon::current_num_threads()).div_ceil(units);
        let rows = if inputs.in_tiles::<E>() { amx::ROWS } else { ROWS };
        let piece = queries.div_ceil(wanted).max(QUERIES).next_multiple_of(rows);
        let pieces = queries.div_ceil(piece);
        let (unset, stop) = (T::narrow(f32::NAN), self.stop);
        let fill = |values: &mut [MaybeUninit<T>]| {
            let out = &Shared::new(values);
            in_parallel(units * pieces, flops, |task| {
                if stop.is_some_and(Stop::is_requested) {
                    return;
                }
                let (unit, piece_index) = (task / pieces, task % pieces);
                let (sequence, head) = (unit / heads, unit % heads);
                let unit = Unit { batch: sequence / places, place: sequence % places, head };
                let first = piece_index * piece;
                let end = (first + piece).min(queries);
                E::with_scratch(|scratch| {
                    let piece = Piece { unit, first, end, inputs, out, scratch };
                    if inputs.in_tiles::<E>() {
                        amx::with_tiles(|| isa.vectorize(Tiled(piece)));
                    } else {
                        isa.vectorize(piece);
                    }
                });
            });
            abandon(stop, values, unset);
        };
        // SAFETY: every query of every head of every sequence is in a piece, or else all is abandoned.
        Ok(T::storage(unsafe { filled(len, unset, fill) }))
    }
}

/// Inputs that all tasks of one attention share.
struct Inputs<'a, T> {
    keys: usize,
    scale: Scale,
    isa: Isa,
    /// Queries, keys and values.
    operands: [&'a View<'a, T>; 3],
}

impl<T> Inputs<'_, T> {
    /// Returns whether products of `E` use the matrix unit.
    fn in_tiles<E: MatrixUnit>(&self) -> bool {
        E::fits_tiles(self.isa, amx::BYTES / size_of::<E>())
    }
}

/// Runs `work` for `tasks` indices, `flops` operations in all, on as many threads as pay off.
fn in_parallel(tasks: usize, flops: usize, work: impl Fn(usize) + Send + Sync) {
    if flops < SERIAL {
        (0..tasks).for_each(work);
    } else {
        let together = (SERIAL / (flops / tasks).max(1)).max(1);
        (0..tasks).into_par_iter().with_min_len(together).for_each(work);
    }
}

/// The scale of the scores, applied after the product of queries and keys.
#[derive(Clone, Copy)]
struct Scale {
    /// 1, -1 or 0.
    sign: f32,
    /// Greater than 0.
    size: f32,
}

impl Scale {
    fn new(scale: f32) -> Self {
        if scale == 0.0 {
            return Self { sign: 0.0, size: 1.0 };
        }
        Self { sign: scale.signum(), size: scale.abs() }
    }

    /// Makes the greatest score the greatest product.
    #[inline(always)]
    fn turn(self, products: &mut [f32]) {
        if self.sign != 1.0 {
            for v in products {
                *v *= self.sign;
            }
        }
    }
}

/// The width of the panel that starts at `start` of `size` columns, with padding.
fn width(size: usize, start: usize) -> usize {
    (size - start).min(PANEL).next_multiple_of(LANES)
}

/// Writes `e^(scale (product - maximum))` for a row of products; returns `sums` with them.
#[inline(always)]
fn exponentials<const FMA: bool, E: Float>(
    row: &[f32],
    maximum: f32,
    scale: f32,
    weights: &mut [E],
    mut sums: Lanes,
) -> Lanes {
    for (row, weights) in row.chunks_exact(LANES).zip(weights.chunks_exact_mut(LANES)) {
        let values = Lanes::read(row)
            .with(Lanes::ZERO, |v, _| math::exp_negative::<FMA>((v - maximum) * scale));
        sums = sums + values;
        for (to, v) in weights.iter_mut().zip(values.0) {
            *to = E::narrow(v);
        }
    }
    sums
}
