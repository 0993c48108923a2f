//! The plain family: the change is the product of a tall and a wide matrix.
//!
//! Hu et al. (2021), `W + alpha / rank * B A`. For convolutions `A` has the kernel and `B` is 1x1
//! (LoCon), or a small core with the kernel stands between two 1x1 convolutions (Tucker's form).

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{Change, Family, Parts};
use crate::Result;
use crate::weights::Archive;

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
    read,
};

/// Read from its file when it is applied, not before.
#[derive(Debug)]
struct LowRank {
    archive: Arc<Archive>,
    down: String,
    up: String,
    mid: Option<String>,
    /// The shape of the change: rows, inputs, and the kernel if there is one.
    rows: usize,
    inputs: usize,
    kernel: Vec<usize>,
    rank: usize,
    /// Alpha over rank, or what stands for it.
    factor: f64,
}

fn read(parts: &Parts<'_>) -> Result<Box<dyn Change>, String> {
    let (down, down_shape) = parts.get("down").ok_or("it has no down matrix")?;
    let (up, up_shape) = parts.get("up").ok_or("it has no up matrix")?;
    let mid = parts.get("mid");
    let shapes = || format!("down {down_shape:?} and up {up_shape:?} do not go together");
    let [rank, inputs, kernel @ ..] = down_shape else { return Err(shapes()) };
    let [rows, up_rank, up_kernel @ ..] = up_shape else { return Err(shapes()) };
    let (rank, inputs) = (*rank, *inputs);
    if rank == 0 || *up_rank != mid.map_or(rank, |(_, shape)| shape.first().copied().unwrap_or(0)) {
        return Err(shapes());
    }
    if up_kernel.iter().any(|d| *d != 1) {
        return Err(shapes());
    }
    let kernel = match mid {
        None => kernel,
        Some((_, [_, mid_rank, core @ ..]))
            if *mid_rank == rank && kernel.iter().all(|d| *d == 1) =>
        {
            core
        }
        Some((_, shape)) => return Err(format!("{} and mid {shape:?}", shapes())),
    };
    Ok(Box::new(LowRank {
        archive: Arc::clone(parts.archive),
        down: down.to_owned(),
        up: up.to_owned(),
        mid: mid.map(|(name, _)| name.to_owned()),
        rows: *rows,
        inputs,
        kernel: kernel.to_vec(),
        rank,
        factor: parts.factor(rank),
    }))
}

impl LowRank {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.archive.tensor(name, DType::F32, &Device::Cpu)
    }

    /// The change, `(rows, inputs * kernel)`, times a factor.
    fn delta(&self, factor: f64) -> Result<Tensor> {
        // The factor goes to the small matrix, not to the large product.
        let up = (self.tensor(&self.up)?.flatten_from(1)? * factor)?;
        let down = self.tensor(&self.down)?.flatten_from(1)?;
        let wide = match &self.mid {
            None => down,
            Some(mid) => {
                let mid = self.tensor(mid)?; // (up_rank, rank, *kernel)
                let (outer, rank) = (mid.dim(0)?, mid.dim(1)?);
                let core = mid.flatten_from(2)?.transpose(1, 2)?; // (up_rank, kernel, rank)
                let kernel = core.dim(1)?;
                core.contiguous()?
                    .reshape((outer * kernel, rank))?
                    .matmul(&down)?
                    .reshape((outer, kernel, self.inputs))?
                    .transpose(1, 2)?
                    .contiguous()?
                    .reshape((outer, self.inputs * kernel))?
            }
        };
        Ok(up.matmul(&wide)?)
    }
}

impl Change for LowRank {
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        // A linear layer and a 1x1 convolution are the same thing in two spellings.
        let (rows, inputs, kernel) = match shape {
            [rows, inputs, kernel @ ..] => (*rows, *inputs, kernel),
            _ => return Err(format!("its shape {shape:?} is no matrix")),
        };
        let kernels = kernel == self.kernel
            || [kernel, &self.kernel].iter().all(|kernel| kernel.iter().all(|d| *d == 1));
        if rows == self.rows && inputs == self.inputs && kernels {
            return Ok(());
        }
        let ours: Vec<usize> =
            [self.rows, self.inputs].into_iter().chain(self.kernel.clone()).collect();
        Err(format!("it changes {ours:?}, the weight is {shape:?}"))
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor> {
        let delta = self.delta(self.factor * strength)?;
        Ok((weight + delta.reshape(weight.shape())?)?)
    }
}
