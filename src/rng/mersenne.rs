//! torch's CPU generator: mt19937 and the two paths of `randn`.
//!
//! See `aten/src/ATen/core/MT19937RNGEngine.h`, `aten/src/ATen/core/DistributionsHelper.h` and
//! `aten/src/ATen/native/cpu/DistributionTemplates.h` (pytorch@003dc3e) for the order in which words are consumed.
//! Logarithm, sine and cosine are computed in f64 and rounded once, so results do not depend on the platform's f32
//! math library; torch's own vectorized code is within 2.4e-7 of them.

use std::f32::consts::TAU;
use std::f64;

/// Number of state words, and the distance between the two words that are mixed.
const WORDS: usize = 624;
const SHIFT: usize = 397;

/// Number of values transformed together; shorter draws take the double-precision path.
const BLOCK: usize = 16;

/// Generator state, and the spare second value of the last pair drawn in double precision.
#[derive(Clone, Debug)]
pub(super) struct Mersenne {
    state: [u32; WORDS],
    used: usize,
    spare: Option<f64>,
}

impl Mersenne {
    /// A generator seeded with mt19937's reference initialisation.
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for i in 1..WORDS {
            let before = state[i - 1];
            state[i] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, used: WORDS, spare: None }
    }

    /// `torch.randn(n)` in f32.
    pub(super) fn normal(&mut self, n: usize) -> Vec<f32> {
        if n < BLOCK {
            return (0..n).map(|_| self.double() as f32).collect();
        }
        let mut values = vec![0.0; n];
        self.fill_uniform(&mut values);
        values.chunks_exact_mut(BLOCK).for_each(to_normal);
        if !n.is_multiple_of(BLOCK) {
            let last = &mut values[n - BLOCK..];
            self.fill_uniform(last);
            to_normal(last);
        }
        values
    }

    /// `torch.randperm(n)`, for `n` below 2^32.
    pub(super) fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in 0..n.saturating_sub(1) {
            order.swap(i, i + self.word() as usize % (n - i));
        }
        order
    }

    /// The next value by Box-Muller in double precision; every second one is the stored sine.
    fn double(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let angle = f64::consts::TAU * self.uniform_double();
        let radius = (-2.0 * (-self.uniform_double()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// A value in `[0, 1)` with 53 random bits.
    fn uniform_double(&mut self) -> f64 {
        let high = u64::from(self.word());
        let bits = (high << 32) | u64::from(self.word());
        (bits & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }

    /// Fills `values` with numbers in `[0, 1)` of 24 random bits each.
    fn fill_uniform(&mut self, values: &mut [f32]) {
        for value in values {
            *value = (self.word() & 0x00FF_FFFF) as f32 / (1 << 24) as f32;
        }
    }

    /// The next 32 random bits.
    fn word(&mut self) -> u32 {
        if self.used == WORDS {
            self.twist();
        }
        let mut y = self.state[self.used];
        self.used += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    /// Regenerates the whole state.
    fn twist(&mut self) {
        for i in 0..WORDS {
            let joined =
                (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7FFF_FFFF);
            let odd = if joined & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % WORDS] ^ (joined >> 1) ^ odd;
        }
        self.used = 0;
    }
}

/// Transforms 16 uniform values into 16 normal ones: the first eight give the radii, the others the angles.
fn to_normal(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let log = f64::from(1.0 - *a).ln() as f32;
        let radius = (-2.0 * log).sqrt();
        let (sin, cos) = f64::from(TAU * *b).sin_cos();
        *a = radius * cos as f32;
        *b = radius * sin as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_reference_mt19937() {
        // C++ [rand.predef]: the 10000th word of a default-seeded mt19937 is 4123659995.
        let mut generator = Mersenne::new(5489);
        let last = (0..10_000).map(|_| generator.word()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
