//! The convolution and its gradients.
//!
//! Images are turned so that their channels are innermost. The result is then a product of packed weights, and so is
//! the input's gradient, with the kernel turned around; with a stride, its columns are scattered back. For the kernel's
//! gradient what the outputs of a strip of lines depend on is gathered into rows and multiplied with the result's.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::matrix::{Into, Matrix, multiply};
use super::{Gradients, View, applies, attach, is_tracked, nothing, parts, sum_of_rows, total};
use crate::kernels::cpu::conv_geometry::ConvGeometry;
use crate::kernels::cpu::gemm::{self, Epilogue};
use crate::kernels::cpu::isa::Isa;
use crate::kernels::cpu::pack::{self, Columns, Packed};
use crate::kernels::{self, Activation, ConvArgs, reference};

/// See [`crate::kernels::conv2d`]: what comes before and after are ops of their own.
pub(in crate::kernels) fn conv2d_with(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    args: &ConvArgs<'_>,
) -> Result<Tensor> {
    let rest = [bias, args.shift, args.residual].into_iter().flatten();
    if !applies(&[x, weight]) || !rest.clone().all(|tensor| applies(&[tensor])) {
        return reference::conv2d(x, weight, bias, args);
    }
    let stretched;
    let x = match args.stretch {
        Some(size) => {
            stretched = kernels::upsample_nearest(x, size)?;
            &stretched
        }
        None => x,
    };
    let (before, after) = args.padding;
    let y = if before == after {
        conv2d(x, weight, bias, before, args.stride)?
    } else {
        let x = x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?;
        conv2d(&x, weight, bias, 0, args.stride)?
    };
    let y = match args.shift {
        Some(shift) => kernels::add_per_channel(&y, &shift.unsqueeze(0)?)?,
        None => y,
    };
    let y = match args.activation {
        Activation::None => y,
        Activation::Silu => y.silu()?,
        Activation::Relu => y.relu()?,
    };
    match args.residual {
        Some(residual) => y + residual,
        None => Ok(y),
    }
}

/// The convolution alone, in f32 on the CPU.
fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: usize,
    stride: usize,
) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let bias = match bias {
        Some(bias) => bias.contiguous()?,
        None => nothing(&x)?,
    };
    let sizes = Sizes::new(&x, &weight, padding, stride)?;
    let shape = (sizes.batch, sizes.outputs, sizes.out_height, sizes.out_width);
    let values = {
        let (x, weight, bias) = (View::new(&x)?, View::new(&weight)?, View::new(&bias)?);
        let Sizes { batch, inputs, outputs, taps, .. } = sizes;
        let weight = weight.values();
        let packed = packed((outputs, taps, inputs), |o, t, i| weight[(o * inputs + i) * taps + t]);
        let bias = (bias.values().len() == outputs).then(|| {
            let mut spread = bias.values().to_vec();
            spread.resize(packed.width(), 0.0);
            spread
        });
        let x = turned(x.values(), batch, inputs, sizes.picture());
        let y = packed.product(&x, &sizes.window()?, bias.as_deref());
        turned(&y, batch, sizes.pixels(), outputs)
    };
    attach(values, shape, [&x, &weight, &bias], Convolution { padding, stride })
}

struct Convolution {
    padding: usize,
    stride: usize,
}

impl Gradients for Convolution {
    const NAME: &'static str = "conv2d";

    fn gradients(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let gradient = gradient.contiguous()?;
        let sizes = Sizes::new(x, weight, self.padding, self.stride)?;
        let slopes =
            turned(View::new(&gradient)?.values(), sizes.batch, sizes.outputs, sizes.pixels());
        let (x_view, weight_view) = (View::new(x)?, View::new(weight)?);
        let of_x = is_tracked(&[x]).then(|| {
            let values = sizes.of_input(weight_view.values(), &slopes)?;
            Tensor::from_vec(values, x.shape(), &Device::Cpu)
        });
        let of_weight = is_tracked(&[weight]).then(|| {
            let values = sizes.of_weight(x_view.values(), &slopes);
            Tensor::from_vec(values, weight.shape(), &Device::Cpu)
        });
        let of_bias = is_tracked(&[bias]).then(|| {
            Tensor::from_vec(sum_of_rows(&slopes, sizes.outputs), sizes.outputs, &Device::Cpu)
        });
        Ok([of_x.transpose()?, of_weight.transpose()?, of_bias.transpose()?])
    }
}

/// Every image's `(rows, columns)` as `(columns, rows)`.
fn turned(values: &[f32], pictures: usize, rows: usize, columns: usize) -> Vec<f32> {
    if rows == 1 || columns == 1 {
        return values.to_vec();
    }
    let mut out = vec![0f32; pictures * rows * columns];
    let size = (rows * columns).max(1);
    let pairs = out.par_chunks_mut(size).zip(values.par_chunks(size));
    pairs.with_min_len((16 * 1024 / size).max(1)).for_each(|(out, values)| {
        for row in (0..rows).step_by(BLOCK) {
            for column in (0..columns).step_by(BLOCK) {
                turn_block(out, values, (rows, columns), (row, column));
            }
        }
    });
    out
}

/// Lines and columns of a block that is turned at once: a cache line each way.
const BLOCK: usize = 16;

/// The block at `(row, column)` of a matrix.
fn turn_block(
    out: &mut [f32],
    values: &[f32],
    (rows, columns): (usize, usize),
    (row, column): (usize, usize),
) {
    let (down, across) = (BLOCK.min(rows - row), BLOCK.min(columns - column));
    let mut block = [[0f32; BLOCK]; BLOCK];
    for (line, block) in block[..down].iter_mut().enumerate() {
        let line = &values[(row + line) * columns + column..];
        match line.first_chunk() {
            Some(whole) if across == BLOCK => *block = *whole,
            _ => block[..across].copy_from_slice(&line[..across]),
        }
    }
    for i in 0..across {
        let line = &mut out[(column + i) * rows + row..];
        if down == BLOCK {
            let line = &mut line[..BLOCK];
            for (value, block) in line.iter_mut().zip(&block) {
                *value = block[i];
            }
        } else {
            for (value, block) in line[..down].iter_mut().zip(&block) {
                *value = block[i];
            }
        }
    }
}

/// Packs `at(output, tap, channel)`.
fn packed(
    (outputs, taps, channels): (usize, usize, usize),
    at: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Kernel {
    let sizes = pack::Sizes { outputs, taps, channels, columns: Columns::Plain };
    Kernel { sizes, packed: Packed::new(sizes, at) }
}

/// Weights for one product.
struct Kernel {
    sizes: pack::Sizes,
    packed: Packed<f32>,
}

impl Kernel {
    fn width(&self) -> usize {
        self.sizes.width()
    }

    /// With images whose channels are innermost.
    fn product(&self, x: &[f32], window: &ConvGeometry, bias: Option<&[f32]>) -> Vec<f32> {
        let epilogue = Epilogue { bias, ..Epilogue::default() };
        gemm::product(Isa::current(), x, window, &self.packed, &epilogue)
    }
}

/// The sizes of one convolution.
struct Sizes {
    batch: usize,
    inputs: usize,
    outputs: usize,
    height: usize,
    width: usize,
    kernel: usize,
    taps: usize,
    padding: usize,
    stride: usize,
    out_height: usize,
    out_width: usize,
}

impl Sizes {
    fn new(x: &Tensor, weight: &Tensor, padding: usize, stride: usize) -> Result<Self> {
        let (batch, inputs, height, width) = x.dims4()?;
        let (outputs, wanted, kernel, kernel_width) = weight.dims4()?;
        let side = |size: usize| Some((size + 2 * padding).checked_sub(kernel)? / stride + 1);
        let is_sound = wanted == inputs && kernel == kernel_width && stride > 0 && kernel > 0;
        let (Some(out_height), Some(out_width)) =
            (is_sound.then(|| side(height)).flatten(), is_sound.then(|| side(width)).flatten())
        else {
            candle_core::bail!(
                "convolution of {:?} with {:?}, padding {padding}, stride {stride}",
                x.dims(),
                weight.dims()
            );
        };
        let taps = kernel * kernel;
        Ok(Self {
            batch,
            inputs,
            outputs,
            height,
            width,
            kernel,
            taps,
            padding,
            stride,
            out_height,
            out_width,
        })
    }

    /// Pixels of the input.
    fn picture(&self) -> usize {
        self.height * self.width
    }

    /// Pixels of the result.
    fn pixels(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Values that one output depends on.
    fn depth(&self) -> usize {
        self.taps * self.inputs
    }

    fn window(&self) -> Result<ConvGeometry> {
        let (size, padding) = ((self.height, self.width), (self.padding, self.padding));
        ConvGeometry::convolution(self.batch, size, size, self.kernel, padding, self.stride)
            .ok_or_else(|| candle_core::Error::msg("a kernel larger than its image"))
    }

    /// The gradient of the input, `(batch, inputs, height, width)`, from the result's, whose channels are innermost.
    fn of_input(&self, weight: &[f32], slopes: &[f32]) -> Result<Vec<f32>> {
        let Self { batch, inputs, outputs, kernel, taps, .. } = *self;
        if self.stride == 1 && self.padding < kernel {
            let packed = packed((inputs, taps, outputs), |i, t, o| {
                weight[(o * inputs + i) * taps + taps - 1 - t]
            });
            let (size, padding) = ((self.out_height, self.out_width), kernel - 1 - self.padding);
            let window =
                ConvGeometry::convolution(batch, size, size, kernel, (padding, padding), 1)
                    .ok_or_else(|| candle_core::Error::msg("a kernel larger than its image"))?;
            let values = packed.product(slopes, &window, None);
            return Ok(turned(&values, batch, self.picture(), inputs));
        }
        // `(taps, inputs)` for every pixel of the result.
        let packed = packed((taps * inputs, 1, outputs), |row, _, o| {
            weight[(o * inputs + row % inputs) * taps + row / inputs]
        });
        let columns = packed.product(slopes, &ConvGeometry::rows(batch * self.pixels()), None);
        let mut out = vec![0f32; batch * self.picture() * inputs];
        let (picture, each) = (self.picture() * inputs, self.pixels() * self.depth());
        out.par_chunks_mut(picture.max(1)).zip(columns.par_chunks(each.max(1))).for_each(
            |(out, columns)| {
                for (pixel, columns) in columns.chunks_exact(self.depth()).enumerate() {
                    for (tap, column) in columns.chunks_exact(inputs).enumerate() {
                        let Some(from) = self.place(pixel, tap) else { continue };
                        let out = &mut out[from * inputs..][..inputs];
                        out.iter_mut().zip(column).for_each(|(out, value)| *out += value);
                    }
                }
            },
        );
        Ok(turned(&out, batch, self.picture(), inputs))
    }

    /// The gradient of the kernel, from the input as it is and the result's gradient, whose channels are innermost.
    fn of_weight(&self, x: &[f32], slopes: &[f32]) -> Vec<f32> {
        /// Gathered values, about as many as a core's own cache holds.
        const MOST: usize = 128 * 1024;
        let Self { batch, inputs, outputs, taps, .. } = *self;
        let (depth, pixels, picture) = (self.depth(), self.pixels(), self.picture());
        let x = turned(x, batch, inputs, picture);
        let is_plain = taps == 1 && self.padding == 0 && self.stride == 1;
        let strip = if is_plain { pixels } else { (MOST / depth).clamp(1, pixels.max(1)) };
        let count = parts(batch);
        let sums: Vec<Vec<f32>> = (0..count)
            .into_par_iter()
            .map(|part| {
                let mut sum = vec![0f32; outputs * depth];
                let mut rows = Vec::new();
                for image in part * batch / count..(part + 1) * batch / count {
                    let picture = &x[image * picture * inputs..][..picture * inputs];
                    for first in (0..pixels).step_by(strip) {
                        let count = strip.min(pixels - first);
                        let rows = if is_plain {
                            picture
                        } else {
                            rows.resize(count * depth, 0.0);
                            self.gather(picture, first, &mut rows);
                            &rows
                        };
                        let slopes = &slopes[(image * pixels + first) * outputs..];
                        multiply(
                            Matrix::new(slopes, count, outputs, outputs).t(),
                            Matrix::new(rows, count, depth, depth),
                            &mut sum,
                            depth,
                            (Into::Add, 1.0),
                        );
                    }
                }
                sum
            })
            .collect();
        // `(outputs, taps, inputs)` as yet.
        turned(&total(sums, outputs * depth), outputs, taps, inputs)
    }

    /// The pixel of the input that a pixel of the result sees through a tap.
    fn place(&self, pixel: usize, tap: usize) -> Option<usize> {
        let along = |at: usize, k: usize, size: usize| {
            (at * self.stride + k).checked_sub(self.padding).filter(|at| *at < size)
        };
        let y = along(pixel / self.out_width, tap / self.kernel, self.height)?;
        let x = along(pixel % self.out_width, tap % self.kernel, self.width)?;
        Some(y * self.width + x)
    }

    /// Fills `(pixels, taps, inputs)` with what the outputs from `first` on depend on, zero outside the image.
    fn gather(&self, picture: &[f32], first: usize, rows: &mut [f32]) {
        let Self { inputs, kernel, .. } = *self;
        for (pixel, row) in (first..).zip(rows.chunks_exact_mut(self.depth())) {
            for (line, row) in row.chunks_exact_mut(kernel * inputs).enumerate() {
                let tap = line * kernel;
                // The taps of a line lie side by side in the image as well, unless it ends there.
                let ends = (self.place(pixel, tap), self.place(pixel, tap + kernel - 1));
                if let (Some(from), Some(_)) = ends {
                    row.copy_from_slice(&picture[from * inputs..][..kernel * inputs]);
                    continue;
                }
                for (tap, row) in (tap..).zip(row.chunks_exact_mut(inputs)) {
                    match self.place(pixel, tap) {
                        Some(from) => row.copy_from_slice(&picture[from * inputs..][..inputs]),
                        None => row.fill(0.0),
                    }
                }
            }
        }
    }
}
