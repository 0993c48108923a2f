//! Every fast kernel against its plain reference, over odd shapes, strides and values.

use animatelcm::kernels::{self, GroupNormOptions, reference};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_close, assert_relative};
use crate::support::random::random;

#[test]
fn attention_equals_its_reference() {
    for (batch, queries, keys, heads, dim) in [
        (1, 1, 1, 1, 1),
        (2, 5, 3, 3, 7),
        (3, 16, 16, 8, 40),
        (1, 130, 77, 2, 80),
        (2, 64, 65, 1, 160),
        (5, 63, 200, 4, 4),
    ] {
        let q = random(&[batch, queries, heads, dim], 1);
        let k = random(&[batch, keys, heads, dim], 2);
        let v = random(&[batch, keys, heads, dim], 3);
        let scale = 1.0 / (dim as f64).sqrt();
        let got = kernels::attention(&q, &k, &v, scale).unwrap();
        assert_relative(&got, &reference::attention(&q, &k, &v, scale).unwrap(), 2e-6);
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
}

#[test]
fn attention_survives_large_scores_and_passes_nan_on() {
    let q = (random(&[1, 3, 1, 4], 7) * 1e4).unwrap();
    let v = random(&[1, 5, 1, 4], 8);
    let k = (random(&[1, 5, 1, 4], 9) * 1e4).unwrap();
    let got = kernels::attention(&q, &k, &v, 1.0).unwrap();
    assert_relative(&got, &reference::attention(&q, &k, &v, 1.0).unwrap(), 1e-6);
    let k = Tensor::full(f32::NAN, (1, 5, 1, 4), &Device::Cpu).unwrap();
    let got = kernels::attention(&q, &k, &v, 1.0).unwrap();
    assert!(got.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|v| v.is_nan()));
}

#[test]
fn attention_of_mismatched_shapes_is_an_error() {
    let x = random(&[1, 4, 2, 3], 1);
    let y = random(&[1, 4, 3, 3], 1);
    assert!(kernels::attention(&x, &y, &y, 1.0).is_err());
    assert!(kernels::attention(&x, &x, &y, 1.0).is_err());
}

#[test]
fn group_norm_equals_its_reference() {
    for (clips, frames, channels, groups, height, width) in [
        (1, 1, 4, 4, 1, 1),
        (2, 3, 6, 2, 5, 7),
        (1, 4, 32, 32, 3, 3),
        (3, 2, 20, 5, 16, 9),
        (1, 1, 8, 1, 33, 65),
    ] {
        let x = random(&[clips * frames, channels, height, width], 11);
        let x = ((x * 3.0).unwrap() + 5.0).unwrap();
        let weight = random(&[channels], 12);
        let bias = random(&[channels], 13);
        for pooled in [1, frames] {
            for silu in [false, true] {
                let options = GroupNormOptions { groups, eps: 1e-5, frames: pooled, silu };
                let got = kernels::group_norm(&x, &weight, &bias, &options).unwrap();
                let want = reference::group_norm(&x, &weight, &bias, &options).unwrap();
                assert_close(&got, &want, 2e-5);
                let strided = x.transpose(2, 3).unwrap();
                let got = kernels::group_norm(&strided, &weight, &bias, &options).unwrap();
                assert_close(&got, &want.transpose(2, 3).unwrap().contiguous().unwrap(), 2e-5);
            }
        }
    }
}

#[test]
fn group_norm_keeps_its_precision_far_from_zero() {
    let x = (random(&[1, 4, 64, 64], 14) + 1000.0).unwrap();
    let options = GroupNormOptions { groups: 2, eps: 1e-6, frames: 1, silu: false };
    let (one, zero) = (
        Tensor::ones(4, DType::F32, &Device::Cpu).unwrap(),
        Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(),
    );
    let got = kernels::group_norm(&x, &one, &zero, &options).unwrap();
    let x = x.to_dtype(DType::F64).unwrap().reshape((2, 2 * 64 * 64)).unwrap();
    let centered = x.broadcast_sub(&x.mean_keepdim(1).unwrap()).unwrap();
    let variance = centered.sqr().unwrap().mean_keepdim(1).unwrap();
    let want = centered.broadcast_div(&(variance + 1e-6).unwrap().sqrt().unwrap()).unwrap();
    assert_close(&got, &want.reshape((1, 4, 64, 64)).unwrap(), 1e-3);
}

#[test]
fn group_norm_that_does_not_divide_is_an_error() {
    let x = random(&[3, 6, 2, 2], 1);
    let w = random(&[6], 1);
    for (groups, frames) in [(4, 1), (0, 1), (2, 2), (2, 0)] {
        let options = GroupNormOptions { groups, eps: 1e-5, frames, silu: false };
        assert!(kernels::group_norm(&x, &w, &w, &options).is_err(), "{groups} {frames}");
    }
}

#[test]
fn geglu_equals_its_reference() {
    for shape in [&[1, 2][..], &[3, 5, 14], &[2, 3, 4, 34]] {
        let x = (random(shape, 21) * 3.0).unwrap();
        let got = kernels::geglu(&x).unwrap();
        assert_relative(&got, &reference::geglu(&x).unwrap(), 1e-6);
    }
    assert!(kernels::geglu(&random(&[2, 3], 1)).is_err());
}

#[test]
fn convolution_in_half_precision_is_that_of_f32_rounded() {
    let x = random(&[2, 5, 7, 6], 31);
    let weight = random(&[3, 5, 3, 3], 32);
    let bias = random(&[3], 33);
    for dtype in [DType::F16, DType::BF16] {
        let half = |t: &Tensor| t.to_dtype(dtype).unwrap();
        let got = kernels::conv2d(&half(&x), &half(&weight), Some(&half(&bias)), 1, 1).unwrap();
        assert_eq!(got.dtype(), dtype);
        let full = |t: &Tensor| half(t).to_dtype(DType::F32).unwrap();
        let want = kernels::conv2d(&full(&x), &full(&weight), Some(&full(&bias)), 1, 1).unwrap();
        assert_close(
            &got.to_dtype(DType::F32).unwrap(),
            &half(&want).to_dtype(DType::F32).unwrap(),
            0.0,
        );
    }
}

#[test]
fn convolution_equals_its_reference() {
    for (batch, inputs, outputs, height, width, kernel) in [
        (1, 1, 1, 1, 1, 1),
        (2, 3, 5, 7, 6, 3),
        (1, 4, 2, 3, 40, 3),
        (3, 17, 9, 33, 31, 3),
        (1, 300, 4, 20, 20, 3),
        (2, 8, 6, 5, 9, 1),
        (1, 2, 3, 6, 6, 5),
    ] {
        let x = random(&[batch, inputs, height, width], 41);
        let weight = random(&[outputs, inputs, kernel, kernel], 42);
        let bias = random(&[outputs], 43);
        for padding in [0, 1, kernel / 2, kernel] {
            if height.min(width) + 2 * padding < kernel {
                assert!(kernels::conv2d(&x, &weight, None, padding, 1).is_err());
                continue;
            }
            for stride in [1, 2, 3] {
                for bias in [None, Some(&bias)] {
                    let got = kernels::conv2d(&x, &weight, bias, padding, stride).unwrap();
                    let want = reference::conv2d(&x, &weight, bias, padding, stride).unwrap();
                    assert_relative(&got, &want, 1e-6);
                }
            }
        }
        let turned = x.transpose(2, 3).unwrap();
        let got = kernels::conv2d(&turned, &weight, None, kernel / 2, 1).unwrap();
        let turned = turned.contiguous().unwrap();
        let want = reference::conv2d(&turned, &weight, None, kernel / 2, 1).unwrap();
        assert_relative(&got, &want, 1e-6);
    }
    let x = random(&[1, 2, 4, 4], 44);
    assert!(kernels::conv2d(&x, &random(&[1, 3, 3, 3], 45), None, 1, 1).is_err());
}

#[test]
fn convolution_passes_nan_on() {
    let x = Tensor::full(f32::NAN, (1, 2, 4, 4), &Device::Cpu).unwrap();
    let got = kernels::conv2d(&x, &random(&[3, 2, 3, 3], 46), None, 1, 1).unwrap();
    assert!(got.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|v| v.is_nan()));
}
