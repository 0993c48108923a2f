//! What clients may name: models, LoRAs, controls and their licences.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::files::read_text;
use crate::job::{Listed, ListedInputs, Names};
use crate::queue::Store;
use crate::{Error, Result, spelling};

/// The name of the model inside the program.
pub(super) const EMBEDDED: &str = "pocket";

/// The word that switches a default off.
const NONE: &str = "none";

/// Kinds of files that a catalog has, with the fields of a request that take them.
const KINDS: [(&str, &[&str]); 9] = [
    ("model", &["model"]),
    ("checkpoint", &["checkpoint"]),
    ("vae", &["vae"]),
    ("motion", &["motion"]),
    ("lora", &["lora", "lcm-lora"]),
    ("embedding", &["embedding"]),
    ("control", &["control"]),
    ("ip-adapter", &["ip-adapter"]),
    ("image-encoder", &["image-encoder"]),
];

/// What clients may name.
#[derive(Debug, Default)]
pub struct Catalog {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    kind: &'static str,
    title: Option<String>,
    license: Option<String>,
    /// `None` for what is found by its name: published models and the one inside.
    path: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    model: Vec<Listing>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    name: String,
    kind: String,
    file: PathBuf,
    title: Option<String>,
    license: Option<String>,
}

impl Catalog {
    /// Lists a TOML file or the files of folders, then what `names` has of both: folders of one's own and downloaded
    /// models.
    ///
    /// # Errors
    ///
    /// When the file is not of that form, or names a file that is not there.
    pub fn open(toml: Option<&Path>, names: &Names) -> Result<Self> {
        let mut catalog = Self::default();
        catalog.add(Entry {
            name: EMBEDDED.into(),
            kind: "model",
            title: Some("The small model inside the program".into()),
            license: Some("MIT OR Apache-2.0".into()),
            path: None,
        });
        if let Some(path) = toml {
            catalog.read(path)?;
        }
        for (field, name, path) in names.all()? {
            if let Some((kind, _)) = KINDS.iter().find(|(kind, _)| *kind == field) {
                catalog.add(Entry { name, kind, title: None, license: None, path: Some(path) });
            }
        }
        for (name, kind) in names.downloaded() {
            catalog.add(Entry { name, kind, title: None, license: None, path: None });
        }
        Ok(catalog)
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let text = read_text(path).map_err(|error| Error::unreadable("catalog", path, &error))?;
        let wrong = |reason: &str| {
            let reason = format!("{}: {}", path.display(), reason.replace('\n', " "));
            Error::request("catalog", reason)
        };
        let document: Document = toml::from_str(&text).map_err(|error| wrong(error.message()))?;
        let folder = path.canonicalize().map_err(Error::file(path))?;
        let folder = folder.parent().unwrap_or(Path::new("."));
        for Listing { name, kind, file, title, license } in document.model {
            let Some((kind, _)) = KINDS.iter().find(|(known, _)| *known == kind) else {
                let known: Vec<_> = KINDS.iter().map(|(kind, _)| *kind).collect();
                let reason = format!("`{name}` is of the kind `{kind}`");
                return Err(wrong(&reason).with_hint(format!("kinds are {}", known.join(", "))));
            };
            if name.is_empty() || name == NONE || name.contains(char::is_control) {
                return Err(wrong(&format!("`{name}` cannot be a name")));
            }
            let path = folder.join(&file);
            if !path.exists() {
                return Err(wrong(&format!("`{name}` is {}, which is not there", file.display())));
            }
            self.add(Entry { name, kind, title, license, path: Some(path) });
        }
        Ok(())
    }

    /// Adds an entry unless there is one of the kind and name.
    fn add(&mut self, entry: Entry) {
        let is_same = |other: &Entry| other.kind == entry.kind && other.name == entry.name;
        if !self.entries.iter().any(is_same) {
            self.entries.push(entry);
        }
    }

    /// Whether a field of a request may have a name.
    pub(super) fn has(&self, field: &str, name: &str) -> bool {
        let is_none = name == NONE && matches!(field, "motion" | "lcm-lora");
        is_none || self.names(field).any(|known| known == name)
    }

    /// The names that a field may have.
    pub(super) fn names<'a>(&'a self, field: &'a str) -> impl Iterator<Item = &'a str> {
        let kind = KINDS.iter().find(|(_, fields)| fields.contains(&field)).map(|(kind, _)| *kind);
        let entries = self.entries.iter();
        entries.filter(move |entry| Some(entry.kind) == kind).map(|entry| entry.name.as_str())
    }

    /// A known name that is spelled nearly so.
    pub(super) fn near(&self, field: &str, name: &str) -> Option<String> {
        spelling::nearest(name, self.names(field)).map(ToString::to_string)
    }

    /// The list that resolves these names, and uploads by their hash.
    pub(super) fn listed(&self, uploads: &Arc<dyn Store>) -> Listed {
        let mut models = BTreeMap::new();
        for entry in &self.entries {
            let fields = KINDS.iter().find(|(kind, _)| *kind == entry.kind).map(|(_, f)| *f);
            let Some(path) = &entry.path else { continue };
            for field in fields.unwrap_or_default() {
                models.insert(((*field).to_owned(), entry.name.clone()), path.clone());
            }
        }
        let uploads = Arc::clone(uploads);
        let find = move |name: &str| uploads.open(name.strip_prefix("upload:")?).ok().flatten();
        Listed { models, inputs: ListedInputs::new(find) }
    }

    /// Paths, and what clients see in their place.
    pub(super) fn hidden(&self) -> Vec<(String, String)> {
        let mut pairs = BTreeSet::new();
        for Entry { name, path, .. } in &self.entries {
            let Some(path) = path else { continue };
            let paths = [Some(path.clone()), path.canonicalize().ok()];
            for path in paths.into_iter().flatten() {
                if let Some(folder) = path.parent().filter(|_| path.is_file()) {
                    pairs.insert((folder.to_string_lossy().into_owned(), "models".to_owned()));
                }
                pairs.insert((path.to_string_lossy().into_owned(), name.clone()));
            }
        }
        pairs.into_iter().collect()
    }

    /// The list as OpenAI's API has it, with kinds and licences.
    pub(super) fn to_json(&self) -> Value {
        let data: Vec<_> = self.entries.iter().map(Entry::to_json).collect();
        json!({"object": "list", "data": data})
    }
}

impl Entry {
    fn to_json(&self) -> Value {
        json!({
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "animatelcm",
            "kind": self.kind,
            "title": self.title,
            "license": self.license,
            "embedded": self.name == EMBEDDED && self.path.is_none(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_is_a_file_or_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        write("loras/styles/ink.safetensors", "");
        write("checkpoints/toon.safetensors", "");
        let toml = write(
            "list.toml",
            "[[model]]\nname = \"Ink\"\nkind = \"lora\"\nfile = \"loras/styles/ink.safetensors\"\nlicense = \"CC0\"\n",
        );
        let folders = [folder.path().to_path_buf()];
        let names = Names::new(true).unwrap().with_folders(&folders).unwrap();
        let catalog = Catalog::open(Some(&toml), &names).unwrap();
        for (field, name) in [
            ("model", "pocket"),
            ("model", "toon"),
            ("checkpoint", "toon"),
            ("lora", "Ink"),
            ("lcm-lora", "Ink"),
            ("lora", "styles/ink"),
            ("motion", "none"),
        ] {
            assert!(catalog.has(field, name), "{field} {name}");
        }
        for (field, name) in [("lora", "toon"), ("lora", "ink"), ("model", "none"), ("lora", "")] {
            assert!(!catalog.has(field, name), "{field} {name}");
        }
        assert_eq!(catalog.near("lora", "ink"), Some("Ink".into()));
        let text = catalog.to_json().to_string();
        assert!(text.contains("CC0") && !text.contains(&*folder.path().to_string_lossy()));
        for wrong in [
            "[[model]]\nname = \"x\"\nkind = \"lora\"\nfile = \"none\"",
            "[[model]]\nname = \"x\"\nkind = \"shoe\"\nfile = \"list.toml\"",
            "[[model]]\nname = \"\"\nkind = \"lora\"\nfile = \"list.toml\"",
            "[[model]]\nname = \"x\"",
        ] {
            let path = write("wrong.toml", wrong);
            assert_eq!(Catalog::open(Some(&path), &names).unwrap_err().kind().exit_code(), 2);
        }
    }
}
