//! The life of a server.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot, watch};

use super::catalog::Catalog;
use super::metrics::Metrics;
use super::previews::Previews;
use super::sessions::Sessions;
use super::state::{App, Pace, Settings};
use super::{routes, tasks};
use crate::job::Names;
use crate::library::Library;
use crate::pipeline::Event;
use crate::queue::{Places, Record, Shop, WeightHashes, unix_time};
use crate::{Error, Result, Stop};

/// Uploads that are held in memory at once.
const MOST_BODIES: usize = 4;

/// How long connections may stay open when all else has ended.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How often the stop is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` is requested and the work at hand is done or given back. `started` is told the address.
///
/// # Errors
///
/// When the address is taken, the data folder is in use, or the catalog is wrong.
pub fn serve(
    settings: Settings,
    places: &Places,
    catalog: Option<&Path>,
    names: Names,
    stop: &Stop,
    started: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    let catalog = Catalog::open(catalog, &names)?;
    let listener = listen(settings.bind)?;
    let address = listener.local_addr().map_err(|error| taken(settings.bind, &error))?;
    let names = Arc::new(names.with_list(catalog.listed(&places.uploads)));
    let hidden = hidden(&catalog, &names, places);
    let workers = tasks::present(&settings.name, &settings.devices);
    let (metrics, pace) = (Arc::new(Metrics::new()), Arc::new(Pace::default()));
    let previews = Arc::new(Previews::default());
    let streams = Arc::new(Semaphore::new(settings.limits.streams));
    let shop = Arc::new(Shop {
        queue: places.queue.clone(),
        clips: places.clips.clone(),
        drafts: places.drafts.clone(),
        names: Arc::clone(&names),
        library: Arc::new(Library::new(settings.memory)),
        hidden: hidden.clone(),
        stop: stop.clone(),
        grace: settings.grace,
        workers: if settings.name.is_empty() { workers.len() } else { 1 },
        is_watched: is_watched(Arc::clone(&streams), settings.limits.streams),
        // Jobs of other front ends may be made of other weights.
        checks: (!settings.name.is_empty()).then(WeightHashes::default),
        most_faults: 0,
        told: told(Arc::clone(&metrics), Arc::clone(&previews)),
        ended: ended(Arc::clone(&metrics), Arc::clone(&pace), Arc::clone(&previews)),
    });
    let (newest, revision) = watch::channel(places.queue.wait(u64::MAX, Duration::ZERO));
    let app = Arc::new(App {
        queue: places.queue.clone(),
        clips: places.clips.clone(),
        uploads: places.uploads.clone(),
        drafts: places.drafts.clone(),
        names,
        catalog,
        hashes: WeightHashes::default(),
        keys: settings.keys,
        sessions: Sessions::default(),
        allow_hosts: settings.allow_hosts,
        limits: settings.limits,
        retention: settings.retention,
        has_page: settings.has_page,
        metrics,
        workers: workers.clone(),
        stop: stop.clone(),
        revision,
        streams,
        bodies: Arc::new(Semaphore::new(MOST_BODIES)),
        hidden,
        pace,
        previews,
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(32)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(|error| Error::no_thread(&error))?;

    let ended = Stop::default();
    let bridge = tasks::bridge(places.queue.clone(), newest, ended.clone())?;
    let stores = (places.clips.clone(), places.uploads.clone());
    let retention = settings.retention;
    let sweeper = tasks::sweeper(retention, places.queue.clone(), stores, ended.clone())?;
    let working = tasks::workers(&shop, &workers, &settings.devices)?;
    let announcer = tasks::announcer(places.queue.clone(), workers, ended.clone())?;
    let (close, closed) = oneshot::channel::<()>();
    let router = routes::router(&app);
    let server = runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let close = async move {
            let _ = closed.await;
        };
        axum::serve(listener, router).with_graceful_shutdown(close).await
    });
    let told = started(address);
    if told.is_err() {
        stop.request();
    }
    while !stop.is_requested() && !server.is_finished() {
        std::thread::sleep(PAUSE);
    }
    // Clients are answered while the last clips are made.
    stop.request();
    for thread in working {
        let _ = thread.join();
    }
    let _ = close.send(());
    let served = runtime.block_on(async { tokio::time::timeout(LAST_WORDS, server).await });
    ended.request();
    for thread in [bridge, sweeper, announcer] {
        let _ = thread.join();
    }
    runtime.shutdown_timeout(Duration::from_millis(500));
    told?;
    match served {
        Ok(Ok(Err(error))) => Err(taken(address, &error)),
        _ => Ok(()),
    }
}

/// Paths, and what clients see in their place.
pub(super) fn hidden(catalog: &Catalog, names: &Names, places: &Places) -> Vec<(String, String)> {
    let mut hidden = catalog.hidden();
    hidden.push((places.folder.to_string_lossy().into_owned(), "data".into()));
    if let Some(cache) = names.cache() {
        hidden.push((cache.to_string_lossy().into_owned(), "models".into()));
    }
    hidden
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener> {
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|error| taken(address, &error))
}

fn taken(address: SocketAddr, error: &std::io::Error) -> Error {
    let error = Error::Device { device: address.to_string(), reason: error.to_string() };
    error.with_hint("--bind ADDRESS:PORT names another; port 0 takes a free one")
}

/// Previews are made only while somebody listens to events: one costs as much as part of a step.
fn is_watched(streams: Arc<Semaphore>, all: usize) -> Box<dyn Fn() -> bool + Send + Sync> {
    Box::new(move || streams.available_permits() < all)
}

type Told = Box<dyn Fn(&Record, &Event) + Send + Sync>;

fn told(metrics: Arc<Metrics>, previews: Arc<Previews>) -> Told {
    Box::new(move |record, event| {
        let started = record.started_at.unwrap_or(record.created_at);
        match event {
            Event::Start { .. } => metrics.started(started - record.created_at),
            Event::Ready => metrics.loaded(unix_time() - started),
            Event::Step { seconds, .. } => metrics.stepped(*seconds),
            Event::Preview(preview) => previews.put(&record.id, preview),
            _ => {}
        }
    })
}

type Ended = Box<dyn Fn(&Record, Option<&str>, Duration) + Send + Sync>;

fn ended(metrics: Arc<Metrics>, pace: Arc<Pace>, previews: Arc<Previews>) -> Ended {
    Box::new(move |record, code, time| {
        previews.remove(&record.id);
        metrics.ended(code, time);
        if code.is_none() {
            pace.add(time.as_secs_f64());
        }
    })
}
