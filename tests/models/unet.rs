//! The UNet and its motion modules against diffusers.

use animatelcm::Stop;
use animatelcm::models::motion::{MotionConfig, MotionModule, MotionNorm};
use animatelcm::models::unet::{Injection, UNet, UNetInput};
use candle_core::{DType, Tensor};

use crate::support::close::{assert_relative, relative_l2};
use crate::support::tiny::{self, MOTION, case, fold, unfold};

/// Modules and single passes in f32, relative L2.
const F32: f64 = 1e-5;

fn pass(unet: &UNet, x: &Tensor, context: &Tensor, motion_norm: MotionNorm) -> Tensor {
    let (batch, _, frames, ..) = x.dims5().unwrap();
    let y = unet
        .forward(
            &fold(x),
            &UNetInput {
                timestep: 759.0,
                frames,
                context,
                motion_norm,
                injection: &Injection::default(),
                stop: &Stop::default(),
            },
        )
        .unwrap();
    unfold(&y, batch)
}

#[test]
fn one_pass_equals_diffusers() {
    let case = case("unet");
    let unet = tiny::unet(DType::F32);
    assert_relative(&pass(&unet, &case["x"], &case["ctx"], MotionNorm::Pooled), &case["y"], F32);
}

#[test]
fn one_pass_with_norms_per_frame_equals_the_official_semantics() {
    let case = case("unet");
    let unet = tiny::unet(DType::F32);
    let y = pass(&unet, &case["x"], &case["ctx"], MotionNorm::PerFrame);
    assert_relative(&y, &case["y.per_frame_norm"], F32);
    assert!(relative_l2(&y, &case["y"]) > 0.01, "both norms give the same result");
}

#[test]
fn two_clips_in_one_batch_do_not_mix() {
    let case = case("unet");
    let unet = tiny::unet(DType::F32);
    let y = pass(&unet, &case["batch.x"], &case["batch.ctx"], MotionNorm::Pooled);
    assert_relative(&y, &case["batch.y"], F32);
}

#[test]
fn sizes_that_do_not_halve_evenly_meet_the_skips() {
    let case = case("unet");
    let unet = tiny::unet(DType::F32);
    assert_relative(
        &pass(&unet, &case["odd.x"], &case["ctx"], MotionNorm::Pooled),
        &case["odd.y"],
        F32,
    );
}

#[test]
fn one_motion_module_equals_diffusers_with_both_norms() {
    let case = case("unet");
    let config: MotionConfig = tiny::config("tiny/model/motion_adapter/config.json");
    let vb = tiny::vb(&[MOTION], DType::F32).pp("down_blocks.0.motion_modules.0");
    for (norm, want) in [
        (MotionNorm::Pooled, "down0.motion0"),
        (MotionNorm::PerFrame, "down0.motion0.per_frame_norm"),
    ] {
        let module = MotionModule::new(&config, 8, 4, &vb).unwrap();
        assert_relative(
            &module.forward(&case["down0.attn0"], 6, norm, &Stop::default()).unwrap(),
            &case[want],
            F32,
        );
    }
}

#[test]
fn half_precision_stays_within_its_measured_error() {
    let case = case("unet");
    // Measured on the CPU: 2.2e-3 and 1.8e-2; the tolerances leave about half as much again.
    for (dtype, tolerance) in [(DType::F16, 3e-3), (DType::BF16, 2.7e-2)] {
        let unet = tiny::unet(dtype);
        let to = |x: &Tensor| x.to_dtype(dtype).unwrap();
        let y = pass(&unet, &to(&case["x"]), &to(&case["ctx"]), MotionNorm::Pooled);
        assert_relative(&y.to_dtype(DType::F32).unwrap(), &case["y"], tolerance);
    }
}

#[test]
fn too_many_frames_are_refused_with_both_numbers() {
    let unet = tiny::unet(DType::F32);
    let x = Tensor::zeros((9, 4, 8, 8), DType::F32, &candle_core::Device::Cpu).unwrap();
    let context = &case("unet")["ctx"];
    let error = unet
        .forward(
            &x,
            &UNetInput {
                timestep: 1.0,
                frames: 9,
                context,
                motion_norm: MotionNorm::Pooled,
                injection: &Injection::default(),
                stop: &Stop::default(),
            },
        )
        .unwrap_err();
    assert_eq!(error.kind().exit_code(), 2);
    assert!(error.to_string().contains('9') && error.to_string().contains('8'), "{error}");
}
