//! DoRA: stores the magnitudes of the changed weight's rows or columns in addition to the change.
//!
//! Liu et al. (2024). Can be combined with any additive family. The paper and PEFT store magnitudes of rows (one per
//! output), LyCORIS those of rows or, in earlier versions, of columns (one per input), which is derived from the shape.
//!
//! Implementations disagree about strengths other than 1, and two of them change the weight at strength 0. Here the
//! weight is interpolated linearly between the old and the new one, as in ComfyUI.

use candle_core::{D, DType, Tensor};

use super::change::{Change, Delta, Stored, fits, lerp};
use super::module::Parts;
use crate::Result;

/// Epsilon that LyCORIS adds to the norm before dividing.
const LYCORIS_EPSILON: f64 = f32::EPSILON as f64;
/// Epsilon that avoids a division by zero for rows of zeros.
const EPSILON: f64 = 1e-30;

/// A delta with magnitudes.
#[derive(Debug)]
pub(super) struct Dora {
    delta: Box<dyn Delta>,
    lengths: Stored,
    /// Whether the magnitudes are in PEFT's format, which always has those of rows.
    is_peft: bool,
}

/// The axis of the magnitudes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Along {
    Rows,
    Inputs,
}

impl Dora {
    /// Combines a module's delta with its stored magnitudes.
    pub(super) fn new(delta: Box<dyn Delta>, parts: &Parts<'_>) -> Result<Self, String> {
        match (parts.get("dora_scale"), parts.get("magnitude")) {
            (Some(_), Some(_)) => Err("it has two magnitudes (DoRA)".into()),
            (Some(lengths), None) => Ok(Self { delta, lengths, is_peft: false }),
            (None, Some(lengths)) => Ok(Self { delta, lengths, is_peft: true }),
            (None, None) => Err("it has no magnitude".into()),
        }
    }

    fn along(&self, weight: &[usize]) -> Option<Along> {
        let [rows, inputs, ..] = weight else { return None };
        let lengths = self.lengths.shape();
        let count = self.lengths.count();
        if count == *rows && (self.is_peft || lengths.first() == Some(rows)) {
            Some(Along::Rows)
        } else if count == *inputs && !self.is_peft && lengths.get(1) == Some(inputs) {
            Some(Along::Inputs)
        } else {
            None
        }
    }
}

impl Change for Dora {
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        fits(&self.delta.shape(), shape)?;
        match self.along(shape) {
            Some(_) => Ok(()),
            None => {
                let lengths = self.lengths.shape();
                Err(format!("its magnitude (DoRA) is {lengths:?}, the weight is {shape:?}"))
            }
        }
    }

    fn rank(&self) -> Option<usize> {
        self.delta.rank()
    }

    fn inputs(&self) -> Option<usize> {
        self.delta.shape().get(1).copied()
    }

    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor> {
        let changed = (weight + self.delta.read(1.0)?.reshape(weight.shape())?)?;
        let (rows, inputs) = (weight.dim(0)?, weight.dim(1)?);
        let flat = changed.reshape((rows, inputs, ()))?; // (rows, inputs, kernel)
        let squares = flat.to_dtype(DType::F64)?.sqr()?.sum_keepdim(D::Minus1)?;
        let (squares, shape) = match self.along(weight.dims()) {
            Some(Along::Inputs) => (squares.sum_keepdim(0)?, (1, inputs, 1)),
            _ => (squares.sum_keepdim(1)?, (rows, 1, 1)),
        };
        let epsilon = if self.is_peft { EPSILON } else { LYCORIS_EPSILON };
        let lengths = self.lengths.read()?.reshape(shape)?.to_dtype(DType::F64)?;
        let factors = (lengths / squares.sqrt()?.affine(1.0, epsilon)?)?.to_dtype(DType::F32)?;
        lerp(weight, &flat.broadcast_mul(&factors)?.reshape(weight.shape())?, strength)
    }
}
