//! GLoRA: the change is a low-rank matrix plus the weight times another low-rank matrix.
//!
//! Chavan et al. (2023), in LyCORIS' form: `W + alpha / rank * (W A + B)`. Early versions of LyCORIS stored the two
//! factors of both matrices in reverse, which is detected from their shapes.

use candle_core::Tensor;

use super::change::{Change, ModuleChange, Stored, fits};
use super::module::{Family, Parts};
use crate::Result;

pub(super) const FAMILY: Family = Family {
    name: "GLoRA",
    suffixes: &[
        (".a1.weight", "a1"),
        (".a2.weight", "a2"),
        (".b1.weight", "b1"),
        (".b2.weight", "b2"),
    ],
    mark: None,
    read,
};

#[derive(Debug)]
struct Glora {
    /// `(inputs, rank)` and `(rank, inputs)`: the weight is multiplied by their product from the right.
    a: [Stored; 2],
    /// `(rows, rank)` and `(rank, inputs, *kernel)`: their product is added.
    b: [Stored; 2],
    shape: Vec<usize>,
    rank: usize,
    factor: f64,
}

fn read(parts: &Parts<'_>) -> Result<ModuleChange, String> {
    let [a1, a2, b1, b2] =
        [parts.need("a1")?, parts.need("a2")?, parts.need("b1")?, parts.need("b2")?];
    let today = sizes([&a1, &a2], [&b1, &b2]);
    let (a, b, sizes) = match (today, sizes([&a2, &a1], [&b2, &b1])) {
        (Some(sizes), _) => ([a1, a2], [b1, b2], sizes),
        (None, Some(sizes)) => ([a2, a1], [b2, b1], sizes),
        (None, None) => {
            let [a1, a2, b1, b2] = [&a1, &a2, &b1, &b2].map(Stored::shape);
            return Err(format!(
                "a1 {a1:?}, a2 {a2:?}, b1 {b1:?} and b2 {b2:?} do not go together"
            ));
        }
    };
    let (shape, rank) = sizes;
    let factor = parts.factor(Some(rank));
    Ok(ModuleChange::Change(Box::new(Glora { a, b, shape, rank, factor })))
}

/// The shape of the weight and the rank, if the matrices are compatible in this order.
fn sizes(a: [&Stored; 2], b: [&Stored; 2]) -> Option<(Vec<usize>, usize)> {
    let is_point = |kernel: &[usize]| kernel.iter().all(|d| *d == 1);
    let ([inputs, r0, k0 @ ..], [r1, i1, k1 @ ..]) = (a[0].shape(), a[1].shape()) else {
        return None;
    };
    let ([rows, r2, k2 @ ..], [rank, i2, kernel @ ..]) = (b[0].shape(), b[1].shape()) else {
        return None;
    };
    let same = *rank > 0 && [r0, r1, r2].iter().all(|r| *r == rank) && i1 == inputs && i2 == inputs;
    let points = is_point(k0) && is_point(k1) && is_point(k2);
    (same && points).then(|| ([&[*rows, *inputs], kernel].concat(), *rank))
}

impl Change for Glora {
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        fits(&self.shape, shape)
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    fn inputs(&self) -> Option<usize> {
        self.shape.get(1).copied()
    }

    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor> {
        let [left, right] = &self.a;
        let (left, right) = (left.read()?.flatten_from(1)?, right.read()?.flatten_from(1)?);
        let (rows, inputs) = (weight.dim(0)?, weight.dim(1)?);
        let flat = weight.reshape((rows, inputs, ()))?.transpose(1, 2)?.contiguous()?; // (rows, kernel, inputs)
        let kernel = flat.dim(1)?;
        let multiplied = flat.reshape((rows * kernel, inputs))?.matmul(&left)?.matmul(&right)?;
        let multiplied =
            multiplied.reshape((rows, kernel, inputs))?.transpose(1, 2)?.contiguous()?;
        let [up, down] = &self.b;
        let added = up.read()?.flatten_from(1)?.matmul(&down.read()?.flatten_from(1)?)?;
        let change = (multiplied.reshape(weight.shape())? + added.reshape(weight.shape())?)?;
        Ok((weight + (change * (self.factor * strength))?)?)
    }
}
