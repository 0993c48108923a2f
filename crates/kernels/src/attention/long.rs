//! Long sequences: a task is one head, or some of its queries. Keys and values are packed once, then a few queries at a
//! time meet them block by block, under a running maximum (Milakov and Gimelshein 2018; Dao et al. 2022).

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Inputs, Operand, Scale, Scratch, Unit, View, exponentials, width};
use crate::cpu::buffer::Shared;
use crate::cpu::float::Float;
use crate::cpu::isa::{Isa, Loops};
use crate::cpu::lanes::Lanes;
use crate::cpu::math;
use crate::cpu::microkernel::{LANES, PANEL, Product, ROWS};

/// Keys that a few queries meet at once; whole panels.
const KEYS: usize = 8 * PANEL;

/// Queries of one head of one sequence.
pub(super) struct Piece<'a, T, E> {
    pub(super) unit: Unit,
    pub(super) first: usize,
    pub(super) end: usize,
    pub(super) inputs: &'a Inputs<'a, T>,
    /// The result, of the shape of the queries.
    pub(super) out: &'a Shared<'a, MaybeUninit<T>>,
    pub(super) scratch: &'a mut Scratch<E>,
}

impl<T: Float, E: Operand> Loops for Piece<'_, T, E> {
    type Output = ();

    #[allow(unsafe_code)]
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { unit, first, end, inputs, out, scratch } = self;
        let Inputs { keys, scale, isa, operands: [q, k, v] } = *inputs;
        let [_, queries, places, heads, dim] = q.dims;
        let length = dim.next_multiple_of(E::GROUP);
        scratch.pack(&unit, [k, v], (keys, keys.next_multiple_of(LANES)), (dim, length));
        scratch.queries.resize(ROWS * length);
        for query in (first..end).step_by(ROWS) {
            let rows = ROWS.min(end - query);
            for r in 0..ROWS {
                let row = q.token(&unit, query + r.min(rows - 1));
                let to = &mut scratch.queries[r * length..][..length];
                to.iter_mut().zip(row).for_each(|(to, from)| *to = E::exactly(from.widen()));
                to[dim..].fill(E::default());
            }
            let inverse = scratch.meet::<FMA>(isa, keys, dim, scale);
            for (r, inverse) in inverse.iter().enumerate().take(rows) {
                let token = unit.batch * queries + query + r;
                let at = ((token * places + unit.place) * heads + unit.head) * dim;
                // SAFETY: a task alone has these queries of this head.
                scratch.write(r, *inverse, dim, unsafe { out.part(at, dim) });
            }
        }
    }
}

impl<E: Operand> Scratch<E> {
    /// Packs keys and values, padded with zeros.
    #[inline(always)]
    pub(super) fn pack<T: Float>(
        &mut self,
        unit: &Unit,
        [k, v]: [&View<'_, T>; 2],
        (keys, padded): (usize, usize),
        (dim, length): (usize, usize),
    ) {
        let zero = E::default();
        self.keys.resize(padded * length);
        for start in (0..keys).step_by(PANEL) {
            let width = (padded - start).min(PANEL);
            let panel = &mut self.keys[start * length..][..length * width];
            for column in 0..width {
                let groups = panel[column * E::GROUP..].chunks_mut(width * E::GROUP);
                if start + column >= keys {
                    groups.for_each(|to| to[..E::GROUP].fill(zero));
                    continue;
                }
                let key = k.token(unit, start + column);
                let parts = key.chunks(E::GROUP).chain(std::iter::repeat(&[][..]));
                for (to, from) in groups.zip(parts) {
                    for (g, to) in to[..E::GROUP].iter_mut().enumerate() {
                        *to = from.get(g).map_or(zero, |from| E::exactly(from.widen()));
                    }
                }
            }
        }
        self.values.resize(padded * dim.next_multiple_of(LANES));
        for key in (0..padded).step_by(E::GROUP) {
            for start in (0..dim).step_by(PANEL) {
                let width = width(dim, start);
                let to = &mut self.values[start * padded + key * width..][..width * E::GROUP];
                let count = width.min(dim - start);
                let (to, padding) = to.split_at_mut(count * E::GROUP);
                padding.fill(zero);
                let row =
                    |key: usize| (key < keys).then(|| &v.token(unit, key)[start..start + count]);
                match (row(key), row(key + 1)) {
                    (Some(a), Some(b)) if E::GROUP == 2 => {
                        for (to, (a, b)) in to.chunks_exact_mut(2).zip(a.iter().zip(b)) {
                            to[0] = E::exactly(a.widen());
                            to[1] = E::exactly(b.widen());
                        }
                    }
                    (Some(a), _) => {
                        for (to, a) in to.chunks_exact_mut(E::GROUP).zip(a) {
                            to.fill(zero);
                            to[0] = E::exactly(a.widen());
                        }
                    }
                    (None, _) => to.fill(zero),
                }
            }
        }
    }

    /// Leaves weighted sums of the values in `sums`; returns what they are to be multiplied with.
    #[inline(always)]
    fn meet<const FMA: bool>(
        &mut self,
        isa: Isa,
        keys: usize,
        dim: usize,
        scale: Scale,
    ) -> [f32; ROWS] {
        let padded = keys.next_multiple_of(LANES);
        let length = dim.next_multiple_of(E::GROUP);
        let Self { keys: packed_keys, values, queries, scores, weights, sums, offsets, .. } = self;
        sums.resize(ROWS * dim.next_multiple_of(LANES));
        scores.resize(ROWS * KEYS.min(padded));
        weights.resize(scores.len());
        let query_offsets: [usize; ROWS] = std::array::from_fn(|r| r * length);
        let mut maxima = [f32::NEG_INFINITY; ROWS];
        let mut totals = [0f32; ROWS];
        for start in (0..keys).step_by(KEYS) {
            let end = (start + KEYS).min(keys);
            // Scores.
            for key in (start..end).step_by(PANEL) {
                let width = width(keys, key);
                Product {
                    values: queries,
                    zeros: queries,
                    offsets: &query_offsets,
                    length,
                    panel: &packed_keys[key * length..],
                    width,
                }
                .add_to(isa, &mut scores[(key - start) * ROWS..], true);
            }
            scale.turn(scores);
            // Keys that are padding get no weight.
            let padding = padded.min(end.next_multiple_of(LANES)) - end;
            if padding > 0 {
                let last = end / PANEL * PANEL;
                let width = width(keys, last);
                for row in scores[(last - start) * ROWS..].chunks_exact_mut(width).take(ROWS) {
                    row[width - padding..].fill(f32::NEG_INFINITY);
                }
            }
            // Their exponentials, and what that makes of the sums so far.
            let panels = (start..end).step_by(PANEL);
            for r in 0..ROWS {
                let row = |key: usize| {
                    let width = width(keys, key);
                    let at = (key - start) * ROWS + r * width;
                    at..at + width
                };
                let mut most = Lanes([maxima[r]; LANES]);
                for key in panels.clone() {
                    for scores in scores[row(key)].chunks_exact(LANES) {
                        most = most.greatest(Lanes::read(scores));
                    }
                }
                let maximum = most.most();
                let mut total = Lanes::ZERO;
                for key in panels.clone() {
                    let (from, to) = (&scores[row(key)], &mut weights[row(key)]);
                    total = exponentials::<FMA, E>(from, maximum, scale.size, to, total);
                }
                if start > 0 && maximum > maxima[r] {
                    let factor = math::exp_negative::<FMA>((maxima[r] - maximum) * scale.size);
                    totals[r] *= factor;
                    for column in (0..dim).step_by(PANEL) {
                        let width = width(dim, column);
                        let row = &mut sums[column * ROWS + r * width..][..width];
                        for v in row {
                            *v *= factor;
                        }
                    }
                }
                totals[r] += total.total();
                maxima[r] = maximum;
            }
            // Values: whole panels of keys, then the narrower one.
            let whole = (end - start) / PANEL;
            for column in (0..dim).step_by(PANEL) {
                let width = width(dim, column);
                let panel = &values[column * padded + start * width..];
                let sums = &mut sums[column * ROWS..];
                let mut weigh = |panels: Range<usize>, length: usize, fresh: bool| {
                    let first = panels.start;
                    offsets.clear();
                    for panel in panels {
                        offsets.extend((0..ROWS).map(|r| panel * PANEL * ROWS + r * length));
                    }
                    Product {
                        values: weights,
                        zeros: weights,
                        offsets,
                        length,
                        panel: &panel[first * PANEL * width..],
                        width,
                    }
                    .add_to(isa, sums, fresh);
                };
                if whole > 0 {
                    weigh(0..whole, PANEL, start == 0);
                }
                let rest = (end - start - whole * PANEL).next_multiple_of(LANES);
                if rest > 0 {
                    weigh(whole..whole + 1, rest, start == 0 && whole == 0);
                }
            }
        }
        totals.map(|total| 1.0 / total)
    }

    #[inline(always)]
    fn write<T: Float>(&self, r: usize, inverse: f32, dim: usize, out: &mut [MaybeUninit<T>]) {
        for column in (0..dim).step_by(PANEL) {
            let width = width(dim, column);
            let row = &self.sums[column * ROWS + r * width..][..width];
            for (to, from) in out[column..].iter_mut().zip(row) {
                to.write(T::narrow(from * inverse));
            }
        }
    }
}
