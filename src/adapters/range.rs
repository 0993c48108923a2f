//! Active range of an adapter within a run.

use super::Progress;
use crate::{Error, Result};

/// A part of a run as fractions: 0 is the beginning, 1 the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActiveRange {
    start: f64,
    end: f64,
}

impl Default for ActiveRange {
    fn default() -> Self {
        Self { start: 0.0, end: 1.0 }
    }
}

impl ActiveRange {
    /// The range from `start` to `end`.
    ///
    /// # Errors
    ///
    /// Unless `0 <= start < end <= 1`.
    pub fn new(start: f64, end: f64) -> Result<Self> {
        // Comparisons with NaN are false.
        if 0.0 <= start && start < end && end <= 1.0 {
            return Ok(Self { start, end });
        }
        let reason = format!("{start} to {end} is not a part of the run from 0 to 1");
        Err(Error::request("start", reason))
    }

    /// Returns whether the whole step lies within the range, as in diffusers: `0..0.6` contains two of four steps.
    pub fn contains(self, progress: Progress) -> bool {
        let at = |step: usize| step as f64 / progress.steps as f64;
        at(progress.step) >= self.start && at(progress.step + 1) <= self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_counts_only_if_it_is_wholly_inside() {
        let active = |start, end, steps| -> Vec<usize> {
            let range = ActiveRange::new(start, end).unwrap();
            (0..steps).filter(|&step| range.contains(Progress { step, steps })).collect()
        };
        assert_eq!(active(0.0, 1.0, 4), [0, 1, 2, 3]);
        assert_eq!(active(0.0, 0.75, 4), [0, 1, 2]);
        assert_eq!(active(0.0, 0.6, 4), [0, 1]);
        assert_eq!(active(0.25, 0.5, 4), [1]);
        assert_eq!(active(0.3, 1.0, 4), [2, 3]);
        assert_eq!(active(0.0, 0.1, 4), [0; 0]);
        assert_eq!(active(0.0, 1.0, 3), [0, 1, 2]);
    }

    #[test]
    fn only_parts_of_the_run_are_accepted() {
        for (start, end) in [(0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.1), (f64::NAN, 1.0)] {
            let error = ActiveRange::new(start, end).unwrap_err();
            assert_eq!(error.kind().exit_code(), 2, "{start} to {end}");
        }
    }
}
