//! LoKr: the change is the Kronecker product of two small matrices.
//!
//! Edalati et al. (2022), KronA; called LoKr in LyCORIS. Either matrix is stored whole or as a low-rank product; the
//! second one has the kernel of convolutions.

use candle_core::Tensor;

use super::change::{Delta, ModuleChange, Stored};
use super::module::{Family, Parts};
use super::product::Product;
use crate::Result;

pub(super) const FAMILY: Family = Family {
    name: "LoKr",
    suffixes: &[
        (".lokr_w1", "w1"),
        (".lokr_w1_a", "w1_a"),
        (".lokr_w1_b", "w1_b"),
        (".lokr_w2", "w2"),
        (".lokr_w2_a", "w2_a"),
        (".lokr_w2_b", "w2_b"),
        (".lokr_t2", "t2"),
    ],
    mark: None,
    read,
};

/// A factor of the Kronecker product.
#[derive(Debug)]
enum Side {
    Whole(Stored),
    Product(Product),
}

impl Side {
    fn new(
        parts: &Parts<'_>,
        whole: &'static str,
        product: [&'static str; 3],
    ) -> Result<Self, String> {
        match parts.get(whole) {
            Some(stored) => Ok(Self::Whole(stored)),
            None if product.iter().any(|part| parts.get(part).is_some()) => {
                Product::new(parts, product).map(Self::Product)
            }
            None => Err(format!("it has no {whole} matrix")),
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Whole(stored) => stored.shape(),
            Self::Product(product) => product.shape(),
        }
    }

    fn rank(&self) -> Option<usize> {
        match self {
            Self::Whole(_) => None,
            Self::Product(product) => Some(product.rank()),
        }
    }

    /// The matrix times a factor, `(rows, inputs * kernel)`.
    fn read(&self, factor: f64) -> Result<Tensor> {
        match self {
            Self::Whole(stored) => Ok((stored.read()?.flatten_from(1)? * factor)?),
            Self::Product(product) => product.read(factor),
        }
    }
}

#[derive(Debug)]
struct Kronecker {
    one: Side,
    two: Side,
    shape: Vec<usize>,
    rank: Option<usize>,
    factor: f64,
}

fn read(parts: &Parts<'_>) -> Result<ModuleChange, String> {
    let one = Side::new(parts, "w1", ["w1_a", "w1_b", "t1"])?;
    let two = Side::new(parts, "w2", ["w2_a", "w2_b", "t2"])?;
    let shape = match (one.shape(), two.shape()) {
        ([rows, inputs, points @ ..], [more_rows, more_inputs, kernel @ ..])
            if points.iter().all(|d| *d == 1) =>
        {
            let (rows, inputs) =
                (rows.saturating_mul(*more_rows), inputs.saturating_mul(*more_inputs));
            [&[rows, inputs], kernel].concat()
        }
        (one, two) => return Err(format!("w1 {one:?} and w2 {two:?} do not go together")),
    };
    // Two whole matrices have no rank; LyCORIS then ignores alpha.
    let rank = two.rank().or(one.rank());
    let factor = parts.factor(rank);
    Ok(ModuleChange::Delta(Box::new(Kronecker { one, two, shape, rank, factor })))
}

impl Delta for Kronecker {
    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn rank(&self) -> Option<usize> {
        self.rank
    }

    fn read(&self, strength: f64) -> Result<Tensor> {
        let (one, two) = (self.one.read(self.factor * strength)?, self.two.read(1.0)?);
        let (rows, columns) = one.dims2()?;
        let (more_rows, more_columns) = two.dims2()?;
        let one = one.reshape((rows, 1, columns, 1))?;
        let two = two.reshape((1, more_rows, 1, more_columns))?;
        Ok(one.broadcast_mul(&two)?.reshape((rows * more_rows, columns * more_columns))?)
    }
}
