//! A process of workers: no address, a queue elsewhere.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::catalog::Catalog;
use super::run::hidden;
use super::tasks;
use crate::device::DeviceChoice;
use crate::job::Names;
use crate::library::Library;
use crate::queue::{Places, Shop, WeightHashes};
use crate::{Error, Result, Stop};

/// Errors of the device in a row after which the process ends, so that whoever watches it starts another one.
const MOST_FAULTS: usize = 2;

/// Time between two looks at copies that are used no longer.
const TIDY: Duration = Duration::from_secs(60);

/// How often the stop is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// How a process of workers is set up.
#[derive(Clone, Debug)]
pub struct WorkSettings {
    /// What the names of its workers begin with: no other process may have it.
    pub name: String,
    /// The devices, with a worker each.
    pub devices: Vec<DeviceChoice>,
    /// How long a job may go on after a stop was requested.
    pub grace: Duration,
    /// Bytes of weights that stay loaded.
    pub memory: u64,
}

/// Takes jobs until `stop` is requested. `started` is called when workers are there.
///
/// # Errors
///
/// When the catalog is wrong, and when a device fails in one job after the other.
pub fn work(
    settings: &WorkSettings,
    places: &Places,
    catalog: Option<&Path>,
    names: Names,
    stop: &Stop,
    started: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let catalog = Catalog::open(catalog, &names)?;
    let names = Arc::new(names.with_list(catalog.listed(&places.uploads)));
    let hidden = hidden(&catalog, &names, places);
    let shop = Arc::new(Shop {
        queue: Arc::clone(&places.queue),
        clips: Arc::clone(&places.clips),
        drafts: places.drafts.clone(),
        names,
        library: Arc::new(Library::new(settings.memory)),
        hidden,
        stop: stop.clone(),
        grace: settings.grace,
        workers: 1,
        is_watched: Box::new(|| false),
        checks: Some(WeightHashes::default()),
        most_faults: MOST_FAULTS,
        told: Box::new(|_, _| ()),
        ended: Box::new(|_, _, _| ()),
    });
    let (present, ended) = (tasks::present(&settings.name, &settings.devices), Stop::default());
    let working = tasks::workers(&shop, &present, &settings.devices)?;
    let announcer = tasks::announcer(Arc::clone(&places.queue), present, ended.clone())?;
    let told = started();
    let mut tidied = Instant::now();
    while told.is_ok() && !stop.is_requested() && !working.iter().any(JoinHandle::is_finished) {
        std::thread::sleep(PAUSE);
        if tidied.elapsed() >= TIDY {
            // A disk that fails now may work the next time.
            let _ = places.clips.tidy().and_then(|()| places.uploads.tidy());
            tidied = Instant::now();
        }
    }
    stop.request();
    let left: Vec<_> = working.into_iter().map(JoinHandle::join).collect();
    ended.request();
    let _ = announcer.join();
    told?;
    let lost = || Error::Device { device: "cpu".into(), reason: "a worker broke off".into() };
    left.into_iter().try_for_each(|one| one.unwrap_or_else(|_| Err(lost())))
}
