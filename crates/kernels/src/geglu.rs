//! Gated GELU without the copies of the two halves.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::float;
use super::cpu::isa::{Isa, Loops};
use super::cpu::math;
use super::{autograd, in_f32, reference};

/// `value · gelu(gate)` of a last dimension that holds values, then gates; see [`reference::geglu`].
///
/// # Errors
///
/// When the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    if x.dim(D::Minus1)? % 2 != 0 {
        candle_core::bail!("gated gelu wants an even width, got {}", x.dim(D::Minus1)?);
    }
    if autograd::is_tracked(&[x]) {
        return autograd::geglu(x);
    }
    #[cfg(feature = "cuda")]
    if super::has_own(x.device())
        && let Some(y) = super::cuda::geglu(x, None)?
    {
        return Ok(y);
    }
    if !x.device().is_cpu() {
        return reference::geglu(x);
    }
    in_f32(x, |x| x.contiguous()?.apply_op1_no_bwd(&Fused))
}

struct Fused;

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let Some(last) = dims.last_mut() else { candle_core::bail!("gated gelu of a scalar") };
        let width = *last / 2;
        *last = width;
        let x = float::slice::<f32>(x, layout.start_offset(), layout.shape().elem_count())?;
        let mut y = vec![0f32; x.len() / 2];
        let isa = Isa::current();
        if width > 0 {
            y.par_chunks_mut(width).zip(x.par_chunks(2 * width)).with_min_len(8).for_each(
                |(y, x)| {
                    isa.vectorize(Gate { x, y });
                },
            );
        }
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }
}

struct Gate<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Loops for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let (values, gates) = self.x.split_at(self.y.len());
        for ((y, value), gate) in self.y.iter_mut().zip(values).zip(gates) {
            *y = value * math::gelu::<FMA>(*gate);
        }
    }
}
