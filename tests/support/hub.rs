//! A published model, a hub that serves it, a cache for it.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use animatelcm::hub::manifest::Entry;
use animatelcm::hub::{Event, Hub, Settings};
use tempfile::TempDir;

use crate::support::hub_server::{COMMIT, HubServer, sha256};

pub(crate) const CONFIG: &[u8] = b"{\"sample_size\": 64}\n";

pub(crate) fn weights() -> Vec<u8> {
    (0..200_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// A model of a small file in a folder and a large one, as `owner/model` publishes it.
pub(crate) fn manifest(revision: &str, mirrors: &str, config: &str, weights: &str) -> Entry {
    let text = format!(
        "name = \"tiny\"\nkind = \"vae\"\ntitle = \"A test\"\nrepo = \"owner/model\"\n\
         revision = \"{revision}\"\nmirrors = [{mirrors}]\n\
         [licence]\nname = \"MIT\"\nurl = \"https://example.org\"\n\
         [[files]]\npath = \"vae/config.json\"\nsha256 = \"{config}\"\n\
         [[files]]\npath = \"weights.safetensors\"\nsize = 800000\nsha256 = \"{weights}\"\n"
    );
    Entry::parse(&text, "tiny.toml").unwrap()
}

pub(crate) fn sound_manifest() -> Entry {
    manifest(COMMIT, "\"other/copy\"", &sha256(CONFIG), &sha256(&weights()))
}

/// A hub on loopback, an empty cache, and a client that knows `tiny`.
pub(crate) struct Bench {
    pub(crate) server: HubServer,
    pub(crate) cache: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { server: HubServer::start(), cache: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn published() -> Self {
        let bench = Self::new();
        bench.publish("owner/model");
        bench
    }

    pub(crate) fn publish(&self, repo: &str) {
        self.server.small(repo, "vae/config.json", CONFIG);
        self.server.large(repo, "weights.safetensors", &weights());
    }

    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::new(self.cache.path());
        settings.endpoint = self.server.endpoint();
        settings.retries = 0;
        settings
    }

    pub(crate) fn client(&self) -> Hub {
        Self::client_of(self.settings(), sound_manifest())
    }

    pub(crate) fn client_of(settings: Settings, entry: Entry) -> Hub {
        let mut hub = Hub::new(settings).unwrap();
        hub.insert(entry);
        hub
    }

    pub(crate) fn repo(&self, name: &str) -> PathBuf {
        self.cache.path().join(format!("models--{}", name.replace('/', "--")))
    }

    pub(crate) fn partial(&self) -> PathBuf {
        self.repo("owner/model").join("blobs").join(format!("{}.part", sha256(&weights())))
    }
}

pub(crate) fn go_on(_: &Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(crate) fn pull(hub: &Hub) -> animatelcm::Result<PathBuf> {
    hub.pull("tiny", None, &mut go_on).map(|bundle| bundle.parts[0].path().to_owned())
}

pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(folder).into_iter().flatten() {
        let path = item.unwrap().path();
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}
