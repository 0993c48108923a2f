//! Threads, and systems that have none to spare.

use std::io;
use std::panic;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::{Error, Result};

/// Starts the threads that kernels and the tensor library share. Both would panic at the first use where the system
/// refuses them.
///
/// # Errors
///
/// [`Error::Device`] when the system refuses.
pub(super) fn start() -> Result<()> {
    rayon::ThreadPoolBuilder::new().build_global().map_err(|error| Error::no_thread(&error))?;
    // A pool of the tensor library that is started in part is worse than none, so room is made sure of.
    room(rayon::current_num_threads()).map_err(|error| Error::no_thread(&error))?;
    panic::catch_unwind(candle_core::utils::barrier_pool)
        .map(|_| ())
        .map_err(|_| Error::no_thread(&"those of the tensor library"))
}

/// Fails unless so many more threads can run at once.
fn room(count: usize) -> io::Result<()> {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
    let started: Vec<io::Result<JoinHandle<()>>> = (0..count)
        .map(|_| {
            let gate = Arc::clone(&gate);
            Builder::new().spawn(move || drop(gate.lock().unwrap_or_else(PoisonError::into_inner)))
        })
        .collect();
    drop(closed);
    let mut all = Ok(());
    for thread in started {
        match thread {
            Ok(thread) => drop(thread.join()),
            Err(error) => all = Err(error),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_thread_is_a_matter_of_the_device() {
        assert!(room(3).is_ok());
        let error = Error::no_thread(&io::Error::from(io::ErrorKind::WouldBlock));
        assert_eq!(error.kind().exit_code(), 4);
        assert!(error.hint().unwrap().contains("ulimit -u"), "{error:?}");
    }
}
