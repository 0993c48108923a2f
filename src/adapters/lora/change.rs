//! How one weight is changed.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::weights::Archive;

/// One change of one weight.
pub(super) trait Change: fmt::Debug + Send + Sync {
    /// Whether it fits a weight of this shape; if not, why.
    fn check(&self, shape: &[usize]) -> Result<(), String>;

    /// The rank, if it has one.
    fn rank(&self) -> Option<usize> {
        None
    }

    /// The inputs of the layer that it was made for, if it tells.
    fn inputs(&self) -> Option<usize> {
        None
    }

    /// Whether a model without the weight is as well: the change follows another one of the same layer.
    fn is_optional(&self) -> bool {
        false
    }

    /// The changed weight: same shape, `f32`. At strength 0 it is the weight as it was.
    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor>;
}

/// A change that is added. DoRA may stand over any of these.
pub(super) trait Delta: fmt::Debug + Send + Sync {
    /// Its shape as far as the file tells: rows, inputs and the kernel, or rows and inputs times kernel.
    fn shape(&self) -> Vec<usize>;

    /// The rank, if it has one.
    fn rank(&self) -> Option<usize>;

    /// What is added at a strength: as many values as [`shape`](Self::shape) says, `f32`.
    ///
    /// It is a product of small matrices mostly, and the strength costs least in one of those.
    fn read(&self, strength: f64) -> Result<Tensor>;
}

/// What a family makes of a module.
#[derive(Debug)]
pub(super) enum Made {
    /// Something to add.
    Delta(Box<dyn Delta>),
    /// Something else.
    Change(Box<dyn Change>),
    /// Something else, and a change of the layer's bias.
    WithBias(Box<dyn Change>, Box<dyn Change>),
}

/// Adds a delta, times the strength.
#[derive(Debug)]
pub(super) struct Added(pub(super) Box<dyn Delta>);

impl Change for Added {
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

/// As far as `strength` on the straight way from a weight to another: 1 is the other.
pub(super) fn between(weight: &Tensor, target: &Tensor, strength: f64) -> Result<Tensor> {
    Ok((weight.affine(1.0 - strength, 0.0)? + target.affine(strength, 0.0)?)?)
}

/// Whether a change of shape `ours` fits a weight of shape `theirs`; if not, why.
pub(super) fn fits(ours: &[usize], theirs: &[usize]) -> Result<(), String> {
    let same = match (ours, theirs) {
        // A linear layer and a 1x1 convolution are the same thing in two spellings.
        ([rows, inputs, kernel @ ..], [their_rows, their_inputs, their_kernel @ ..])
            if !kernel.is_empty() =>
        {
            let points = [kernel, their_kernel].iter().all(|kernel| kernel.iter().all(|d| *d == 1));
            rows == their_rows && inputs == their_inputs && (kernel == their_kernel || points)
        }
        // Many files have the kernel flattened into the inputs.
        ([rows, columns], [their_rows, rest @ ..]) => {
            rows == their_rows && !rest.is_empty() && *columns == rest.iter().product::<usize>()
        }
        _ => ours == theirs,
    };
    if same { Ok(()) } else { Err(format!("it changes {ours:?}, the weight is {theirs:?}")) }
}

/// A tensor in an open file: read when it is needed, not before.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    archive: Arc<Archive>,
    name: String,
    shape: Vec<usize>,
}

impl Stored {
    /// The tensor of that name, if there is one.
    pub(super) fn find(archive: &Arc<Archive>, name: &str) -> Option<Self> {
        let shape = archive.info(name)?.shape.clone();
        Some(Self { archive: Arc::clone(archive), name: name.to_owned(), shape })
    }

    /// Its shape.
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many values it has.
    pub(super) fn count(&self) -> usize {
        self.shape.iter().fold(1, |count: usize, dim| count.saturating_mul(*dim))
    }

    /// Its values, if there are no more than `most`.
    pub(super) fn values(&self, most: usize) -> Result<Vec<f32>> {
        self.archive.values(&self.name, most)
    }

    /// Its values in `f32` on the CPU.
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
