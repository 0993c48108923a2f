//! Files on a NATS server, with copies in a folder.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::object_store::{InfoErrorKind, ObjectStore};
use futures_util::StreamExt;
use tokio::io::AsyncReadExt;

use super::NatsQueue;
use super::Shared;
use super::link::away;
use super::streams::{self, absent};
use crate::queue::{DirStore, Store, Stored};
use crate::{Error, Result};

/// Age from which on a file that is put again is sent again, so that it counts as new.
const NEW: Duration = Duration::from_secs(600);

/// Age at which a copy goes.
const COPY: Duration = Duration::from_secs(3600);

/// How long the next part of a file may take.
const PART: Duration = Duration::from_secs(10);

/// How long a list of files may take.
const LIST: Duration = Duration::from_secs(60);

/// Files of an object store, named by their SHA-256, with copies in a folder for as long as they are used.
#[derive(Clone)]
pub struct NatsStore {
    shared: Arc<Shared>,
    objects: ObjectStore,
    copies: DirStore,
    name: String,
}

impl std::fmt::Debug for NatsStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsStore").field("name", &self.name).finish_non_exhaustive()
    }
}

impl NatsStore {
    /// The bucket of finished clips.
    pub const CLIPS: &str = streams::CLIPS;
    /// The bucket of what clients sent.
    pub const INPUTS: &str = streams::INPUTS;

    /// The bucket of a name.
    ///
    /// # Errors
    ///
    /// When it is not there, or this user may not have it.
    pub fn open(queue: &NatsQueue, name: &str, copies: DirStore) -> Result<Self> {
        let shared = Arc::clone(&queue.0);
        let context = shared.link.context.clone();
        let objects = shared.link.wait(context.get_object_store(name));
        let objects = objects.map_err(|error| absent(name, &error))?;
        Ok(Self { shared, objects, copies, name: name.to_owned() })
    }

    /// Sends a file, unless it is there and young.
    async fn send(&self, sha256: &str, path: &Path) -> Result<()> {
        let young = match self.objects.info(sha256).await {
            Ok(info) => {
                !info.deleted && info.modified.is_some_and(|at| age(at.unix_timestamp()) < NEW)
            }
            Err(error) if error.kind() == InfoErrorKind::NotFound => false,
            Err(error) => return Err(away(error)),
        };
        if young {
            return Ok(());
        }
        let mut file = tokio::fs::File::open(path).await.map_err(Error::file(path))?;
        self.objects.put(sha256, &mut file).await.map(|_| ()).map_err(away)
    }

    /// Fetches a file as a copy; `None` if there is none.
    async fn fetch(&self, sha256: &str) -> Result<Option<PathBuf>> {
        let mut object = match self.objects.get(sha256).await {
            Ok(object) => object,
            Err(error) => {
                return match self.objects.info(sha256).await {
                    Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
                    Ok(info) if info.deleted => Ok(None),
                    _ => Err(away(error)),
                };
            }
        };
        let mut bytes = Vec::with_capacity(object.info.size.min(1 << 30));
        let mut part = vec![0; 1 << 18];
        while bytes.len() < object.info.size {
            let read = tokio::time::timeout(PART, object.read(&mut part)).await;
            let count =
                read.map_err(|_| away(format!("{}: no answer", self.name)))?.map_err(away)?;
            if count == 0 {
                break;
            }
            bytes.extend_from_slice(part.get(..count).unwrap_or_default());
        }
        let stored = self.copies.put(&mut bytes.as_slice(), u64::MAX)?;
        if stored.sha256 != sha256 {
            self.copies.remove(&stored.sha256)?;
            return Err(away(format!("{}: {sha256} has other bytes", self.name)));
        }
        self.copies.open(sha256)
    }
}

/// How long ago a time was, in seconds since 1970.
fn age(at: i64) -> Duration {
    let passed = crate::queue::unix_time() - at as f64;
    Duration::from_secs_f64(passed.max(0.0))
}

fn is_hash(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Store for NatsStore {
    fn put(&self, bytes: &mut dyn Read, limit: u64) -> Result<Stored> {
        let stored = self.copies.put(bytes, limit)?;
        let Some(path) = self.copies.open(&stored.sha256)? else {
            return Err(away(format!("{}: the copy is gone", self.name)));
        };
        let link = &self.shared.link;
        link.wait(link.again(link.persistence, || self.send(&stored.sha256, &path)))?;
        Ok(stored)
    }

    fn open(&self, sha256: &str) -> Result<Option<PathBuf>> {
        if !is_hash(sha256) {
            return Ok(None);
        }
        if let Some(path) = self.copies.open(sha256)? {
            // Still used.
            if let Ok(file) = File::options().append(true).open(&path) {
                let _ = file.set_modified(std::time::SystemTime::now());
            }
            return Ok(Some(path));
        }
        let link = &self.shared.link;
        link.wait(link.again(PART, || self.fetch(sha256)))
    }

    fn remove(&self, sha256: &str) -> Result<()> {
        if !is_hash(sha256) {
            return Ok(());
        }
        self.copies.remove(sha256)?;
        self.shared.link.wait(async {
            match self.objects.info(sha256).await {
                Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(()),
                Ok(info) if info.deleted => Ok(()),
                _ => self.objects.delete(sha256).await.map_err(away),
            }
        })
    }

    fn older(&self, age: Duration) -> Result<Vec<String>> {
        self.tidy()?;
        let list = async {
            let mut found = Vec::new();
            let mut objects = self.objects.list().await.map_err(away)?;
            while let Some(object) = objects.next().await {
                let object = object.map_err(away)?;
                let is_old = object.modified.is_none_or(|at| self::age(at.unix_timestamp()) >= age);
                if is_old && is_hash(&object.name) {
                    found.push(object.name);
                }
            }
            Ok(found)
        };
        let listed = self.shared.link.wait(async { tokio::time::timeout(LIST, list).await });
        listed.unwrap_or_else(|_| Err(away(format!("{}: no answer", self.name))))
    }
    fn tidy(&self) -> Result<()> {
        self.copies.older(COPY)?.iter().try_for_each(|sha256| self.copies.remove(sha256))
    }
}
