//! Noise tables against diffusers, and what a network's output means.

use animatelcm::rng::{Noise, RngKind};
use animatelcm::schedule::{BetaSchedule, Config, NoiseLevel, NoiseSchedule, Prediction, Spacing};
use candle_core::{Device, Tensor};

use crate::support::close::{assert_all_close, assert_close};
use crate::support::golden;

/// Rounding of a product of a thousand f32 factors.
const TABLE: f64 = 1e-6;

fn linear() -> NoiseSchedule {
    NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, 1000).unwrap()
}

#[test]
fn every_cumulative_product_is_that_of_torch() {
    let tables = golden::load("schedules/alphas_cumprod");
    assert_eq!(tables.names().len(), 5);
    for name in tables.names() {
        let (kind, end) = name.split_once('.').unwrap_or((name, "0.012"));
        let schedule =
            NoiseSchedule::new(kind.parse().unwrap(), 0.00085, end.parse().unwrap(), 1000).unwrap();
        let errors: Vec<_> = schedule
            .cumulative()
            .iter()
            .zip(tables.values(name))
            .map(|(got, want)| got / want - 1.0)
            .collect();
        assert_all_close(&errors, &[0.0; 1000], TABLE);
    }
}

#[test]
fn a_level_preserves_variance() {
    let schedule = linear();
    for timestep in [0, 1, 249, 499, 999] {
        let level = schedule.level(timestep).unwrap();
        assert!((level.alpha.powi(2) + level.sigma.powi(2) - 1.0).abs() < 1e-12);
        assert!((level.alpha.powi(2) - schedule.cumulative()[timestep]).abs() < 1e-12);
    }
    let error = schedule.level(1000).unwrap_err();
    assert_eq!(error.to_string(), "timestep: the last one is 999, got 1000");
}

#[test]
fn a_fractional_level_lies_between_its_neighbours() {
    let schedule = linear();
    let whole = schedule.level(499).unwrap();
    assert!((schedule.level_at(499.0).sigma - whole.sigma).abs() < 1e-12);
    let (below, above) = (whole.ratio(), schedule.level(500).unwrap().ratio());
    let between = schedule.level_at(499.25);
    assert!((between.ratio() - (0.75 * below + 0.25 * above)).abs() < 1e-12);
    assert_eq!(between.timestep, 499.25);
    let last = schedule.level(999).unwrap();
    assert!((schedule.level_at(999.0).sigma - last.sigma).abs() < 1e-12);
    assert!((schedule.level_at(1200.0).sigma - last.sigma).abs() < 1e-12);
}

#[test]
fn senseless_schedules_are_refused() {
    let refused = |start, end, steps| {
        NoiseSchedule::new(BetaSchedule::Linear, start, end, steps).unwrap_err().to_string()
    };
    assert_eq!(refused(0.0, 0.012, 1000), "beta-start: must lie between 0 and 1, got 0");
    assert_eq!(refused(0.001, 1.5, 1000), "beta-end: must lie between 0 and 1, got 1.5");
    assert_eq!(refused(f64::NAN, 0.5, 1000), "beta-start: must lie between 0 and 1, got NaN");
    assert_eq!(refused(0.001, 0.012, 0), "betas: a schedule needs at least one training step");
    let error = NoiseSchedule::from_betas(&[0.1, 1.0]).unwrap_err();
    assert_eq!(error.to_string(), "betas: beta 1 must lie between 0 and 1, got 1");
}

#[test]
fn a_schedule_of_one_step_is_a_schedule() {
    let schedule = NoiseSchedule::new(BetaSchedule::Linear, 0.5, 0.9, 1).unwrap();
    assert_eq!(schedule.cumulative(), [0.5]);
    assert!((schedule.level_at(0.5).alpha - 0.5_f64.sqrt()).abs() < 1e-12);
}

#[test]
fn every_prediction_undoes_its_target() {
    let mut noise = Noise::new(RngKind::Cpu, 3);
    let shape = (1, 2, 4, 3, 5);
    let clean = noise.latents(shape, &Device::Cpu).unwrap();
    let eps = noise.like(&clean).unwrap();
    for timestep in [0, 249, 999] {
        let at = linear().level(timestep).unwrap();
        let x = at.add_noise(&clean, &eps).unwrap();
        for prediction in [Prediction::Epsilon, Prediction::V, Prediction::Sample] {
            let output = prediction.target(&clean, &eps, at).unwrap();
            let denoised = prediction.denoised(&x, &output, at).unwrap();
            // What f32 loses in a division by alpha.
            assert_close(&denoised, &clean, 1e-6 / at.alpha);
        }
    }
}

#[test]
fn predictions_mean_what_their_papers_say() {
    let at = NoiseLevel { timestep: 0.0, alpha: 0.8, sigma: 0.6 };
    let one = |value: f32| Tensor::new(&[value], &Device::Cpu).unwrap();
    let (x, output) = (one(2.0), one(0.5));
    let denoised = |prediction: Prediction| {
        f64::from(prediction.denoised(&x, &output, at).unwrap().to_vec1::<f32>().unwrap()[0])
    };
    let got = [Prediction::Epsilon, Prediction::V, Prediction::Sample].map(denoised);
    assert_all_close(&got, &[(2.0 - 0.6 * 0.5) / 0.8, 0.8 * 2.0 - 0.6 * 0.5, 0.5], 1e-6);
}

#[test]
fn the_scheduler_folder_of_a_model_is_read() {
    let config: Config =
        serde_json::from_value(golden::json("tiny/model/scheduler/scheduler_config")).unwrap();
    assert_eq!(config.beta_schedule, BetaSchedule::Linear);
    assert_eq!(config.original_inference_steps, Some(50));
    assert_eq!(config.spacing().unwrap(), Spacing::Leading { offset: 1 });
    assert!(!config.set_alpha_to_one);
    assert_eq!(config.schedule().unwrap(), linear());
}

#[test]
fn an_unknown_beta_schedule_fails() {
    let error = serde_json::from_str::<Config>(r#"{"beta_schedule": "sigmoid"}"#).unwrap_err();
    assert!(error.to_string().contains("sigmoid"), "{error}");
    let error = "sigmoid".parse::<BetaSchedule>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "beta-schedule: `sigmoid` is none of `linear`, `scaled-linear`, `squaredcos-cap-v2`"
    );
}

#[test]
fn schedules_that_end_in_pure_noise_are_those_of_diffusers() {
    let tables = golden::load("schedules/zero_snr");
    assert_eq!(tables.names().len(), 5);
    for name in tables.names() {
        let (kind, end) = name.split_once('.').unwrap_or((name, "0.012"));
        let config = Config {
            beta_schedule: kind.parse().unwrap(),
            beta_end: end.parse().unwrap(),
            rescale_betas_zero_snr: true,
            ..Config::default()
        };
        let schedule = config.schedule().unwrap();
        let (got, want) = (schedule.cumulative(), tables.values(name));
        assert_all_close(got, &want, TABLE);
        assert_eq!((got[999], want[999]), (0.0, 0.0));
        // Differences of nearly equal roots: what f32 leaves of them.
        let errors: Vec<_> = got[..999].iter().zip(&want).map(|(g, w)| g / w - 1.0).collect();
        assert_all_close(&errors, &[0.0; 999], 3e-4);
        let last = schedule.level(999).unwrap();
        assert_eq!((last.alpha, last.sigma), (0.0, 1.0));
    }
}

#[test]
fn schedulers_that_no_model_has_are_refused() {
    for (field, value) in [
        ("num_train_timesteps", 0_u64),
        ("num_train_timesteps", 1 << 31),
        ("num_train_timesteps", u64::MAX),
        ("steps_offset", 1001),
        ("steps_offset", u64::MAX),
    ] {
        let config: Config = serde_json::from_value(serde_json::json!({ field: value })).unwrap();
        let error = config.validate().unwrap_err();
        assert_eq!(error.kind().exit_code(), 3);
        assert!(error.to_string().contains(&format!("`{field}` {value}")), "{error}");
    }
    assert!(Config::default().validate().is_ok());
}

#[test]
fn trained_betas_replace_the_range() {
    let config: Config = serde_json::from_str(r#"{"trained_betas": [0.5, 0.5]}"#).unwrap();
    assert_eq!(config.schedule().unwrap().cumulative(), [0.5, 0.25]);
}

#[test]
fn names_are_read_and_written_alike() {
    let schedules = [BetaSchedule::Linear, BetaSchedule::ScaledLinear, BetaSchedule::SquaredCos];
    for kind in schedules {
        assert_eq!(kind.to_string().parse::<BetaSchedule>().unwrap(), kind);
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
        let underscored = kind.to_string().replace('-', "_");
        assert_eq!(underscored.parse::<BetaSchedule>().unwrap(), kind);
        assert_eq!(serde_json::from_value::<BetaSchedule>(underscored.into()).unwrap(), kind);
    }
    for prediction in [Prediction::Epsilon, Prediction::V, Prediction::Sample] {
        assert_eq!(prediction.to_string().parse::<Prediction>().unwrap(), prediction);
        assert_eq!(serde_json::to_value(prediction).unwrap(), prediction.to_string());
    }
    for name in ["v", "v_prediction", "v-prediction"] {
        assert_eq!(serde_json::from_value::<Prediction>(name.into()).unwrap(), Prediction::V);
        assert_eq!(name.parse::<Prediction>().unwrap(), Prediction::V);
    }
    let spacings = [
        Spacing::SD15,
        Spacing::Leading { offset: 0 },
        Spacing::Trailing,
        Spacing::Linspace,
        Spacing::Karras,
        Spacing::Exponential,
        Spacing::SgmUniform,
        Spacing::Ays,
    ];
    for spacing in spacings {
        assert_eq!(spacing.to_string().parse::<Spacing>().unwrap(), spacing);
        let json = serde_json::to_value(spacing).unwrap();
        assert_eq!(json, spacing.to_string());
        assert_eq!(serde_json::from_value::<Spacing>(json).unwrap(), spacing);
    }
    for (name, spacing) in [
        ("sgm_uniform", Spacing::SgmUniform),
        ("SGM Uniform", Spacing::SgmUniform),
        ("Align Your Steps", Spacing::Ays),
        ("Exponential", Spacing::Exponential),
        ("simple", Spacing::Trailing),
        ("normal", Spacing::Linspace),
        ("ddim_uniform", Spacing::SD15),
    ] {
        assert_eq!(name.parse::<Spacing>().unwrap(), spacing, "{name}");
    }
    for name in ["leading:x", "beta", "kl_optimal"] {
        let error = name.parse::<Spacing>().unwrap_err().to_string();
        assert!(error.contains("`sgm-uniform`, `ays`"), "{error}");
    }
}
