//! Addition per channel, as of a time embedding.

use candle_core::{Result, Tensor};

use super::{autograd, reference};

/// Adds `shift` `(shifts, channels)` to all pixels of `(images, channels, height, width)`.
///
/// Each row of `shift` serves as many consecutive images as there are for it.
///
/// # Errors
///
/// When the images do not divide over the shifts, or the channels differ.
pub fn add_per_channel(x: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let (images, channels, ..) = x.dims4()?;
    let (shifts, width) = shift.dims2()?;
    if shifts == 0 || images % shifts != 0 || width != channels {
        candle_core::bail!("shifts {:?} for images {:?}", shift.dims(), x.dims());
    }
    if autograd::is_tracked(&[x, shift]) {
        return autograd::add_per_channel(x, shift);
    }
    reference::add_per_channel(x, shift)
}
