//! First noise of clips in context windows, against diffusers' FreeNoise.

use animatelcm::rng::{Noise, NoiseKind, RngKind};
use candle_core::{Device, Tensor};

use crate::support::close::assert_close;
use crate::support::golden;

/// In the layout of files, `(1, channels, frames, height, width)`.
fn channels_first(x: &Tensor) -> Tensor {
    x.transpose(1, 2).unwrap().contiguous().unwrap()
}

fn draw(noise: &mut Noise, kind: NoiseKind, frames: usize, windows: (usize, usize)) -> Tensor {
    noise.clip(kind, (1, frames, 4, 2, 3), windows, &Device::Cpu).unwrap()
}

#[test]
fn shuffled_noise_is_that_of_diffusers_and_so_is_what_is_drawn_next() {
    let told = golden::json("free_noise/free_noise");
    let goldens = golden::load("free_noise/noise");
    let cases = told["noise"].as_object().unwrap();
    assert!(cases.len() >= 5);
    for (name, case) in cases {
        let number = |key: &str| case[key].as_u64().unwrap();
        let (frames, length) = (number("frames") as usize, number("length") as usize);
        let windows = (length, number("stride") as usize);
        let mut noise = Noise::new(RngKind::Cpu, number("seed"));
        let got = draw(&mut noise, NoiseKind::FreeNoise, frames, windows);
        assert_close(&channels_first(&got), &goldens.tensor(name), 1e-6);
        let next = Tensor::new(noise.normal(64), &Device::Cpu).unwrap();
        assert_close(&next, &goldens.tensor(&format!("{name}.next")), 1e-6);
    }
}

#[test]
fn permutations_are_those_of_torch() {
    let goldens = golden::load("free_noise/noise");
    for n in [1, 2, 7, 100] {
        let mut noise = Noise::new(RngKind::Cpu, n);
        let got: Vec<f64> =
            (0..3).flat_map(|_| noise.permutation(n as usize)).map(|place| place as f64).collect();
        assert_eq!(got, goldens.values(&format!("permutation.{n}")));
    }
}

/// The values of every frame.
fn frames(x: &Tensor) -> Vec<Vec<f32>> {
    let x = x.squeeze(0).unwrap().flatten_from(1).unwrap();
    x.to_vec2().unwrap()
}

#[test]
fn every_window_has_the_noise_of_the_first() {
    for rng in [RngKind::Cpu, RngKind::Cuda] {
        for (count, length, hop) in [(40, 16, 12), (33, 16, 4), (21, 5, 5), (17, 16, 1)] {
            let drawn = |kind| frames(&draw(&mut Noise::new(rng, 9), kind, count, (length, hop)));
            let sorted = |frames: &[Vec<f32>]| {
                let mut frames = frames.to_vec();
                frames.sort_by(|a, b| a.partial_cmp(b).unwrap());
                frames
            };
            let plain = drawn(NoiseKind::Independent);
            let free = drawn(NoiseKind::FreeNoise);
            assert_eq!(free[..length], plain[..length]);
            for start in (0..=count - length).step_by(hop) {
                assert_eq!(sorted(&free[start..start + length]), sorted(&free[..length]));
            }
            let repeated = drawn(NoiseKind::Repeat);
            let first = Noise::new(rng, 9).latents((1, length, 4, 2, 3), &Device::Cpu).unwrap();
            let first = frames(&first);
            for (i, frame) in repeated.iter().enumerate() {
                assert_eq!(*frame, first[i % length], "frame {i}");
            }
        }
    }
}

#[test]
fn a_clip_of_one_window_has_the_same_noise_of_every_kind() {
    for kind in [NoiseKind::Independent, NoiseKind::FreeNoise, NoiseKind::Repeat] {
        for frames_ in [1, 7, 16] {
            let got = draw(&mut Noise::new(RngKind::Cpu, 3), kind, frames_, (16, 12));
            let plain = Noise::new(RngKind::Cpu, 3).latents((1, frames_, 4, 2, 3), &Device::Cpu);
            assert_eq!(frames(&got), frames(&plain.unwrap()));
        }
    }
}
