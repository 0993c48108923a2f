//! Download of a model's files from the first repository that has them, with retries and hash checks.
//!
//! Partial files and their locks are named as by the hf-hub crate, so either program can resume the other's
//! downloads, and neither writes to a file that the other is writing.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::cache::{Folder, Lock, Record};
use super::client::{Client, Facts, Fault, Meter};
use super::go_on;
use super::manifest::{Digest, File, Model, Source, is_sha256};
use super::{Authority, Event, Hub, Installed, Settings, Verdict, Watch, check};
use crate::{Error, Result, files};

/// Interval of calls to the observer; a cancelled transfer is waited for a few of these.
const TICK: Duration = Duration::from_millis(100);

/// Reason for a failed download.
enum Trouble {
    /// The file is not in this repository; a mirror may have it.
    Absent(String),
    /// Access denied by this repository, with the status.
    Denied(u16),
    /// Temporary; worth a retry.
    Passing(String),
    /// Permanent.
    Final(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Downloads a variant of a model to the cache from the first repository that has it.
pub(super) fn fetch(
    hub: &Hub,
    model: &Model,
    variant: Option<&str>,
    watch: &mut Watch<'_>,
) -> Result<Installed> {
    for source in model.sources() {
        hub.folder(source.repo).sweep();
    }
    if let Some(installed) = vouch(hub, model, variant, watch)? {
        return Ok(installed);
    }
    let client = Client::new(&hub.settings);
    let mut failures: Vec<String> = Vec::new();
    let mut denied: Option<(String, u16)> = None;
    for source in model.sources() {
        if let Some(reason) = failures.last() {
            let event = Event::Mirror { reason, repo: source.repo };
            if watch(&event).is_break() {
                return Err(Error::Cancelled);
            }
        }
        let job = Job { settings: &hub.settings, client: &client, model: &model.name, source };
        let mut outcome = job.fetch_all(model.files_of(variant), watch);
        if outcome.is_ok() && hub.locate(model, variant).is_none() {
            // The branch moved in between; all files must be of one commit.
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

/// Verifies a variant that is complete in the cache; `None` if a file is corrupt. Corrupt files are removed.
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

/// Download of one model from one repository.
struct Job<'a> {
    settings: &'a Settings,
    client: &'a Client,
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

    /// Returns whether a file is in the cache with the right hash. A corrupt file is removed.
    fn is_here(
        &self,
        folder: &Folder,
        file: &File,
        watch: &mut Watch<'_>,
    ) -> Result<bool, Trouble> {
        // Only the commit that the other files will have.
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

    /// Retries until the file is downloaded, as long as attempts make progress or retries are left.
    fn fetch_patiently(
        &self,
        folder: &Folder,
        file: &File,
        watch: &mut Watch<'_>,
    ) -> Result<(), Trouble> {
        let mut fruitless = 0;
        let mut most = bytes_in(&folder.blob(""));
        loop {
            let reason = match self.fetch_once(folder, file, watch) {
                Err(Trouble::Passing(reason)) => reason,
                end => return end,
            };
            // Progress beyond the maximum so far, because a server without range support starts over each time.
            let now = bytes_in(&folder.blob(""));
            fruitless = if now > most { 0 } else { fruitless + 1 };
            most = most.max(now);
            if fruitless > self.settings.retries || self.settings.retries == 0 {
                return Err(Error::Missing { name: self.model.to_owned(), reason }
                    .with_hint("pull again to resume")
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
        let (repo, revision) = (self.source.repo.to_owned(), self.source.revision.to_owned());
        let (client, path) = (self.client.clone(), file.path.clone());
        let ask = move |_: &Meter| client.facts(&repo, &revision, &path);
        let facts = self.supervise(file, 0, watch, ask)?;
        self.vet(file, &facts)?;

        let blob = folder.blob(&facts.etag);
        let mut lock = self.lock(file, &blob, facts.size, watch)?;
        if !has_hash(&blob, file, &facts, watch)? {
            lock = self.transfer(file, &blob, facts.size, lock, watch)?;
        }
        // In this order, so that every file of a snapshot is reachable by its ref.
        folder.name(self.source, &facts.commit)?;
        folder.point(&facts.commit, &file.path, &blob)?;
        let verdict = self.judge(folder, file, &facts, watch);
        drop(lock);
        verdict
    }

    /// Waits for the lock of a blob while another program makes progress with its download.
    fn lock(
        &self,
        file: &File,
        blob: &Path,
        total: u64,
        watch: &mut Watch<'_>,
    ) -> Result<Lock, Trouble> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let partial = blob.with_extension("part");
        let bytes = || fs::metadata(&partial).map_or(0, |metadata| metadata.len());
        let (mut last, mut since) = (bytes(), Instant::now());
        loop {
            if let Some(lock) = Lock::take(&blob.with_extension("lock"))? {
                return Ok(lock);
            }
            let done = bytes();
            if watch(&Event::Download { file: &file.path, done, total }).is_break() {
                return Err(Error::Cancelled.into());
            }
            if done != last {
                (last, since) = (done, Instant::now());
            } else if since.elapsed() > PATIENCE {
                let reason = format!("another program is downloading `{}`", file.path);
                return Err(missing(self.model, reason).into());
            }
            thread::sleep(TICK);
        }
    }

    /// Downloads a file to its blob in the cache.
    fn transfer(
        &self,
        file: &File,
        blob: &Path,
        size: u64,
        mut lock: Lock,
        watch: &mut Watch<'_>,
    ) -> Result<Lock, Trouble> {
        let partial = blob.with_extension("part");
        let mut draft = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&partial)
            .map_err(Error::file(&partial))?;
        let found = draft.metadata().map_err(Error::file(&partial))?.len();
        if found > size {
            draft.set_len(0).map_err(Error::file(&partial))?;
        }
        if found != size {
            let client = self.client.clone();
            let source = (self.source.repo.to_owned(), self.source.revision.to_owned());
            let path = file.path.clone();
            // The lock stays with the writing thread, even after that is no longer waited for.
            let kept = partial.clone();
            let work = move |meter: &Meter| {
                let place = (&*source.0, &*source.1, &*path);
                let result = client.download(place, &mut draft, size, meter);
                let is_empty = draft.metadata().is_ok_and(|found| found.len() == 0);
                if matches!(result, Err(Fault::Excess)) || result.is_err() && is_empty {
                    // With excess bytes it is unknown which of them are wrong.
                    let _ = fs::remove_file(&kept);
                }
                result?;
                // Some file systems report a full disk only here.
                draft.sync_all().map_err(Fault::Disk)?;
                Ok(lock)
            };
            lock = self.supervise(file, size, watch, work)?;
        }
        let arrived = fs::metadata(&partial).map_err(Error::file(&partial))?.len();
        if arrived != size {
            let reason = format!("`{}` arrived with {arrived} bytes of {size}", file.path);
            return Err(Trouble::Passing(reason));
        }
        fs::rename(&partial, blob).map_err(Error::file(blob))?;
        Ok(lock)
    }

    /// Checks a file's metadata from the server before the download.
    fn vet(&self, file: &File, facts: &Facts) -> Result<(), Trouble> {
        let Facts { etag, commit, size } = facts;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let is_ours = |s: &str| s.ends_with(".part") || s.ends_with(".lock");
        let is_name = |s: &str| {
            let is_short = (1..=128).contains(&s.len());
            is_short && !s.starts_with('.') && s.bytes().all(plain) && !is_ours(s)
        };
        // A weak etag, `W/...`, is two segments.
        if !etag.split('/').all(is_name) || !is_name(commit) {
            return Err(self.refuse(file, "the server sends a malformed ETag or commit hash"));
        }
        if self.source.is_pinned() && *commit != self.source.revision {
            let pinned = self.source.revision;
            return Err(self.refuse(file, format!("it is of commit {commit}, not {pinned}")));
        }
        if let Some(published) = file.size.filter(|published| published != size) {
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

    /// Checks the hash of a downloaded file, which is removed if it is wrong.
    fn judge(
        &self,
        folder: &Folder,
        file: &File,
        facts: &Facts,
        watch: &mut Watch<'_>,
    ) -> Result<(), Trouble> {
        let commit = &facts.commit;
        let mut verdict = check(folder, commit, file, watch)?;
        if verdict.authority == Authority::Nobody && is_sha256(&facts.etag) {
            // Without links, the cached file is not a link to a blob named by its hash.
            verdict.expected = Some(facts.etag.clone());
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

    /// Runs one request on its own thread, so that it can be observed, cancelled, and survive a panic.
    fn supervise<T: Send + 'static>(
        &self,
        file: &File,
        total: u64,
        watch: &mut Watch<'_>,
        work: impl FnOnce(&Meter) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Trouble> {
        let meter = Meter::default();
        let (send, receive) = channel();
        let worker = {
            let meter = meter.clone();
            thread::Builder::new().name("hub".to_owned()).spawn(move || {
                // The receiver is gone if this request was given up.
                let _ = send.send(work(&meter));
            })
        };
        let worker =
            worker.map_err(|e| missing(self.model, format!("no thread available: {e}")))?;
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
            let done = meter.done();
            if watch(&Event::Download { file: &file.path, done, total }).is_break() {
                meter.stop();
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
                // The thread still holds the file's lock, so only another process could retry.
                meter.stop();
                let seconds = self.settings.patience.as_secs();
                let reason = format!("nothing arrived for {seconds} s");
                return Err(missing(self.model, reason).with_hint("pull again to resume").into());
            }
        }
    }

    fn classify(&self, file: &File, fault: Fault) -> Trouble {
        use std::io::ErrorKind as Io;

        let endpoint = &self.settings.endpoint;
        let end = |reason: String| Trouble::Final(missing(self.model, reason));
        match fault {
            Fault::Status(404 | 410) => {
                Trouble::Absent(format!("`{}` has no `{}`", self.source.repo, file.path))
            }
            Fault::Status(status @ (401 | 403)) => Trouble::Denied(status),
            Fault::Status(status @ (408 | 429 | 500..=599)) => {
                Trouble::Passing(format!("{endpoint} answers {status}"))
            }
            Fault::Status(status) => end(format!("{endpoint} answers {status}")),
            // Redirect URLs expire; the next attempt asks for a new one.
            Fault::StatusElsewhere(status) => {
                Trouble::Passing(format!("the host that {endpoint} redirects to answers {status}"))
            }
            Fault::Wire(ureq::Error::Io(error))
                if matches!(
                    error.kind(),
                    Io::ConnectionRefused | Io::HostUnreachable | Io::NetworkUnreachable
                ) =>
            {
                end(format!("{endpoint} cannot be reached: {error}"))
            }
            Fault::Wire(
                error @ (ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::ConnectionFailed
                | ureq::Error::Protocol(_)),
            ) => Trouble::Passing(format!("{endpoint}: {error}")),
            Fault::Wire(error) => end(format!("{endpoint}: {error}")),
            Fault::Answer(reason) => {
                end(format!("{endpoint} does not answer like a hub: {reason}"))
            }
            Fault::Excess => self.refuse(file, "the server sends more bytes than it announced"),
            Fault::Disk(error) => Trouble::Final(Error::file(&self.settings.cache)(error)),
            Fault::Stopped => Trouble::Final(Error::Cancelled),
        }
    }
}

/// Returns whether the blob exists with the expected hash.
fn has_hash(
    blob: &Path,
    file: &File,
    facts: &Facts,
    watch: &mut Watch<'_>,
) -> Result<bool, Trouble> {
    let expected = match &file.sha256 {
        Digest::Known(known) => known,
        Digest::RecordedAtFirstPull if is_sha256(&facts.etag) => &facts.etag,
        Digest::RecordedAtFirstPull => return Ok(false),
    };
    if !fs::metadata(blob).is_ok_and(|found| found.is_file() && found.len() == facts.size) {
        return Ok(false);
    }
    let total = facts.size;
    let check = |done| Event::Check { file: &file.path, done, total };
    let found = files::sha256(blob, |done| go_on(watch(&check(done))))?;
    Ok(found == *expected)
}

fn remember(folder: &Folder, commit: &str, verdict: Verdict) -> Result<()> {
    let Verdict { file, size, sha256, .. } = verdict;
    let record = Record { size, sha256 };
    if folder.record(commit, &file).as_ref() == Some(&record) {
        return Ok(());
    }
    folder.remember(commit, &file, record)
}

/// Total size of the files in a folder, in bytes.
fn bytes_in(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|m| m.len()).sum()
}
