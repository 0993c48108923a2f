//! The gradient of the gated GELU.

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use super::{Gradients, View, applies, attach, nothing};
use crate::kernels::cpu::isa::{ALWAYS_FMA, vectorized};
use crate::kernels::cpu::math;
use crate::kernels::reference;

/// Rows that a task computes.
const ROWS: usize = 16;

/// Values that are computed at once.
const LANES: usize = 16;

/// See [`crate::kernels::geglu`].
pub(in crate::kernels) fn geglu(x: &Tensor) -> Result<Tensor> {
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
        let slope = |out: &mut [f32], x: &[f32], slopes: &[f32]| {
            let rows = out.chunks_exact_mut(2 * width).zip(x.chunks_exact(2 * width));
            for ((out, x), slopes) in rows.zip(slopes.chunks_exact(width)) {
                let (values, gates) = x.split_at(width);
                let (of_values, of_gates) = out.split_at_mut(width);
                // In pieces of a known size, which the compiler turns into vectors.
                let starts = (0..width).step_by(LANES);
                for (start, end) in starts.map(|start| (start, width.min(start + LANES))) {
                    let piece = |from: &[f32]| {
                        let mut piece = [0f32; LANES];
                        piece[..end - start].copy_from_slice(&from[start..end]);
                        piece
                    };
                    let [values, gates, slopes] = [values, gates, slopes].map(piece);
                    let (mut of_value, mut of_gate) = ([0f32; LANES], [0f32; LANES]);
                    for i in 0..LANES {
                        let (gelu, slope) = gelu_and_slope(gates[i]);
                        of_value[i] = slopes[i] * gelu;
                        of_gate[i] = slopes[i] * values[i] * slope;
                    }
                    of_values[start..end].copy_from_slice(&of_value[..end - start]);
                    of_gates[start..end].copy_from_slice(&of_gate[..end - start]);
                }
            }
        };
        out.par_chunks_mut(2 * ROWS * width)
            .zip(x_view.values().par_chunks(2 * ROWS * width))
            .zip(gradient.values().par_chunks(ROWS * width))
            .for_each(|((out, x), slopes)| vectorized(|| slope(out, x, slopes)));
        Ok([Some(Tensor::from_vec(out, x.shape(), &Device::Cpu)?), None, None])
    }
}

/// `x Φ(x)` and its derivative `Φ(x) + x φ(x)`.
#[inline(always)]
fn gelu_and_slope(x: f32) -> (f32, f32) {
    const INVERSE_ROOT: f32 = 0.398_942_28; // 1 / sqrt(2 π)
    let share = 0.5 * (1.0 + math::erf::<ALWAYS_FMA>(x * std::f32::consts::FRAC_1_SQRT_2));
    (x * share, share + x * INVERSE_ROOT * math::exp::<ALWAYS_FMA>(-0.5 * x * x))
}
