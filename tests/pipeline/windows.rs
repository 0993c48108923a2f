//! Long clips in context windows, against diffusers and against runs without any.

use std::collections::BTreeMap;

use animatelcm::Result;
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, Files, Models};
use animatelcm::models::motion::MotionNorm;
use animatelcm::pipeline::denoiser::{Guidance, Guided, Settings};
use animatelcm::pipeline::memory::Plan;
use animatelcm::pipeline::windows::Windowed;
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::{Loop, Request, Windows};
use animatelcm::rng::NoiseKind;
use animatelcm::sampler::{
    Denoiser, Fuse, SamplerKind, WindowPlan, WindowSchedule, WindowSettings,
};
use animatelcm::schedule::{NoiseLevel, Prediction};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_relative, relative_l2};
use crate::support::golden;
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny::{self, case};

/// The motion modules of the tiny model know 8 frames.
fn request(frames: usize) -> Request {
    Request::new("a corgi").with(|r| {
        (r.size.width, r.size.height, r.size.frames) = (Some(32), Some(32), Some(frames));
        r.sampling.steps = 2;
        r.sampling.seed = Some(3);
    })
}

fn pipeline() -> Pipeline {
    let models = Models::open(&Files::new(Base::Folder(golden::path("tiny/model")))).unwrap();
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    Pipeline::new(models, Device::Cpu, precision, Residency::Sequential)
}

/// The latents and frames of a run.
fn run(request: &Request) -> Result<(Vec<f32>, usize)> {
    let mut tensors = Tensors { recorded: Some(BTreeMap::new()), ..Tensors::default() };
    let mut frames = Vec::new();
    pipeline().run(request, &mut tensors, &mut |_: Event| Ok(()), &mut &mut frames)?;
    let latents = tensors.recorded.unwrap()["latents"].flatten_all()?.to_vec1()?;
    Ok((latents, frames.len()))
}

fn guided<'a>(unet: &'a animatelcm::models::unet::UNet, context: &Tensor) -> Guided<'a> {
    let settings = Settings {
        prediction: Prediction::Epsilon,
        dtype: DType::F32,
        motion_norm: MotionNorm::PerFrame,
    };
    Guided::new(unet, settings, context).unwrap()
}

/// In the layout of samplers.
fn frames_first(x: &Tensor) -> Tensor {
    x.transpose(1, 2).unwrap().contiguous().unwrap()
}

#[test]
fn a_step_in_windows_is_that_of_diffusers_blended_by_its_weights() {
    let told = &golden::json("free_noise/free_noise")["windows"];
    let number = |key: &str| told[key].as_u64().unwrap() as usize;
    let (frames, length, stride) = (number("frames"), number("length"), number("stride"));
    let goldens = golden::load("free_noise/blended");
    let plan = WindowPlan::new(
        frames,
        WindowSettings {
            length,
            overlap: length - stride,
            stride: 1,
            schedule: WindowSchedule::Static,
            fuse: Fuse::Pyramid,
            is_closed: false,
        },
    )
    .unwrap();
    let spans: Vec<Vec<usize>> = serde_json::from_value(told["spans"].clone()).unwrap();
    let ours: Vec<_> = plan.at(0).iter().map(|w| vec![w.frames[0], w.frames[0] + length]).collect();
    assert_eq!(ours, spans);
    let unet = tiny::unet(DType::F32);
    let x = frames_first(&goldens.tensor("x"));
    let at = NoiseLevel::from_ratio(told["timestep"].as_f64().unwrap(), 5.0);
    let mut windowed = Windowed::new(guided(&unet, &goldens.tensor("ctx")), Some(plan));
    let got = windowed.denoise(&x, at).unwrap();
    let want = Prediction::Epsilon.denoised(&x, &frames_first(&goldens.tensor("eps")), at).unwrap();
    assert_relative(&got, &want, 1e-5);
}

#[test]
fn every_step_has_the_windows_of_its_number() {
    let unet = tiny::unet(DType::F32);
    let context = case("unet")["ctx"].narrow(0, 0, 1).unwrap();
    let settings = WindowSettings {
        length: 4,
        overlap: 1,
        stride: 1,
        schedule: WindowSchedule::Uniform,
        fuse: Fuse::Flat,
        is_closed: false,
    };
    let plan = WindowPlan::new(11, settings).unwrap();
    let x = Tensor::randn(0f32, 1.0, (1, 11, 4, 8, 8), &Device::Cpu).unwrap();
    let at = NoiseLevel::from_ratio(500.0, 1.0);
    let mut windowed = Windowed::new(guided(&unet, &context), Some(plan));
    let mut of_step = |step| {
        windowed.begin_step(step, 4);
        windowed.denoise(&x, at).unwrap()
    };
    let (first, second) = (of_step(0), of_step(1));
    assert!(relative_l2(&second, &first) > 1e-4, "windows do not move");
    assert_relative(&of_step(0), &first, 0.0);
    // Latents of another clip than the one that was planned.
    let fewer = x.narrow(1, 0, 10).unwrap();
    assert!(windowed.denoise(&fewer, at).is_err());
}

#[test]
fn one_window_is_bit_identical_to_none() {
    for sampler in [SamplerKind::Lcm, SamplerKind::Heun] {
        for cfg_scale in [1.0, 2.0] {
            let plain = request(6).with(|r| {
                r.sampling.sampler = sampler;
                r.sampling.cfg_scale = cfg_scale;
            });
            let want = run(&plain).unwrap();
            let all = WindowSchedule::ALL.into_iter().zip(Fuse::ALL);
            for (length, (schedule, fuse)) in [6, 7, 8].into_iter().zip(all) {
                let windowed = plain.clone().with(|r| {
                    r.windows.length = Some(length);
                    r.windows.schedule = Some(schedule);
                    r.windows.fuse = Some(fuse);
                    r.sampling.noise = NoiseKind::FreeNoise;
                });
                assert!(run(&windowed).unwrap() == want, "{sampler}, {schedule}, {fuse}");
            }
        }
    }
}

#[test]
fn clips_longer_than_the_motion_modules_know_have_windows_and_others_none() {
    let prepared = pipeline().prepared(&request(8)).unwrap();
    assert_eq!((prepared.windows, prepared.request.windows), (None, Windows::default()));

    let long = request(15);
    let prepared = pipeline().prepared(&long).unwrap();
    assert_eq!(prepared.windows.map(|windows| windows.length()), Some(8));
    let completed = Windows {
        length: Some(8),
        overlap: Some(4),
        stride: Some(1),
        schedule: Some(WindowSchedule::Uniform),
        fuse: Some(Fuse::Pyramid),
    };
    assert_eq!(prepared.request.windows, completed);
    let (latents, count) = run(&long).unwrap();
    assert_eq!(count, 15);
    assert!(latents.iter().all(|value| value.is_finite()));
    // What was completed makes the same clip, other windows another.
    assert!(run(&prepared.request).unwrap().0 == latents);
    for change in [
        Windows { length: Some(6), ..Windows::default() },
        Windows { overlap: Some(1), ..Windows::default() },
        Windows { schedule: Some(WindowSchedule::Static), ..Windows::default() },
        Windows { schedule: Some(WindowSchedule::UniformLooped), ..Windows::default() },
        Windows { fuse: Some(Fuse::Relative), ..Windows::default() },
    ] {
        let other = long.clone().with(|r| r.windows = change.clone());
        assert!(run(&other).unwrap().0 != latents, "{change:?} changes nothing");
    }
    for noise in [NoiseKind::FreeNoise, NoiseKind::Repeat] {
        let other = long.clone().with(|r| r.sampling.noise = noise);
        assert!(run(&other).unwrap().0 != latents, "{noise} changes nothing");
    }
}

#[test]
fn closed_loops_have_looped_windows_even_where_a_clip_fits_one() {
    for frames in [5, 8, 11] {
        let plain = run(&request(frames)).unwrap();
        let closed = request(frames).with(|r| r.output.looping = Loop::Closed);
        let prepared = pipeline().prepared(&closed).unwrap();
        assert_eq!(prepared.request.windows.schedule, Some(WindowSchedule::UniformLooped));
        let windows = prepared.windows.unwrap().at(0);
        assert!(windows.iter().any(|w| !w.frames.is_sorted()), "{frames} frames are not closed");
        let got = run(&closed).unwrap();
        assert_eq!(got.1, frames);
        assert!(got != plain);
        // Forth and back is the file's matter.
        let pingpong = request(frames).with(|r| r.output.looping = Loop::PingPong);
        assert!(run(&pingpong).unwrap() == plain);
    }
}

#[test]
fn windows_that_the_model_cannot_have_are_refused() {
    let refused = |request: Request, field: &str, hint: &str| {
        let error = pipeline().prepared(&request).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(error.to_string().starts_with(field), "{error}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{:?}", error.hint());
    };
    refused(request(11).with(|r| r.windows.length = Some(9)), "context-length", "at most 8");
    refused(request(4).with(|r| r.windows.length = Some(9)), "context-length", "at most 8");
    // Less than 16, but not than what this model knows.
    refused(request(11).with(|r| r.windows.overlap = Some(8)), "context-overlap", "at most 7");
    let closed = request(11).with(|r| {
        r.output.looping = Loop::Closed;
        r.windows.schedule = Some(WindowSchedule::Uniform);
    });
    refused(closed, "loop", "");
}

#[test]
fn memory_is_that_of_a_window_and_of_what_is_kept_of_all_frames() {
    let plan = |frames, looping| {
        let request = request(frames).with(|r| r.output.looping = looping);
        pipeline().prepared(&request).unwrap().memory
    };
    let (whole, long) = (plan(8, Loop::None), plan(80, Loop::None));
    assert_eq!(long.pass, whole.pass);
    // Latents of 80 frames in f32, a few times.
    assert!((80 * 4 * 8 * 8 * 4..80 * 4 * 8 * 8 * 4 * 20).contains(&long.clip), "{long:?}");
    assert_eq!(whole.clip, 0);
    let without = Plan { clip: 0, ..long };
    assert_eq!(long.total(Guidance::Batched) - without.total(Guidance::Batched), long.clip);
    let pingpong = plan(80, Loop::PingPong);
    assert_eq!(pingpong.clip - long.clip, 80 * 32 * 32 * 3);
}
