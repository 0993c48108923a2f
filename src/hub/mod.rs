//! Published models: their names, repositories and files, and the local cache.
//!
//! Files are in the standard hub cache, shared with Python's huggingface_hub and other programs. Looking them up
//! needs no network; only [`Hub::pull`] does.

mod address;
mod cache;
mod client;
mod download;
mod environment;
pub mod manifest;

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use self::cache::Folder;
use self::manifest::{Catalog, Defaults, Digest, Entry, File, Kind, Licence, Model};
use crate::{Error, Result, files};

/// URL of the public hub.
pub const ENDPOINT: &str = "https://huggingface.co";

/// Settings of the hub and its cache.
#[derive(Clone)]
pub struct Settings {
    /// URL of the hub, without a trailing slash.
    pub endpoint: String,
    /// Cache folder, which contains the `models--owner--name` folders.
    pub cache: PathBuf,
    /// Access token, sent to the hub with every request.
    pub token: Option<String>,
    /// Whether network access is disabled.
    pub offline: bool,
    /// Number of retries without progress before a transfer fails.
    pub retries: u32,
    /// Maximum time without progress in a transfer.
    pub patience: Duration,
}

impl Settings {
    /// Settings of the public hub, without a token, with the given cache folder.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: ENDPOINT.to_owned(),
            cache: cache.into(),
            token: None,
            offline: false,
            retries: 4,
            patience: Duration::from_secs(60),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .field("retries", &self.retries)
            .field("patience", &self.patience)
            .finish()
    }
}

/// Progress event of a download or a check.
///
/// Its JSON is an object whose field `event` names the variant in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event<'a> {
    /// A file is being downloaded. Repeated at intervals, also without progress.
    Download {
        /// Path of the file in its repository.
        file: &'a str,
        /// Bytes downloaded.
        done: u64,
        /// Total bytes.
        total: u64,
    },
    /// A file's hash is being computed. Repeated.
    Check {
        /// Path of the file in its repository.
        file: &'a str,
        /// Bytes hashed.
        done: u64,
        /// Total bytes.
        total: u64,
    },
    /// A file is in the cache and its hash is right.
    Done {
        /// Path of the file in its repository.
        file: &'a str,
    },
    /// A transfer failed and is retried after a pause.
    Retry {
        /// Path of the file in its repository.
        file: &'a str,
        /// Error of the failed attempt.
        reason: &'a str,
    },
    /// A repository could not be used and a mirror is tried.
    Mirror {
        /// Reason why the previous repository failed.
        reason: &'a str,
        /// Name of the mirror.
        repo: &'a str,
    },
}

/// Callback for every [`Event`]; a break stops the work with [`Error::Cancelled`].
pub type Watch<'a> = dyn FnMut(&Event<'_>) -> ControlFlow<()> + 'a;

/// An installed model: all of its files are in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Installed {
    /// Name of the model in the manifest.
    pub name: String,
    /// Kind of the model.
    pub kind: Kind,
    /// Repository of the files.
    pub repo: String,
    /// Commit of the files.
    pub commit: String,
    /// Variant, for a model that has variants.
    pub variant: Option<String>,
    /// Snapshot folder of the commit; it may contain files of other models too.
    pub folder: PathBuf,
    /// Absolute paths of the model's files, in manifest order.
    pub files: Vec<PathBuf>,
}

impl Installed {
    /// Path for a loader: the file of a single-file model, the folder otherwise.
    pub fn path(&self) -> &Path {
        match self.files.as_slice() {
            [file] => file,
            _ => &self.folder,
        }
    }
}

/// Resolved name: one model, or the models and settings of a preset.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Bundle {
    /// Name in the manifest.
    pub name: String,
    /// Models, at most one of each kind.
    pub parts: Vec<Installed>,
    /// Recommended settings of the models.
    pub defaults: Defaults,
}

impl Bundle {
    /// The model of a kind.
    pub fn part(&self, kind: Kind) -> Option<&Installed> {
        self.parts.iter().find(|part| part.kind == kind)
    }
}

/// Installation state of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum State {
    /// All files are in the cache.
    Installed,
    /// Some files are in the cache.
    Partial,
    /// No file is in the cache.
    Absent,
}

/// An entry of the list of models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Listing {
    /// Name in the manifest.
    pub name: String,
    /// `preset`, or the model's kind.
    pub kind: String,
    /// Short description.
    pub title: String,
    /// Installation state.
    pub state: State,
    /// Variants that are complete in the cache.
    pub variants: Vec<String>,
    /// Variants that can be downloaded; the first is the default.
    pub offered: Vec<String>,
    /// Bytes in the cache.
    pub bytes: u64,
    /// Download size in bytes of the first variant, as far as known; `None` if nothing of it is.
    pub download: Option<u64>,
    /// Names of a preset's models.
    pub parts: Vec<String>,
    /// Licences, one per model.
    pub licences: Vec<Licence>,
}

/// What a pull of a name would download.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// Name in the manifest.
    pub name: String,
    /// The cache.
    pub folder: PathBuf,
    /// Bytes that the cache's disk has left, if known.
    pub free: Option<u64>,
    /// The models.
    pub models: Vec<PlannedModel>,
}

/// A model in a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PlannedModel {
    /// Name in the manifest.
    pub name: String,
    /// Repository of the files.
    pub repo: String,
    /// Variant, for a model that has variants.
    pub variant: Option<String>,
    /// Name of the licence.
    pub licence: String,
    /// Number of all its files.
    pub files: usize,
    /// Files that are not in the cache.
    pub missing: Vec<String>,
    /// Bytes of the missing files whose size is known.
    pub bytes: u64,
}

impl Plan {
    /// Bytes to download, as far as known.
    pub fn bytes(&self) -> u64 {
        self.models.iter().map(|model| model.bytes).fold(0, u64::saturating_add)
    }

    /// Returns whether every file is in the cache.
    pub fn is_done(&self) -> bool {
        self.models.iter().all(|model| model.missing.is_empty())
    }
}

/// What a removal of a model would delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Removal {
    /// Name of the model.
    pub name: String,
    /// Folders of its repositories in the cache.
    pub folders: Vec<PathBuf>,
    /// Its files.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
}

/// Origin of a file's expected hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Authority {
    /// The manifest.
    Published,
    /// The record of the first download.
    Recorded,
    /// The hub, which names large files by their hash.
    Hub,
    /// None: the expected hash is not known.
    Nobody,
}

/// Result of checking one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Checked {
    /// Name of the model.
    pub model: String,
    /// Path of the file in its repository.
    pub file: String,
    /// Computed sha256.
    pub sha256: String,
    /// Expected sha256, if known.
    pub expected: Option<String>,
    /// Origin of the expected sha256.
    pub authority: Authority,
}

impl Checked {
    /// Returns whether the file has the expected hash, or none is known.
    pub fn is_sound(&self) -> bool {
        self.expected.as_ref().is_none_or(|expected| *expected == self.sha256)
    }
}

/// Client for finding, downloading, checking and removing models.
#[derive(Clone, Debug)]
pub struct Hub {
    settings: Settings,
    catalog: Catalog,
}

impl Hub {
    /// A hub client with the built-in manifest.
    pub fn new(settings: Settings) -> Result<Self> {
        Ok(Self { settings, catalog: Catalog::embedded()? })
    }

    /// Adds an entry to the manifest, replacing one of the same name.
    pub fn insert(&mut self, entry: Entry) {
        self.catalog.insert(entry);
    }

    /// Catalog of all models and presets.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Settings of the hub and its cache.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The cached files of a name, without network access. Without a `variant`, the first complete one.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], with the command that downloads the model, if a file is not in the cache.
    pub fn resolve(&self, name: &str, variant: Option<&str>) -> Result<Bundle> {
        self.bundle(name, variant, |model, variant| {
            for variant in model.variants_or(variant)? {
                if let Some(installed) = self.locate(model, variant) {
                    return Ok(installed);
                }
            }
            Err(self.not_here(name, model))
        })
    }

    /// What a pull of a name would download, without network access.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if there is no such name or variant.
    pub fn plan(&self, name: &str, variant: Option<&str>) -> Result<Plan> {
        let all = self.catalog.parts(name)?;
        let nobody_has_it = all.iter().all(|model| model.variants.is_empty());
        let mut models = Vec::with_capacity(all.len());
        for model in all {
            let asked = variant.filter(|_| nobody_has_it || !model.variants.is_empty());
            let variant = model.variants_or(asked)?.first().copied().flatten();
            let is_here = |file: &File| {
                model.sources().any(|source| {
                    let folder = self.folder(source.repo);
                    let mut commits = folder.commits(source).into_iter();
                    commits.any(|commit| folder.find(&commit, file).is_some())
                })
            };
            let missing: Vec<&File> =
                model.files_of(variant).filter(|file| !is_here(file)).collect();
            models.push(PlannedModel {
                name: model.name.clone(),
                repo: model.repo.clone(),
                variant: variant.map(str::to_owned),
                licence: model.licence.name.clone(),
                files: model.files_of(variant).count(),
                bytes: missing.iter().filter_map(|file| file.size).fold(0, u64::saturating_add),
                missing: missing.into_iter().map(|file| file.path.clone()).collect(),
            });
        }
        let folder = self.settings.cache.clone();
        let free = files::free_space(&folder);
        Ok(Plan { name: name.to_owned(), folder, free, models })
    }

    /// Downloads the missing files of a name and checks the hashes of all its files. Without a `variant`, the model's
    /// first.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if a file is not the published one, [`Error::Missing`] if it cannot be downloaded,
    /// [`Error::Cancelled`] if `watch` breaks. Partial downloads are kept, and the next pull resumes them.
    pub fn pull(&self, name: &str, variant: Option<&str>, watch: &mut Watch<'_>) -> Result<Bundle> {
        self.bundle(name, variant, |model, variant| {
            let variant = model.variants_or(variant)?.first().copied().flatten();
            if self.settings.offline {
                // Offline, only the cached files can be checked.
                let installed = self.locate(model, variant).ok_or_else(|| {
                    self.absent(model).with_hint(
                        "without --offline, and with HF_HUB_OFFLINE unset, it is downloaded",
                    )
                })?;
                for file in model.files_of(variant) {
                    check(&self.folder(&installed.repo), &installed.commit, file, watch)?
                        .refuse_if_wrong(&installed)?;
                }
                return Ok(installed);
            }
            download::fetch(self, model, variant, watch)
        })
    }

    /// Computes the hash of every file of a name and compares it. Changes nothing.
    pub fn verify(
        &self,
        name: &str,
        variant: Option<&str>,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Checked>> {
        let bundle = self.resolve(name, variant)?;
        let mut all = Vec::new();
        for (part, model) in bundle.parts.iter().zip(self.catalog.parts(name)?) {
            for file in model.files_of(part.variant.as_deref()) {
                let Verdict { sha256, expected, authority, .. } =
                    check(&self.folder(&part.repo), &part.commit, file, watch)?;
                let (model, file) = (part.name.clone(), file.path.clone());
                all.push(Checked { model, file, sha256, expected, authority });
            }
        }
        Ok(all)
    }

    /// What [`remove`](Self::remove) would delete.
    ///
    /// # Errors
    ///
    /// Those of `remove`.
    pub fn removal(&self, name: &str) -> Result<Removal> {
        let model = self.removable(name)?;
        let (mut folders, mut files, mut bytes) = (Vec::new(), 0, 0);
        for source in model.sources() {
            let folder = self.folder(source.repo);
            let found = folder.files_of(model);
            if !found.is_empty() {
                folders.push(folder.root().to_path_buf());
            }
            files += found.len();
            bytes += found.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum::<u64>();
        }
        if files == 0 {
            return Err(self.nothing_to_remove(model));
        }
        Ok(Removal { name: name.to_owned(), folders, files, bytes })
    }

    fn removable(&self, name: &str) -> Result<&Model> {
        match self.catalog.find(name)? {
            Entry::Model(model) => Ok(model),
            Entry::Preset(preset) => Err(Error::request("model", format!("`{name}` is a preset"))
                .with_hint(format!("name its parts: {}", preset.parts.join(" ")))),
        }
    }

    fn nothing_to_remove(&self, model: &Model) -> Error {
        self.absent(model).with_hint("`animatelcm models list` shows what is here")
    }

    /// Removes all variants of a model from the cache. Returns the number of files and bytes removed.
    ///
    /// Presets cannot be removed: their models may belong to other presets too.
    pub fn remove(&self, name: &str) -> Result<(usize, u64)> {
        let model = self.removable(name)?;
        let (mut count, mut bytes) = (0, 0);
        for source in model.sources() {
            let gone = self.folder(source.repo).remove(model)?;
            (count, bytes) = (count + gone.0, bytes + gone.1);
        }
        if count == 0 {
            return Err(self.nothing_to_remove(model));
        }
        Ok((count, bytes))
    }

    /// All entries of the manifest with their installation state.
    pub fn list(&self) -> Result<Vec<Listing>> {
        self.catalog.entries().iter().map(|entry| self.listing(entry)).collect()
    }

    fn listing(&self, entry: &Entry) -> Result<Listing> {
        let models = self.catalog.parts(entry.name())?;
        let states: Vec<State> = models.iter().map(|model| self.state(model)).collect();
        let state = if states.iter().all(|s| *s == State::Installed) {
            State::Installed
        } else if states.iter().all(|s| *s == State::Absent) {
            State::Absent
        } else {
            State::Partial
        };
        let download = models
            .iter()
            .map(|m| m.size_of(m.variants.first().map(|v| &**v)))
            .fold(0, u64::saturating_add);
        let (kind, title, parts, variants) = match entry {
            Entry::Model(model) => {
                let complete = |v: &&String| self.locate(model, Some(v.as_str())).is_some();
                let variants = model.variants.iter().filter(complete).cloned().collect();
                (model.kind.to_string(), &model.title, Vec::new(), variants)
            }
            Entry::Preset(preset) => {
                ("preset".to_owned(), &preset.title, preset.parts.clone(), Vec::new())
            }
        };
        Ok(Listing {
            name: entry.name().to_owned(),
            kind,
            title: title.clone(),
            state,
            variants,
            bytes: models.iter().map(|model| self.bytes(model)).fold(0, u64::saturating_add),
            offered: match entry {
                Entry::Model(model) => model.variants.clone(),
                Entry::Preset(_) => vec![],
            },
            download: Some(download).filter(|bytes| *bytes > 0),
            parts,
            licences: models.iter().map(|model| model.licence.clone()).collect(),
        })
    }

    fn state(&self, model: &Model) -> State {
        let variants = model.variants_or(None).unwrap_or_default();
        if variants.into_iter().any(|variant| self.locate(model, variant).is_some()) {
            State::Installed
        } else if self.bytes(model) > 0 {
            State::Partial
        } else {
            State::Absent
        }
    }

    /// Total size of a model's cached files in bytes, over all sources and variants.
    fn bytes(&self, model: &Model) -> u64 {
        let mut bytes = 0;
        for source in model.sources() {
            let folder = self.folder(source.repo);
            for commit in folder.commits(source) {
                for file in &model.files {
                    let found = folder.find(&commit, file);
                    bytes += found.and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
                }
            }
        }
        bytes
    }

    fn folder(&self, repo: &str) -> Folder {
        Folder::new(&self.settings.cache, repo)
    }

    /// A complete variant in any of a model's repositories.
    fn locate(&self, model: &Model, variant: Option<&str>) -> Option<Installed> {
        for source in model.sources() {
            let folder = self.folder(source.repo);
            for commit in folder.commits(source) {
                let files: Option<Vec<PathBuf>> =
                    model.files_of(variant).map(|file| folder.find(&commit, file)).collect();
                if let Some(files) = files {
                    return Some(Installed {
                        name: model.name.clone(),
                        kind: model.kind,
                        repo: source.repo.to_owned(),
                        folder: folder.snapshot(&commit),
                        commit,
                        variant: variant.map(str::to_owned),
                        files,
                    });
                }
            }
        }
        None
    }

    /// Applies `each` to the models of a name. A variant is passed on to those models that have variants.
    fn bundle(
        &self,
        name: &str,
        variant: Option<&str>,
        mut each: impl FnMut(&Model, Option<&str>) -> Result<Installed>,
    ) -> Result<Bundle> {
        let models = self.catalog.parts(name)?;
        let defaults = match self.catalog.find(name)? {
            Entry::Model(_) => Defaults::default(),
            Entry::Preset(preset) => preset.defaults.clone(),
        };
        let nobody_has_it = models.iter().all(|model| model.variants.is_empty());
        let mut parts = Vec::with_capacity(models.len());
        for model in models {
            let asked = variant.filter(|_| nobody_has_it || !model.variants.is_empty());
            parts.push(each(model, asked)?);
        }
        Ok(Bundle { name: name.to_owned(), parts, defaults })
    }

    fn not_here(&self, asked: &str, model: &Model) -> Error {
        self.absent(model).with_hint(format!("animatelcm models pull {asked}"))
    }

    fn absent(&self, model: &Model) -> Error {
        let reason = match (self.state(model), self.settings.offline) {
            (State::Partial, false) => "not all of its files are downloaded",
            (State::Partial, true) => "not all of its files are downloaded, and this is offline",
            (_, false) => "not downloaded",
            (_, true) => "not downloaded, and this is offline",
        };
        Error::Missing { name: model.name.clone(), reason: reason.to_owned() }
    }
}

/// Result of hashing a file.
struct Verdict {
    file: String,
    size: u64,
    sha256: String,
    expected: Option<String>,
    authority: Authority,
}

impl Verdict {
    fn is_wrong(&self) -> bool {
        self.expected.as_ref().is_some_and(|expected| *expected != self.sha256)
    }

    fn refusal(&self, repo: &str) -> Error {
        let said = match self.authority {
            Authority::Published => "was published",
            Authority::Recorded => "was recorded at the first pull",
            Authority::Hub | Authority::Nobody => "is what the hub announced",
        };
        let expected = self.expected.as_deref().unwrap_or_default();
        Error::Refused {
            name: format!("{repo}/{}", self.file),
            reason: format!("sha256 is {}, but {expected} {said}", self.sha256),
        }
    }

    fn refuse_if_wrong(&self, installed: &Installed) -> Result<()> {
        if self.is_wrong() { Err(self.refusal(&installed.repo)) } else { Ok(()) }
    }
}

/// [`Error::Cancelled`] if the watcher breaks.
fn go_on(flow: ControlFlow<()>) -> Result<()> {
    if flow.is_break() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Hashes a cached file and looks up its expected hash.
fn check(folder: &Folder, commit: &str, file: &File, watch: &mut Watch<'_>) -> Result<Verdict> {
    let path = folder.pointer(commit, &file.path);
    let size = std::fs::metadata(&path).map_err(Error::file(&path))?.len();
    let checking = |done| Event::Check { file: &file.path, done, total: size };
    let sha256 = files::sha256(&path, |done| go_on(watch(&checking(done))))?;
    let (expected, authority) = if let Digest::Known(known) = &file.sha256 {
        (Some(known.clone()), Authority::Published)
    } else if let Some(record) = folder.record(commit, &file.path) {
        (Some(record.sha256), Authority::Recorded)
    } else if let Some(hash) = cache::blob_hash(&path) {
        (Some(hash), Authority::Hub)
    } else {
        (None, Authority::Nobody)
    };
    Ok(Verdict { file: file.path.clone(), size, sha256, expected, authority })
}
