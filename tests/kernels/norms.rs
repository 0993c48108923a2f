//! Norms and gates against their plain references.

use animatelcm::kernels::layout::is_channels_last;
use animatelcm::kernels::{self, GroupNormOptions, Positions, reference};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_close, assert_relative};
use crate::support::isa::results;
use crate::support::random::random;

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
                let want = reference::group_norm(&x, &weight, &bias, &options).unwrap();
                for got in results(|| kernels::group_norm(&x, &weight, &bias, &options)) {
                    assert!(is_channels_last(&got));
                    assert_close(&got, &want, 2e-5);
                }
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
    let all = results(|| kernels::group_norm(&x, &one, &zero, &options));
    let x = x.to_dtype(DType::F64).unwrap().reshape((2, 2 * 64 * 64)).unwrap();
    let centered = x.broadcast_sub(&x.mean_keepdim(1).unwrap()).unwrap();
    let variance = centered.sqr().unwrap().mean_keepdim(1).unwrap();
    let want = centered.broadcast_div(&(variance + 1e-6).unwrap().sqrt().unwrap()).unwrap();
    for got in all {
        assert_close(&got, &want.reshape((1, 4, 64, 64)).unwrap(), 1e-4);
    }
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
        for got in results(|| kernels::geglu(&x)) {
            assert_relative(&got, &reference::geglu(&x).unwrap(), 1e-6);
        }
    }
    assert!(kernels::geglu(&random(&[2, 3], 1)).is_err());
}

#[test]
fn layer_norm_equals_its_reference() {
    for (rows, width, count, run) in
        [(1, 1, 1, 1), (12, 5, 3, 2), (30, 320, 5, 3), (64, 1280, 8, 8)]
    {
        let x = ((random(&[rows, width], 61) * 3.0).unwrap() + 5.0).unwrap();
        let (weight, bias) = (random(&[width], 62), random(&[width], 63));
        let table = random(&[count, width], 64);
        for positions in [None, Some(Positions { table: &table, run })] {
            let norm = || kernels::layer_norm(&x, &weight, &bias, 1e-5, positions.as_ref());
            let want = reference::layer_norm(&x, &weight, &bias, 1e-5, positions.as_ref()).unwrap();
            for got in results(norm) {
                assert_close(&got, &want, 1e-5);
            }
        }
        for (rows, run) in [(rows + 1, rows + 2), (rows, 0)] {
            let x = random(&[rows, width], 65);
            let positions = Some(Positions { table: &table, run });
            assert!(kernels::layer_norm(&x, &weight, &bias, 1e-5, positions.as_ref()).is_err());
        }
    }
    let x = random(&[2, 3], 66);
    assert!(kernels::layer_norm(&x, &random(&[2], 1), &random(&[3], 1), 1e-5, None).is_err());
}

#[test]
fn layer_and_group_norm_in_half_precision_are_rounded_once() {
    let x = ((random(&[2, 24, 5, 3], 67) * 2.0).unwrap() + 1.0).unwrap();
    let (weight, bias) = (random(&[24], 68), random(&[24], 69));
    let options = GroupNormOptions { groups: 4, eps: 1e-5, frames: 1, silu: true };
    for dtype in [DType::BF16, DType::F16] {
        let half = x.to_dtype(dtype).unwrap();
        let full = half.to_dtype(DType::F32).unwrap();
        let rounding = if dtype == DType::BF16 { 4e-3 } else { 5e-4 };
        let want = reference::group_norm(&full, &weight, &bias, &options).unwrap();
        for got in results(|| kernels::group_norm(&half, &weight, &bias, &options)) {
            assert_eq!(got.dtype(), dtype);
            assert_relative(&got, &want, rounding);
        }
        let (rows, full) =
            (half.permute((0, 2, 3, 1)).unwrap(), full.permute((0, 2, 3, 1)).unwrap());
        let want = reference::layer_norm(&full, &weight, &bias, 1e-5, None).unwrap();
        for got in results(|| kernels::layer_norm(&rows, &weight, &bias, 1e-5, None)) {
            assert_eq!(got.dtype(), dtype);
            assert_relative(&got, &want, rounding);
        }
    }
}
