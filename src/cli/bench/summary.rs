//! Many times in three numbers.

use serde::Serialize;

/// The middle of some times, and where most of them lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    /// Half are shorter.
    pub(super) median: f64,
    /// A tenth is shorter.
    pub(super) p10: f64,
    /// A tenth is longer.
    pub(super) p90: f64,
    /// Number of times.
    pub(super) n: usize,
}

impl Summary {
    /// Summarizes times in any order; all zero without any.
    pub(super) fn of(times: &[f64]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            median: quantile(&sorted, 0.5),
            p10: quantile(&sorted, 0.1),
            p90: quantile(&sorted, 0.9),
            n: sorted.len(),
        }
    }
}

/// The quantile `q`, with linear interpolation as in numpy.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * sorted.len().saturating_sub(1) as f64;
    let at = |index: usize| sorted.get(index).or(sorted.last()).copied().unwrap_or(0.0);
    let below = place.floor();
    let (low, high) = (at(below as usize), at(below as usize + 1));
    low + (high - low) * (place - below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0, 10.0]);
        assert_eq!(summary.median, 3.0);
        assert!((summary.p10 - 1.4).abs() < 1e-12, "{summary:?}");
        assert!((summary.p90 - 7.6).abs() < 1e-12, "{summary:?}");
        assert_eq!(summary.n, 5);
    }

    #[test]
    fn one_time_is_its_own_summary() {
        let wanted = Summary { median: 2.5, p10: 2.5, p90: 2.5, n: 1 };
        assert_eq!(Summary::of(&[2.5]), wanted);
        assert_eq!(Summary::of(&[]).median, 0.0);
    }
}
