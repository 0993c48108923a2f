//! Every kernel, as it is launched, against the plain versions of the ops.

use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};

use super::emulator::Emulator;
use super::plan::{self, Format, Launch, Patches, Reading, View};
use crate::cpu::conv_geometry::ConvGeometry;
use crate::{Activation, ConvArgs, GroupNormOptions, Positions, reference};

/// Bell-shaped values around `mean`, a function of the seed.
fn random(shape: &[usize], seed: u64, mean: f32) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| next() + next() + next() + mean).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn dtype(format: Format) -> DType {
    match format {
        Format::F32 => DType::F32,
        Format::F16 => DType::F16,
        Format::Bf16 => DType::BF16,
    }
}

/// A result's relative L2 error: a rounding of the result and, in attention, of the weights.
fn tolerance(format: Format) -> f64 {
    match format {
        Format::F32 => 2e-6,
        Format::F16 => 5e-4,
        Format::Bf16 => 4e-3,
    }
}

fn bytes(x: &Tensor) -> Vec<u8> {
    let x = x.flatten_all().unwrap();
    match x.dtype() {
        DType::F32 => x.to_vec1::<f32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => x.to_vec1::<f16>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::BF16 => x.to_vec1::<bf16>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        other => panic!("{other:?}"),
    }
}

fn tensor(bytes: &[u8], format: Format, shape: &[usize]) -> Tensor {
    let device = &Device::Cpu;
    Tensor::from_raw_buffer(bytes, dtype(format), shape, device).unwrap()
}

/// Runs `launches` over the same buffers, the last of which is the result, two times in other orders of threads.
fn run(emulator: &mut Emulator, launches: &[Launch], buffers: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut results = Vec::new();
    for seed in [1, 2] {
        let mut buffers = buffers.to_vec();
        for launch in launches {
            emulator.launch(launch, &mut buffers, seed).unwrap();
        }
        results.push(buffers);
    }
    let [first, second] = results.try_into().unwrap();
    assert!(first == second, "{}: the order of threads shows", launches[0].kernel);
    first
}

fn assert_near(what: &str, format: Format, got: &Tensor, want: &Tensor) {
    let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    let (got, want) = (wide(got), wide(want));
    let norm =
        |x: &Tensor| f64::from(x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
    let error = (norm(&(&got - &want).unwrap()) / norm(&want).max(1e-30)).sqrt();
    assert!(error < tolerance(format), "{what}: {error:e}");
}

/// Calls `case` for every format, with inputs in it, and for rows that are and are not read 16 bytes at once.
fn in_all_formats(mut case: impl FnMut(Reading)) {
    for format in Format::ALL {
        for aligned in [true, false] {
            case(Reading { format, aligned });
        }
    }
}

fn rounded(x: &Tensor, format: Format) -> Tensor {
    x.to_dtype(dtype(format)).unwrap()
}

fn epilogues(emulator: &mut Emulator) {
    in_all_formats(|reading| {
        let format = reading.format;
        let (rows, width) = (37, 24);
        let all = [(rows, 1.0), (1, 0.5), (1, -0.5), (rows, 0.0)];
        let inputs = all.map(|(n, mean)| rounded(&random(&[n, width], n as u64, mean), format));
        for (parts, activation) in [
            ([true, true, true], Activation::Silu),
            ([true, false, false], Activation::None),
            ([false, true, false], Activation::Relu),
            ([false, false, true], Activation::None),
        ] {
            let launch = plan::epilogue(reading, (rows, width), parts, activation).unwrap();
            let got = run(emulator, &[launch], &inputs.each_ref().map(bytes));
            let mut want = inputs[0].to_dtype(DType::F32).unwrap();
            let add = |x: Tensor, i: usize| {
                if parts[i] {
                    x.broadcast_add(&inputs[i + 1].to_dtype(DType::F32).unwrap()).unwrap()
                } else {
                    x
                }
            };
            want = add(add(want, 0), 1);
            want = match activation {
                Activation::None => want,
                Activation::Silu => want.silu().unwrap(),
                Activation::Relu => want.relu().unwrap(),
            };
            let got = tensor(&got[0], format, &[rows, width]);
            assert_near(&format!("epilogue {reading:?} {parts:?}"), format, &got, &add(want, 2));
        }
    });
}

fn gates(emulator: &mut Emulator) {
    in_all_formats(|reading| {
        let format = reading.format;
        let (rows, width) = (11, 40);
        let x = rounded(&random(&[rows, 2 * width], 3, 0.0), format);
        let bias = rounded(&random(&[2 * width], 4, 0.2), format);
        for biased in [false, true] {
            let launch = plan::geglu(reading, (rows, width), biased).unwrap();
            let result = vec![0xff; rows * width * dtype(format).size_in_bytes()];
            let got = run(emulator, &[launch], &[bytes(&x), bytes(&bias), result]);
            let mut wide = x.to_dtype(DType::F32).unwrap();
            if biased {
                wide = wide.broadcast_add(&bias.to_dtype(DType::F32).unwrap()).unwrap();
            }
            let got = tensor(&got[2], format, &[rows, width]);
            assert_near(
                &format!("geglu {reading:?}"),
                format,
                &got,
                &reference::geglu(&wide).unwrap(),
            );
        }
    });
}

/// Convolutions: of the rows of patches, times the weights.
fn convolutions(emulator: &mut Emulator) {
    in_all_formats(|reading| {
        let format = reading.format;
        let (images, channels, outputs, size) = (2, 16, 5, (5, 6));
        let x = rounded(&random(&[images, channels, size.0, size.1], 5, 0.3), format);
        for (kernel, stride, padding, stretch) in [
            (3, 1, (1, 1), None),
            (3, 2, (0, 1), None),
            (3, 1, (1, 1), Some((10, 11))),
            (1, 1, (0, 0), Some((7, 13))),
        ] {
            let weight = random(&[outputs, channels, kernel, kernel], 6, 0.0);
            let args = ConvArgs { padding, stride, stretch, ..ConvArgs::default() };
            let wide = x.to_dtype(DType::F32).unwrap();
            let want = reference::conv2d(&wide, &weight, None, &args).unwrap();
            let seen = stretch.unwrap_or(size);
            let out = ConvGeometry::convolution(images, size, seen, kernel, padding, stride)
                .unwrap()
                .size();
            let given =
                Patches { images, channels, size, seen, out, kernel, stride, before: padding.0 };
            let last = |x: &Tensor| x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
            let all = images * out.0 * out.1;
            let inner = kernel * kernel * channels;
            let mut rows = Vec::new();
            // In two parts, as where memory is short.
            for (first, count) in [(0, all / 3), (all / 3, all - all / 3)] {
                let launch = plan::patches(reading, &given, first, count).unwrap();
                let result = vec![0xff; count * inner * dtype(format).size_in_bytes()];
                let got = run(emulator, &[launch], &[bytes(&last(&x)), result]);
                rows.push(tensor(&got[1], format, &[count, inner]).to_dtype(DType::F32).unwrap());
            }
            let rows = Tensor::cat(&rows, 0).unwrap();
            let matrix = last(&weight).reshape((outputs, inner)).unwrap();
            let got = rows.matmul(&matrix.t().unwrap()).unwrap();
            // Nothing is rounded: rows are copies.
            assert_near(&format!("patches {given:?}"), Format::F32, &got, &last(&want));
        }
    });
}

fn layer_norms(emulator: &mut Emulator) {
    in_all_formats(|reading| {
        let format = reading.format;
        for (rows, width, positions, run_of) in [(36, 24, 3, 2), (9, 320, 0, 1), (1, 8, 1, 1)] {
            let x = rounded(&random(&[rows, width], 7, 3.0), format);
            let [weight, bias] = [8, 9].map(|seed| rounded(&random(&[width], seed, 1.0), format));
            let table = rounded(&random(&[positions.max(1), width], 10, 0.0), format);
            let launch =
                plan::layer_norm(reading, (rows, width), (positions, run_of), 1e-5).unwrap();
            let result = vec![0xff; rows * width * dtype(format).size_in_bytes()];
            let buffers = [&x, &weight, &bias, &table].map(bytes);
            let got = run(emulator, &[launch], &[buffers.as_slice(), &[result]].concat());
            let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
            let table = wide(&table);
            let positions = (positions > 0).then_some(Positions { table: &table, run: run_of });
            let want = reference::layer_norm(
                &wide(&x),
                &wide(&weight),
                &wide(&bias),
                1e-5,
                positions.as_ref(),
            );
            let got = tensor(&got[4], format, &[rows, width]);
            assert_near(&format!("layer norm {reading:?}"), format, &got, &want.unwrap());
        }
    });
}

fn group_norms(emulator: &mut Emulator) {
    in_all_formats(|reading| {
        let format = reading.format;
        // The last has a mean far from zero, and pieces that do not divide. The CPU's kernel is the reference: it adds
        // up in f64, where candle's sums of so many values are less exact than ours.
        for (images, size, channels, groups, frames, silu, mean) in [
            (2, (3, 5), 24, 4, 1, false, 0.5),
            (6, (4, 4), 40, 5, 3, true, 0.0),
            (1, (1, 1), 8, 2, 1, true, 0.0),
            (2, (30, 31), 64, 32, 2, false, 30.0),
        ] {
            let options = GroupNormOptions { groups, eps: 1e-5, frames, silu };
            let pixels = size.0 * size.1;
            let x = random(&[images, channels, size.0, size.1], 11, mean);
            let x = rounded(&x, format);
            let [weight, bias] =
                [12, 13].map(|seed| rounded(&random(&[channels], seed, 1.0), format));
            let plan = plan::group_norm(reading, (images, pixels, channels), &options).unwrap();
            let last = |x: &Tensor| x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
            let nothing = |len: usize, dtype: DType| vec![0xff; len * dtype.size_in_bytes()];
            let buffers = [
                bytes(&last(&x)),
                bytes(&weight),
                bytes(&bias),
                nothing(plan.sums, DType::F32),
                nothing(plan.means, DType::F32),
                nothing(plan.means, DType::F32),
                nothing(x.elem_count(), dtype(format)),
            ];
            let got = run(emulator, &plan.launches, &buffers);
            let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
            let want = crate::group_norm(&wide(&x), &wide(&weight), &wide(&bias), &options);
            let got = tensor(&got[6], format, &[images, size.0, size.1, channels]);
            let what = format!("group norm {reading:?} {options:?} of {:?}", x.dims());
            assert_near(&what, format, &got, &last(&want.unwrap()));
        }
    });
}

fn attentions(emulator: &mut Emulator) {
    for format in [Format::F16, Format::Bf16] {
        for (batch, queries, keys, places, heads, dim) in [
            // Frames: 16 of them, fewer, and more than a tile.
            (1, 16, 16, 3, 2, 40),
            (2, 5, 5, 2, 3, 16),
            (1, 20, 20, 1, 5, 160),
            (1, 16, 16, 2, 1, 80),
            (1, 3, 3, 1, 2, 56),
            // Pixels and prompts: tails of queries and keys.
            (1, 70, 77, 1, 2, 40),
            (2, 65, 65, 1, 1, 80),
            (1, 33, 130, 1, 1, 160),
            (1, 64, 128, 1, 1, 8),
            (1, 40, 33, 2, 1, 64),
        ] {
            // Within rows that are longer, so that strides count.
            let make = |tokens: usize, seed: u64| {
                let shape = [batch, tokens, places, heads, dim + 8];
                rounded(&random(&shape, seed, 0.1), format)
            };
            let whole = [make(queries, 14), make(keys, 15), make(keys, 16)];
            let [q, k, v] = whole.each_ref().map(|x| x.narrow(4, 8, dim).unwrap());
            let view = |x: &Tensor| {
                let strides: [usize; 5] = x.stride().try_into().unwrap();
                View {
                    dims: x.dims().try_into().unwrap(),
                    strides: std::array::from_fn(|i| strides[i]),
                    start: x.layout().start_offset(),
                }
            };
            let scale = 1.3 / (dim as f64).sqrt();
            let launch = plan::attention(format, [&q, &k, &v].map(view), scale).unwrap();
            // A buffer begins where its view does.
            let [a, b, c] = whole.each_ref().map(|x| bytes(x)[16..].to_vec());
            let buffers = [a, b, c, vec![0xff; q.elem_count() * 2]];
            let got = run(emulator, std::slice::from_ref(&launch), &buffers);
            let wide = |x: &Tensor| {
                let x = x.to_dtype(DType::F32)?.transpose(1, 2)?.contiguous()?;
                x.flatten(0, 1)
            };
            let want = || -> Result<Tensor> {
                let y = reference::attention(&wide(&q)?, &wide(&k)?, &wide(&v)?, scale)?;
                y.reshape((batch, places, queries, heads, dim))?.transpose(1, 2)?.contiguous()
            };
            let got = tensor(&got[3], format, q.dims());
            let what = format!("{} of {:?} over {keys}", launch.kernel, q.dims());
            assert_near(&what, format, &got, &want().unwrap());
        }
    }
}

#[test]
fn kernels_for_gpus_equal_their_references_on_the_cpu() {
    let Some(mut emulator) = Emulator::new(&[]) else {
        eprintln!("skipped: the emulator is for Linux");
        return;
    };
    let emulator = &mut emulator;
    epilogues(emulator);
    gates(emulator);
    convolutions(emulator);
    layer_norms(emulator);
    group_norms(emulator);
    attentions(emulator);
    let missing: Vec<_> =
        plan::kernels().into_iter().filter(|k| !emulator.run.contains(k)).collect();
    assert!(missing.is_empty(), "never run: {missing:?}");
}

#[test]
fn the_emulator_sees_missing_barriers_and_bad_addresses() {
    let Some(mut racing) = Emulator::new(&["WITHOUT_BARRIERS"]) else {
        eprintln!("skipped: the emulator is for Linux");
        return;
    };
    let reading = Reading { format: Format::F32, aligned: true };
    let options = GroupNormOptions { groups: 4, eps: 1e-5, frames: 1, silu: false };
    let plan = plan::group_norm(reading, (1, 200, 32), &options).unwrap();
    let x = bytes(&random(&[200, 32], 1, 0.0));
    let mut emulator = Emulator::new(&[]).unwrap();
    let run = |emulator: &mut Emulator| {
        let mut buffers = [x.clone(), vec![], vec![], vec![0xff; plan.sums * size_of::<f32>()]];
        emulator.launch(&plan.launches[0], &mut buffers, 0).unwrap();
        buffers[3].clone()
    };
    assert_ne!(run(&mut racing), run(&mut emulator));

    // A result that is too small, and an argument that is missing.
    let launch = plan::geglu(reading, (3, 8), false).unwrap();
    let buffers = |result: usize| [vec![0; 3 * 16 * 4], vec![], vec![0; result]];
    assert!(emulator.launch(&launch, &mut buffers(3 * 8 * 4), 0).is_ok());
    assert!(emulator.launch(&launch, &mut buffers(2 * 8 * 4), 0).is_err());
    let mut launch = launch;
    launch.args.pop();
    let error = emulator.launch(&launch, &mut buffers(3 * 8 * 4), 0).unwrap_err();
    assert!(error.contains("number of arguments"), "{error}");
}
