//! IA3: every input or every output of a layer gets a factor of its own.
//!
//! Liu et al. (2022), in the way of LyCORIS: stored is by how much the factor differs from 1.

use candle_core::Tensor;

use super::change::{Change, Made, Stored};
use super::family::{Family, Parts};
use crate::Result;

pub(super) const FAMILY: Family = Family {
    name: "IA3",
    suffixes: &[(".on_input", "on_input"), (".weight", "weight")],
    mark: Some(".on_input"),
    read,
};

#[derive(Debug)]
struct Ia3 {
    stored: Stored,
    on_input: bool,
}

fn read(parts: &Parts<'_>) -> Result<Made, String> {
    let flag = parts.need("on_input")?;
    let values = flag.read().and_then(|flag| Ok(flag.flatten_all()?.to_vec1::<f32>()?));
    let on_input = match values.as_deref() {
        Ok([value]) => *value != 0.0,
        Ok(values) => {
            return Err(format!("on_input has {} values where one is expected", values.len()));
        }
        Err(error) => return Err(error.to_string()),
    };
    Ok(Made::Change(Box::new(Ia3 { stored: parts.need("weight")?, on_input })))
}

impl Ia3 {
    /// The axis of a weight that the factors lie along.
    fn axis(&self) -> usize {
        usize::from(self.on_input)
    }
}

impl Change for Ia3 {
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        let count = self.stored.count();
        if shape.len() > 1 && shape.get(self.axis()) == Some(&count) {
            return Ok(());
        }
        let side = if self.on_input { "inputs" } else { "outputs" };
        Err(format!("it scales {count} {side}, the weight is {shape:?}"))
    }

    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor> {
        let mut shape = vec![1; weight.rank()];
        if let Some(axis) = shape.get_mut(self.axis()) {
            *axis = self.stored.count();
        }
        let factors = self.stored.read()?.reshape(shape)?.affine(strength, 1.0)?;
        Ok(weight.broadcast_mul(&factors)?)
    }
}
