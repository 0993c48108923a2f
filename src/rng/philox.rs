//! torch's CUDA generator, on the host: Philox4x32-10 and cuRAND's Box-Muller transform.
//!
//! Generator: Salmon et al. (2011). Mapping from values to threads and counters:
//! `aten/src/ATen/native/cuda/DistributionTemplates.h` (pytorch@0140b62). Thread `i` of a draw has subsequence `i`;
//! each call yields four values, for elements `i`, `i + threads`, `i + 2 threads` and `i + 3 threads`. Where every
//! element has its own thread, only the first of the four is used. GPUs compute sine and cosine with fast hardware
//! instructions, so their values differ from these in about the sixth decimal.

use std::f64::consts::TAU;

/// Threads per block that torch launches.
const THREADS_A_BLOCK: usize = 256;

/// Key and position in the stream.
#[derive(Clone, Debug)]
pub(super) struct Philox {
    seed: u64,
    /// Counter of the next draw, in calls that yield four values.
    calls: u64,
    /// Maximum number of concurrent threads, a multiple of the block size.
    limit: Option<usize>,
}

impl Philox {
    /// A generator for a GPU that runs at most `limit` threads at once.
    pub(super) fn new(seed: u64, limit: Option<usize>) -> Self {
        let whole_blocks = |threads: usize| (threads / THREADS_A_BLOCK).max(1) * THREADS_A_BLOCK;
        Self { seed, calls: 0, limit: limit.map(whole_blocks) }
    }

    /// `torch.randn(n, device="cuda")` in f32.
    pub(super) fn normal(&mut self, n: usize) -> Vec<f32> {
        if n == 0 {
            return Vec::new();
        }
        let wanted = n.next_multiple_of(THREADS_A_BLOCK);
        let threads = self.limit.map_or(wanted, |limit| wanted.min(limit));
        let calls_a_thread = n.div_ceil(4 * threads);
        let mut values = vec![0.0; n];
        for call in 0..calls_a_thread {
            for thread in 0..threads.min(n) {
                let [a, b, c, d] = self.words(self.calls + call as u64, thread as u64);
                let mut elements = (4 * call * threads + thread..n).step_by(threads);
                for (x, y) in [(a, b), (c, d)] {
                    let Some(first) = elements.next() else { break };
                    let (sin, cos) = box_muller(x, y);
                    values[first] = sin;
                    if let Some(second) = elements.next() {
                        values[second] = cos;
                    }
                }
            }
        }
        self.calls += calls_a_thread as u64;
        values
    }

    /// The four words of a thread's call `call`.
    fn words(&self, call: u64, thread: u64) -> [u32; 4] {
        let counter = [call as u32, (call >> 32) as u32, thread as u32, (thread >> 32) as u32];
        philox4x32(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }
}

/// Philox4x32-10: ten rounds on four 32-bit words.
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

/// Box-Muller: two normal values from two words, sine first.
///
/// Each line is the result of one fused f32 instruction: exact, then rounded once.
fn box_muller(a: u32, b: u32) -> (f32, f32) {
    const STEP: f64 = 1.0 / (1_u64 << 32) as f64;
    let angle_step = f64::from((STEP * TAU) as f32);
    let u = (f64::from(a as f32) * STEP + STEP / 2.0) as f32;
    let angle = (f64::from(b as f32) * angle_step + angle_step / 2.0) as f32;
    let radius = (-2.0 * f64::from(u).ln() as f32).sqrt();
    let (sin, cos) = f64::from(angle).sin_cos();
    (radius * sin as f32, radius * cos as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_published_vectors() {
        // Known answers of the Random123 library for philox4x32, 10 rounds.
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]
        );
    }
}
