//! Threads beside the handlers: workers, the bridge to event streams, retention.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::device::DeviceChoice;
use crate::queue::{Present, Queue, Retention, Shop, Store, Worker};
use crate::{Error, Result, Stop};

/// Time between two looks at what is kept no longer.
const SWEEP: Duration = Duration::from_secs(30);

/// Time between two words of a worker that it is there.
const PRESENCE: Duration = Duration::from_secs(10);

/// How soon a thread sees that it is to end.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|error| Error::no_thread(&error))
}

/// A worker for each device, whose names begin with that of the process, if it has one.
pub(super) fn present(name: &str, devices: &[DeviceChoice]) -> Vec<Present> {
    let worker = |(number, device): (usize, &DeviceChoice)| {
        let own = format!("{device}-{}", number + 1);
        let id = if name.is_empty() { own } else { format!("{name}-{own}") };
        Present { id, device: device.to_string(), version: env!("CARGO_PKG_VERSION").into() }
    };
    devices.iter().enumerate().map(worker).collect()
}

/// Starts the workers.
pub(super) fn workers(
    shop: &Arc<Shop>,
    present: &[Present],
    devices: &[DeviceChoice],
) -> Result<Vec<JoinHandle<Result<()>>>> {
    let start = |(present, device): (&Present, &DeviceChoice)| {
        let worker = Worker { shop: Arc::clone(shop), name: present.id.clone(), device: *device };
        spawn(&present.id, move || worker.run())
    };
    present.iter().zip(devices).map(start).collect()
}

/// Tells others again and again that workers are there, until `ended`.
pub(super) fn announcer(
    queue: Arc<dyn Queue>,
    present: Vec<Present>,
    ended: Stop,
) -> Result<JoinHandle<()>> {
    spawn("presence", move || {
        let mut last: Option<Instant> = None;
        while !ended.is_requested() {
            if last.is_none_or(|last| last.elapsed() >= PRESENCE) {
                // Where this fails the next time may work.
                let _ = present.iter().try_for_each(|worker| queue.announce(worker));
                last = Some(Instant::now());
            }
            std::thread::sleep(PAUSE);
        }
    })
}

/// Tells event streams the newest revision, until `ended`.
pub(super) fn bridge(
    queue: Arc<dyn Queue>,
    newest: watch::Sender<u64>,
    ended: Stop,
) -> Result<JoinHandle<()>> {
    spawn("events", move || {
        while !ended.is_requested() {
            let seen = *newest.borrow();
            let revision = queue.wait(seen, PAUSE);
            newest.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        }
    })
}

/// Removes what is kept no longer, until `ended`.
pub(super) fn sweeper(
    retention: Retention,
    queue: Arc<dyn Queue>,
    (clips, uploads): (Arc<dyn Store>, Arc<dyn Store>),
    ended: Stop,
) -> Result<JoinHandle<()>> {
    spawn("retention", move || {
        let mut last: Option<Instant> = None;
        while !ended.is_requested() {
            if last.is_none_or(|last| last.elapsed() >= SWEEP) {
                // A disk that fails now may work the next time.
                let _ = retention.sweep(&*queue, &*clips, &*uploads);
                last = Some(Instant::now());
            }
            std::thread::sleep(PAUSE);
        }
    })
}
