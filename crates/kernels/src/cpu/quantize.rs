//! Dynamic quantization of rows to integers from 0 to 255, each with a scale and an offset, for products with 8-bit
//! weights.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::buffer::filled;
use super::float::{Float, Stored};
use super::gemm::RowScales;
use super::isa::{Isa, Loops};
use super::lanes::Lanes;
use super::math;
use super::microkernel::LANES;

/// The greatest quantized value.
const MOST: f32 = 255.0;

/// Ranges below it become a single number, so that no reciprocal is infinite.
const NARROWEST: f32 = 1e-30;

/// Storage types of quantized values.
pub(crate) trait QuantizedInt: Stored {
    /// Rounds a value from 0 to 255 to the nearest integer.
    fn round(value: f32) -> Self;
}

impl QuantizedInt for u8 {
    #[inline(always)]
    fn round(value: f32) -> Self {
        // The lowest bits; a cast would be checked value by value.
        (value + math::ROUND).to_bits() as Self
    }
}

impl QuantizedInt for f32 {
    #[inline(always)]
    fn round(value: f32) -> Self {
        value + math::ROUND - math::ROUND
    }
}

/// A matrix whose values are `offset + scale · n` of their row.
pub(crate) struct QuantizedRows<W> {
    pub(crate) values: Vec<W>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

impl<W: QuantizedInt> QuantizedRows<W> {
    /// Quantizes rows of `length` values. The scale of a row with NaN or an infinity is NaN.
    #[allow(unsafe_code)]
    pub(crate) fn new<T: Float>(isa: Isa, x: &[T], length: usize) -> Self {
        /// Minimum number of rows of a task.
        const ROWS: usize = 32;
        let count = x.len().checked_div(length).unwrap_or(0);
        let (mut scales, mut offsets) = (vec![0f32; count], vec![0f32; count]);
        let fill = |values: &mut [MaybeUninit<W>]| {
            let rows = (values.par_chunks_exact_mut(length)).zip(x.par_chunks_exact(length));
            rows.zip(scales.par_iter_mut().zip(&mut offsets)).with_min_len(ROWS).for_each(
                |((to, row), (scale, offset))| {
                    (*scale, *offset) = isa.vectorize(Round { row, to });
                },
            );
        };
        // SAFETY: each value is in a row, and each row is rounded whole.
        let values = unsafe { filled(count * length, W::default(), fill) };
        Self { values, scales, offsets }
    }

    /// The dequantization for a product with a matrix whose columns add up to `totals`.
    pub(crate) fn rows<'a>(&'a self, totals: &'a [f32]) -> RowScales<'a> {
        RowScales { scales: &self.scales, offsets: &self.offsets, totals }
    }
}

/// Writes a row, and returns its scale and its least value.
struct Round<'a, T, W> {
    row: &'a [T],
    to: &'a mut [MaybeUninit<W>],
}

impl<T: Float, W: QuantizedInt> Loops for Round<'_, T, W> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<const FMA: bool>(self) -> (f32, f32) {
        let (whole, rest) = self.row.as_chunks::<LANES>();
        let mut most = Lanes([f32::NEG_INFINITY; LANES]);
        // Negated, so that it is a greatest value, too.
        let mut least = most;
        // Stays 0 unless a value is infinite or NaN.
        let mut poison = Lanes::ZERO;
        for values in whole {
            let values = Lanes::read(values);
            most = most.greatest(values);
            least = least.greatest(values * -1.0);
            poison = poison.plus::<FMA>(values, 0.0);
        }
        let (mut most, mut least, mut poison) = (most.most(), -least.most(), poison.total());
        for value in rest {
            let value = value.widen();
            most = if value > most { value } else { most };
            least = if value < least { value } else { least };
            poison += value * 0.0;
        }
        let range = most - least;
        let per_unit = if range > NARROWEST { MOST / range } else { 0.0 };
        for (to, value) in self.to.iter_mut().zip(self.row) {
            to.write(W::round((value.widen() - least) * per_unit));
        }
        (range / MOST + poison, least)
    }
}
