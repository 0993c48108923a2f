//! TAESD in two files, as its author publishes it.

use std::path::{Path, PathBuf};

use crate::weights::{Checkpoint, Component, Source};
use crate::{Error, Result};

/// Endings of weight files, those of the same kind as the first file before them.
const ENDINGS: [&str; 4] = ["safetensors", "pth", "pt", "ckpt"];

/// Adds the other half of a tiny autoencoder where `file` is one of two: `taesd_encoder` beside `taesd_decoder`, and the
/// other way round.
///
/// # Errors
///
/// When the other half is not there, or not what its name says.
pub(super) fn complete(checkpoint: &mut Checkpoint, file: &Path) -> Result<()> {
    let has = |half: &str| checkpoint.names(Component::Vae).any(|name| name.starts_with(half));
    let (here, missing) = match (has("encoder.layers."), has("decoder.layers.")) {
        (true, false) => ("encoder", "decoder"),
        (false, true) => ("decoder", "encoder"),
        _ => return Ok(()),
    };
    let name = other_name(file, here, missing);
    let found = name.as_deref().and_then(|name| beside(file, name));
    let Some(found) = found else {
        let error = Error::Missing {
            name: file.display().to_string(),
            reason: format!("has no {missing}"),
        };
        let name = name.unwrap_or_else(|| format!("taesd_{missing}"));
        let ending = file.extension().unwrap_or_default().to_string_lossy();
        return Err(error.with_hint(format!("put {name}.{ending} beside it")));
    };
    checkpoint.add_component(Component::Vae, &Source::from(found.clone()))?;
    let is_whole = checkpoint
        .names(Component::Vae)
        .any(|name| name.strip_prefix(missing).is_some_and(|rest| rest.starts_with(".layers.")));
    if is_whole { Ok(()) } else { Err(Error::format(&found, format!("is no {missing}"))) }
}

/// The name of the other half without its ending, where the file's own says which half it is.
fn other_name(file: &Path, here: &str, missing: &str) -> Option<String> {
    let stem = file.file_stem()?.to_str()?;
    let (before, after) = stem.rsplit_once(here)?;
    Some(format!("{before}{missing}{after}"))
}

/// The file of that name in the same folder.
fn beside(file: &Path, name: &str) -> Option<PathBuf> {
    let own = file.extension().and_then(|ending| ending.to_str());
    let endings = own.into_iter().chain(ENDINGS);
    endings
        .map(|ending| file.with_file_name(format!("{name}.{ending}")))
        .find(|path| path.is_file())
}
