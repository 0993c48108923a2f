//! Initial weights of networks trained from scratch.

use crate::weights::VarBuilder;
use candle_core::{Device, Tensor};

use super::Weights;
use crate::Result;
use crate::rng::{Noise, RngKind, Uniform};
use crate::weights::random;

/// Draws the weights requested by a constructor; those for which `is_zero` is true are zero.
///
/// Matrices and kernels are uniform within `1 / sqrt(inputs)`, as in torch; biases are zero, norms one, embeddings
/// normal with a standard deviation of 0.02.
pub fn fresh<T>(
    model: impl FnOnce(VarBuilder<'static>) -> Result<T>,
    seed: u64,
    is_zero: impl Fn(&str) -> bool,
    device: &Device,
) -> Result<Weights> {
    let shapes = random::inventory(model)?;
    let mut weights = Weights::new();
    for (number, (name, shape)) in shapes.into_iter().enumerate() {
        let count: usize = shape.iter().product();
        let mut random = Uniform::part(seed, number as u64);
        let values: Vec<f32> = if is_zero(&name) || name.ends_with(".bias") {
            vec![0.0; count]
        } else if shape.len() == 1 {
            vec![1.0; count]
        } else if name.contains("embedding.weight") {
            let normal = Noise::new(RngKind::Cpu, random.bits()).normal(count);
            normal.into_iter().map(|value| 0.02 * value).collect()
        } else {
            let inputs: usize = shape.iter().skip(1).product();
            let limit = 1.0 / (inputs.max(1) as f64).sqrt();
            (0..count).map(|_| random.between(-limit, limit) as f32).collect()
        };
        weights.insert(name, Tensor::from_vec(values, shape, device)?);
    }
    Ok(weights)
}
