//! The convolution and its gradients.
//!
//! What the outputs of a strip of lines depend on is gathered into columns and multiplied with all kernels at once. The
//! input's gradient is a convolution with the kernel turned around; with a stride, columns are scattered back. The
//! kernel's is the product of the result's gradient and the same columns.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::matrix::{Into, Matrix, multiply};
use super::{Gradients, View, applies, attach, is_tracked, nothing, parts, total};
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
        Some(shift) => kernels::shift_channels(&y, &shift.unsqueeze(0)?)?,
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
        let has_bias = bias.values().len() == sizes.outputs;
        let bias = has_bias.then(|| bias.values());
        sizes.convolve(x.values(), weight.values(), bias)
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
        Ok([
            is_tracked(&[x]).then(|| self.of_input(&sizes, weight, &gradient)).transpose()?,
            is_tracked(&[weight]).then(|| of_weight(&sizes, x, &gradient)).transpose()?,
            is_tracked(&[bias]).then(|| of_bias(&sizes, &gradient)).transpose()?,
        ])
    }
}

impl Convolution {
    fn of_input(&self, sizes: &Sizes, weight: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let Sizes { batch, inputs, outputs, height, width, kernel, .. } = *sizes;
        if self.stride == 1 && self.padding < kernel {
            let turned = turned(weight, sizes)?;
            let back = Sizes {
                inputs: outputs,
                outputs: inputs,
                height: sizes.out_height,
                width: sizes.out_width,
                padding: kernel - 1 - self.padding,
                out_height: height,
                out_width: width,
                ..*sizes
            };
            let values = back.convolve(View::new(gradient)?.values(), &turned, None);
            let shape = (batch, inputs, height, width);
            return Tensor::from_vec(values, shape, &candle_core::Device::Cpu);
        }
        let (rows, pixels) = (sizes.rows(), sizes.pixels());
        let (weight, gradient) = (View::new(weight)?, View::new(gradient)?);
        let (weight, gradient) = (weight.values(), gradient.values());
        let picture = inputs * height * width;
        let mut out = vec![0f32; batch * picture];
        out.par_chunks_mut(picture).enumerate().for_each_init(
            || vec![0f32; rows * pixels],
            |columns, (image, out)| {
                let gradient = &gradient[image * outputs * pixels..][..outputs * pixels];
                multiply(
                    Matrix::new(weight, outputs, rows, rows).t(),
                    Matrix::new(gradient, outputs, pixels, pixels),
                    columns,
                    pixels,
                    (Into::Replace, 1.0),
                );
                sizes.walk(|at, from| {
                    if let Some(from) = from {
                        out[from] += columns[at];
                    }
                });
            },
        );
        Tensor::from_vec(out, (batch, inputs, height, width), &candle_core::Device::Cpu)
    }
}

/// `(outputs, inputs, kernel, kernel)` to `(inputs, outputs, kernel, kernel)`, rows and columns reversed.
fn turned(weight: &Tensor, sizes: &Sizes) -> Result<Vec<f32>> {
    let Sizes { inputs, outputs, kernel, .. } = *sizes;
    let taps = kernel * kernel;
    let view = View::new(weight)?;
    let weight = view.values();
    let mut turned = vec![0f32; weight.len()];
    for o in 0..outputs {
        for i in 0..inputs {
            for tap in 0..taps {
                turned[(i * outputs + o) * taps + taps - 1 - tap] =
                    weight[(o * inputs + i) * taps + tap];
            }
        }
    }
    Ok(turned)
}

fn of_weight(sizes: &Sizes, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let Sizes { batch, inputs, outputs, height, width, kernel, .. } = *sizes;
    let (rows, pixels) = (sizes.rows(), sizes.pixels());
    let (x, gradient) = (View::new(x)?, View::new(gradient)?);
    let (x, gradient) = (x.values(), gradient.values());
    let picture = inputs * height * width;
    let count = parts(batch);
    let sums: Vec<Vec<f32>> = (0..count)
        .into_par_iter()
        .map(|part| {
            let mut sum = vec![0f32; outputs * rows];
            let mut columns = Vec::new();
            for image in part * batch / count..(part + 1) * batch / count {
                let picture = &x[image * picture..][..picture];
                let gradient = &gradient[image * outputs * pixels..][..outputs * pixels];
                sizes.strips(picture, &mut columns, |start, columns| {
                    let count = columns.columns();
                    multiply(
                        Matrix::new(&gradient[start..], outputs, count, pixels),
                        columns.t(),
                        &mut sum,
                        rows,
                        (Into::Add, 1.0),
                    );
                });
            }
            sum
        })
        .collect();
    let sum = total(sums, outputs * rows);
    Tensor::from_vec(sum, (outputs, inputs, kernel, kernel), &candle_core::Device::Cpu)
}

fn of_bias(sizes: &Sizes, gradient: &Tensor) -> Result<Tensor> {
    let Sizes { outputs, .. } = *sizes;
    let view = View::new(gradient)?;
    let mut sum = vec![0f32; outputs];
    for (i, plane) in view.values().chunks_exact(sizes.pixels().max(1)).enumerate() {
        sum[i % outputs] += plane.iter().sum::<f32>();
    }
    Tensor::from_vec(sum, outputs, &candle_core::Device::Cpu)
}

/// The sizes of one convolution.
struct Sizes {
    batch: usize,
    inputs: usize,
    outputs: usize,
    height: usize,
    width: usize,
    kernel: usize,
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
        Ok(Self {
            batch,
            inputs,
            outputs,
            height,
            width,
            kernel,
            padding,
            stride,
            out_height,
            out_width,
        })
    }

    /// The convolution of all pictures.
    fn convolve(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let Self { batch, inputs, outputs, height, width, .. } = *self;
        let (rows, pixels, picture) = (self.rows(), self.pixels(), inputs * height * width);
        let mut out = vec![0f32; batch * outputs * pixels];
        let images = out.par_chunks_mut((outputs * pixels).max(1)).enumerate();
        images.for_each_init(Vec::new, |columns, (image, out)| {
            if let Some(bias) = bias {
                for (plane, bias) in out.chunks_exact_mut(pixels).zip(bias) {
                    plane.fill(*bias);
                }
            }
            self.strips(&x[image * picture..][..picture], columns, |start, columns| {
                let weight = Matrix::new(weight, outputs, rows, rows);
                multiply(weight, columns, &mut out[start..], pixels, (Into::Add, 1.0));
            });
        });
        out
    }

    /// Hands out the columns of strips of whole lines, `(rows, pixels of the strip)`, and where each strip begins.
    fn strips(
        &self,
        picture: &[f32],
        columns: &mut Vec<f32>,
        mut visit: impl FnMut(usize, Matrix<'_>),
    ) {
        /// Values of a strip, about as many as a core's own cache holds.
        const MOST: usize = 128 * 1024;
        let (rows, pixels) = (self.rows(), self.pixels());
        if self.is_plain() {
            return visit(0, Matrix::new(picture, rows, pixels, pixels));
        }
        let each = (MOST / (rows * self.out_width).max(1)).clamp(1, self.out_height.max(1));
        for first in (0..self.out_height).step_by(each) {
            let lines = first..(first + each).min(self.out_height);
            let count = lines.len() * self.out_width;
            columns.resize(rows * count, 0.0);
            self.gather(picture, lines, columns);
            visit(first * self.out_width, Matrix::new(columns, rows, count, count));
        }
    }

    /// Values that one output depends on.
    fn rows(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }

    /// Outputs of one plane.
    fn pixels(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Whether the picture itself is the matrix of columns.
    fn is_plain(&self) -> bool {
        self.kernel == 1 && self.padding == 0 && self.stride == 1
    }

    /// Fills `(rows, pixels of the lines)` with what the outputs depend on, zero outside the picture.
    fn gather(&self, picture: &[f32], lines: Range<usize>, columns: &mut [f32]) {
        let area = self.height * self.width;
        let taps = self.kernel * self.kernel;
        let count = lines.len() * self.out_width;
        for (row, columns) in columns.chunks_exact_mut(count.max(1)).enumerate() {
            let (channel, ky, kx) =
                (row / taps, row % taps / self.kernel, row % taps % self.kernel);
            let plane = &picture[channel * area..][..area];
            // Output columns whose input lies inside: from `first` on, up to `end`.
            let first = self.padding.saturating_sub(kx).div_ceil(self.stride).min(self.out_width);
            let end = (self.width + self.padding).saturating_sub(kx).div_ceil(self.stride);
            let end = end.min(self.out_width).max(first);
            for (oy, line) in lines.clone().zip(columns.chunks_exact_mut(self.out_width)) {
                let y = (oy * self.stride + ky).checked_sub(self.padding);
                match y.filter(|y| *y < self.height) {
                    Some(y) if end > first => {
                        let from = y * self.width + first * self.stride + kx - self.padding;
                        line[..first].fill(0.0);
                        if self.stride == 1 {
                            line[first..end].copy_from_slice(&plane[from..from + end - first]);
                        } else {
                            let inside = plane[from..].iter().step_by(self.stride);
                            for (value, x) in line[first..end].iter_mut().zip(inside) {
                                *value = *x;
                            }
                        }
                        line[end..].fill(0.0);
                    }
                    _ => line.fill(0.0),
                }
            }
        }
    }

    /// Tells for every place of the columns which value of the picture it has, if any.
    fn walk(&self, mut visit: impl FnMut(usize, Option<usize>)) {
        let taps = self.kernel * self.kernel;
        let mut at = 0;
        for row in 0..self.rows() {
            let (channel, ky, kx) =
                (row / taps, row % taps / self.kernel, row % taps % self.kernel);
            for oy in 0..self.out_height {
                let y = (oy * self.stride + ky).checked_sub(self.padding);
                let y = y.filter(|y| *y < self.height);
                for ox in 0..self.out_width {
                    let x = (ox * self.stride + kx).checked_sub(self.padding);
                    let x = x.filter(|x| *x < self.width);
                    let from = y.zip(x).map(|(y, x)| (channel * self.height + y) * self.width + x);
                    visit(at, from);
                    at += 1;
                }
            }
        }
    }
}
