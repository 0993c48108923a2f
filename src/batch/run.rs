//! A plan, carried out.

use std::sync::Arc;
use std::time::Instant;

use super::plan::{Plan, Planned, State};
use super::report::{Failure, Record, Report, Status};
use crate::job::{self, Names, Target};
use crate::library::Library;
use crate::output::Existing;
use crate::pipeline::{Event, Observer};
use crate::request::Request;
use crate::sampler::Progress;
use crate::{Error, Result, Stop, files};

/// How a plan is carried out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What may happen to a file that is not an item's clip but has its name.
    pub existing: Existing,
    /// Whether clips are written without request and hashes.
    pub no_metadata: bool,
    /// Whether the first failure is the end.
    pub fail_fast: bool,
}

/// Which item it is that a run has come to.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// Which of the shard's, from 1 in the order in which they are made.
    pub item: usize,
    /// Of how many.
    pub items: usize,
    /// The item.
    pub planned: &'a Planned,
}

/// Hears of a run: of each clip as an [`Observer`], and of all.
pub trait Watch: Observer {
    /// An item begins whose clip is not there.
    fn begin(&mut self, at: At<'_>);

    /// An item has ended, well or not; `left` are the seconds that the others take at the pace so far.
    ///
    /// # Errors
    ///
    /// Whatever is to end the run.
    fn end(&mut self, at: At<'_>, ended: &Record, error: Option<&Error>, left: f64) -> Result<()>;
}

/// Numbers of items by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Made.
    pub done: usize,
    /// There before.
    pub skipped: usize,
    /// Not made.
    pub failed: usize,
}

/// Makes the clips of a plan that are not there. What is wrong with one does not end the others.
///
/// # Errors
///
/// When the report cannot be written, or the run is stopped; clips that are finished stay.
pub fn run(
    plan: &Plan,
    names: &Names,
    options: Options,
    watch: &mut dyn Watch,
    stop: &Stop,
) -> Result<Counts> {
    std::fs::create_dir_all(&plan.folder)
        .map_err(|error| files::unwritable("output", &plan.folder, &error))?;
    let mut report = Report::open(&plan.folder, plan.shard)?;
    let library = Arc::new(Library::new(u64::MAX));
    let mut pace = Pace::new(plan);
    let (mut counts, items) = (Counts::default(), plan.items.len());
    for (i, planned) in plan.items.iter().enumerate() {
        stop.check()?;
        let at = At { item: i + 1, items, planned };
        let state = plan.state(planned, stop)?;
        let mut record = Record {
            number: planned.item.number,
            name: planned.item.name.clone(),
            key: planned.key.clone(),
            status: Status::Skipped,
            path: planned.path.to_string_lossy().into_owned(),
            seed: planned.item.seed(),
            sha256: None,
            seconds: 0.0,
            device: None,
            error: None,
        };
        let mut failure = None;
        if let State::There(sha256) = state {
            record.sha256 = sha256;
            counts.skipped += 1;
        } else {
            watch.begin(at);
            let started = Instant::now();
            let made = make(planned, (plan, names, &library), options, watch, &mut record, stop);
            record.seconds = started.elapsed().as_secs_f64();
            pace.ended(planned);
            match made {
                Ok(()) => {
                    record.status = Status::Done;
                    counts.done += 1;
                }
                Err(error) => {
                    record.status = match error {
                        Error::Cancelled => Status::Cancelled,
                        _ => Status::Failed,
                    };
                    counts.failed += usize::from(record.status == Status::Failed);
                    record.error = Some(Failure::from(&error));
                    failure = Some(error);
                }
            }
        }
        report.add(&record)?;
        watch.end(at, &record, failure.as_ref(), pace.left())?;
        match failure {
            Some(Error::Cancelled) => return Err(Error::Cancelled),
            Some(_) if options.fail_fast => break,
            _ => {}
        }
    }
    Ok(counts)
}

fn make(
    planned: &Planned,
    (plan, names, library): (&Plan, &Names, &Arc<Library>),
    options: Options,
    watch: &mut dyn Watch,
    record: &mut Record,
    stop: &Stop,
) -> Result<()> {
    let target = Target {
        path: &planned.path,
        existing: options.existing,
        has_metadata: !options.no_metadata,
        tensors: None,
        preview: None,
    };
    let mut heard = Heard { inner: watch, device: &mut record.device };
    let (job, known) = (planned.item.job.clone(), plan.known.clone());
    job::run(job, known, (names, Some(library)), &target, &mut heard, stop)?;
    // The clip is complete: it is too late to stop.
    record.sha256 = Some(files::sha256(&planned.path, |_| Ok(()))?);
    Ok(())
}

/// An observer that keeps the device's name.
struct Heard<'a> {
    inner: &'a mut dyn Watch,
    device: &'a mut Option<String>,
}

impl Observer for Heard<'_> {
    fn event(&mut self, event: Event) -> Result<()> {
        if let Event::Start { device, .. } = &event {
            *self.device = Some((*device).to_owned());
        }
        self.inner.event(event)
    }

    fn step(&mut self, progress: &Progress<'_>) -> Result<()> {
        self.inner.step(progress)
    }
}

/// The time that the rest takes, by pixels and steps.
struct Pace {
    started: Instant,
    done: f64,
    left: f64,
}

impl Pace {
    fn new(plan: &Plan) -> Self {
        let absent = plan.items.iter().filter(|planned| !matches!(planned.state, State::There(_)));
        let left = absent.map(|planned| work(&planned.item.job.request)).sum();
        Self { started: Instant::now(), done: 0.0, left }
    }

    fn ended(&mut self, planned: &Planned) {
        let work = work(&planned.item.job.request);
        self.done += work;
        self.left = (self.left - work).max(0.0);
    }

    /// Seconds of the rest at the mean pace; 0 while nothing is known.
    fn left(&self) -> f64 {
        if self.done == 0.0 {
            return 0.0;
        }
        self.started.elapsed().as_secs_f64() / self.done * self.left
    }
}

/// How much there is to do for a completed request, in pixels that are denoised.
fn work(request: &Request) -> f64 {
    let side = |pixels: Option<usize>| pixels.unwrap_or(1) as f64;
    let frame = side(request.size.width) * side(request.size.height);
    frame * request.frames() as f64 * request.sampling.steps as f64
}
