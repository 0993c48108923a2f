//! Samplers against diffusers, and against distributions whose answer is known.

use animatelcm::rng::{Noise, RngKind};
use animatelcm::sampler::{
    Ddim, Deis, Denoiser, Dpmpp2m, Dpmpp2mSde, Dpmpp3mSde, DpmppSde, Euler, EulerAncestral, Heun,
    Lcm, Lms, Plan, PlanSettings, Pndm, Progress, Run, Sampler, SamplerKind, Step, Tcd, UniPc,
};
use animatelcm::schedule::{BetaSchedule, Config, NoiseLevel, NoiseSchedule, Prediction, Spacing};
use animatelcm::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::support::close::{assert_all_close, assert_close, assert_relative};
use crate::support::golden;

/// A whole run in f32 against another in f32.
const RUN: f64 = 2e-6;

/// The same from where noise counts 4096-fold. The reference differs by 2e-5 from its own formula in f64 there, which
/// is where the difference of two numbers of that size is rounded.
const RUN_FROM_PURE_NOISE: f64 = 5e-5;

/// A noise level, relatively.
const LEVEL: f64 = 2e-6;

fn schedule(kind: &str, beta_end: f64) -> NoiseSchedule {
    NoiseSchedule::new(kind.parse().unwrap(), 0.00085, beta_end, 1000).unwrap()
}

fn linear() -> NoiseSchedule {
    schedule("linear", 0.012)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn timesteps(plan: &Plan) -> Vec<f64> {
    plan.steps.iter().map(|step| step.at.timestep).collect()
}

/// Largest relative difference of two lists that may hold zeros in the same places.
fn assert_ratios(got: &[f64], want: &[f64]) {
    let errors: Vec<_> =
        got.iter().zip(want).map(|(g, w)| if g == w { 0.0 } else { g / w - 1.0 }).collect();
    assert_all_close(&errors, &vec![0.0; want.len()], LEVEL);
}

#[test]
fn lcm_visits_the_timesteps_of_the_reference() {
    let mut failures = 0;
    for case in golden::json("schedules/schedules")["lcm"].as_array().unwrap() {
        let settings = PlanSettings {
            steps: case["steps"].as_u64().unwrap() as usize,
            original_inference_steps: case["original_steps"].as_u64().unwrap() as usize,
            strength: case["strength"].as_f64().unwrap(),
            ..PlanSettings::default()
        };
        let schedule = schedule("linear", case["beta_end"].as_f64().unwrap());
        let plan = SamplerKind::Lcm.plan(&schedule, &settings);
        if case.get("error").is_some() {
            failures += 1;
            assert!(matches!(plan, Err(error) if error.kind().exit_code() == 2), "{case}");
            continue;
        }
        let plan = plan.unwrap();
        assert_eq!(timesteps(&plan), numbers(&case["timesteps"]), "{case}");
        assert_eq!(plan.initial_scale, 1.0);
        assert_chained(&plan);
    }
    assert!(failures >= 6, "the golden should hold refused cases");
}

/// Every step ends where the following begins, the last one without noise.
fn assert_chained(plan: &Plan) {
    let starts = plan.steps.iter().skip(1).map(|step| step.at).chain([NoiseLevel::CLEAN]);
    for (step, start) in plan.steps.iter().zip(starts) {
        assert_eq!(step.next, start);
    }
}

#[test]
fn ddim_steps_down_as_the_reference_does() {
    for case in golden::json("schedules/schedules")["ddim"].as_array().unwrap() {
        let schedule = schedule(case["beta_schedule"].as_str().unwrap(), 0.012);
        let plan = SamplerKind::Ddim.plan(&schedule, &case_settings(case)).unwrap();
        assert_eq!(timesteps(&plan), numbers(&case["timesteps"]), "{case}");
        let last = case["final_alpha_cumprod"].as_f64().unwrap();
        for (step, previous) in plan.steps.iter().zip(numbers(&case["previous"])) {
            let share =
                if previous < 0.0 { last } else { schedule.cumulative()[previous as usize] };
            assert!((step.next.alpha.powi(2) / share - 1.0).abs() < LEVEL, "{case}");
        }
    }
}

fn case_settings(case: &Value) -> PlanSettings {
    PlanSettings {
        steps: case["steps"].as_u64().unwrap() as usize,
        spacing: Some(case["spacing"].as_str().unwrap().parse().unwrap()),
        ..PlanSettings::default()
    }
}

#[test]
fn the_other_samplers_visit_the_levels_of_the_reference() {
    let schedules = golden::json("schedules/schedules");
    let kinds = [
        ("euler", SamplerKind::Euler),
        ("euler_ancestral", SamplerKind::EulerAncestral),
        ("heun", SamplerKind::Heun),
        ("dpmpp_2m", SamplerKind::Dpmpp2m),
        ("dpmpp_2m_karras", SamplerKind::Dpmpp2m),
    ];
    for (name, kind) in kinds {
        let mut seen = 0;
        for case in schedules[name].as_array().unwrap() {
            let schedule = schedule(case["beta_schedule"].as_str().unwrap(), 0.012);
            let mut settings = case_settings(case);
            if name.ends_with("karras") {
                settings.spacing = Some(Spacing::Karras);
            }
            let plan = kind.plan(&schedule, &settings).unwrap();
            let once = |mut all: Vec<f64>| {
                // Heun's list has a level for every evaluation.
                if kind == SamplerKind::Heun {
                    all.dedup();
                }
                all
            };
            assert_all_close(&timesteps(&plan), &once(numbers(&case["timesteps"])), 1e-4);
            let ratios: Vec<_> = plan
                .steps
                .iter()
                .map(|step| step.at.ratio())
                .chain([plan.steps.last().unwrap().next.ratio()])
                .collect();
            assert_ratios(&ratios, &once(numbers(&case["sigmas"])));
            assert_chained(&plan);
            // The reference's start is in the terms of Karras et al.
            let start = plan.initial_scale / plan.start().alpha;
            let want = case.get("init_noise_sigma").and_then(Value::as_f64);
            assert_ratios(&[start], &[want.unwrap_or(1.0 / plan.start().alpha)]);
            seen += 1;
        }
        assert!(seen >= 30, "{name} has {seen} cases");
    }
}

#[test]
fn every_run_is_that_of_the_reference() {
    let inputs = golden::load("samplers/inputs");
    let ours = |x: Tensor| x.transpose(1, 2).unwrap();
    let cases = golden::json("samplers/samplers");
    assert_eq!(cases.as_object().unwrap().len(), 40);
    for (name, case) in cases.as_object().unwrap() {
        let want = golden::load(&format!("samplers/{name}"));
        let config = &case["config"];
        let kind = match case["scheduler"].as_str().unwrap() {
            "LCMScheduler" => SamplerKind::Lcm,
            "DDIMScheduler" => SamplerKind::Ddim,
            "EulerDiscreteScheduler" => SamplerKind::Euler,
            "EulerAncestralDiscreteScheduler" => SamplerKind::EulerAncestral,
            "HeunDiscreteScheduler" => SamplerKind::Heun,
            _ => SamplerKind::Dpmpp2m,
        };
        let scheduler = Config {
            beta_schedule: config["beta_schedule"].as_str().unwrap().parse().unwrap(),
            beta_end: config["beta_end"].as_f64().unwrap(),
            rescale_betas_zero_snr: config.get("rescale_betas_zero_snr").is_some(),
            ..Config::default()
        };
        let schedule = scheduler.schedule().unwrap();
        let prediction: Prediction = config["prediction_type"].as_str().unwrap().parse().unwrap();
        let spacing = match kind {
            SamplerKind::Lcm => None,
            _ if name.contains("karras") => Some(Spacing::Karras),
            _ => Some(config["timestep_spacing"].as_str().unwrap().parse().unwrap()),
        };
        let settings = PlanSettings {
            steps: 6,
            spacing,
            original_inference_steps: config["original_inference_steps"].as_u64().unwrap_or(50)
                as usize,
            ..PlanSettings::default()
        };
        let plan = kind.plan(&schedule, &settings).unwrap();
        let run = if plan.start().ratio().round() == 4096.0 { RUN_FROM_PURE_NOISE } else { RUN };

        let drawn = case["noises"].as_u64().unwrap();
        let replay = (0..drawn).map(|i| ours(inputs.tensor(&format!("noise.{i}")))).collect();
        let mut noise = Noise::new(RngKind::Cpu, 0).with_replay(replay);
        let mut given = Vec::new();
        let mut network = |x: &Tensor, at: NoiseLevel| {
            given.push(x.clone());
            let output = ((x.tanh()? * 0.7)? + 0.1 * (at.timestep / 100.0).cos())?;
            prediction.denoised(x, &output, at)
        };
        let x = (ours(inputs.tensor("init")) * plan.initial_scale).unwrap();
        let clean =
            kind.build().sample(&mut Run::new(&mut network, &plan.steps, &mut noise), x).unwrap();

        let evaluations = if kind == SamplerKind::Heun { 11 } else { 6 };
        assert_eq!(given.len(), evaluations);
        let names = want.names();
        for (i, x) in given.iter().enumerate() {
            let input = format!("input.{i}");
            if names.contains(&input.as_str()) {
                assert_relative(x, &ours(want.tensor(&input)), run);
            } else if i > 0 {
                assert_relative(x, &ours(want.tensor(&format!("latents.{}", i - 1))), run);
            }
        }
        assert_relative(&clean, &ours(want.tensor(&format!("latents.{}", evaluations - 1))), run);
        // The recorded noise is used up: the next draw is the generator's first.
        let fresh = Noise::new(RngKind::Cpu, 0).like(&clean).unwrap();
        assert_close(&noise.like(&clean).unwrap(), &fresh, 0.0);
    }
}

#[test]
fn samplers_return_the_only_clean_point_there_is() {
    let point = Noise::new(RngKind::Cpu, 8).latents((1, 2, 4, 3, 3), &Device::Cpu).unwrap();
    for kind in SamplerKind::ALL {
        for steps in [1, 2, 5, 20] {
            let settings =
                PlanSettings { steps, set_alpha_to_one: true, ..PlanSettings::default() };
            let plan = kind.plan(&linear(), &settings).unwrap();
            let mut noise = Noise::new(RngKind::Cpu, 5);
            let x = noise.like(&point).unwrap();
            let mut network = |_: &Tensor, _: NoiseLevel| Ok(point.clone());
            let clean = kind
                .build()
                .sample(&mut Run::new(&mut network, &plan.steps, &mut noise), x)
                .unwrap();
            // TCD and DEIS end at the noise of the first timestep.
            let rest = plan.steps.last().unwrap().next;
            let ends_clean = !matches!(kind, SamplerKind::Tcd | SamplerKind::Deis);
            assert_eq!(rest.is_clean(), ends_clean, "{kind}");
            assert_close(&clean, &point, if ends_clean { 1e-5 } else { 6.0 * rest.sigma });
        }
    }
}

/// The standard deviation of the data in the tests that know the ideal denoiser.
const SPREAD: f64 = 0.6;

/// The best guess where clean latents are normal with deviation [`SPREAD`].
fn ideal(x: &Tensor, at: NoiseLevel) -> Result<Tensor> {
    let variance = SPREAD * SPREAD;
    let total = at.alpha * at.alpha * variance + at.sigma * at.sigma;
    Ok((x * (at.alpha * variance / total))?)
}

/// The error of a walk from much to little noise in `count` steps that are even in log(noise).
fn flow_error(sampler: &dyn Sampler, count: usize) -> f64 {
    let level = |i: usize| {
        let exponent = 1.0 - 2.0 * i as f64 / count as f64;
        NoiseLevel::from_ratio(0.0, 10.0_f64.powf(exponent))
    };
    let steps: Vec<_> = (0..count).map(|i| Step::new(level(i), level(i + 1))).collect();
    let spread = |at: NoiseLevel| (at.alpha * SPREAD).hypot(at.sigma);
    let exact = spread(level(count)) / spread(level(0));
    let x = Tensor::ones((1, 1, 1, 1, 1), DType::F64, &Device::Cpu).unwrap();
    let mut noise = Noise::new(RngKind::Cpu, 0);
    let end = sampler.sample(&mut Run::new(&mut ideal, &steps, &mut noise), x).unwrap();
    (end.flatten_all().unwrap().to_vec1::<f64>().unwrap()[0] - exact).abs()
}

#[test]
fn halving_the_step_shows_the_order_of_each_solver() {
    // PNDM's second step is of second order, which decides in the end.
    let solvers: [(&str, &dyn Sampler, f64); 8] = [
        ("ddim", &Ddim::default(), 1.0),
        ("tcd without noise", &Tcd, 1.0),
        ("euler", &Euler, 1.0),
        ("heun", &Heun, 2.0),
        ("dpmpp-2m", &Dpmpp2m, 2.0),
        ("deis", &Deis, 2.0),
        ("pndm", &Pndm, 2.0),
        ("unipc", &UniPc, 3.0),
    ];
    for (name, solver, order) in solvers {
        let errors = [64, 128, 256, 512].map(|count| flow_error(solver, count));
        for pair in errors.windows(2) {
            let found = (pair[0] / pair[1]).log2();
            assert!((found - order).abs() < 0.15, "{name}: order {found}, errors {errors:?}");
        }
    }
}

#[test]
fn lms_integrates_cubic_slopes_exactly_once_it_has_four_of_them() {
    let ratios = [10.0_f64, 7.0, 6.0, 4.0, 2.5, 1.0, 0.3];
    let levels = ratios.map(|ratio| NoiseLevel::from_ratio(0.0, ratio));
    let steps: Vec<_> = levels.windows(2).map(|pair| Step::new(pair[0], pair[1])).collect();
    let mut seen = Vec::new();
    let mut network = |x: &Tensor, at: NoiseLevel| {
        seen.push((x / at.alpha)?.flatten_all()?.to_vec1::<f64>()?[0]);
        Ok(((x - at.sigma * at.ratio().powi(3))? / at.alpha)?)
    };
    let x = Tensor::ones((1, 1, 1, 1, 1), DType::F64, &Device::Cpu).unwrap();
    let mut noise = Noise::new(RngKind::Cpu, 0);
    let end = Lms.sample(&mut Run::new(&mut network, &steps, &mut noise), x).unwrap();
    let end = end.flatten_all().unwrap().to_vec1::<f64>().unwrap()[0];
    seen.push(end / levels[6].alpha);
    for i in 0..ratios.len() - 1 {
        let integral = (ratios[i + 1].powi(4) - ratios[i].powi(4)) / 4.0;
        let error = (seen[i + 1] - seen[i] - integral).abs();
        assert_eq!(error < 1e-9, i >= 3, "step {i} is off by {error}");
    }
}

#[test]
fn stochastic_samplers_end_with_the_spread_of_the_data() {
    let shape = (1, 2, 4, 32, 32);
    let settings =
        PlanSettings { steps: 800, spacing: Some(Spacing::Trailing), ..PlanSettings::default() };
    // Steps that meet, which DDIM's own do not.
    let plan = SamplerKind::DpmppSde.plan(&linear(), &settings).unwrap();
    let samplers: [(&str, &dyn Sampler); 6] = [
        ("euler-a", &EulerAncestral),
        ("dpmpp-sde", &DpmppSde),
        ("dpmpp-2m-sde", &Dpmpp2mSde),
        ("dpmpp-3m-sde", &Dpmpp3mSde),
        ("ddim with all noise", &Ddim { eta: 1.0 }),
        ("ddim with half the noise", &Ddim { eta: 0.5 }),
    ];
    for (name, sampler) in samplers {
        let mut noise = Noise::new(RngKind::Cpu, 12);
        let x = (noise.latents(shape, &Device::Cpu).unwrap() * plan.initial_scale).unwrap();
        let clean = sampler.sample(&mut Run::new(&mut ideal, &plan.steps, &mut noise), x).unwrap();
        let variance = clean.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        let spread = f64::from(variance).sqrt();
        assert!((spread / SPREAD - 1.0).abs() < 0.02, "{name}: {spread}");
    }
}

#[test]
fn lcm_draws_no_noise_at_its_last_step() {
    let x = Tensor::zeros((1, 1, 4, 2, 2), DType::F32, &Device::Cpu).unwrap();
    let settings = PlanSettings { steps: 1, ..PlanSettings::default() };
    let plan = SamplerKind::Lcm.plan(&linear(), &settings).unwrap();
    let mut noise = Noise::new(RngKind::Cpu, 4);
    let mut network = |x: &Tensor, _: NoiseLevel| Ok(x.clone());
    let mut run = Run::new(&mut network, &plan.steps, &mut noise);
    Lcm::default().sample(&mut run, x.clone()).unwrap();
    let untouched = Noise::new(RngKind::Cpu, 4).like(&x).unwrap();
    assert_close(&noise.like(&x).unwrap(), &untouched, 0.0);
}

#[test]
fn observers_see_the_latents_and_the_prediction_of_every_step_and_may_stop_the_run() {
    for kind in SamplerKind::ALL {
        let plan = kind.plan(&linear(), &PlanSettings::default()).unwrap();
        let start = Noise::new(RngKind::Cpu, 3).latents((1, 1, 4, 2, 2), &Device::Cpu).unwrap();
        let mut network = |x: &Tensor, at: NoiseLevel| Ok((x * at.alpha)?);
        // What a run of fewer steps makes is what the next step begins with.
        let after = |count: usize| {
            let mut network = |x: &Tensor, at: NoiseLevel| Ok((x * at.alpha)?);
            let mut noise = Noise::new(RngKind::Cpu, 1);
            let mut run = Run::new(&mut network, &plan.steps[..count], &mut noise);
            kind.build().sample(&mut run, start.clone()).unwrap()
        };
        let mut seen = 0;
        let mut third = |progress: Progress<'_>| {
            assert_eq!((progress.step, progress.steps), (seen, 4), "{kind}");
            assert_eq!(progress.at, plan.steps[seen].at, "{kind}");
            assert_close(progress.x, &after(seen), 0.0);
            assert_close(progress.denoised, &(progress.x * progress.at.alpha).unwrap(), 0.0);
            seen += 1;
            if seen == 3 { Err(Error::Cancelled) } else { Ok(()) }
        };
        let mut noise = Noise::new(RngKind::Cpu, 1);
        let mut run = Run::new(&mut network, &plan.steps, &mut noise).with_observer(&mut third);
        let end = kind.build().sample(&mut run, start.clone());
        assert!(matches!(end, Err(Error::Cancelled)), "{kind}: {end:?}");
        assert_eq!(seen, 3, "{kind}");
    }
}

#[test]
fn models_are_told_the_step_that_each_evaluation_belongs_to() {
    #[derive(Default)]
    struct Steps(Vec<(usize, f64)>, usize);
    impl Denoiser for Steps {
        fn denoise(&mut self, x: &Tensor, at: NoiseLevel) -> Result<Tensor> {
            self.0.push((self.1, at.timestep));
            Ok(x.clone())
        }

        fn begin_step(&mut self, step: usize, steps: usize) {
            assert_eq!(steps, 4);
            self.1 = step;
        }
    }
    let plan = SamplerKind::Heun.plan(&linear(), &PlanSettings::default()).unwrap();
    let x = Tensor::zeros((1, 1, 4, 2, 2), DType::F32, &Device::Cpu).unwrap();
    let (mut model, mut noise) = (Steps::default(), Noise::new(RngKind::Cpu, 1));
    Heun.sample(&mut Run::new(&mut model, &plan.steps, &mut noise), x).unwrap();
    let found: Vec<_> =
        model.0.iter().map(|(step, timestep)| (*step, *timestep as usize)).collect();
    assert_eq!(found, [(0, 751), (0, 501), (1, 501), (1, 251), (2, 251), (2, 1), (3, 1)]);
}

#[test]
fn sd15_settings_are_the_default_of_samplers_without_a_teacher() {
    let schedule = NoiseSchedule::new(BetaSchedule::ScaledLinear, 0.00085, 0.012, 1000).unwrap();
    for kind in SamplerKind::ALL.into_iter().filter(|kind| !kind.has_teacher()) {
        let plain = PlanSettings { steps: 7, ..PlanSettings::default() };
        let leading =
            PlanSettings { spacing: Some(Spacing::Leading { offset: 1 }), ..plain.clone() };
        assert_eq!(
            kind.plan(&schedule, &plain).unwrap(),
            kind.plan(&schedule, &leading).unwrap(),
            "{kind}"
        );
    }
    let plan = SamplerKind::Ddim.plan(&schedule, &PlanSettings::default()).unwrap();
    assert_eq!(timesteps(&plan), [751.0, 501.0, 251.0, 1.0]);
    assert_eq!(plan.steps[3].next, schedule.level(0).unwrap());
}

#[test]
fn euler_takes_karras_spacing_without_rounding() {
    let settings =
        PlanSettings { steps: 5, spacing: Some(Spacing::Karras), ..PlanSettings::default() };
    let plan = SamplerKind::Euler.plan(&linear(), &settings).unwrap();
    let ratios: Vec<_> = plan.steps.iter().map(|step| step.at.ratio()).collect();
    // diffusers' DPM++ 2M, which has the same levels at rounded timesteps.
    assert_ratios(&ratios, &[25.146_116, 7.747_055_5, 1.879_543_4, 0.317_771_58, 0.029_167_53]);
    let rounded: Vec<_> = timesteps(&plan).iter().map(|t| t.round()).collect();
    assert_eq!(rounded, [999.0, 784.0, 449.0, 75.0, 0.0]);
    assert!(timesteps(&plan)[1].fract() != 0.0);
    assert_eq!(plan.initial_scale, plan.start().sigma);
}

#[test]
fn strength_keeps_the_last_steps() {
    let plan = |kind: SamplerKind, strength| {
        kind.plan(&linear(), &PlanSettings { strength, steps: 4, ..PlanSettings::default() })
    };
    let whole = plan(SamplerKind::Euler, 1.0).unwrap();
    let part = plan(SamplerKind::Euler, 0.6).unwrap();
    assert_eq!(part.steps, whole.steps[2..]);
    assert_eq!(part.start(), whole.steps[2].at);
    // What diffusers' video-to-video pipeline does to LCM's timesteps.
    let settings = PlanSettings { original_inference_steps: 50, ..PlanSettings::default() };
    let lcm = SamplerKind::Lcm.plan(&linear(), &settings).unwrap();
    assert_eq!(timesteps(&lcm.clone().last_part(0.8).unwrap()), [759.0, 499.0, 259.0]);
    let error = lcm.last_part(0.2).unwrap_err();
    assert_eq!(error.to_string(), "strength: 0.2 of 4 steps is less than one step");
    for strength in [0.0, -1.0, 1.01, f64::NAN] {
        for kind in SamplerKind::ALL {
            assert!(plan(kind, strength).is_err(), "{kind} took {strength}");
        }
    }
}

#[test]
fn impossible_plans_say_why() {
    let refused = |kind: SamplerKind, settings: PlanSettings| {
        kind.plan(&linear(), &settings).unwrap_err().to_string()
    };
    let lcm = |steps, original_inference_steps, strength| {
        let settings =
            PlanSettings { steps, original_inference_steps, strength, ..PlanSettings::default() };
        refused(SamplerKind::Lcm, settings)
    };
    assert_eq!(lcm(0, 100, 1.0), "steps: must be at least 1, got 0");
    assert_eq!(lcm(101, 100, 1.0), "steps: lcm can take at most 100 here, got 101");
    assert_eq!(lcm(61, 100, 0.6), "steps: lcm can take at most 60 here (0.6 of 100), got 61");
    assert_eq!(lcm(1001, 100, 1.0), "steps: the model was trained with 1000, got 1001");
    assert_eq!(
        lcm(4, 1001, 1.0),
        "original-inference-steps: must lie between 1 and 1000, got 1001"
    );
    assert_eq!(lcm(4, 0, 1.0), "original-inference-steps: must lie between 1 and 1000, got 0");
    let spaced =
        |steps, spacing| PlanSettings { steps, spacing: Some(spacing), ..PlanSettings::default() };
    assert_eq!(
        refused(SamplerKind::Lcm, spaced(4, Spacing::Trailing)),
        "spacing: lcm has no `trailing` spacing"
    );
    assert_eq!(
        refused(SamplerKind::Tcd, spaced(4, Spacing::Karras)),
        "spacing: tcd has no `karras` spacing"
    );
    assert_eq!(
        refused(SamplerKind::Ddim, spaced(4, Spacing::Karras)),
        "spacing: ddim has no `karras` spacing"
    );
    assert_eq!(
        refused(SamplerKind::Pndm, spaced(4, Spacing::Trailing)),
        "spacing: pndm has no `trailing` spacing"
    );
    assert_eq!(
        refused(SamplerKind::Ddim, spaced(1000, Spacing::SD15)),
        "steps: 1000 of them would start at timestep 1000, the last one is 999"
    );
}

#[test]
fn every_sampler_can_take_every_number_of_steps() {
    for kind in SamplerKind::ALL {
        // The DPM-Solver family counts the end as one more, and 1 is added to each timestep.
        let most = if kind.has_teacher() { 100 } else { 998 };
        for steps in 1..=most {
            let plan = kind
                .plan(&linear(), &PlanSettings { steps, ..PlanSettings::default() })
                .unwrap_or_else(|error| panic!("{kind} with {steps} steps: {error}"));
            assert_eq!(plan.steps.len(), steps);
            assert!(plan.steps.iter().all(|step| step.at.sigma > 0.0));
        }
    }
}

#[test]
fn names_are_read_and_written_alike() {
    for kind in SamplerKind::ALL {
        let name = kind.to_string();
        assert_eq!(name.parse::<SamplerKind>().unwrap(), kind);
        assert_eq!(serde_json::to_value(kind).unwrap(), name);
        assert_eq!(SamplerKind::with_spacing(&name).unwrap(), (kind, None));
    }
    assert_eq!(
        SamplerKind::with_spacing("dpmpp-2m-karras").unwrap(),
        (SamplerKind::Dpmpp2m, Some(Spacing::Karras))
    );
    assert_eq!(
        "dpm-2".parse::<SamplerKind>().unwrap_err().to_string(),
        "sampler: unknown name `dpm-2`; expected one of `lcm`, `tcd`, `ddim`, `ddpm`, `euler`, `euler-a`, `heun`, \
         `lms`, `pndm`, `deis`, `unipc`, `dpmpp-2m`, `dpmpp-2m-sde`, `dpmpp-3m-sde`, `dpmpp-sde`, `dpmpp-2m-karras`"
    );
}

#[test]
fn names_of_other_programs_are_understood() {
    use SamplerKind::{
        Ddim, Ddpm, Deis, Dpmpp2m, Dpmpp2mSde, Dpmpp3mSde, DpmppSde, Euler, EulerAncestral, Heun,
        Lcm, Lms, Pndm, Tcd, UniPc,
    };
    for (name, kind, spacing) in [
        // A1111.
        ("Euler a", EulerAncestral, None),
        ("Euler", Euler, None),
        ("DDIM", Ddim, None),
        ("LCM", Lcm, None),
        ("LCM Karras", Lcm, Some(Spacing::Karras)),
        ("Heun", Heun, None),
        ("DPM++ 2M", Dpmpp2m, None),
        ("DPM++ 2M Karras", Dpmpp2m, Some(Spacing::Karras)),
        ("k_dpmpp_2m", Dpmpp2m, None),
        ("k_euler_a", EulerAncestral, None),
        ("DPM++ SDE", DpmppSde, None),
        ("DPM++ SDE Karras", DpmppSde, Some(Spacing::Karras)),
        ("DPM++ 2M SDE", Dpmpp2mSde, None),
        ("DPM++ 2M SDE Exponential", Dpmpp2mSde, Some(Spacing::Exponential)),
        ("DPM++ 3M SDE Karras", Dpmpp3mSde, Some(Spacing::Karras)),
        ("LMS Karras", Lms, Some(Spacing::Karras)),
        ("k_lms", Lms, None),
        ("PLMS", Pndm, None),
        ("UniPC", UniPc, None),
        // ComfyUI.
        ("dpmpp_sde_gpu", DpmppSde, None),
        ("dpmpp_2m_sde", Dpmpp2mSde, None),
        ("dpmpp_2m_sde_gpu", Dpmpp2mSde, None),
        ("dpmpp_3m_sde_gpu", Dpmpp3mSde, None),
        ("uni_pc", UniPc, None),
        ("uni_pc_bh2", UniPc, None),
        ("deis", Deis, None),
        ("ddpm", Ddpm, None),
        ("lms", Lms, None),
        ("euler_ancestral", EulerAncestral, None),
        ("dpmpp_2m", Dpmpp2m, None),
        ("sample_lcm", Lcm, None),
        // stable-diffusion.cpp.
        ("euler_a", EulerAncestral, None),
        ("dpm++2m", Dpmpp2m, None),
        ("ddim_trailing", Ddim, Some(Spacing::Trailing)),
        ("tcd", Tcd, None),
        // With spacings of other programs.
        ("euler_sgm_uniform", Euler, Some(Spacing::SgmUniform)),
        ("Euler Align Your Steps", Euler, Some(Spacing::Ays)),
        // diffusers.
        ("LCMScheduler", Lcm, None),
        ("DDIMScheduler", Ddim, None),
        ("EulerDiscreteScheduler", Euler, None),
        ("EulerAncestralDiscreteScheduler", EulerAncestral, None),
        ("HeunDiscreteScheduler", Heun, None),
        ("DPMSolverMultistepScheduler", Dpmpp2m, None),
        ("DPMSolverSDEScheduler", DpmppSde, None),
        ("UniPCMultistepScheduler", UniPc, None),
        ("DEISMultistepScheduler", Deis, None),
        ("PNDMScheduler", Pndm, None),
        ("LMSDiscreteScheduler", Lms, None),
        ("DDPMScheduler", Ddpm, None),
        ("TCDScheduler", Tcd, None),
    ] {
        assert_eq!(SamplerKind::with_spacing(name).unwrap(), (kind, spacing), "{name}");
        // What has a spacing in its name is no sampler alone.
        assert_eq!(name.parse::<SamplerKind>().ok(), Some(kind).filter(|_| spacing.is_none()));
    }
    // Other algorithms, of which some have similar names.
    for name in
        ["dpm++2mv2", "DPM++ 2M SDE Heun", "dpmpp_2s_a", "heunpp2", "ipndm", "karras", "k", ""]
    {
        let error = SamplerKind::with_spacing(name).unwrap_err().to_string();
        assert!(error.contains("`dpmpp-2m-karras`"), "{name}: {error}");
    }
}
