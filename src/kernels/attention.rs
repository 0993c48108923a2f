//! Attention that never holds the whole score matrix.
//!
//! On the CPU a task is one head of one sequence, or some of its queries: keys and values are packed once, then a few
//! queries at a time meet them block by block, under a running maximum (Milakov and Gimelshein 2018; Dao et al. 2022).
//! Elsewhere blocks of queries go through batched matmuls.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::clock::{self, Kind};
use super::float::{self, Float};
use super::isa::{Isa, Loops};
use super::shared::Shared;
use super::tile::{LANES, PANEL, Product, ROWS};
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
        let place = [unit.batch, token, unit.place, unit.head];
        let start: usize = place.iter().zip(&self.stride).map(|(i, s)| i * s).sum();
        &self.values[start..start + self.dims[4]]
    }
}

/// One head of one sequence.
struct Unit {
    batch: usize,
    place: usize,
    head: usize,
}

/// Memory that a thread keeps from one attention to the next.
#[derive(Debug, Default)]
struct Scratch {
    /// For every panel of keys `(dim, width)`.
    keys: Vec<f32>,
    /// For every panel of `dim` `(keys, width)`.
    values: Vec<f32>,
    /// `(ROWS, dim)`.
    queries: Vec<f32>,
    /// For every panel of keys of a block `(ROWS, width)`.
    scores: Vec<f32>,
    /// For every panel of `dim` `(ROWS, width)`.
    sums: Vec<f32>,
    offsets: Vec<usize>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

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
            CpuStorage::F32(_) => self.attend::<f32>(all, &shape, keys)?,
            CpuStorage::BF16(_) => self.attend::<bf16>(all, &shape, keys)?,
            CpuStorage::F16(_) => self.attend::<f16>(all, &shape, keys)?,
            _ => candle_core::bail!("attention wants f32, bf16 or f16"),
        };
        Ok((y, shape))
    }
}

impl Blocked {
    fn attend<T: Float>(
        &self,
        [q, k, v]: [(&CpuStorage, &Layout); 3],
        shape: &Shape,
        keys: usize,
    ) -> Result<CpuStorage> {
        let &[batch, queries, places, heads, dim] = shape.dims() else {
            candle_core::bail!("attention of {shape:?}");
        };
        let mut out = vec![T::default(); shape.elem_count()];
        if out.is_empty() || keys == 0 {
            return Ok(T::storage(out));
        }
        let (q, k, v) = (View::<T>::new(q)?, View::<T>::new(k)?, View::<T>::new(v)?);
        let isa = Isa::current();
        let scale = self.scale as f32;
        let units = batch * places * heads;
        let flops = 4 * units * queries * keys * dim;
        let shared = Shared::new(&mut out);
        let (operands, out_rows) = ([&q, &k, &v], &shared);
        if queries.max(keys) <= SHORT {
            let group = (SHORT_PLACES / (heads * dim)).clamp(1, places);
            let groups = places.div_ceil(group);
            share(batch * groups, flops, |task, scratch| {
                let (batch, first) = (task / groups, task % groups * group);
                let end = (first + group).min(places);
                let out = out_rows;
                isa.vectorize(Short { batch, first, end, keys, scale, operands, out, scratch });
            });
            return Ok(T::storage(out));
        }
        // As few pieces as keep all threads busy, because each packs the keys again.
        let wanted = (4 * rayon::current_num_threads()).div_ceil(units);
        let piece = queries.div_ceil(wanted).max(QUERIES).next_multiple_of(ROWS);
        let pieces = queries.div_ceil(piece);
        share(units * pieces, flops, |task, scratch| {
            let (unit, piece_index) = (task / pieces, task % pieces);
            let (sequence, head) = (unit / heads, unit % heads);
            let unit = Unit { batch: sequence / places, place: sequence % places, head };
            let first = piece_index * piece;
            let end = (first + piece).min(queries);
            let out = out_rows;
            isa.vectorize(Piece { unit, first, end, keys, scale, isa, operands, out, scratch });
        });
        Ok(T::storage(out))
    }
}

/// Does `tasks` things of `flops` operations in all, on as many threads as that is worth.
fn share(tasks: usize, flops: usize, work: impl Fn(usize, &mut Scratch) + Sync) {
    let run = |task: usize| {
        // Nothing that runs inside starts attention on this thread; if it did, memory of its own.
        SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
            Ok(mut scratch) => work(task, &mut scratch),
            Err(_) => work(task, &mut Scratch::default()),
        });
    };
    if flops < SERIAL {
        (0..tasks).for_each(run);
    } else {
        let together = (SERIAL / (flops / tasks).max(1)).max(1);
        (0..tasks).into_par_iter().with_min_len(together).for_each(run);
    }
}

/// Queries of one head of one sequence.
struct Piece<'a, T> {
    unit: Unit,
    first: usize,
    end: usize,
    keys: usize,
    scale: f32,
    isa: Isa,
    /// Queries, keys and values.
    operands: [&'a View<'a, T>; 3],
    /// Of the shape of the queries.
    out: &'a Shared<'a, T>,
    scratch: &'a mut Scratch,
}

impl<T: Float> Loops for Piece<'_, T> {
    type Output = ();

    #[allow(unsafe_code)]
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { unit, first, end, keys, scale, isa, operands: [q, k, v], out, scratch } = self;
        let [_, queries, places, heads, dim] = q.dims;
        scratch.pack(&unit, k, v, keys, dim);
        scratch.queries.resize(ROWS * dim, 0.0);
        for query in (first..end).step_by(ROWS) {
            let rows = ROWS.min(end - query);
            for r in 0..ROWS {
                let row = q.token(&unit, query + r.min(rows - 1));
                let to = &mut scratch.queries[r * dim..][..dim];
                to.iter_mut().zip(row).for_each(|(to, from)| *to = from.widen() * scale);
            }
            let inverse = scratch.meet::<FMA>(isa, keys, dim);
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
/// frames at one place. What lies far apart is read once, in long rows; scores never leave the registers.
struct Short<'a, T> {
    batch: usize,
    /// Places.
    first: usize,
    end: usize,
    keys: usize,
    scale: f32,
    /// Queries, keys and values.
    operands: [&'a View<'a, T>; 3],
    /// Of the shape of the queries.
    out: &'a Shared<'a, T>,
    scratch: &'a mut Scratch,
}

impl<T: Float> Loops for Short<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        if self.keys <= LANES { self.run_in::<FMA, 1>() } else { self.run_in::<FMA, 2>() }
    }
}

impl<T: Float> Short<'_, T> {
    /// With keys in `V` vectors.
    #[allow(unsafe_code)]
    #[inline(always)]
    fn run_in<const FMA: bool, const V: usize>(self) {
        let Self { batch, first, end, keys, scale, operands: [q, k, v], out, scratch } = self;
        let [_, queries, places, heads, dim] = q.dims;
        let width = (end - first) * heads * dim;
        // No power of two, which would send all rows to the same few lines of a cache.
        let pitch = width.next_multiple_of(2 * LANES) + LANES;
        let Scratch { keys: key_rows, values: value_rows, queries: rows, scores: turned, .. } =
            scratch;
        for (view, rows, tokens) in
            [(q, &mut *rows, queries), (k, key_rows, keys), (v, value_rows, keys)]
        {
            rows.resize(tokens * pitch, 0.0);
            for (token, row) in rows.chunks_exact_mut(pitch).enumerate().take(tokens) {
                for (i, to) in row[..width].chunks_exact_mut(dim).enumerate() {
                    let unit = Unit { batch, place: first + i / heads, head: i % heads };
                    to.iter_mut()
                        .zip(view.token(&unit, token))
                        .for_each(|(to, from)| *to = from.widen());
                }
            }
        }
        turned.resize(dim * V * LANES, 0.0);
        for at in (0..width).step_by(dim) {
            for j in 0..V * LANES {
                let lanes = turned[j..].iter_mut().step_by(V * LANES);
                if j < keys {
                    lanes
                        .zip(&key_rows[j * pitch + at..][..dim])
                        .for_each(|(to, from)| *to = from * scale);
                } else {
                    lanes.for_each(|to| *to = 0.0);
                }
            }
            for row in rows.chunks_exact_mut(pitch).take(queries) {
                let row = &mut row[at..at + dim];
                // One vector of sums at a time: the processor itself works at several, and so they stay in registers.
                let mut scores = [[f32::NEG_INFINITY; LANES]; V];
                for (block, scores) in scores.iter_mut().enumerate() {
                    let mut sums = [0f32; LANES];
                    for (query, keys) in row.iter().zip(turned[block * LANES..].chunks(V * LANES)) {
                        for (sum, key) in sums.iter_mut().zip(&keys[..LANES]) {
                            *sum = math::fused::<FMA>(*query, *key, *sum);
                        }
                    }
                    let count = LANES.min(keys - block * LANES);
                    scores[..count].copy_from_slice(&sums[..count]);
                }
                let weights = scores.as_flattened_mut();
                let mut lanes = [f32::NEG_INFINITY; LANES];
                greatest(weights, &mut lanes);
                let maximum = fold(lanes, |a, b| if b > a { b } else { a });
                let mut lanes = [0f32; LANES];
                exponentials::<FMA>(weights, maximum, &mut lanes);
                let inverse = 1.0 / fold(lanes, |a, b| a + b);
                // In place of the query, which nobody else wants.
                for (column, out) in row.chunks_mut(LANES).enumerate() {
                    let mut sums = [0f32; LANES];
                    // A row is longer than what is read of it; what comes of the rest is dropped.
                    let values = value_rows[at + column * LANES..].chunks(pitch);
                    for (weight, value) in weights.iter().zip(values).take(keys) {
                        for (sum, value) in sums.iter_mut().zip(&value[..LANES]) {
                            *sum = math::fused::<FMA>(*weight, *value, *sum);
                        }
                    }
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * inverse);
                }
            }
        }
        for (token, row) in rows.chunks_exact(pitch).take(queries).enumerate() {
            let at = ((batch * queries + token) * places + first) * heads * dim;
            // SAFETY: a task alone has these places.
            let out = unsafe { out.part(at, width) };
            out.iter_mut().zip(row).for_each(|(to, from)| *to = T::narrow(*from));
        }
    }
}

/// The width of the panel that starts at `start` of `size` columns, with padding.
fn width(size: usize, start: usize) -> usize {
    (size - start).min(PANEL).next_multiple_of(LANES)
}

impl Scratch {
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
        self.keys.resize(padded * dim, 0.0);
        for start in (0..keys).step_by(PANEL) {
            let width = width(keys, start);
            let panel = &mut self.keys[start * dim..][..dim * width];
            for column in 0..width {
                if start + column < keys {
                    let key = k.token(unit, start + column);
                    for (d, value) in key.iter().enumerate() {
                        panel[d * width + column] = value.widen();
                    }
                } else {
                    (0..dim).for_each(|d| panel[d * width + column] = 0.0);
                }
            }
        }
        self.values.resize(padded * dim.next_multiple_of(LANES), 0.0);
        for key in 0..padded {
            let value = (key < keys).then(|| v.token(unit, key));
            for start in (0..dim).step_by(PANEL) {
                let width = width(dim, start);
                let row = &mut self.values[start * padded + key * width..][..width];
                let count = width.min(dim - start);
                row[count..].fill(0.0);
                match value {
                    Some(value) => {
                        let value = &value[start..start + count];
                        row.iter_mut().zip(value).for_each(|(to, from)| *to = from.widen());
                    }
                    None => row[..count].fill(0.0),
                }
            }
        }
    }

    /// Leaves weighted sums of the values in `sums`; returns what they are to be multiplied with.
    #[inline(always)]
    fn meet<const FMA: bool>(&mut self, isa: Isa, keys: usize, dim: usize) -> [f32; ROWS] {
        let padded = keys.next_multiple_of(LANES);
        let Self { keys: packed_keys, values, queries, scores, sums, offsets } = self;
        sums.resize(ROWS * dim.next_multiple_of(LANES), 0.0);
        scores.resize(ROWS * KEYS.min(padded), 0.0);
        let query_offsets: [usize; ROWS] = std::array::from_fn(|r| r * dim);
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
                    length: dim,
                    panel: &packed_keys[key * dim..],
                    width,
                }
                .add_to(isa, &mut scores[(key - start) * ROWS..], true);
            }
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
                let mut lanes = [maxima[r]; LANES];
                for key in panels.clone() {
                    greatest(&scores[row(key)], &mut lanes);
                }
                let maximum = fold(lanes, |a, b| if b > a { b } else { a });
                let mut lanes = [0f32; LANES];
                for key in panels.clone() {
                    exponentials::<FMA>(&mut scores[row(key)], maximum, &mut lanes);
                }
                if start > 0 && maximum > maxima[r] {
                    let factor = math::exp::<FMA>(maxima[r] - maximum);
                    totals[r] *= factor;
                    for column in (0..dim).step_by(PANEL) {
                        let width = width(dim, column);
                        let row = &mut sums[column * ROWS + r * width..][..width];
                        for v in row {
                            *v *= factor;
                        }
                    }
                }
                totals[r] += fold(lanes, |a, b| a + b);
                maxima[r] = maximum;
            }
            // Values: whole panels of keys, then the narrower one.
            let whole = (end - start) / PANEL;
            for column in (0..dim).step_by(PANEL) {
                let width = width(dim, column);
                let panel = &values[column * padded + start * width..];
                let sums = &mut sums[column * ROWS..];
                let mut weights = |panels: std::ops::Range<usize>, length: usize, fresh: bool| {
                    let first = panels.start;
                    offsets.clear();
                    for panel in panels {
                        offsets.extend((0..ROWS).map(|r| panel * PANEL * ROWS + r * length));
                    }
                    Product {
                        values: scores,
                        zeros: scores,
                        offsets,
                        length,
                        panel: &panel[first * PANEL * width..],
                        width,
                    }
                    .add_to(isa, sums, fresh);
                };
                if whole > 0 {
                    weights(0..whole, PANEL, start == 0);
                }
                let rest = (end - start - whole * PANEL).next_multiple_of(LANES);
                if rest > 0 {
                    weights(whole..whole + 1, rest, start == 0 && whole == 0);
                }
            }
        }
        totals.map(|total| 1.0 / total)
    }

    #[inline(always)]
    fn write<T: Float>(&self, r: usize, inverse: f32, dim: usize, out: &mut [T]) {
        for column in (0..dim).step_by(PANEL) {
            let width = width(dim, column);
            let row = &self.sums[column * ROWS + r * width..][..width];
            for (to, from) in out[column..].iter_mut().zip(row) {
                *to = T::narrow(from * inverse);
            }
        }
    }
}

/// The greater of what is in `lanes` and a row of whole lanes.
#[inline(always)]
fn greatest(row: &[f32], lanes: &mut [f32; LANES]) {
    for chunk in row.chunks_exact(LANES) {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = if *v > *lane { *v } else { *lane };
        }
    }
}

/// Replaces a row of scores by `e^(score - maximum)`, and adds them to `lanes`.
#[inline(always)]
fn exponentials<const FMA: bool>(row: &mut [f32], maximum: f32, lanes: &mut [f32; LANES]) {
    for chunk in row.chunks_exact_mut(LANES) {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *v = math::exp::<FMA>(*v - maximum);
            *lane += *v;
        }
    }
}

/// All lanes together.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}
