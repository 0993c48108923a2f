//! Levels and results of runs against diffusers and k-diffusion, at many numbers of steps and with every spacing.

use animatelcm::rng::{Noise, RngKind};
use animatelcm::sampler::{PlanSettings, Run, SamplerKind};
use animatelcm::schedule::{BetaSchedule, Config, NoiseLevel, Prediction, Spacing};
use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::support::close::{assert_all_close, assert_relative};
use crate::support::golden;

/// A run in f32 against the reference in f64.
const RUN: f64 = 5e-6;

/// The same of fourth-order steps in `x / alpha`, which reaches 25.
const RUN_OF_HIGH_ORDER: f64 = 2e-5;

/// A timestep; the reference's are in f32.
const TIMESTEP: f64 = 1e-4;

/// A noise level, relatively.
const LEVEL: f64 = 2e-6;

fn text<'a>(case: &'a Value, key: &str) -> Option<&'a str> {
    case.get(key).and_then(Value::as_str)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// Relative differences of two lists that may hold zeros in the same places.
fn relative(got: &[f64], want: &[f64]) -> Vec<f64> {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| if g == w { 0.0 } else { g / w - 1.0 }).collect()
}

#[test]
fn every_run_is_that_of_its_reference() {
    let latents = golden::load("samplers/solvers");
    let cases = golden::json("samplers/solvers");
    let cases = cases.as_array().unwrap();
    let mut seen: Vec<SamplerKind> = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let kind: SamplerKind = text(case, "sampler").unwrap().parse().unwrap();
        let settings = PlanSettings {
            steps: case["steps"].as_u64().unwrap() as usize,
            spacing: text(case, "spacing").map(|name| name.parse().unwrap()),
            original_inference_steps: 50,
            gamma: case.get("gamma").map_or(f64::NAN, |gamma| gamma.as_f64().unwrap()),
            ..PlanSettings::default()
        };
        let config = Config {
            beta_schedule: text(case, "beta_schedule")
                .map_or(BetaSchedule::Linear, |name| name.parse().unwrap()),
            rescale_betas_zero_snr: case.get("rescale_betas_zero_snr").is_some(),
            ..Config::default()
        };
        let prediction: Prediction =
            text(case, "prediction_type").unwrap_or("epsilon").parse().unwrap();
        let plan = kind.plan(&config.schedule().unwrap(), &settings).unwrap();

        let timesteps: Vec<_> = plan.steps.iter().map(|step| step.at.timestep).collect();
        assert_all_close(&timesteps, &numbers(&case["timesteps"]), TIMESTEP);
        if let Some(sigmas) = case.get("sigmas") {
            let last = plan.steps.last().unwrap().next;
            let ratios: Vec<_> = plan
                .steps
                .iter()
                .map(|step| step.at)
                .chain([last])
                .map(NoiseLevel::ratio)
                .collect();
            let errors = relative(&ratios, &numbers(sigmas));
            assert_all_close(&errors, &vec![0.0; errors.len()], LEVEL);
        }

        let mut noise = Noise::new(RngKind::Cpu, 7);
        let start = noise.latents((1, 3, 2, 4, 5), &Device::Cpu).unwrap();
        let mut network = |x: &Tensor, at: NoiseLevel| {
            let output = ((x.tanh()? * 0.7)? + 0.1 * (at.timestep / 100.0).cos())?;
            prediction.denoised(x, &output, at)
        };
        let mut run = Run::new(&mut network, &plan.steps, &mut noise);
        let end = kind.build().sample(&mut run, (start * plan.initial_scale).unwrap()).unwrap();
        let want = latents.tensor(&i.to_string()).transpose(1, 2).unwrap();
        let is_high = matches!(kind, SamplerKind::Lms | SamplerKind::Pndm);
        let run = if is_high { RUN_OF_HIGH_ORDER } else { RUN };
        // A step from a high level down to a low one multiplies what is rounded at the low one, where a slope is a
        // difference over the level.
        let ratios: Vec<f64> = plan.steps.iter().map(|step| step.at.ratio()).collect();
        let falls = ratios.windows(2).map(|pair| pair[0] / pair[1]).filter(|fall| fall.is_finite());
        let rounding = f64::from(f32::EPSILON) / 2.0 * falls.fold(1.0, f64::max);
        assert_relative(&end, &want, run.max(rounding));
        seen.push(kind);
    }
    // LCM, DDIM and Euler ancestral have goldens of their own.
    let own = [SamplerKind::Lcm, SamplerKind::Ddim, SamplerKind::EulerAncestral];
    for kind in SamplerKind::ALL.into_iter().filter(|kind| !own.contains(kind)) {
        let count = seen.iter().filter(|seen| **seen == kind).count();
        assert!(count >= 5, "{kind} has {count} cases");
    }
}

#[test]
fn ays_takes_the_table_for_ten_steps_and_half_of_it_for_five() {
    let schedule = Config::default().schedule().unwrap();
    let timesteps = |steps| {
        let spacing = Some(Spacing::Ays);
        let settings = PlanSettings { steps, spacing, ..PlanSettings::default() };
        let plan = SamplerKind::Euler.plan(&schedule, &settings).unwrap();
        plan.steps.iter().map(|step| step.at.timestep).collect::<Vec<_>>()
    };
    let ten = [999.0, 850.0, 736.0, 645.0, 545.0, 455.0, 343.0, 233.0, 124.0, 24.0];
    assert_eq!(timesteps(10), ten);
    assert_eq!(timesteps(5), [999.0, 736.0, 545.0, 343.0, 124.0]);
    let short = Config { num_train_timesteps: 500, ..Config::default() };
    let settings = PlanSettings { spacing: Some(Spacing::Ays), ..PlanSettings::default() };
    let error = SamplerKind::Euler.plan(&short.schedule().unwrap(), &settings).unwrap_err();
    assert_eq!(error.to_string(), "spacing: ays is for models of 1000 timesteps, this one has 500");
}

#[test]
fn gamma_says_how_random_tcd_is() {
    let schedule = Config::default().schedule().unwrap();
    let plan = |gamma| {
        let settings = PlanSettings { gamma, ..PlanSettings::default() };
        SamplerKind::Tcd.plan(&schedule, &settings)
    };
    let via = |gamma| plan(gamma).unwrap().steps.iter().map(|s| s.via.timestep).collect::<Vec<_>>();
    assert_eq!(via(0.0), [749.0, 499.0, 249.0, 0.0]);
    assert_eq!(via(0.3), [524.0, 349.0, 174.0, 0.0]);
    assert_eq!(via(1.0), [0.0; 4]);
    // The last step draws none, and without gamma no step does.
    for (gamma, draws) in [(0.0, 0), (0.3, 3), (1.0, 3)] {
        let x = Tensor::zeros((1, 1, 4, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let replay = vec![x.ones_like().unwrap(); draws];
        let mut noise = Noise::new(RngKind::Cpu, 1).with_replay(replay);
        let mut network = |x: &Tensor, _: NoiseLevel| Ok(x.clone());
        let plan = plan(gamma).unwrap();
        let mut run = Run::new(&mut network, &plan.steps, &mut noise);
        SamplerKind::Tcd.build().sample(&mut run, x.clone()).unwrap();
        let untouched = Noise::new(RngKind::Cpu, 1).like(&x).unwrap();
        assert_relative(&noise.like(&x).unwrap(), &untouched, 0.0);
    }
    for gamma in [-0.1, 1.1, f64::NAN] {
        let error = plan(gamma).unwrap_err().to_string();
        assert!(error.starts_with("tcd-gamma: must be between 0 and 1"), "{error}");
    }
}
