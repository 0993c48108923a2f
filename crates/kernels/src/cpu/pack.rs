//! A weight matrix in the order in which products read it.

use half::bf16;
use rayon::prelude::*;

use super::amx;
use super::buffer::Aligned;
use super::float::{Float, Stored};
use super::isa::{Isa, Loops};
use super::microkernel::{LANES, PANEL};

/// The order of packed columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Columns {
    /// The order of the result.
    Plain,
    /// The first half are values, the second half gates: sixteen values, their gates, and so on.
    Gated,
}

/// The sizes of a packed matrix `(outputs, taps, channels)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) outputs: usize,
    pub(crate) taps: usize,
    /// A multiple of the group.
    pub(crate) channels: usize,
    pub(crate) columns: Columns,
}

impl Sizes {
    /// Packed columns, padding included.
    pub(crate) fn width(&self) -> usize {
        match self.columns {
            Columns::Plain => self.outputs.next_multiple_of(LANES),
            Columns::Gated => 2 * (self.outputs / 2).next_multiple_of(LANES),
        }
    }

    /// Columns of the result.
    pub(crate) fn results(&self) -> usize {
        match self.columns {
            Columns::Plain => self.outputs,
            Columns::Gated => self.outputs / 2,
        }
    }

    /// The row of the weight matrix behind a packed column; `None` for padding.
    pub(crate) fn output(&self, column: usize) -> Option<usize> {
        match self.columns {
            Columns::Plain => Some(column).filter(|c| *c < self.outputs),
            Columns::Gated => {
                let half = self.outputs / 2;
                let within = column / (2 * LANES) * LANES + column % LANES;
                let gate = column / LANES % 2 == 1;
                (within < half).then_some(if gate { half + within } else { within })
            }
        }
    }

    /// Packed columns of a panel.
    pub(crate) fn panel_width(&self, panel: usize) -> usize {
        (self.width() - panel * PANEL).min(PANEL)
    }

    pub(crate) fn inner(&self) -> usize {
        self.taps * self.channels
    }
}

/// A weight matrix in panels of `(taps, channels / GROUP, width, GROUP)`; the last may be narrower.
#[derive(Clone)]
pub(crate) struct Packed<T: Stored> {
    values: Aligned<T>,
    sizes: Sizes,
}

impl<T: Stored> Packed<T> {
    /// Packs `at(output, tap, channel)`.
    pub(crate) fn new(sizes: Sizes, at: impl Fn(usize, usize, usize) -> T + Sync) -> Self {
        let mut values = Aligned::new(sizes.width() * sizes.inner());
        let panel = (PANEL * sizes.inner()).max(1);
        values.par_chunks_mut(panel).enumerate().for_each(|(p, values)| {
            let width = values.len() / sizes.inner();
            for (i, group) in values.chunks_exact_mut(width * T::GROUP).enumerate() {
                let i = i * T::GROUP;
                let (tap, channel) = (i / sizes.channels, i % sizes.channels);
                for (column, group) in group.chunks_exact_mut(T::GROUP).enumerate() {
                    if let Some(output) = sizes.output(p * PANEL + column) {
                        for (g, value) in group.iter_mut().enumerate() {
                            *value = at(output, tap, channel + g);
                        }
                    }
                }
            }
        });
        Self { values, sizes }
    }

    /// Calls `each(output, tap, channel, value)` for every weight.
    pub(crate) fn unpack(&self, mut each: impl FnMut(usize, usize, usize, T)) {
        let sizes = self.sizes;
        let panel = (PANEL * sizes.inner()).max(1);
        for (p, values) in self.values.chunks(panel).enumerate() {
            let width = values.len() / sizes.inner();
            for (i, group) in values.chunks_exact(width * T::GROUP).enumerate() {
                let i = i * T::GROUP;
                let (tap, channel) = (i / sizes.channels, i % sizes.channels);
                for (column, group) in group.chunks_exact(T::GROUP).enumerate() {
                    if let Some(output) = sizes.output(p * PANEL + column) {
                        for (g, value) in group.iter().enumerate() {
                            each(output, tap, channel + g, *value);
                        }
                    }
                }
            }
        }
    }

    fn part(&self, block: &Block) -> &[T] {
        let width = self.sizes.panel_width(block.panel);
        let within = (block.tap * self.sizes.channels + block.channel) * width;
        let start = block.panel * PANEL * self.sizes.inner() + within;
        &self.values[start..start + block.taps * block.channels * width]
    }
}

/// Part of a panel: some taps whole, or some channels of one tap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) panel: usize,
    pub(crate) tap: usize,
    pub(crate) taps: usize,
    pub(crate) channel: usize,
    pub(crate) channels: usize,
}

impl Block {
    /// Divides the inner dimension of matrices of `T` in blocks of so many bytes.
    pub(crate) fn list<T>(sizes: &Sizes, bytes: usize) -> Vec<Self> {
        let fitting = bytes / (PANEL * size_of::<T>());
        if sizes.channels <= fitting {
            let count = sizes.taps.div_ceil((fitting / sizes.channels).clamp(1, sizes.taps));
            let taps = sizes.taps.div_ceil(count);
            let block = |tap| {
                let taps = taps.min(sizes.taps - tap);
                Self { panel: 0, tap, taps, channel: 0, channels: sizes.channels }
            };
            return (0..sizes.taps).step_by(taps).map(block).collect();
        }
        let count = sizes.channels.div_ceil(fitting);
        let channels = sizes.channels.div_ceil(count).next_multiple_of(amx::BYTES);
        let starts = || (0..sizes.channels).step_by(channels);
        let block = |(tap, channel)| {
            let channels = channels.min(sizes.channels - channel);
            Self { panel: 0, tap, taps: 1, channel, channels }
        };
        (0..sizes.taps).flat_map(|tap| starts().map(move |c| (tap, c))).map(block).collect()
    }
}

/// Weights in the format `W`, which a product can use block by block.
pub(crate) trait Panels<W>: Sync {
    fn sizes(&self) -> Sizes;

    /// `(taps, channels / GROUP, width, GROUP)` of the block.
    fn block<'a>(&'a self, isa: Isa, block: &Block, scratch: &'a mut Aligned<W>) -> &'a [W];
}

impl<T: Stored> Panels<T> for Packed<T> {
    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn block<'a>(&'a self, _: Isa, block: &Block, _: &'a mut Aligned<T>) -> &'a [T] {
        self.part(block)
    }
}

/// Weights that are widened block by block.
pub(crate) struct Widened<'a, T: Stored>(pub(crate) &'a Packed<T>);

impl<T: Stored> Panels<f32> for Widened<'_, T> {
    fn sizes(&self) -> Sizes {
        self.0.sizes
    }

    fn block<'a>(&'a self, isa: Isa, block: &Block, scratch: &'a mut Aligned<f32>) -> &'a [f32] {
        let part = self.0.part(block);
        scratch.resize(part.len());
        let width = part.len() / (block.taps * block.channels);
        isa.vectorize(Widen { part, width, out: scratch });
        scratch
    }
}

impl Panels<bf16> for Widened<'_, i8> {
    fn sizes(&self) -> Sizes {
        self.0.sizes
    }

    fn block<'a>(&'a self, isa: Isa, block: &Block, scratch: &'a mut Aligned<bf16>) -> &'a [bf16] {
        let part = self.0.part(block);
        scratch.resize(part.len());
        isa.vectorize(Whole { part, out: scratch });
        scratch
    }
}

/// Widens whole numbers to bf16, which holds all of eight bits.
struct Whole<'a> {
    part: &'a [i8],
    out: &'a mut [bf16],
}

impl Loops for Whole<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (to, from) in self.out.iter_mut().zip(self.part) {
            *to = bf16::exactly(Stored::widen(*from));
        }
    }
}

/// Widens a block, and takes what lies side by side apart.
struct Widen<'a, T> {
    part: &'a [T],
    width: usize,
    out: &'a mut [f32],
}

impl<T: Stored> Loops for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let groups = self.part.chunks_exact(self.width * T::GROUP);
        for (from, to) in groups.zip(self.out.chunks_exact_mut(self.width * T::GROUP)) {
            for (g, to) in to.chunks_exact_mut(self.width).enumerate() {
                for (to, from) in to.iter_mut().zip(from.chunks_exact(T::GROUP)) {
                    *to = from[g].widen();
                }
            }
        }
    }
}
