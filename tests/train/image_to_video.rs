//! Motion modules that learn to start from an image: against torch, and in a whole training.

use animatelcm::models::i2v_encoder::I2vEncoderConfig;
use animatelcm::models::motion::MotionNorm;
use animatelcm::train::{
    AdamW, Compute, Grid, ImageToVideo, Loss, Weights, clip, first_encoder, gradients,
};
#[cfg(feature = "cli")]
use animatelcm::train::{Plan, Stage};
use candle_core::Device;

use super::adapt::{check_target, pairs};
use super::parts::{drawn, numbers, scalar, schedule, tiny_config, tiny_weights};
#[cfg(feature = "cli")]
use super::trainings::{PLAN, Stop, bytes, copy, tensors, train as go_on};
use crate::support::golden;

/// [`PLAN`] with two layers a stage, in the second of which features are added, and the stage.
#[cfg(feature = "cli")]
fn plan() -> String {
    let (one, two) = ("layers_per_block = 1\ncross", "layers_per_block = 2\ncross");
    assert!(PLAN.contains(one));
    let stage = "[i2v]\ncourse = { steps = 4, batch = 1, warmup = 2, rate = 1e-2 }\n";
    format!("{}\n{stage}", PLAN.replace(one, two))
}

/// The encoder that the goldens draw.
fn encoder() -> Weights {
    let config = I2vEncoderConfig::beside(&tiny_config(true));
    let names = first_encoder(&config, 1, &Device::Cpu).unwrap();
    let draw = |name: &String, shape: &[usize]| (drawn(name, shape) * 0.2).unwrap();
    names.iter().map(|(name, tensor)| (name.clone(), draw(name, tensor.dims()))).collect()
}

fn learner(encoder: Weights) -> ImageToVideo {
    let (sizes, base) = (tiny_config(true), tiny_weights(true));
    let compute = Compute::exact(&Device::Cpu);
    ImageToVideo::new((&sizes, base), MotionNorm::Pooled, encoder, 0.8, &compute).unwrap()
}

#[test]
fn an_image_encoder_learns_as_in_torch() {
    let golden = golden::json("train/i2v");
    let mut learner = learner(encoder());
    let grid = Grid::new(&schedule(), 50, 1).unwrap();
    let vars = learner.vars().clone();
    assert_eq!(vars.len() as u64, golden["learning"].as_u64().unwrap());
    let mut optimizer = AdamW::new(1e-2);
    let (losses, norms) = (numbers(&golden["losses"]), numbers(&golden["norms"]));
    for step in 0..losses.len() {
        let indices = numbers(&golden["batches"][step]["indices"]);
        let cells = indices.iter().map(|index| grid.cell(*index as usize)).collect();
        let loss = learner.loss(&pairs(step, cells), Loss::Huber(0.3)).unwrap();
        let tolerance = 2e-5 * (1 + step) as f64;
        let (got, want) = (scalar(&loss), losses[step]);
        assert!((got - want).abs() <= tolerance * want, "loss {step}: {got}, not {want}");
        let mut found = gradients(&mut loss.backward().unwrap(), &vars).unwrap();
        let (got, want) = (clip(&mut found, 1.0).unwrap(), norms[step]);
        assert!((got - want).abs() <= 10.0 * tolerance * want, "norm {step}: {got}, not {want}");
        optimizer.step(&vars, &found, 1e-3).unwrap();
        learner.follow(0.95).unwrap();
    }
    check_target(&golden, learner.target());
}

#[test]
fn a_new_encoder_is_zero_where_the_published_one_began_so_and_learns_all_the_same() {
    let config = I2vEncoderConfig::beside(&tiny_config(true));
    let first = first_encoder(&config, 3, &Device::Cpu).unwrap();
    let is_zero = |name: &String| {
        let sum = first[name].abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        sum == 0.0
    };
    for name in first.keys() {
        let is_first = name.ends_with(".block1.weight");
        assert_eq!(is_zero(name), !is_first, "{name}");
    }
    let mut learner = learner(first);
    let vars = learner.vars().clone();
    let grid = Grid::new(&schedule(), 10, 1).unwrap();
    let mut optimizer = AdamW::new(0.0);
    let mut losses = Vec::new();
    for _ in 0..12 {
        let batch = pairs(0, vec![grid.cell(5), grid.cell(3)]);
        let loss = learner.loss(&batch, Loss::Huber(0.3)).unwrap();
        losses.push(scalar(&loss));
        let mut found = gradients(&mut loss.backward().unwrap(), &vars).unwrap();
        clip(&mut found, 1.0).unwrap();
        optimizer.step(&vars, &found, 1e-3).unwrap();
        learner.follow(0.95).unwrap();
    }
    assert!(losses[11] < 0.8 * losses[0], "{losses:?}");
    // The image is seen: the first convolution is no longer zero.
    let seen = vars["img_encoder.conv_in.weight"].abs().unwrap().sum_all().unwrap();
    assert!(seen.to_scalar::<f32>().unwrap() > 0.0);
}

#[cfg(feature = "cli")]
#[test]
fn what_starts_from_an_image_is_written_and_generates() {
    use crate::support::program::Folder;

    let folder = Folder::new();
    folder.write("plan.toml", plan());
    let train = ["train", "--config", "plan.toml", "--out", "run", "--samples", "0"];
    let run = folder.run(&train).ok();
    assert!(run.stderr.contains("i2v 4/4") && !run.stderr.contains("adapt"), "{}", run.stderr);
    // The same, bit for bit, if it is interrupted between two checkpoints.
    let again = folder.path("again");
    copy(&folder.path("run"), &again);
    for file in ["state/i2v.safetensors", "state/i2v.json", "motion_i2v.safetensors"] {
        std::fs::remove_file(again.join(file)).unwrap();
    }
    let parsed = Plan::from_toml("plan", &plan()).unwrap();
    for at in [Some(2), None] {
        let mut stop = Stop { at, ..Stop::default() };
        let ended = go_on(Stage::I2v, &parsed, &again, &mut stop);
        assert_eq!(ended.is_err(), at.is_some(), "{ended:?}");
        assert_eq!(stop.heard, 2);
    }
    assert!(bytes(&again, "motion_i2v.safetensors") == folder.read("run/motion_i2v.safetensors"));
    let states = |out: &std::path::Path| tensors(out, "state/i2v.safetensors");
    assert_eq!(states(&again), states(&folder.path("run")));

    let written = tensors(&folder.path("run"), "motion_i2v.safetensors");
    let lcm = tensors(&folder.path("run"), "motion_lcm.safetensors");
    let is_encoder = |name: &&String| name.starts_with("img_encoder.");
    assert!(written.keys().filter(is_encoder).count() > 8);
    assert!(written.keys().filter(|name| !is_encoder(name)).eq(lcm.keys()));
    assert!(lcm.iter().any(|(name, values)| written[name] != *values));

    for (name, value) in [("a.png", 20), ("b.png", 220)] {
        image::RgbImage::from_pixel(16, 16, image::Rgb([value; 3]))
            .save(folder.path(name))
            .unwrap();
    }
    let words = ["generate", "a red circle moving up on a black background", "--frames=4"];
    let model = ["--model=run/base", "--motion=run/motion_i2v.safetensors", "--color-match=off"];
    let rest = ["--lcm-lora=run/lcm_lora.safetensors", "--seed=3", "--no-metadata", "-q", "-y"];
    let clip = |image: &str| {
        folder.run(&[&words[..], &model, &rest, &["--image", image, "-o", "c.png"]].concat()).ok();
        folder.read("c.png")
    };
    assert!(clip("a.png") != clip("b.png"));
    folder.write("plan.toml", format!("{PLAN}\n[i2v]\nmotion_scale = -1.0\n"));
    let error = folder.run(&train);
    assert!(error.fails(2).contains("`motion_scale` must be"), "{}", error.stderr);
    folder.write("plan.toml", format!("{PLAN}\n[i2v]\n"));
    let small = ["train", "--config", "plan.toml", "--out", "small", "--samples", "0", "-q"];
    let error = folder.run(&small);
    assert!(error.fails(2).contains("i2v: the UNet has one layer a stage"), "{}", error.stderr);
}
