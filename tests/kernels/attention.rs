//! Attention against its plain reference.

use animatelcm::kernels::cpu::isa::Isa;
use animatelcm::kernels::{self, reference};
use candle_core::{DType, Device, Tensor};

use crate::support::close::assert_relative;
use crate::support::isa::results;
use crate::support::random::random;
use crate::support::values::values;

#[test]
fn attention_equals_its_reference() {
    for (batch, queries, keys, heads, dim) in [
        (1, 1, 1, 1, 1),
        (2, 5, 3, 3, 7),
        (3, 16, 16, 8, 40),
        (2, 9, 30, 2, 24),
        (1, 32, 5, 3, 17),
        (1, 130, 77, 2, 80),
        (2, 64, 65, 1, 160),
        (5, 63, 200, 4, 4),
        // More than one block of keys, with tails of every kind.
        (1, 13, 512, 2, 40),
        (1, 400, 513, 1, 16),
        (2, 7, 1100, 1, 3),
    ] {
        let q = random(&[batch, queries, heads, dim], 1);
        let k = random(&[batch, keys, heads, dim], 2);
        let v = random(&[batch, keys, heads, dim], 3);
        let scale = 1.0 / (dim as f64).sqrt();
        // What is multiplied in bf16 is padded in other ways. Values that cancel show more of how weights are rounded.
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 4e-3)] {
            let [q, k, v] = [&q, &k, &v].map(|x| x.to_dtype(dtype).unwrap());
            let full = [&q, &k, &v].map(|x| x.to_dtype(DType::F32).unwrap());
            for scale in [scale, -scale, 0.0] {
                let want = reference::attention(&full[0], &full[1], &full[2], scale).unwrap();
                for got in results(|| kernels::attention(&q, &k, &v, scale)) {
                    assert_relative(&got, &want, tolerance);
                }
            }
        }
    }
}

#[test]
fn attention_reads_views_without_copies() {
    let (batch, tokens, heads, dim) = (3, 9, 4, 5);
    // q, k and v side by side in one tensor; heads before tokens in another.
    let packed = random(&[batch, tokens, 3, heads, dim], 4);
    let part = |i| packed.narrow(2, i, 1).unwrap().squeeze(2).unwrap();
    let q = random(&[batch, heads, tokens, dim], 5).transpose(1, 2).unwrap();
    let (k, v) = (part(1), part(2));
    let got = kernels::attention(&q, &k, &v, 0.4).unwrap();
    assert_relative(&got, &reference::attention(&q, &k, &v, 0.4).unwrap(), 2e-6);
    // A last dimension that is not contiguous.
    let q = random(&[batch, tokens, dim, heads], 6).transpose(2, 3).unwrap();
    let got = kernels::attention(&q, &k, &v, 0.4).unwrap();
    assert_relative(&got, &reference::attention(&q, &k, &v, 0.4).unwrap(), 2e-6);
    // The same of more tokens than are kept in registers.
    let packed = random(&[2, 50, 3, 2, 6], 7);
    let [q, k, v] = [0, 1, 2].map(|i| packed.narrow(2, i, 1).unwrap().squeeze(2).unwrap());
    let got = kernels::attention(&q, &k, &v, 0.4).unwrap();
    assert_relative(&got, &reference::attention(&q, &k, &v, 0.4).unwrap(), 2e-6);
}

#[test]
fn attention_survives_large_scores_and_passes_nan_on() {
    // Few keys, and so many that they are packed.
    for (keys, dtype) in [(5, DType::F32), (70, DType::F32), (5, DType::BF16), (70, DType::BF16)] {
        let random =
            |tokens: usize, seed| random(&[1, tokens, 1, 4], seed).to_dtype(dtype).unwrap();
        let full = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
        let (q, k) = ((random(3, 7) * 1e4).unwrap(), (random(keys, 9) * 1e4).unwrap());
        let v = random(keys, 8);
        let want = reference::attention(&full(&q), &full(&k), &full(&v), 1.0).unwrap();
        for got in results(|| kernels::attention(&q, &k, &v, 1.0)) {
            assert_relative(&got, &want, if dtype == DType::F32 { 1e-6 } else { 2.5e-3 });
        }
        let k = k.affine(0.0, f64::NAN).unwrap();
        for got in results(|| kernels::attention(&q, &k, &v, 1.0)) {
            assert!(values(&got).iter().all(|v| v.is_nan()));
        }
        // One infinite score takes everything, as inf - inf, in every implementation.
        let mut numbers = vec![0.5_f32; 4 * keys];
        numbers[4] = f32::INFINITY;
        let k = Tensor::from_vec(numbers, (1, keys, 1, 4), &Device::Cpu).unwrap();
        let k = k.to_dtype(dtype).unwrap();
        let q = q.ones_like().unwrap();
        for got in results(|| kernels::attention(&q, &k, &v, 1.0)) {
            assert!(values(&got).iter().all(|v| v.is_nan()));
        }
    }
}

#[test]
fn attention_by_place_is_attention_of_every_place() {
    // Up to two vectors of frames, and more; whole and partial groups of places.
    for (batch, tokens, places, heads, dim) in [
        (1, 1, 1, 1, 1),
        (2, 5, 3, 2, 7),
        (1, 8, 9, 1, 16),
        (1, 16, 70, 8, 40),
        (2, 17, 13, 3, 33),
        (1, 24, 5, 2, 160),
        (1, 32, 4, 8, 80),
        (1, 33, 3, 2, 40),
    ] {
        let shape = [batch, tokens, places, heads, dim];
        let (q, k, v) = (random(&shape, 51), random(&shape, 52), random(&shape, 53));
        let places_first = |x: &Tensor| {
            x.transpose(1, 2).unwrap().reshape((batch * places, tokens, heads, dim)).unwrap()
        };
        let [a, b, c] = [&q, &k, &v].map(places_first);
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 4e-3)] {
            let [q, k, v] = [&q, &k, &v].map(|x| x.to_dtype(dtype).unwrap());
            let [a, b, c] = [&a, &b, &c].map(|x| x.to_dtype(dtype).unwrap());
            let [a, b, c] = [a, b, c].map(|x| x.to_dtype(DType::F32).unwrap());
            let want = reference::attention(&a, &b, &c, 0.3).unwrap();
            for got in results(|| kernels::temporal_attention(&q, &k, &v, 0.3)) {
                assert!(got.is_contiguous());
                assert_relative(&places_first(&got), &want, tolerance);
            }
        }
        // Heads that do not lie side by side.
        let wide = random(&[batch, tokens, places, heads, 2 * dim], 51);
        let q = wide.narrow(4, 0, dim).unwrap();
        let want = reference::attention(&places_first(&q), &b, &c, 0.3).unwrap();
        for got in results(|| kernels::temporal_attention(&q, &k, &v, 0.3)) {
            assert_relative(&places_first(&got), &want, 1e-6);
        }
        let got = kernels::temporal_attention(&q, &k, &random(&[1, 2, 3, 4, 5], 1), 0.3);
        assert!(got.is_err());
    }
}

#[test]
fn attention_in_half_precision_is_rounded_no_more_than_it_must_be() {
    for (shape, dtype) in [
        ([2, 33, 3, 24], DType::BF16),
        ([2, 33, 3, 24], DType::F16),
        ([3, 16, 2, 40], DType::BF16),
        ([3, 16, 2, 40], DType::F16),
    ] {
        let half = |seed| random(&shape, seed).to_dtype(dtype).unwrap();
        let (q, k, v) = (half(54), half(55), half(56));
        let full = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
        let want = reference::attention(&full(&q), &full(&k), &full(&v), 0.2).unwrap();
        for isa in Isa::ALL {
            let Some(got) = isa.force(|| kernels::attention(&q, &k, &v, 0.2).unwrap()) else {
                continue;
            };
            let rounding = match dtype {
                // Where bf16 is multiplied as it is, the weights are rounded, too.
                DType::BF16 if matches!(isa, Isa::Avx512Bf16 | Isa::Amx) => 2.5e-3,
                DType::BF16 => 2e-3,
                _ => 3e-4,
            };
            assert_eq!(got.dtype(), dtype);
            assert_relative(&got, &want, rounding);
        }
    }
}

#[test]
fn attention_of_mismatched_shapes_is_an_error() {
    let x = random(&[1, 4, 2, 3], 1);
    let y = random(&[1, 4, 3, 3], 1);
    assert!(kernels::attention(&x, &y, &y, 1.0).is_err());
    assert!(kernels::attention(&x, &x, &y, 1.0).is_err());
}
