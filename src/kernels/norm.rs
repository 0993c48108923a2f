//! Group normalization fused with SiLU: two reads and one write of the tensor.

use candle_core::{CpuStorage, CustomOp3, Layout, Module, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{f32_slice, grad, in_f32, math, reference};

/// What [`group_norm`] does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormOptions {
    /// Channel groups.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// How many consecutive images share their statistics: 1, or the number of frames.
    pub frames: usize,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Group normalization of `(batch*frames, channels, height, width)`; see [`reference::group_norm`].
///
/// # Errors
///
/// When the channels do not divide into the groups, or the images into clips of `options.frames`.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    options: &GroupNormOptions,
) -> Result<Tensor> {
    let (images, channels, ..) = x.dims4()?;
    if options.groups == 0 || channels % options.groups != 0 {
        candle_core::bail!("{channels} channels do not divide into {} groups", options.groups);
    }
    if options.frames == 0 || images % options.frames != 0 {
        candle_core::bail!("{images} images are not clips of {} frames", options.frames);
    }
    if grad::is_tracked(&[x, weight, bias]) {
        return grad::group_norm(x, weight, bias, options);
    }
    if !x.device().is_cpu() {
        return reference::group_norm(x, weight, bias, options);
    }
    let weight = weight.to_dtype(candle_core::DType::F32)?.contiguous()?;
    let bias = bias.to_dtype(candle_core::DType::F32)?.contiguous()?;
    in_f32(x, |x| x.contiguous()?.apply_op3_no_bwd(&weight, &bias, &Fused(*options)))
}

/// Layer normalization over the last dimension of `(.., width)`; `weight` and `bias` are `(width)`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if grad::is_tracked(&[x, weight, bias]) {
        return grad::layer_norm(x, weight, bias, eps);
    }
    candle_nn::LayerNorm::new(weight.clone(), bias.clone(), eps).forward(&x.contiguous()?)
}

struct Fused(GroupNormOptions);

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (images, channels, height, width) = x_layout.shape().dims4()?;
        let slice = |s, l: &Layout, n| f32_slice(s, l.start_offset(), n);
        let x = slice(x, x_layout, images * channels * height * width)?;
        let weight = slice(weight, weight_layout, channels)?;
        let bias = slice(bias, bias_layout, channels)?;
        let options = self.0;
        let area = height * width;
        let per_group = channels / options.groups;
        let chunk = per_group * area;
        if chunk == 0 {
            return Ok((CpuStorage::F32(vec![]), x_layout.shape().clone()));
        }

        // (mean, 1 / standard deviation) of every group of every clip.
        let clips = images / options.frames;
        let statistics: Vec<(f32, f32)> = (0..clips * options.groups)
            .into_par_iter()
            .map(|i| {
                let (clip, group) = (i / options.groups, i % options.groups);
                let part = |frame: usize| {
                    let start = ((clip * options.frames + frame) * options.groups + group) * chunk;
                    &x[start..start + chunk]
                };
                let count = (options.frames * chunk) as f64;
                let mean = (0..options.frames).map(|f| sum(part(f), |v| v)).sum::<f64>() / count;
                let center = mean as f32;
                let squares: f64 = (0..options.frames)
                    .map(|f| sum(part(f), |v| (v - center) * (v - center)))
                    .sum();
                (center, (1.0 / (squares / count + options.eps).sqrt()) as f32)
            })
            .collect();

        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(area).zip(x.par_chunks(area)).enumerate().for_each(|(i, (y, x))| {
            let (image, channel) = (i / channels, i % channels);
            let (mean, scale) =
                statistics[image / options.frames * options.groups + channel / per_group];
            let a = scale * weight[channel];
            let b = bias[channel];
            if options.silu {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = math::silu((x - mean) * a + b);
                }
            } else {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = (x - mean) * a + b;
                }
            }
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }
}

/// The sum of `f(v)`: short f32 runs in parallel lanes, collected in f64.
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    const LANES: usize = 16;
    let mut total = 0.0;
    for run in values.chunks(LANES * 64) {
        let mut lanes = [0f32; LANES];
        let rows = run.chunks_exact(LANES);
        let rest: f32 = rows.remainder().iter().map(|v| f(*v)).sum();
        for row in rows {
            for (lane, v) in lanes.iter_mut().zip(row) {
                *lane += f(*v);
            }
        }
        total += lanes.iter().map(|v| f64::from(*v)).sum::<f64>() + f64::from(rest);
    }
    total
}
