//! The gradient of the gated GELU.

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use super::{Gradients, View, applies, attach, nothing};
use crate::cpu::isa::{ALWAYS_FMA, vectorized};
use crate::cpu::math;
use crate::reference;

/// Rows that a task computes.
const ROWS: usize = 16;

/// Values that are computed at once.
const LANES: usize = 16;

/// See [`crate::geglu`].
pub(crate) fn geglu(x: &Tensor) -> Result<Tensor> {
    if !applies(&[x]) {
        return reference::geglu(x);
    }
    let x = x.contiguous()?;
    let nothing = nothing(&x)?;
    let mut shape = x.dims().to_vec();
    let Some(last) = shape.last_mut() else { candle_core::bail!("gated gelu of a scalar") };
    *last /= 2;
    let width = (*last).max(1);
    let mut values = vec![0f32; x.elem_count() / 2];
    let view = View::new(&x)?;
    let gate = |(out, x): (&mut [f32], &[f32])| {
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
            let (values, gates) = x.split_at(width);
            for ((out, value), gate) in out.iter_mut().zip(values).zip(gates) {
                *out = value * math::gelu::<ALWAYS_FMA>(*gate);
            }
        }
    };
    values
        .par_chunks_mut(ROWS * width)
        .zip(view.values().par_chunks(2 * ROWS * width))
        .for_each(|rows| vectorized(|| gate(rows)));
    drop(view);
    attach(values, shape, [&x, &nothing, &nothing], Gated)
}

struct Gated;

impl Gradients for Gated {
    const NAME: &'static str = "geglu";

    fn gradients(
        &self,
        [x, ..]: [&Tensor; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let gradient = gradient.contiguous()?;
        let width = gradient.dim(D::Minus1)?.max(1);
        let (x_view, gradient) = (View::new(x)?, View::new(&gradient)?);
        let mut out = vec![0f32; x.elem_count()];
        let backward = |out: &mut [f32], x: &[f32], grad_out: &[f32]| {
            let rows = out.chunks_exact_mut(2 * width).zip(x.chunks_exact(2 * width));
            for ((out, x), grad_out) in rows.zip(grad_out.chunks_exact(width)) {
                let (values, gates) = x.split_at(width);
                let (grad_values, grad_gates) = out.split_at_mut(width);
                // In pieces of a known size, which the compiler turns into vectors.
                let starts = (0..width).step_by(LANES);
                for (start, end) in starts.map(|start| (start, width.min(start + LANES))) {
                    let piece = |from: &[f32]| {
                        let mut piece = [0f32; LANES];
                        piece[..end - start].copy_from_slice(&from[start..end]);
                        piece
                    };
                    let [values, gates, grad_out] = [values, gates, grad_out].map(piece);
                    let (mut grad_value, mut grad_gate) = ([0f32; LANES], [0f32; LANES]);
                    for i in 0..LANES {
                        let (gelu, slope) = gelu_and_slope(gates[i]);
                        grad_value[i] = grad_out[i] * gelu;
                        grad_gate[i] = grad_out[i] * values[i] * slope;
                    }
                    grad_values[start..end].copy_from_slice(&grad_value[..end - start]);
                    grad_gates[start..end].copy_from_slice(&grad_gate[..end - start]);
                }
            }
        };
        out.par_chunks_mut(2 * ROWS * width)
            .zip(x_view.values().par_chunks(2 * ROWS * width))
            .zip(gradient.values().par_chunks(ROWS * width))
            .for_each(|((out, x), grad_out)| vectorized(|| backward(out, x, grad_out)));
        Ok([Some(Tensor::from_vec(out, x.shape(), &Device::Cpu)?), None, None])
    }
}

/// `x Φ(x)` and its derivative `Φ(x) + x φ(x)`.
#[inline(always)]
fn gelu_and_slope(x: f32) -> (f32, f32) {
    const INVERSE_ROOT: f32 = 0.398_942_28; // 1 / sqrt(2 π)
    let cdf = 0.5 * (1.0 + math::erf::<ALWAYS_FMA>(x * std::f32::consts::FRAC_1_SQRT_2));
    (x * cdf, cdf + x * INVERSE_ROOT * math::exp::<ALWAYS_FMA>(-0.5 * x * x))
}
