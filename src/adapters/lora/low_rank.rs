//! LoRA: the change is the product of two low-rank matrices.
//!
//! Hu et al. (2021), `W + alpha / rank * B A`. For convolutions, `A` has the kernel and `B` is 1x1 (LoCon), or a small
//! core with the kernel lies between two 1x1 convolutions (Tucker decomposition). LoRAs that LyCORIS extracted from a
//! finetuned model may have additional sparse values, which are added to the product.

use candle_core::Tensor;

use super::change::{Delta, ModuleChange, Stored, fits};
use super::module::{Family, Parts};
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
        (":down", "down"),
        (":up", "up"),
        (".bias_indices", "stray_indices"),
        (".bias_values", "stray_values"),
        (".bias_size", "stray_size"),
    ],
    mark: None,
    read,
};

#[derive(Debug)]
struct LowRank {
    /// `(rank, inputs, *kernel)`; the kernel only for convolutions without `mid`.
    down: Stored,
    /// `(rows, rank)`, optionally with a 1x1 kernel.
    up: Stored,
    /// `(rank, rank, *kernel)`.
    mid: Option<Stored>,
    strays: Option<Strays>,
    /// `(rows, inputs, *kernel)`.
    shape: Vec<usize>,
    rank: usize,
    /// The module's scale, usually `alpha / rank`.
    factor: f64,
}

fn read(parts: &Parts<'_>) -> Result<ModuleChange, String> {
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
    let strays = Strays::read(parts, &shape)?;
    let factor = parts.factor(Some(rank));
    Ok(ModuleChange::Delta(Box::new(LowRank { down, up, mid, strays, shape, rank, factor })))
}

/// A sparse matrix `(rows, inputs * kernel)`.
#[derive(Debug)]
struct Strays {
    /// Row and column indices, `(2, count)`.
    indices: Stored,
    /// `(count)`.
    values: Stored,
}

impl Strays {
    /// Reads the sparse values of a module whose weight has this shape, if it has any.
    fn read(parts: &Parts<'_>, shape: &[usize]) -> Result<Option<Self>, String> {
        const PARTS: [&str; 3] = ["stray_indices", "stray_values", "stray_size"];
        if PARTS.iter().all(|part| parts.get(part).is_none()) {
            return Ok(None);
        }
        let (indices, values) = (parts.need("stray_indices")?, parts.need("stray_values")?);
        let size = parts.need("stray_size")?.values(shape.len()).map_err(|e| e.to_string())?;
        let size: Vec<usize> = size.into_iter().map(|d| d.max(0.0) as usize).collect();
        fits(&size, shape)?;
        match (indices.shape(), values.shape()) {
            ([2, count], [values]) if count == values => {}
            (indices, values) => {
                return Err(format!(
                    "indices {indices:?} and values {values:?} do not go together"
                ));
            }
        }
        let strays = Self { indices, values };
        strays.places(shape).map_err(|e| e.to_string())?;
        Ok(Some(strays))
    }

    /// Row-major indices of the values in a weight of this shape.
    fn places(&self, shape: &[usize]) -> Result<Vec<usize>> {
        let (rows, columns) =
            (shape.first().copied().unwrap_or(0), shape.iter().skip(1).product::<usize>());
        let indices = self.indices.read()?.to_vec2::<f32>()?;
        let [row, column] = &indices[..] else { return Ok(vec![]) };
        let place = |(row, column): (&f32, &f32)| {
            let inside = (0.0..rows as f32).contains(row) && (0.0..columns as f32).contains(column);
            if !inside {
                candle_core::bail!(
                    "the value at row {row}, column {column} lies outside of {shape:?}"
                );
            }
            Ok(*row as usize * columns + *column as usize)
        };
        Ok(row.iter().zip(column).map(place).collect::<candle_core::Result<_>>()?)
    }

    /// The product plus the sparse values.
    fn onto(&self, product: &Tensor, shape: &[usize], factor: f64) -> Result<Tensor> {
        let mut all = product.flatten_all()?.to_vec1::<f32>()?;
        let values = self.values.read()?.to_vec1::<f32>()?;
        for (place, value) in self.places(shape)?.into_iter().zip(values) {
            if let Some(slot) = all.get_mut(place) {
                *slot += (f64::from(value) * factor) as f32;
            }
        }
        Ok(Tensor::from_vec(all, product.shape(), product.device())?)
    }
}

impl Delta for LowRank {
    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    fn read(&self, strength: f64) -> Result<Tensor> {
        let factor = self.factor * strength;
        let up = (self.up.read()?.flatten_from(1)? * factor)?;
        let down = self.down.read()?.flatten_from(1)?;
        let product = match &self.mid {
            None => up.matmul(&down)?,
            Some(mid) => tucker(&up, &mid.read()?, &down)?,
        };
        match &self.strays {
            None => Ok(product),
            Some(strays) => strays.onto(&product, &self.shape, factor),
        }
    }
}
