//! Attention by Metal's own kernel, which knows some head sizes only: others are filled up with zeros.

use candle_core::{D, DType, Result, Tensor};

/// Head sizes that candle's `sdpa` takes; 512 not in f32.
const SIZES: [usize; 8] = [32, 64, 72, 80, 96, 128, 256, 512];

/// The size at which heads of `dim` are computed, if there is one.
fn size(dim: usize, queries: usize, dtype: DType) -> Option<usize> {
    let size = SIZES.into_iter().find(|size| *size >= dim)?;
    // A single query goes to another kernel.
    (queries > 1 && !(size == 512 && dtype == DType::F32)).then_some(size)
}

/// [`super::attention`] on a Metal device; `None` where its kernel does not fit.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Option<Tensor>> {
    let (_, queries, _, dim) = q.dims4()?;
    let Some(size) = size(dim, queries, q.dtype()) else { return Ok(None) };
    let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
    let sdpa = |q: &Tensor, k: &Tensor, v: &Tensor| {
        candle_nn::ops::sdpa(q, k, v, None, false, scale as f32, 1.0)
    };
    filled(q, &k, &v, size, sdpa).map(Some)
}

/// Runs `f` on `(batch, heads, tokens, size)`: zeros add nothing to scores, and what they find is left out.
fn filled(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    size: usize,
    f: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let dim = q.dim(D::Minus1)?;
    // Views that are not contiguous give it wrong results, see huggingface/candle#3703.
    let fill =
        |x: &Tensor| x.transpose(1, 2)?.pad_with_zeros(D::Minus1, 0, size - dim)?.contiguous();
    let y = f(&fill(q)?, &fill(k)?, &fill(v)?)?;
    y.narrow(D::Minus1, 0, dim)?.transpose(1, 2)?.contiguous()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::reference;

    #[test]
    fn zeros_change_nothing() {
        for dim in [7, 40, 64, 160] {
            let random = |tokens: usize| {
                Tensor::randn(0f32, 1.0, (2, tokens, 3, dim), &Device::Cpu).unwrap()
            };
            let (q, k, v) = (random(5), random(6), random(6));
            let want = reference::attention(&q, &k, &v, 0.3).unwrap();
            let size = size(dim, 5, DType::F32).unwrap();
            let got = filled(&q, &k, &v, size, |q, k, v| {
                assert_eq!(q.dims(), [2, 3, 5, size]);
                let tokens_first = |x: &Tensor| x.transpose(1, 2);
                let y = reference::attention(
                    &tokens_first(q)?,
                    &tokens_first(k)?,
                    &tokens_first(v)?,
                    0.3,
                )?;
                y.transpose(1, 2)
            });
            let far = (got.unwrap() - want).unwrap().abs().unwrap().max_all().unwrap();
            assert!(far.to_scalar::<f32>().unwrap() < 1e-6, "{dim}");
        }
        assert_eq!(size(513, 5, DType::F16), None);
        assert_eq!(size(512, 5, DType::F32), None);
        assert_eq!(size(40, 1, DType::F16), None);
    }
}
