//! Normalization that reads its input twice, the second time for the result.

use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::clock::{self, Kind};
use super::cpu::buffer::filled;
use super::cpu::float::{self, Float};
use super::cpu::isa::{Isa, Loops};
use super::cpu::math;
use super::layout::{channels_first, channels_last};
use super::{autograd, reference};

/// Values that are in a core's first cache when they are read again.
const CHUNK: usize = 4096;

/// Values for which a second thread is not worth waking.
const SERIAL: usize = 1 << 15;

/// Options of [`group_norm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormOptions {
    /// Channel groups.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Number of consecutive images that share their statistics: 1, or the number of frames.
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
    if autograd::is_tracked(&[x, weight, bias]) {
        return autograd::group_norm(x, weight, bias, options);
    }
    #[cfg(feature = "cuda")]
    if super::has_own(x.device())
        && let Some(y) = super::cuda::group_norm(x, weight, bias, options)?
    {
        return Ok(y);
    }
    if !x.device().is_cpu() {
        return reference::group_norm(x, weight, bias, options);
    }
    let parameter = |t: &Tensor| t.to_dtype(DType::F32)?.contiguous();
    clock::timed(Kind::Norm, || {
        let (weight, bias) = (parameter(weight)?, parameter(bias)?);
        channels_first(&channels_last(x)?.apply_op3_no_bwd(&weight, &bias, &Groups(*options))?)
    })
}

struct Groups(GroupNormOptions);

/// Count, mean and sum of squared distances from it.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// The moments of both together (Chan, Golub and LeVeque 1979).
    fn and(self, other: Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let distance = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + distance * other.count / count,
            squares: self.squares
                + other.squares
                + distance * distance * self.count * other.count / count,
        }
    }
}

impl CustomOp3 for Groups {
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
        let channels = x_layout.shape().dims4()?.3;
        let weight = float::slice(weight, weight_layout.start_offset(), channels)?;
        let bias = float::slice(bias, bias_layout.start_offset(), channels)?;
        let y = match x {
            CpuStorage::F32(_) => self.normalize::<f32>(x, x_layout, weight, bias)?,
            CpuStorage::BF16(_) => self.normalize::<bf16>(x, x_layout, weight, bias)?,
            CpuStorage::F16(_) => self.normalize::<f16>(x, x_layout, weight, bias)?,
            _ => candle_core::bail!("group normalization wants f32, bf16 or f16"),
        };
        Ok((y, x_layout.shape().clone()))
    }
}

impl Groups {
    #[allow(unsafe_code)]
    fn normalize<T: Float>(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &[f32],
        bias: &[f32],
    ) -> Result<CpuStorage> {
        let (images, height, width, channels) = layout.shape().dims4()?;
        let GroupNormOptions { groups, eps, frames, silu } = self.0;
        let x = float::slice::<T>(x, layout.start_offset(), layout.shape().elem_count())?;
        if x.is_empty() {
            return Ok(T::storage(Vec::new()));
        }
        let isa = Isa::current();
        let per_group = channels / groups;
        let image = height * width * channels;
        let chunk = (CHUNK / channels).clamp(1, height * width) * channels;
        let chunks = image.div_ceil(chunk);
        let part = |i: usize| {
            let start = i / chunks * image + i % chunks * chunk;
            start..(start + chunk).min((i / chunks + 1) * image)
        };
        let all = 0..images * chunks;

        // The moments of every group in every chunk.
        let mut moments = vec![Moments::default(); images * chunks * groups];
        let of_chunk = |(i, moments): (usize, &mut [Moments])| {
            isa.vectorize(Measure { x: &x[part(i)], channels, moments });
        };
        if x.len() < SERIAL {
            moments.chunks_mut(groups).enumerate().for_each(of_chunk);
        } else {
            moments.par_chunks_mut(groups).with_min_len(4).enumerate().for_each(of_chunk);
        }

        // For every channel of every clip what is subtracted, multiplied and added.
        let clips = images / frames;
        let mut offsets = vec![0f32; clips * channels];
        let mut centers = vec![0f32; clips * channels];
        let mut scales = vec![0f32; clips * channels];
        for clip in 0..clips {
            let of_clip = &moments[clip * frames * chunks * groups..][..frames * chunks * groups];
            let mut all = vec![Moments::default(); groups];
            for of_chunk in of_clip.chunks_exact(groups) {
                all.iter_mut().zip(of_chunk).for_each(|(all, one)| *all = all.and(*one));
            }
            for (group, all) in all.into_iter().enumerate() {
                let inverse = 1.0 / (all.squares / all.count + eps).sqrt();
                let center = all.mean as f32;
                for channel in group * per_group..(group + 1) * per_group {
                    let scale = inverse * f64::from(weight[channel]);
                    // The rounding error of the mean is added to the offset.
                    let offset = f64::from(bias[channel]) + (f64::from(center) - all.mean) * scale;
                    let place = clip * channels + channel;
                    (centers[place], scales[place], offsets[place]) =
                        (center, scale as f32, offset as f32);
                }
            }
        }

        let apply = |i: usize, y: &mut [MaybeUninit<T>]| {
            let clip = i / chunks / frames * channels;
            let of_clip = clip..clip + channels;
            let change = Change {
                x: &x[part(i)],
                y,
                centers: &centers[of_clip.clone()],
                scales: &scales[of_clip.clone()],
                offsets: &offsets[of_clip.clone()],
                silu,
            };
            isa.vectorize(change);
        };
        let fill = |y: &mut [MaybeUninit<T>]| {
            let mut parts = Vec::with_capacity(all.len());
            let mut rest = y;
            for i in all {
                let (part, after) = rest.split_at_mut(part(i).len());
                parts.push((i, part));
                rest = after;
            }
            if x.len() < SERIAL {
                for (i, y) in parts {
                    apply(i, y);
                }
            } else {
                parts.into_par_iter().with_min_len(4).for_each(|(i, y)| apply(i, y));
            }
        };
        // SAFETY: every value is in a part, and parts are whole pixels.
        let y = unsafe { filled(x.len(), T::narrow(f32::NAN), fill) };
        Ok(T::storage(y))
    }
}

/// Centering, scaling and shifting of every pixel of a clip, by channel.
struct Change<'a, T> {
    x: &'a [T],
    y: &'a mut [MaybeUninit<T>],
    centers: &'a [f32],
    scales: &'a [f32],
    offsets: &'a [f32],
    silu: bool,
}

impl<T: Float> Loops for Change<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { x, y, centers, scales, offsets, silu } = self;
        let channels = centers.len();
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            let parameters = centers.iter().zip(scales).zip(offsets);
            if silu {
                for ((y, x), ((center, scale), offset)) in y.iter_mut().zip(x).zip(parameters) {
                    y.write(T::narrow(math::silu::<FMA>((x.widen() - center) * scale + offset)));
                }
            } else {
                for ((y, x), ((center, scale), offset)) in y.iter_mut().zip(x).zip(parameters) {
                    y.write(T::narrow((x.widen() - center) * scale + offset));
                }
            }
        }
    }
}

/// Takes the moments of every group of some pixels, which are read twice.
struct Measure<'a, T> {
    x: &'a [T],
    channels: usize,
    moments: &'a mut [Moments],
}

impl<T: Float> Loops for Measure<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { x, channels, moments } = self;
        let per_group = channels / moments.len();
        let pixels = (x.len() / channels) as f64;
        let count = pixels * per_group as f64;
        // Distances from the first pixel are small numbers, even where the values are not.
        let first = &x[..channels];
        let mut sums = vec![0f32; channels];
        for pixel in x.chunks_exact(channels) {
            for ((sum, v), first) in sums.iter_mut().zip(pixel).zip(first) {
                *sum += v.widen() - first.widen();
            }
        }
        let mut centers = vec![0f32; channels];
        for (i, moments) in moments.iter_mut().enumerate() {
            let group = i * per_group..(i + 1) * per_group;
            moments.count = count;
            let first = first[group.clone()].iter().map(|v| f64::from(v.widen())).sum::<f64>();
            moments.mean = (first * pixels + total(&sums[group.clone()])) / count;
            centers[group].fill(moments.mean as f32);
        }
        sums.fill(0.0);
        for pixel in x.chunks_exact(channels) {
            for ((sum, v), center) in sums.iter_mut().zip(pixel).zip(&centers) {
                let distance = v.widen() - center;
                *sum += distance * distance;
            }
        }
        for (i, moments) in moments.iter_mut().enumerate() {
            let group: Range<usize> = i * per_group..(i + 1) * per_group;
            // The distances were taken from the mean as rounded.
            let off = moments.mean - f64::from(centers[group.start]);
            moments.squares = total(&sums[group]) - count * off * off;
        }
    }
}

fn total(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v)).sum()
}

/// Layer normalization over the last dimension; see [`reference::layer_norm`].
///
/// # Errors
///
/// When shapes do not agree.
pub fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    positions: Option<&Positions<'_>>,
) -> Result<Tensor> {
    let Some(&width) = x.dims().last() else { candle_core::bail!("a layer norm of a scalar") };
    let positions_table = positions.map(|positions| positions.table);
    if weight.dims() != [width]
        || bias.dims() != [width]
        || positions_table.is_some_and(|table| table.rank() != 2 || table.dims()[1] != width)
    {
        candle_core::bail!("a layer norm of {:?} with {:?}", x.dims(), weight.dims());
    }
    if let Some(Positions { table, run }) = positions {
        let (rows, period) = (x.elem_count() / width.max(1), table.dim(0)? * run);
        if period == 0 || !rows.is_multiple_of(period) {
            candle_core::bail!("{rows} rows do not divide into positions of {period} rows");
        }
    }
    let mut given = [Some(x), Some(weight), Some(bias), positions_table].into_iter().flatten();
    if given.any(Tensor::track_op) {
        let y = autograd::layer_norm(x, weight, bias, eps)?;
        return match positions {
            Some(positions) => reference::add_positions(&y, positions),
            None => Ok(y),
        };
    }
    #[cfg(feature = "cuda")]
    if super::has_own(x.device())
        && let Some(y) = super::cuda::layer_norm(x, weight, bias, eps, positions)?
    {
        return Ok(y);
    }
    if !x.device().is_cpu() {
        // candle has one kernel for it.
        let y = candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, eps as f32)?;
        return match positions {
            Some(positions) => reference::add_positions(&y, positions),
            None => Ok(y),
        };
    }
    let parameter = |t: &Tensor| t.to_dtype(DType::F32)?.contiguous();
    let table = match positions_table {
        Some(table) => Some(parameter(table)?.flatten_all()?.to_vec1()?),
        None => None,
    };
    let run = positions.map_or(1, |positions| positions.run);
    let op = Rows { eps, table, run };
    clock::timed(Kind::Norm, || {
        x.contiguous()?.apply_op3_no_bwd(&parameter(weight)?, &parameter(bias)?, &op)
    })
}

/// Positions that are added to rows: `run` rows in a row have the first, as many the second, and so on, and after the
/// last the first again.
#[derive(Clone, Copy, Debug)]
pub struct Positions<'a> {
    /// `(positions, width)`.
    pub table: &'a Tensor,
    /// Rows that share a position, at least 1.
    pub run: usize,
}

struct Rows {
    eps: f64,
    table: Option<Vec<f32>>,
    run: usize,
}

impl CustomOp3 for Rows {
    fn name(&self) -> &'static str {
        "layer-norm"
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
        let width = x_layout.dims().last().copied().unwrap_or(0);
        let weight = float::slice(weight, weight_layout.start_offset(), width)?;
        let bias = float::slice(bias, bias_layout.start_offset(), width)?;
        let y = match x {
            CpuStorage::F32(_) => self.normalize::<f32>(x, x_layout, weight, bias)?,
            CpuStorage::BF16(_) => self.normalize::<bf16>(x, x_layout, weight, bias)?,
            CpuStorage::F16(_) => self.normalize::<f16>(x, x_layout, weight, bias)?,
            _ => candle_core::bail!("layer normalization wants f32, bf16 or f16"),
        };
        Ok((y, x_layout.shape().clone()))
    }
}

impl Rows {
    fn normalize<T: Float>(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &[f32],
        bias: &[f32],
    ) -> Result<CpuStorage> {
        let x = float::slice::<T>(x, layout.start_offset(), layout.shape().elem_count())?;
        let mut y = vec![T::default(); x.len()];
        let width = weight.len();
        if y.is_empty() {
            return Ok(T::storage(y));
        }
        let isa = Isa::current();
        let rows = (CHUNK / width).max(1);
        let work = |(i, (y, x)): (usize, (&mut [T], &[T]))| {
            isa.vectorize(Chunk { rows: self, first: i * rows, x, weight, bias, y });
        };
        let chunk = rows * width;
        if x.len() < SERIAL {
            y.chunks_mut(chunk).zip(x.chunks(chunk)).enumerate().for_each(work);
        } else {
            let parts = y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).enumerate();
            parts.with_min_len(4).for_each(work);
        }
        Ok(T::storage(y))
    }

    #[inline(always)]
    fn row<T: Float>(&self, position: usize, x: &[T], weight: &[f32], bias: &[f32], y: &mut [T]) {
        let count = x.len() as f32;
        let mean = lanes(x, |v| v) / count;
        let variance = lanes(x, |v| (v - mean) * (v - mean)) / count;
        let scale = 1.0 / (variance + self.eps as f32).sqrt();
        let parameters = weight.iter().zip(bias);
        match &self.table {
            Some(table) => {
                let start = position % (table.len() / x.len()) * x.len();
                let table = &table[start..start + x.len()];
                for (((y, x), (weight, bias)), add) in
                    y.iter_mut().zip(x).zip(parameters).zip(table)
                {
                    *y = T::narrow((x.widen() - mean) * scale * weight + bias + add);
                }
            }
            None => {
                for ((y, x), (weight, bias)) in y.iter_mut().zip(x).zip(parameters) {
                    *y = T::narrow((x.widen() - mean) * scale * weight + bias);
                }
            }
        }
    }
}

/// Some rows, the `first` of which is known by its number.
struct Chunk<'a, T> {
    rows: &'a Rows,
    first: usize,
    x: &'a [T],
    weight: &'a [f32],
    bias: &'a [f32],
    y: &'a mut [T],
}

impl<T: Float> Loops for Chunk<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { rows, first, x, weight, bias, y } = self;
        let width = weight.len();
        for (r, (y, x)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
            rows.row((first + r) / rows.run, x, weight, bias, y);
        }
    }
}

/// The sum of `f(v)`, in parallel lanes.
#[inline(always)]
fn lanes<T: Float>(values: &[T], f: impl Fn(f32) -> f32) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|v| f(v.widen())).sum();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v.widen());
        }
    }
    lanes.iter().sum::<f32>() + rest
}
