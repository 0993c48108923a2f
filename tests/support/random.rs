//! Numbers that are a function of a seed.

use candle_core::{Device, Tensor};

/// Bell-shaped values of variance 1 around 0, in f32 on the CPU.
pub(crate) fn random(shape: &[usize], seed: u64) -> Tensor {
    // splitmix64, summed to something bell-shaped.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| next() + next() + next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}
