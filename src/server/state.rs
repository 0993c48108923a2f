//! What all requests share.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::answer::Problem;
use super::catalog::Catalog;
use super::keys::Keys;
use super::metrics::Metrics;
use super::previews::Previews;
use super::sessions::Sessions;
use crate::device::DeviceChoice;
use crate::job::Names;
use crate::queue::{Present, Queue, Retention, Store, WeightHashes, hidden};
use crate::{Error, Result, Stop};

/// How many clips' times the pace is the median of.
const MOST_TIMES: usize = 32;

/// How a server is set up.
#[derive(Debug)]
pub struct Settings {
    /// Where it listens.
    pub bind: SocketAddr,
    /// The devices, with a worker each.
    pub devices: Vec<DeviceChoice>,
    /// What the names of its workers begin with; nothing where no other process has any.
    pub name: String,
    /// The keys of clients; `None` if none is needed.
    pub keys: Option<Keys>,
    /// Names by which the server may be called beside `localhost` and addresses.
    pub allow_hosts: Vec<String>,
    /// What may be asked for.
    pub limits: Limits,
    /// How long clips are kept.
    pub retention: Retention,
    /// How long a job may go on after a stop was requested.
    pub grace: Duration,
    /// Bytes of weights that stay loaded.
    pub memory: u64,
    /// Whether there is a page.
    pub has_page: bool,
}

/// Limits of what a client may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Jobs that may wait.
    pub queue: usize,
    /// Jobs of one key that may wait.
    pub share: usize,
    /// Bytes of an upload.
    pub upload: u64,
    /// Frames of a clip.
    pub frames: usize,
    /// Pixels of all frames of a clip.
    pub pixels: u64,
    /// Pixels of all frames times steps.
    pub work: u64,
    /// Connections that listen to events.
    pub streams: usize,
}

impl Limits {
    /// Those of so many waiting jobs and an upload of so many bytes.
    pub fn new(queue: usize, upload: u64) -> Self {
        Self {
            queue,
            share: queue,
            upload,
            frames: 1024,
            pixels: 256_000_000,
            work: 16_000_000_000,
            streams: 64,
        }
    }
}

/// What all requests share.
#[derive(Debug)]
pub(super) struct App {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) clips: Arc<dyn Store>,
    pub(super) uploads: Arc<dyn Store>,
    pub(super) drafts: PathBuf,
    pub(super) names: Arc<Names>,
    pub(super) catalog: Catalog,
    pub(super) hashes: WeightHashes,
    pub(super) keys: Option<Keys>,
    pub(super) sessions: Sessions,
    pub(super) allow_hosts: Vec<String>,
    pub(super) limits: Limits,
    pub(super) retention: Retention,
    pub(super) has_page: bool,
    pub(super) metrics: Arc<Metrics>,
    /// Workers of this process.
    pub(super) workers: Vec<Present>,
    /// Requested when no further job is to be taken.
    pub(super) stop: Stop,
    /// The queue's newest revision.
    pub(super) revision: watch::Receiver<u64>,
    /// Connections that may listen to events.
    pub(super) streams: Arc<Semaphore>,
    /// Bodies that may be held in memory.
    pub(super) bodies: Arc<Semaphore>,
    /// Paths, and what clients see in their place.
    pub(super) hidden: Vec<(String, String)>,
    pub(super) pace: Arc<Pace>,
    pub(super) previews: Arc<Previews>,
}

/// What handlers are given.
pub(super) type Shared = Arc<App>;

/// Seconds that recent clips took.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<VecDeque<f64>>);

impl Pace {
    pub(super) fn add(&self, seconds: f64) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.push_back(seconds);
        if times.len() > MOST_TIMES {
            times.pop_front();
        }
    }

    /// The median; `None` before the first clip.
    pub(super) fn median(&self) -> Option<f64> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times: Vec<f64> = times.iter().copied().collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied()
    }
}

impl App {
    /// Runs what waits for a disk in a thread of its own.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let app = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || work(&app));
        task.await.unwrap_or_else(|_| Err(Problem::internal("the request could not be handled")))
    }

    /// An error as an answer, without paths of this machine.
    pub(super) fn problem(&self, error: &Error) -> Problem {
        Problem::of(error, &|text| hidden(text, &self.hidden))
    }

    /// Seconds until a place in the queue is free.
    pub(super) fn retry_after(&self) -> u64 {
        let median = self.pace.median().unwrap_or(5.0);
        (median.ceil() as u64 / self.hands().len().max(1) as u64).clamp(1, 120)
    }

    /// The workers of this and of other processes.
    pub(super) fn hands(&self) -> Vec<Present> {
        let mut all = self.workers.clone();
        let others = self.queue.workers().unwrap_or_default();
        all.extend(others.into_iter().filter(|other| !self.workers.contains(other)));
        all
    }
}
