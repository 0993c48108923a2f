//! Full differences: the stored tensor is the change of a weight or a bias.

use candle_core::Tensor;

use super::change::{AddDelta, Change, Delta, ModuleChange, Stored};
use super::module::{Family, Parts};
use crate::Result;

pub(super) const FAMILY: Family = Family {
    name: "full difference",
    suffixes: &[(".diff", "diff"), (".w_norm", "diff")],
    mark: None,
    read,
};

#[derive(Debug)]
struct Full {
    stored: Stored,
    factor: f64,
}

fn read(parts: &Parts<'_>) -> Result<ModuleChange, String> {
    Ok(ModuleChange::Delta(Box::new(Full { stored: parts.need("diff")?, factor: 1.0 })))
}

/// A change of a bias.
pub(super) fn bias(stored: Stored, factor: f64) -> Box<dyn Change> {
    Box::new(AddDelta(Box::new(Full { stored, factor })))
}

impl Delta for Full {
    fn shape(&self) -> Vec<usize> {
        self.stored.shape().to_vec()
    }

    fn rank(&self) -> Option<usize> {
        None
    }

    fn read(&self, strength: f64) -> Result<Tensor> {
        Ok((self.stored.read()? * (self.factor * strength))?)
    }
}
