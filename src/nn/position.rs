//! Sinusoidal positions.

use candle_core::{Device, Result, Tensor};

/// The position table `(length, width)` with `sin(p · 10000^(-2i/width))` at `2i` and the cosine at `2i + 1`, in f32.
///
/// Vaswani et al. (2017), section 3.5. Motion modules are trained with it; AnimateLCM's files omit it.
pub fn sinusoidal_positions(length: usize, width: usize, device: &Device) -> Result<Tensor> {
    let mut table = vec![0f32; length * width];
    for (position, row) in table.chunks_mut(width.max(1)).enumerate() {
        for (i, pair) in row.chunks_mut(2).enumerate() {
            // The frequency is rounded to f32 first, as in the tables used in training.
            let frequency = ((2 * i) as f64 * (-(10000f64.ln()) / width as f64)).exp() as f32;
            let angle = position as f32 * frequency;
            pair[0] = angle.sin();
            if let Some(odd) = pair.get_mut(1) {
                *odd = angle.cos();
            }
        }
    }
    Tensor::from_vec(table, (length, width), device)
}
