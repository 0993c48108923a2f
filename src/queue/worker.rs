//! Threads that take jobs and make their clips.

use std::any::Any;
use std::cell::Cell;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Failure, Go, JobId, Lease, Output, Queue, Record, Store, WeightHashes, hidden, key};
use crate::device::DeviceChoice;
use crate::job::{self, Known, Names, Target};
use crate::library::Library;
use crate::output::{Existing, Format};
use crate::pipeline::{Done, Event, Observer};
use crate::request::Job;
use crate::sampler::Progress;
use crate::{Error, ErrorKind, Result, Stop};

/// The code of failures that are the device's, not the job's.
const DEVICE: &str = "device";

/// Pause between two beats: a cancelled job ends within a step or this.
const PULSE: Duration = Duration::from_millis(200);

/// How long a worker leaves the queue to the others after a job that its device could not do.
const COOLING: Duration = Duration::from_secs(2);

/// How long a worker waits for a job before it looks whether to stop.
const PATIENCE: Duration = Duration::from_millis(500);

/// Least time between two previews: a clip that is there at once needs none.
const BETWEEN_PREVIEWS: Duration = Duration::from_millis(500);

/// The pause after a preview, in times that it took: watching costs at most a fifth of the time.
const PREVIEW_SHARE: u32 = 4;

/// Work on a decoded frame, in that of a step on one frame: counted for Stable Diffusion 1.5 at 512x512.
const DECODE: usize = 3;

/// Observer of the events of all jobs.
type Told = Box<dyn Fn(&Record, &Event) + Send + Sync>;

/// Observer of how jobs end.
type Ended = Box<dyn Fn(&Record, Option<&str>, Duration) + Send + Sync>;

/// What all workers of a process share.
pub struct Shop {
    /// Where jobs come from.
    pub queue: Arc<dyn Queue>,
    /// Where clips go.
    pub clips: Arc<dyn Store>,
    /// The folder of clips that are being made.
    pub drafts: PathBuf,
    /// What names stand for.
    pub names: Arc<Names>,
    /// Networks that stay loaded.
    pub library: Arc<Library>,
    /// Paths, and what clients see in their place.
    pub hidden: Vec<(String, String)>,
    /// Requested when no further job is to be taken.
    pub stop: Stop,
    /// How long a job may go on after that before it is given back.
    pub grace: Duration,
    /// How many workers the queue has; 1 where the queue itself leaves a job that a device could not do to another.
    pub workers: usize,
    /// Whether anybody would look at a preview.
    pub is_watched: Box<dyn Fn() -> bool + Send + Sync>,
    /// Hashes of weight files, where a job's key is to be computed again: what has another one here is left to other
    /// workers.
    pub checks: Option<WeightHashes>,
    /// Errors of the device in a row after which a worker ends; 0 for never.
    pub most_faults: usize,
    /// Told of every event.
    pub told: Told,
    /// Told how each job ended: its record at the claim, and the failure's code if it failed.
    pub ended: Ended,
}

impl std::fmt::Debug for Shop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shop").field("drafts", &self.drafts).finish_non_exhaustive()
    }
}

/// A worker: one job at a time, on one device.
#[derive(Debug)]
pub struct Worker {
    /// What it shares with others.
    pub shop: Arc<Shop>,
    /// Its name in records.
    pub name: String,
    /// Its device, for jobs that leave it open.
    pub device: DeviceChoice,
}

/// Why a job was told to stop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Halt {
    No = 0,
    Cancelled = 1,
    Lost = 2,
    Draining = 3,
}

impl Worker {
    /// Does job after job until the shop's `stop` is requested.
    ///
    /// # Errors
    ///
    /// When the device failed too often in a row.
    pub fn run(&self) -> Result<()> {
        let mut faults = 0;
        while !self.shop.stop.is_requested() {
            match self.shop.queue.claim(&self.name, &[], PATIENCE) {
                Ok(Some(lease)) => {
                    let (record, started) = (lease.record().clone(), Instant::now());
                    // Where the queue itself fails the lease ends by itself, and the job comes again.
                    let code = match self.work(lease) {
                        Ok(code) => code,
                        Err(_) => Some("internal".to_owned()),
                    };
                    (self.shop.ended)(&record, code.as_deref(), started.elapsed());
                    faults = if code.as_deref() == Some(DEVICE) { faults + 1 } else { 0 };
                    if faults > 0 && faults == self.shop.most_faults {
                        let reason = format!("{faults} jobs in a row failed because of it");
                        return Err(Error::Device { device: self.device.to_string(), reason });
                    }
                }
                Ok(None) => {}
                Err(_) => std::thread::sleep(PATIENCE),
            }
        }
        Ok(())
    }

    /// Makes the clip of one job. Returns the failure's code unless there is a clip.
    fn work(&self, lease: Box<dyn Lease>) -> Result<Option<String>> {
        let record = lease.record().clone();
        let ending = match record.format.as_str() {
            "apng" => "png",
            format => format,
        };
        let draft = self.shop.drafts.join(format!("{}-{}.{ending}", record.id, record.attempt));
        let held = Held::new(lease);
        let made = self.make(&record, &draft, &held);
        let (lease, halt) = held.end();
        let ended = match made {
            _ if halt != Halt::No => {
                // What ended already stays as it is.
                lease.give_back()?;
                Ok(Some(if halt == Halt::Draining { "interrupted" } else { "cancelled" }.into()))
            }
            Ok(Some(done)) => self.deliver(lease, &record, done, &draft),
            Err(error) if self.is_for_another(&record, &error) => {
                // Without an end it counts as lost, and comes again once.
                drop(lease);
                let since = Instant::now();
                while since.elapsed() < COOLING && !self.shop.stop.is_requested() {
                    std::thread::sleep(PULSE);
                }
                Ok(Some("retried".into()))
            }
            Ok(None) => {
                lease.pass_on(&format!("{} has not what the job needs", self.name))?;
                Ok(Some("interrupted".into()))
            }
            Err(error) => {
                let failure = self.failure(&record, &error);
                let code = failure.code.clone();
                lease.fail(failure)?;
                Ok(Some(code))
            }
        };
        let _ = fs::remove_file(&draft);
        ended
    }

    /// Runs a job while a thread beats; `None` if this is not where its clip can be made.
    fn make(&self, record: &Record, draft: &Path, held: &Held) -> Result<Option<Done>> {
        let mut job: Job = serde_json::from_value(record.job.clone())
            .map_err(|error| Error::request("job", error.to_string()))?;
        if job.models.device == DeviceChoice::Auto {
            job.models.device = self.device;
        }
        let target = Target {
            path: draft,
            existing: Existing::Replace,
            has_metadata: true,
            tensors: None,
            preview: None,
        };
        let hidden = self.hidden(record);
        let mut watch = Watch {
            shop: &self.shop,
            record,
            held,
            hidden: &hidden,
            work: (0, 0),
            due: Instant::now() + BETWEEN_PREVIEWS,
            asked: Cell::new(Instant::now()),
        };
        let (finished, finish) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let beat = move || held.beat(&self.shop, &finish);
            std::thread::Builder::new()
                .name("beat".into())
                .spawn_scoped(scope, beat)
                .map_err(|error| Error::no_thread(&error))?;
            let with = (&*self.shop.names, Some(&self.shop.library));
            let run = || {
                if !self.has_all(&job, record, &held.stop)? {
                    return Ok(None);
                }
                job::run(job, Known::default(), with, &target, &mut watch, &held.stop).map(Some)
            };
            let made = panic::catch_unwind(AssertUnwindSafe(run));
            drop(finished);
            made.unwrap_or_else(|payload| Err(panicked(payload.as_ref())))
        })
    }

    /// Whether the job has the same key here as where it was submitted: the same weights, by the same program.
    fn has_all(&self, job: &Job, record: &Record, stop: &Stop) -> Result<bool> {
        let Some(hashes) = &self.shop.checks else { return Ok(true) };
        if JobId::parse(&record.key).is_some() {
            // Nobody could tell: the job says what is wrong with it.
            return Ok(true);
        }
        let is_its = |format: &&Format| format.name() == record.format;
        let Some(format) = Format::ALL.iter().find(is_its) else { return Ok(false) };
        match key(job, *format, &self.shop.names, hashes, stop) {
            Ok(own) => Ok(own.sha256 == record.key),
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(_) => Ok(false),
        }
    }

    /// Puts a clip into the store and ends its job.
    fn deliver(
        &self,
        lease: Box<dyn Lease>,
        record: &Record,
        done: Done,
        draft: &Path,
    ) -> Result<Option<String>> {
        let stored = fs::File::open(draft)
            .map_err(Error::file(draft))
            .and_then(|mut clip| self.shop.clips.put(&mut clip, u64::MAX));
        let stored = match stored {
            Ok(stored) => stored,
            Err(error) => {
                let failure = self.failure(record, &error);
                let code = failure.code.clone();
                lease.fail(failure)?;
                return Ok(Some(code));
            }
        };
        let output = Output {
            format: record.format.clone(),
            bytes: stored.bytes,
            sha256: stored.sha256.clone(),
            width: done.width,
            height: done.height,
            frames: done.frames,
            fps: done.fps,
            seconds: done.frames as f64 / done.fps,
            job_seconds: done.seconds,
            step_seconds: done.step_seconds,
            device: held_device(self.device),
        };
        if lease.complete(output)? {
            return Ok(None);
        }
        if !self.shop.queue.is_used(&stored.sha256)? {
            self.shop.clips.remove(&stored.sha256)?;
        }
        Ok(Some("cancelled".into()))
    }

    /// Whether a job that this machine could not do is left to another worker, which may have what it lacks.
    fn is_for_another(&self, record: &Record, error: &Error) -> bool {
        let is_first = record.attempt == 1 && self.shop.workers > 1;
        is_first && error.kind() == ErrorKind::Environment
    }

    fn failure(&self, record: &Record, error: &Error) -> Failure {
        let hidden_paths = self.hidden(record);
        let plain = |text: &str| hidden(text, &hidden_paths).replace('\n', " ");
        let code = match error.kind() {
            ErrorKind::Request => "invalid_request",
            ErrorKind::Weights => "weights",
            ErrorKind::Refused => "refused",
            ErrorKind::Environment => DEVICE,
            ErrorKind::Cancelled => "interrupted",
            ErrorKind::Internal | ErrorKind::Batch => "internal",
        };
        Failure {
            code: code.into(),
            message: plain(&error.to_string()),
            hint: error.hint().map(|hint| plain(&hint)),
            exit_code: error.kind().exit_code(),
        }
    }

    /// The shop's paths and those of the job's images.
    fn hidden(&self, record: &Record) -> Vec<(String, String)> {
        let mut words = Vec::new();
        texts(&record.job, &mut words);
        let uploads = words.into_iter().filter(|word| word.starts_with("upload:"));
        let path = |word: String| {
            let path = self.shop.names.input("upload", &word).ok()?;
            Some((path.to_string_lossy().into_owned(), word))
        };
        uploads.filter_map(path).chain(self.shop.hidden.iter().cloned()).collect()
    }
}

/// The kind of device, in a word.
fn held_device(device: DeviceChoice) -> String {
    match device.open() {
        Ok(device) if device.is_cuda() => "cuda",
        Ok(device) if device.is_metal() => "metal",
        _ => "cpu",
    }
    .to_owned()
}

/// All texts in JSON.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| texts(field, found)),
        _ => {}
    }
}

fn panicked(payload: &(dyn Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let reason = format!("internal error: {}", text.unwrap_or("a panic without a message"));
    Error::Tensor(candle_core::Error::Msg(reason))
}

/// A lease that two threads hold: one that works, one that beats.
struct Held {
    lease: Mutex<Box<dyn Lease>>,
    /// Stops the work.
    stop: Stop,
    halt: AtomicU8,
    /// The progress, as bits of an `f32`.
    progress: AtomicU32,
}

impl Held {
    fn new(lease: Box<dyn Lease>) -> Self {
        let (halt, progress) = (AtomicU8::new(Halt::No as u8), AtomicU32::new(0));
        Self { lease: Mutex::new(lease), stop: Stop::default(), halt, progress }
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Lease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn halt(&self, why: Halt) {
        self.halt.store(why as u8, Ordering::SeqCst);
        self.stop.request();
    }

    /// Tells an event, and whether to go on.
    fn tell(&self, event: Option<String>) -> Result<()> {
        let progress = f32::from_bits(self.progress.load(Ordering::Relaxed));
        match self.lock().beat(event, progress)? {
            Go::On => return Ok(()),
            Go::Cancelled => self.halt(Halt::Cancelled),
            Go::Lost => self.halt(Halt::Lost),
        }
        Err(Error::Cancelled)
    }

    /// Beats until the work is finished, or was told to stop.
    fn beat(&self, shop: &Shop, finish: &mpsc::Receiver<()>) {
        let mut draining: Option<Instant> = None;
        while let Err(RecvTimeoutError::Timeout) = finish.recv_timeout(PULSE) {
            if self.stop.is_requested() {
                continue;
            }
            // A disk that fails now may work at the next beat.
            let _ = self.tell(None);
            if shop.stop.is_requested() {
                let since = *draining.get_or_insert_with(Instant::now);
                if since.elapsed() >= shop.grace && !self.stop.is_requested() {
                    self.halt(Halt::Draining);
                }
            }
        }
    }

    fn end(self) -> (Box<dyn Lease>, Halt) {
        let halt = match self.halt.load(Ordering::SeqCst) {
            1 => Halt::Cancelled,
            2 => Halt::Lost,
            3 => Halt::Draining,
            _ => Halt::No,
        };
        (self.lease.into_inner().unwrap_or_else(PoisonError::into_inner), halt)
    }
}

/// Tells the queue what happens to a job.
struct Watch<'a> {
    shop: &'a Shop,
    record: &'a Record,
    held: &'a Held,
    hidden: &'a [(String, String)],
    /// Frames and steps, which say how much work there is.
    work: (usize, usize),
    /// When the next preview may be made.
    due: Instant,
    /// When a preview was last asked for.
    asked: Cell<Instant>,
}

impl Watch<'_> {
    fn progress(&self, steps: usize, frames: usize) {
        let (all_frames, all_steps) = self.work;
        let done = steps * all_frames + frames * DECODE;
        let all = (all_steps * all_frames + all_frames * DECODE).max(1);
        // Only a clip that is in the store is whole.
        let progress = (done as f32 / all as f32).min(0.999);
        self.held.progress.store(progress.to_bits(), Ordering::Relaxed);
    }
}

impl Observer for Watch<'_> {
    fn event(&mut self, event: Event) -> Result<()> {
        match &event {
            Event::Start { frames, steps, .. } => self.work = (*frames, *steps),
            Event::Step { step, steps, .. } => {
                self.work.1 = *steps;
                self.progress(*step, 0);
            }
            Event::Decode { frame, .. } => self.progress(self.work.1, *frame),
            Event::Preview(_) => {
                let pause = self.asked.get().elapsed() * PREVIEW_SHARE;
                self.due = Instant::now() + pause.max(BETWEEN_PREVIEWS);
            }
            _ => {}
        }
        (self.shop.told)(self.record, &event);
        // How a job ends the queue says, when it has ended. What was loaded tensor by tensor is for a log.
        if matches!(event, Event::Done(_) | Event::Error { .. } | Event::Report { .. }) {
            return Ok(());
        }
        let mut value = json!(event);
        value["job"] = Value::from(self.record.id.as_str());
        let progress = f32::from_bits(self.held.progress.load(Ordering::Relaxed));
        value["progress"] = json!(f64::from(progress));
        self.held.tell(Some(hidden(&value.to_string(), self.hidden)))
    }

    fn step(&mut self, _: &Progress<'_>) -> Result<()> {
        Ok(self.held.stop.check()?)
    }

    fn wants_previews(&self) -> bool {
        self.asked.set(Instant::now());
        self.asked.get() >= self.due && (self.shop.is_watched)()
    }
}
