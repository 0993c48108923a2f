//! Noise against torch's generators.

use animatelcm::Error;
use animatelcm::rng::{Noise, RngKind};
use candle_core::{Device, Tensor};

use crate::support::close::{assert_all_close, assert_close};
use crate::support::golden;

/// What separates torch's vector arithmetic from ours.
const CPU: f64 = 2.4e-7;

/// A GPU's fast sine and cosine are good to about this.
const CUDA: f64 = 2e-6;

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

#[test]
fn whole_blocks_are_those_of_the_cpu_generator() {
    let bank = golden::load("tiny/cases/noise");
    let mut noise = Noise::new(RngKind::Cpu, 21);
    for i in 0..bank.names().len() {
        let want = bank.values(&format!("noise.{i}"));
        assert_all_close(&wide(&noise.normal(want.len())), &want, CPU);
    }
}

#[test]
fn a_ragged_draw_renews_its_last_block() {
    let inputs = golden::load("samplers/inputs");
    let mut noise = Noise::new(RngKind::Cpu, 20_240_201);
    for name in ["init", "noise.0", "noise.1", "noise.2", "noise.3", "noise.4", "noise.5"] {
        let want = inputs.values(name);
        assert_ne!(want.len() % 16, 0, "the golden should be ragged");
        assert_all_close(&wide(&noise.normal(want.len())), &want, CPU);
    }
}

#[test]
fn latents_are_drawn_channels_first_and_given_frames_first() {
    let bank = golden::load("tiny/cases/noise");
    let want = bank.tensor("noise.0").transpose(1, 2).unwrap();
    let shape = want.dims5().unwrap();
    let mut noise = Noise::new(RngKind::Cpu, 21);
    let first = noise.latents(shape, &Device::Cpu).unwrap();
    assert_close(&first, &want, CPU);
    let second = noise.like(&first).unwrap();
    assert_close(&second, &bank.tensor("noise.1").transpose(1, 2).unwrap(), CPU);
}

#[test]
fn draws_of_every_length_are_those_of_torch() {
    let about = golden::json("rng/rng");
    for (kind, file, tolerance) in [(RngKind::Cpu, "cpu", CPU), (RngKind::Cuda, "cuda", CUDA)] {
        let want = golden::load(&format!("rng/{file}"));
        for seed in about["seeds"].as_array().unwrap() {
            let mut noise = Noise::new(kind, seed.as_u64().unwrap());
            for (i, n) in about["draws"].as_array().unwrap().iter().enumerate() {
                let drawn = noise.normal(n.as_u64().unwrap() as usize);
                assert_all_close(&wide(&drawn), &want.values(&format!("{seed}.{i}")), tolerance);
            }
        }
    }
}

#[test]
fn a_spare_number_waits_while_longer_draws_pass() {
    let about = golden::json("rng/rng");
    let want = golden::load("rng/cpu");
    let mut noise = Noise::new(RngKind::Cpu, about["small"]["seed"].as_u64().unwrap());
    for (i, n) in about["small"]["draws"].as_array().unwrap().iter().enumerate() {
        let drawn = noise.normal(n.as_u64().unwrap() as usize);
        assert_all_close(&wide(&drawn), &want.values(&format!("small.{i}")), CPU);
    }
}

#[test]
fn the_end_of_a_long_draw_is_that_of_torch() {
    let want = golden::load("rng/cpu");
    let drawn = wide(&Noise::new(RngKind::Cpu, 7).normal(100_003));
    assert_all_close(&drawn[100_003 - 48..], &want.values("large"), CPU);
    assert_all_close(&[drawn.iter().sum()], &want.values("large.sum"), 1e-3);
}

#[test]
fn a_small_gpu_uses_all_four_values_of_a_call() {
    let want = golden::load("rng/cuda");
    let mut noise = Noise::with_cuda_threads(42, 2 * 256);
    for (i, n) in [1000, 3, 5000].into_iter().enumerate() {
        assert_all_close(&wide(&noise.normal(n)), &want.values(&format!("capped.{i}")), CUDA);
    }
}

#[test]
fn the_cuda_generator_gives_what_people_saw_on_their_gpus() {
    for case in golden::json("rng/rng")["published"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let seed = case["seed"].as_u64().unwrap();
        let mut noise = match case["max_blocks"].as_u64() {
            Some(blocks) => Noise::with_cuda_threads(seed, 256 * blocks as usize),
            None => Noise::new(RngKind::Cuda, seed),
        };
        let drawn: Vec<_> = case["draws"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| noise.normal(n.as_u64().unwrap() as usize))
            .collect();
        let seen = case["values"].as_array().unwrap();
        assert!(seen.len() >= 3);
        let (got, want): (Vec<_>, Vec<_>) = seen
            .iter()
            .map(|entry| {
                let at = |i: usize| entry[i].as_u64().unwrap() as usize;
                let value = f64::from(drawn[at(0)][at(1)]) * number("std") + number("mean");
                (value, entry[2].as_f64().unwrap())
            })
            .unzip();
        // Half of the last printed digit.
        let tolerance = if number("digits") == 8.0 { CUDA } else { 5.2e-5 };
        assert_all_close(&got, &want, tolerance);
    }
}

#[test]
fn the_cpu_generator_uses_32_bits_of_the_seed() {
    let draw = |seed| Noise::new(RngKind::Cpu, seed).normal(16);
    assert_eq!(draw(5), draw((1 << 32) + 5));
    assert_ne!(draw(5), draw(6));
}

#[test]
fn the_cuda_generator_moves_on_and_uses_64_bits_of_the_seed() {
    let mut noise = Noise::new(RngKind::Cuda, 1);
    let (first, second) = (noise.normal(64), noise.normal(64));
    assert_ne!(first, second);
    assert_ne!(first, Noise::new(RngKind::Cuda, (1 << 32) + 1).normal(64));
}

#[test]
fn a_gpu_with_enough_threads_changes_nothing() {
    let mut wide_gpu = Noise::with_cuda_threads(3, 132 * 2048);
    let mut narrow_gpu = Noise::with_cuda_threads(3, 512);
    let want = Noise::new(RngKind::Cuda, 3).normal(2000);
    assert_eq!(wide_gpu.normal(2000), want);
    let narrow = narrow_gpu.normal(2000);
    assert_eq!(narrow[..512], want[..512]);
    assert_ne!(narrow[512..1024], want[512..1024]);
}

#[test]
fn large_draws_are_standard_normal() {
    for kind in [RngKind::Cpu, RngKind::Cuda] {
        let values = wide(&Noise::new(kind, 7).normal(200_000));
        let moment =
            |power| values.iter().map(|v| v.powi(power)).sum::<f64>() / values.len() as f64;
        assert_all_close(
            &[moment(1), moment(2), moment(3), moment(4)],
            &[0.0, 1.0, 0.0, 3.0],
            0.05,
        );
    }
}

#[test]
fn replayed_tensors_come_first_and_leave_the_generator_alone() {
    let shape = (1, 2, 3, 2, 2);
    let recorded = Tensor::full(7.0_f32, shape, &Device::Cpu).unwrap();
    let mut noise = Noise::new(RngKind::Cpu, 9).with_replay(vec![recorded.clone()]);
    let first = noise.like(&recorded).unwrap();
    let second = noise.like(&recorded).unwrap();
    assert_close(&first, &recorded, 0.0);
    let fresh = Noise::new(RngKind::Cpu, 9).latents(shape, &Device::Cpu).unwrap();
    assert_close(&second, &fresh, 0.0);
}

#[test]
fn a_replayed_tensor_of_another_shape_fails() {
    let recorded = Tensor::zeros((1, 2, 3, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut noise = Noise::new(RngKind::Cpu, 9).with_replay(vec![recorded]);
    let error = noise.latents((1, 3, 2, 2, 2), &Device::Cpu).unwrap_err();
    assert!(matches!(&error, Error::Request { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "noise: a replayed tensor is [1, 2, 3, 2, 2], the run needs [1, 3, 2, 2, 2]"
    );
}

#[test]
fn kinds_are_read_and_written_alike() {
    for kind in [RngKind::Cpu, RngKind::Cuda] {
        let name = kind.to_string();
        assert_eq!(name.parse::<RngKind>().unwrap(), kind);
        assert_eq!(serde_json::to_value(kind).unwrap(), name);
    }
    let error = "mps".parse::<RngKind>().unwrap_err();
    assert_eq!(error.to_string(), "rng: `mps` is none of `cpu`, `cuda`");
}
