//! The numbers of a GPU against those of the CPU and the reference.
//!
//! A build without a GPU feature, or a machine without a GPU, has nothing to compare: every test then says on stderr
//! that it skips. `benches/gpu.sh` runs them where there is one.

#![allow(clippy::print_stderr)]

use std::collections::BTreeMap;

use animatelcm::Quantize;
use animatelcm::device::{DeviceChoice, DtypeChoice, KernelChoice, Precision};
use animatelcm::kernels::{
    self, Activation, ConvArgs, GroupNormOptions, Positions, Weights, reference,
};
use animatelcm::library::{Base, Files, LoraFile, Models};
use animatelcm::media::RgbImage;
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::Request;
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_close, relative_l2};
use crate::support::random::random;
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny::{self, case};

/// A GPU of this build and machine.
fn gpu() -> Option<Device> {
    for choice in [DeviceChoice::Cuda(0), DeviceChoice::Metal] {
        match choice.open() {
            Ok(device) => return Some(device),
            Err(error) => eprintln!("skipped on {choice}: {error}"),
        }
    }
    None
}

/// Number formats and the relative L2 error that an op may have in them: a rounding of the inputs and of the result,
/// and f32 sums in another order. Convolutions and products of f32 may use tensor cores' 10-bit mantissas only if
/// asked.
const FORMATS: [(DType, f64); 3] = [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 1.5e-2)];

/// Whether the GPU is the one of `tests/cuda_on_cpu`.
fn is_played() -> bool {
    std::env::var_os("CUDA_ON_CPU").is_some()
}

const CHOICES: [KernelChoice; 2] = [KernelChoice::Default, KernelChoice::Experimental];

/// Runs `f` by chosen kernels.
fn by<R>(choice: KernelChoice, device: &Device, f: impl FnOnce() -> R) -> R {
    choice.apply(device).unwrap();
    let result = f();
    KernelChoice::Default.apply(device).unwrap();
    result
}

/// Runs an op on the GPU in every dtype, by all kernels, and compares with the CPU's plain reference in f32.
fn compare(
    what: &str,
    inputs: &[Tensor],
    op: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) {
    let Some(device) = gpu() else { return };
    let want = plain(inputs).unwrap();
    for choice in CHOICES {
        for (dtype, tolerance) in FORMATS {
            let moved = |x: &Tensor| x.to_device(&device).unwrap().to_dtype(dtype).unwrap();
            let moved: Vec<Tensor> = inputs.iter().map(moved).collect();
            let got = by(choice, &device, || op(&moved).unwrap().to_dtype(DType::F32).unwrap());
            let error = relative_l2(&got.to_device(&Device::Cpu).unwrap(), &want);
            eprintln!("{what} in {dtype:?} ({choice:?}): {error:.1e}");
            assert!(error < tolerance, "{what} in {dtype:?} ({choice:?}): {error:e}");
        }
    }
}

#[test]
fn attention_on_a_gpu_equals_its_reference() {
    // Where a CPU plays the GPU, a small one of those with whole blocks.
    let large = if is_played() { (1, 128, 128, 2, 40) } else { (2, 1024, 1024, 8, 40) };
    for (batch, queries, keys, heads, dim) in
        [(2, 5, 3, 3, 7), (300, 16, 16, 8, 40), (1, 130, 77, 2, 80), (1, 65, 70, 3, 160), large]
    {
        let inputs = [
            random(&[batch, queries, heads, dim], 1),
            random(&[batch, keys, heads, dim], 2),
            random(&[batch, keys, heads, dim], 3),
        ];
        let scale = 1.0 / (dim as f64).sqrt();
        compare(
            "attention",
            &inputs,
            |x| kernels::attention(&x[0], &x[1], &x[2], scale),
            |x| reference::attention(&x[0], &x[1], &x[2], scale),
        );
    }
}

#[test]
fn attention_by_place_on_a_gpu_equals_its_reference() {
    for (batch, frames, places, heads, dim) in
        [(2, 16, 30, 8, 40), (1, 5, 7, 2, 16), (1, 40, 3, 1, 80)]
    {
        // All three in one tensor, as views.
        let whole = random(&[batch, frames, places, heads, 3 * dim], 15);
        let scale = 1.0 / (dim as f64).sqrt();
        let parts = |x: &Tensor| [0, 1, 2].map(|i| x.narrow(4, i * dim, dim).unwrap());
        compare(
            "attention by place",
            &[whole],
            |x| {
                let [q, k, v] = parts(&x[0]);
                kernels::temporal_attention(&q, &k, &v, scale)
            },
            |x| {
                let sequence = |x: &Tensor| x.transpose(1, 2)?.contiguous()?.flatten(0, 1);
                let [q, k, v] = parts(&x[0]);
                let y =
                    reference::attention(&sequence(&q)?, &sequence(&k)?, &sequence(&v)?, scale)?;
                y.reshape((batch, places, frames, heads, dim))?.transpose(1, 2)?.contiguous()
            },
        );
    }
}

#[test]
fn linear_layers_on_a_gpu_equal_their_reference() {
    let inputs = [random(&[2, 9, 40], 16), random(&[48, 40], 17), random(&[48], 18)];
    let residuals = [random(&[2, 9, 48], 19), random(&[2, 9, 24], 20)];
    let with = |residual: &Tensor| [&inputs[..], std::slice::from_ref(residual)].concat();
    compare(
        "linear",
        &with(&residuals[0]),
        |x| kernels::linear(&x[0], &Weights::new(&x[1], Some(&x[2]))?, Some(&x[3])),
        |x| reference::linear(&x[0], &x[1], Some(&x[2]))? + &x[3],
    );
    compare(
        "gated linear",
        &with(&residuals[1]),
        |x| {
            kernels::linear(
                &x[0],
                &Weights::gated(&x[1], Some(&x[2]), Quantize::None)?,
                Some(&x[3]),
            )
        },
        |x| reference::geglu(&reference::linear(&x[0], &x[1], Some(&x[2]))?)? + &x[3],
    );
}

/// All that a convolution can do beside multiplying, but stretching.
fn everything(x: &[Tensor], stride: usize, padding: (usize, usize)) -> ConvArgs<'_> {
    let (shift, residual) = (Some(&x[3]), Some(&x[4]));
    ConvArgs {
        padding,
        stride,
        shift,
        activation: Activation::Silu,
        residual,
        stretch: None,
        stop: None,
    }
}

#[test]
fn convolution_on_a_gpu_equals_its_reference() {
    for (kernel, stride, height, width) in [(3, 1, 33, 17), (3, 2, 16, 18), (1, 1, 9, 31)] {
        let inputs = [
            random(&[3, 40, height, width], 4),
            random(&[24, 40, kernel, kernel], 5),
            random(&[24], 6),
        ];
        let padding = (kernel / 2, kernel / 2);
        let args = ConvArgs { padding, stride, ..ConvArgs::default() };
        compare(
            "convolution",
            &inputs,
            |x| kernels::conv2d(&x[0], &Weights::new(&x[1], Some(&x[2]))?, &args),
            |x| reference::conv2d(&x[0], &x[1], Some(&x[2]), &args),
        );
    }
    // With zeros on one side only, and a stretched image.
    let inputs = [
        random(&[2, 16, 5, 6], 21),
        random(&[8, 16, 3, 3], 22),
        random(&[8], 23),
        random(&[8], 24),
    ];
    for (stride, padding, stretch, size) in [
        (1, (1, 1), Some((10, 12)), (10, 12)),
        (2, (0, 1), None, (2, 3)),
        (1, (1, 1), None, (5, 6)),
    ] {
        let inputs = [&inputs[..], &[random(&[2, 8, size.0, size.1], 25)]].concat();
        compare(
            "convolution with all",
            &inputs,
            |x| {
                let args = ConvArgs { stretch, ..everything(x, stride, padding) };
                kernels::conv2d(&x[0], &Weights::new(&x[1], Some(&x[2]))?, &args)
            },
            |x| {
                let args = ConvArgs { stretch, ..everything(x, stride, padding) };
                reference::conv2d(&x[0], &x[1], Some(&x[2]), &args)
            },
        );
    }
}

#[test]
fn norms_and_gates_on_a_gpu_equal_their_references() {
    for (frames, silu) in [(1, false), (3, true)] {
        let options = GroupNormOptions { groups: 8, eps: 1e-5, frames, silu };
        let inputs = [random(&[6, 48, 9, 7], 7), random(&[48], 8), random(&[48], 9)];
        compare(
            "group norm",
            &inputs,
            |x| kernels::group_norm(&x[0], &x[1], &x[2], &options),
            |x| reference::group_norm(&x[0], &x[1], &x[2], &options),
        );
    }
    let rows = [random(&[6, 48], 11), random(&[48], 12), random(&[48], 13), random(&[3, 48], 14)];
    compare(
        "layer norm",
        &rows,
        |x| {
            let positions = Positions { table: &x[3], run: 1 };
            kernels::layer_norm(&x[0], &x[1], &x[2], 1e-5, Some(&positions))
        },
        |x| {
            let positions = Positions { table: &x[3], run: 1 };
            reference::layer_norm(&x[0], &x[1], &x[2], 1e-5, Some(&positions))
        },
    );
    compare(
        "geglu",
        &[random(&[5, 13, 62], 10)],
        |x| kernels::geglu(&x[0]),
        |x| reference::geglu(&x[0]),
    );
}

/// A whole run on `device`: its frames as tensors and as images.
fn run(
    device: &Device,
    dtype: DtypeChoice,
    files: &Files,
    request: &Request,
    tensors: Tensors,
) -> (Tensor, Vec<RgbImage>) {
    let precision = Precision::new(dtype, device);
    let models = Models::open(files).unwrap();
    let mut pipeline = Pipeline::new(models, device.clone(), precision, Residency::Sequential);
    let mut images = Vec::new();
    let mut tensors = Tensors { recorded: Some(BTreeMap::new()), ..tensors };
    let mut quiet = |_: Event| Ok(());
    pipeline.run(request, &mut tensors, &mut quiet, &mut &mut images).unwrap();
    let frames = tensors.recorded.unwrap()["frames"].to_device(&Device::Cpu).unwrap();
    (frames, images)
}

#[test]
fn a_whole_run_on_a_gpu_equals_the_reference() {
    let Some(device) = gpu() else { return };
    let want = case("official_cfg")["frames"].squeeze(0).unwrap();
    let noise = case("noise");
    let tensors = || Tensors {
        latents: Some(case("unet")["x"].clone()),
        noise: (0..3).map(|i| noise[&format!("noise.{i}")].clone()).collect(),
        recorded: None,
        ..Tensors::default()
    };
    let request = Request::default().with(|r| {
        r.prompt.text = "A corgi walking in the park, 4k!!".into();
        r.prompt.negative = "bad quality".into();
        r.sampling.cfg_scale = 1.5;
        r.size.width = Some(64);
        r.size.height = Some(32);
        r.size.frames = Some(6);
        r.sampling.seed = Some(0);
    });
    let files = Files::new(Base::Folder(tiny::path("tiny/model")));
    // Relative L2 of frames; the CPU has 4.8e-4 and 5.0e-3 without guidance.
    let rounded = [(DtypeChoice::F16, 2e-3), (DtypeChoice::Bf16, 1.5e-2)];
    for choice in CHOICES {
        by(choice, &device, || {
            let (got, _) = run(&device, DtypeChoice::F32, &files, &request, tensors());
            assert_close(&got, &want, 1e-3);
            for (dtype, tolerance) in rounded {
                let (got, _) = run(&device, dtype, &files, &request, tensors());
                let error = relative_l2(&got, &want);
                eprintln!("whole run in {dtype:?} ({choice:?}): {error:.1e}");
                assert!(error < tolerance, "{dtype:?} ({choice:?}): {error:e}");
            }
        });
    }
}

#[test]
fn a_seed_is_the_same_clip_on_a_gpu() {
    let Some(device) = gpu() else { return };
    let mut files = Files::new(Base::Embedded);
    files.loras.push(LoraFile::new(Files::embedded_lora()));
    let mut request = Request::default().with(|r| {
        r.prompt.text = "a red circle moving left on a black background".into();
        r.sampling.seed = Some(100);
    });
    if is_played() {
        request = request.with(|r| {
            r.size.width = Some(32);
            r.size.height = Some(32);
            r.size.frames = Some(4);
            r.sampling.steps = 2;
        });
    }
    let here = run(&Device::Cpu, DtypeChoice::F32, &files, &request, Tensors::default());
    let far = |(a, b): (&RgbImage, &RgbImage)| {
        a.iter().zip(b.iter()).filter(|(a, b)| a.abs_diff(**b) > 1).count()
    };
    for choice in CHOICES {
        let run = || run(&device, DtypeChoice::F32, &files, &request, Tensors::default());
        let there = by(choice, &device, run);
        assert_close(&there.0, &here.0, 1e-3);
        assert_eq!(here.1.iter().zip(&there.1).map(far).sum::<usize>(), 0, "{choice:?}");
    }
}
