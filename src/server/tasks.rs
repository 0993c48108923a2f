//! Threads beside the handlers: workers, the bridge to event streams, retention.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::queue::{DirStore, Queue, Retention, Shop, SqliteQueue, Worker};
use crate::{Error, Result, Stop};

/// Time between two looks at what is kept no longer.
const SWEEP: Duration = Duration::from_secs(30);

/// How soon a thread sees that it is to end.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|error| Error::no_thread(&error))
}

/// Starts a worker for each device.
pub(super) fn workers(
    shop: &Arc<Shop>,
    devices: &[(String, crate::device::DeviceChoice)],
) -> Result<Vec<JoinHandle<()>>> {
    let start = |(name, device): &(String, crate::device::DeviceChoice)| {
        let worker = Worker { shop: Arc::clone(shop), name: name.clone(), device: *device };
        spawn(name, move || worker.run())
    };
    devices.iter().map(start).collect()
}

/// Tells event streams the newest revision, until `ended`.
pub(super) fn bridge(
    queue: SqliteQueue,
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
    queue: SqliteQueue,
    (clips, uploads): (DirStore, DirStore),
    ended: Stop,
) -> Result<JoinHandle<()>> {
    spawn("retention", move || {
        let mut last: Option<Instant> = None;
        while !ended.is_requested() {
            if last.is_none_or(|last| last.elapsed() >= SWEEP) {
                // A disk that fails now may work the next time.
                let _ = retention.sweep(&queue, &clips, &uploads);
                last = Some(Instant::now());
            }
            std::thread::sleep(PAUSE);
        }
    })
}
