//! Gradients of the kernels, for training.
//!
//! **The rule.** An op of [`super`] asks [`is_tracked`] about all its tensors. If none takes part in a gradient, the
//! fastest kernel runs and leaves no trace. If one does, the op of the same name here runs: it computes its value by
//! itself, whatever the kernels do, and enters the graph as one node whose gradients are computed here. Tensors that
//! need no gradient cost none: a frozen weight's is never computed. On devices other than the CPU, and in half
//! precision, the plain version in [`super::reference`] runs, all of whose parts candle can differentiate.
//!
//! Every sum runs over parts whose number does not depend on the machine, and the parts are added in order: the
//! gradients of a run are the same, bit for bit, whenever it is repeated.
//!
//! `tests/kernels/gradients.rs` holds all of them against torch and against finite differences.

mod attention;
mod conv;
mod geglu;
mod linear;
mod matrix;
mod norm;
mod shift;
mod upsample;

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, StorageRef, Tensor,
};

pub(super) use self::attention::attention;
pub(super) use self::conv::conv2d_with;
pub(super) use self::geglu::geglu;
pub(super) use self::linear::linear;
pub(super) use self::norm::{group_norm, layer_norm};
pub(super) use self::shift::add_per_channel;
pub(super) use self::upsample::upsample_nearest;

/// Returns whether any of these tensors takes part in a gradient.
pub(super) fn is_tracked(tensors: &[&Tensor]) -> bool {
    tensors.iter().any(|tensor| tensor.track_op())
}

/// Returns whether the gradients of this module apply: f32 on the CPU.
fn applies(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// The gradients of an op of up to three tensors.
trait Gradients: Send + Sync + 'static {
    /// The op's name in errors.
    const NAME: &'static str;

    /// The gradients of those `args` that take part in one, from the op's `result` and its gradient.
    fn gradients(
        &self,
        args: [&Tensor; 3],
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]>;
}

/// Puts a result, which was computed from `args` outside the graph, into it.
fn attach<G: Gradients>(
    values: Vec<f32>,
    shape: impl Into<Shape>,
    args: [&Tensor; 3],
    gradients: G,
) -> Result<Tensor> {
    let value = Mutex::new(Some(CpuStorage::F32(values)));
    args[0].apply_op3(args[1], args[2], Known { value, shape: shape.into(), gradients })
}

/// An op whose result is there already.
struct Known<G> {
    value: Mutex<Option<CpuStorage>>,
    shape: Shape,
    gradients: G,
}

impl<G: Gradients> CustomOp3 for Known<G> {
    fn name(&self) -> &'static str {
        G::NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        match value {
            Some(value) => Ok((value, self.shape.clone())),
            None => candle_core::bail!("{} runs once", G::NAME),
        }
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.gradients.gradients([a, b, c], result, gradient)?;
        Ok((a, b, c))
    }
}

/// The values of a contiguous f32 tensor on the CPU.
struct View<'a> {
    storage: StorageRef<'a>,
    start: usize,
    len: usize,
}

impl<'a> View<'a> {
    fn new(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        if !layout.is_contiguous() {
            candle_core::bail!("a contiguous tensor is needed, got {layout:?}");
        }
        let (start, len) = (layout.start_offset(), layout.shape().elem_count());
        let view = Self { storage, start, len };
        match &*view.storage {
            Storage::Cpu(CpuStorage::F32(values)) if values.len() >= start + len => Ok(view),
            _ => candle_core::bail!("f32 values on the cpu are needed"),
        }
    }

    fn values(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => {
                values.get(self.start..self.start + self.len).unwrap_or_default()
            }
            _ => &[],
        }
    }
}

/// A placeholder for a tensor that an op does not have.
fn nothing(like: &Tensor) -> Result<Tensor> {
    Tensor::zeros(1, DType::F32, like.device())
}

/// Adds up vectors of one length, in order.
fn total(parts: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_else(|| vec![0.0; len]);
    for part in parts {
        for (sum, value) in sum.iter_mut().zip(part) {
            *sum += value;
        }
    }
    sum
}

/// The sum of `f` over a run that is short enough for f32, in lanes that the compiler adds in parallel.
#[inline(always)]
fn sum_of(run: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0f32; LANES];
    let chunks = run.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|v| f(*v)).sum();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    f64::from(lanes.iter().sum::<f32>() + rest)
}

/// The sum of all rows of `width` values.
fn sum_of_rows(values: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0f32; width];
    for row in values.chunks_exact(width.max(1)) {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
    sum
}

/// Into how many parts a sum over `count` things is split: enough for any machine that trains on its CPU.
fn parts(count: usize) -> usize {
    count.clamp(1, 16)
}
