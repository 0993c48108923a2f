//! The networks. Each is built from its JSON configuration and from weights under diffusers' names.

pub mod blip;
pub mod clip;
pub mod control_net;
pub mod depth_anything;
pub mod i2v_encoder;
pub mod i3d;
pub mod image_projection;
pub mod motion;
pub mod sparse_ctrl;
pub mod t2i_adapter;
pub mod unet;
mod unet_encoder;
pub mod vae;

use std::fmt;
use std::ops::RangeInclusive;

use candle_core::Tensor;

use crate::{Error, Result, Stop};
use unet::UNetInput;

/// The denoising network of a video model. What samples and guides knows no more of a family of models than this.
pub trait Predict: fmt::Debug + Send + Sync {
    /// The prediction (noise, velocity or clean latents) for noisy latents `x`, `(clips*frames, channels, height, width)`,
    /// and of its shape.
    ///
    /// # Errors
    ///
    /// Mismatched shapes, more frames than the network supports, or a requested `input.stop`.
    fn predict(&self, x: &Tensor, input: &UNetInput<'_>) -> Result<Tensor>;
}

/// The decoder of a video model.
pub trait Decode: fmt::Debug + Send + Sync {
    /// Images `(clips*frames, 3, height, width)`, about `[-1, 1]`, of scaled latents
    /// `(clips*frames, channels, height', width')` of consecutive frames.
    ///
    /// # Errors
    ///
    /// Mismatched shapes, or a requested `stop`.
    fn decode(&self, latents: &Tensor, frames: usize, stop: &Stop) -> Result<Tensor>;
}

/// Maximum width of a layer: far above any network of the family, and small enough that products of sizes do not
/// overflow.
const MOST_CHANNELS: usize = 1 << 16;
/// Maximum number of layers in sequence.
const MOST_LAYERS: usize = 256;
/// Maximum number of resolutions; each halves the size.
const MOST_STAGES: usize = 16;
/// Maximum number of attention heads.
const MOST_HEADS: usize = 1024;

/// Checks that `value` lies in `range`.
fn within<T: PartialOrd + fmt::Display + Copy>(
    config: &'static str,
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = (range.start(), range.end());
    Err(Error::Missing {
        name: format!("{config} config"),
        reason: format!("`{field}` {value} is not between {least} and {most}"),
    })
}

/// Checks that the list of widths is not empty, not too long, and that every width is valid.
fn possible_widths(config: &'static str, field: &str, widths: &[usize]) -> Result<()> {
    if !(1..=MOST_STAGES).contains(&widths.len()) {
        let count = widths.len();
        return Err(Error::Missing {
            name: format!("{config} config"),
            reason: format!("`{field}` lists {count} stages, not between 1 and {MOST_STAGES}"),
        });
    }
    widths.iter().try_for_each(|width| within(config, field, *width, 1..=MOST_CHANNELS))
}

/// Checks that `value` is one of the supported values.
fn supported<T: PartialEq + fmt::Debug>(
    config: &'static str,
    field: &str,
    value: &T,
    known: &[T],
) -> Result<()> {
    if known.contains(value) {
        return Ok(());
    }
    Err(Error::Missing {
        name: format!("{config} config"),
        reason: format!("`{field}` {value:?} is not supported, only {known:?}"),
    })
}
