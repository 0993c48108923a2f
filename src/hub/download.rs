//! Fetching: the transfer is hf-hub's; patience, retries, checks and plain errors are ours.
//!
//! hf-hub 0.5 rather than 1.0: the latter is async and brings tokio, reqwest and hf-xet for the same requests.
//! What it leaves to its caller and is done here:
//! - its own retries append from byte 0 when an attempt that resumed a file fails before its first byte
//!   (`download_tempfile`, where the position of a file opened for appending is still 0), so they stay off;
//! - a finished partial file makes it ask for a range past the end, which servers refuse;
//! - a server that ignores ranges has its whole answer appended to the partial file;
//! - it trusts names from the server (etag, commit) as paths;
//! - it cannot be interrupted, has no timeouts, and checks no hash.

use std::fs;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, Metadata};
use hf_hub::{Cache, Repo, RepoType};

use super::cache::{Folder, Record};
use super::manifest::{Digest, File, Model, Source, is_sha256};
use super::{Authority, Event, Hub, Installed, Settings, Verdict, Watch, check};
use crate::{Error, Result};

/// How often the observer is asked whether to go on, and how long a cancelled transfer is waited for.
const TICK: Duration = Duration::from_millis(100);

/// Why a file could not be had.
enum Trouble {
    /// This repository does not have it; a mirror may.
    Absent(String),
    /// This repository does not give it to us.
    Denied(u16),
    /// Worth another attempt.
    Passing(String),
    /// The end.
    Final(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Brings a variant of a model into the cache from the first repository that has it.
pub(super) fn fetch(
    hub: &Hub,
    model: &Model,
    variant: Option<&str>,
    watch: &mut Watch<'_>,
) -> Result<Installed> {
    if let Some(installed) = vouch(hub, model, variant, watch)? {
        return Ok(installed);
    }
    let api = client(&hub.settings).map_err(|e| missing(&model.name, e.to_string()))?;
    let mut failures: Vec<String> = Vec::new();
    let mut denied: Option<(String, u16)> = None;
    for source in model.sources() {
        if let Some(reason) = failures.last() {
            let event = Event::Mirror { reason, repo: source.repo };
            if watch(&event).is_break() {
                return Err(Error::Cancelled);
            }
        }
        let job = Job { settings: &hub.settings, api: &api, model: &model.name, source };
        let mut outcome = job.fetch_all(model.files_of(variant), watch);
        if outcome.is_ok() && hub.locate(model, variant).is_none() {
            // A branch moved on in between; all files must be of one commit.
            outcome = job.fetch_all(model.files_of(variant), watch);
        }
        match outcome {
            Ok(()) => {
                return hub.locate(model, variant).ok_or_else(|| {
                    missing(&model.name, "its files changed in the cache during the pull")
                });
            }
            Err(Trouble::Absent(reason) | Trouble::Passing(reason)) => failures.push(reason),
            Err(Trouble::Denied(status)) => {
                failures.push(format!("`{}` answers {status}", source.repo));
                denied.get_or_insert((source.repo.to_owned(), status));
            }
            Err(Trouble::Final(error)) => return Err(error),
        }
    }
    let error = missing(&model.name, failures.join("; "));
    Err(match denied {
        None => error,
        Some((repo, _)) => {
            let place = format!("{}/{repo}", hub.settings.endpoint);
            error.with_hint(if hub.settings.token.is_some() {
                format!(
                    "accept the licence at {place} with the account of HF_TOKEN, if it is not gone"
                )
            } else {
                format!("accept the licence at {place}, if it is not gone, and set HF_TOKEN")
            })
        }
    })
}

/// A variant that is complete in the cache already, if all of it is sound. Files that are not are removed.
fn vouch(
    hub: &Hub,
    model: &Model,
    variant: Option<&str>,
    watch: &mut Watch<'_>,
) -> Result<Option<Installed>> {
    let Some(installed) = hub.locate(model, variant) else { return Ok(None) };
    let folder = hub.folder(&installed.repo);
    let mut sound = true;
    for file in model.files_of(variant) {
        let verdict = check(&folder, &installed.commit, file, watch)?;
        if verdict.is_wrong() {
            folder.discard(&installed.commit, &file.path)?;
            sound = false;
        } else {
            remember(&folder, &installed.commit, verdict)?;
            if watch(&Event::Done { file: &file.path }).is_break() {
                return Err(Error::Cancelled);
            }
        }
    }
    Ok(sound.then_some(installed))
}

fn missing(name: &str, reason: impl Into<String>) -> Error {
    Error::Missing { name: name.to_owned(), reason: reason.into() }
}

fn client(settings: &Settings) -> Result<Api, ApiError> {
    // The token is set in any case: left alone, the builder looks for one beside the cache.
    ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
        .with_endpoint(settings.endpoint.clone())
        .with_token(settings.token.clone())
        .with_progress(false)
        .with_retries(0)
        .with_user_agent(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
        .build()
}

/// The pull of one model from one repository.
struct Job<'a> {
    settings: &'a Settings,
    api: &'a Api,
    model: &'a str,
    source: Source<'a>,
}

impl Job<'_> {
    fn fetch_all<'f>(
        &self,
        files: impl Iterator<Item = &'f File>,
        watch: &mut Watch<'_>,
    ) -> Result<(), Trouble> {
        let folder = Folder::new(&self.settings.cache, self.source.repo);
        for file in files {
            if !self.is_here(&folder, file, watch)? {
                self.fetch_patiently(&folder, file, watch)?;
            }
            if watch(&Event::Done { file: &file.path }).is_break() {
                return Err(Error::Cancelled.into());
            }
        }
        Ok(())
    }

    /// Whether a file is in the cache already and sound. One that is not sound is removed.
    fn is_here(
        &self,
        folder: &Folder,
        file: &File,
        watch: &mut Watch<'_>,
    ) -> Result<bool, Trouble> {
        // Only the commit that the other files will be of.
        let Some(commit) = folder.commits(self.source).into_iter().next() else {
            return Ok(false);
        };
        if folder.find(&commit, file).is_none() {
            return Ok(false);
        }
        let verdict = check(folder, &commit, file, watch)?;
        if verdict.is_wrong() {
            folder.discard(&commit, &file.path)?;
            return Ok(false);
        }
        remember(folder, &commit, verdict)?;
        Ok(true)
    }

    /// Tries until the file is there, as long as attempts make progress or retries are left.
    fn fetch_patiently(
        &self,
        folder: &Folder,
        file: &File,
        watch: &mut Watch<'_>,
    ) -> Result<(), Trouble> {
        let mut fruitless = 0;
        loop {
            let before = bytes_in(&folder.blob(""));
            let reason = match self.fetch_once(folder, file, watch) {
                Err(Trouble::Passing(reason)) => reason,
                end => return end,
            };
            fruitless = if bytes_in(&folder.blob("")) > before { 0 } else { fruitless + 1 };
            if fruitless > self.settings.retries || self.settings.retries == 0 {
                return Err(Error::Missing { name: self.model.to_owned(), reason }
                    .with_hint("pull again to go on where it stopped")
                    .into());
            }
            let event = Event::Retry { file: &file.path, reason: &reason };
            let pause = Duration::from_millis(500) * 2_u32.saturating_pow(fruitless.min(5));
            let end = Instant::now() + pause;
            while Instant::now() < end {
                if watch(&event).is_break() {
                    return Err(Error::Cancelled.into());
                }
                thread::sleep(TICK.min(pause));
            }
        }
    }

    fn fetch_once(
        &self,
        folder: &Folder,
        file: &File,
        watch: &mut Watch<'_>,
    ) -> Result<(), Trouble> {
        let revision = self.source.revision.to_owned();
        let repo = Repo::with_revision(self.source.repo.to_owned(), RepoType::Model, revision);
        let url = self.api.repo(repo.clone()).url(&file.path);

        let api = self.api.clone();
        let metadata = self.supervise(file, 0, watch, move |_| api.metadata(&url))?;
        let size = metadata.size() as u64;
        self.vet(file, &metadata, size)?;

        let blob = folder.blob(metadata.etag());
        let pointer = folder.pointer(metadata.commit_hash(), &file.path);
        prepare(&blob, &pointer, size)?;
        let (api, path) = (self.api.clone(), file.path.clone());
        self.supervise(file, size, watch, move |meter| {
            api.repo(repo).download_with_progress(&path, meter)
        })?;

        let arrived = fs::metadata(&blob).map_err(Error::file(&blob))?.len();
        if arrived != size {
            folder.discard(metadata.commit_hash(), &file.path)?;
            return Err(Trouble::Passing(format!(
                "`{}` arrived with {arrived} bytes of {size}",
                file.path
            )));
        }
        self.judge(folder, file, &metadata, watch)
    }

    /// Looks at what the server says about a file before any of it is fetched.
    fn vet(&self, file: &File, metadata: &Metadata, size: u64) -> Result<(), Trouble> {
        let (etag, commit) = (metadata.etag(), metadata.commit_hash());
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let is_name = |s: &str| !s.is_empty() && !s.starts_with('.') && s.bytes().all(plain);
        // A weak etag, `W/...`, is two segments.
        if !etag.split('/').all(is_name) || !is_name(commit) {
            return Err(self.refuse(file, "the server names it in a way that no hub does"));
        }
        if self.source.is_pinned() && commit != self.source.revision {
            let pinned = self.source.revision;
            return Err(self.refuse(file, format!("it is of commit {commit}, not {pinned}")));
        }
        if let Some(published) = file.size.filter(|published| *published != size) {
            return Err(
                self.refuse(file, format!("it has {size} bytes, but {published} were published"))
            );
        }
        if let Digest::Known(known) = &file.sha256
            && is_sha256(etag)
            && etag != known
        {
            let said = format!("the hub announces sha256 {etag}, but {known} was published");
            return Err(self.refuse(file, said));
        }
        Ok(())
    }

    fn refuse(&self, file: &File, reason: impl Into<String>) -> Trouble {
        let name = format!("{}/{}", self.source.repo, file.path);
        Trouble::Final(Error::Refused { name, reason: reason.into() })
    }

    /// Compares the hash of a file that has arrived; a wrong one does not stay.
    fn judge(
        &self,
        folder: &Folder,
        file: &File,
        metadata: &Metadata,
        watch: &mut Watch<'_>,
    ) -> Result<(), Trouble> {
        let commit = metadata.commit_hash();
        let mut verdict = check(folder, commit, file, watch)?;
        if verdict.authority == Authority::Nobody && is_sha256(metadata.etag()) {
            // Where links are not possible, the cached file does not carry its hash in a blob's name.
            verdict.expected = Some(metadata.etag().to_owned());
            verdict.authority = Authority::Hub;
        }
        if verdict.is_wrong() {
            folder.discard(commit, &file.path)?;
            return Err(verdict
                .refusal(self.source.repo)
                .with_hint(
                    "the file was removed; if this happens again, something on the way alters it",
                )
                .into());
        }
        remember(folder, commit, verdict)?;
        Ok(())
    }

    /// Runs one request on a thread of its own, so that it can be watched, given up and survived.
    fn supervise<T: Send + 'static>(
        &self,
        file: &File,
        total: u64,
        watch: &mut Watch<'_>,
        work: impl FnOnce(Meter) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, Trouble> {
        let meter = Meter::default();
        let (send, receive) = channel();
        let worker = {
            let meter = meter.clone();
            thread::Builder::new().name("hub".to_owned()).spawn(move || {
                // A receiver that is gone has given up on this request.
                let _ = send.send(work(meter));
            })
        };
        let worker =
            worker.map_err(|e| missing(self.model, format!("no thread to be had: {e}")))?;
        let (mut last, mut since) = (0, Instant::now());
        loop {
            match receive.recv_timeout(TICK) {
                Ok(result) => return result.map_err(|e| self.classify(file, e)),
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = worker.join();
                    let reason = "the answer is not that of a hub";
                    return Err(missing(self.model, reason).into());
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let done = meter.done.load(Ordering::Relaxed);
            if watch(&Event::Download { file: &file.path, done, total }).is_break() {
                meter.stop.store(true, Ordering::Relaxed);
                // Normally the next bytes end it, which closes the partial file and its lock.
                let end = Instant::now() + 5 * TICK;
                while !worker.is_finished() && Instant::now() < end {
                    thread::sleep(TICK / 10);
                }
                return Err(Error::Cancelled.into());
            }
            if done != last {
                (last, since) = (done, Instant::now());
            } else if since.elapsed() > self.settings.patience {
                // The thread still holds the file's lock, so another attempt is for another process.
                meter.stop.store(true, Ordering::Relaxed);
                let seconds = self.settings.patience.as_secs();
                let reason = format!("nothing arrived for {seconds} s");
                return Err(missing(self.model, reason)
                    .with_hint("pull again to go on where it stopped")
                    .into());
            }
        }
    }

    fn classify(&self, file: &File, error: ApiError) -> Trouble {
        use std::io::ErrorKind as Io;

        let endpoint = &self.settings.endpoint;
        let end = |reason: String| Trouble::Final(missing(self.model, reason));
        match error {
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(404 | 410) => {
                    Trouble::Absent(format!("`{}` has no `{}`", self.source.repo, file.path))
                }
                ureq::Error::StatusCode(status @ (401 | 403)) => Trouble::Denied(status),
                ureq::Error::StatusCode(status @ (408 | 429 | 500..=599)) => {
                    Trouble::Passing(format!("{endpoint} answers {status}"))
                }
                ureq::Error::StatusCode(status) => end(format!("{endpoint} answers {status}")),
                ureq::Error::Io(error)
                    if matches!(
                        error.kind(),
                        Io::ConnectionRefused | Io::HostUnreachable | Io::NetworkUnreachable
                    ) =>
                {
                    end(format!("{endpoint} cannot be reached: {error}"))
                }
                error @ (ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::ConnectionFailed
                | ureq::Error::Protocol(_)) => Trouble::Passing(format!("{endpoint}: {error}")),
                error => end(format!("{endpoint}: {error}")),
            },
            ApiError::TooManyRetries(error) => self.classify(file, *error),
            ApiError::LockAcquisition(_) => {
                end(format!("another program is downloading `{}`", file.path))
            }
            ApiError::IoError(error) => match error.kind() {
                // The disk rather than the network.
                Io::StorageFull
                | Io::QuotaExceeded
                | Io::FileTooLarge
                | Io::ReadOnlyFilesystem
                | Io::PermissionDenied
                | Io::NotADirectory
                | Io::NotFound => Trouble::Final(Error::file(&self.settings.cache)(error)),
                _ => Trouble::Passing(format!("{endpoint}: {error}")),
            },
            error => end(format!("{endpoint} does not answer like a hub: {error}")),
        }
    }
}

/// Makes a partial file and a pointer fit for hf-hub to go on with.
fn prepare(blob: &Path, pointer: &Path, size: u64) -> Result<()> {
    let partial = blob.with_extension("part");
    if let Ok(metadata) = fs::metadata(&partial) {
        if metadata.len() > size {
            fs::remove_file(&partial).map_err(Error::file(&partial))?;
        } else if metadata.len() == size && size > 0 {
            // Complete but for its name. A range past the end is refused, one of a single byte is not.
            let file = fs::OpenOptions::new().write(true).open(&partial);
            file.and_then(|f| f.set_len(size - 1)).map_err(Error::file(&partial))?;
        }
    }
    // A pointer to nothing would be in the way of a new one, and one to other bytes would stay.
    if fs::symlink_metadata(pointer).is_ok() {
        fs::remove_file(pointer).map_err(Error::file(pointer))?;
    }
    Ok(())
}

fn remember(folder: &Folder, commit: &str, verdict: Verdict) -> Result<()> {
    let Verdict { file, size, sha256, .. } = verdict;
    let record = Record { size, sha256 };
    if folder.record(commit, &file).as_ref() == Some(&record) {
        return Ok(());
    }
    folder.remember(commit, &file, record)
}

/// The bytes of all files in a folder.
fn bytes_in(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|m| m.len()).sum()
}

/// Counts the bytes of a transfer, and ends it on request.
#[derive(Clone, Default)]
struct Meter {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Progress for Meter {
    fn init(&mut self, _: usize, _: &str) {
        self.done.store(0, Ordering::Relaxed);
    }

    fn update(&mut self, bytes: usize) {
        self.done.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.stop.load(Ordering::Relaxed) {
            // The only way out of hf-hub's copy loop. Unlike a panic it says nothing on stderr.
            resume_unwind(Box::new(()));
        }
    }

    fn finish(&mut self) {}
}
