//! OFT and BOFT of Kohya's tools and LyCORIS: groups of a layer's outputs are rotated.
//!
//! Qiu et al. (2023), orthogonal finetuning, as written by Kohya's tools and LyCORIS (diag-OFT), and Liu et al. (2024),
//! BOFT, whose rotations of small groups are chained over a butterfly of permutations so that all outputs mix. A
//! rotation is stored as a matrix and computed as the Cayley transform of its skew-symmetric part; early LyCORIS stored
//! the rotation itself. PEFT's adapters of these names rotate inputs and are another family. Alpha is not a scale here:
//! alpha times the number of outputs bounds the norm of the skew-symmetric parts.
//!
//! Strengths other than 1 interpolate linearly between the identity and the full rotation, for each stage of the
//! butterfly, and likewise for the optional factor of each output (`rescale`).

use candle_core::{Device, Tensor};

use super::change::{Change, ModuleChange, Stored};
use super::module::{Family, Parts};
use crate::Result;

pub(super) const FAMILY: Family = Family {
    name: "OFT",
    suffixes: &[(".oft_blocks", "blocks"), (".oft_diag", "rotations"), (".rescale", "rescale")],
    mark: None,
    read,
};

#[derive(Debug)]
struct Oft {
    /// `(groups, size, size)`, or `(stages, groups, size, size)` for a butterfly.
    blocks: Stored,
    /// Whether the stored blocks are already rotations.
    is_done: bool,
    /// Factors of the outputs.
    rescale: Option<Stored>,
    /// Bound of the norm, to be multiplied by the number of outputs.
    limit: Option<f64>,
}

fn read(parts: &Parts<'_>) -> Result<ModuleChange, String> {
    let rescale = parts.get("rescale");
    let (blocks, is_done) = match parts.get("rotations") {
        Some(rotations) => (rotations, true),
        None => (parts.need("blocks")?, false),
    };
    match blocks.shape() {
        shape @ [.., rows, columns] if rows == columns && !shape.contains(&0) => {}
        shape => return Err(format!("its blocks are {shape:?}, not square")),
    }
    if !matches!(blocks.shape().len(), 3 | 4) {
        return Err(format!("its blocks are {:?}", blocks.shape()));
    }
    Ok(ModuleChange::Change(Box::new(Oft { blocks, is_done, rescale, limit: parts.alpha })))
}

impl Change for Oft {
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        let blocks = self.blocks.shape();
        let outputs = shape.first().copied().unwrap_or(0);
        let fit = match blocks {
            [groups, size, _] => groups.saturating_mul(*size) == outputs,
            [stages, groups, size, _] => {
                let widest = u32::try_from(stages.saturating_sub(1))
                    .ok()
                    .and_then(|last| 1_usize.checked_shl(last)?.checked_mul(*size));
                let divides = widest.is_some_and(|widest| outputs.is_multiple_of(widest));
                groups.saturating_mul(*size) == outputs && size.is_multiple_of(2) && divides
            }
            _ => false,
        };
        if !fit || shape.len() < 2 {
            return Err(format!("it turns blocks of {blocks:?}, the weight is {shape:?}"));
        }
        match &self.rescale {
            Some(rescale) if rescale.count() != outputs => {
                Err(format!("it rescales {} outputs, the weight is {shape:?}", rescale.count()))
            }
            _ => Ok(()),
        }
    }

    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor> {
        let outputs = weight.dim(0)?;
        let limit = self.limit.map(|limit| limit * outputs as f64);
        let stored = self.blocks.read()?;
        let size = stored.dim(stored.rank() - 1)?;
        let groups = outputs / size;
        let mut blocks: Vec<f64> =
            stored.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
        if !self.is_done {
            rotations(&mut blocks, size, limit);
        }
        interpolate(&mut blocks, size, strength);
        let blocks: Vec<f32> = blocks.into_iter().map(|value| value as f32).collect();
        let stages = blocks.len() / (outputs * size);
        let blocks = Tensor::from_vec(blocks, (stages, groups, size, size), &Device::Cpu)?;

        let flat = weight.flatten_from(1)?; // (outputs, inputs * kernel)
        let turned = if stored.rank() == 3 {
            // Diagonal blocks are stored transposed.
            let blocks = blocks.squeeze(0)?.transpose(1, 2)?.contiguous()?;
            blocks.matmul(&flat.reshape((groups, size, ()))?)?.reshape(flat.shape())?
        } else {
            let mut turned = flat;
            for stage in 0..stages {
                turned = butterfly(&blocks.get(stage)?, &turned, stage)?;
            }
            turned
        };
        let turned = match &self.rescale {
            None => turned,
            Some(rescale) => {
                let factors = rescale.read()?.reshape((outputs, 1))?;
                turned.broadcast_mul(&factors.affine(strength, 1.0 - strength)?)?
            }
        };
        Ok(turned.reshape(weight.shape())?)
    }
}

/// Applies a stage of a butterfly: outputs that are `2^stage * size / 2` apart are grouped, rotated in groups and moved
/// back. `blocks` is `(groups, size, size)`, `x` is `(outputs, columns)`.
fn butterfly(blocks: &Tensor, x: &Tensor, stage: usize) -> Result<Tensor> {
    let (groups, size, _) = blocks.dims3()?;
    let columns = x.dim(1)?;
    let apart = (size / 2) << stage;
    let x = x
        .reshape(((), 2, apart, columns))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((groups, size, columns))?;
    let x = blocks
        .matmul(&x)?
        .reshape(((), apart, 2, columns))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((groups * size, columns))?;
    Ok(x)
}

/// Replaces every block by `(I + Q) (I - Q)^-1`, where `Q` is the block minus its transpose, scaled down so that the
/// norm of all of them is at most `limit`.
pub(super) fn rotations(blocks: &mut [f64], size: usize, limit: Option<f64>) {
    let mut squares = 0.0;
    for block in blocks.chunks_exact_mut(size * size) {
        for i in 0..size {
            for j in 0..=i {
                let skew = block[i * size + j] - block[j * size + i];
                block[i * size + j] = skew;
                block[j * size + i] = -skew;
                squares += 2.0 * skew * skew;
            }
        }
    }
    let norm = squares.sqrt() + 1e-8;
    let shrink = limit.filter(|limit| norm > *limit).map_or(1.0, |limit| limit / norm);
    let mut work = vec![0.0; size * size];
    for block in blocks.chunks_exact_mut(size * size) {
        for (to, from) in work.iter_mut().zip(&*block) {
            *to = -shrink * from;
        }
        add_identity(&mut work, size, 1.0);
        invert(&mut work, block, size);
        // (I + Q) (I - Q)^-1 = 2 (I - Q)^-1 - I.
        for value in block.iter_mut() {
            *value *= 2.0;
        }
        add_identity(block, size, -1.0);
    }
}

/// Interpolates every block with the identity: `strength * block + (1 - strength) * I`.
fn interpolate(blocks: &mut [f64], size: usize, strength: f64) {
    for block in blocks.chunks_exact_mut(size * size) {
        for value in block.iter_mut() {
            *value *= strength;
        }
        add_identity(block, size, 1.0 - strength);
    }
}

pub(super) fn add_identity(block: &mut [f64], size: usize, value: f64) {
    block.iter_mut().step_by(size + 1).for_each(|diagonal| *diagonal += value);
}

/// Gauss-Jordan inverse of the identity minus a skew-symmetric matrix. It needs no pivoting: the symmetric part of the
/// remaining matrix stays at least the identity after each step, so pivots are at least 1.
fn invert(matrix: &mut [f64], inverse: &mut [f64], size: usize) {
    inverse.fill(0.0);
    add_identity(inverse, size, 1.0);
    for pivot in 0..size {
        let scale = 1.0 / matrix[pivot * size + pivot];
        for matrix in [&mut *matrix, &mut *inverse] {
            matrix[pivot * size..(pivot + 1) * size].iter_mut().for_each(|value| *value *= scale);
        }
        for row in (0..size).filter(|row| *row != pivot) {
            let factor = matrix[row * size + pivot];
            for matrix in [&mut *matrix, &mut *inverse] {
                for column in 0..size {
                    matrix[row * size + column] -= factor * matrix[pivot * size + column];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two blocks of irregular values.
    fn blocks(size: usize) -> Vec<f64> {
        (0..2 * size * size).map(|i| ((i * 37 % 23) as f64 - 11.0) / 7.0).collect()
    }

    #[test]
    fn rotations_keep_lengths() {
        let size = 5;
        let mut blocks = blocks(size);
        rotations(&mut blocks, size, None);
        for block in blocks.chunks_exact(size * size) {
            for i in 0..size {
                for j in 0..size {
                    let product: f64 =
                        (0..size).map(|k| block[i * size + k] * block[j * size + k]).sum();
                    let want = f64::from(u8::from(i == j));
                    assert!((product - want).abs() < 1e-12, "{i} {j}: {product}");
                }
            }
        }
    }

    #[test]
    fn a_limit_of_nothing_turns_nothing() {
        let size = 3;
        let mut blocks = blocks(size);
        rotations(&mut blocks, size, Some(1e-300));
        for (i, value) in blocks.iter().enumerate() {
            let on_diagonal = (i % (size * size)).is_multiple_of(size + 1);
            assert!((value - f64::from(u8::from(on_diagonal))).abs() < 1e-12);
        }
    }
}
