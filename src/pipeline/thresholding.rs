//! Dynamic thresholding: Saharia et al. (2022), arXiv 2205.11487, section 2.3; `thresholding` of diffusers' schedulers.

use candle_core::{Device, Tensor};

use crate::Result;
use crate::request::DynamicThresholding;
use crate::sampler::Denoiser;
use crate::schedule::NoiseLevel;

/// A denoiser whose predictions are thresholded, clip by clip, if there are `settings`.
#[derive(Debug)]
pub struct Thresholded<D> {
    inner: D,
    settings: Option<DynamicThresholding>,
}

impl<D: Denoiser> Thresholded<D> {
    /// Without settings predictions stay as they are.
    pub fn new(inner: D, settings: Option<DynamicThresholding>) -> Self {
        Self { inner, settings }
    }
}

impl<D: Denoiser> Denoiser for Thresholded<D> {
    fn denoise(&mut self, x: &Tensor, at: NoiseLevel) -> Result<Tensor> {
        let denoised = self.inner.denoise(x, at)?;
        match self.settings {
            Some(settings) => thresholded(&denoised, settings),
            None => Ok(denoised),
        }
    }

    fn begin_step(&mut self, step: usize, steps: usize) {
        self.inner.begin_step(step, steps);
    }
}

/// Clips `(clips, ..)` in f32, each cut off at its threshold and divided by it.
pub fn thresholded(x: &Tensor, settings: DynamicThresholding) -> Result<Tensor> {
    let clips = x.dim(0)?;
    let mut parts = Vec::with_capacity(clips);
    for i in 0..clips {
        let clip = x.narrow(0, i, 1)?;
        let mut sizes: Vec<f32> = clip.abs()?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        let at = f64::from(quantile(&mut sizes, settings.ratio)).min(settings.max).max(1.0);
        parts.push((clip.clamp(-at as f32, at as f32)? / at)?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// A quantile with linear interpolation, in f32 as `torch.quantile` has it; 0 of nothing.
fn quantile(values: &mut [f32], ratio: f64) -> f32 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let rank = (ratio as f32 * last as f32).clamp(0.0, last as f32);
    let (below, weight) = (rank as usize, rank.fract());
    let (_, low, above) = values.select_nth_unstable_by(below, f32::total_cmp);
    let high = above.iter().copied().min_by(f32::total_cmp).unwrap_or(*low);
    *low + (high - *low) * weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let of = |ratio| quantile(&mut [3.0, 1.0, 2.0, 5.0], ratio);
        assert_eq!([0.0, 1.0, 0.5, 1.0 / 3.0].map(of), [1.0, 5.0, 2.5, 2.0]);
        assert_eq!((quantile(&mut [], 0.5), quantile(&mut [7.0], 0.5)), (0.0, 7.0));
    }
}
