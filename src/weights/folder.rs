//! Lookup of a component's weight files in a diffusers folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::Component;
use super::format::quoted;
use super::side_file::read_text;
use crate::{Error, Result};

/// The files of one component.
#[derive(Debug)]
pub(super) struct Files {
    /// The files, in order.
    pub(super) paths: Vec<PathBuf>,
    /// Index file of a sharded component, and the tensor names it lists for each shard.
    pub(super) promised: Option<(PathBuf, BTreeMap<PathBuf, BTreeSet<String>>)>,
}

/// A naming scheme of weight files: stem, extension, variant.
struct Spelling {
    stem: &'static str,
    extension: &'static str,
    variant: Option<&'static str>,
}

/// Finds a component's weights in its own folder or in its subfolder of a pipeline.
///
/// `names` are the usual subfolder names in a pipeline. Full precision is preferred to the `fp16` variant, and
/// safetensors to pickle.
pub(super) fn find(folder: &Path, stems: &[Stem], names: &[&str]) -> Result<Files> {
    let inner = names.iter().map(|name| folder.join(name)).find(|path| path.is_dir());
    let folder = inner.as_deref().unwrap_or(folder);
    for spelling in spellings(stems) {
        if let Some(files) = spelling.find(folder)? {
            return Ok(files);
        }
    }
    let wanted = stems.first().map_or("", |stem| stem.safetensors);
    Err(Error::Missing {
        name: folder.display().to_string(),
        reason: format!("no weights in it, such as `{wanted}.safetensors`"),
    })
}

/// The stem of a component's file names; transformers uses another one for pickle files.
pub(super) struct Stem {
    pub(super) safetensors: &'static str,
    pub(super) bin: &'static str,
}

const DIFFUSERS: Stem =
    Stem { safetensors: "diffusion_pytorch_model", bin: "diffusion_pytorch_model" };
const TRANSFORMERS: Stem = Stem { safetensors: "model", bin: "pytorch_model" };

impl Component {
    /// The stems of the component's file names, in order of preference.
    pub(super) fn stems(self) -> &'static [Stem] {
        match self {
            Self::Text | Self::ImageEncoder => &[TRANSFORMERS, DIFFUSERS],
            // An IP-Adapter folder holds many files and none is the default.
            Self::IpAdapter => &[],
            _ => &[DIFFUSERS, TRANSFORMERS],
        }
    }
}

fn spellings(stems: &[Stem]) -> impl Iterator<Item = Spelling> {
    let variants = [None, Some("fp16")];
    ["safetensors", "bin"].into_iter().flat_map(move |extension| {
        variants.into_iter().flat_map(move |variant| {
            stems.iter().map(move |stem| Spelling {
                stem: if extension == "bin" { stem.bin } else { stem.safetensors },
                extension,
                variant,
            })
        })
    })
}

impl Spelling {
    fn find(&self, folder: &Path) -> Result<Option<Files>> {
        let Self { stem, extension, .. } = self;
        let single = match self.variant {
            None => format!("{stem}.{extension}"),
            Some(variant) => format!("{stem}.{variant}.{extension}"),
        };
        let single = folder.join(single);
        if is_there(&single) {
            return Ok(Some(Files { paths: vec![single], promised: None }));
        }
        let indexes = match self.variant {
            None => vec![format!("{stem}.{extension}.index.json")],
            // The second is the spelling of diffusers before 0.30.
            Some(variant) => vec![
                format!("{stem}.{extension}.index.{variant}.json"),
                format!("{stem}.{extension}.{variant}.index.json"),
            ],
        };
        match indexes.iter().map(|name| folder.join(name)).find(|path| is_there(path)) {
            Some(index) => shards(folder, index).map(Some),
            None => Ok(None),
        }
    }
}

/// Returns whether the path exists and is not a folder. Pipes and devices are rejected when they are opened.
fn is_there(path: &Path) -> bool {
    path.exists() && !path.is_dir()
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn shards(folder: &Path, index: PathBuf) -> Result<Files> {
    let parsed: Index = serde_json::from_str(&read_text(&index)?)
        .map_err(|e| Error::format(&index, format!("cannot be read: {e}")))?;
    let mut promised: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    for (tensor, file) in parsed.weight_map {
        // Shards must lie in the same folder as their index.
        if file.is_empty() || file == ".." || file.contains(['/', '\\', ':']) {
            return Err(Error::format(
                &index,
                format!("shard {} is not a plain file name", quoted(&file)),
            ));
        }
        promised.entry(folder.join(file)).or_default().insert(tensor);
    }
    if promised.is_empty() {
        return Err(Error::format(&index, "names no tensors"));
    }
    let paths = promised.keys().cloned().collect();
    Ok(Files { paths, promised: Some((index, promised)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        folder
    }

    fn found(files: &[&str], component: Component) -> Option<String> {
        let folder = folder(files);
        let files = find(folder.path(), component.stems(), component.folders()).ok()?;
        let path = files.paths.first()?;
        Some(path.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn full_precision_and_safetensors_come_first() {
        let all = [
            "diffusion_pytorch_model.bin",
            "diffusion_pytorch_model.fp16.bin",
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.safetensors",
        ];
        let order = [3, 2, 0, 1];
        let mut left: Vec<&str> = all.to_vec();
        for best in order {
            assert_eq!(found(&left, Component::UNet).as_deref(), Some(all[best]));
            left.retain(|name| *name != all[best]);
        }
        assert_eq!(found(&left, Component::UNet), None);
    }

    #[test]
    fn a_pipelines_folder_leads_to_the_components() {
        assert_eq!(
            found(&["vae/diffusion_pytorch_model.bin"], Component::Vae).as_deref(),
            Some("vae/diffusion_pytorch_model.bin")
        );
        assert_eq!(
            found(&["text_encoder/pytorch_model.bin"], Component::Text).as_deref(),
            Some("text_encoder/pytorch_model.bin")
        );
    }

    #[test]
    fn shards_outside_the_folder_are_refused() {
        for file in ["../secret", "/etc/passwd", "a\\b", "", ".."] {
            let folder = folder(&[]);
            let index = serde_json::json!({"weight_map": {"a": file}}).to_string();
            let path = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
            std::fs::write(path, index).unwrap();
            let error = find(folder.path(), Component::UNet.stems(), &[]).unwrap_err();
            assert!(error.to_string().contains("plain file name"), "{file}: {error}");
        }
    }
}
