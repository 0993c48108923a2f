//! Changes of single weights.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::weights::Archive;

/// A change of one weight.
pub(super) trait Change: fmt::Debug + Send + Sync {
    /// Checks that the change fits a weight of this shape; the error is the reason.
    fn check(&self, shape: &[usize]) -> Result<(), String>;

    /// The rank, if the change has one.
    fn rank(&self) -> Option<usize> {
        None
    }

    /// The number of inputs of the layer the change was made for, if known.
    fn inputs(&self) -> Option<usize> {
        None
    }

    /// Returns whether the weight may be absent: the change accompanies another one of the same layer.
    fn is_optional(&self) -> bool {
        false
    }

    /// The changed weight, with the same shape in `f32`. Strength 0 leaves the weight unchanged.
    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor>;
}

/// A change that is added to the weight. DoRA can be combined with any of these.
pub(super) trait Delta: fmt::Debug + Send + Sync {
    /// The shape as far as known: `(rows, inputs, *kernel)` or `(rows, inputs * kernel)`.
    fn shape(&self) -> Vec<usize>;

    /// The rank, if the change has one.
    fn rank(&self) -> Option<usize>;

    /// The values to add at a strength, in `f32`, as many as [`shape`](Self::shape) has.
    ///
    /// The change is usually a product of small matrices; the strength is applied to one of those because it is
    /// cheapest.
    fn read(&self, strength: f64) -> Result<Tensor>;
}

/// Changes created by a family for one module.
#[derive(Debug)]
pub(super) enum ModuleChange {
    /// An additive change.
    Delta(Box<dyn Delta>),
    /// Any other change.
    Change(Box<dyn Change>),
    /// Any other change, with a change of the layer's bias.
    WithBias(Box<dyn Change>, Box<dyn Change>),
}

/// Adds a delta, scaled by the strength.
#[derive(Debug)]
pub(super) struct AddDelta(pub(super) Box<dyn Delta>);

impl Change for AddDelta {
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        fits(&self.0.shape(), shape)
    }

    fn rank(&self) -> Option<usize> {
        self.0.rank()
    }

    fn inputs(&self) -> Option<usize> {
        self.0.shape().get(1).copied()
    }

    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor> {
        Ok((weight + self.0.read(strength)?.reshape(weight.shape())?)?)
    }
}

/// Linear interpolation from `weight` at strength 0 to `target` at strength 1.
pub(super) fn lerp(weight: &Tensor, target: &Tensor, strength: f64) -> Result<Tensor> {
    Ok((weight.affine(1.0 - strength, 0.0)? + target.affine(strength, 0.0)?)?)
}

/// Checks that a change of shape `ours` fits a weight of shape `theirs`; the error is the reason.
pub(super) fn fits(ours: &[usize], theirs: &[usize]) -> Result<(), String> {
    let same = match (ours, theirs) {
        // A linear layer and a 1x1 convolution are equivalent.
        ([rows, inputs, kernel @ ..], [their_rows, their_inputs, their_kernel @ ..])
            if !kernel.is_empty() =>
        {
            let points = [kernel, their_kernel].iter().all(|kernel| kernel.iter().all(|d| *d == 1));
            rows == their_rows && inputs == their_inputs && (kernel == their_kernel || points)
        }
        // Many files flatten the kernel into the inputs.
        ([rows, columns], [their_rows, rest @ ..]) => {
            rows == their_rows && !rest.is_empty() && *columns == rest.iter().product::<usize>()
        }
        _ => ours == theirs,
    };
    if same { Ok(()) } else { Err(format!("it changes {ours:?}, the weight is {theirs:?}")) }
}

/// A tensor in an open file, read on demand.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    archive: Arc<Archive>,
    name: String,
    shape: Vec<usize>,
}

impl Stored {
    /// The tensor with this name, if there is one.
    pub(super) fn find(archive: &Arc<Archive>, name: &str) -> Option<Self> {
        let shape = archive.info(name)?.shape.clone();
        Some(Self { archive: Arc::clone(archive), name: name.to_owned(), shape })
    }

    /// The shape of the tensor.
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub(super) fn count(&self) -> usize {
        self.shape.iter().fold(1, |count: usize, dim| count.saturating_mul(*dim))
    }

    /// The values, if there are at most `most`.
    pub(super) fn values(&self, most: usize) -> Result<Vec<f32>> {
        self.archive.values(&self.name, most)
    }

    /// The tensor in `f32` on the CPU.
    pub(super) fn read(&self) -> Result<Tensor> {
        self.archive.tensor(&self.name, DType::F32, &Device::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_fit_in_every_spelling_of_a_convolution() {
        for (ours, theirs, fit) in [
            (&[8, 4][..], &[8, 4][..], true),
            (&[8, 4], &[8, 4, 1, 1], true),
            (&[8, 4, 1, 1], &[8, 4], true),
            (&[8, 36], &[8, 4, 3, 3], true),
            (&[8, 4, 3, 3], &[8, 4, 3, 3], true),
            (&[8], &[8], true),
            (&[8, 4, 3, 3], &[8, 36], false),
            (&[8, 4, 3, 3], &[8, 4, 1, 1], false),
            (&[8, 4], &[8, 4, 3, 3], false),
            (&[4, 8], &[8, 4], false),
            (&[8, 1], &[8], false),
            (&[8], &[8, 1], false),
        ] {
            assert_eq!(fits(ours, theirs).is_ok(), fit, "{ours:?} on {theirs:?}");
        }
    }
}
