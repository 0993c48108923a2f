//! The convolution and its gradients.
//!
//! Images are transposed to channels-last. The result is then a product with packed weights, and so is the input's
//! gradient, with the flipped kernel; with a stride, its columns are scattered back (col2im). For the kernel's
//! gradient, the inputs of a strip of output rows are gathered (im2col) and multiplied with the result's gradient.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::matrix::{Into, Matrix, multiply};
use super::{Gradients, View, applies, attach, is_tracked, nothing, parts, sum_of_rows, total};
use crate::cpu::conv_geometry::ConvGeometry;
use crate::cpu::gemm::{self, Epilogue};
use crate::cpu::isa::Isa;
use crate::cpu::pack::{self, Columns, Packed};
use crate::{Activation, ConvArgs, reference};

/// See [`crate::conv2d`]: what comes before and after are ops of their own.
pub(crate) fn conv2d_with(
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
            stretched = crate::upsample_nearest(x, size)?;
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
        Some(shift) => crate::add_per_channel(&y, &shift.unsqueeze(0)?)?,
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
        let x = transposed(x.values(), batch, inputs, sizes.input_pixels());
        let y = packed.product(&x, &sizes.window()?, bias.as_deref());
        transposed(&y, batch, sizes.pixels(), outputs)
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
        let grad_out =
            transposed(View::new(&gradient)?.values(), sizes.batch, sizes.outputs, sizes.pixels());
        let (x_view, weight_view) = (View::new(x)?, View::new(weight)?);
        let grad_x = is_tracked(&[x]).then(|| {
            let values = sizes.grad_input(weight_view.values(), &grad_out)?;
            Tensor::from_vec(values, x.shape(), &Device::Cpu)
        });
        let grad_weight = is_tracked(&[weight]).then(|| {
            let values = sizes.grad_weight(x_view.values(), &grad_out);
            Tensor::from_vec(values, weight.shape(), &Device::Cpu)
        });
        let grad_bias = is_tracked(&[bias]).then(|| {
            Tensor::from_vec(sum_of_rows(&grad_out, sizes.outputs), sizes.outputs, &Device::Cpu)
        });
        Ok([grad_x.transpose()?, grad_weight.transpose()?, grad_bias.transpose()?])
    }
}

/// Every image's `(rows, columns)` as `(columns, rows)`.
fn transposed(values: &[f32], images: usize, rows: usize, columns: usize) -> Vec<f32> {
    if rows == 1 || columns == 1 {
        return values.to_vec();
    }
    let mut out = vec![0f32; images * rows * columns];
    let size = (rows * columns).max(1);
    let pairs = out.par_chunks_mut(size).zip(values.par_chunks(size));
    pairs.with_min_len((16 * 1024 / size).max(1)).for_each(|(out, values)| {
        for row in (0..rows).step_by(BLOCK) {
            for column in (0..columns).step_by(BLOCK) {
                transpose_block(out, values, (rows, columns), (row, column));
            }
        }
    });
    out
}

/// Lines and columns of a block that is transposed at once: a cache line each way.
const BLOCK: usize = 16;

/// The block at `(row, column)` of a matrix.
fn transpose_block(
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

    /// The product with channels-last images, plus `bias`.
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
    fn input_pixels(&self) -> usize {
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
    fn grad_input(&self, weight: &[f32], grad_out: &[f32]) -> Result<Vec<f32>> {
        let Self { batch, inputs, outputs, kernel, taps, .. } = *self;
        if self.stride == 1 && self.padding < kernel {
            let packed = packed((inputs, taps, outputs), |i, t, o| {
                weight[(o * inputs + i) * taps + taps - 1 - t]
            });
            let (size, padding) = ((self.out_height, self.out_width), kernel - 1 - self.padding);
            let window =
                ConvGeometry::convolution(batch, size, size, kernel, (padding, padding), 1)
                    .ok_or_else(|| candle_core::Error::msg("a kernel larger than its image"))?;
            let values = packed.product(grad_out, &window, None);
            return Ok(transposed(&values, batch, self.input_pixels(), inputs));
        }
        // `(taps, inputs)` for every pixel of the result.
        let packed = packed((taps * inputs, 1, outputs), |row, _, o| {
            weight[(o * inputs + row % inputs) * taps + row / inputs]
        });
        let columns = packed.product(grad_out, &ConvGeometry::rows(batch * self.pixels()), None);
        let mut out = vec![0f32; batch * self.input_pixels() * inputs];
        let (size, each) = (self.input_pixels() * inputs, self.pixels() * self.depth());
        out.par_chunks_mut(size.max(1)).zip(columns.par_chunks(each.max(1))).for_each(
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
        Ok(transposed(&out, batch, self.input_pixels(), inputs))
    }

    /// The gradient of the kernel, from the input as it is and the result's gradient, whose channels are innermost.
    fn grad_weight(&self, x: &[f32], grad_out: &[f32]) -> Vec<f32> {
        /// Gathered values, about as many as a core's own cache holds.
        const MOST: usize = 128 * 1024;
        let Self { batch, inputs, outputs, taps, .. } = *self;
        let (depth, pixels, input_pixels) = (self.depth(), self.pixels(), self.input_pixels());
        let x = transposed(x, batch, inputs, input_pixels);
        let is_plain = taps == 1 && self.padding == 0 && self.stride == 1;
        let strip = if is_plain { pixels } else { (MOST / depth).clamp(1, pixels.max(1)) };
        let count = parts(batch);
        let sums: Vec<Vec<f32>> = (0..count)
            .into_par_iter()
            .map(|part| {
                let mut sum = vec![0f32; outputs * depth];
                let mut rows = Vec::new();
                for i in part * batch / count..(part + 1) * batch / count {
                    let image = &x[i * input_pixels * inputs..][..input_pixels * inputs];
                    for first in (0..pixels).step_by(strip) {
                        let count = strip.min(pixels - first);
                        let rows = if is_plain {
                            image
                        } else {
                            rows.resize(count * depth, 0.0);
                            self.gather(image, first, &mut rows);
                            &rows
                        };
                        let grad_out = &grad_out[(i * pixels + first) * outputs..];
                        multiply(
                            Matrix::new(grad_out, count, outputs, outputs).t(),
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
        transposed(&total(sums, outputs * depth), outputs, taps, inputs)
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
    fn gather(&self, image: &[f32], first: usize, rows: &mut [f32]) {
        let Self { inputs, kernel, .. } = *self;
        for (pixel, row) in (first..).zip(rows.chunks_exact_mut(self.depth())) {
            for (line, row) in row.chunks_exact_mut(kernel * inputs).enumerate() {
                let tap = line * kernel;
                // The taps of a line lie side by side in the image as well, unless it ends there.
                let ends = (self.place(pixel, tap), self.place(pixel, tap + kernel - 1));
                if let (Some(from), Some(_)) = ends {
                    row.copy_from_slice(&image[from * inputs..][..kernel * inputs]);
                    continue;
                }
                for (tap, row) in (tap..).zip(row.chunks_exact_mut(inputs)) {
                    match self.place(pixel, tap) {
                        Some(from) => row.copy_from_slice(&image[from * inputs..][..inputs]),
                        None => row.fill(0.0),
                    }
                }
            }
        }
    }
}
