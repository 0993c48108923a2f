//! The order of an image's values in memory: channels innermost on the CPU, as torch's `channels_last`.

use candle_core::{Result, Tensor};

use super::keeps_channels_last;

/// `(batch, channels, height, width)` as a contiguous `(batch, height, width, channels)`; a copy only where its
/// channels are not innermost yet.
pub fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()
}

/// The inverse, as a view.
pub fn channels_first(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 3, 1, 2))
}

/// Returns whether `(batch, channels, height, width)` is channels-last in memory.
pub fn is_channels_last(x: &Tensor) -> bool {
    x.rank() == 4 && x.permute((0, 2, 3, 1)).is_ok_and(|x| x.is_contiguous())
}

/// The values of images as tokens: `(batch, height*width, channels)`.
pub fn tokens(x: &Tensor) -> Result<Tensor> {
    channels_last(x)?.flatten(1, 2)
}

/// The feature map `(batch, channels, height, width)` of tokens `(batch, height*width, channels)`: the inverse of
/// [`tokens`].
pub fn feature_map(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, _, channels) = x.dims3()?;
    let x = channels_first(&x.reshape((batch, height, width, channels))?)?;
    // Other devices' kernels want what candle calls contiguous.
    if keeps_channels_last(x.device()) { Ok(x) } else { x.contiguous() }
}

/// Joins images along their channels.
pub fn cat(tensors: &[&Tensor]) -> Result<Tensor> {
    if tensors.iter().all(|x| is_channels_last(x)) {
        let last: Vec<_> = tensors.iter().map(|x| channels_last(x)).collect::<Result<_>>()?;
        return channels_first(&Tensor::cat(&last, 3)?);
    }
    Tensor::cat(tensors, 1)
}

/// The sum of two tensors of one shape, in the memory order of the first.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if is_channels_last(a) && a.dims() == b.dims() {
        return channels_first(&(channels_last(a)? + channels_last(b)?)?);
    }
    a + b
}

/// Applies an elementwise `f` and keeps the memory order.
pub fn map(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if is_channels_last(x) { channels_first(&f(&channels_last(x)?)?) } else { f(x) }
}
