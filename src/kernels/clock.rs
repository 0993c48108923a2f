//! Where the time goes, by kind of operation: what `animatelcm bench` shows of a CPU.
//!
//! A thread that has started its clock adds up the time of the kernels that it calls. On a GPU they are only queued, and
//! these times mean nothing.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Convolutions with kernels larger than 1×1.
    Convolution,
    /// Linear layers and 1×1 convolutions, with what follows them in the same pass.
    Linear,
    /// Attention within pictures and to the prompt.
    Attention,
    /// Attention over frames.
    AttentionOverFrames,
    /// Group and layer norms.
    Norm,
}

impl Kind {
    /// All of them, in the order of [`Times`].
    pub const ALL: [Self; 5] =
        [Self::Convolution, Self::Linear, Self::Attention, Self::AttentionOverFrames, Self::Norm];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Convolution => "convolution",
            Self::Linear => "linear",
            Self::Attention => "attention",
            Self::AttentionOverFrames => "attention over frames",
            Self::Norm => "norm",
        }
    }
}

/// The time of each kind.
pub type Times = [Duration; Kind::ALL.len()];

thread_local! {
    static CLOCK: Cell<Option<Times>> = const { Cell::new(None) };
}

/// From now on this thread's kernels are timed; what was timed before is forgotten.
pub fn start() {
    CLOCK.set(Some(Times::default()));
}

/// Ends what [`start`] began, and tells the times; zeros where it had not begun.
pub fn stop() -> Times {
    CLOCK.take().unwrap_or_default()
}

/// Runs `f`, which is an operation of this kind and starts no other.
pub(super) fn timed<R>(kind: Kind, f: impl FnOnce() -> R) -> R {
    let Some(mut times) = CLOCK.get() else { return f() };
    let started = Instant::now();
    let result = f();
    times[kind as usize] += started.elapsed();
    CLOCK.set(Some(times));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_while_the_clock_does_is_counted() {
        let sleep = |kind| timed(kind, || std::thread::sleep(Duration::from_millis(5)));
        sleep(Kind::Linear);
        assert_eq!(stop(), Times::default());
        start();
        sleep(Kind::Norm);
        sleep(Kind::Norm);
        sleep(Kind::Convolution);
        let times = stop();
        for (kind, time) in Kind::ALL.into_iter().zip(times) {
            let least = match kind {
                Kind::Norm => 10,
                Kind::Convolution => 5,
                _ => 0,
            };
            assert!(time >= Duration::from_millis(least), "{kind:?}: {time:?}");
            assert_eq!(time.is_zero(), least == 0, "{kind:?}: {time:?}");
        }
        sleep(Kind::Norm);
        assert_eq!(stop(), Times::default());
    }
}
