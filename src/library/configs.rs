//! Configurations of models: where they are, and whether this program implements what they say.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::Base;
use super::embedded::Embedded;
use crate::models::blip::BlipConfig;
use crate::models::clip::{TextConfig, VisionConfig};
use crate::models::control_net::ControlNetConfig;
use crate::models::depth_anything::DepthAnythingConfig;
use crate::models::motion::MotionConfig;
use crate::models::sparse_ctrl::SparseCtrlConfig;
use crate::models::unet::UNetConfig;
use crate::models::vae::{TinyVaeConfig, VaeConfig};
use crate::weights::{Source, find_text};
use crate::{Error, Result, schedule};

/// A configuration whose values have bounds.
pub(super) trait Config: DeserializeOwned {
    /// Fails on what this program does not implement.
    fn check(&self) -> Result<()>;
}

macro_rules! config {
    ($($config:ty),* $(,)?) => {
        $(impl Config for $config {
            fn check(&self) -> Result<()> {
                self.validate()
            }
        })*
    };
}

config!(
    BlipConfig,
    ControlNetConfig,
    DepthAnythingConfig,
    MotionConfig,
    SparseCtrlConfig,
    TextConfig,
    TinyVaeConfig,
    UNetConfig,
    VaeConfig,
    VisionConfig,
    schedule::Config,
);

/// Where configurations are looked for: the extra folder, then the base.
pub(super) struct Configs<'a> {
    pub(super) base: &'a Base,
    pub(super) extra: Option<&'a Path>,
}

impl Configs<'_> {
    pub(super) fn read<T: Config>(&self, part: &str) -> Result<Option<T>> {
        let file = if part == "scheduler" { "scheduler_config.json" } else { "config.json" };
        if let Some(extra) = self.extra
            && let Some(config) = read(&extra.join(part).join(file))?
        {
            return Ok(Some(config));
        }
        match self.base {
            Base::Embedded => Embedded::config(part)
                .map(|json| checked(Path::new(part), serde_json::from_str(json)))
                .transpose(),
            Base::Folder(folder) => read(&folder.join(part).join(file)),
            Base::File(_) | Base::Random(_) => Ok(None),
        }
    }

    /// The folder of the tokenizer, if one of the two has one.
    pub(super) fn tokenizer(&self) -> Option<PathBuf> {
        let base = match self.base {
            Base::Folder(folder) => Some(folder.as_path()),
            Base::Embedded | Base::File(_) | Base::Random(_) => None,
        };
        let folders = self.extra.into_iter().chain(base);
        folders.map(|folder| folder.join("tokenizer")).find(|folder| folder.is_dir())
    }
}

/// A configuration that may be missing.
pub(super) fn read<T: Config>(path: &Path) -> Result<Option<T>> {
    match json(path)? {
        Some(json) => checked(path, serde_json::from_value(json)).map(Some),
        None => Ok(None),
    }
}

/// The configuration of a network of transformers, and its path: in a folder, or beside a file. It must be of the type
/// `kind`; `hint` says what is wanted where there is none.
pub(super) fn of_type<T: Config>(
    path: &Path,
    kind: &str,
    hint: &'static str,
) -> Result<(PathBuf, T)> {
    let place = beside(&Source::from(path.to_path_buf()), "").unwrap_or_default();
    let Some(json) = json(&place)? else {
        return Err(Error::format(path, "has no config.json beside it").with_hint(hint));
    };
    let found = json.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default();
    if found != kind {
        let reason = format!("is of the type `{found}`, not `{kind}`");
        return Err(Error::format(&place, reason));
    }
    let config = part(&place, &json)?;
    Ok((place, config))
}

/// The JSON of a file that may be missing.
pub(super) fn json(path: &Path) -> Result<Option<serde_json::Value>> {
    find_text(path)?.map(|text| parsed(path, serde_json::from_str(&text))).transpose()
}

/// A configuration that is a part of a file's JSON.
pub(super) fn part<T: Config>(path: &Path, json: &serde_json::Value) -> Result<T> {
    checked(path, serde_json::from_value(json.clone()))
}

fn parsed<T>(path: &Path, json: serde_json::Result<T>) -> Result<T> {
    json.map_err(|e| Error::format(path, e.to_string()))
}

fn checked<T: Config>(path: &Path, json: serde_json::Result<T>) -> Result<T> {
    let config: T = parsed(path, json)?;
    config.check().map_err(|error| match error {
        Error::Missing { reason, .. } => Error::format(path, reason),
        other => other,
    })?;
    Ok(config)
}

/// The `config.json` of a network: in its folder, in the folder `inner` of that, or beside its file.
pub(super) fn beside(source: &Source, inner: &str) -> Option<PathBuf> {
    let Source::File(path) = source else { return None };
    let folder = if path.is_dir() {
        let inner = path.join(inner);
        if inner.is_dir() { inner } else { path.clone() }
    } else {
        path.parent().map(Path::to_path_buf).unwrap_or_default()
    };
    Some(folder.join("config.json"))
}
