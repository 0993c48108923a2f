//! The networks. Each is built from its JSON configuration and from weights under diffusers' names.

pub mod clip;
pub mod control_net;
pub mod image_projection;
pub mod motion;
pub mod sparse_ctrl;
pub mod t2i_adapter;
mod trunk;
pub mod unet;
pub mod vae;

use crate::{Error, Result};

/// Fails unless `value` is one that this program implements.
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
