//! Gradients of the normalizations.

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use super::{Gradients, View, applies, attach, is_tracked, parts, sum_of, total};
use crate::cpu::isa::{ALWAYS_FMA, vectorized};
use crate::cpu::math;
use crate::{GroupNormOptions, reference};

/// See [`crate::group_norm`].
pub(crate) fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    options: &GroupNormOptions,
) -> Result<Tensor> {
    if !applies(&[x, weight, bias]) {
        return reference::group_norm(x, weight, bias, options);
    }
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    let GroupNormOptions { groups, eps, frames, silu } = *options;
    let (_, channels, height, width) = x.dims4()?;
    let (area, per_group) = (height * width, channels / groups);
    let image = channels * area;
    let mut values = vec![0f32; x.elem_count()];
    {
        let (x, weight, bias) = (View::new(&x)?, View::new(&weight)?, View::new(&bias)?);
        let clips = values.par_chunks_mut((frames * image).max(1));
        let normalize = |out: &mut [f32], x: &[f32]| {
            for group in 0..groups {
                let from = group * per_group * area;
                let runs = (0..frames).map(|f| &x[f * image + from..][..per_group * area]);
                let (mean, scale) = statistics(&runs, eps);
                for plane in 0..frames * per_group {
                    let (frame, channel) =
                        (plane / per_group, group * per_group + plane % per_group);
                    let at = frame * image + channel * area;
                    let (w, b) = (scale * weight.values()[channel], bias.values()[channel]);
                    let pairs = out[at..][..area].iter_mut().zip(&x[at..][..area]);
                    if silu {
                        pairs.for_each(|(out, x)| {
                            *out = math::silu::<ALWAYS_FMA>((x - mean) * w + b);
                        });
                    } else {
                        pairs.for_each(|(out, x)| *out = (x - mean) * w + b);
                    }
                }
            }
        };
        clips
            .zip(x.values().par_chunks((frames * image).max(1)))
            .for_each(|(out, x)| vectorized(|| normalize(out, x)));
    }
    attach(values, x.shape(), [&x, &weight, &bias], Group(*options))
}

/// Rows that a task normalizes.
const ROWS: usize = 64;

/// See [`crate::layer_norm`].
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if !applies(&[x, weight, bias]) {
        return reference::layer_norm(x, weight, bias, eps, None);
    }
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    let width = x.dim(D::Minus1)?.max(1);
    let mut values = vec![0f32; x.elem_count()];
    {
        let (x, weight, bias) = (View::new(&x)?, View::new(&weight)?, View::new(&bias)?);
        let normalize = |(out, x): (&mut [f32], &[f32])| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let (mean, scale) = statistics(&std::iter::once(x), eps);
                let factors = weight.values().iter().zip(bias.values());
                for ((out, x), (w, b)) in out.iter_mut().zip(x).zip(factors) {
                    *out = (x - mean) * scale * w + b;
                }
            }
        };
        let rows = values.par_chunks_mut(ROWS * width).zip(x.values().par_chunks(ROWS * width));
        rows.for_each(|rows| vectorized(|| normalize(rows)));
    }
    attach(values, x.shape(), [&x, &weight, &bias], Layer { eps })
}

/// Mean and 1 / standard deviation.
#[inline(always)]
fn statistics<'a>(runs: &(impl Iterator<Item = &'a [f32]> + Clone), eps: f64) -> (f32, f32) {
    let count = runs.clone().map(<[f32]>::len).sum::<usize>().max(1) as f64;
    let mean = (runs.clone().map(|run| sum_of(run, |v| v)).sum::<f64>() / count) as f32;
    let squares: f64 = runs.clone().map(|run| sum_of(run, |v| (v - mean) * (v - mean))).sum();
    (mean, (1.0 / (squares / count + eps).sqrt()) as f32)
}

struct Group(GroupNormOptions);

impl Gradients for Group {
    const NAME: &'static str = "group-norm";

    fn gradients(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let gradient = gradient.contiguous()?;
        let GroupNormOptions { groups, eps, frames, silu } = self.0;
        let (images, channels, height, width) = x.dims4()?;
        let (area, per_group, clips) = (height * width, channels / groups, images / frames);
        let image = channels * area;
        let views = (View::new(x)?, View::new(weight)?, View::new(bias)?, View::new(&gradient)?);
        let (values, weights, biases, grad_out) =
            (views.0.values(), views.1.values(), views.2.values(), views.3.values());

        // A clip's part of the input's gradient, and its sums for weight and bias.
        let clip_gradients = |clip: usize, out: &mut [f32]| {
            let values = &values[clip * frames * image..][..frames * image];
            let grad_out = &grad_out[clip * frames * image..][..frames * image];
            let mut grad_weight = vec![0f32; channels];
            let mut grad_bias = vec![0f32; channels];
            for group in 0..groups {
                let from = group * per_group * area;
                let runs =
                    (0..frames).map(|frame| &values[frame * image + from..][..per_group * area]);
                let (mean, scale) = statistics(&runs, eps);
                let (mut sum, mut product) = (0f64, 0f64);
                for frame in 0..frames {
                    for channel in group * per_group..(group + 1) * per_group {
                        let at = frame * image + channel * area;
                        let (w, b) = (weights[channel], biases[channel]);
                        let (x, y) = (&values[at..][..area], &grad_out[at..][..area]);
                        let out = &mut out[at..][..area];
                        if silu {
                            for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
                                *out = y * silu_slope((x - mean) * scale * w + b);
                            }
                        } else {
                            out.copy_from_slice(y);
                        }
                        let (s, p) = sums(out, x, mean);
                        let p = p * scale;
                        grad_bias[channel] += s;
                        grad_weight[channel] += p;
                        sum += f64::from(s * w);
                        product += f64::from(p * w);
                    }
                }
                let count = (frames * per_group * area).max(1) as f64;
                let (sum, product) = ((sum / count) as f32, (product / count) as f32);
                for frame in 0..frames {
                    let channels = group * per_group..(group + 1) * per_group;
                    for (channel, w) in channels.clone().zip(&weights[channels]) {
                        let at = frame * image + channel * area;
                        let out = &mut out[at..][..area];
                        for (out, x) in out.iter_mut().zip(&values[at..][..area]) {
                            let unit = (x - mean) * scale;
                            *out = scale * (*out * w - sum - unit * product);
                        }
                    }
                }
            }
            (grad_weight, grad_bias)
        };
        let mut out = vec![0f32; values.len()];
        let clip_size = (frames * image).max(1);
        let sums: Vec<(Vec<f32>, Vec<f32>)> = out
            .par_chunks_mut(clip_size)
            .enumerate()
            .map(|(clip, out)| vectorized(|| clip_gradients(clip, out)))
            .collect();
        debug_assert_eq!(sums.len(), clips);
        let (grad_weight, grad_bias): (Vec<_>, Vec<_>) = sums.into_iter().unzip();
        let per_channel = |tensor: &Tensor, parts: Vec<Vec<f32>>| {
            is_tracked(&[tensor])
                .then(|| Tensor::from_vec(total(parts, channels), channels, &Device::Cpu))
                .transpose()
        };
        let grad_x = is_tracked(&[x]).then(|| Tensor::from_vec(out, x.shape(), &Device::Cpu));
        Ok([grad_x.transpose()?, per_channel(weight, grad_weight)?, per_channel(bias, grad_bias)?])
    }
}

/// The sums of `a` and of `a · (b - middle)`, in lanes that the compiler adds in parallel.
#[inline(always)]
fn sums(a: &[f32], b: &[f32], middle: f32) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut sums, mut products) = ([0f32; LANES], [0f32; LANES]);
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest = rest.fold((0.0, 0.0), |(s, p), (a, b)| (s + a, p + a * (b - middle)));
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            sums[i] += a[i];
            products[i] += a[i] * (b[i] - middle);
        }
    }
    (sums.iter().sum::<f32>() + rest.0, products.iter().sum::<f32>() + rest.1)
}

/// The derivative of `x · sigmoid(x)`.
#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let sigmoid = 1.0 / (1.0 + math::exp::<ALWAYS_FMA>(-x));
    sigmoid * (1.0 + x * (1.0 - sigmoid))
}

struct Layer {
    eps: f64,
}

impl Gradients for Layer {
    const NAME: &'static str = "layer-norm";

    fn gradients(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let gradient = gradient.contiguous()?;
        let width = x.dim(D::Minus1)?.max(1);
        let rows = x.elem_count() / width;
        let views = (View::new(x)?, View::new(weight)?, View::new(&gradient)?);
        let (values, weights, grad_out) = (views.0.values(), views.1.values(), views.2.values());
        let step = rows.div_ceil(parts(rows)).max(1);
        let mut out = vec![0f32; values.len()];
        let sums: Vec<(Vec<f32>, Vec<f32>)> = out
            .par_chunks_mut(step * width)
            .enumerate()
            .map(|(part, out)| {
                let (mut grad_weight, mut grad_bias) = (vec![0f32; width], vec![0f32; width]);
                let from = part * step * width;
                let rows = out
                    .chunks_exact_mut(width)
                    .zip(values[from..].chunks_exact(width))
                    .zip(grad_out[from..].chunks_exact(width));
                vectorized(|| {
                    for ((out, x), y) in rows {
                        let (mean, scale) = statistics(&std::iter::once(x), self.eps);
                        for (i, (x, y)) in x.iter().zip(y).enumerate() {
                            grad_weight[i] += y * (x - mean) * scale;
                            grad_bias[i] += y;
                            out[i] = y * weights[i];
                        }
                        let (sum, product) = sums(out, x, mean);
                        let (sum, product) = (sum / width as f32, product * scale / width as f32);
                        for (out, x) in out.iter_mut().zip(x) {
                            *out = scale * (*out - sum - (x - mean) * scale * product);
                        }
                    }
                });
                (grad_weight, grad_bias)
            })
            .collect();
        let (grad_weight, grad_bias): (Vec<_>, Vec<_>) = sums.into_iter().unzip();
        let per_value = |tensor: &Tensor, parts: Vec<Vec<f32>>| {
            is_tracked(&[tensor])
                .then(|| Tensor::from_vec(total(parts, width), width, &Device::Cpu))
                .transpose()
        };
        let grad_x = is_tracked(&[x]).then(|| Tensor::from_vec(out, x.shape(), &Device::Cpu));
        Ok([grad_x.transpose()?, per_value(weight, grad_weight)?, per_value(bias, grad_bias)?])
    }
}
