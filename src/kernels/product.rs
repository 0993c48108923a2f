//! Products with packed weights: linear layers, and convolutions that read their input where it lies.
//!
//! Both are the same loop. The rows of the left operand are the pixels (or tokens) of the result, and what they
//! depend on is found through a table of offsets, so that nothing is gathered or padded; the right operand is packed
//! once, in panels of columns that stay in a core's cache while the rows pass by.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::amx;
use super::float::{Float, Stored};
use super::isa::{Isa, Loops, prefetch};
use super::math;
use super::shared::{Aligned, Shared, filled, operand};
use super::tile::{Element, LANES, PANEL, Product, ROWS, ZEROS};

/// Rows, panels and bytes of a panel that a task works on.
#[derive(Clone, Copy)]
struct Plan {
    /// Of a tile.
    rows: usize,
    /// Rows of a task at most, in tiles.
    tiles: usize,
    /// Panels of a task at most.
    panels: usize,
    /// Bytes of a panel that are worked on at once, so that they stay in a core's second cache.
    block: usize,
}

impl Plan {
    /// In registers: every row is read for every panel.
    const LOOPS: Self = Self { rows: ROWS, tiles: 64, panels: 1, block: 256 << 10 };

    /// In the matrix unit: rows may be copied, which several panels have to pay for, and the more of the inner dimension
    /// is multiplied at once, the less often sums are read and written.
    const IN_TILES: Self = Self { rows: amx::ROWS, tiles: 16, panels: 4, block: 384 << 10 };
}

/// Work below which a second thread is not worth waking, in floating-point operations.
const SERIAL: usize = 1 << 20;

/// Which column of the result a packed column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Columns {
    /// In order.
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

    fn inner(&self) -> usize {
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
    fn list<T>(sizes: &Sizes, bytes: usize) -> Vec<Self> {
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

/// Where the pixels of a result find what they depend on in an input `(images, height, width, channels)`.
pub(crate) struct Window {
    images: usize,
    height: usize,
    width: usize,
    kernel: usize,
    stride: usize,
    /// The input's line for every line of the result and line of the kernel, or [`ZEROS`].
    ys: Vec<usize>,
    /// The same for columns.
    xs: Vec<usize>,
}

impl Window {
    /// Rows as they are.
    pub(crate) fn rows(count: usize) -> Self {
        let xs = (0..count).collect();
        Self { images: 1, height: 1, width: count, kernel: 1, stride: 1, ys: vec![0], xs }
    }

    /// A convolution of pictures of `size`, seen stretched to `seen`, with zeros `before` and `after`; `None` where
    /// the kernel is larger than that.
    pub(crate) fn convolution(
        images: usize,
        size: (usize, usize),
        seen: (usize, usize),
        kernel: usize,
        (before, after): (usize, usize),
        stride: usize,
    ) -> Option<Self> {
        let line = |size: usize, seen: usize| {
            let outputs = (seen + before + after).checked_sub(kernel)? / stride + 1;
            let place = |output: usize, k: usize| {
                let at = (output * stride + k).checked_sub(before).filter(|at| *at < seen);
                at.map_or(ZEROS, |at| at * size / seen)
            };
            Some(
                (0..outputs)
                    .flat_map(|o| (0..kernel).map(move |k| (o, k)))
                    .map(|(o, k)| place(o, k))
                    .collect(),
            )
        };
        let (height, width) = size;
        let (ys, xs) = (line(height, seen.0)?, line(width, seen.1)?);
        Some(Self { images, height, width, kernel, stride, ys, xs })
    }

    /// Lines and columns of the result.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.ys.len() / self.kernel, self.xs.len() / self.kernel)
    }

    pub(crate) fn images(&self) -> usize {
        self.images
    }

    /// Pixels of the result.
    pub(crate) fn pixels(&self) -> usize {
        let (height, width) = self.size();
        self.images * height * width
    }

    /// Whether the result has the input's pixels, each of which depends on itself.
    pub(crate) fn is_identity(&self) -> bool {
        // As many results as inputs, with nothing before the first or after the last, leave no other way.
        let plain = |table: &[usize], size: usize| {
            table.len() == size && ![table.first(), table.last()].contains(&Some(&ZEROS))
        };
        self.kernel == 1 && plain(&self.ys, self.height) && plain(&self.xs, self.width)
    }

    /// Whether neighbours in the result look through a 3×3 kernel at neighbours.
    pub(crate) fn is_dense_3x3(&self) -> bool {
        self.kernel == 3 && self.stride == 1
    }

    /// The input's pixel that is seen `down` and `across` from where the kernel begins at a pixel of the result; `None`
    /// outside the picture, and where no pixel of the result looks. For dense 3×3 kernels.
    pub(crate) fn pixel(
        &self,
        image: usize,
        (line, down): (usize, usize),
        (column, across): (usize, usize),
    ) -> Option<usize> {
        let seen = |table: &[usize], first: usize, offset: usize| {
            let last = table.len() / self.kernel - 1;
            let output = (first + offset).min(last);
            let k = first + offset - output;
            // Of all pairs of an output and a place in the kernel, one is as good as the other.
            table[output * self.kernel..][..self.kernel].get(k).copied().filter(|at| *at != ZEROS)
        };
        let (y, x) = (seen(&self.ys, line, down)?, seen(&self.xs, column, across)?);
        Some((image * self.height + y) * self.width + x)
    }

    /// Offsets `(taps of the block, rows)` for the pixels from `pixel`; `last` stands in for those behind it.
    fn offsets(
        &self,
        pixel: usize,
        last: usize,
        block: &Block,
        channels: usize,
        out: &mut [usize],
    ) {
        let rows = out.len() / block.taps;
        let (height, width) = self.size();
        let (mut line, mut x) = (pixel / width, pixel % width);
        for r in 0..rows {
            if r > 0 && pixel + r <= last {
                x += 1;
                if x == width {
                    (line, x) = (line + 1, 0);
                }
            }
            let (image, y) = (line / height, line % height);
            let ys = &self.ys[y * self.kernel..][..self.kernel];
            let xs = &self.xs[x * self.kernel..][..self.kernel];
            for t in 0..block.taps {
                let tap = block.tap + t;
                let (y, x) = (ys[tap / self.kernel], xs[tap % self.kernel]);
                out[t * rows + r] = if y == ZEROS || x == ZEROS {
                    ZEROS
                } else {
                    ((image * self.height + y) * self.width + x) * channels + block.channel
                };
            }
        }
    }
}

/// What follows a product and its bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `x · sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

/// Rows of whole numbers: what each counts, and what it begins with.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// One for every row.
    pub(crate) scales: &'a [f32],
    /// What a 0 stands for, in every row.
    pub(crate) least: &'a [f32],
    /// The sums of the right operand's packed columns.
    pub(crate) totals: &'a [f32],
}

/// What is done to a product before it is written.
#[derive(Default)]
pub(crate) struct Epilogue<'a, O> {
    /// What the left operand's numbers mean, if they are not what they say. Comes first.
    pub(crate) rows: Option<Rows<'a>>,
    /// What sums are multiplied by, one for every packed column.
    pub(crate) scales: Option<&'a [f32]>,
    /// One for every packed column.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
    /// Added last; of the shape of the result.
    pub(crate) residual: Option<&'a [O]>,
}

impl<O> Epilogue<'_, O> {
    /// Panics unless its parts have the sizes of a result with `len` values.
    pub(crate) fn check(&self, sizes: &Sizes, len: usize) {
        assert!(self.rows.is_none_or(|rows| {
            let pixels = len / sizes.results().max(1);
            (rows.scales.len(), rows.least.len()) == (pixels, pixels)
                && rows.totals.len() == sizes.width()
        }));
        assert!(self.scales.is_none_or(|scales| scales.len() == sizes.width()));
        assert!(self.bias.is_none_or(|bias| bias.len() == sizes.width()));
        assert!(self.residual.is_none_or(|residual| residual.len() == len));
    }
}

/// Memory that a thread keeps from one product to the next.
#[derive(Default)]
pub(crate) struct Scratch<T: Element> {
    /// For every panel and tile of rows `(rows, width)`, with room for [`PANEL`] columns.
    sums: Aligned<f32>,
    /// One for every panel.
    widened: Vec<Aligned<T::Weight>>,
    offsets: Vec<usize>,
    gathered: amx::Gathered<T>,
}

/// What can be multiplied, and has scratch memory for it.
pub(crate) trait Operand: Element {
    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R;
}

operand!(f32);
operand!(bf16);
operand!(u8);

/// The product `(pixels, results)` of what `window` finds in `x` and `weights`.
#[allow(unsafe_code)]
pub(crate) fn product<T: Operand, O: Float>(
    isa: Isa,
    x: &[T],
    window: &Window,
    weights: &impl Panels<T::Weight>,
    epilogue: &Epilogue<'_, O>,
) -> Vec<O> {
    let sizes = weights.sizes();
    let pixels = window.pixels();
    let len = pixels * sizes.results();
    assert_eq!(sizes.taps, window.kernel * window.kernel);
    epilogue.check(&sizes, len);
    if len == 0 {
        return Vec::new();
    }
    let in_tiles = T::fits_tiles(isa, sizes.channels);
    let plan = if in_tiles { Plan::IN_TILES } else { Plan::LOOPS };
    let panels = sizes.width().div_ceil(PANEL);
    let strips = pixels.div_ceil(plan.tiles * plan.rows);
    let strip_rows = pixels.div_ceil(plan.rows).div_ceil(strips) * plan.rows;
    let strips = pixels.div_ceil(strip_rows);
    let wanted = (4 * rayon::current_num_threads()).div_ceil(strips).min(panels);
    let together = (panels / wanted).clamp(1, plan.panels);
    let groups = panels.div_ceil(together);
    let zeros = vec![T::default(); sizes.channels];
    let blocks = Block::list::<T>(&sizes, plan.block);
    let tasks = Tasks { isa, x, window, weights, epilogue, in_tiles, plan, zeros, blocks };
    let run = |task: usize, out: &Shared<'_, MaybeUninit<O>>| {
        let (strip, group) = (task / groups * strip_rows, task % groups * together);
        let strip = strip..pixels.min(strip + strip_rows);
        let group = group..panels.min(group + together);
        if in_tiles {
            amx::with_tiles(|| tasks.run(strip, group, out));
        } else {
            tasks.run(strip, group, out);
        }
    };
    let fill = |out: &mut [MaybeUninit<O>]| {
        let out = Shared::new(out);
        if 2 * pixels * sizes.width() * sizes.inner() < SERIAL {
            (0..strips * groups).for_each(|task| run(task, &out));
        } else {
            (0..strips * groups).into_par_iter().for_each(|task| run(task, &out));
        }
    };
    // SAFETY: every pixel is in a strip, every column in a panel, and each strip meets each group of panels.
    unsafe { filled(len, O::narrow(f32::NAN), fill) }
}

/// What all tasks of a product share.
struct Tasks<'a, T, O, P> {
    isa: Isa,
    x: &'a [T],
    window: &'a Window,
    weights: &'a P,
    epilogue: &'a Epilogue<'a, O>,
    in_tiles: bool,
    plan: Plan,
    /// As many as there are channels.
    zeros: Vec<T>,
    blocks: Vec<Block>,
}

impl<T: Operand, O: Float, P: Panels<T::Weight>> Tasks<'_, T, O, P> {
    /// Some panels' columns of some pixels.
    fn run(&self, pixels: Range<usize>, panels: Range<usize>, out: &Shared<'_, MaybeUninit<O>>) {
        let Self { isa, weights, epilogue, ref blocks, .. } = *self;
        let (rows, sizes) = (self.plan.rows, weights.sizes());
        T::with_scratch(|Scratch { sums, widened, offsets, gathered }| {
            // They stay where they are until all blocks are through.
            let tiles = if blocks.len() > 1 { pixels.len().div_ceil(rows) } else { 1 };
            sums.resize(panels.len() * tiles * rows * PANEL);
            widened.resize_with(panels.len(), Aligned::default);
            for (i, block) in blocks.iter().enumerate() {
                let last = i + 1 == blocks.len();
                let parts = panels.clone().zip(&mut *widened);
                let parts: Vec<_> = parts
                    .map(|(panel, scratch)| weights.block(isa, &Block { panel, ..*block }, scratch))
                    .collect();
                offsets.resize(block.taps * rows, 0);
                for (t, pixel) in pixels.clone().step_by(rows).enumerate() {
                    self.window.offsets(pixel, pixels.end - 1, block, sizes.channels, offsets);
                    let left = self
                        .in_tiles
                        .then(|| amx::Left::gather(self.x, offsets, block.channels, gathered));
                    for (p, (values, panel)) in parts.iter().zip(panels.clone()).enumerate() {
                        let width = sizes.panel_width(panel);
                        let finish = Finish { sizes: &sizes, epilogue, panel, width, out };
                        let here = rows.min(pixels.end - pixel);
                        // In tiles it costs more than it brings.
                        if last && !self.in_tiles {
                            finish.prefetch(pixel, here);
                        }
                        let sums = &mut sums[(p * tiles + t % tiles) * rows * PANEL..];
                        if let Some(left) = &left {
                            left.multiply(values, width, (sums, width), i == 0);
                        } else {
                            Product {
                                values: self.x,
                                zeros: &self.zeros,
                                offsets,
                                length: block.channels,
                                panel: values,
                                width,
                            }
                            .add_to(isa, sums, i == 0);
                        }
                        if last {
                            let sums = &sums[..here * width];
                            isa.vectorize(FinishRows { finish, pixel, sums });
                        }
                    }
                }
            }
        });
    }
}

/// Some rows of sums, one after the other, that are to be written to the result.
struct FinishRows<'a, O> {
    finish: Finish<'a, O>,
    pixel: usize,
    /// `(rows, width)`.
    sums: &'a [f32],
}

impl<O: Float> Loops for FinishRows<'_, O> {
    type Output = ();

    #[allow(unsafe_code)]
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (r, sums) in self.sums.chunks_exact(self.finish.width).enumerate() {
            // SAFETY: a task alone has its panel's columns of its pixels.
            unsafe { self.finish.row::<FMA>(self.pixel + r, sums) };
        }
    }
}

/// Writes sums to the result.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a, O> {
    pub(crate) sizes: &'a Sizes,
    pub(crate) epilogue: &'a Epilogue<'a, O>,
    pub(crate) panel: usize,
    /// Packed columns of the panel.
    pub(crate) width: usize,
    pub(crate) out: &'a Shared<'a, MaybeUninit<O>>,
}

impl<O: Float> Finish<'_, O> {
    /// The columns of the result that are this panel's: the first, and how many.
    #[inline(always)]
    fn columns(&self) -> (usize, usize) {
        let start = self.panel * PANEL;
        let (first, wide) = match self.sizes.columns {
            Columns::Plain => (start, self.width),
            Columns::Gated => (start / 2, self.width / 2),
        };
        (first, wide.min(self.sizes.results() - first))
    }

    /// Fetches what [`row`](Self::row) will want for some pixels.
    #[inline(always)]
    pub(crate) fn prefetch(&self, pixel: usize, rows: usize) {
        let (first, count) = self.columns();
        for pixel in pixel..pixel + rows {
            let at = pixel * self.sizes.results() + first;
            self.out.prefetch(at, count);
            if let Some(residual) = self.epilogue.residual {
                prefetch(residual[at..].as_ptr(), count);
            }
        }
    }

    /// The sums of one pixel.
    ///
    /// # Safety
    ///
    /// No other thread may write this panel's columns of this pixel.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub(crate) unsafe fn row<const FMA: bool>(&self, pixel: usize, sums: &[f32]) {
        let Self { sizes, epilogue, out, .. } = *self;
        let gated = sizes.columns == Columns::Gated;
        let (first, count) = self.columns();
        let at = pixel * sizes.results() + first;
        let residual = epilogue.residual.map(|residual| &residual[at..at + count]);
        // SAFETY: by the caller's promise.
        let out = unsafe { out.part(at, count) };
        // What is done here for every value is felt in the whole product, so values stay in registers.
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let mut lanes = if gated {
                let mut values = self.sum::<FMA>(pixel, sums, 2 * i * LANES);
                let gates = self.sum::<FMA>(pixel, sums, (2 * i + 1) * LANES);
                for (value, gate) in values.iter_mut().zip(gates) {
                    *value *= math::gelu::<FMA>(gate);
                }
                values
            } else {
                self.sum::<FMA>(pixel, sums, i * LANES)
            };
            match epilogue.activation {
                Activation::None => {}
                Activation::Silu => {
                    for v in &mut lanes {
                        *v = math::silu::<FMA>(*v);
                    }
                }
                Activation::Relu => {
                    for v in &mut lanes {
                        *v = if *v < 0.0 { 0.0 } else { *v };
                    }
                }
            }
            let residual = residual.map(|residual| &residual[i * LANES..][..out.len()]);
            if let Ok(out) = <&mut [MaybeUninit<O>; LANES]>::try_from(&mut *out) {
                if let Some(residual) = residual {
                    for (v, residual) in lanes.iter_mut().zip(residual) {
                        *v += residual.widen();
                    }
                }
                for (out, v) in out.iter_mut().zip(lanes) {
                    out.write(O::narrow(v));
                }
            } else {
                for (j, (out, v)) in out.iter_mut().zip(lanes).enumerate() {
                    let residual = residual.map_or(0.0, |residual| residual[j].widen());
                    out.write(O::narrow(v + residual));
                }
            }
        }
    }

    /// A pixel's sums of some columns of the panel, scaled and with their bias.
    #[inline(always)]
    fn sum<const FMA: bool>(&self, pixel: usize, sums: &[f32], column: usize) -> [f32; LANES] {
        let mut lanes = [0f32; LANES];
        lanes.copy_from_slice(&sums[column..column + LANES]);
        let at = self.panel * PANEL + column;
        if let Some(Rows { scales, least, totals }) = self.epilogue.rows {
            let (scale, least) = (scales[pixel], least[pixel]);
            for (v, total) in lanes.iter_mut().zip(&totals[at..at + LANES]) {
                *v = math::fused::<FMA>(*v, scale, least * total);
            }
        }
        if let Some(scales) = self.epilogue.scales {
            for (v, scale) in lanes.iter_mut().zip(&scales[at..at + LANES]) {
                *v *= scale;
            }
        }
        if let Some(bias) = self.epilogue.bias {
            for (v, bias) in lanes.iter_mut().zip(&bias[at..at + LANES]) {
                *v += bias;
            }
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_change_nothing_are_those_whose_pixels_are_the_inputs() {
        let mut found = [0; 2];
        for size in 1..6 {
            for seen in 1..12 {
                for (before, after) in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 3), (2, 2)] {
                    for (kernel, stride) in [(1, 1), (1, 2), (1, 3), (3, 1)] {
                        let padding = (before, after);
                        let (height, seen) = ((size, 2), (seen, 2));
                        let window = Window::convolution(1, height, seen, kernel, padding, stride);
                        let Some(window) = window else { continue };
                        let same = |table: &[usize], size: usize| table.iter().copied().eq(0..size);
                        let want = kernel == 1 && same(&window.ys, size) && same(&window.xs, 2);
                        let case = (size, seen, padding, kernel, stride);
                        assert_eq!(window.is_identity(), want, "{case:?}");
                        found[usize::from(want)] += 1;
                    }
                }
            }
        }
        assert!(found.iter().all(|count| *count > 4), "{found:?}");
        assert!(Window::rows(7).is_identity());
    }
}
