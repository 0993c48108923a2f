//! Seeded uniform numbers, for generated data and the order of training samples.

/// splitmix64 generator: Steele et al. (2014). Every seed, including zero, has its own stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uniform(u64);

impl Uniform {
    /// The generator at the beginning of the stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The generator for part `part` of a seeded whole, for example one clip of a data set.
    #[must_use]
    pub fn part(seed: u64, part: u64) -> Self {
        let mut stream = Self(seed ^ part.wrapping_mul(0xd1b5_4a32_d192_ed03));
        Self(stream.bits())
    }

    /// Current state; [`new`](Self::new) continues from it.
    pub fn state(&self) -> u64 {
        self.0
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A uniform number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A uniform number in `[from, to)`.
    pub fn between(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * self.unit()
    }

    /// A uniform integer in `0..count`; 0 if `count` is 0.
    pub fn below(&mut self, count: usize) -> usize {
        // The upper half of a 128-bit product: unbiased to one part in 2^64 / count.
        ((u128::from(self.bits()) * count as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_that_of_the_published_generator() {
        // From the reference implementation, https://prng.di.unimi.it/splitmix64.c, seed 1234567.
        let mut stream = Uniform::new(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973];
        assert_eq!(expected.map(|_| stream.bits()), expected);
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_all_of_it() {
        let mut stream = Uniform::part(7, 3);
        let mut seen = [0usize; 5];
        for _ in 0..5000 {
            seen[stream.below(5)] += 1;
            let x = stream.between(-2.0, 3.0);
            assert!((-2.0..3.0).contains(&x));
        }
        assert!(seen.iter().all(|n| (900..1100).contains(n)), "{seen:?}");
        assert_eq!(stream.below(0), 0);
        assert_ne!(Uniform::part(1, 0), Uniform::part(1, 1));
    }
}
