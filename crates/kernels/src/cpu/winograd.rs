//! 3×3 convolutions with a quarter of the multiplications: Winograd's F(4×4, 3×3).
//!
//! Lavin and Gray (2015). A tile of 6×6 inputs becomes one of 4×4 results; between their transforms every one of the
//! 36 places is a matrix product over the channels. The transforms interpolate at 0, ±5/8, ±3/2 and infinity, which
//! loses less than the usual 0, ±1, ±2 (after Barabasz et al. 2020): for 320 channels of normally distributed numbers
//! the relative error is 1.6e-6, where summing up one after the other has 1.0e-6 and the usual points 3.5e-6.
//!
//! Weights are transformed anew for every call, panel by panel, which costs a few percent and no memory.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::buffer::{Aligned, Shared, abandon, filled, with_scratch};
use super::conv_geometry::ConvGeometry;
use super::float::Float;
use super::gemm::{Epilogue, Finish};
use super::isa::{Isa, Loops};
use super::lanes::Lanes;
use super::microkernel::{LANES, PANEL, Product, ROWS, ZEROS};
use super::pack::{Block, Panels, Sizes};

/// Lines and columns of a tile's results.
const OUT: usize = 4;

/// Lines and columns of a tile's inputs.
const IN: usize = OUT + 2;

/// Products between the transforms.
const PLACES: usize = IN * IN;

/// Bytes of transformed inputs that exist at once, for all threads.
const TRANSFORMED: usize = 16 << 20;

/// Tiles that a task multiplies.
const TILES: usize = 32 * ROWS;

/// Channels that a task multiplies at once.
const CHANNELS: usize = 160;

/// Multiplications that take as long as transforming a value.
const TRANSFORM: f64 = 85.0;

/// Multiplications that take as long as transforming a kernel.
const KERNELS: f64 = 450.0;

/// The distance between places that have `len` values each: a power of two would send all of them to the same few lines
/// of a cache.
fn apart(len: usize) -> usize {
    len.next_multiple_of(2 * LANES) + LANES
}

/// Returns whether Winograd's algorithm is faster for weights of these sizes, where direct products are `times` times
/// as fast as in f32.
pub(crate) fn pays(sizes: &Sizes, window: &ConvGeometry, times: f64) -> bool {
    if !window.is_dense_3x3() {
        return false;
    }
    let grid = Grid::new(window);
    let tiles = (window.images() * grid.down * grid.across).next_multiple_of(ROWS);
    // Measured costs of the transforms of inputs, results and weights, in multiplications for each weight.
    let (inputs, results) = (TRANSFORM / sizes.outputs as f64, TRANSFORM / sizes.channels as f64);
    let here = (PLACES * tiles) as f64 * (1.0 + inputs + results) + KERNELS;
    let out = (sizes.taps * window.pixels()) as f64 / times;
    sizes.channels.is_multiple_of(LANES) && sizes.channels >= 2 * PANEL && here < 0.95 * out
}

/// Division of an image into tiles.
#[derive(Clone, Copy)]
struct Grid {
    height: usize,
    width: usize,
    down: usize,
    across: usize,
}

impl Grid {
    /// The tiles of a dense 3×3 convolution.
    fn new(window: &ConvGeometry) -> Self {
        let (height, width) = window.size();
        Self { height, width, down: height.div_ceil(OUT), across: width.div_ceil(OUT) }
    }

    /// Image, first line and first column of a tile.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (row, x) = (tile / self.across, tile % self.across);
        (row / self.down, row % self.down * OUT, x * OUT)
    }

    /// First pixel and number of pixels of each row of a tile's results.
    #[inline(always)]
    fn lines(self, tile: usize) -> impl Iterator<Item = (usize, usize)> {
        let (image, y, x) = self.place(tile);
        let count = OUT.min(self.width - x);
        let lines = y..(y + OUT).min(self.height);
        lines.map(move |y| ((image * self.height + y) * self.width + x, count))
    }
}

/// The points of interpolation beside 0 and infinity: ±A and ±B. Their squares and products are exact.
const A: f32 = 0.625;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// Transforms six inputs of a row or column.
#[inline(always)]
fn transform_inputs<const FMA: bool>(d: [Lanes; IN]) -> [Lanes; IN] {
    let (even_a, odd_a) = (d[4].plus::<FMA>(d[2], -B2), d[3].plus::<FMA>(d[1], -B2));
    let (even_b, odd_b) = (d[4].plus::<FMA>(d[2], -A2), d[3].plus::<FMA>(d[1], -A2));
    [
        d[4].plus::<FMA>(d[2], -(A2 + B2)).plus::<FMA>(d[0], A2 * B2),
        even_a.plus::<FMA>(odd_a, A),
        even_a.plus::<FMA>(odd_a, -A),
        even_b.plus::<FMA>(odd_b, B),
        even_b.plus::<FMA>(odd_b, -B),
        d[5].plus::<FMA>(d[3], -(A2 + B2)).plus::<FMA>(d[1], A2 * B2),
    ]
}

/// Transforms three weights of a row or column.
#[inline(always)]
fn transform_weights<const FMA: bool>(g: [Lanes; 3]) -> [Lanes; IN] {
    let (scale_a, scale_b) = (0.5 / (A2 * (A2 - B2)), 0.5 / (B2 * (B2 - A2)));
    let (even_a, even_b) =
        (g[0].plus::<FMA>(g[2], A2) * scale_a, g[0].plus::<FMA>(g[2], B2) * scale_b);
    [
        g[0] * (1.0 / (A2 * B2)),
        even_a.plus::<FMA>(g[1], A * scale_a),
        even_a.plus::<FMA>(g[1], -A * scale_a),
        even_b.plus::<FMA>(g[1], B * scale_b),
        even_b.plus::<FMA>(g[1], -B * scale_b),
        g[2],
    ]
}

/// Transforms six products to four results.
#[inline(always)]
fn transform_products<const FMA: bool>(m: [Lanes; IN]) -> [Lanes; OUT] {
    let (sum_a, difference_a) = (m[1] + m[2], m[1] - m[2]);
    let (sum_b, difference_b) = (m[3] + m[4], m[3] - m[4]);
    [
        m[0] + sum_a + sum_b,
        (difference_a * A).plus::<FMA>(difference_b, B),
        (sum_a * A2).plus::<FMA>(sum_b, B2),
        m[5].plus::<FMA>(difference_a, A2 * A).plus::<FMA>(difference_b, B2 * B),
    ]
}

/// Transforms the inputs of one tile to `(PLACES, .., channels)`, the places `stride` apart.
struct Inputs<'a, T> {
    x: &'a [T],
    window: &'a ConvGeometry,
    grid: Grid,
    tile: usize,
    channels: usize,
    stride: usize,
    /// Start of the tile's first place in `out`.
    start: usize,
    out: &'a Shared<'a, f32>,
}

impl<T: Float> Loops for Inputs<'_, T> {
    type Output = ();

    #[allow(unsafe_code)]
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { x, window, grid, tile, channels, stride, start, out } = self;
        let (image, y, column) = grid.place(tile);
        let mut pixels = [[ZEROS; IN]; IN];
        for (i, line) in pixels.iter_mut().enumerate() {
            for (j, pixel) in line.iter_mut().enumerate() {
                *pixel = window.pixel(image, (y, i), (column, j)).map_or(ZEROS, |p| p * channels);
            }
        }
        // Cleared once, not for every step.
        let mut half = [[Lanes::ZERO; IN]; IN];
        for channel in (0..channels).step_by(LANES) {
            for j in 0..IN {
                let mut d = [Lanes::ZERO; IN];
                for (i, d) in d.iter_mut().enumerate() {
                    if pixels[i][j] != ZEROS {
                        *d = Lanes::read(&x[pixels[i][j] + channel..][..LANES]);
                    }
                }
                for (i, t) in transform_inputs::<FMA>(d).into_iter().enumerate() {
                    half[i][j] = t;
                }
            }
            for (i, half) in half.iter().enumerate() {
                for (j, t) in transform_inputs::<FMA>(*half).into_iter().enumerate() {
                    let at = (i * IN + j) * stride + start + channel;
                    // SAFETY: a tile has these places to itself.
                    unsafe { out.part(at, LANES) }.copy_from_slice(&t.0);
                }
            }
        }
    }
}

/// Transforms a block of weights, nine taps of `(channels, width)`, to `(PLACES, channels, width)`.
struct Kernels<'a> {
    taps: [&'a [f32]; 9],
    /// Between places.
    stride: usize,
    out: &'a mut [f32],
}

impl Loops for Kernels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { taps, stride, out } = self;
        let size = taps[0].len();
        let mut half = [[Lanes::ZERO; 3]; IN];
        for at in (0..size).step_by(LANES) {
            for j in 0..3 {
                // No `map`, which may stay a call, and then is not compiled for these instructions.
                let mut g = [Lanes::ZERO; 3];
                for (i, g) in g.iter_mut().enumerate() {
                    *g = Lanes::read(&taps[3 * i + j][at..at + LANES]);
                }
                for (i, t) in transform_weights::<FMA>(g).into_iter().enumerate() {
                    half[i][j] = t;
                }
            }
            for (i, half) in half.iter().enumerate() {
                for (j, t) in transform_weights::<FMA>(*half).into_iter().enumerate() {
                    out[(i * IN + j) * stride + at..][..LANES].copy_from_slice(&t.0);
                }
            }
        }
    }
}

/// Transforms the products of one tile and writes what they make of the result.
struct Results<'a, O> {
    /// `(PLACES, tiles, width)`, from the tile on.
    products: &'a [f32],
    /// Between places.
    stride: usize,
    tile: usize,
    grid: Grid,
    finish: Finish<'a, O>,
}

impl<O: Float> Loops for Results<'_, O> {
    type Output = ();

    #[allow(unsafe_code)]
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { products, stride, tile, grid, finish } = self;
        let width = finish.width;
        let mut rows = [[0f32; PANEL]; OUT * OUT];
        let mut half = [[Lanes::ZERO; IN]; OUT];
        for column in (0..width).step_by(LANES) {
            for j in 0..IN {
                let mut m = [Lanes::ZERO; IN];
                for (i, m) in m.iter_mut().enumerate() {
                    *m = Lanes::read(&products[(i * IN + j) * stride + column..][..LANES]);
                }
                for (i, t) in transform_products::<FMA>(m).into_iter().enumerate() {
                    half[i][j] = t;
                }
            }
            for (i, half) in half.iter().enumerate() {
                for (j, t) in transform_products::<FMA>(*half).into_iter().enumerate() {
                    rows[i * OUT + j][column..column + LANES].copy_from_slice(&t.0);
                }
            }
        }
        for (i, (first, count)) in grid.lines(tile).enumerate() {
            for j in 0..count {
                // SAFETY: a task alone has its panel's columns of its tiles.
                unsafe { finish.row::<FMA>(first + j, &rows[i * OUT + j][..width]) };
            }
        }
    }
}

/// Memory that a thread keeps from one convolution to the next.
#[derive(Default)]
struct Scratch {
    /// `(PLACES, tiles, width)`.
    products: Aligned<f32>,
    /// `(PLACES, channels, width)`.
    weights: Aligned<f32>,
    widened: [Aligned<f32>; 9],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// Memory for transformed inputs that waits for the next convolution.
static SPARE: Mutex<Vec<Aligned<f32>>> = Mutex::new(Vec::new());

/// Like [`product`](super::gemm::product), where that [`pays`].
#[allow(unsafe_code)]
pub(crate) fn convolve<T: Float>(
    isa: Isa,
    x: &[T],
    window: &ConvGeometry,
    weights: &impl Panels<f32>,
    epilogue: &Epilogue<'_, T>,
) -> Vec<T> {
    let sizes = weights.sizes();
    let len = window.pixels() * sizes.results();
    assert!(window.is_dense_3x3() && sizes.taps == 9);
    epilogue.check(&sizes, len);
    let unset = T::narrow(f32::NAN);
    let fill = |out: &mut [MaybeUninit<T>]| {
        fill(isa, x, window, weights, epilogue, &Shared::new(out));
        abandon(epilogue.stop, out, unset);
    };
    // SAFETY: every pixel is in a tile, every column in a panel, and each tile meets each panel; or else all is
    // abandoned.
    unsafe { filled(len, unset, fill) }
}

fn fill<T: Float>(
    isa: Isa,
    x: &[T],
    window: &ConvGeometry,
    weights: &impl Panels<f32>,
    epilogue: &Epilogue<'_, T>,
    out: &Shared<'_, MaybeUninit<T>>,
) {
    let sizes = weights.sizes();
    let grid = Grid::new(window);
    let channels = sizes.channels;
    let all = window.images() * grid.down * grid.across;
    let fitting = (TRANSFORMED / (PLACES * channels * size_of::<f32>())).max(ROWS);
    let panels = sizes.width().div_ceil(PANEL);
    let spare = || SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut transformed = spare().pop().unwrap_or_default();
    for first in (0..all).step_by(fitting) {
        if epilogue.is_stopped() {
            break;
        }
        let tiles = fitting.min(all - first);
        let stride = apart(tiles * channels);
        // The memory may have more from another convolution.
        if transformed.len() < PLACES * stride {
            transformed.resize(PLACES * stride);
        }
        let places = Shared::new(&mut transformed);
        (0..tiles).into_par_iter().with_min_len(4).for_each(|i| {
            let tile = first + i;
            let start = i * channels;
            let out = &places;
            isa.vectorize(Inputs { x, window, grid, tile, channels, stride, start, out });
        });
        // As many tiles for each task, in as many tasks as threads can share.
        let wanted = rayon::current_num_threads().div_ceil(panels);
        let groups = tiles.div_ceil(TILES).max(wanted.min(tiles.div_ceil(ROWS)));
        let group = tiles.div_ceil(groups).next_multiple_of(ROWS);
        let groups = tiles.div_ceil(group);
        (0..groups * panels).into_par_iter().for_each(|task| {
            if epilogue.is_stopped() {
                return;
            }
            let (panel, start) = (task / groups, task % groups * group);
            let part = Part { panel, start, count: group.min(tiles - start), stride };
            let multiply = |scratch: &mut Scratch| {
                part.multiply(isa, &transformed, weights, scratch);
                let width = sizes.panel_width(panel);
                let finish = Finish { sizes: &sizes, epilogue, panel, width, out };
                for i in 0..part.count {
                    let tile = first + start + i;
                    if i + 1 < part.count {
                        for (pixel, count) in grid.lines(tile + 1) {
                            finish.prefetch(pixel, count);
                        }
                    }
                    isa.vectorize(Results {
                        products: &scratch.products[i * width..],
                        stride: apart(part.rows() * width),
                        tile,
                        grid,
                        finish,
                    });
                }
            };
            with_scratch(&SCRATCH, multiply);
        });
    }
    spare().push(transformed);
}

/// Some tiles and a panel of weights.
struct Part {
    panel: usize,
    /// Index of the first tile among the transformed ones.
    start: usize,
    count: usize,
    /// Distance between places of transformed tiles.
    stride: usize,
}

impl Part {
    /// Tiles with padding to whole products.
    fn rows(&self) -> usize {
        self.count.next_multiple_of(ROWS)
    }

    /// Leaves the sums over all channels in `scratch.products`.
    fn multiply(
        &self,
        isa: Isa,
        transformed: &[f32],
        weights: &impl Panels<f32>,
        scratch: &mut Scratch,
    ) {
        let sizes = weights.sizes();
        let (channels, width) = (sizes.channels, sizes.panel_width(self.panel));
        let Scratch { products, weights: kernels, widened } = scratch;
        let apart_products = apart(self.rows() * width);
        products.resize(PLACES * apart_products);
        for channel in (0..channels).step_by(CHANNELS) {
            let length = CHANNELS.min(channels - channel);
            let mut taps: [&[f32]; 9] = [&[]; 9];
            for (tap, (values, scratch)) in taps.iter_mut().zip(widened.iter_mut()).enumerate() {
                let block = Block { panel: self.panel, tap, taps: 1, channel, channels: length };
                *values = weights.block(isa, &block, scratch);
            }
            let stride = apart(length * width);
            kernels.resize(PLACES * stride);
            isa.vectorize(Kernels { taps, stride, out: kernels });
            for place in 0..PLACES {
                let panel = &kernels[place * stride..][..length * width];
                let products = &mut products[place * apart_products..];
                for row in (0..self.count).step_by(ROWS) {
                    let offsets: [usize; ROWS] = std::array::from_fn(|r| {
                        let tile = self.start + (row + r).min(self.count - 1);
                        place * self.stride + tile * channels + channel
                    });
                    let sums = &mut products[row * width..][..ROWS * width];
                    let offsets = &offsets;
                    Product {
                        values: transformed,
                        zeros: transformed,
                        offsets,
                        length,
                        panel,
                        width,
                    }
                    .add_to(isa, sums, channel == 0);
                }
            }
        }
    }
}
