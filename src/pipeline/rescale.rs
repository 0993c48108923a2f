//! Rescaled guidance: Lin et al. (2024), arXiv 2305.08891, section 3.4; `rescale_noise_cfg` in diffusers.

use candle_core::Tensor;

use crate::Result;

/// A `guided` output, in a `share` with the standard deviation of the prompt's own output `cond`, clip by clip.
///
/// All are `(clips, frames, channels, height, width)`.
pub(super) fn rescaled(guided: &Tensor, cond: &Tensor, share: f64) -> Result<Tensor> {
    let factor = (deviation(cond)? / deviation(guided)?)?.affine(share, 1.0 - share)?;
    Ok(guided.broadcast_mul(&factor)?)
}

/// The standard deviation of each clip, `(clips, 1, 1, 1, 1)`.
fn deviation(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten_from(1)?.var_keepdim(1)?.sqrt()?.reshape((x.dim(0)?, 1, 1, 1, 1))?)
}
