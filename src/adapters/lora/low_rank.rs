//! The plain family: the change is the product of a tall and a wide matrix.
//!
//! Hu et al. (2021), `W + alpha / rank * B A`. For convolutions `A` has the kernel and `B` is 1x1
//! (LoCon), or a small core with the kernel stands between two 1x1 convolutions (Tucker's form).

use candle_core::Tensor;

use super::change::{Delta, Made, Stored};
use super::family::{Family, Parts};
use super::product::tucker;
use crate::Result;

pub(super) const FAMILY: Family = Family {
    name: "LoRA",
    suffixes: &[
        (".lora_down.weight", "down"),
        (".lora_up.weight", "up"),
        (".lora_mid.weight", "mid"),
        (".lora.down.weight", "down"),
        (".lora.up.weight", "up"),
        (".lora_linear_layer.down.weight", "down"),
        (".lora_linear_layer.up.weight", "up"),
        ("_lora.down.weight", "down"),
        ("_lora.up.weight", "up"),
        (".lora_A.weight", "down"),
        (".lora_B.weight", "up"),
    ],
    mark: None,
    read,
};

#[derive(Debug)]
struct LowRank {
    /// `(rank, inputs)`, with the kernel behind for convolutions without `mid`.
    down: Stored,
    /// `(rows, rank)`, or with a 1x1 kernel.
    up: Stored,
    /// `(rank, rank, *kernel)`.
    mid: Option<Stored>,
    /// Rows, inputs and kernel.
    shape: Vec<usize>,
    rank: usize,
    /// Alpha over rank, or what stands for it.
    factor: f64,
}

fn read(parts: &Parts<'_>) -> Result<Made, String> {
    let (down, up, mid) = (parts.need("down")?, parts.need("up")?, parts.get("mid"));
    let apart = || {
        let (down, up) = (down.shape(), up.shape());
        let mid = mid.as_ref().map(|mid| format!(" and mid {:?}", mid.shape())).unwrap_or_default();
        format!("down {down:?} and up {up:?}{mid} do not go together")
    };
    let is_point = |kernel: &[usize]| kernel.iter().all(|d| *d == 1);
    let [rank, inputs, kernel @ ..] = down.shape() else { return Err(apart()) };
    let [rows, up_rank, up_kernel @ ..] = up.shape() else { return Err(apart()) };
    let (inner, kernel) = match mid.as_ref().map(Stored::shape) {
        None => (rank, kernel),
        Some([outer, inner, core @ ..]) if inner == rank && is_point(kernel) => (outer, core),
        Some(_) => return Err(apart()),
    };
    if *rank == 0 || up_rank != inner || !is_point(up_kernel) {
        return Err(apart());
    }
    let (rank, shape) = (*rank, [&[*rows, *inputs], kernel].concat());
    let factor = parts.factor(Some(rank));
    Ok(Made::Delta(Box::new(LowRank { down, up, mid, shape, rank, factor })))
}

impl Delta for LowRank {
    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    fn read(&self, strength: f64) -> Result<Tensor> {
        let up = (self.up.read()?.flatten_from(1)? * (self.factor * strength))?;
        let down = self.down.read()?.flatten_from(1)?;
        match &self.mid {
            None => Ok(up.matmul(&down)?),
            Some(mid) => tucker(&up, &mid.read()?, &down),
        }
    }
}
