//! Short sequences at neighbouring places: motion modules, whose sequences are the frames at one place. What lies far
//! apart is read once, in long rows.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Inputs, Operand, Scale, Scratch, Unit, exponentials, width};
use crate::cpu::buffer::Shared;
use crate::cpu::float::Float;
use crate::cpu::isa::{Isa, Loops};
use crate::cpu::lanes::Lanes;
use crate::cpu::microkernel::{LANES, PANEL, Product, ROWS};

/// Whole sequences of at most [`SHORT`](super::SHORT) queries and keys.
pub(super) struct Short<'a, T, E> {
    pub(super) batch: usize,
    pub(super) places: Range<usize>,
    pub(super) inputs: &'a Inputs<'a, T>,
    /// The result, of the shape of the queries.
    pub(super) out: &'a Shared<'a, MaybeUninit<T>>,
    pub(super) scratch: &'a mut Scratch<E>,
}

impl<T: Float, E: Operand> Loops for Short<'_, T, E> {
    type Output = ();

    #[allow(unsafe_code)]
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { batch, places: here, inputs, out, scratch } = self;
        let Inputs { keys, scale, isa, operands } = *inputs;
        let [_, queries, places, heads, dim] = operands[0].dims;
        let width = here.len() * heads * dim;
        // No power of two, which would send all rows to the same few lines of a cache; and room for whole lanes.
        let pitch = width.next_multiple_of(2 * LANES) + LANES;
        let Scratch { rows, .. } = scratch;
        let tokens = [queries, keys, keys];
        for ((view, rows), tokens) in operands.iter().zip(rows).zip(tokens) {
            rows.resize(tokens * pitch, E::default());
            // Heads side by side are read as one.
            let whole = view.stride[2] == heads * dim && view.stride[3] == dim;
            let (length, of_place) = if whole { (width, 1) } else { (dim, heads) };
            for (token, row) in rows.chunks_exact_mut(pitch).enumerate() {
                for (i, to) in row[..width].chunks_exact_mut(length).enumerate() {
                    let (place, head) = (here.start + i / of_place, i % of_place);
                    let from = view.values(&Unit { batch, place, head }, token, length);
                    to.iter_mut().zip(from).for_each(|(to, v)| *to = E::exactly(v.widen()));
                }
            }
        }
        for at in (0..width).step_by(dim) {
            let sequence = Sequence { at, pitch, queries, keys, dim };
            scratch.pack_rows(&sequence);
            scratch.meet_rows::<FMA>(isa, &sequence, scale);
        }
        let rows = scratch.rows[0].chunks_exact(pitch);
        for (token, row) in rows.take(queries).enumerate() {
            let at = ((batch * queries + token) * places + here.start) * heads * dim;
            // SAFETY: a task alone has these places.
            let out = unsafe { out.part(at, width) };
            for (to, from) in out.iter_mut().zip(row) {
                to.write(T::narrow(from.widen()));
            }
        }
    }
}

/// A sequence within the rows of [`Short`]: the first value, the length of a row, and the sizes.
struct Sequence {
    at: usize,
    pitch: usize,
    queries: usize,
    keys: usize,
    dim: usize,
}

impl<E: Operand> Scratch<E> {
    /// Packs keys and values of a sequence.
    #[inline(always)]
    fn pack_rows(&mut self, sequence: &Sequence) {
        let Sequence { at, pitch, keys, dim, .. } = *sequence;
        let lanes = keys.next_multiple_of(LANES);
        let inner = keys.next_multiple_of(E::GROUP);
        let zero = E::default();
        let Self { keys: turned, values: panels, rows: [_, key_rows, value_rows], .. } = self;
        turned.resize(dim * lanes);
        for key in 0..lanes {
            let groups = turned[key * E::GROUP..].chunks_mut(lanes * E::GROUP);
            if key < keys {
                let row = &key_rows[key * pitch + at..][..dim];
                for (to, from) in groups.zip(row.chunks_exact(E::GROUP)) {
                    to[..E::GROUP].copy_from_slice(from);
                }
            } else {
                groups.for_each(|to| to[..E::GROUP].fill(zero));
            }
        }
        panels.resize(inner * dim.next_multiple_of(LANES));
        for start in (0..dim).step_by(PANEL) {
            let width = width(dim, start);
            let panel = &mut panels[start * inner..][..width * inner];
            for (i, to) in panel.chunks_exact_mut(width * E::GROUP).enumerate() {
                // A row is longer than what is read of it; what comes of the rest is dropped.
                let row = |key: usize| &value_rows[key * pitch + at + start..][..width];
                let first = i * E::GROUP;
                match E::GROUP {
                    1 => to.copy_from_slice(row(first)),
                    _ if first + 1 < keys => {
                        let pairs = row(first).iter().zip(row(first + 1));
                        for (to, (a, b)) in to.chunks_exact_mut(2).zip(pairs) {
                            (to[0], to[1]) = (*a, *b);
                        }
                    }
                    _ => {
                        for (to, a) in to.chunks_exact_mut(2).zip(row(first)) {
                            (to[0], to[1]) = (*a, zero);
                        }
                    }
                }
            }
        }
    }

    /// Attention of a sequence that is packed; its result takes the place of the queries.
    #[inline(always)]
    fn meet_rows<const FMA: bool>(&mut self, isa: Isa, sequence: &Sequence, scale: Scale) {
        let Sequence { at, pitch, queries, keys, dim } = *sequence;
        let lanes = keys.next_multiple_of(LANES);
        let inner = keys.next_multiple_of(E::GROUP);
        let Self { keys: turned, values: panels, scores, weights, sums, rows, .. } = self;
        let [query_rows, ..] = rows;
        scores.resize(ROWS * lanes);
        weights.resize(ROWS * lanes);
        sums.resize(ROWS * PANEL);
        for query in (0..queries).step_by(ROWS) {
            let count = ROWS.min(queries - query);
            let mut offsets = [0; ROWS];
            for (r, offset) in offsets.iter_mut().enumerate() {
                *offset = (query + r.min(count - 1)) * pitch + at;
            }
            let product = Product {
                values: query_rows,
                zeros: query_rows,
                offsets: &offsets,
                length: dim,
                panel: turned,
                width: lanes,
            };
            product.add_to(isa, scores, true);
            let mut inverses = [0f32; ROWS];
            let rows = scores.chunks_exact_mut(lanes).zip(weights.chunks_exact_mut(lanes));
            for ((scores, weights), inverse) in rows.zip(&mut inverses).take(count) {
                scale.turn(scores);
                scores[keys..].fill(f32::NEG_INFINITY);
                let mut most = Lanes([f32::NEG_INFINITY; LANES]);
                for scores in scores.chunks_exact(LANES) {
                    most = most.greatest(Lanes::read(scores));
                }
                let maximum = most.most();
                let total =
                    exponentials::<FMA, E>(scores, maximum, scale.size, weights, Lanes::ZERO);
                *inverse = 1.0 / total.total();
            }
            for start in (0..dim).step_by(PANEL) {
                let width = width(dim, start);
                let weight_offsets: [usize; ROWS] = std::array::from_fn(|r| r * lanes);
                let product = Product {
                    values: weights,
                    zeros: weights,
                    offsets: &weight_offsets,
                    length: inner,
                    panel: &panels[start * inner..],
                    width,
                };
                product.add_to(isa, sums, true);
                let columns = width.min(dim - start);
                let results = sums.chunks_exact(width).zip(inverses).take(count);
                for ((sums, inverse), offset) in results.zip(offsets) {
                    let to = &mut query_rows[offset + start..][..columns];
                    to.iter_mut().zip(sums).for_each(|(to, v)| *to = E::narrow(v * inverse));
                }
            }
        }
    }
}
