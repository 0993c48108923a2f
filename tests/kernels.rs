//! Every fast kernel against its plain reference, over odd shapes, strides and values, on every set of instructions
//! that this processor has.

use animatelcm::device::Quantize;
use animatelcm::kernels::cpu::isa::Isa;
use animatelcm::kernels::layout::is_channels_last;
use animatelcm::kernels::{
    self, Activation, ConvArgs, GroupNormOptions, Positions, Weights, reference,
};
use candle_core::{DType, Device, Tensor, Var};

use crate::support::close::{assert_close, assert_relative, relative_l2};
use crate::support::isa::results;
use crate::support::random::random;

/// Runs `check` once for every set of instructions that is there; the portable one always is.
fn everywhere(check: impl Fn()) {
    let ran = Isa::ALL.iter().filter_map(|isa| isa.force(&check)).count();
    assert!(ran > 0);
}

fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

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

#[test]
fn linear_layers_equal_their_reference() {
    for (rows, inputs, outputs) in [
        (1, 1, 2),
        (5, 7, 6),
        (6, 64, 64),
        (13, 96, 130),
        (400, 33, 16),
        (3, 1100, 66),
        (2, 4200, 34),
    ] {
        let x = random(&[rows, inputs], 71);
        let (weight, bias) = (random(&[outputs, inputs], 72), random(&[outputs], 73));
        let plain = x.matmul(&weight.t().unwrap()).unwrap();
        for bias in [None, Some(&bias)] {
            let want = bias.map_or(plain.clone(), |bias| plain.broadcast_add(bias).unwrap());
            let weights = Weights::new(&weight, bias).unwrap();
            let residual = random(&[rows, outputs], 74);
            for got in results(|| kernels::linear(&x, &weights, None)) {
                assert_relative(&got, &want, 1e-6);
            }
            for got in results(|| kernels::linear(&x, &weights, Some(&residual))) {
                assert_relative(&got, &(&want + &residual).unwrap(), 1e-6);
            }
            let gated = Weights::gated(&weight, bias, Quantize::None).unwrap();
            for got in results(|| kernels::linear(&x, &gated, None)) {
                assert_relative(&got, &reference::geglu(&want).unwrap(), 2e-6);
            }
        }
        let weights = Weights::new(&weight, None).unwrap();
        assert!(kernels::linear(&random(&[rows, inputs + 1], 75), &weights, None).is_err());
        assert!(kernels::linear(&x, &weights, Some(&random(&[rows, outputs + 1], 76))).is_err());
    }
    assert!(Weights::gated(&random(&[3, 2], 1), None, Quantize::None).is_err());
    assert!(Weights::new(&random(&[3, 2], 1), Some(&random(&[2], 1))).is_err());
    assert!(Weights::new(&random(&[3, 2, 3, 1], 1), None).is_err());
}

#[test]
fn convolution_equals_its_reference() {
    for (batch, inputs, outputs, height, width, kernel) in [
        (1, 1, 1, 1, 1, 1),
        (2, 3, 5, 7, 6, 3),
        (1, 4, 2, 3, 40, 3),
        (3, 17, 9, 33, 31, 3),
        (1, 300, 4, 20, 20, 3),
        (1, 120, 70, 9, 8, 3),
        (1, 1030, 3, 4, 5, 3),
        (2, 8, 6, 5, 9, 1),
        (1, 2, 3, 6, 6, 5),
    ] {
        let x = random(&[batch, inputs, height, width], 41);
        let weight = random(&[outputs, inputs, kernel, kernel], 42);
        let bias = random(&[outputs], 43);
        for padding in [(0, 0), (1, 1), (0, 1), (kernel, kernel / 2)] {
            let weights = Weights::new(&weight, None).unwrap();
            if height.min(width) + padding.0 + padding.1 < kernel {
                let args = ConvArgs { padding, ..ConvArgs::default() };
                assert!(kernels::conv2d(&x, &weights, &args).is_err());
                continue;
            }
            for stride in [1, 2, 3] {
                for bias in [None, Some(&bias)] {
                    let weights = Weights::new(&weight, bias).unwrap();
                    let args = ConvArgs { padding, stride, ..ConvArgs::default() };
                    let want = reference::conv2d(&x, &weight, bias, &args).unwrap();
                    for got in results(|| kernels::conv2d(&x, &weights, &args)) {
                        assert!(is_channels_last(&got));
                        assert_relative(&got, &want, 1e-6);
                    }
                }
            }
        }
        let args = ConvArgs { padding: (kernel / 2, kernel / 2), ..ConvArgs::default() };
        let weights = Weights::new(&weight, None).unwrap();
        let turned = x.transpose(2, 3).unwrap();
        let want = reference::conv2d(&turned, &weight, None, &args).unwrap();
        assert_relative(&kernels::conv2d(&turned, &weights, &args).unwrap(), &want, 1e-6);
    }
    let x = random(&[1, 2, 4, 4], 44);
    let weights = Weights::new(&random(&[1, 3, 3, 3], 45), None).unwrap();
    assert!(kernels::conv2d(&x, &weights, &ConvArgs::default()).is_err());
    let weights = Weights::new(&random(&[1, 2, 3, 3], 45), None).unwrap();
    let stuck = ConvArgs { stride: 0, ..ConvArgs::default() };
    assert!(kernels::conv2d(&x, &weights, &stuck).is_err());
}

#[test]
fn what_follows_a_convolution_equals_its_reference() {
    let x = random(&[2, 6, 5, 7], 81);
    let (weight, bias, shift) = (random(&[9, 6, 3, 3], 82), random(&[9], 83), random(&[9], 84));
    let weights = Weights::new(&weight, Some(&bias)).unwrap();
    for stretch in [None, Some((10, 14)), Some((9, 13)), Some((5, 8))] {
        let (height, width) = stretch.unwrap_or((5, 7));
        let residual = random(&[2, 9, height, width], 85);
        for activation in [Activation::None, Activation::Silu, Activation::Relu] {
            for (shift, residual) in [(None, None), (Some(&shift), None), (None, Some(&residual))] {
                let padding = (1, 1);
                let args = ConvArgs {
                    padding,
                    stretch,
                    shift,
                    activation,
                    residual,
                    ..ConvArgs::default()
                };
                let want = reference::conv2d(&x, &weight, Some(&bias), &args).unwrap();
                for got in results(|| kernels::conv2d(&x, &weights, &args)) {
                    assert_relative(&got, &want, 1e-6);
                }
            }
        }
    }
    let wrong = random(&[2, 9, 5, 6], 86);
    let args = ConvArgs { padding: (1, 1), residual: Some(&wrong), ..ConvArgs::default() };
    assert!(kernels::conv2d(&x, &weights, &args).is_err());
    let args = ConvArgs { padding: (1, 1), shift: Some(&random(&[8], 1)), ..ConvArgs::default() };
    assert!(kernels::conv2d(&x, &weights, &args).is_err());
}

#[test]
fn products_in_half_precision_are_those_of_f32_rounded() {
    // Odd and even numbers of channels: the latter are multiplied in pairs.
    for inputs in [5, 6, 40] {
        let x = random(&[2, inputs, 7, 6], 31);
        let (weight, bias) = (random(&[20, inputs, 3, 3], 32), random(&[20], 33));
        let residual = random(&[2, 20, 7, 6], 34);
        for (dtype, rounding) in [(DType::F16, 3e-4), (DType::BF16, 2.5e-3)] {
            let half = |t: &Tensor| t.to_dtype(dtype).unwrap();
            let full = |t: &Tensor| half(t).to_dtype(DType::F32).unwrap();
            let weights = Weights::new(&half(&weight), Some(&half(&bias))).unwrap();
            let (r, r32) = (half(&residual), full(&residual));
            let args = |residual| ConvArgs { padding: (1, 1), residual, ..ConvArgs::default() };
            let want =
                reference::conv2d(&full(&x), &full(&weight), Some(&full(&bias)), &args(Some(&r32)));
            for got in results(|| kernels::conv2d(&half(&x), &weights, &args(Some(&r)))) {
                assert_eq!(got.dtype(), dtype);
                assert_relative(&got, want.as_ref().unwrap(), rounding);
            }
            let rows = random(&[11, inputs], 35);
            let matrix = random(&[34, inputs], 36);
            let want = full(&rows).matmul(&full(&matrix).t().unwrap()).unwrap();
            let gated = Weights::gated(&half(&matrix), None, Quantize::None).unwrap();
            for got in results(|| kernels::linear(&half(&rows), &gated, None)) {
                assert_relative(&got, &reference::geglu(&want).unwrap(), rounding);
            }
        }
    }
}

#[test]
fn products_of_many_channels_in_half_precision_are_those_of_f32_rounded() {
    // Whole steps of a matrix unit, with tails of rows and columns; in one block and in several.
    let half = |t: &Tensor| t.to_dtype(DType::BF16).unwrap();
    let full = |t: &Tensor| half(t).to_dtype(DType::F32).unwrap();
    for (rows, inputs, outputs) in
        [(1, 32, 16), (31, 64, 34), (33, 96, 130), (70, 3200, 48), (600, 64, 330), (513, 32, 66)]
    {
        let x = random(&[rows, inputs], 21);
        let (weight, bias) = (random(&[outputs, inputs], 22), random(&[outputs], 23));
        let residual = random(&[rows, outputs], 24);
        let want = full(&x).matmul(&full(&weight).t().unwrap()).unwrap();
        let want = want.broadcast_add(&full(&bias)).unwrap();
        let weights = Weights::new(&half(&weight), Some(&half(&bias))).unwrap();
        let gated = Weights::gated(&half(&weight), Some(&half(&bias)), Quantize::None).unwrap();
        for got in results(|| kernels::linear(&half(&x), &weights, Some(&half(&residual)))) {
            assert_relative(&got, &(&want + full(&residual)).unwrap(), 2.5e-3);
        }
        for got in results(|| kernels::linear(&half(&x), &gated, None)) {
            assert_relative(&got, &reference::geglu(&want).unwrap(), 2.5e-3);
        }
    }
    for (inputs, outputs, height, width, stretch, stride, padding) in [
        (32, 20, 7, 6, None, 1, (1, 1)),
        (32, 20, 1, 9, None, 1, (1, 1)),
        (96, 66, 9, 17, None, 2, (0, 1)),
        (64, 40, 33, 34, None, 1, (1, 1)),
        (160, 130, 5, 7, Some((10, 14)), 1, (1, 1)),
        (1600, 34, 5, 4, None, 1, (1, 1)),
        (32, 16, 40, 40, None, 3, (2, 0)),
    ] {
        let x = random(&[2, inputs, height, width], 25);
        let (weight, bias) = (random(&[outputs, inputs, 3, 3], 26), random(&[outputs], 27));
        let weights = Weights::new(&half(&weight), Some(&half(&bias))).unwrap();
        let args = ConvArgs { padding, stride, stretch, ..ConvArgs::default() };
        let want = reference::conv2d(&full(&x), &full(&weight), Some(&full(&bias)), &args).unwrap();
        for got in results(|| kernels::conv2d(&half(&x), &weights, &args)) {
            assert_relative(&got, &want, 2.5e-3);
        }
        // What is no number, or infinite, stays with those that look at it, or in a transform's tile.
        let transformed = inputs >= 128;
        let mut broken = values(&x);
        broken[inputs * height * width] = f32::NAN;
        *broken.last_mut().unwrap() = f32::INFINITY;
        let broken = Tensor::from_vec(broken, x.dims(), &Device::Cpu).unwrap();
        let want =
            reference::conv2d(&full(&broken), &full(&weight), Some(&full(&bias)), &args).unwrap();
        for got in results(|| kernels::conv2d(&half(&broken), &weights, &args)) {
            let pairs = values(&got).into_iter().zip(values(&want));
            assert!(pairs.clone().any(|(_, want)| !want.is_finite()));
            for (got, want) in pairs {
                let same = got.is_finite() == want.is_finite();
                assert!(same || transformed && !got.is_finite(), "{got} where {want} is due");
            }
        }
    }
}

/// What is left of a weight when every output has whole numbers up to 127 and a scale.
fn rounded(weight: &Tensor) -> Tensor {
    let inner = weight.elem_count() / weight.dim(0).unwrap();
    let mut numbers = values(weight);
    for row in numbers.chunks_exact_mut(inner) {
        let scale = row.iter().fold(0f32, |most, v| most.max(v.abs())) / 127.0;
        for v in row {
            *v = (*v / scale).round_ties_even() * scale;
        }
    }
    Tensor::from_vec(numbers, weight.dims(), &Device::Cpu).unwrap()
}

#[test]
fn products_with_int8_weights_are_those_of_the_rounded_weights() {
    let int8 = |weight: &Tensor, bias: Option<&Tensor>| {
        Weights::quantized(weight, bias, Quantize::Int8).unwrap()
    };
    // Multiplied out and transformed; whole and partial panels and blocks of channels.
    for (inputs, outputs, size, stride) in
        [(32, 32, (5, 7), 1), (34, 130, (9, 4), 2), (300, 70, (6, 6), 1), (160, 96, (24, 20), 1)]
    {
        let x = random(&[2, inputs, size.0, size.1], 121);
        let weight = random(&[outputs, inputs, 3, 3], 122);
        let bias = random(&[outputs], 123);
        let args = ConvArgs {
            padding: (1, 1),
            stride,
            activation: Activation::Silu,
            ..ConvArgs::default()
        };
        let want = reference::conv2d(&x, &rounded(&weight), Some(&bias), &args).unwrap();
        let weights = int8(&weight, Some(&bias));
        for got in results(|| kernels::conv2d(&x, &weights, &args)) {
            assert_relative(&got, &want, 2e-6);
        }
        let half = x.to_dtype(DType::BF16).unwrap();
        let full = half.to_dtype(DType::F32).unwrap();
        let want = reference::conv2d(&full, &rounded(&weight), Some(&bias), &args).unwrap();
        for got in results(|| kernels::conv2d(&half, &weights, &args)) {
            assert_eq!(got.dtype(), DType::BF16);
            assert_relative(&got, &want, 2.5e-3);
        }
        let plain = reference::conv2d(&x, &weight, Some(&bias), &args).unwrap();
        let error = relative_l2(&kernels::conv2d(&x, &weights, &args).unwrap(), &plain);
        // Of equally distributed numbers: half a step of 127, by the square root of three, of their deviation.
        assert!((1e-3..8e-3).contains(&error), "{error:e}");
    }
    for (rows, inputs, outputs) in [(1, 32, 34), (13, 96, 130), (3, 1100, 66), (2, 4200, 34)] {
        let x = random(&[rows, inputs], 124);
        let (weight, bias) = (random(&[outputs, inputs], 125), random(&[outputs], 126));
        let residual = random(&[rows, outputs], 127);
        let want = reference::linear(&x, &rounded(&weight), Some(&bias)).unwrap();
        let weights = int8(&weight, Some(&bias));
        for got in results(|| kernels::linear(&x, &weights, Some(&residual))) {
            assert_relative(&got, &(&want + &residual).unwrap(), 1e-6);
        }
        let gated = Weights::gated(&weight, Some(&bias), Quantize::Int8).unwrap();
        for got in results(|| kernels::linear(&x, &gated, None)) {
            assert_relative(&got, &reference::geglu(&want).unwrap(), 2e-6);
        }
        // What is trained in place of them starts from the rounded weights.
        let tracked = Var::from_tensor(&x).unwrap();
        let got = kernels::linear(tracked.as_tensor(), &gated, None).unwrap();
        assert_relative(&got.detach(), &reference::geglu(&want).unwrap(), 2e-6);
    }
}

/// Rows of whole numbers from 0 to 255 with both ends, by a step and from a start that round nothing.
fn whole_rows(rows: usize, inputs: usize) -> Tensor {
    let numbers = values(&random(&[rows, inputs], 141));
    let numbers = numbers.chunks_exact(inputs).enumerate().flat_map(|(row, numbers)| {
        let step = [0.25, 0.5, 2.0][row % 3];
        let mut whole: Vec<f32> =
            numbers.iter().map(|v| (v.abs() * 90.0).round().min(255.0)).collect();
        (whole[0], whole[inputs - 1]) = (255.0, 0.0);
        whole.into_iter().map(move |v| v * step - 40.0)
    });
    Tensor::from_vec(numbers.collect::<Vec<f32>>(), (rows, inputs), &Device::Cpu).unwrap()
}

#[test]
fn products_of_rounded_rows_are_exact_where_rounding_changes_nothing() {
    let w8a8 = |weight: &Tensor, bias: Option<&Tensor>| {
        Weights::quantized(weight, bias, Quantize::W8A8).unwrap()
    };
    // One and several panels and blocks of the inner dimension, tails of rows and columns.
    for (rows, inputs, outputs) in
        [(1, 32, 34), (13, 100, 130), (67, 36, 64), (3, 9000, 66), (67, 64, 34), (600, 6400, 50)]
    {
        let x = whole_rows(rows, inputs);
        let (weight, bias) = (random(&[outputs, inputs], 142), random(&[outputs], 143));
        let residual = random(&[rows, outputs], 144);
        let want = reference::linear(&x, &rounded(&weight), Some(&bias)).unwrap();
        let weights = w8a8(&weight, Some(&bias));
        for got in results(|| kernels::linear(&x, &weights, Some(&residual))) {
            assert_relative(&got, &(&want + &residual).unwrap(), 2e-6);
        }
        let gated = Weights::gated(&weight, Some(&bias), Quantize::W8A8).unwrap();
        for got in results(|| kernels::linear(&x, &gated, None)) {
            assert_relative(&got, &reference::geglu(&want).unwrap(), 2e-6);
        }
        // All that these rows have is exact in bf16 and f16, too, as far as it is small.
        for dtype in [DType::BF16, DType::F16] {
            let x = (&x + 40.0).unwrap().affine(1.0 / 8.0, 0.0).unwrap();
            let want = reference::linear(&x, &rounded(&weight), Some(&bias)).unwrap();
            let (x, residual) = (x.to_dtype(dtype).unwrap(), residual.to_dtype(dtype).unwrap());
            let full = residual.to_dtype(DType::F32).unwrap();
            for got in results(|| kernels::linear(&x, &weights, Some(&residual))) {
                assert_eq!(got.dtype(), dtype);
                assert_relative(&got, &(&want + &full).unwrap(), 2.5e-3);
            }
        }
        // What is trained in place of them starts from the rounded weights, with rows as they are.
        let tracked = Var::from_tensor(&x).unwrap();
        let got = kernels::linear(tracked.as_tensor(), &weights, None).unwrap();
        assert_relative(&got.detach(), &want, 2e-6);
    }
    // A convolution that looks at one pixel is a linear layer, unless it leaves some out, which then are not rounded.
    let x = whole_rows(2 * 5 * 7, 48).reshape((2, 5, 7, 48)).unwrap();
    let x = x.permute((0, 3, 1, 2)).unwrap();
    let weight = random(&[40, 48, 1, 1], 145);
    for stride in [1, 2] {
        let args = ConvArgs { stride, ..ConvArgs::default() };
        let want = reference::conv2d(&x, &rounded(&weight), None, &args).unwrap();
        for got in results(|| kernels::conv2d(&x, &w8a8(&weight, None), &args)) {
            assert_relative(&got, &want, 2e-6);
        }
    }
    // One that looks at more has rounded weights only, and so has one of channels that are not whole groups.
    for (inputs, kernel) in [(48, 3), (50, 1)] {
        let weight = random(&[40, inputs, kernel, kernel], 146);
        let x = random(&[1, inputs, 6, 5], 147);
        let int8 = Weights::quantized(&weight, None, Quantize::Int8).unwrap();
        let args = ConvArgs::default();
        let run = |weights| values(&kernels::conv2d(&x, weights, &args).unwrap());
        assert_eq!(run(&w8a8(&weight, None)), run(&int8));
    }
}

#[test]
fn rounding_rows_costs_what_steps_of_their_range_must() {
    for rows in [1, 40] {
        let x = random(&[rows, 640], 151);
        let weight = random(&[200, 640], 152);
        let want = reference::linear(&x, &rounded(&weight), None).unwrap();
        let weights = Weights::quantized(&weight, None, Quantize::W8A8).unwrap();
        let half = x.to_dtype(DType::BF16).unwrap();
        let rounded_once = half.to_dtype(DType::F32).unwrap();
        let half_want = reference::linear(&rounded_once, &rounded(&weight), None).unwrap();
        for (x, want) in [(&x, &want), (&half, &half_want)] {
            let all = results(|| kernels::linear(x, &weights, None));
            for got in &all {
                // A 255th of a row's range, evenly within half of it to both sides, by the deviation of its values.
                let range: Vec<f64> = values(x)
                    .chunks_exact(640)
                    .map(|row| {
                        let most = row.iter().copied().fold(f32::MIN, f32::max);
                        let least = row.iter().copied().fold(f32::MAX, f32::min);
                        f64::from(most - least)
                    })
                    .collect();
                let step = (range.iter().map(|r| r * r).sum::<f64>() / rows as f64).sqrt() / 255.0;
                let power = values(x).iter().map(|v| f64::from(v * v)).sum::<f64>();
                let size = (power / (rows * 640) as f64).sqrt();
                let expected = step / 12f64.sqrt() / size;
                let error = relative_l2(got, want);
                assert!(error > expected / 1.3 && error < expected * 1.3, "{error:e} {expected:e}");
            }
            // All instructions round alike.
            for got in &all[1..] {
                assert_relative(got, &all[0], if x.dtype() == DType::F32 { 1e-6 } else { 2.5e-3 });
            }
        }
    }
}

#[test]
fn rounded_rows_pass_on_what_is_not_finite_and_keep_what_is_constant() {
    let (inputs, outputs) = (52, 32);
    let weight = random(&[outputs, inputs], 161);
    let weights = Weights::quantized(&weight, None, Quantize::W8A8).unwrap();
    let mut numbers = values(&random(&[8, inputs], 162));
    let rows: Vec<&mut [f32]> = numbers.chunks_exact_mut(inputs).collect();
    for (i, row) in rows.into_iter().enumerate() {
        match i {
            0 => row.fill(0.0),
            1 => row.fill(-3.5),
            // In whole vectors and behind them.
            2 => row[5] = f32::NAN,
            3 => row[51] = f32::NAN,
            4 => row[17] = f32::INFINITY,
            5 => row[50] = f32::NEG_INFINITY,
            6 => row.iter_mut().for_each(|v| *v *= 1e-42),
            _ => {}
        }
    }
    let x = Tensor::from_vec(numbers, (8, inputs), &Device::Cpu).unwrap();
    let want = values(&reference::linear(&x, &rounded(&weight), None).unwrap());
    everywhere(|| {
        let got = values(&kernels::linear(&x, &weights, None).unwrap());
        for (i, (got, want)) in
            got.chunks_exact(outputs).zip(want.chunks_exact(outputs)).enumerate()
        {
            for (got, want) in got.iter().zip(want) {
                match i {
                    0 => assert_eq!(*got, 0.0),
                    1 => assert!((got - want).abs() < 1e-4),
                    2..=5 => assert!(got.is_nan()),
                    6 => assert!(got.abs() < 1e-37),
                    _ => assert!((got - want).abs() < 0.3),
                }
            }
        }
    });
}

#[test]
fn small_layers_keep_their_weights_and_odd_weights_their_meaning() {
    let x = random(&[3, 40], 131);
    // Beside too few outputs, too few inputs, and an odd number of them.
    for shape in [[31, 40], [40, 31], [64, 33]] {
        let (x, weight) = (random(&[3, shape[1]], 132), random(&shape, 133));
        let weights = Weights::quantized(&weight, None, Quantize::Int8).unwrap();
        let plain = Weights::new(&weight, None).unwrap();
        let run = |weights| values(&kernels::linear(&x, weights, None).unwrap());
        assert_eq!(run(&weights), run(&plain), "{shape:?}");
        assert_eq!(Quantize::Int8.bytes(&shape, DType::BF16), 2 * (shape[0] * shape[1]) as u64);
    }
    assert_eq!(Quantize::Int8.bytes(&[64, 40, 3, 3], DType::F32), 64 * 40 * 9 + 64 * 4);
    assert_eq!(Quantize::None.bytes(&[64, 40, 3, 3], DType::F32), 64 * 40 * 9 * 4);
    assert_eq!(Quantize::Int8.bytes(&[64], DType::F32), 64 * 4);
    assert_eq!(Quantize::W8A8.bytes(&[64, 40], DType::F32), 64 * 40 + 64 * 4);

    let mut numbers = values(&random(&[32, 40], 134));
    numbers[..40].fill(0.0);
    numbers[45] = f32::NAN;
    numbers[80..120].fill(f32::from_bits(3));
    let weight = Tensor::from_vec(numbers, (32, 40), &Device::Cpu).unwrap();
    let weights = Weights::quantized(&weight, None, Quantize::Int8).unwrap();
    everywhere(|| {
        let got = values(&kernels::linear(&x, &weights, None).unwrap());
        for row in got.chunks_exact(32) {
            assert!(row[0] == 0.0 && row[1].is_nan() && row[2].abs() < 1e-40);
            assert!(row[3..].iter().all(|v| v.is_finite() && *v != 0.0));
        }
    });
}

#[test]
fn products_pass_on_what_is_not_finite_and_keep_denormals() {
    let weights = Weights::new(&random(&[3, 2, 3, 3], 46), None).unwrap();
    let args = ConvArgs { padding: (1, 1), ..ConvArgs::default() };
    let x = Tensor::full(f32::NAN, (1, 2, 4, 4), &Device::Cpu).unwrap();
    everywhere(|| {
        let got = kernels::conv2d(&x, &weights, &args).unwrap();
        assert!(values(&got).iter().all(|v| v.is_nan()));
    });
    let half = x.to_dtype(DType::BF16).unwrap();
    let half_weights =
        Weights::new(&random(&[3, 2, 3, 3], 46).to_dtype(DType::BF16).unwrap(), None).unwrap();
    everywhere(|| {
        let got = kernels::conv2d(&half, &half_weights, &args).unwrap();
        assert!(values(&got).iter().all(|v| v.is_nan()));
    });
    // One infinite value reaches its own row only.
    let mut numbers = vec![1f32; 7 * 3];
    numbers[3 * 4] = f32::INFINITY;
    let x = Tensor::from_vec(numbers, (7, 3), &Device::Cpu).unwrap();
    let positive = Weights::new(&Tensor::ones((5, 3), DType::F32, &Device::Cpu).unwrap(), None);
    everywhere(|| {
        let got = kernels::linear(&x, positive.as_ref().unwrap(), None).unwrap();
        for (i, v) in values(&got).iter().enumerate() {
            assert_eq!(*v, if i / 5 == 4 { f32::INFINITY } else { 3.0 });
        }
    });
    let tiny = f32::from_bits(5);
    let x = Tensor::full(tiny, (2, 3), &Device::Cpu).unwrap();
    everywhere(|| {
        let got = kernels::linear(&x, positive.as_ref().unwrap(), None).unwrap();
        assert!(values(&got).iter().all(|v| *v == f32::from_bits(15)));
    });
}

#[test]
fn gradients_reach_what_is_trained_through_every_kernel() {
    let var = |shape: &[usize], seed| Var::from_tensor(&random(shape, seed)).unwrap();
    let gradient = |loss: &Tensor, var: &Var| {
        loss.sqr().unwrap().sum_all().unwrap().backward().unwrap().get(var).unwrap().clone()
    };
    // The input of packed weights, and weights that are trained.
    let x = var(&[1, 4, 5, 5], 91);
    let (weight, bias) = (var(&[6, 4, 3, 3], 92), var(&[6], 93));
    let args = ConvArgs { padding: (1, 1), ..ConvArgs::default() };
    let want = reference::conv2d(&x, &weight, Some(&bias), &args).unwrap();
    let frozen = Weights::new(&weight.detach(), Some(&bias.detach())).unwrap();
    let got = kernels::conv2d(&x, &frozen, &args).unwrap();
    assert_relative(&gradient(&got, &x), &gradient(&want, &x), 1e-6);
    let trained = Weights::new(&weight, Some(&bias)).unwrap();
    let got = kernels::conv2d(&x.detach(), &trained, &args).unwrap();
    for var in [&weight, &bias] {
        assert_relative(&gradient(&got, var), &gradient(&want, var), 1e-6);
    }

    let x = var(&[3, 4], 94);
    let (weight, bias) = (var(&[6, 4], 95), var(&[6], 96));
    let want =
        reference::geglu(&x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap());
    let want = want.unwrap();
    let frozen = Weights::gated(&weight.detach(), Some(&bias.detach()), Quantize::None).unwrap();
    let got = kernels::linear(&x, &frozen, None).unwrap();
    assert_relative(&gradient(&got, &x), &gradient(&want, &x), 1e-6);
    let trained = Weights::gated(&weight, Some(&bias), Quantize::None).unwrap();
    let got = kernels::linear(&x.detach(), &trained, None).unwrap();
    for var in [&weight, &bias] {
        assert_relative(&gradient(&got, var), &gradient(&want, var), 1e-6);
    }
    let residual = var(&[3, 6], 97);
    let plain = Weights::new(&weight.detach(), None).unwrap();
    let got = kernels::linear(&x.detach(), &plain, Some(&residual)).unwrap();
    assert!(relative_l2(&gradient(&got, &residual), &(got * 2.0).unwrap()) < 1e-6);

    let x = var(&[2, 4, 3, 3], 98);
    let (weight, bias) = (var(&[4], 99), var(&[4], 100));
    let options = GroupNormOptions { groups: 2, eps: 1e-5, frames: 1, silu: true };
    let got = kernels::group_norm(&x, &weight, &bias, &options).unwrap();
    for var in [&x, &weight, &bias] {
        let norm = values(&gradient(&got, var)).iter().map(|v| v * v).sum::<f32>();
        assert!(norm > 0.0);
    }
    let x = var(&[2, 4], 101);
    let table = var(&[2, 4], 102);
    let positions = Positions { table: &table, run: 1 };
    let got = kernels::layer_norm(&x, &weight, &bias, 1e-5, Some(&positions)).unwrap();
    for var in [&x, &weight, &bias, &table] {
        let norm = values(&gradient(&got, var)).iter().map(|v| v * v).sum::<f32>();
        assert!(norm > 0.0);
    }
    let shape = [1, 3, 2, 2, 4];
    let (q, k, v) = (var(&shape, 103), var(&shape, 104), var(&shape, 105));
    let got = kernels::temporal_attention(&q, &k, &v, 0.5).unwrap();
    for var in [&q, &k, &v] {
        let norm = values(&gradient(&got, var)).iter().map(|v| v * v).sum::<f32>();
        assert!(norm > 0.0);
    }
    let got = kernels::geglu(&x).unwrap();
    assert!(values(&gradient(&got, &x)).iter().any(|v| *v != 0.0));
}

#[test]
fn wide_convolutions_that_are_transformed_equal_their_reference() {
    // Whole and partial tiles, panels and blocks of channels, and more tiles than are transformed at once.
    for (batch, inputs, outputs, height, width) in [
        (1, 64, 32, 16, 16),
        (2, 80, 70, 9, 14),
        (1, 144, 64, 21, 8),
        (3, 64, 130, 4, 12),
        (1, 320, 40, 48, 64),
        (1, 336, 40, 48, 64),
    ] {
        let x = random(&[batch, inputs, height, width], 111);
        let weight = random(&[outputs, inputs, 3, 3], 112);
        let bias = random(&[outputs], 113);
        let residual = random(&[batch, outputs, height, width], 114);
        let args = ConvArgs { padding: (1, 1), residual: Some(&residual), ..ConvArgs::default() };
        let want = reference::conv2d(&x, &weight, Some(&bias), &args).unwrap();
        let weights = Weights::new(&weight, Some(&bias)).unwrap();
        for got in results(|| kernels::conv2d(&x, &weights, &args)) {
            assert_relative(&got, &want, 1.5e-6);
        }
        for (dtype, rounding) in [(DType::F16, 3e-4), (DType::BF16, 2.5e-3)] {
            let half = |t: &Tensor| t.to_dtype(dtype).unwrap();
            let full = |t: &Tensor| half(t).to_dtype(DType::F32).unwrap();
            let residual = half(&residual);
            let weights = Weights::new(&half(&weight), Some(&half(&bias))).unwrap();
            let args = |residual| ConvArgs {
                padding: (1, 1),
                residual: Some(residual),
                ..ConvArgs::default()
            };
            let (r, r32) = (&residual, residual.to_dtype(DType::F32).unwrap());
            let want =
                reference::conv2d(&full(&x), &full(&weight), Some(&full(&bias)), &args(&r32));
            for got in results(|| kernels::conv2d(&half(&x), &weights, &args(r))) {
                assert_eq!(got.dtype(), dtype);
                assert_relative(&got, want.as_ref().unwrap(), rounding);
            }
        }
    }
    let x = random(&[1, 64, 9, 10], 115);
    let weight = random(&[64, 64, 3, 3], 116);
    let weights = Weights::new(&weight, None).unwrap();
    for (padding, stretch) in [
        ((0, 0), None),
        ((2, 0), None),
        ((0, 1), None),
        ((1, 1), Some((18, 20))),
        ((1, 1), Some((17, 23))),
    ] {
        let args = ConvArgs { padding, stretch, ..ConvArgs::default() };
        let want = reference::conv2d(&x, &weight, None, &args).unwrap();
        for got in results(|| kernels::conv2d(&x, &weights, &args)) {
            assert_relative(&got, &want, 1.5e-6);
        }
    }
    let x = Tensor::full(f32::NAN, (1, 64, 8, 8), &Device::Cpu).unwrap();
    let args = ConvArgs { padding: (1, 1), ..ConvArgs::default() };
    for got in results(|| kernels::conv2d(&x, &weights, &args)) {
        assert!(values(&got).iter().all(|v| v.is_nan()));
    }
}
