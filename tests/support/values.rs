//! What is in a tensor.

use candle_core::{DType, Tensor};

pub(crate) fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
