//! The kernels of a Stable Diffusion 1.5 clip, in 10⁹ operations a second ("Gelem/s"): products count multiplications
//! and additions, the others the values of their results. `limit` is a matrix product that fits the caches: what the
//! processor can do.
//!
//! ```sh
//! cargo bench                     # all
//! cargo bench -- geglu            # one
//! cargo bench -- --quick          # criterion's options
//! ```

use animatelcm::Quantize;
use animatelcm::kernels::layout::channels_first;
use animatelcm::kernels::{self, ConvArgs, GroupNormOptions, Weights, reference};
use candle_core::{DType, Device, Result, Tensor};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

/// Any numbers: how long a kernel takes does not depend on them.
fn input(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i % 1009) as f32 / 504.0) - 1.0).collect();
    match Tensor::from_vec(values, shape, &Device::Cpu) {
        Ok(tensor) => tensor,
        Err(error) => panic!("{shape:?}: {error}"),
    }
}

/// Something to time: its name and the work.
type Candidate<'a> = (&'a str, &'a dyn Fn() -> Result<Tensor>);

fn compare(c: &mut Criterion, name: &str, operations: usize, candidates: &[Candidate<'_>]) {
    let mut group = c.benchmark_group(format!("cpu/{name}"));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for (candidate, run) in candidates {
        if let Err(error) = run() {
            panic!("{name}, {candidate}: {error}");
        }
        group.throughput(Throughput::Elements(operations as u64));
        group.bench_function(*candidate, |b| b.iter(run));
    }
    group.finish();
}

/// The same in bf16.
fn half(x: &Tensor) -> Tensor {
    match x.to_dtype(DType::BF16) {
        Ok(half) => half,
        Err(error) => panic!("{error}"),
    }
}

fn packed(weight: &Tensor, gated: bool) -> Weights {
    quantized(weight, gated, Quantize::None)
}

fn quantized(weight: &Tensor, gated: bool, quantize: Quantize) -> Weights {
    let weights = if gated {
        Weights::gated(weight, None, quantize)
    } else {
        Weights::quantized(weight, None, quantize)
    };
    match weights {
        Ok(weights) => weights,
        Err(error) => panic!("{weight}: {error}"),
    }
}

/// An image whose channels are innermost in memory.
fn image(batch: usize, side: usize, channels: usize) -> Tensor {
    match channels_first(&input(&[batch, side, side, channels])) {
        Ok(image) => image,
        Err(error) => panic!("{error}"),
    }
}

fn attention(c: &mut Criterion) {
    let scale = 1.0 / 40f64.sqrt();
    // One frame of 512×512 looks at itself.
    let [q, k, v] = [(); 3].map(|()| input(&[1, 4096, 8, 40]));
    compare(
        c,
        "attention/4096-pixels",
        4 * 4096 * 4096 * 320,
        &[
            ("kernel", &|| kernels::attention(&q, &k, &v, scale)),
            ("reference", &|| reference::attention(&q, &k, &v, scale)),
        ],
    );
    // Every pixel of one frame looks along 16 frames.
    let [q, k, v] = [(); 3].map(|()| input(&[1, 16, 4096, 8, 40]));
    let first = |x: &Tensor| x.transpose(1, 2)?.reshape((4096, 16, 8, 40));
    compare(
        c,
        "attention/16-frames",
        4 * 16 * 16 * 4096 * 320,
        &[
            ("kernel", &|| kernels::temporal_attention(&q, &k, &v, scale)),
            ("reference", &|| reference::attention(&first(&q)?, &first(&k)?, &first(&v)?, scale)),
        ],
    );
}

fn norms(c: &mut Criterion) {
    let x = image(4, 64, 320);
    let (weight, bias) = (input(&[320]), input(&[320]));
    let options = GroupNormOptions { groups: 32, eps: 1e-5, frames: 1, silu: true };
    compare(
        c,
        "group-norm-silu",
        x.elem_count(),
        &[
            ("kernel", &|| kernels::group_norm(&x, &weight, &bias, &options)),
            ("reference", &|| reference::group_norm(&x, &weight, &bias, &options)),
        ],
    );
    let rows = input(&[4 * 4096, 320]);
    compare(
        c,
        "layer-norm",
        rows.elem_count(),
        &[
            ("kernel", &|| kernels::layer_norm(&rows, &weight, &bias, 1e-5, None)),
            ("reference", &|| reference::layer_norm(&rows, &weight, &bias, 1e-5, None)),
        ],
    );
}

fn linear(c: &mut Criterion) {
    for (name, rows, inputs, outputs) in [
        ("limit", 1536, 512, 512),
        ("linear/320", 8192, 320, 320),
        ("linear/1280", 512, 1280, 1280),
    ] {
        let (x, weight) = (input(&[rows, inputs]), input(&[outputs, inputs]));
        let (half_x, half_weight) = (half(&x), packed(&half(&weight), false));
        let weights = packed(&weight, false);
        let bytes = quantized(&weight, false, Quantize::W8A8);
        compare(
            c,
            name,
            2 * rows * inputs * outputs,
            &[
                ("kernel", &|| kernels::linear(&x, &weights, None)),
                ("kernel-bf16", &|| kernels::linear(&half_x, &half_weight, None)),
                ("kernel-w8a8", &|| kernels::linear(&x, &bytes, None)),
                ("kernel-bf16-w8a8", &|| kernels::linear(&half_x, &bytes, None)),
                ("candle", &|| x.matmul(&weight.t()?)),
            ],
        );
    }
    let (x, weight) = (input(&[8192, 320]), input(&[2560, 320]));
    let (half_x, half_weights) = (half(&x), packed(&half(&weight), true));
    let (plain, gated) = (packed(&weight, false), packed(&weight, true));
    compare(
        c,
        "geglu",
        2 * 8192 * 320 * 2560,
        &[
            ("kernel", &|| kernels::linear(&x, &gated, None)),
            ("kernel-bf16", &|| kernels::linear(&half_x, &half_weights, None)),
            ("reference", &|| reference::geglu(&kernels::linear(&x, &plain, None)?)),
        ],
    );
}

fn conv2d(c: &mut Criterion) {
    // The UNet's three wider resolutions at 8 frames of 256×256, and the decoder's widest.
    for (images, side, channels) in
        [(8, 32, 320), (8, 16, 640), (8, 8, 1280), (8, 4, 1280), (4, 64, 512), (1, 256, 128)]
    {
        let (x, weight) = (image(images, side, channels), input(&[channels, channels, 3, 3]));
        let (half_x, half_weights) = (half(&x), packed(&half(&weight), false));
        let weights = packed(&weight, false);
        let args = ConvArgs { padding: (1, 1), ..ConvArgs::default() };
        compare(
            c,
            &format!("conv2d-3x3/{images}x{channels}x{side}x{side}"),
            2 * 9 * images * side * side * channels * channels,
            &[
                ("kernel", &|| kernels::conv2d(&x, &weights, &args)),
                ("kernel-bf16", &|| kernels::conv2d(&half_x, &half_weights, &args)),
                ("candle", &|| reference::conv2d(&x, &weight, None, &args)),
            ],
        );
    }
}

criterion_group!(benches, linear, conv2d, attention, norms);
criterion_main!(benches);
