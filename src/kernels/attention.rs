//! Attention that never holds the whole score matrix.
//!
//! On the CPU a task is one head of one sequence, or some of its queries: keys and values are packed once, then a few
//! queries at a time meet them block by block, under a running maximum (Milakov and Gimelshein 2018; Dao et al. 2022).
//! Elsewhere blocks of queries go through batched matmuls.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::clock::{self, Kind};
use super::float::{self, Float};
use super::isa::{Isa, Loops};
use super::lanes::Lanes;
use super::shared::{Shared, filled, with_scratch};
use super::tile::{Element, LANES, PANEL, Product, ROWS};
use super::{grad, math, reference};

/// Keys that a few queries meet at once; whole panels.
const KEYS: usize = 8 * PANEL;

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
    if grad::is_tracked(&[q, k, v]) {
        return grad::attention(q, k, v, scale);
    }
    if q.device().is_cpu() {
        let [q, k, v] = [q, k, v].map(|x| x.unsqueeze(2));
        let run = || Blocked { scale }.run(&q?, &k?, &v?)?.squeeze(2);
        return clock::timed(Kind::Attention, run);
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

/// [`attention`] along the second of five dimensions: `q`, `k` and `v` are `(batch, tokens, places, heads, dim)`, and
/// every place is a sequence of its own. Nothing is moved.
///
/// # Errors
///
/// When the shapes do not agree.
pub fn attention_by_place(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    let (batch, tokens, places, heads, dim) = q.dims5()?;
    if k.dims() != q.dims() || v.dims() != q.dims() {
        candle_core::bail!(
            "attention of {:?} over keys {:?} and values {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    if q.device().is_cpu() && !grad::is_tracked(&[q, k, v]) {
        return clock::timed(Kind::AttentionOverFrames, || Blocked { scale }.run(q, k, v));
    }
    let sequences = |x: &Tensor| x.transpose(1, 2)?.reshape((batch * places, tokens, heads, dim));
    attention(&sequences(q)?, &sequences(k)?, &sequences(v)?, scale)?
        .reshape((batch, places, tokens, heads, dim))?
        .transpose(1, 2)?
        .contiguous()
}

struct Blocked {
    scale: f64,
}

impl Blocked {
    /// Over `(batch, tokens, places, heads, dim)`.
    fn run(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
        let prepare = |x: &Tensor| if x.stride()[4] == 1 { Ok(x.clone()) } else { x.contiguous() };
        prepare(q)?.apply_op3_no_bwd(&prepare(&k)?, &prepare(&v)?, self)
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

    /// What a token has from a head on.
    #[inline(always)]
    fn values(&self, unit: &Unit, token: usize, len: usize) -> &'a [T] {
        let place = [unit.batch, token, unit.place, unit.head];
        let start: usize = place.iter().zip(&self.stride).map(|(i, s)| i * s).sum();
        &self.values[start..start + len]
    }
}

/// One head of one sequence.
struct Unit {
    batch: usize,
    place: usize,
    head: usize,
}

/// Memory that a thread keeps from one attention to the next; products are of `E`.
#[derive(Debug, Default)]
struct Scratch<E> {
    /// For every panel of keys `(dim / GROUP, width, GROUP)`.
    keys: Vec<E>,
    /// For every panel of `dim` `(keys / GROUP, width, GROUP)`.
    values: Vec<E>,
    /// `(ROWS, dim)`.
    queries: Vec<E>,
    /// For every panel of keys of a block `(ROWS, width)`.
    scores: Vec<f32>,
    /// What scores become, in the same order.
    weights: Vec<E>,
    /// For every panel of `dim` `(ROWS, width)`.
    sums: Vec<f32>,
    offsets: Vec<usize>,
    /// Queries, keys and values of [`Short`] sequences: all that a token has at some places.
    rows: [Vec<E>; 3],
}

/// What queries, keys, values and weights can be multiplied as.
trait Operand: Element {
    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R;
}

macro_rules! operand {
    ($type:ty) => {
        impl Operand for $type {
            fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R {
                thread_local! {
                    static SCRATCH: RefCell<Scratch<$type>> = RefCell::new(Scratch::default());
                }
                with_scratch(&SCRATCH, f)
            }
        }
    };
}

operand!(f32);
operand!(bf16);

impl CustomOp3 for Blocked {
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
            CpuStorage::BF16(_) if Isa::current() == Isa::Avx512Bf16 => {
                self.attend::<bf16, bf16>(all, &shape, keys)?
            }
            CpuStorage::BF16(_) => self.attend::<bf16, f32>(all, &shape, keys)?,
            CpuStorage::F16(_) => self.attend::<f16, f32>(all, &shape, keys)?,
            _ => candle_core::bail!("attention wants f32, bf16 or f16"),
        };
        Ok((y, shape))
    }
}

impl Blocked {
    /// On values of `T`, by products of `E`.
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
        let operands = [&q, &k, &v];
        if queries.max(keys) <= SHORT && dim.is_multiple_of(E::GROUP) {
            let group = (SHORT_PLACES / (heads * dim)).clamp(1, places);
            let groups = places.div_ceil(group);
            let fill = |out: &mut [MaybeUninit<T>]| {
                let out = &Shared::new(out);
                share(batch * groups, flops, |task| {
                    let (batch, first) = (task / groups, task % groups * group);
                    let end = (first + group).min(places);
                    E::with_scratch(|scratch| {
                        let places = first..end;
                        isa.vectorize(Short {
                            batch,
                            places,
                            keys,
                            scale,
                            isa,
                            operands,
                            out,
                            scratch,
                        });
                    });
                });
            };
            // SAFETY: every place is in a group, for all queries and heads.
            return Ok(T::storage(unsafe { filled(len, fill) }));
        }
        // As few pieces as keep all threads busy, because each packs the keys again.
        let wanted = (4 * rayon::current_num_threads()).div_ceil(units);
        let piece = queries.div_ceil(wanted).max(QUERIES).next_multiple_of(ROWS);
        let pieces = queries.div_ceil(piece);
        let fill = |out: &mut [MaybeUninit<T>]| {
            let out = &Shared::new(out);
            share(units * pieces, flops, |task| {
                let (unit, piece_index) = (task / pieces, task % pieces);
                let (sequence, head) = (unit / heads, unit % heads);
                let unit = Unit { batch: sequence / places, place: sequence % places, head };
                let first = piece_index * piece;
                let end = (first + piece).min(queries);
                E::with_scratch(|scratch| {
                    isa.vectorize(Piece {
                        unit,
                        first,
                        end,
                        keys,
                        scale,
                        isa,
                        operands,
                        out,
                        scratch,
                    });
                });
            });
        };
        // SAFETY: every query of every head of every sequence is in a piece.
        Ok(T::storage(unsafe { filled(len, fill) }))
    }
}

/// Does `tasks` things of `flops` operations in all, on as many threads as that is worth.
fn share(tasks: usize, flops: usize, work: impl Fn(usize) + Send + Sync) {
    if flops < SERIAL {
        (0..tasks).for_each(work);
    } else {
        let together = (SERIAL / (flops / tasks).max(1)).max(1);
        (0..tasks).into_par_iter().with_min_len(together).for_each(work);
    }
}

/// What products are multiplied by to become scores; done to scores, so that queries are multiplied as they are.
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

/// Queries of one head of one sequence.
struct Piece<'a, T, E> {
    unit: Unit,
    first: usize,
    end: usize,
    keys: usize,
    scale: Scale,
    isa: Isa,
    /// Queries, keys and values.
    operands: [&'a View<'a, T>; 3],
    /// Of the shape of the queries.
    out: &'a Shared<'a, MaybeUninit<T>>,
    scratch: &'a mut Scratch<E>,
}

impl<T: Float, E: Operand> Loops for Piece<'_, T, E> {
    type Output = ();

    #[allow(unsafe_code)]
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { unit, first, end, keys, scale, isa, operands: [q, k, v], out, scratch } = self;
        let [_, queries, places, heads, dim] = q.dims;
        scratch.pack(&unit, k, v, keys, dim);
        let length = dim.next_multiple_of(E::GROUP);
        scratch.queries.resize(ROWS * length, E::default());
        for query in (first..end).step_by(ROWS) {
            let rows = ROWS.min(end - query);
            for r in 0..ROWS {
                let row = q.token(&unit, query + r.min(rows - 1));
                let to = &mut scratch.queries[r * length..][..length];
                to.iter_mut().zip(row).for_each(|(to, from)| *to = E::exactly(from.widen()));
                to[dim..].fill(E::default());
            }
            let inverse = scratch.meet::<FMA>(isa, keys, dim, scale);
            for (r, inverse) in inverse.iter().enumerate().take(rows) {
                let token = unit.batch * queries + query + r;
                let at = ((token * places + unit.place) * heads + unit.head) * dim;
                // SAFETY: a task alone has these queries of this head.
                scratch.write(r, *inverse, dim, unsafe { out.part(at, dim) });
            }
        }
    }
}

/// Whole sequences of at most [`SHORT`] queries and keys at neighbouring places: motion modules, whose sequences are the
/// frames at one place. What lies far apart is read once, in long rows.
struct Short<'a, T, E> {
    batch: usize,
    places: Range<usize>,
    keys: usize,
    scale: Scale,
    isa: Isa,
    /// Queries, keys and values.
    operands: [&'a View<'a, T>; 3],
    /// Of the shape of the queries.
    out: &'a Shared<'a, MaybeUninit<T>>,
    scratch: &'a mut Scratch<E>,
}

impl<T: Float, E: Operand> Loops for Short<'_, T, E> {
    type Output = ();

    #[allow(unsafe_code)]
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { batch, places: here, keys, scale, isa, operands, out, scratch } = self;
        let [_, queries, places, heads, dim] = operands[0].dims;
        let width = here.len() * heads * dim;
        // No power of two, which would send all rows to the same few lines of a cache; and room for whole lanes.
        let pitch = width.next_multiple_of(2 * LANES) + LANES;
        let Scratch { rows, .. } = scratch;
        let tokens = [queries, keys, keys];
        for ((view, rows), tokens) in operands.iter().zip(rows).zip(tokens) {
            rows.resize(tokens * pitch, E::default());
            // Heads side by side are read as one.
            let whole = view.stride[2] == heads * dim && view.stride[3] == dim;
            let (length, of_place) = if whole { (width, 1) } else { (dim, heads) };
            for (token, row) in rows.chunks_exact_mut(pitch).enumerate() {
                for (i, to) in row[..width].chunks_exact_mut(length).enumerate() {
                    let (place, head) = (here.start + i / of_place, i % of_place);
                    let from = view.values(&Unit { batch, place, head }, token, length);
                    to.iter_mut().zip(from).for_each(|(to, v)| *to = E::exactly(v.widen()));
                }
            }
        }
        for at in (0..width).step_by(dim) {
            let sequence = Sequence { at, pitch, queries, keys, dim };
            scratch.pack_rows(&sequence);
            scratch.meet_rows::<FMA>(isa, &sequence, scale);
        }
        let rows = scratch.rows[0].chunks_exact(pitch);
        for (token, row) in rows.take(queries).enumerate() {
            let at = ((batch * queries + token) * places + here.start) * heads * dim;
            // SAFETY: a task alone has these places.
            let out = unsafe { out.part(at, width) };
            for (to, from) in out.iter_mut().zip(row) {
                to.write(T::narrow(from.widen()));
            }
        }
    }
}

/// What [`Short`] takes out of its rows: the first value, the length of a row, and the sizes.
struct Sequence {
    at: usize,
    pitch: usize,
    queries: usize,
    keys: usize,
    dim: usize,
}

/// The width of the panel that starts at `start` of `size` columns, with padding.
fn width(size: usize, start: usize) -> usize {
    (size - start).min(PANEL).next_multiple_of(LANES)
}

impl<E: Operand> Scratch<E> {
    #[inline(always)]
    fn pack<T: Float>(
        &mut self,
        unit: &Unit,
        k: &View<'_, T>,
        v: &View<'_, T>,
        keys: usize,
        dim: usize,
    ) {
        let padded = keys.next_multiple_of(LANES);
        let length = dim.next_multiple_of(E::GROUP);
        let zero = E::default();
        self.keys.resize(padded * length, zero);
        for start in (0..keys).step_by(PANEL) {
            let width = width(keys, start);
            let panel = &mut self.keys[start * length..][..length * width];
            for column in 0..width {
                let groups = panel[column * E::GROUP..].chunks_mut(width * E::GROUP);
                if start + column >= keys {
                    groups.for_each(|to| to[..E::GROUP].fill(zero));
                    continue;
                }
                let key = k.token(unit, start + column);
                for (to, from) in groups.zip(key.chunks(E::GROUP)) {
                    for (g, to) in to[..E::GROUP].iter_mut().enumerate() {
                        *to = from.get(g).map_or(zero, |from| E::exactly(from.widen()));
                    }
                }
            }
        }
        self.values.resize(padded * dim.next_multiple_of(LANES), zero);
        for key in (0..padded).step_by(E::GROUP) {
            for start in (0..dim).step_by(PANEL) {
                let width = width(dim, start);
                let to = &mut self.values[start * padded + key * width..][..width * E::GROUP];
                let count = width.min(dim - start);
                let (to, padding) = to.split_at_mut(count * E::GROUP);
                padding.fill(zero);
                let row =
                    |key: usize| (key < keys).then(|| &v.token(unit, key)[start..start + count]);
                match (row(key), row(key + 1)) {
                    (Some(a), Some(b)) if E::GROUP == 2 => {
                        for (to, (a, b)) in to.chunks_exact_mut(2).zip(a.iter().zip(b)) {
                            to[0] = E::exactly(a.widen());
                            to[1] = E::exactly(b.widen());
                        }
                    }
                    (Some(a), _) => {
                        for (to, a) in to.chunks_exact_mut(E::GROUP).zip(a) {
                            to.fill(zero);
                            to[0] = E::exactly(a.widen());
                        }
                    }
                    (None, _) => to.fill(zero),
                }
            }
        }
    }

    /// Packs keys and values of a sequence.
    #[inline(always)]
    fn pack_rows(&mut self, sequence: &Sequence) {
        let Sequence { at, pitch, keys, dim, .. } = *sequence;
        let lanes = keys.next_multiple_of(LANES);
        let inner = keys.next_multiple_of(E::GROUP);
        let zero = E::default();
        let Self { keys: turned, values: panels, rows: [_, key_rows, value_rows], .. } = self;
        turned.resize(dim * lanes, zero);
        for key in 0..lanes {
            let groups = turned[key * E::GROUP..].chunks_mut(lanes * E::GROUP);
            if key < keys {
                let row = &key_rows[key * pitch + at..][..dim];
                for (to, from) in groups.zip(row.chunks_exact(E::GROUP)) {
                    to[..E::GROUP].copy_from_slice(from);
                }
            } else {
                groups.for_each(|to| to[..E::GROUP].fill(zero));
            }
        }
        panels.resize(inner * dim.next_multiple_of(LANES), zero);
        for start in (0..dim).step_by(PANEL) {
            let width = width(dim, start);
            let panel = &mut panels[start * inner..][..width * inner];
            for (i, to) in panel.chunks_exact_mut(width * E::GROUP).enumerate() {
                // A row is longer than what is read of it; what comes of the rest is dropped.
                let row = |key: usize| &value_rows[key * pitch + at + start..][..width];
                let first = i * E::GROUP;
                match E::GROUP {
                    1 => to.copy_from_slice(row(first)),
                    _ if first + 1 < keys => {
                        let pairs = row(first).iter().zip(row(first + 1));
                        for (to, (a, b)) in to.chunks_exact_mut(2).zip(pairs) {
                            (to[0], to[1]) = (*a, *b);
                        }
                    }
                    _ => {
                        for (to, a) in to.chunks_exact_mut(2).zip(row(first)) {
                            (to[0], to[1]) = (*a, zero);
                        }
                    }
                }
            }
        }
    }

    /// Attention of a sequence that is packed; its result takes the place of the queries.
    #[inline(always)]
    fn meet_rows<const FMA: bool>(&mut self, isa: Isa, sequence: &Sequence, scale: Scale) {
        let Sequence { at, pitch, queries, keys, dim } = *sequence;
        let lanes = keys.next_multiple_of(LANES);
        let inner = keys.next_multiple_of(E::GROUP);
        let Self { keys: turned, values: panels, scores, weights, sums, rows, .. } = self;
        let [query_rows, ..] = rows;
        scores.resize(ROWS * lanes, 0.0);
        weights.resize(ROWS * lanes, E::default());
        sums.resize(ROWS * PANEL, 0.0);
        for query in (0..queries).step_by(ROWS) {
            let count = ROWS.min(queries - query);
            let mut offsets = [0; ROWS];
            for (r, offset) in offsets.iter_mut().enumerate() {
                *offset = (query + r.min(count - 1)) * pitch + at;
            }
            let product = Product {
                values: query_rows,
                zeros: query_rows,
                offsets: &offsets,
                length: dim,
                panel: turned,
                width: lanes,
            };
            product.add_to(isa, scores, true);
            let mut inverses = [0f32; ROWS];
            let rows = scores.chunks_exact_mut(lanes).zip(weights.chunks_exact_mut(lanes));
            for ((scores, weights), inverse) in rows.zip(&mut inverses).take(count) {
                scale.turn(scores);
                scores[keys..].fill(f32::NEG_INFINITY);
                let mut most = Lanes([f32::NEG_INFINITY; LANES]);
                for scores in scores.chunks_exact(LANES) {
                    most = most.greatest(Lanes::read(scores));
                }
                let maximum = most.most();
                let total =
                    exponentials::<FMA, E>(scores, maximum, scale.size, weights, Lanes::ZERO);
                *inverse = 1.0 / total.total();
            }
            for start in (0..dim).step_by(PANEL) {
                let width = width(dim, start);
                let weight_offsets: [usize; ROWS] = std::array::from_fn(|r| r * lanes);
                let product = Product {
                    values: weights,
                    zeros: weights,
                    offsets: &weight_offsets,
                    length: inner,
                    panel: &panels[start * inner..],
                    width,
                };
                product.add_to(isa, sums, true);
                let columns = width.min(dim - start);
                let results = sums.chunks_exact(width).zip(inverses).take(count);
                for ((sums, inverse), offset) in results.zip(offsets) {
                    let to = &mut query_rows[offset + start..][..columns];
                    to.iter_mut().zip(sums).for_each(|(to, v)| *to = E::narrow(v * inverse));
                }
            }
        }
    }

    /// Leaves weighted sums of the values in `sums`; returns what they are to be multiplied with.
    #[inline(always)]
    fn meet<const FMA: bool>(
        &mut self,
        isa: Isa,
        keys: usize,
        dim: usize,
        scale: Scale,
    ) -> [f32; ROWS] {
        let padded = keys.next_multiple_of(LANES);
        let length = dim.next_multiple_of(E::GROUP);
        let Self { keys: packed_keys, values, queries, scores, weights, sums, offsets, .. } = self;
        sums.resize(ROWS * dim.next_multiple_of(LANES), 0.0);
        scores.resize(ROWS * KEYS.min(padded), 0.0);
        weights.resize(scores.len(), E::default());
        let query_offsets: [usize; ROWS] = std::array::from_fn(|r| r * length);
        let mut maxima = [f32::NEG_INFINITY; ROWS];
        let mut totals = [0f32; ROWS];
        for start in (0..keys).step_by(KEYS) {
            let end = (start + KEYS).min(keys);
            // Scores.
            for key in (start..end).step_by(PANEL) {
                let width = width(keys, key);
                Product {
                    values: queries,
                    zeros: queries,
                    offsets: &query_offsets,
                    length,
                    panel: &packed_keys[key * length..],
                    width,
                }
                .add_to(isa, &mut scores[(key - start) * ROWS..], true);
            }
            scale.turn(scores);
            // Keys that are padding get no weight.
            let padding = padded.min(end.next_multiple_of(LANES)) - end;
            if padding > 0 {
                let last = end / PANEL * PANEL;
                let width = width(keys, last);
                for row in scores[(last - start) * ROWS..].chunks_exact_mut(width).take(ROWS) {
                    row[width - padding..].fill(f32::NEG_INFINITY);
                }
            }
            // Their exponentials, and what that makes of the sums so far.
            let panels = (start..end).step_by(PANEL);
            for r in 0..ROWS {
                let row = |key: usize| {
                    let width = width(keys, key);
                    let at = (key - start) * ROWS + r * width;
                    at..at + width
                };
                let mut most = Lanes([maxima[r]; LANES]);
                for key in panels.clone() {
                    for scores in scores[row(key)].chunks_exact(LANES) {
                        most = most.greatest(Lanes::read(scores));
                    }
                }
                let maximum = most.most();
                let mut total = Lanes::ZERO;
                for key in panels.clone() {
                    let (from, to) = (&scores[row(key)], &mut weights[row(key)]);
                    total = exponentials::<FMA, E>(from, maximum, scale.size, to, total);
                }
                if start > 0 && maximum > maxima[r] {
                    let factor = math::exp_negative::<FMA>((maxima[r] - maximum) * scale.size);
                    totals[r] *= factor;
                    for column in (0..dim).step_by(PANEL) {
                        let width = width(dim, column);
                        let row = &mut sums[column * ROWS + r * width..][..width];
                        for v in row {
                            *v *= factor;
                        }
                    }
                }
                totals[r] += total.total();
                maxima[r] = maximum;
            }
            // Values: whole panels of keys, then the narrower one.
            let whole = (end - start) / PANEL;
            for column in (0..dim).step_by(PANEL) {
                let width = width(dim, column);
                let panel = &values[column * padded + start * width..];
                let sums = &mut sums[column * ROWS..];
                let mut weigh = |panels: Range<usize>, length: usize, fresh: bool| {
                    let first = panels.start;
                    offsets.clear();
                    for panel in panels {
                        offsets.extend((0..ROWS).map(|r| panel * PANEL * ROWS + r * length));
                    }
                    Product {
                        values: weights,
                        zeros: weights,
                        offsets,
                        length,
                        panel: &panel[first * PANEL * width..],
                        width,
                    }
                    .add_to(isa, sums, fresh);
                };
                if whole > 0 {
                    weigh(0..whole, PANEL, start == 0);
                }
                let rest = (end - start - whole * PANEL).next_multiple_of(LANES);
                if rest > 0 {
                    weigh(whole..whole + 1, rest, start == 0 && whole == 0);
                }
            }
        }
        totals.map(|total| 1.0 / total)
    }

    #[inline(always)]
    fn write<T: Float>(&self, r: usize, inverse: f32, dim: usize, out: &mut [MaybeUninit<T>]) {
        for column in (0..dim).step_by(PANEL) {
            let width = width(dim, column);
            let row = &self.sums[column * ROWS + r * width..][..width];
            for (to, from) in out[column..].iter_mut().zip(row) {
                to.write(T::narrow(from * inverse));
            }
        }
    }
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
