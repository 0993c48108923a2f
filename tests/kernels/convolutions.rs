//! Convolutions against their plain reference.

use animatelcm::kernels::layout::is_channels_last;
use animatelcm::kernels::{self, Activation, ConvArgs, Weights, reference};
use candle_core::{DType, Device, Tensor};

use crate::support::close::assert_relative;
use crate::support::isa::results;
use crate::support::random::random;
use crate::support::values::values;

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
