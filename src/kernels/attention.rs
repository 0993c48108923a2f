//! Attention that never holds the whole score matrix.
//!
//! On the CPU a task is one block of queries of one head: its scores, their softmax and the weighted sum
//! of the values stay in one thread's cache. Elsewhere blocks of queries go through batched matmuls.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{f32_slice, grad, math, reference};

/// Queries a CPU task works on.
const BLOCK: usize = 64;

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
        let dtype = q.dtype();
        let prepare = |x: &Tensor| {
            let x = x.to_dtype(DType::F32)?;
            if x.stride()[3] == 1 { Ok(x) } else { x.contiguous() }
        };
        let y = prepare(q)?.apply_op3_no_bwd(&prepare(k)?, &prepare(v)?, &Blocked { scale })?;
        return y.to_dtype(dtype);
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

struct Blocked {
    scale: f64,
}

/// A `(batch, tokens, heads, dim)` view into a slice, `dim` being contiguous.
struct View<'a> {
    values: &'a [f32],
    batch_stride: usize,
    token_stride: usize,
    head_stride: usize,
}

impl<'a> View<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let stride = layout.stride();
        let extent =
            layout.dims().iter().zip(stride).map(|(d, s)| d.saturating_sub(1) * s).sum::<usize>()
                + 1;
        if stride[3] != 1 {
            candle_core::bail!("attention wants contiguous heads");
        }
        let extent = if layout.shape().elem_count() == 0 { 0 } else { extent };
        Ok(Self {
            values: f32_slice(storage, layout.start_offset(), extent)?,
            batch_stride: stride[0],
            token_stride: stride[1],
            head_stride: stride[2],
        })
    }

    fn from(&self, batch: usize, token: usize, head: usize) -> &'a [f32] {
        let start = batch * self.batch_stride + token * self.token_stride + head * self.head_stride;
        &self.values[start..]
    }
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
        let (batch, queries, heads, dim) = q_layout.shape().dims4()?;
        let keys = k_layout.dims()[1];
        let shape = q_layout.shape().clone();
        let mut out = vec![0f32; shape.elem_count()];
        if out.is_empty() || keys == 0 {
            return Ok((CpuStorage::F32(out), shape));
        }
        let q = View::new(q, q_layout)?;
        let k = View::new(k, k_layout)?;
        let v = View::new(v, v_layout)?;
        let scale = self.scale as f32;
        let width = heads * dim;

        // A task owns whole rows of the output, `(block of queries, heads, dim)`, and does every head of it.
        let blocks = queries.div_ceil(BLOCK);
        let tasks: Vec<(usize, usize, &mut [f32])> = out
            .chunks_mut(queries * width)
            .enumerate()
            .flat_map(|(b, rows)| {
                rows.chunks_mut(BLOCK * width).enumerate().map(move |(i, rows)| (b, i, rows))
            })
            .collect();
        debug_assert_eq!(tasks.len(), batch * blocks);
        tasks.into_par_iter().for_each_init(
            || vec![0f32; BLOCK * keys],
            |scores, (b, block, rows)| {
                let count = rows.len() / width;
                for head in 0..heads {
                    let scores = &mut scores[..count * keys];
                    multiply(
                        &Matrix::rows(q.from(b, block * BLOCK, head), count, dim, q.token_stride),
                        &Matrix::columns(k.from(b, 0, head), dim, keys, k.token_stride),
                        scores,
                        keys,
                        scale,
                    );
                    let mut inverse = [0f32; BLOCK];
                    for (row, inverse) in scores.chunks_mut(keys).zip(&mut inverse) {
                        *inverse = 1.0 / exponentials(row);
                    }
                    multiply(
                        &Matrix::rows(scores, count, keys, keys),
                        &Matrix::rows(v.from(b, 0, head), keys, dim, v.token_stride),
                        &mut rows[head * dim..],
                        width,
                        1.0,
                    );
                    for (row, inverse) in rows.chunks_mut(width).zip(inverse) {
                        for value in &mut row[head * dim..(head + 1) * dim] {
                            *value *= inverse;
                        }
                    }
                }
            },
        );
        Ok((CpuStorage::F32(out), shape))
    }
}

/// Replaces a row of scores by `e^(score - maximum)` and returns their sum.
fn exponentials(row: &mut [f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = if *v > *lane { *v } else { *lane };
        }
    }
    let maximum = lanes.iter().copied().fold(rest, f32::max);
    let mut sums = [0f32; LANES];
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *v = math::exp(*v - maximum);
            *sum += *v;
        }
    }
    let mut total = 0.0;
    for v in chunks.into_remainder() {
        *v = math::exp(*v - maximum);
        total += *v;
    }
    total + sums.iter().sum::<f32>()
}

/// A matrix inside a slice.
struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` contiguous rows, `stride` apart.
    fn rows(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Self { values, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// `columns` contiguous columns, `stride` apart.
    fn columns(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Self { values, rows, columns, row_stride: 1, column_stride: stride }
    }

    fn extent(&self) -> usize {
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// `out = scale · a b`, on this thread; the rows of `out` are `stride` apart.
#[allow(unsafe_code)]
fn multiply(a: &Matrix<'_>, b: &Matrix<'_>, out: &mut [f32], stride: usize, scale: f32) {
    assert_eq!(a.columns, b.rows);
    if a.rows == 0 || a.columns == 0 || b.columns == 0 {
        return;
    }
    assert!(a.extent() <= a.values.len() && b.extent() <= b.values.len());
    assert!((a.rows - 1) * stride + b.columns <= out.len() && b.columns <= stride);
    // SAFETY: the assertions above keep every element that gemm reads or writes inside its slice, and
    // `out` is a unique borrow, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            stride as isize,
            false,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            0.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
