//! The networks. Each is built from its JSON configuration and from weights under diffusers' names.

pub mod clip;
pub mod control_net;
pub mod image_projection;
pub mod motion;
pub mod sparse_ctrl;
pub mod t2i_adapter;
pub mod unet;
mod unet_encoder;
pub mod vae;

use std::ops::RangeInclusive;

use crate::{Error, Result};

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
fn within<T: PartialOrd + std::fmt::Display + Copy>(
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
fn supported<T: PartialEq + std::fmt::Debug>(
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
