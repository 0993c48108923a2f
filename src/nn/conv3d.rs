//! 3D convolution and pooling over the frames of one clip, `(frames, channels, height, width)`.
//!
//! Everything is padded with zeros so that an axis ends with `ceil(size / stride)` positions, the odd zero coming last:
//! TensorFlow's `SAME`.

use candle_core::{Result, Tensor};

use crate::Stop;
use crate::kernels::{self, ConvArgs, Weights};

/// A 3D convolution with a cubic kernel: a sum of 2D convolutions, one for each of its frames.
#[derive(Clone, Debug)]
pub struct Conv3d {
    /// The kernel's frames; the first has the bias.
    taps: Vec<Weights>,
    stride: usize,
}

impl Conv3d {
    /// Takes a weight `(outputs, inputs, kernel, kernel, kernel)` and a bias `(outputs)`.
    ///
    /// # Errors
    ///
    /// When the shapes do not agree, or `stride` is 0.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, stride: usize) -> Result<Self> {
        let (_, _, frames, height, width) = weight.dims5()?;
        if stride == 0 || frames == 0 || frames != height || frames != width {
            candle_core::bail!("a 3D kernel {:?} with stride {stride}", weight.dims());
        }
        let tap = |i: usize| {
            let weight = weight.narrow(2, i, 1)?.squeeze(2)?.contiguous()?;
            Weights::new(&weight, bias.filter(|_| i == 0))
        };
        Ok(Self { taps: (0..frames).map(tap).collect::<Result<_>>()?, stride })
    }

    /// Maps `(frames, inputs, height, width)` to `(frames', outputs, height', width')`.
    ///
    /// # Errors
    ///
    /// When shapes do not agree, or `stop` is requested.
    pub fn forward(&self, x: &Tensor, stop: &Stop) -> Result<Tensor> {
        let (frames, _, height, width) = x.dims4()?;
        let (kernel, stride) = (self.taps.len(), self.stride);
        let x = padded(x, 0, kernel, stride)?;
        // Both sides of an image are usually padded alike, which the 2D convolution does without a copy.
        let sides = [height, width].map(|size| padding(size, kernel, stride));
        let (x, padding) = if sides[0] == sides[1] {
            (x, sides[0])
        } else {
            (padded(&padded(&x, 2, kernel, stride)?, 3, kernel, stride)?, (0, 0))
        };
        let count = frames.div_ceil(stride);
        let mut sum: Option<Tensor> = None;
        for (i, weights) in self.taps.iter().enumerate() {
            stop.check()?;
            let seen = every(&x, i, stride, count)?;
            let residual = sum.as_ref();
            let args =
                ConvArgs { padding, stride, residual, stop: Some(stop), ..ConvArgs::default() };
            sum = Some(kernels::conv2d(&seen, weights, &args)?);
        }
        sum.ok_or_else(|| candle_core::Error::msg("a 3D kernel without frames"))
    }
}

/// The maximum over windows of `kernel` = (frames, side) in steps of `stride`. What is padded counts as zero, as in
/// the ports of Inception, where pooling follows a ReLU.
///
/// # Errors
///
/// When `x` has not four dimensions, or a size or stride is 0.
pub fn max_pool3d(x: &Tensor, kernel: (usize, usize), stride: (usize, usize)) -> Result<Tensor> {
    let count = x.dim(0)?.div_ceil(stride.0.max(1));
    let x = padded(&padded(x, 2, kernel.1, stride.1)?, 3, kernel.1, stride.1)?;
    let x = x.max_pool2d_with_stride(kernel.1, stride.1)?;
    let x = padded(&x, 0, kernel.0, stride.0)?;
    let mut most = every(&x, 0, stride.0, count)?;
    for i in 1..kernel.0 {
        most = most.maximum(&every(&x, i, stride.0, count)?)?;
    }
    Ok(most)
}

/// Zeros before and after an axis of `size` positions.
fn padding(size: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let stride = stride.max(1);
    let reach = size.div_ceil(stride).saturating_sub(1) * stride + kernel;
    let zeros = reach.saturating_sub(size);
    (zeros / 2, zeros - zeros / 2)
}

fn padded(x: &Tensor, axis: usize, kernel: usize, stride: usize) -> Result<Tensor> {
    match padding(x.dim(axis)?, kernel, stride) {
        (0, 0) => Ok(x.clone()),
        (before, after) => x.pad_with_zeros(axis, before, after),
    }
}

/// `count` frames from `first` on, each `step` after the last.
fn every(x: &Tensor, first: usize, step: usize, count: usize) -> Result<Tensor> {
    if step == 1 {
        return x.narrow(0, first, count);
    }
    let frames: Vec<u32> = (0..count).map(|i| (first + i * step) as u32).collect();
    x.index_select(&Tensor::new(frames, x.device())?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_that_of_tensorflow() {
        // An even size is padded by less in steps of two, and the odd zero comes last.
        assert_eq!(padding(224, 7, 2), (2, 3));
        assert_eq!(padding(9, 7, 2), (3, 3));
        assert_eq!(padding(5, 3, 1), (1, 1));
        assert_eq!(padding(8, 2, 2), (0, 0));
        assert_eq!(padding(9, 2, 2), (0, 1));
        assert_eq!(padding(7, 1, 1), (0, 0));
    }
}
