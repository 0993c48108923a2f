//! What a single file says of its UNet's output and noise schedule, which no shape tells.
//!
//! In this order: a configuration beside the file, as AUTOMATIC1111 reads it; empty tensors in the file, as ComfyUI and
//! AUTOMATIC1111 read them; its metadata, as kohya's scripts write them.

use std::path::Path;

use super::{Base, Files};
use crate::schedule::{self, Prediction};
use crate::weights::{Archive, Checkpoint, Source, find_text};
use crate::{Error, Result};

/// What is said; nothing where the file says nothing.
#[derive(Debug, Default, PartialEq)]
struct Stated {
    prediction: Option<Prediction>,
    zero_snr: bool,
}

/// Puts what the single files of a model say into its scheduler's configuration. The file that is laid over the base
/// comes last.
pub(super) fn apply(
    files: &Files,
    checkpoint: &Checkpoint,
    scheduler: &mut schedule::Config,
) -> Result<()> {
    let base = match &files.base {
        Base::File(path) => Some(path),
        Base::Embedded | Base::Folder(_) | Base::Random(_) => None,
    };
    for path in base.into_iter().chain(&files.checkpoint) {
        let source = Source::from(path.clone());
        let archive = checkpoint.archives().iter().find(|archive| *archive.source() == source);
        let Some(archive) = archive else { continue };
        let Stated { prediction, zero_snr } = Stated::by(archive)?;
        scheduler.prediction_type = prediction.unwrap_or(scheduler.prediction_type);
        if zero_snr {
            scheduler.rescale_betas_zero_snr = true;
            // The only spacing that starts where such a model begins.
            "trailing".clone_into(&mut scheduler.timestep_spacing);
        }
    }
    Ok(())
}

impl Stated {
    fn by(archive: &Archive) -> Result<Self> {
        let has = |name: &str| archive.info(name).is_some();
        let prediction = match beside(archive.path())? {
            Some(prediction) => Some(prediction),
            None if has("v_pred") => Some(Prediction::V),
            None => in_metadata(archive)?,
        };
        Ok(Self { prediction, zero_snr: has("ztsnr") })
    }
}

fn in_metadata(archive: &Archive) -> Result<Option<Prediction>> {
    const KEY: &str = "modelspec.prediction_type";
    let Some(said) = archive.metadata().get(KEY) else { return Ok(None) };
    said.parse().map(Some).map_err(|_| {
        let said = crate::weights::quoted(said);
        Error::format(archive.path(), format!("its {KEY} {said} is not known"))
    })
}

/// What `NAME.yaml` says, the configuration of the trainer that belongs to `NAME.safetensors`.
fn beside(file: &Path) -> Result<Option<Prediction>> {
    let path = file.with_extension("yaml");
    let Some(text) = find_text(&path)? else { return Ok(None) };
    parameterization(&text)
        .map(|said| match said {
            "eps" => Ok(Prediction::Epsilon),
            "v" => Ok(Prediction::V),
            "x0" => Ok(Prediction::Sample),
            other => {
                let said = crate::weights::quoted(other);
                Err(Error::format(&path, format!("`parameterization` {said} is not known")))
            }
        })
        .transpose()
}

/// The value of `parameterization`, which trainers' configurations have once, a line of its own or in braces.
fn parameterization(yaml: &str) -> Option<&str> {
    let is_quote = |c: char| c == '"' || c == '\'';
    yaml.lines().find_map(|line| {
        let line = line.split(" #").next().unwrap_or_default().trim();
        if line.starts_with('#') {
            return None;
        }
        let fields = line.split(['{', ',', '}']).map(str::trim);
        let mut pairs = fields.filter_map(|field| field.split_once(':'));
        let (_, value) =
            pairs.find(|(key, _)| key.trim().trim_matches(is_quote) == "parameterization")?;
        Some(value.trim().trim_matches(is_quote))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trainers_configuration_says_what_is_predicted() {
        for (yaml, said) in [
            (
                "model:\n  params:\n    parameterization: \"v\"\n    linear_start: 0.00085",
                Some("v"),
            ),
            ("model:\r\n  params:\r\n    parameterization: v # velocity\r\n", Some("v")),
            ("params: { 'parameterization': 'eps', timesteps: 1000 }", Some("eps")),
            ("# parameterization: v\nmodel:\n  x: 1", None),
            ("model:\n  my_parameterization: v", None),
            ("", None),
        ] {
            assert_eq!(parameterization(yaml), said, "{yaml}");
        }
    }
}
