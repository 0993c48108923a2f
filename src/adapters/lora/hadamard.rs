//! LoHa: the change is the elementwise product of two low-rank matrices.
//!
//! Hyeon-Woo et al. (2022), FedPara; called LoHa in LyCORIS. The rank of the product can be up to the square of the
//! stored one.

use candle_core::Tensor;

use super::change::{Delta, ModuleChange};
use super::module::{Family, Parts};
use super::product::Product;
use crate::Result;

pub(super) const FAMILY: Family = Family {
    name: "LoHa",
    suffixes: &[
        (".hada_w1_a", "w1_a"),
        (".hada_w1_b", "w1_b"),
        (".hada_w2_a", "w2_a"),
        (".hada_w2_b", "w2_b"),
        (".hada_t1", "t1"),
        (".hada_t2", "t2"),
    ],
    mark: None,
    read,
};

#[derive(Debug)]
struct Hadamard {
    one: Product,
    two: Product,
    factor: f64,
}

fn read(parts: &Parts<'_>) -> Result<ModuleChange, String> {
    let one = Product::new(parts, ["w1_a", "w1_b", "t1"])?;
    let two = Product::new(parts, ["w2_a", "w2_b", "t2"])?;
    if one.shape() != two.shape() || one.rank() != two.rank() {
        return Err(format!(
            "its halves, {:?} of rank {} and {:?} of rank {}, do not go together",
            one.shape(),
            one.rank(),
            two.shape(),
            two.rank()
        ));
    }
    let factor = parts.factor(Some(one.rank()));
    Ok(ModuleChange::Delta(Box::new(Hadamard { one, two, factor })))
}

impl Delta for Hadamard {
    fn shape(&self) -> Vec<usize> {
        self.one.shape().to_vec()
    }

    fn rank(&self) -> Option<usize> {
        Some(self.one.rank())
    }

    fn read(&self, strength: f64) -> Result<Tensor> {
        Ok((self.one.read(self.factor * strength)? * self.two.read(1.0)?)?)
    }
}
