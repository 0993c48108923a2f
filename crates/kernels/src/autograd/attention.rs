//! Gradients of attention. Scores are computed again, a block of queries at a time.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::matrix::{Into, Matrix, multiply};
use super::{Gradients, View, applies, attach};
use crate::cpu::isa::{ALWAYS_FMA, vectorized};
use crate::cpu::math;
use crate::reference;

/// Queries whose scores exist at once.
const BLOCK: usize = 64;

/// See [`crate::attention()`].
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    if !applies(&[q, k, v]) {
        return reference::attention(q, k, v, scale);
    }
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (_, queries, heads, dim) = q.dims4()?;
    let (keys, width) = (k.dim(1)?, heads * dim);
    let part = Sequence { queries, keys, width, dim, scale: scale as f32 };
    let mut values = vec![0f32; q.elem_count()];
    {
        let (q, k, v) = (View::new(&q)?, View::new(&k)?, View::new(&v)?);
        values
            .par_chunks_mut((queries * width).max(1))
            .zip(q.values().par_chunks((queries * width).max(1)))
            .zip(k.values().par_chunks((keys * width).max(1)))
            .zip(v.values().par_chunks((keys * width).max(1)))
            .for_each_init(
                || vec![0f32; BLOCK * keys],
                |weights, (((out, q), k), v)| {
                    if part.is_short() {
                        return vectorized(|| {
                            for from in (0..width).step_by(dim.max(1)) {
                                let all = [&q[from..], &k[from..], &v[from..]];
                                part.short_value(all, &mut out[from..]);
                            }
                        });
                    }
                    for head in 0..heads {
                        let from = head * dim;
                        part.value([&q[from..], &k[from..], &v[from..]], &mut out[from..], weights);
                    }
                },
            );
    }
    attach(values, q.shape(), [&q, &k, &v], Softmax { scale: scale as f32 })
}

struct Softmax {
    scale: f32,
}

impl Gradients for Softmax {
    const NAME: &'static str = "attention";

    fn gradients(
        &self,
        [q, k, v]: [&Tensor; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let gradient = gradient.contiguous()?;
        let (_, queries, heads, dim) = q.dims4()?;
        let keys = k.dim(1)?;
        let width = heads * dim;
        let (q_view, k_view, v_view) = (View::new(q)?, View::new(k)?, View::new(v)?);
        let grad_out = View::new(&gradient)?;
        let mut grad_q = vec![0f32; q.elem_count()];
        let mut grad_k = vec![0f32; k.elem_count()];
        let mut grad_v = vec![0f32; v.elem_count()];
        grad_q
            .par_chunks_mut((queries * width).max(1))
            .zip(grad_k.par_chunks_mut((keys * width).max(1)))
            .zip(grad_v.par_chunks_mut((keys * width).max(1)))
            .zip(q_view.values().par_chunks((queries * width).max(1)))
            .zip(k_view.values().par_chunks((keys * width).max(1)))
            .zip(v_view.values().par_chunks((keys * width).max(1)))
            .zip(grad_out.values().par_chunks((queries * width).max(1)))
            .for_each_init(
                || (vec![0f32; BLOCK * keys], vec![0f32; BLOCK * keys]),
                |(weights, grad_scores), ((((((grad_q, grad_k), grad_v), q), k), v), grad_out)| {
                    let part = Sequence { queries, keys, width, dim, scale: self.scale };
                    if part.is_short() {
                        return vectorized(|| {
                            for from in (0..width).step_by(dim.max(1)) {
                                let all = [&q[from..], &k[from..], &v[from..], &grad_out[from..]];
                                let outs =
                                    [&mut grad_q[from..], &mut grad_k[from..], &mut grad_v[from..]];
                                part.short_head(all, outs);
                            }
                        });
                    }
                    for head in 0..heads {
                        let from = head * dim;
                        part.head(
                            [&q[from..], &k[from..], &v[from..], &grad_out[from..]],
                            [&mut grad_q[from..], &mut grad_k[from..], &mut grad_v[from..]],
                            weights,
                            grad_scores,
                        );
                    }
                },
            );
        let tensor = |values, like: &Tensor| {
            like.track_op()
                .then(|| Tensor::from_vec(values, like.shape(), &Device::Cpu))
                .transpose()
        };
        Ok([tensor(grad_q, q)?, tensor(grad_k, k)?, tensor(grad_v, v)?])
    }
}

/// The sizes of one sequence; the rows of all its matrices are `width` apart.
struct Sequence {
    queries: usize,
    keys: usize,
    width: usize,
    dim: usize,
    scale: f32,
}

impl Sequence {
    /// Computes one head's result.
    fn value(&self, [q, k, v]: [&[f32]; 3], out: &mut [f32], weights: &mut [f32]) {
        let Self { queries, keys, width, dim, scale } = *self;
        let (k, v) = (Matrix::new(k, keys, dim, width), Matrix::new(v, keys, dim, width));
        for start in (0..queries).step_by(BLOCK) {
            let count = BLOCK.min(queries - start);
            let from = start * width;
            let weights = &mut weights[..count * keys];
            let q = Matrix::new(&q[from..], count, dim, width);
            multiply(q, k.t(), weights, keys, (Into::Replace, scale));
            vectorized(|| weights.chunks_exact_mut(keys).for_each(softmax));
            let weights = Matrix::new(weights, count, keys, keys);
            multiply(weights, v, &mut out[from..], width, (Into::Replace, 1.0));
        }
    }

    /// Returns whether a head's matrices fit into tiles, as in motion modules, whose sequences are frames.
    fn is_short(&self) -> bool {
        self.queries <= SIDE && self.keys <= SIDE && self.dim <= SIDE
    }

    /// The softmax of scores, `(queries, keys)`, zero beyond.
    #[inline(always)]
    fn short_weights(&self, q: &Tile, k: &Tile) -> Tile {
        let mut weights = product(q, &transposed(k, self.dim), self.queries, self.dim);
        for row in &mut weights[..self.queries] {
            for value in row.iter_mut() {
                *value *= self.scale;
            }
            row[self.keys..].fill(f32::NEG_INFINITY);
            softmax(row);
        }
        weights
    }

    /// [`value`](Self::value) in tiles.
    #[inline(always)]
    fn short_value(&self, [q, k, v]: [&[f32]; 3], out: &mut [f32]) {
        let (q, k, v) =
            (self.tile(q, self.queries), self.tile(k, self.keys), self.tile(v, self.keys));
        let weights = self.short_weights(&q, &k);
        self.put(&product(&weights, &v, self.queries, self.keys), self.queries, 1.0, out);
    }

    /// [`head`](Self::head) in tiles.
    #[inline(always)]
    fn short_head(
        &self,
        [q, k, v, grad_out]: [&[f32]; 4],
        [grad_q, grad_k, grad_v]: [&mut [f32]; 3],
    ) {
        let Self { queries, keys, dim, scale, .. } = *self;
        let (q, k, v) = (self.tile(q, queries), self.tile(k, keys), self.tile(v, keys));
        let grad_out = self.tile(grad_out, queries);
        let weights = self.short_weights(&q, &k);
        let mut grad_scores = product(&grad_out, &transposed(&v, dim), queries, dim);
        self.put(&transposed_product(&weights, &grad_out, keys, queries), keys, 1.0, grad_v);
        for (row, weights) in grad_scores.iter_mut().zip(&weights) {
            let mean = dot(row, weights);
            for (grad_score, weight) in row.iter_mut().zip(weights) {
                *grad_score = weight * (*grad_score - mean);
            }
        }
        self.put(&product(&grad_scores, &k, queries, keys), queries, scale, grad_q);
        self.put(&transposed_product(&grad_scores, &q, keys, queries), keys, scale, grad_k);
    }

    /// The first rows of a head's matrix.
    #[inline(always)]
    fn tile(&self, from: &[f32], rows: usize) -> Tile {
        let mut tile = [[0.0; SIDE]; SIDE];
        for (tile, row) in tile.iter_mut().zip(from.chunks(self.width)).take(rows) {
            tile[..self.dim].copy_from_slice(&row[..self.dim]);
        }
        tile
    }

    #[inline(always)]
    fn put(&self, tile: &Tile, rows: usize, scale: f32, out: &mut [f32]) {
        for (tile, row) in tile.iter().zip(out.chunks_mut(self.width)).take(rows) {
            for (out, value) in row[..self.dim].iter_mut().zip(tile) {
                *out = scale * value;
            }
        }
    }

    /// Computes one head's gradients.
    fn head(
        &self,
        [q, k, v, grad_out]: [&[f32]; 4],
        [grad_q, grad_k, grad_v]: [&mut [f32]; 3],
        weights: &mut [f32],
        grad_scores: &mut [f32],
    ) {
        let Self { queries, keys, width, dim, scale } = *self;
        let (k, v) = (Matrix::new(k, keys, dim, width), Matrix::new(v, keys, dim, width));
        for start in (0..queries).step_by(BLOCK) {
            let count = BLOCK.min(queries - start);
            let from = start * width;
            let q = Matrix::new(&q[from..], count, dim, width);
            let grad_out = Matrix::new(&grad_out[from..], count, dim, width);
            let weights = &mut weights[..count * keys];
            let grad_scores = &mut grad_scores[..count * keys];
            // The softmax again, and how the result depends on its weights.
            multiply(q, k.t(), weights, keys, (Into::Replace, scale));
            vectorized(|| weights.chunks_exact_mut(keys).for_each(softmax));
            multiply(grad_out, v.t(), grad_scores, keys, (Into::Replace, 1.0));
            let product = Matrix::new(weights, count, keys, keys).t();
            multiply(product, grad_out, grad_v, width, (Into::Add, 1.0));
            // From the weights' gradients to those of the scores.
            let rows = grad_scores.chunks_exact_mut(keys).zip(weights.chunks_exact(keys));
            vectorized(|| {
                for (row, weights) in rows {
                    let mean = dot(row, weights);
                    for (grad_score, weight) in row.iter_mut().zip(weights) {
                        *grad_score = weight * (*grad_score - mean);
                    }
                }
            });
            let grad_scores = Matrix::new(grad_scores, count, keys, keys);
            multiply(grad_scores, k, &mut grad_q[from..], width, (Into::Replace, scale));
            multiply(grad_scores.t(), q, grad_k, width, (Into::Add, scale));
        }
    }
}

/// Rows and columns of a small matrix whose rows are vectors of the processor.
const SIDE: usize = 16;

type Tile = [[f32; SIDE]; SIDE];

/// The first `rows` rows of a product over the first `inner` columns of `a`.
#[inline(always)]
fn product(a: &Tile, b: &Tile, rows: usize, inner: usize) -> Tile {
    let mut out = [[0.0; SIDE]; SIDE];
    for (out, a) in out.iter_mut().zip(a).take(rows) {
        let mut sum = [0f32; SIDE];
        for (a, b) in a.iter().zip(b).take(inner) {
            for (sum, b) in sum.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
        *out = sum;
    }
    out
}

/// [`product`] with the transpose of `a`.
#[inline(always)]
fn transposed_product(a: &Tile, b: &Tile, rows: usize, inner: usize) -> Tile {
    let mut out = [[0.0; SIDE]; SIDE];
    for (i, out) in out.iter_mut().enumerate().take(rows) {
        let mut sum = [0f32; SIDE];
        for (a, b) in a.iter().zip(b).take(inner) {
            for (sum, b) in sum.iter_mut().zip(b) {
                *sum += a[i] * b;
            }
        }
        *out = sum;
    }
    out
}

/// The first `columns` columns of a tile, as rows.
#[inline(always)]
fn transposed(tile: &Tile, columns: usize) -> Tile {
    let mut out = [[0.0; SIDE]; SIDE];
    for (i, out) in out.iter_mut().enumerate().take(columns) {
        for (out, row) in out.iter_mut().zip(tile) {
            *out = row[i];
        }
    }
    out
}

/// `a · b`.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Softmax of a row in place, in lanes that the compiler vectorizes.
#[inline(always)]
fn softmax(row: &mut [f32]) {
    const LANES: usize = 16;
    let mut highest = [f32::NEG_INFINITY; LANES];
    for chunk in row.chunks(LANES) {
        for (high, v) in highest.iter_mut().zip(chunk) {
            *high = if *v > *high { *v } else { *high };
        }
    }
    let maximum = highest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0f32; LANES];
    for chunk in row.chunks_mut(LANES) {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *v = math::exp::<ALWAYS_FMA>(*v - maximum);
            *sum += *v;
        }
    }
    let inverse = 1.0 / sums.iter().sum::<f32>();
    for value in row {
        *value *= inverse;
    }
}
