//! Published models by name: which files they are, where those are on this machine, and how to get them.
//!
//! Files live in the ordinary hub cache, shared with Python's huggingface_hub and every other program that
//! uses it. Finding them needs no network; only [`Hub::pull`] does.

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

/// Where the public hub is.
pub const ENDPOINT: &str = "https://huggingface.co";

/// Where and how models are found and fetched.
#[derive(Clone)]
pub struct Settings {
    /// The hub's address, without a trailing slash.
    pub endpoint: String,
    /// The cache folder, the one with `models--owner--name` folders in it.
    pub cache: PathBuf,
    /// Sent to the hub with every request.
    pub token: Option<String>,
    /// Whether the network is off limits.
    pub offline: bool,
    /// How often a transfer that made no progress is tried again before it is given up.
    pub retries: u32,
    /// How long a transfer may stand still.
    pub patience: Duration,
}

impl Settings {
    /// The public hub, anonymously, with a given cache folder.
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

/// What happens during a pull or a check.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A file is on its way. Repeated, also while nothing arrives.
    Download {
        /// The file's path in its repository.
        file: &'a str,
        /// Bytes on disk.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A file's hash is being computed. Repeated.
    Check {
        /// The file's path in its repository.
        file: &'a str,
        /// Bytes read.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A file is in place and its hash is right.
    Done {
        /// The file's path in its repository.
        file: &'a str,
    },
    /// A transfer broke off and goes on after a pause.
    Retry {
        /// The file's path in its repository.
        file: &'a str,
        /// What went wrong.
        reason: &'a str,
    },
    /// A repository could not be used and the next one is tried.
    Mirror {
        /// Why the one before was no use.
        reason: &'a str,
        /// The next one.
        repo: &'a str,
    },
}

/// Hears of every [`Event`]; a break stops the work with [`Error::Cancelled`].
pub type Watch<'a> = dyn FnMut(&Event<'_>) -> ControlFlow<()> + 'a;

/// A model whose files are all on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Installed {
    /// The model's name in the manifest.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// The repository that the files came from.
    pub repo: String,
    /// Its commit.
    pub commit: String,
    /// The variant, for a model that has some.
    pub variant: Option<String>,
    /// The folder of that commit; it can hold files of other models too.
    pub folder: PathBuf,
    /// The model's files, absolute, in the order of the manifest.
    pub files: Vec<PathBuf>,
}

impl Installed {
    /// What a loader opens: the file of a model that is one file, the folder otherwise.
    pub fn path(&self) -> &Path {
        match self.files.as_slice() {
            [file] => file,
            _ => &self.folder,
        }
    }
}

/// What a name stands for: one model, or the models and settings of a preset.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Bundle {
    /// The name.
    pub name: String,
    /// The models, at most one of each kind.
    pub parts: Vec<Installed>,
    /// The settings that they were made for.
    pub defaults: Defaults,
}

impl Bundle {
    /// The model of a kind.
    pub fn part(&self, kind: Kind) -> Option<&Installed> {
        self.parts.iter().find(|part| part.kind == kind)
    }
}

/// How much of a model is on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum State {
    /// All of it.
    Installed,
    /// Some files.
    Partial,
    /// Nothing.
    Absent,
}

/// One line of the list of models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Listing {
    /// The name.
    pub name: String,
    /// `preset`, or the model's kind.
    pub kind: String,
    /// What it is, in a few words.
    pub title: String,
    /// How much of it is on this machine.
    pub state: State,
    /// The variants that are complete on this machine.
    pub variants: Vec<String>,
    /// Bytes on this machine.
    pub bytes: u64,
    /// Bytes of a pull, as far as they are known; the first variant's.
    pub download: u64,
    /// A preset's models.
    pub parts: Vec<String>,
    /// The licences, one a model.
    pub licences: Vec<Licence>,
}

/// Where the hash comes from that a file is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Authority {
    /// The manifest.
    Published,
    /// The record of the first pull.
    Recorded,
    /// The hub, which names large files by their hash.
    Hub,
    /// Nobody has said what it should be.
    Nobody,
}

/// The check of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Checked {
    /// The model.
    pub model: String,
    /// The file's path in its repository.
    pub file: String,
    /// Its sha256.
    pub sha256: String,
    /// The sha256 that it should have.
    pub expected: Option<String>,
    /// Who says so.
    pub authority: Authority,
}

impl Checked {
    /// Whether the file is what it should be, as far as anybody knows.
    pub fn is_sound(&self) -> bool {
        self.expected.as_ref().is_none_or(|expected| *expected == self.sha256)
    }
}

/// Finds, fetches, checks and removes models.
#[derive(Clone, Debug)]
pub struct Hub {
    settings: Settings,
    catalog: Catalog,
}

impl Hub {
    /// A hub with the built-in manifest.
    pub fn new(settings: Settings) -> Result<Self> {
        Ok(Self { settings, catalog: Catalog::embedded()? })
    }

    /// Adds an entry to the manifest, in place of one of the same name.
    pub fn insert(&mut self, entry: Entry) {
        self.catalog.insert(entry);
    }

    /// Everything that has a name.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Where and how models are found and fetched.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The files behind a name, without any network. Without a `variant` the first complete one is taken.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] with the command that fetches it, if a file is not there.
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

    /// Brings the files behind a name onto this machine, as far as they are missing, and checks the hash of
    /// every one of them. Without a `variant` it is the model's first.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if a file is not the one that was published, [`Error::Missing`] if it cannot be
    /// had, [`Error::Cancelled`] if `watch` breaks. What has arrived stays, and the next pull goes on there.
    pub fn pull(&self, name: &str, variant: Option<&str>, watch: &mut Watch<'_>) -> Result<Bundle> {
        self.bundle(name, variant, |model, variant| {
            let variant = model.variants_or(variant)?.first().copied().flatten();
            if self.settings.offline {
                // Nothing to fetch with, but what is here can be vouched for.
                let installed =
                    self.locate(model, variant).ok_or_else(|| self.not_here(name, model))?;
                for file in model.files_of(variant) {
                    check(&self.folder(&installed.repo), &installed.commit, file, watch)?
                        .refuse_if_wrong(&installed)?;
                }
                return Ok(installed);
            }
            download::fetch(self, model, variant, watch)
        })
    }

    /// Computes the hash of every file behind a name and compares it. It changes nothing.
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

    /// Removes a model's files, in all variants, from the cache. Returns how many and their bytes.
    ///
    /// A preset is not removed: its parts can belong to other presets too.
    pub fn remove(&self, name: &str) -> Result<(usize, u64)> {
        let model = match self.catalog.find(name)? {
            Entry::Model(model) => model,
            Entry::Preset(preset) => {
                return Err(Error::request("model", format!("`{name}` is a preset"))
                    .with_hint(format!("name its parts: {}", preset.parts.join(" "))));
            }
        };
        let (mut count, mut bytes) = (0, 0);
        for source in model.sources() {
            let gone = self.folder(source.repo).remove(model)?;
            (count, bytes) = (count + gone.0, bytes + gone.1);
        }
        if count == 0 {
            return Err(self.not_here(name, model));
        }
        Ok((count, bytes))
    }

    /// Every entry of the manifest, and how much of it is here.
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
            download: models
                .iter()
                .map(|m| m.size_of(m.variants.first().map(|v| &**v)))
                .fold(0, u64::saturating_add),
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

    /// The bytes of a model's files on this machine, over all sources and variants.
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

    /// Applies `each` to the models behind a name. A variant is asked of those models that have variants.
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
        let reason = match (self.state(model), self.settings.offline) {
            (State::Partial, false) => "not all of its files are downloaded",
            (State::Partial, true) => "not all of its files are downloaded, and this is offline",
            (_, false) => "not downloaded",
            (_, true) => "not downloaded, and this is offline",
        };
        Error::Missing { name: model.name.clone(), reason: reason.to_owned() }
            .with_hint(format!("animatelcm models pull {asked}"))
    }
}

/// What came out of hashing a file.
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

/// [`Error::Cancelled`] where a watcher wants no more.
fn go_on(flow: ControlFlow<()>) -> Result<()> {
    if flow.is_break() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Hashes a cached file and looks up what its hash should be.
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
