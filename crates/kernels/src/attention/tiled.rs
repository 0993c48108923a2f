//! Long sequences as in `long.rs`, in the matrix unit: more queries at a time, fewer keys.

use super::long::Piece;
use super::{Inputs, Operand, width};
use crate::cpu::amx::{BYTES, Left, ROWS};
use crate::cpu::float::Float;
use crate::cpu::isa::Loops;
use crate::cpu::math;
use crate::cpu::microkernel::{LANES, PANEL};

/// Keys that a few queries meet at once; whole panels.
const KEYS: usize = 4 * PANEL;

/// A piece within [`with_tiles`](crate::cpu::amx::with_tiles).
pub(super) struct Tiled<'a, T, E>(pub(super) Piece<'a, T, E>);

impl<T: Float, E: Operand> Loops for Tiled<'_, T, E> {
    type Output = ();

    #[allow(unsafe_code)]
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Piece { unit, first, end, inputs, out, scratch } = self.0;
        let Inputs { keys, scale, operands: [q, k, v], .. } = *inputs;
        let [_, queries, places, heads, dim] = q.dims;
        let step = BYTES / size_of::<E>();
        let (length, padded) = (dim.next_multiple_of(step), keys.next_multiple_of(step));
        scratch.pack(&unit, [k, v], (keys, padded), (dim, length));
        let zero = E::default();
        scratch.queries.resize(ROWS * length);
        scratch.scores.resize(ROWS * KEYS);
        scratch.weights.resize(ROWS * KEYS);
        scratch.sums.resize(ROWS * dim.next_multiple_of(LANES));
        for query in (first..end).step_by(ROWS) {
            let rows = ROWS.min(end - query);
            for (r, to) in scratch.queries.chunks_exact_mut(length).enumerate() {
                let row = q.token(&unit, query + r.min(rows - 1));
                to.iter_mut().zip(row).for_each(|(to, from)| *to = E::exactly(from.widen()));
                to[dim..].fill(zero);
            }
            let mut maxima = [f32::NEG_INFINITY; ROWS];
            let mut totals = [0f32; ROWS];
            for start in (0..keys).step_by(KEYS) {
                let count = KEYS.min(keys - start);
                let wide = count.next_multiple_of(step);
                let left = Left::new(&scratch.queries, length, length);
                for key in (0..wide).step_by(PANEL) {
                    let panel = &scratch.keys[(start + key) * length..];
                    let scores = (&mut scratch.scores[key..], KEYS);
                    left.multiply(panel, (wide - key).min(PANEL), scores, true);
                }
                let scores = scratch.scores.chunks_exact_mut(KEYS);
                let rows_of_both = scores.zip(scratch.weights.chunks_exact_mut(KEYS));
                for (r, (scores, weights)) in rows_of_both.enumerate().take(rows) {
                    let scores = &mut scores[..wide];
                    scale.turn(scores);
                    // Keys that are padding get no weight.
                    scores[count..].fill(f32::NEG_INFINITY);
                    // SAFETY: this runs in tiles.
                    let (maximum, total) =
                        unsafe { E::exponentials(scores, maxima[r], scale.size, weights) };
                    if start > 0 && maximum > maxima[r] {
                        let factor = math::exp_negative::<FMA>((maxima[r] - maximum) * scale.size);
                        totals[r] *= factor;
                        for column in (0..dim).step_by(PANEL) {
                            let width = width(dim, column);
                            let row = &mut scratch.sums[column * ROWS + r * width..][..width];
                            for v in row {
                                *v *= factor;
                            }
                        }
                    }
                    totals[r] += total;
                    maxima[r] = maximum;
                }
                let left = Left::new(&scratch.weights, KEYS, wide);
                for column in (0..dim).step_by(PANEL) {
                    let width = width(dim, column);
                    let panel = &scratch.values[column * padded + start * width..];
                    let sums = (&mut scratch.sums[column * ROWS..], width);
                    left.multiply(panel, width, sums, start == 0);
                }
            }
            for (r, total) in totals.iter().enumerate().take(rows) {
                let token = unit.batch * queries + query + r;
                let at = ((token * places + unit.place) * heads + unit.head) * dim;
                // SAFETY: a task alone has these queries of this head.
                let out = unsafe { out.part(at, dim) };
                for column in (0..dim).step_by(PANEL) {
                    let width = width(dim, column);
                    let row = &scratch.sums[column * ROWS + r * width..][..width];
                    for (to, from) in out[column..].iter_mut().zip(row) {
                        to.write(T::narrow(from / total));
                    }
                }
            }
        }
    }
}
