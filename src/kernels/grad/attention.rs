//! Gradients of attention. Scores are computed again, a block of queries at a time.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::matrix::{Into, Matrix, multiply};
use super::{Gradients, View, applies, attach};
use crate::kernels::isa::vectorized;
use crate::kernels::{math, reference};

/// Queries whose scores exist at once.
const BLOCK: usize = 64;

/// See [`crate::kernels::attention()`].
pub(in crate::kernels) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
) -> Result<Tensor> {
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
        let slopes = View::new(&gradient)?;
        let mut of_q = vec![0f32; q.elem_count()];
        let mut of_k = vec![0f32; k.elem_count()];
        let mut of_v = vec![0f32; v.elem_count()];
        of_q.par_chunks_mut((queries * width).max(1))
            .zip(of_k.par_chunks_mut((keys * width).max(1)))
            .zip(of_v.par_chunks_mut((keys * width).max(1)))
            .zip(q_view.values().par_chunks((queries * width).max(1)))
            .zip(k_view.values().par_chunks((keys * width).max(1)))
            .zip(v_view.values().par_chunks((keys * width).max(1)))
            .zip(slopes.values().par_chunks((queries * width).max(1)))
            .for_each_init(
                || (vec![0f32; BLOCK * keys], vec![0f32; BLOCK * keys]),
                |(weights, slants), ((((((of_q, of_k), of_v), q), k), v), slopes)| {
                    let part = Sequence { queries, keys, width, dim, scale: self.scale };
                    for head in 0..heads {
                        let from = head * dim;
                        part.head(
                            [&q[from..], &k[from..], &v[from..], &slopes[from..]],
                            [&mut of_q[from..], &mut of_k[from..], &mut of_v[from..]],
                            weights,
                            slants,
                        );
                    }
                },
            );
        let tensor = |values, like: &Tensor| {
            like.track_op()
                .then(|| Tensor::from_vec(values, like.shape(), &Device::Cpu))
                .transpose()
        };
        Ok([tensor(of_q, q)?, tensor(of_k, k)?, tensor(of_v, v)?])
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
    /// One head's result.
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

    /// One head's gradients.
    fn head(
        &self,
        [q, k, v, slopes]: [&[f32]; 4],
        [of_q, of_k, of_v]: [&mut [f32]; 3],
        weights: &mut [f32],
        slants: &mut [f32],
    ) {
        let Self { queries, keys, width, dim, scale } = *self;
        let (k, v) = (Matrix::new(k, keys, dim, width), Matrix::new(v, keys, dim, width));
        for start in (0..queries).step_by(BLOCK) {
            let count = BLOCK.min(queries - start);
            let from = start * width;
            let q = Matrix::new(&q[from..], count, dim, width);
            let slope = Matrix::new(&slopes[from..], count, dim, width);
            let weights = &mut weights[..count * keys];
            let slants = &mut slants[..count * keys];
            // The softmax again, and how the result depends on its weights.
            multiply(q, k.t(), weights, keys, (Into::Replace, scale));
            vectorized(|| weights.chunks_exact_mut(keys).for_each(softmax));
            multiply(slope, v.t(), slants, keys, (Into::Replace, 1.0));
            let product = Matrix::new(weights, count, keys, keys).t();
            multiply(product, slope, of_v, width, (Into::Add, 1.0));
            // From the weights' gradients to those of the scores.
            let rows = slants.chunks_exact_mut(keys).zip(weights.chunks_exact(keys));
            vectorized(|| {
                for (row, weights) in rows {
                    let mean = dot(row, weights);
                    for (slant, weight) in row.iter_mut().zip(weights) {
                        *slant = weight * (*slant - mean);
                    }
                }
            });
            let slants = Matrix::new(slants, count, keys, keys);
            multiply(slants, k, &mut of_q[from..], width, (Into::Replace, scale));
            multiply(slants.t(), q, of_k, width, (Into::Add, scale));
        }
    }
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

/// In lanes that the compiler runs in parallel.
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
            *v = math::exp(*v - maximum);
            *sum += *v;
        }
    }
    let inverse = 1.0 / sums.iter().sum::<f32>();
    for value in row {
        *value *= inverse;
    }
}
