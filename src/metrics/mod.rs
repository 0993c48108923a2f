//! Measures of clips by networks, as papers on video models print them.
//!
//! - [`ClipScore`]: how near frames and prompt are in CLIP's joint space, 100 times their cosine.
//! - [`VideoFeatures`] and [`frechet`]: the Fréchet distance between the features of generated and of real videos, FVD.
//!
//! Both need weights that are not part of this program. See `docs/evaluation.md` for the settings of published tables.

mod clip_score;
pub mod frechet;
mod video_features;
pub mod videos;

pub use clip_score::ClipScore;
pub use video_features::{VideoFeatures, pixels};

use crate::rng::Uniform;

/// The numbers of `count` clips out of `of`, each set of them equally likely, in order; all if `count` is not less.
pub fn sample(of: usize, count: usize, seed: u64) -> Vec<usize> {
    let count = count.min(of);
    let mut random = Uniform::new(seed);
    let mut numbers: Vec<usize> = (0..of).collect();
    for i in 0..count {
        numbers.swap(i, i + random.below(of - i));
    }
    numbers.truncate(count);
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_no_number_twice_and_follow_their_seed() {
        let some = sample(100, 20, 7);
        assert!(some.len() == 20 && some.is_sorted_by(|a, b| a < b) && some[19] < 100, "{some:?}");
        assert_eq!(some, sample(100, 20, 7));
        assert_ne!(some, sample(100, 20, 8));
        assert_eq!(sample(4, usize::MAX, 0), [0, 1, 2, 3]);
        assert!(sample(0, 3, 0).is_empty());
        // Every number is drawn now and then.
        let mut times = [0; 10];
        for seed in 0..300 {
            for number in sample(10, 3, seed) {
                times[number] += 1;
            }
        }
        assert!(times.iter().all(|n| (55..=125).contains(n)), "{times:?}");
    }
}
