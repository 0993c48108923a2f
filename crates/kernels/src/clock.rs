//! Time and work of kernels, by kind of operation: what `animatelcm bench` shows.
//!
//! A thread that has started its clock adds up what the kernels that it calls take. On a GPU they are only queued:
//! their work is counted, their times mean nothing.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Convolutions with kernels larger than 1×1.
    Convolution,
    /// Linear layers and 1×1 convolutions, with what follows them in the same pass.
    Linear,
    /// Attention within images and to the prompt.
    Attention,
    /// Attention over frames.
    TemporalAttention,
    /// Group and layer norms.
    Norm,
}

impl Kind {
    /// All kinds, in the order of [`Tally::times`].
    pub const ALL: [Self; 5] =
        [Self::Convolution, Self::Linear, Self::Attention, Self::TemporalAttention, Self::Norm];

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Convolution => "convolution",
            Self::Linear => "linear",
            Self::Attention => "attention",
            Self::TemporalAttention => "temporal attention",
            Self::Norm => "norm",
        }
    }
}

/// Time and operations of the kernels while the clock ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The time of each kind, in the order of [`Kind::ALL`].
    pub times: [Duration; Kind::ALL.len()],
    /// Multiplications, each with its addition, of convolutions (as if multiplied out), linear layers and attention.
    pub macs: u64,
}

impl Tally {
    /// Floating-point operations: two for each multiplication with its addition.
    pub fn flops(&self) -> u64 {
        self.macs.saturating_mul(2)
    }
}

thread_local! {
    static CLOCK: Cell<Option<Tally>> = const { Cell::new(None) };
}

/// Starts timing this thread's kernels and counting their operations, from zero.
pub fn start() {
    CLOCK.set(Some(Tally::default()));
}

/// Ends what [`start`] began; zeros where it had not begun.
pub fn stop() -> Tally {
    CLOCK.take().unwrap_or_default()
}

/// Runs `f`, which is an operation of this kind and starts no other.
pub(super) fn timed<R>(kind: Kind, f: impl FnOnce() -> R) -> R {
    let Some(mut tally) = CLOCK.get() else { return f() };
    let started = Instant::now();
    let result = f();
    tally.times[kind as usize] += started.elapsed();
    CLOCK.set(Some(tally));
    result
}

/// Counts the multiplications of an operation that is about to run: the product of `factors`.
pub(super) fn count(factors: &[usize]) {
    if let Some(mut tally) = CLOCK.get() {
        let macs = factors.iter().fold(1u64, |all, factor| all.saturating_mul(*factor as u64));
        tally.macs = tally.macs.saturating_add(macs);
        CLOCK.set(Some(tally));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_while_the_clock_does_is_counted() {
        let sleep = |kind| timed(kind, || std::thread::sleep(Duration::from_millis(5)));
        sleep(Kind::Linear);
        assert_eq!(stop(), Tally::default());
        start();
        sleep(Kind::Norm);
        sleep(Kind::Norm);
        sleep(Kind::Convolution);
        for (kind, time) in Kind::ALL.into_iter().zip(stop().times) {
            let least = match kind {
                Kind::Norm => 10,
                Kind::Convolution => 5,
                _ => 0,
            };
            assert!(time >= Duration::from_millis(least), "{kind:?}: {time:?}");
            assert_eq!(time.is_zero(), least == 0, "{kind:?}: {time:?}");
        }
        sleep(Kind::Norm);
        assert_eq!(stop(), Tally::default());
    }

    #[test]
    fn multiplications_are_those_of_the_formulas() {
        use crate::{ConvArgs, Weights};
        use candle_core::{DType, Device, Tensor};

        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        let macs = |op: &dyn Fn()| {
            start();
            op();
            stop().macs
        };
        let kernel = Weights::new(&ones(&[6, 5, 3, 3]), None).unwrap();
        let strided = ConvArgs { padding: (1, 1), stride: 2, ..ConvArgs::default() };
        // Four pixels by three are left of eight by six.
        let conv = || drop(crate::conv2d(&ones(&[2, 5, 8, 6]), &kernel, &strided).unwrap());
        assert_eq!(macs(&conv), 2 * 6 * 5 * 9 * 4 * 3);
        let matrix = Weights::new(&ones(&[7, 5]), None).unwrap();
        let linear = || drop(crate::linear(&ones(&[2, 3, 5]), &matrix, None).unwrap());
        assert_eq!(macs(&linear), 2 * 3 * 5 * 7);
        let (q, k) = (ones(&[2, 3, 4, 5]), ones(&[2, 7, 4, 5]));
        let attention = || drop(crate::attention(&q, &k, &k, 1.0).unwrap());
        assert_eq!(macs(&attention), 2 * 2 * 3 * 7 * 4 * 5);
        let x = ones(&[2, 3, 11, 4, 5]);
        let temporal = || drop(crate::temporal_attention(&x, &x, &x, 1.0).unwrap());
        assert_eq!(macs(&temporal), 2 * 2 * 3 * 3 * 11 * 4 * 5);
    }
}
