//! Networks that stay loaded between clips, shared by pipelines.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Duration;

use super::Key;
use crate::{Result, Stop};

/// Pause between two attempts to take a network that another thread loads.
const PAUSE: Duration = Duration::from_millis(5);

/// A cache of loaded networks that drops the least recently used first.
///
/// Pipelines that share a library share every network with the same weights, device and dtypes, whatever else their
/// requests differ in: two prompts with different LoRAs share text encoder and VAE, two ControlNets one UNet. A network
/// in use is never freed; `limit` is what the library keeps of its own accord.
///
/// ```
/// use std::sync::Arc;
/// use animatelcm::{
///     DeviceChoice, DtypeChoice, Files, Library, Models, Pipeline, Precision, Residency,
/// };
///
/// let library = Arc::new(Library::new(8 << 30));
/// let device = DeviceChoice::Cpu.open()?;
/// let precision = Precision::new(DtypeChoice::Auto, &device);
/// let open = || -> animatelcm::Result<Pipeline> {
///     let models = Models::open(&Files::embedded())?;
///     let pipeline = Pipeline::new(models, device.clone(), precision, Residency::KeepAll);
///     Ok(pipeline.with_library(&library))
/// };
/// let (first, second) = (open()?, open()?); // Whichever needs a network first loads it for both.
/// # Ok::<(), animatelcm::Error>(())
/// ```
pub struct Library {
    limit: u64,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    by_key: BTreeMap<Key, Slot>,
    /// Counts the uses of all networks.
    clock: u64,
}

#[derive(Default)]
struct Slot {
    /// Held by the thread that loads the network.
    loading: Arc<Mutex<()>>,
    /// The network, if the library keeps it.
    kept: Option<Arc<dyn Any + Send + Sync>>,
    /// The network, if anything keeps it.
    alive: Option<Weak<dyn Any + Send + Sync>>,
    bytes: u64,
    last_used: u64,
}

impl Slot {
    fn is_unused(&self) -> bool {
        let alive = self.alive.as_ref().is_some_and(|alive| alive.strong_count() > 0);
        !alive && Arc::strong_count(&self.loading) == 1
    }
}

impl Slots {
    /// The network of a key, if it is loaded; counts as a use.
    fn take<T: Any + Send + Sync>(&mut self, key: &Key) -> Option<Arc<T>> {
        let slot = self.by_key.get_mut(key)?;
        let network = slot.alive.as_ref()?.upgrade()?;
        self.clock += 1;
        slot.last_used = self.clock;
        network.downcast().ok()
    }

    fn put(&mut self, key: Key, network: Arc<dyn Any + Send + Sync>, bytes: u64) {
        self.clock += 1;
        let slot = self.by_key.entry(key).or_default();
        slot.alive = Some(Arc::downgrade(&network));
        (slot.kept, slot.bytes, slot.last_used) = (Some(network), bytes, self.clock);
    }

    fn kept(&self) -> u64 {
        let kept = self.by_key.values().filter(|slot| slot.kept.is_some());
        kept.map(|slot| slot.bytes).fold(0, u64::saturating_add)
    }

    /// Drops the least recently used networks that are kept until at most `most` bytes are.
    fn shrink(&mut self, most: u64, spared: &[Key]) {
        while self.kept() > most {
            let kept = self
                .by_key
                .iter_mut()
                .filter(|(key, slot)| slot.kept.is_some() && !spared.contains(key));
            let Some((_, oldest)) = kept.min_by_key(|(_, slot)| slot.last_used) else { break };
            oldest.kept = None;
        }
        self.by_key.retain(|_, slot| !slot.is_unused());
    }
}

impl Library {
    /// An empty library that keeps networks of at most `limit` bytes: 0 for only those in use, [`u64::MAX`] for all.
    pub fn new(limit: u64) -> Self {
        Self { limit, slots: Mutex::default() }
    }

    /// Bytes of the networks that are kept.
    pub fn bytes(&self) -> u64 {
        self.lock().kept()
    }

    /// Bytes of those of `keys` that are loaded.
    pub(crate) fn bytes_of(&self, keys: &[Key]) -> u64 {
        let slots = self.lock();
        let loaded = |slot: &&Slot| slot.alive.as_ref().is_some_and(|a| a.strong_count() > 0);
        keys.iter().filter_map(|key| slots.by_key.get(key)).filter(loaded).map(|s| s.bytes).sum()
    }

    /// The network of `key`, loaded by `load` unless it is there; `bytes` is its size.
    ///
    /// Of several threads that want it one loads it and the others wait.
    ///
    /// # Errors
    ///
    /// Those of `load`, and [`Error::Cancelled`](crate::Error::Cancelled) if `stop` is requested while waiting.
    pub(crate) fn get<T: Any + Send + Sync>(
        &self,
        key: Key,
        bytes: u64,
        stop: &Stop,
        load: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        let loading = Arc::clone(&self.lock().by_key.entry(key.clone()).or_default().loading);
        let _turn = loop {
            match loading.try_lock() {
                Ok(turn) => break turn,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    stop.check()?;
                    std::thread::sleep(PAUSE);
                }
            }
        };
        if let Some(network) = self.lock().take(&key) {
            return Ok(network);
        }
        let network = Arc::new(load()?);
        let mut slots = self.lock();
        slots.put(key, Arc::<T>::clone(&network), bytes);
        slots.shrink(self.limit, &[]);
        Ok(network)
    }

    /// Drops a network that nobody will want again.
    pub(crate) fn forget(&self, key: &Key) {
        if let Some(slot) = self.lock().by_key.get_mut(key) {
            slot.kept = None;
        }
    }

    /// Drops the least recently used networks, but none of `spared`, to free at least `bytes`.
    pub(crate) fn free(&self, bytes: u64, spared: &[Key]) {
        let mut slots = self.lock();
        let most = slots.kept().saturating_sub(bytes);
        slots.shrink(most, spared);
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (limit, bytes) = (self.limit, self.bytes());
        f.debug_struct("Library")
            .field("limit", &limit)
            .field("bytes", &bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::Error;

    fn key(name: &str) -> Key {
        Key(name.to_owned())
    }

    /// Gets networks that are their own names, each of 10 bytes; returns those that were loaded.
    fn loads<'a>(library: &Library, names: &[&'a str]) -> Vec<&'a str> {
        let mut loaded = vec![];
        for name in names {
            let load = || {
                loaded.push(*name);
                Ok((*name).to_owned())
            };
            let network = library.get(key(name), 10, &Stop::default(), load).unwrap();
            assert_eq!(network.as_str(), *name);
        }
        loaded
    }

    #[test]
    fn the_least_recently_used_is_dropped() {
        let library = Library::new(30);
        assert_eq!(loads(&library, &["a", "b", "c", "a"]), ["a", "b", "c"]);
        assert_eq!(library.bytes(), 30);
        assert_eq!(loads(&library, &["d"]), ["d"]); // `b` goes
        assert_eq!(library.bytes(), 30);
        assert_eq!(loads(&library, &["a", "c", "d", "b"]), ["b"]); // now `a`
        assert_eq!(loads(&library, &["c", "d", "b", "a"]), ["a"]);
        library.forget(&key("b"));
        assert_eq!(library.bytes(), 20);
        library.free(1, &[key("d")]);
        assert_eq!(library.bytes(), 10);
        assert_eq!(loads(&library, &["d"]), [""; 0]);
        library.free(100, &[key("d")]);
        assert_eq!(library.bytes(), 10);
    }

    #[test]
    fn a_network_in_use_is_shared_though_nothing_is_kept() {
        let library = Library::new(0);
        let stop = Stop::default();
        let first = library.get(key("a"), 10, &stop, || Ok(1)).unwrap();
        let second = library.get(key("a"), 10, &stop, || Ok(2)).unwrap();
        assert!(Arc::ptr_eq(&first, &second) && library.bytes() == 0);
        drop((first, second));
        assert_eq!(*library.get(key("a"), 10, &stop, || Ok(3)).unwrap(), 3);
        // What nobody uses leaves nothing behind once another network comes.
        let b = library.get(key("b"), 10, &stop, || Ok(4)).unwrap();
        assert_eq!(library.lock().by_key.keys().collect::<Vec<_>>(), [&key("b")]);
        drop(b);
        library.free(0, &[]);
        assert!(library.lock().by_key.is_empty());
    }

    #[test]
    fn of_many_threads_one_loads_and_a_failure_is_not_kept() {
        let library = Library::new(u64::MAX);
        let (tries, stop) = (&AtomicUsize::new(0), &Stop::default());
        let library = &library;
        let results: Vec<_> = std::thread::scope(|scope| {
            let load = move || match tries.fetch_add(1, Ordering::SeqCst) {
                0 => Err(Error::Cancelled),
                n => Ok(n),
            };
            let get = move || library.get(key("a"), 10, stop, load);
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(get)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(tries.load(Ordering::SeqCst), 2);
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
        assert!(results.iter().flatten().all(|network| **network == 1));
    }

    #[test]
    fn who_waits_may_stop() {
        let (library, stop) = (Library::new(0), Stop::default());
        let error = library
            .get(key("a"), 1, &Stop::default(), || {
                std::thread::scope(|scope| {
                    let waiting = scope.spawn(|| library.get(key("a"), 1, &stop, || Ok(0)));
                    stop.request();
                    Ok(waiting.join().unwrap().unwrap_err())
                })
            })
            .unwrap();
        assert!(matches!(*error, Error::Cancelled));
    }
}
