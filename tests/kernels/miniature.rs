//! Every kernel in shapes that are small enough for an interpreter, which sees what memory unsafe code touches:
//!
//! ```sh
//! export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows -Zmiri-permissive-provenance -Zmiri-ignore-leaks"
//! export CANDLE_BARRIER_POOL_SPIN_LIMIT=1 CANDLE_NUM_THREADS=1 RAYON_NUM_THREADS=2
//! cargo +nightly miri test --no-default-features --test integration -- miniature:: --skip transformed
//! ```
//!
//! Each takes minutes, and what is skipped more than half an hour. It knows no instruction that multiplies bf16, and no
//! matrix unit. With `RUSTFLAGS="-C target-cpu=x86-64-v4"` it has the other vectors, too.

use animatelcm::Quantize;
use animatelcm::kernels::{
    self, Activation, ConvArgs, GroupNormOptions, Positions, Weights, reference,
};
use candle_core::{DType, Result, Tensor, Var};

use crate::support::close::assert_relative;
use crate::support::isa::results;
use crate::support::random::random;

/// Runs a kernel on every set of instructions that is there, in every format, and compares it with what it should
/// be in f32 of the same values.
fn check(
    inputs: &[Tensor],
    kernel: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        // The interpreter does not know its conversions, if they are an instruction.
        if cfg!(all(miri, target_feature = "f16c")) && dtype == DType::F16 {
            continue;
        }
        let inputs: Vec<_> = inputs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
        let full: Vec<_> = inputs.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
        let want = reference(&full).unwrap();
        for got in results(|| kernel(&inputs)) {
            assert_relative(&got, &want, tolerance);
        }
    }
}

fn tensors<const N: usize>(shapes: [&[usize]; N]) -> Vec<Tensor> {
    shapes.iter().zip(1..).map(|(shape, seed)| random(shape, seed)).collect()
}

#[test]
fn linear() {
    // Whole and partial tiles of every kind, and two panels.
    for (rows, inputs, outputs) in [(7, 6, 17), (2, 32, 70)] {
        check(
            &tensors([&[rows, inputs], &[outputs, inputs], &[outputs], &[rows, outputs]]),
            |t| kernels::linear(&t[0], &Weights::new(&t[1], Some(&t[2]))?, Some(&t[3])),
            |t| reference::linear(&t[0], &t[1], Some(&t[2]))? + &t[3],
        );
    }
    check(
        &tensors([&[7, 6], &[36, 6], &[36]]),
        |t| kernels::linear(&t[0], &Weights::gated(&t[1], Some(&t[2]), Quantize::None)?, None),
        |t| reference::geglu(&reference::linear(&t[0], &t[1], Some(&t[2]))?),
    );
}

#[test]
fn rounded() {
    let inputs = tensors([&[7, 64], &[34, 64]]);
    let want = reference::linear(&inputs[0], &inputs[1], None).unwrap();
    for quantize in [Quantize::Int8, Quantize::W8A8] {
        let weights = Weights::quantized(&inputs[1], None, quantize).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let x = inputs[0].to_dtype(dtype).unwrap();
            for got in results(|| kernels::linear(&x, &weights, None)) {
                assert_relative(&got, &want, 2e-2);
            }
        }
    }
}

#[test]
fn convolution() {
    fn args(t: &[Tensor], (stride, stretch): (usize, Option<(usize, usize)>)) -> ConvArgs<'_> {
        let (shift, residual) = (Some(&t[3]), Some(&t[4]));
        let activation = Activation::Silu;
        ConvArgs { padding: (1, 1), stride, stretch, shift, residual, activation, stop: None }
    }
    for (size, steps) in [((5, 5), (1, None)), ((3, 3), (2, None)), ((7, 6), (1, Some((7, 6))))] {
        check(
            &tensors([&[1, 2, 5, 5], &[18, 2, 3, 3], &[18], &[18], &[1, 18, size.0, size.1]]),
            |t| kernels::conv2d(&t[0], &Weights::new(&t[1], Some(&t[2]))?, &args(t, steps)),
            |t| reference::conv2d(&t[0], &t[1], Some(&t[2]), &args(t, steps)),
        );
    }
}

#[test]
fn transformed_convolution() {
    let args = ConvArgs { padding: (1, 1), ..ConvArgs::default() };
    // As small as it pays.
    check(
        &tensors([&[1, 128, 12, 24], &[64, 128, 3, 3]]),
        |t| kernels::conv2d(&t[0], &Weights::new(&t[1], None)?, &args),
        |t| reference::conv2d(&t[0], &t[1], None, &args),
    );
}

#[test]
fn attention() {
    // Kept in registers, and packed.
    for (queries, keys, dim) in [(5, 3, 3), (7, 33, 2)] {
        check(
            &tensors([&[1, queries, 1, dim], &[1, keys, 1, dim], &[1, keys, 1, dim]]),
            |t| kernels::attention(&t[0], &t[1], &t[2], 0.4),
            |t| reference::attention(&t[0], &t[1], &t[2], 0.4),
        );
    }
    let first = |x: &Tensor| x.transpose(1, 2)?.reshape((5, 3, 1, 3));
    check(
        &tensors([&[1, 3, 5, 1, 3]; 3]),
        |t| first(&kernels::temporal_attention(&t[0], &t[1], &t[2], 0.4)?),
        |t| reference::attention(&first(&t[0])?, &first(&t[1])?, &first(&t[2])?, 0.4),
    );
}

#[test]
fn norms_and_gates() {
    fn positions(t: &[Tensor]) -> Positions<'_> {
        Positions { table: &t[3], run: 3 }
    }
    let options = GroupNormOptions { groups: 3, eps: 1e-5, frames: 2, silu: true };
    check(
        &tensors([&[2, 6, 3, 5], &[6], &[6]]),
        |t| kernels::group_norm(&t[0], &t[1], &t[2], &options),
        |t| reference::group_norm(&t[0], &t[1], &t[2], &options),
    );
    check(
        &tensors([&[6, 19], &[19], &[19], &[2, 19]]),
        |t| kernels::layer_norm(&t[0], &t[1], &t[2], 1e-5, Some(&positions(t))),
        |t| reference::layer_norm(&t[0], &t[1], &t[2], 1e-5, Some(&positions(t))),
    );
    check(&tensors([&[3, 38]]), |t| kernels::geglu(&t[0]), |t| reference::geglu(&t[0]));
}

#[test]
fn gradients() {
    let args = ConvArgs { padding: (1, 1), ..ConvArgs::default() };
    let [x, weight] =
        [&[1, 2, 3, 4], &[3, 2, 3, 3]].map(|shape| Var::from_tensor(&random(shape, 1)).unwrap());
    let gradients = |y: Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let weights = Weights::new(&weight, None).unwrap();
    let got = gradients(kernels::conv2d(&x, &weights, &args).unwrap());
    let want = gradients(reference::conv2d(&x, &weight, None, &args).unwrap());
    for of in [&x, &weight] {
        assert_relative(got.get(of).unwrap(), want.get(of).unwrap(), 2e-6);
    }
    let [q, k, v] = [1, 2, 3].map(|i| Var::from_tensor(&random(&[1, 3, 2, 1, 3], i)).unwrap());
    let [first_q, first_k, first_v] =
        [&q, &k, &v].map(|x| x.transpose(1, 2).unwrap().reshape((2, 3, 1, 3)).unwrap());
    let got = gradients(kernels::temporal_attention(&q, &k, &v, 0.4).unwrap());
    let want = gradients(reference::attention(&first_q, &first_k, &first_v, 0.4).unwrap());
    for of in [&q, &k, &v] {
        assert_relative(got.get(of).unwrap(), want.get(of).unwrap(), 2e-6);
    }
}
