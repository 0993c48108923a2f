//! IA3: every input or every output of a layer is scaled by a factor.
//!
//! Liu et al. (2022). LyCORIS stores the difference of the factor from 1 and leaves biases unchanged; PEFT stores the
//! factor itself, and factors of outputs also scale the bias.

use candle_core::Tensor;

use super::change::{Change, ModuleChange, Stored};
use super::module::{Family, Parts};
use crate::Result;

pub(super) const FAMILY: Family = Family {
    name: "IA3",
    suffixes: &[(".on_input", "on_input"), (".weight", "weight")],
    mark: Some(".on_input"),
    read,
};

pub(super) const PEFT: Family =
    Family { name: "IA3", suffixes: &[(".ia3_l", "factors")], mark: None, read: read_peft };

#[derive(Clone, Debug)]
struct Ia3 {
    stored: Stored,
    on_input: bool,
    /// The stored value that leaves the weight unchanged.
    neutral: f64,
    is_bias: bool,
}

fn read(parts: &Parts<'_>) -> Result<ModuleChange, String> {
    let flag = parts.need("on_input")?;
    let on_input = match flag.values(1).map_err(|error| error.to_string())?[..] {
        [value] => value != 0.0,
        _ => return Err("on_input has no value where one is expected".into()),
    };
    let stored = parts.need("weight")?;
    Ok(ModuleChange::Change(Box::new(Ia3 { stored, on_input, neutral: 0.0, is_bias: false })))
}

fn read_peft(parts: &Parts<'_>) -> Result<ModuleChange, String> {
    let stored = parts.need("factors")?;
    let on_input = match (stored.shape(), parts.config.on_input) {
        ([1, _], _) => true,
        ([_, 1], _) => false,
        // Factors of convolutions always lie along the second axis.
        ([1, _, ..], Some(on_input)) => on_input,
        ([1, _, ..], None) => {
            return Err(
                "whether it scales inputs or outputs is said by an adapter_config.json that \
                        lists `feedforward_modules`, and there is none"
                    .into(),
            );
        }
        (shape, _) => return Err(format!("its factors are {shape:?}")),
    };
    let weight = Ia3 { stored, on_input, neutral: 1.0, is_bias: false };
    if on_input {
        return Ok(ModuleChange::Change(Box::new(weight)));
    }
    let bias = Ia3 { is_bias: true, ..weight.clone() };
    Ok(ModuleChange::WithBias(Box::new(weight), Box::new(bias)))
}

impl Ia3 {
    /// The axis of the weight along which the factors lie.
    fn axis(&self) -> usize {
        usize::from(self.on_input)
    }
}

impl Change for Ia3 {
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        let count = self.stored.count();
        if (shape.len() > 1) != self.is_bias && shape.get(self.axis()) == Some(&count) {
            return Ok(());
        }
        let side = if self.on_input { "inputs" } else { "outputs" };
        Err(format!("it scales {count} {side}, the weight is {shape:?}"))
    }

    fn is_optional(&self) -> bool {
        self.is_bias
    }

    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor> {
        let mut shape = vec![1; weight.rank()];
        if let Some(axis) = shape.get_mut(self.axis()) {
            *axis = self.stored.count();
        }
        let factors = self.stored.read()?.reshape(shape)?;
        let factors = factors.affine(strength, 1.0 - self.neutral * strength)?;
        Ok(weight.broadcast_mul(&factors)?)
    }
}
