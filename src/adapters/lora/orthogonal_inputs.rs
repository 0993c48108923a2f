//! PEFT's orthogonal families: a layer's inputs are rotated or reflected.
//!
//! OFT (Qiu et al., 2023) and BOFT (Liu et al., 2024) rotate groups of inputs, HRA (Yuan et al., 2024) reflects them.
//! The points of a convolution kernel count as inputs. What Kohya's tools and LyCORIS call OFT rotates outputs and is
//! another family.
//!
//! Strengths other than 1 interpolate linearly between the old weight and the new one.

use candle_core::{DType, Device, Tensor};

use super::change::{Change, ModuleChange, Stored, lerp};
use super::module::{Family, Parts};
use super::orthogonal_outputs::{add_identity, rotations};
use super::peft::OrthogonalOptions;
use crate::Result;

/// Maximum number of terms of the Neumann series; more do not change the result in f32.
const MOST_TERMS: usize = 64;

/// Number of inputs of a layer, including the kernel.
fn inputs(shape: &[usize]) -> Option<usize> {
    let [_, inputs @ ..] = shape else { return None };
    (!inputs.is_empty()).then(|| inputs.iter().product())
}

fn misfit(what: &str, shape: &[usize]) -> String {
    format!("it turns {what}, the weight is {shape:?}")
}

/// The weight as `(inputs, outputs)`, whose rows are multiplied by blocks.
fn by_inputs(weight: &Tensor) -> Result<Tensor> {
    Ok(weight.flatten_from(1)?.t()?.contiguous()?)
}

/// Converts from the layout of [`by_inputs`] back to a weight and interpolates with the old weight.
fn lerp_inputs(weight: &Tensor, by_inputs: &Tensor, strength: f64) -> Result<Tensor> {
    lerp(weight, &by_inputs.t()?.contiguous()?.reshape(weight.shape())?, strength)
}

pub(super) const OFT: Family =
    Family { name: "OFT", suffixes: &[(".oft_R.weight", "vectors")], mark: None, read: oft };

/// Rotations of groups of inputs, from the upper triangles of skew-symmetric matrices.
#[derive(Debug)]
struct Oft {
    /// `(groups, size * (size - 1) / 2)`; a single group is shared by all inputs.
    vectors: Stored,
    groups: usize,
    size: usize,
    orthogonal: OrthogonalOptions,
}

fn oft(parts: &Parts<'_>) -> Result<ModuleChange, String> {
    let vectors = parts.need("vectors")?;
    let &[groups, count] = vectors.shape() else {
        return Err(format!("its vectors are {:?}", vectors.shape()));
    };
    let size = usize::midpoint(count.saturating_mul(8).saturating_add(1).isqrt(), 1);
    if groups == 0 || count == 0 || size.saturating_mul(size - 1) / 2 != count {
        return Err(format!(
            "its vectors are [{groups}, {count}], not upper triangles of square matrices"
        ));
    }
    let orthogonal = parts.config.orthogonal;
    if let Some(terms) = orthogonal.terms.filter(|terms| *terms > MOST_TERMS) {
        return Err(format!("its series has {terms} terms, at most {MOST_TERMS} are computed"));
    }
    if orthogonal.bound.is_some_and(|bound| !bound.is_finite() || bound <= 0.0) {
        return Err("its bound (eps) is not positive".into());
    }
    Ok(ModuleChange::Change(Box::new(Oft { vectors, groups, size, orthogonal })))
}

impl Oft {
    /// The rotations, `(groups, size, size)`.
    fn blocks(&self) -> Result<Tensor> {
        let Self { groups, size, orthogonal, .. } = *self;
        let mut blocks = vec![0.0; groups * size * size];
        let vectors = self.vectors.read()?.to_vec2::<f32>()?;
        for (block, vector) in blocks.chunks_exact_mut(size * size).zip(vectors) {
            let above = (0..size).flat_map(|i| (i + 1..size).map(move |j| (i, j)));
            let norm = (2.0 * vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()).sqrt();
            let bound =
                orthogonal.bound.map_or(f64::INFINITY, |bound| bound / (groups as f64).sqrt());
            let shrink = if norm > bound { bound / norm } else { 1.0 };
            for ((i, j), value) in above.zip(vector) {
                block[i * size + j] = shrink * f64::from(value);
            }
        }
        let blocks = match orthogonal.terms {
            Some(terms) => neumann(&blocks, (groups, size), terms)?,
            None => {
                // The Cayley transform of the negative, PEFT's direction of rotation.
                for value in &mut blocks {
                    *value = -*value;
                }
                rotations(&mut blocks, size, None);
                Tensor::from_vec(blocks, (groups, size, size), &Device::Cpu)?
            }
        };
        Ok(blocks.to_dtype(DType::F32)?)
    }
}

/// The first terms of `(I + Q) (I - Q)^-1 = I + 2 Q + 2 Q^2 + ...`, with the last of them counted once as in PEFT; `Q`
/// is the upper triangles minus their transposes.
fn neumann(upper: &[f64], (groups, size): (usize, usize), terms: usize) -> Result<Tensor> {
    let mut sum = vec![0.0; groups * size * size];
    sum.chunks_exact_mut(size * size).for_each(|block| add_identity(block, size, 1.0));
    let mut sum = Tensor::from_vec(sum, (groups, size, size), &Device::Cpu)?;
    let upper = Tensor::from_slice(upper, (groups, size, size), &Device::Cpu)?;
    let skew = (&upper - upper.transpose(1, 2)?)?;
    let last = match terms {
        0 | 1 => 0,
        2 => 1,
        _ => (terms - 1).max(3),
    };
    let mut power = skew.clone();
    for exponent in 1..=last {
        let factor = if exponent == last && last > 1 { 1.0 } else { 2.0 };
        sum = (sum + (&power * factor)?)?;
        power = power.matmul(&skew)?;
    }
    Ok(sum)
}

impl Change for Oft {
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        let Self { groups, size, .. } = *self;
        let fit = inputs(shape).is_some_and(|inputs| match groups {
            1 => inputs.is_multiple_of(size),
            _ => groups.checked_mul(size) == Some(inputs),
        });
        let what = || format!("{groups} groups of {size} inputs");
        if fit { Ok(()) } else { Err(misfit(&what(), shape)) }
    }

    fn inputs(&self) -> Option<usize> {
        (self.groups > 1).then(|| self.groups.saturating_mul(self.size))
    }

    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor> {
        let x = by_inputs(weight)?;
        let (inputs, outputs) = x.dims2()?;
        let groups = x.reshape((inputs / self.size, self.size, outputs))?;
        let turned = self.blocks()?.broadcast_matmul(&groups)?.reshape((inputs, outputs))?;
        lerp_inputs(weight, &turned, strength)
    }
}

pub(super) const BOFT: Family = Family {
    name: "BOFT",
    suffixes: &[(".boft_R", "blocks"), (".boft_s", "factors")],
    mark: None,
    read: boft,
};

/// Rotations of groups of inputs, chained over a butterfly, and a factor per output.
#[derive(Debug)]
struct Boft {
    /// `(stages, groups, size, size)`.
    blocks: Stored,
    stages: usize,
    groups: usize,
    size: usize,
    factors: Stored,
}

fn boft(parts: &Parts<'_>) -> Result<ModuleChange, String> {
    let (blocks, factors) = (parts.need("blocks")?, parts.need("factors")?);
    let shape = blocks.shape();
    match *shape {
        [stages, groups, size, columns] if size == columns && !shape.contains(&0) => {
            Ok(ModuleChange::Change(Box::new(Boft { blocks, stages, groups, size, factors })))
        }
        _ => Err(format!("its blocks are {shape:?}, not stages of square matrices")),
    }
}

impl Change for Boft {
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        let Self { stages, groups, size, .. } = *self;
        let widest = u32::try_from(stages - 1)
            .ok()
            .and_then(|last| 1_usize.checked_shl(last)?.checked_mul(size));
        let fit = inputs(shape).is_some_and(|inputs| {
            let divides = widest.is_some_and(|widest| inputs.is_multiple_of(widest));
            let halves = stages == 1 || size.is_multiple_of(2);
            groups.checked_mul(size) == Some(inputs) && divides && halves
        });
        if !fit {
            let what = format!("{groups} groups of {size} inputs in {stages} stages");
            return Err(misfit(&what, shape));
        }
        let count = self.factors.count();
        if shape.first() != Some(&count) {
            return Err(format!("it scales {count} outputs, the weight is {shape:?}"));
        }
        Ok(())
    }

    fn inputs(&self) -> Option<usize> {
        Some(self.groups.saturating_mul(self.size))
    }

    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor> {
        let Self { stages, groups, size, .. } = *self;
        // The Cayley transform of half the negative, PEFT's direction of rotation.
        let stored = self.blocks.read()?.flatten_all()?.to_vec1::<f32>()?;
        let mut blocks: Vec<f64> = stored.iter().map(|value| -0.5 * f64::from(*value)).collect();
        rotations(&mut blocks, size, None);
        let blocks = Tensor::from_vec(blocks, (stages, groups, size, size), &Device::Cpu)?;
        let blocks = blocks.to_dtype(DType::F32)?;
        let mut x = by_inputs(weight)?;
        let (inputs, outputs) = x.dims2()?;
        for stage in 0..stages {
            // Half groups that are `apart` half groups apart are grouped together.
            let (apart, half) = (1 << stage, size / 2 * outputs);
            if stage > 0 {
                x = x.reshape(((), 2, apart, half))?.transpose(1, 2)?.contiguous()?;
            }
            x = blocks.get(stage)?.matmul(&x.reshape((groups, size, outputs))?)?;
            if stage > 0 {
                x = x.reshape(((), apart, 2, half))?.transpose(1, 2)?.contiguous()?;
            }
            x = x.reshape((inputs, outputs))?;
        }
        let factors = self.factors.read()?.reshape((1, outputs))?;
        lerp_inputs(weight, &x.broadcast_mul(&factors)?, strength)
    }
}

pub(super) const HRA: Family =
    Family { name: "HRA", suffixes: &[(".hra_u", "mirrors")], mark: None, read: hra };

/// A chain of reflections of the inputs.
#[derive(Debug)]
struct Hra {
    /// `(inputs, rank)`.
    mirrors: Stored,
    inputs: usize,
    rank: usize,
    is_orthogonal: bool,
}

fn hra(parts: &Parts<'_>) -> Result<ModuleChange, String> {
    let mirrors = parts.need("mirrors")?;
    match *mirrors.shape() {
        [inputs, rank] if inputs > 0 && rank > 0 => {
            let is_orthogonal = parts.config.orthogonal.is_orthogonal;
            Ok(ModuleChange::Change(Box::new(Hra { mirrors, inputs, rank, is_orthogonal })))
        }
        _ => Err(format!("its mirrors are {:?}", mirrors.shape())),
    }
}

impl Hra {
    /// The unit normals of the reflections; vectors of length 0 are omitted.
    fn normals(&self) -> Result<Vec<Vec<f64>>> {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut normals: Vec<Vec<f64>> = Vec::with_capacity(self.rank);
        for column in self.mirrors.read()?.t()?.to_vec2::<f32>()? {
            let mut column: Vec<f64> = column.into_iter().map(f64::from).collect();
            if self.is_orthogonal {
                for normal in &normals {
                    let along = dot(normal, &column);
                    column.iter_mut().zip(normal).for_each(|(x, n)| *x -= along * n);
                }
            }
            let length = dot(&column, &column).sqrt();
            if length > 0.0 {
                for x in &mut column {
                    *x /= length;
                }
                normals.push(column);
            }
        }
        Ok(normals)
    }
}

impl Change for Hra {
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        let fit = inputs(shape) == Some(self.inputs);
        if fit { Ok(()) } else { Err(misfit(&format!("{} inputs", self.inputs), shape)) }
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    fn inputs(&self) -> Option<usize> {
        Some(self.inputs)
    }

    fn apply(&self, weight: &Tensor, strength: f64) -> Result<Tensor> {
        let mut x = weight.flatten_from(1)?; // (outputs, inputs)
        for normal in self.normals()? {
            let normal: Vec<f32> = normal.into_iter().map(|value| value as f32).collect();
            let across = Tensor::from_vec(normal, (self.inputs, 1), &Device::Cpu)?;
            x = (&x - (x.matmul(&across)? * 2.0)?.matmul(&across.t()?)?)?;
        }
        lerp(weight, &x.reshape(weight.shape())?, strength)
    }
}
