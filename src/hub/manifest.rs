//! Manifest of published models: one TOML file per entry, built into the program.
//!
//! A *model* lists the files of one repository on the hub. A *preset* lists models that belong together and their
//! recommended settings. The files are in `weights-manifest/`.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A built-in entry: its file name without extension, and its text.
macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../weights-manifest/", $name, ".toml")))),*]
    };
}

/// All files of `weights-manifest/`, in display order.
const EMBEDDED: &[(&str, &str)] = embedded![
    "animatelcm",
    "animatelcm-i2v",
    "animatediff-v2",
    "animatediff-v3",
    "animatediff-lightning-1step",
    "animatediff-lightning-2step",
    "animatediff-lightning-4step",
    "animatediff-lightning-8step",
    "hyper-sd-1step",
    "hyper-sd-2step",
    "hyper-sd-4step",
    "hyper-sd-8step",
    "sd15",
    "animatelcm-t2v",
    "animatelcm-t2v-lora",
    "animatelcm-i2v-motion",
    "animatelcm-i2v-lora",
    "animatediff-v1-5",
    "animatediff-v1-5-2",
    "animatediff-v1-5-2-diffusers",
    "animatediff-v1-5-3",
    "animatediff-lightning-1step-motion",
    "animatediff-lightning-2step-motion",
    "animatediff-lightning-4step-motion",
    "animatediff-lightning-8step-motion",
    "lcm-lora-sd15",
    "hyper-sd15-1step-lora",
    "hyper-sd15-2step-lora",
    "hyper-sd15-4step-lora",
    "hyper-sd15-8step-lora",
    "sd-vae-ft-mse",
    "taesd",
    "depth-anything-v2-small",
    "blip-image-captioning-base",
];

/// Kind of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// Text encoder, UNet and VAE of a text-to-image model.
    Base,
    /// A motion module.
    Motion,
    /// Low-rank adapter (LoRA) for a base model.
    Lora,
    /// VAE in place of the base model's.
    Vae,
    /// Small autoencoder for fast decoding.
    TinyVae,
    /// Network that estimates the depth of pictures.
    Depth,
    /// Network that describes pictures.
    Caption,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Base => "base",
            Self::Motion => "motion",
            Self::Lora => "lora",
            Self::Vae => "vae",
            Self::TinyVae => "tiny-vae",
            Self::Depth => "depth",
            Self::Caption => "caption",
        })
    }
}

/// Expected sha256 of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Digest {
    /// Published hash: 64 lowercase hexadecimal digits.
    Known(String),
    /// Unknown when the entry was written: at the first download the hub's hash is checked and recorded beside the
    /// cached file; later downloads and checks compare with the record.
    RecordedAtFirstPull,
}

const RECORDED: &str = "recorded-at-first-pull";

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == RECORDED {
            Ok(Self::RecordedAtFirstPull)
        } else if is_sha256(&text) {
            Ok(Self::Known(text))
        } else {
            Err(format!("`{text}` is neither 64 lowercase hexadecimal digits nor `{RECORDED}`"))
        }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        match digest {
            Digest::Known(hex) => hex,
            Digest::RecordedAtFirstPull => RECORDED.to_owned(),
        }
    }
}

/// Returns whether a text is a sha256 in lowercase hexadecimal.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Path in the repository, with forward slashes.
    pub path: String,
    /// Variant of the file; `None` belongs to all variants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Size in bytes, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Expected hash.
    pub sha256: Digest,
}

/// Licence of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    /// Common short name.
    pub name: String,
    /// URL of the licence text.
    pub url: String,
    /// Noteworthy terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remarks: Option<String>,
}

/// A published model: files of one repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name on the command line.
    pub name: String,
    /// Kind of the model.
    pub kind: Kind,
    /// Short description.
    pub title: String,
    /// Repository, `owner/name`.
    pub repo: String,
    /// Commit, or a branch if no commit is known.
    pub revision: String,
    /// Repositories with the same files, tried in order at `main` if the first one fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// Names of the variants; the first one is the default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<String>,
    /// Licence of the model.
    pub licence: Licence,
    /// Files of the model.
    pub files: Vec<File>,
}

/// A repository at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source<'a> {
    pub(super) repo: &'a str,
    pub(super) revision: &'a str,
}

impl Source<'_> {
    /// Returns whether the revision is a commit, which never changes.
    pub(super) fn is_pinned(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|b| b.is_ascii_hexdigit())
    }
}

impl Model {
    /// The repository and its mirrors, in order of use.
    pub(super) fn sources(&self) -> impl Iterator<Item = Source<'_>> {
        let first = Source { repo: &self.repo, revision: &self.revision };
        let mirrors = self.mirrors.iter().map(|repo| Source { repo, revision: "main" });
        std::iter::once(first).chain(mirrors)
    }

    /// The files of a variant, or all files of a model without variants.
    pub fn files_of(&self, variant: Option<&str>) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |file| match file.variant.as_deref() {
            None => true,
            of => of == variant,
        })
    }

    /// Candidate variants in order: the requested one, or all of them, or `None` for a model without variants.
    pub(super) fn variants_or(&self, asked: Option<&str>) -> Result<Vec<Option<&str>>> {
        match asked {
            None if self.variants.is_empty() => Ok(vec![None]),
            None => Ok(self.variants.iter().map(|v| Some(v.as_str())).collect()),
            Some(asked) => match self.variants.iter().find(|v| *v == asked) {
                Some(found) => Ok(vec![Some(found)]),
                None if self.variants.is_empty() => Err(Error::request(
                    "variant",
                    format!("`{}` has no variants, so no `{asked}`", self.name),
                )),
                None => Err(Error::request(
                    "variant",
                    format!("`{}` has no `{asked}`: {}", self.name, self.variants.join(", ")),
                )),
            },
        }
    }

    /// Total size of a variant in bytes, of the files whose size is known.
    pub fn size_of(&self, variant: Option<&str>) -> u64 {
        self.files_of(variant).filter_map(|file| file.size).fold(0, u64::saturating_add)
    }

    fn validate(&self) -> Result<(), String> {
        check_name(&self.name)?;
        for source in self.sources() {
            check_repo(source.repo)?;
            check_segments("revision", source.revision)?;
        }
        let mut paths = BTreeSet::new();
        for file in &self.files {
            check_segments("path", &file.path)?;
            if !paths.insert(&file.path) {
                return Err(format!("`{}` is listed twice", file.path));
            }
            if let Some(variant) = &file.variant
                && !self.variants.contains(variant)
            {
                return Err(format!("`{}` is of the unlisted variant `{variant}`", file.path));
            }
        }
        if paths.is_empty() {
            return Err("no files are listed".to_owned());
        }
        for variant in &self.variants {
            if !self.files.iter().any(|file| file.variant.as_ref() == Some(variant)) {
                return Err(format!("the variant `{variant}` has no file"));
            }
        }
        Ok(())
    }
}

/// Recommended settings of a preset. Omitted ones use the program's defaults.
///
/// The names are those of the request and of the command line, where the values are validated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// Name of the sampler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<String>,
    /// Spacing of the timesteps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spacing: Option<String>,
    /// Number of sampling steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// Guidance scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cfg_scale: Option<f64>,
    /// Strength of the preset's LoRA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_scale: Option<f64>,
    /// Width in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Height in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Number of frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<u32>,
    /// Frames per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fps: Option<u32>,
    /// Number of teacher steps of the distilled schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_inference_steps: Option<u32>,
    /// Beta schedule, `linear` or `scaled-linear`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_schedule: Option<String>,
    /// The first beta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_start: Option<f64>,
    /// The last beta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_end: Option<f64>,
}

/// The `kind` of a preset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PresetKind {
    Preset,
}

/// A preset: models that belong together, and their settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// Name on the command line.
    pub name: String,
    kind: PresetKind,
    /// Short description.
    pub title: String,
    /// Names of its models, at most one of each kind.
    pub parts: Vec<String>,
    /// Recommended settings.
    #[serde(default)]
    pub defaults: Defaults,
}

/// An entry of the manifest.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Entry {
    /// A published model.
    Model(Model),
    /// Models that belong together.
    Preset(Preset),
}

impl Entry {
    /// Parses an entry; `origin` is the file name in errors.
    pub fn parse(text: &str, origin: impl AsRef<Path>) -> Result<Self> {
        let complain = |reason: String| Error::format(&origin, reason);
        let table: toml::Table = text.parse().map_err(|e| complain(one_line(&e)))?;
        let entry = if table.get("kind").and_then(toml::Value::as_str) == Some("preset") {
            Self::Preset(toml::from_str(text).map_err(|e| complain(one_line(&e)))?)
        } else {
            Self::Model(toml::from_str(text).map_err(|e| complain(one_line(&e)))?)
        };
        match &entry {
            Self::Model(model) => model.validate(),
            Self::Preset(preset) => check_name(&preset.name),
        }
        .map_err(complain)?;
        Ok(entry)
    }

    /// Name on the command line.
    pub fn name(&self) -> &str {
        match self {
            Self::Model(model) => &model.name,
            Self::Preset(preset) => &preset.name,
        }
    }
}

/// Single-line form of a TOML error: the message without the multi-line excerpt.
fn one_line(error: &toml::de::Error) -> String {
    error.message().trim().replace('\n', " ")
}

fn check_name(name: &str) -> Result<(), String> {
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if !name.is_empty() && name.bytes().all(plain) {
        Ok(())
    } else {
        Err(format!("`{name}` is not a name: use lowercase letters, digits and `-`"))
    }
}

fn check_repo(repo: &str) -> Result<(), String> {
    check_segments("repo", repo)?;
    if repo.split('/').count() == 2 && !repo.contains("--") {
        Ok(())
    } else {
        Err(format!("repo `{repo}` is not of the form `owner/name`"))
    }
}

/// Rejects names that could leave their folder as part of a path or URL.
fn check_segments(field: &str, text: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let sound = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(allowed);
    if text.split('/').all(sound) {
        Ok(())
    } else {
        Err(format!("{field} `{text}` is not a plain relative path"))
    }
}

/// All entries, by name.
#[derive(Clone, Debug)]
pub struct Catalog {
    entries: Vec<Entry>,
}

/// Names of the built-in entries.
pub(crate) fn embedded_names() -> impl Iterator<Item = &'static str> {
    EMBEDDED.iter().map(|(name, _)| *name)
}

impl Catalog {
    /// The built-in entries.
    pub fn embedded() -> Result<Self> {
        let entries = EMBEDDED
            .iter()
            .map(|(name, text)| Entry::parse(text, format!("weights-manifest/{name}.toml")))
            .collect::<Result<_>>()?;
        Ok(Self { entries })
    }

    /// Adds an entry, replacing one of the same name.
    pub fn insert(&mut self, entry: Entry) {
        match self.entries.iter_mut().find(|known| known.name() == entry.name()) {
            Some(known) => *known = entry,
            None => self.entries.push(entry),
        }
    }

    /// The entries in display order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry named `name`.
    pub fn find(&self, name: &str) -> Result<&Entry> {
        self.entries.iter().find(|entry| entry.name() == name).ok_or_else(|| {
            let names: Vec<&str> = self.entries.iter().map(Entry::name).collect();
            Error::request("model", format!("`{name}` is not in the manifest"))
                .with_hint(format!("known names: {}", names.join(", ")))
        })
    }

    /// The models of a name: those of a preset, or the model itself.
    pub fn parts(&self, name: &str) -> Result<Vec<&Model>> {
        let preset = match self.find(name)? {
            Entry::Model(model) => return Ok(vec![model]),
            Entry::Preset(preset) => preset,
        };
        let mut models: Vec<&Model> = Vec::with_capacity(preset.parts.len());
        for part in &preset.parts {
            let Entry::Model(model) = self.find(part)? else {
                return Err(Error::request("model", format!("`{part}` in `{name}` is a preset")));
            };
            if let Some(twin) = models.iter().find(|m| m.kind == model.kind) {
                return Err(Error::request(
                    "model",
                    format!("`{name}` has two of kind {}: `{}`, `{part}`", model.kind, twin.name),
                ));
            }
            models.push(model);
        }
        Ok(models)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(extra: &str) -> Result<Entry> {
        let text = format!(
            "name = \"m\"\nkind = \"lora\"\ntitle = \"t\"\nrepo = \"o/n\"\nrevision = \"main\"\n{extra}\n\
             [licence]\nname = \"MIT\"\nurl = \"https://example.org\"\n\
             [[files]]\npath = \"a/b.bin\"\nsha256 = \"recorded-at-first-pull\"\n"
        );
        Entry::parse(&text, "m.toml")
    }

    #[test]
    fn every_file_of_the_folder_is_embedded_under_its_name() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/weights-manifest");
        let on_disk: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        let embedded: BTreeSet<String> = EMBEDDED.iter().map(|(n, _)| (*n).to_owned()).collect();
        assert_eq!(on_disk, embedded);
        for (entry, (name, _)) in Catalog::embedded().unwrap().entries().iter().zip(EMBEDDED) {
            assert_eq!(entry.name(), *name);
        }
    }

    #[test]
    fn every_preset_has_a_base_and_a_motion_module() {
        let catalog = Catalog::embedded().unwrap();
        for entry in catalog.entries() {
            if let Entry::Preset(preset) = entry {
                let kinds: Vec<Kind> =
                    catalog.parts(&preset.name).unwrap().iter().map(|m| m.kind).collect();
                assert!(kinds.contains(&Kind::Base), "{}", preset.name);
                assert!(kinds.contains(&Kind::Motion), "{}", preset.name);
            }
        }
    }

    #[test]
    fn sizes_that_no_number_holds_are_the_largest() {
        let Ok(Entry::Model(mut model)) = model("") else { panic!("a model was described") };
        for (i, size) in [u64::MAX - 1, 1, 1].into_iter().enumerate() {
            let path = i.to_string();
            let sha256 = Digest::RecordedAtFirstPull;
            model.files.push(File { path, variant: None, size: Some(size), sha256 });
        }
        assert_eq!(model.size_of(None), u64::MAX);
    }

    #[test]
    fn every_built_in_revision_is_pinned() {
        // No commit of their repository is known.
        const UNKNOWN: [&str; 6] = [
            "animatelcm-i2v-motion",
            "animatelcm-i2v-lora",
            "animatediff-lightning-1step-motion",
            "animatediff-lightning-2step-motion",
            "animatediff-lightning-4step-motion",
            "animatediff-lightning-8step-motion",
        ];
        for entry in Catalog::embedded().unwrap().entries() {
            if let Entry::Model(model) = entry {
                let source = model.sources().next().unwrap();
                let is_known = !UNKNOWN.contains(&model.name.as_str());
                assert_eq!(source.is_pinned(), is_known, "{}: {}", model.name, source.revision);
            }
        }
    }

    #[test]
    fn the_published_hashes_of_animatelcm_are_these() {
        let catalog = Catalog::embedded().unwrap();
        for (name, hash) in [
            ("animatelcm-t2v", "b46c3de62e5696af72c4056e3cdcbea12fbc19581c0aad7b6f2b027851148f5f"),
            (
                "animatelcm-t2v-lora",
                "8f90d840e075ff588a58e22c6586e2ae9a6f7922996ee6649a7f01072333afe4",
            ),
        ] {
            let Entry::Model(model) = catalog.find(name).unwrap() else { panic!("{name}") };
            assert_eq!(model.files[0].sha256, Digest::Known(hash.to_owned()));
        }
    }

    #[test]
    fn a_variant_is_its_own_files_and_the_common_ones() {
        let catalog = Catalog::embedded().unwrap();
        let Entry::Model(sd15) = catalog.find("sd15").unwrap() else { panic!() };
        let fp16: Vec<&str> = sd15.files_of(Some("fp16")).map(|f| f.path.as_str()).collect();
        assert_eq!(fp16.len(), 12);
        assert!(fp16.contains(&"unet/config.json"));
        assert!(fp16.contains(&"unet/diffusion_pytorch_model.fp16.safetensors"));
        assert!(!fp16.contains(&"unet/diffusion_pytorch_model.safetensors"));
        assert!(sd15.variants_or(Some("fp8")).is_err());
    }

    #[test]
    fn an_unknown_field_is_refused() {
        assert!(model("").is_ok());
        let error = model("revison = \"main\"").unwrap_err().to_string();
        assert!(error.contains("revison"), "{error}");
    }

    #[test]
    fn a_path_that_leaves_its_folder_is_refused() {
        for bad in ["../x", "/etc/passwd", "a//b", "a/./b", "a\\\\b", "", "c:/x", "a/.."] {
            let text = format!(
                "name = \"m\"\nkind = \"lora\"\ntitle = \"t\"\nrepo = \"o/n\"\nrevision = \"main\"\n\
                 [licence]\nname = \"MIT\"\nurl = \"u\"\n\
                 [[files]]\npath = \"{bad}\"\nsha256 = \"recorded-at-first-pull\"\n"
            );
            let error = Entry::parse(&text, "m.toml").unwrap_err().to_string();
            assert!(error.contains("not a plain relative path"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_hash_is_64_lowercase_digits_or_the_known_words() {
        let digit = |c: char, n: usize| Digest::try_from(c.to_string().repeat(n));
        assert!(digit('a', 64).is_ok());
        assert!(digit('A', 64).is_err());
        assert!(digit('a', 63).is_err());
        assert_eq!(Digest::try_from(RECORDED.to_owned()), Ok(Digest::RecordedAtFirstPull));
    }

    #[test]
    fn a_preset_of_two_bases_is_refused() {
        let mut catalog = Catalog::embedded().unwrap();
        let text = "name = \"p\"\nkind = \"preset\"\ntitle = \"t\"\nparts = [\"sd15\", \"sd15\"]";
        catalog.insert(Entry::parse(text, "p.toml").unwrap());
        let error = catalog.parts("p").unwrap_err().to_string();
        assert!(error.contains("two of kind base"), "{error}");
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = Catalog::embedded().unwrap().find("animatlcm").map(Entry::name).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Request);
        assert!(error.hint().unwrap().contains("animatelcm, "), "{error}");
    }
}
