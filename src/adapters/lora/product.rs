//! Products of two low-rank matrices, optionally with a core between them.

use candle_core::Tensor;

use super::change::Stored;
use super::module::Parts;
use crate::Result;

/// A matrix product `a b`, or a Tucker decomposition with a core between the two.
#[derive(Debug)]
pub(super) struct Product {
    /// `(rows, rank)`; `(rank, rows)` with a core.
    a: Stored,
    /// `(rank, inputs)`; for convolutions `(rank, inputs, *kernel)` or `(rank, inputs * kernel)`.
    b: Stored,
    /// `(rank, rank, *kernel)`.
    core: Option<Stored>,
    /// `(rows, inputs, *kernel)`.
    shape: Vec<usize>,
    rank: usize,
}

impl Product {
    /// Finds the parts with these names and checks that their shapes are compatible.
    pub(super) fn new(parts: &Parts<'_>, [a, b, core]: [&'static str; 3]) -> Result<Self, String> {
        let names = [a, b];
        let (a, b, core) = (parts.need(a)?, parts.need(b)?, parts.get(core));
        let apart = || {
            let [first, second] = names;
            let (a, b) = (a.shape(), b.shape());
            let core = core.as_ref().map(|core| format!(" and core {:?}", core.shape()));
            let core = core.unwrap_or_default();
            format!("{first} {a:?} and {second} {b:?}{core} do not go together")
        };
        let (shape, rank) = match (a.shape(), b.shape(), core.as_ref().map(Stored::shape)) {
            ([rows, a_rank, points @ ..], [rank, rest @ ..], None)
                if a_rank == rank && points.iter().all(|d| *d == 1) && !rest.is_empty() =>
            {
                ([&[*rows], rest].concat(), *rank)
            }
            ([a_rank, rows], [rank, inputs], Some([outer, inner, kernel @ ..]))
                if a_rank == outer && rank == inner =>
            {
                ([&[*rows, *inputs], kernel].concat(), *rank)
            }
            _ => return Err(apart()),
        };
        if rank == 0 {
            return Err(apart());
        }
        Ok(Self { a, b, core, shape, rank })
    }

    /// `(rows, inputs, *kernel)`; the kernel may be flattened into the inputs.
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The rank: the number of rows of `b`.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// The product times a factor, `(rows, inputs * kernel)`.
    pub(super) fn read(&self, factor: f64) -> Result<Tensor> {
        let (a, b) = ((self.a.read()? * factor)?, self.b.read()?);
        match &self.core {
            None => Ok(a.flatten_from(1)?.matmul(&b.flatten_from(1)?)?),
            Some(core) => tucker(&a.t()?.contiguous()?, &core.read()?, &b),
        }
    }
}

/// Multiplies out a Tucker decomposition: `a` is `(rows, outer)`, `core` `(outer, inner, *kernel)` and `b`
/// `(inner, inputs)`; the result is `(rows, inputs * kernel)`.
pub(super) fn tucker(a: &Tensor, core: &Tensor, b: &Tensor) -> Result<Tensor> {
    let core = core.flatten_from(2)?.transpose(1, 2)?; // (outer, kernel, inner)
    let (outer, kernel, inner) = core.dims3()?;
    let inputs = b.dim(1)?;
    let wide = core
        .contiguous()?
        .reshape((outer * kernel, inner))?
        .matmul(b)?
        .reshape((outer, kernel, inputs))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((outer, inputs * kernel))?;
    Ok(a.matmul(&wide)?)
}
