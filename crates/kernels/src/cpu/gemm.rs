//! Products with packed weights: linear layers, and convolutions that read their input where it lies.
//!
//! Both are the same loop. The rows of the left operand are the pixels (or tokens) of the result, and what they
//! depend on is found through a table of offsets, so that nothing is gathered or padded; the right operand is packed
//! once, in panels of columns that stay in a core's cache while the rows pass by.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::amx::{self, MatrixUnit};
use super::buffer::{Aligned, Shared, abandon, filled, operand};
use super::conv_geometry::ConvGeometry;
use super::float::Float;
use super::isa::{Isa, Loops, prefetch};
use super::math;
use super::microkernel::{Element, LANES, PANEL, Product, ROWS};
use super::pack::{Block, Columns, Panels, Sizes};
use crate::Stop;

/// Rows, panels and bytes of a panel that a task works on.
#[derive(Clone, Copy)]
struct Plan {
    /// Rows of a register tile.
    rows: usize,
    /// Maximum number of row tiles of a task.
    tiles: usize,
    /// Maximum number of panels of a task.
    panels: usize,
    /// Bytes of a panel that are processed at once, so that they stay in the L2 cache.
    block: usize,
}

impl Plan {
    /// Products in registers, where every row is read for every panel.
    const LOOPS: Self = Self { rows: ROWS, tiles: 64, panels: 1, block: 256 << 10 };

    /// Products in the matrix unit. Copying rows pays off over several panels; a longer inner dimension reads and
    /// writes sums less often.
    const IN_TILES: Self = Self { rows: amx::ROWS, tiles: 16, panels: 4, block: 384 << 10 };
}

/// Work below which a second thread is not worth waking, in floating-point operations.
const SERIAL: usize = 1 << 20;

/// Activation after a product and its bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// No activation.
    #[default]
    None,
    /// `x · sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

/// Dequantization of the left operand: row `i` has the values `offsets[i] + scales[i] · n`.
#[derive(Clone, Copy)]
pub(crate) struct RowScales<'a> {
    /// Scale of each row.
    pub(crate) scales: &'a [f32],
    /// Value of each row for the integer 0.
    pub(crate) offsets: &'a [f32],
    /// The sums of the right operand's packed columns.
    pub(crate) totals: &'a [f32],
}

/// Operations on a product before it is written.
#[derive(Default)]
pub(crate) struct Epilogue<'a, O> {
    /// Scale and offset of each quantized row of the left operand; applied before `scales`.
    pub(crate) rows: Option<RowScales<'a>>,
    /// Factors of the sums, one for every packed column.
    pub(crate) scales: Option<&'a [f32]>,
    /// Bias, one value for every packed column.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
    /// Added last; of the shape of the result.
    pub(crate) residual: Option<&'a [O]>,
    /// Cancellation flag; once requested, the result is unspecified.
    pub(crate) stop: Option<&'a Stop>,
}

impl<O> Epilogue<'_, O> {
    /// Returns whether the product was cancelled.
    #[inline(always)]
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.is_some_and(Stop::is_requested)
    }

    /// Panics unless its parts have the sizes of a result with `len` values.
    pub(crate) fn check(&self, sizes: &Sizes, len: usize) {
        assert!(self.rows.is_none_or(|rows| {
            let pixels = len / sizes.results().max(1);
            (rows.scales.len(), rows.offsets.len()) == (pixels, pixels)
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
    /// Sums, for every panel and tile of rows `(rows, width)`, with room for [`PANEL`] columns.
    sums: Aligned<f32>,
    /// Weights converted to the type of the product, one buffer for every panel.
    widened: Vec<Aligned<T::Weight>>,
    offsets: Vec<usize>,
    gathered: amx::Gathered<T>,
}

/// Element types of products, each with scratch memory per thread.
pub(crate) trait Operand: MatrixUnit {
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
    window: &ConvGeometry,
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
        if epilogue.is_stopped() {
            return;
        }
        let (strip, group) = (task / groups * strip_rows, task % groups * together);
        let strip = strip..pixels.min(strip + strip_rows);
        let group = group..panels.min(group + together);
        if in_tiles {
            amx::with_tiles(|| tasks.run(strip, group, out));
        } else {
            tasks.run(strip, group, out);
        }
    };
    let unset = O::narrow(f32::NAN);
    let fill = |out: &mut [MaybeUninit<O>]| {
        let shared = Shared::new(out);
        if 2 * pixels * sizes.width() * sizes.inner() < SERIAL {
            (0..strips * groups).for_each(|task| run(task, &shared));
        } else {
            (0..strips * groups).into_par_iter().for_each(|task| run(task, &shared));
        }
        abandon(epilogue.stop, out, unset);
    };
    // SAFETY: every pixel is in a strip, every column in a panel, and each strip meets each group of panels; or else
    // all is abandoned.
    unsafe { filled(len, unset, fill) }
}

/// Inputs that all tasks of a product share.
struct Tasks<'a, T, O, P> {
    isa: Isa,
    x: &'a [T],
    window: &'a ConvGeometry,
    weights: &'a P,
    epilogue: &'a Epilogue<'a, O>,
    in_tiles: bool,
    plan: Plan,
    /// A row of zeros, one for each channel.
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
        // Work per value here slows the whole product down, so values stay in registers.
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
        if let Some(RowScales { scales, offsets, totals }) = self.epilogue.rows {
            let (scale, offset) = (scales[pixel], offsets[pixel]);
            for (v, total) in lanes.iter_mut().zip(&totals[at..at + LANES]) {
                *v = math::fused::<FMA>(*v, scale, offset * total);
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
