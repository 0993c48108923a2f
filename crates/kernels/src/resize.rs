//! Enlarging.

use candle_core::{Result, Tensor};

use super::autograd;

/// `(batch, channels, height, width)` enlarged to `(height, width)` `size`, each pixel taking the nearest one's value.
pub fn upsample_nearest(x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    if autograd::is_tracked(&[x]) {
        return autograd::upsample_nearest(x, size);
    }
    x.upsample_nearest2d(size.0, size.1)
}
