//! Gradients of the convolution.
//!
//! The input's gradient of a convolution that keeps the size is a convolution with the kernel turned around; with a
//! stride, columns are scattered back. The kernel's is the product of the result's gradient and the gathered columns.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::matrix::{Into, Matrix, multiply};
use super::{Gradients, View, applies, attach, is_tracked, nothing, parts, total};
use crate::kernels::{self, reference};

/// See [`kernels::conv2d`].
pub(in crate::kernels) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: usize,
    stride: usize,
) -> Result<Tensor> {
    if !applies(&[x, weight]) || bias.is_some_and(|bias| !applies(&[bias])) {
        return reference::conv2d(x, weight, bias, padding, stride);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let detached = bias.map(Tensor::detach);
    let value = kernels::conv2d(&x.detach(), &weight.detach(), detached.as_ref(), padding, stride)?;
    let bias = match bias {
        Some(bias) => bias.contiguous()?,
        None => nothing(&x)?,
    };
    attach(&value, [&x, &weight, &bias], Convolution { padding, stride })
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
        let sizes = Sizes::new(x, weight, &gradient, self.padding, self.stride)?;
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
            return kernels::conv2d(gradient, &turned, None, kernel - 1 - self.padding, 1);
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
fn turned(weight: &Tensor, sizes: &Sizes) -> Result<Tensor> {
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
    Tensor::from_vec(turned, (inputs, outputs, kernel, kernel), &candle_core::Device::Cpu)
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
            let mut columns = vec![0f32; if sizes.is_plain() { 0 } else { rows * pixels }];
            for image in part * batch / count..(part + 1) * batch / count {
                let picture = &x[image * picture..][..picture];
                let gradient = &gradient[image * outputs * pixels..][..outputs * pixels];
                let columns = if sizes.is_plain() {
                    picture
                } else {
                    sizes.gather(picture, &mut columns);
                    &columns[..]
                };
                multiply(
                    Matrix::new(gradient, outputs, pixels, pixels),
                    Matrix::new(columns, rows, pixels, pixels).t(),
                    &mut sum,
                    rows,
                    (Into::Add, 1.0),
                );
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
    fn new(
        x: &Tensor,
        weight: &Tensor,
        gradient: &Tensor,
        padding: usize,
        stride: usize,
    ) -> Result<Self> {
        let (batch, inputs, height, width) = x.dims4()?;
        let (outputs, _, kernel, _) = weight.dims4()?;
        let (_, _, out_height, out_width) = gradient.dims4()?;
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

    /// Fills `(rows, pixels)` with what the outputs depend on, zero outside the picture.
    fn gather(&self, picture: &[f32], columns: &mut [f32]) {
        if self.stride > 1 {
            self.walk(|at, from| columns[at] = from.map_or(0.0, |from| picture[from]));
            return;
        }
        let area = self.height * self.width;
        let taps = self.kernel * self.kernel;
        for (row, columns) in columns.chunks_exact_mut(self.pixels()).enumerate() {
            let (channel, ky, kx) =
                (row / taps, row % taps / self.kernel, row % taps % self.kernel);
            let plane = &picture[channel * area..][..area];
            // Output columns whose input lies inside: from `first` on, `count` of them.
            let first = self.padding.saturating_sub(kx).min(self.out_width);
            let end = (self.width + self.padding).saturating_sub(kx).min(self.out_width);
            let count = end.saturating_sub(first);
            for (oy, line) in columns.chunks_exact_mut(self.out_width).enumerate() {
                match (oy + ky).checked_sub(self.padding).filter(|y| *y < self.height) {
                    Some(y) if count > 0 => {
                        let from = y * self.width + first + kx - self.padding;
                        line[..first].fill(0.0);
                        line[first..first + count].copy_from_slice(&plane[from..from + count]);
                        line[first + count..].fill(0.0);
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
