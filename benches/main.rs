//! The kernels of a Stable Diffusion 1.5 clip against their plain references, in values of the result a second.
//!
//! ```sh
//! cargo bench                     # all
//! cargo bench -- geglu            # one
//! ```

use animatelcm::kernels::{self, GroupNormOptions, reference};
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

fn compare(c: &mut Criterion, name: &str, candidates: &[Candidate<'_>]) {
    let mut group = c.benchmark_group(format!("cpu/{name}"));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for (candidate, run) in candidates {
        let count = match run() {
            Ok(result) => result.elem_count(),
            Err(error) => panic!("{name}, {candidate}: {error}"),
        };
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(*candidate, |b| b.iter(run));
    }
    group.finish();
}

fn attention(c: &mut Criterion) {
    let scale = 1.0 / 40f64.sqrt();
    // One frame of 512×512 looks at itself; every pixel of a strip looks along 16 frames.
    for (name, batch, tokens) in
        [("attention/4096-pixels", 1, 64 * 64), ("attention/16-frames", 64 * 64, 16)]
    {
        let [q, k, v] = [(); 3].map(|()| input(&[batch, tokens, 8, 40]));
        compare(
            c,
            name,
            &[
                ("kernel", &|| kernels::attention(&q, &k, &v, scale)),
                ("reference", &|| reference::attention(&q, &k, &v, scale)),
            ],
        );
    }
}

fn group_norm(c: &mut Criterion) {
    let x = input(&[4, 320, 64, 64]);
    let (weight, bias) = (input(&[320]), input(&[320]));
    let options = GroupNormOptions { groups: 32, eps: 1e-5, frames: 1, silu: true };
    compare(
        c,
        "group-norm-silu",
        &[
            ("kernel", &|| kernels::group_norm(&x, &weight, &bias, &options)),
            ("reference", &|| reference::group_norm(&x, &weight, &bias, &options)),
        ],
    );
}

fn geglu(c: &mut Criterion) {
    let x = input(&[4096, 2560]);
    compare(
        c,
        "geglu",
        &[("kernel", &|| kernels::geglu(&x)), ("reference", &|| reference::geglu(&x))],
    );
}

fn conv2d(c: &mut Criterion) {
    let x = input(&[1, 320, 64, 64]);
    let weight = input(&[320, 320, 3, 3]);
    let half = (x.to_dtype(DType::BF16), weight.to_dtype(DType::BF16));
    let (Ok(half_x), Ok(half_weight)) = half else { panic!("bf16 is always there") };
    compare(
        c,
        "conv2d-3x3",
        &[
            ("kernel", &|| kernels::conv2d(&x, &weight, None, 1, 1)),
            ("kernel-bf16", &|| kernels::conv2d(&half_x, &half_weight, None, 1, 1)),
            ("candle", &|| x.conv2d(&weight, 1, 1, 1, 1)),
        ],
    );
}

criterion_group!(benches, attention, group_norm, geglu, conv2d);
criterion_main!(benches);
