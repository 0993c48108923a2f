//! Products of matrices against their plain reference, in every precision.

use animatelcm::Quantize;
use animatelcm::kernels::cpu::isa::Isa;
use animatelcm::kernels::{
    self, Activation, ConvArgs, GroupNormOptions, Positions, Weights, reference,
};
use candle_core::{DType, Device, Tensor, Var};

use crate::support::close::{assert_relative, relative_l2};
use crate::support::isa::results;
use crate::support::random::random;
use crate::support::values::values;

/// Runs `check` once for every set of instructions that is there; the portable one always is.
fn everywhere(check: impl Fn()) {
    let ran = Isa::ALL.iter().filter_map(|isa| isa.force(&check)).count();
    assert!(ran > 0);
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
