//! Cancellation of running work.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Cancellation flag shared by all clones: set by a signal handler or another thread, checked by the work.
///
/// ```
/// use animatelcm_kernels::Stop;
///
/// let stop = Stop::default();
/// let work = stop.clone();
/// assert!(work.check().is_ok());
/// stop.request();
/// assert!(work.check().is_err());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Requests a stop. Returns whether one was requested before.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Returns whether a stop was requested.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns [`Cancelled`] once a stop was requested, `Ok` before.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_requested() { Err(Cancelled) } else { Ok(()) }
    }
}

/// Error of work that a [`Stop`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cancelled")
    }
}

impl std::error::Error for Cancelled {}

/// Wraps the error to pass it through the tensor library.
impl From<Cancelled> for candle_core::Error {
    fn from(error: Cancelled) -> Self {
        Self::Io(std::io::Error::other(error))
    }
}
