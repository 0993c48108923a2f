//! Whole trainings of a tiny model: files that others read, and going on after an interruption.
//!
//! `ANIMATELCM_KILLS=500 cargo test -- --ignored --nocapture killed_at_any_time` kills as many trainings.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use animatelcm::procedural::{Caption, Scene};
use animatelcm::train::{
    Compute, Listener, Metric, Options, Places, Plan, Stage, Tick, memory, run,
};
use animatelcm::{Error, Result};
use candle_core::{DType, Device};

use super::adapt::{network, plan as adapting};

/// A plan that takes seconds: 4 frames of 16x16 in an 8x8 latent space.
pub(super) const PLAN: &str = r#"
seed = 5
side = 16
frames = 4
data = { procedural = 6 }

[vae]
divergence = 1e-4
emphasis = 2.0
course = { steps = 4, batch = 3, rate = 1e-3, warmup = 2 }
config = { block_out_channels = [4, 8], layers_per_block = 1, norm_num_groups = 2 }

[base]
no_caption = 0.2
no_part = 0.2
course = { steps = 4, batch = 3, accumulate = 2, warmup = 2 }

[base.unet]
sample_size = 8
block_out_channels = [8, 16]
down_block_types = ["DownBlock2D", "CrossAttnDownBlock2D"]
up_block_types = ["CrossAttnUpBlock2D", "UpBlock2D"]
layers_per_block = 1
cross_attention_dim = 8
attention_head_dim = 2
norm_num_groups = 4

[base.text]
vocab_size = 614
hidden_size = 8
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 16

[lora]
rank = 3
alpha = 2.0
course = { steps = 4, batch = 2, warmup = 2, loss = { huber = 0.1 } }
consistency = { cells = 50, skip = 1, guidance = [1.5, 2.0] }

[motion]
power = 0.7
course = { steps = 4, batch = 1, warmup = 2 }
config = { motion_max_seq_length = 8 }

[lcm]
course = { steps = 4, batch = 1, warmup = 2, loss = { pseudo-huber = 0.01 } }
"#;

/// Stops a training at a step; counts what it hears.
#[derive(Default)]
pub(super) struct Stop {
    pub(super) at: Option<usize>,
    pub(super) heard: usize,
    pub(super) written: Vec<usize>,
}

impl Listener for Stop {
    fn tick(&mut self, tick: &Tick) -> Result<()> {
        self.heard += 1;
        if Some(tick.step) == self.at { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn say(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn written(&mut self, _: Stage, step: usize) -> Result<()> {
        self.written.push(step);
        Ok(())
    }
}

pub(super) const OPTIONS: Options = Options { every: 3, write_every: 2, restart: false };

pub(super) fn train(stage: Stage, plan: &Plan, out: &Path, listener: &mut Stop) -> Result<()> {
    run(stage, plan, &Places::new(out), &Compute::exact(&Device::Cpu), OPTIONS, listener)
}

pub(super) fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every file below a folder by its name, without what a clock has measured.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            let mut bytes = fs::read(&path).unwrap();
            if name == "metrics.jsonl" {
                let lines = std::str::from_utf8(&bytes).unwrap().lines();
                let timeless = |line| {
                    let metric = serde_json::from_str::<Metric>(line).unwrap();
                    format!("{:?}\n", Metric { seconds: 0.0, ..metric })
                };
                bytes = lines.map(timeless).collect::<String>().into_bytes();
            }
            found.insert(name, bytes);
        }
    }
    found
}

/// The names of files that differ or are missing on one side.
fn differences(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) -> BTreeSet<String> {
    a.keys().chain(b.keys()).filter(|name| a.get(*name) != b.get(*name)).cloned().collect()
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// The tensors of a file.
pub(super) fn tensors(folder: &Path, name: &str) -> BTreeMap<String, Vec<f32>> {
    let file = candle_core::safetensors::load(folder.join(name), &Device::Cpu).unwrap();
    file.into_iter()
        .map(|(name, tensor)| {
            let float = tensor.to_dtype(candle_core::DType::F32).unwrap();
            (name, float.flatten_all().unwrap().to_vec1().unwrap())
        })
        .collect()
}

#[test]
fn a_training_that_was_interrupted_is_the_same_bit_for_bit() {
    let net = tempfile::tempdir().unwrap();
    network("controlnet", net.path());
    let canny = "preprocess = { kind = 'canny' }";
    let plan = Plan::from_toml("plan", &adapting(net.path(), canny)).unwrap();
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for stage in plan.stages() {
        let mut all = Stop::default();
        train(stage, &plan, whole.path(), &mut all).unwrap();
        assert_eq!((all.heard, all.written), (4, vec![2, 4]), "{stage:?}");
        // Stopped between checkpoints, then at one, then on to the end.
        for (at, heard) in [(Some(2), 2), (Some(3), 1), (None, 1)] {
            let mut stop = Stop { at, ..Stop::default() };
            let result = train(stage, &plan, broken.path(), &mut stop);
            assert_eq!(result.is_err(), at.is_some(), "{stage:?}: {result:?}");
            assert_eq!(stop.heard, heard, "{stage:?}");
        }
        let mut done = Stop::default();
        train(stage, &plan, broken.path(), &mut done).unwrap();
        assert_eq!(done.heard, 0, "{stage:?} is run again");
        let state = format!("state/{}.safetensors", stage.name());
        assert_eq!(tensors(whole.path(), &state), tensors(broken.path(), &state), "{stage:?}");
    }
    let adapted = "adapted/diffusion_pytorch_model.safetensors";
    for file in ["motion_lcm.safetensors", "lcm_lora.safetensors", adapted] {
        assert_eq!(tensors(whole.path(), file), tensors(broken.path(), file), "{file}");
    }
    let curves = |folder: &Path| -> Vec<(String, usize, f64)> {
        let text = String::from_utf8(bytes(folder, "metrics.jsonl")).unwrap();
        let metric = |line| serde_json::from_str::<Metric>(line).unwrap();
        text.lines().map(metric).map(|m| (m.stage, m.step, m.loss)).collect()
    };
    assert_eq!(curves(whole.path()), curves(broken.path()));
    assert_eq!(curves(whole.path()).len(), 6 * 4);
    let svg = String::from_utf8(bytes(whole.path(), "curves.svg")).unwrap();
    assert_eq!(svg.matches("<polyline").count(), 6);
}

/// From a step on, a folder is in the place of a file, so that the training ends where it writes that file.
struct Obstacle {
    at: usize,
    path: PathBuf,
    aside: PathBuf,
}

impl Obstacle {
    fn clear(&self) {
        fs::remove_dir_all(&self.path).unwrap();
        if self.aside.exists() {
            fs::rename(&self.aside, &self.path).unwrap();
        }
    }
}

impl Listener for Obstacle {
    fn tick(&mut self, tick: &Tick) -> Result<()> {
        if tick.step == self.at {
            if self.path.exists() {
                fs::rename(&self.path, &self.aside).unwrap();
            }
            fs::create_dir_all(self.path.join("in the way")).unwrap();
        }
        Ok(())
    }

    fn say(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn written(&mut self, _: Stage, _: usize) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_training_that_ends_between_any_two_files_comes_to_the_same() {
    let net = tempfile::tempdir().unwrap();
    network("controlnet", net.path());
    let canny = "preprocess = { kind = 'canny' }";
    let plan = Plan::from_toml("plan", &adapting(net.path(), canny)).unwrap();
    let (folder, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = Options { every: 2, ..OPTIONS };
    let go = |stage, out: &Path, listener: &mut dyn Listener| {
        run(stage, &plan, &Places::new(out), &Compute::exact(&Device::Cpu), options, listener)
    };
    for stage in plan.stages() {
        let start = folder.path().join(format!("before-{}", stage.name()));
        copy(whole.path(), &start);
        go(stage, whole.path(), &mut Stop::default()).unwrap();
        let complete = tree(whole.path());
        let mut written = differences(&tree(&start), &complete);
        // Made before the first step.
        written.remove("latents.safetensors");
        assert!(written.len() >= 5, "{written:?}");
        // All of the first stage; of the others their own, and two of the base folder's small files.
        let (state, common) =
            (format!("state/{}.safetensors", stage.name()), ["metrics.jsonl", "curves.svg"]);
        let small = ["base/unet/config.json", "base/model_index.json"];
        written.retain(|name| {
            let is_own = *name != state && !common.contains(&name.as_str());
            let is_small = name.starts_with("base/") && !name.ends_with(".safetensors");
            stage == Stage::Vae || is_own && (!is_small || small.contains(&name.as_str()))
        });
        for name in &written {
            // In the middle, and at the end.
            for at in if stage == Stage::Vae { &[2, 4][..] } else { &[4] } {
                let at = *at;
                let out = folder.path().join("broken");
                copy(&start, &out);
                let aside = folder.path().join("aside");
                let mut obstacle = Obstacle { at, path: out.join(name), aside };
                let ended = go(stage, &out, &mut obstacle);
                assert!(ended.is_err(), "{stage:?} {at} {name} is not written");
                obstacle.clear();
                go(stage, &out, &mut Stop::default()).unwrap();
                let differing = differences(&tree(&out), &complete);
                assert!(differing.is_empty(), "{stage:?} {at} {name}: {differing:?}");
                fs::remove_dir_all(out).unwrap();
            }
        }
    }
}

/// Is interrupted once: at the tick of a step, or while clips of a step are made.
struct Interrupted {
    tick: Option<usize>,
    written: Option<usize>,
    heard: Vec<usize>,
}

impl Listener for Interrupted {
    fn tick(&mut self, tick: &Tick) -> Result<()> {
        if self.tick.take_if(|at| *at == tick.step).is_some() {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }

    fn say(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn written(&mut self, _: Stage, step: usize) -> Result<()> {
        if self.written.take_if(|at| *at == step).is_some() {
            return Err(Error::Cancelled);
        }
        self.heard.push(step);
        Ok(())
    }
}

#[test]
fn what_an_interruption_has_left_out_is_made_up_for() {
    let plan = Plan::from_toml("plan", PLAN).unwrap();
    let whole = tempfile::tempdir().unwrap();
    train(Stage::Vae, &plan, whole.path(), &mut Stop::default()).unwrap();
    for (tick, written) in
        [(Some(4), None), (None, Some(4)), (Some(2), None), (None, Some(2)), (Some(3), None)]
    {
        let broken = tempfile::tempdir().unwrap();
        let places = Places::new(broken.path());
        let compute = Compute::exact(&Device::Cpu);
        let mut listener = Interrupted { tick, written, heard: vec![] };
        let go = |listener: &mut Interrupted| {
            run(Stage::Vae, &plan, &places, &compute, OPTIONS, listener)
        };
        let error = go(&mut listener).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        go(&mut listener).unwrap();
        assert_eq!(listener.heard, [2, 4], "{tick:?} {written:?}");
        let differing = differences(&tree(broken.path()), &tree(whole.path()));
        assert!(differing.is_empty(), "{tick:?} {written:?}: {differing:?}");
        // A result that somebody has removed is made again, without a step.
        fs::remove_dir_all(broken.path().join("base")).unwrap();
        let mut again = Stop::default();
        train(Stage::Vae, &plan, broken.path(), &mut again).unwrap();
        assert_eq!((again.heard, again.written), (0, vec![4]));
        assert!(differences(&tree(broken.path()), &tree(whole.path())).is_empty());
    }
}

#[cfg(all(unix, feature = "cli"))]
#[test]
#[ignore = "takes minutes; see the head of this file"]
#[allow(clippy::print_stdout, reason = "figures for the person who asked for them")]
fn a_training_that_is_killed_at_any_time_comes_to_the_same() {
    use std::time::{Duration, Instant};

    use crate::support::program::Folder;

    let wanted = std::env::var("ANIMATELCM_KILLS").map_or(200, |n| n.parse().unwrap());
    let folder = Folder::new();
    folder.write("plan.toml", PLAN);
    let args = |out| {
        let fixed = ["train", "--config", "plan.toml", "--checkpoint-every", "2"];
        [&fixed[..], &["--samples", "2", "--sample-every", "2", "-q", "--out", out]].concat()
    };
    let started = Instant::now();
    folder.run(&args("whole")).ok();
    let length = started.elapsed();
    let whole = tree(&folder.path("whole"));
    let (mut kills, mut runs, mut seed) = (0, 0, 0x9e37_79b9_7f4a_7c15_u64);
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f64 / (1 << 24) as f64
    };
    while kills < wanted {
        runs += 1;
        for _ in 0..16 {
            let mut child = folder.spawn(&args("killed"));
            std::thread::sleep(Duration::from_secs_f64(0.15 * length.as_secs_f64() * random()));
            child.kill().unwrap();
            kills += usize::from(!child.wait().unwrap().success());
        }
        folder.run(&args("killed")).ok();
        let mut killed = tree(&folder.path("killed"));
        // Drafts of a killed program.
        let drafts = killed.len();
        killed.retain(|name, _| !name.ends_with(".part"));
        let drafts = drafts - killed.len();
        let differing = differences(&whole, &killed);
        println!("run {runs}, {kills} kills: {} differ, {drafts} drafts", differing.len());
        assert!(differing.is_empty(), "after {kills} kills: {differing:?}");
        fs::remove_dir_all(folder.path("killed")).unwrap();
    }
}

#[test]
fn another_plan_does_not_go_on_with_what_is_there() {
    let plan = Plan::from_toml("plan", PLAN).unwrap();
    let folder = tempfile::tempdir().unwrap();
    train(Stage::Vae, &plan, folder.path(), &mut Stop::default()).unwrap();
    let mut other = plan.clone();
    other.vae.course.rate *= 2.0;
    let error = train(Stage::Vae, &other, folder.path(), &mut Stop::default()).unwrap_err();
    assert!(error.hint().unwrap().contains("--restart"), "{error}");
    let options = Options { restart: true, ..OPTIONS };
    let places = Places::new(folder.path());
    run(Stage::Vae, &other, &places, &Compute::exact(&Device::Cpu), options, &mut Stop::default())
        .unwrap();
    // What comes later does not matter to a stage.
    other.lcm.course.rate *= 2.0;
    let mut stop = Stop::default();
    train(Stage::Vae, &other, folder.path(), &mut stop).unwrap();
    assert_eq!(stop.heard, 0);
    // A stage without what it builds on.
    let error = train(Stage::Motion, &other, folder.path(), &mut Stop::default()).unwrap_err();
    assert!(error.to_string().contains("unet"), "{error}");
}

#[test]
fn mixed_precision_learns_the_same() {
    // bf16 is for GPUs; the CPU has f16, which goes the same way.
    let plan = Plan::from_toml("plan", PLAN).unwrap();
    let losses = |dtype: DType| -> Vec<f64> {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::new(folder.path());
        let compute = Compute { dtype, ..Compute::exact(&Device::Cpu) };
        for stage in plan.stages() {
            run(stage, &plan, &places, &compute, OPTIONS, &mut Stop::default()).unwrap();
        }
        let state = tensors(folder.path(), "state/motion.safetensors");
        assert!(!state.is_empty());
        let text = String::from_utf8(bytes(folder.path(), "metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str::<Metric>(line).unwrap().loss).collect()
    };
    let (whole, half) = (losses(DType::F32), losses(DType::F16));
    assert_eq!(whole.len(), half.len());
    for (whole, half) in whole.iter().zip(&half) {
        assert!((whole - half).abs() < 0.02 * whole.abs() + 1e-4, "{half}, not {whole}");
    }
    assert_ne!(whole, half);
}

#[test]
fn latents_have_the_deviation_of_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let mut factors = Vec::new();
    let mut clips = Vec::new();
    for deviation in [1.0, 0.5] {
        let mut plan = Plan::from_toml("plan", PLAN).unwrap();
        plan.vae.deviation = deviation;
        let (places, compute) = (Places::new(folder.path()), Compute::exact(&Device::Cpu));
        let options = Options { restart: true, ..OPTIONS };
        for stage in [Stage::Vae, Stage::Base] {
            run(stage, &plan, &places, &compute, options, &mut Stop::default()).unwrap();
        }
        let config = bytes(folder.path(), "base/vae/config.json");
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        factors.push(config["scaling_factor"].as_f64().unwrap());
        // They are kept, but not beyond a change of their scale.
        clips.push(tensors(folder.path(), "latents.safetensors").remove("latents").unwrap());
    }
    assert!((factors[0] - 2.0 * factors[1]).abs() < 1e-9 * factors[0], "{factors:?}");
    for (whole, half) in clips[0].iter().zip(&clips[1]) {
        assert!((whole - 2.0 * half).abs() < 1e-5, "{whole} {half}");
    }
}

#[test]
fn memory_grows_with_the_batch() {
    let plan = Plan::from_toml("plan", PLAN).unwrap();
    let mut larger = plan.clone();
    larger.motion.course.batch *= 64;
    let memory = |stage, plan| memory(stage, plan, &Device::Cpu).unwrap();
    assert!(memory(Stage::Motion, &larger) > memory(Stage::Motion, &plan));
    assert_eq!(memory(Stage::Vae, &larger), memory(Stage::Vae, &plan));
}

#[cfg(feature = "cli")]
#[test]
fn what_was_trained_generates() {
    use crate::support::program::Folder;

    let folder = Folder::new();
    folder.write("plan.toml", PLAN);
    let args = ["train", "--config", "plan.toml", "--out", "run", "--samples", "2"];
    let run = folder.run(&args).ok();
    assert_eq!(run.stdout(), "run\n");
    for stage in Plan::from_toml("plan", PLAN).unwrap().stages() {
        let name = stage.name();
        assert!(run.stderr.contains(&format!("{name} 4/4")), "{}", run.stderr);
        assert!(folder.path(&format!("run/samples/{name}-4.png")).is_file());
    }
    let model = ["--model", "run/base", "--device", "cpu"];
    let consistent =
        ["--motion", "run/motion_lcm.safetensors", "--lcm-lora", "run/lcm_lora.safetensors"];
    let prompt = ["generate", "a red circle moving up on a black background", "--frames", "4"];
    let clip = [&prompt[..], &model, &consistent, &["-o", "clip.gif"]].concat();
    folder.run(&clip).ok();
    let teacher = ["--motion", "run/motion_teacher.safetensors", "--sampler", "ddim"];
    folder
        .run(&[&prompt[..], &model, &teacher, &["--cfg-scale", "2", "-o", "teacher.gif"]].concat())
        .ok();
    folder.run(&[&prompt[..], &model, &["--motion", "none", "-o", "still.gif"]].concat()).ok();
    let eval = ["eval", "--procedural", "--prompts", "2", "--frames", "4", "-q", "--json"];
    let report = folder.run(&[&eval[..], &model, &consistent].concat()).ok().json();
    assert_eq!(report["score"]["all"]["trials"], 2);
    for file in ["run/lcm_lora.safetensors", "run/motion_lcm.safetensors"] {
        folder.run(&["inspect", file]).ok();
    }
    // Again: nothing is left to do.
    let args = ["train", "--config", "run/config.toml", "--out", "run", "--samples", "0"];
    assert!(folder.run(&args).ok().stderr.contains("lcm is done already"));
}

#[cfg(feature = "cli")]
#[test]
fn a_killed_training_loses_at_most_one_interval() {
    use crate::support::program::Folder;

    const STEPS: usize = 400;
    let folder = Folder::new();
    let steps = format!("steps = {STEPS}, batch = 3, rate");
    folder.write("plan.toml", PLAN.replace("steps = 4, batch = 3, rate", &steps));
    let kept = |out: &str| -> Option<usize> {
        let file = fs::read(folder.path(&format!("{out}/state/vae.safetensors"))).ok()?;
        // Whatever is there under its name is whole: it was put there in one move.
        let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
        Some(header.metadata().as_ref().unwrap()["step"].parse().unwrap())
    };
    let args = |out| {
        let fixed = ["train", "--config", "plan.toml", "--stage", "vae", "--samples", "0"];
        [&fixed[..], &["--checkpoint-every", "7", "--sample-every", "0", "--out", out]].concat()
    };
    for kill in 1..4 {
        let before = kept("killed").unwrap_or(0);
        let mut child = folder.spawn(&args("killed"));
        let started = std::time::Instant::now();
        while kept("killed").unwrap_or(0) < before + 7 * kill {
            assert!(started.elapsed().as_secs() < 60, "no checkpoint appears");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let now = kept("killed").unwrap();
        assert!(now < STEPS && now.is_multiple_of(7), "{now}");
    }
    let before = kept("killed").unwrap();
    let plan = Plan::from_toml("plan", &String::from_utf8(folder.read("plan.toml")).unwrap());
    let mut heard = Stop::default();
    train(Stage::Vae, &plan.unwrap(), &folder.path("killed"), &mut heard).unwrap();
    assert_eq!(heard.heard, STEPS - before);
    folder.run(&args("whole")).ok();
    for file in ["state/vae.safetensors", "base/vae/diffusion_pytorch_model.safetensors"] {
        let [whole, killed] = ["whole", "killed"].map(|out| tensors(&folder.path(out), file));
        assert_eq!(whole, killed, "{file}");
    }
}

#[cfg(feature = "cli")]
#[test]
fn a_stage_below_its_goal_is_not_built_on() {
    use crate::support::program::Folder;

    let folder = Folder::new();
    let goal = "[goals]\nbase = { color = 1.0, shape = 1.0 }\n";
    folder.write("plan.toml", format!("{PLAN}\n{goal}"));
    let args = ["train", "--config", "plan.toml", "--out", "run", "--samples", "6"];
    for _ in 0..2 {
        // Also when the stage was done before.
        let run = folder.run(&args);
        assert!(run.fails(2).contains("shape"), "{}", run.stderr);
        assert!(run.hint().contains("--stage"), "{}", run.stderr);
        assert!(!folder.path("run/state/lora.safetensors").exists());
    }
    folder.run(&[&args[..], &["--stage", "lora", "--stage", "motion"]].concat()).ok();
    assert!(folder.path("run/motion_teacher.safetensors").is_file());
}

#[cfg(feature = "cli")]
#[test]
fn a_folder_of_clips_is_learned_from() {
    use crate::support::program::Folder;

    let folder = Folder::new();
    for (i, text) in
        ["a red square growing on a navy background", "a white ring moving up on a grey background"]
            .iter()
            .enumerate()
    {
        let caption: Caption = text.parse().unwrap();
        fs::create_dir_all(folder.path(&format!("data/{i}"))).unwrap();
        for (j, frame) in Scene::new(caption, 1).frames(20, 8).iter().enumerate() {
            frame.save(folder.path(&format!("data/{i}/{j}.png"))).unwrap();
        }
        folder.write(&format!("data/{i}.txt"), text);
    }
    let plan = PLAN.replace(
        "data = { procedural = 6 }",
        "data = { folder = { path = \"data\", stride = 2 } }",
    );
    folder.write("plan.toml", &plan);
    let args = ["train", "--config", "plan.toml", "--out", "run", "--samples", "1", "-q"];
    folder.run(&[&args[..], &["--stage", "vae", "--stage", "base"]].concat()).ok();
    assert!(folder.path("run/base/unet/config.json").is_file());
    folder.write("plan.toml", plan.replace("stride = 2", "stride = 5"));
    let run = folder.run(&[&args[..], &["--stage", "vae", "--restart"]].concat());
    assert!(run.fails(2).contains("16 are needed"), "{}", run.stderr);
}

#[cfg(feature = "cli")]
#[test]
fn trainings_that_cannot_be_are_refused() {
    use crate::support::program::Folder;

    let folder = Folder::new();
    folder.write("plan.toml", PLAN);
    let fails = |args: &[&str], code: i32, words: &str| {
        let run = folder.run(&[&["train"], args].concat());
        assert!(run.fails(code).contains(words), "{args:?}: {}", run.stderr);
    };
    fails(&["--out", "run"], 2, "no plan");
    fails(&["--preset", "huge", "--out", "run"], 2, "huge");
    fails(&["--config", "none.toml", "--out", "run"], 2, "none.toml");
    fails(&["--config", "plan.toml"], 2, "--out");
    fails(&["--config", "plan.toml", "--out", "run", "--stage", "voe"], 2, "voe");
    fails(&["--config", "plan.toml", "--out", "run", "--scale", "0"], 2, "scale");
    fails(&["--config", "plan.toml", "--out", "run", "--base", "nowhere"], 2, "nowhere");
    fails(&["--config", "plan.toml", "--out", "run", "--base", "."], 2, "overwrite");
    fails(&["--config", "plan.toml", "--out", "run", "--stage", "motion"], 3, "vae/config.json");
    let huge = PLAN.replace("batch = 1,", "batch = 1000000,");
    folder.write("huge.toml", huge);
    fails(&["--config", "huge.toml", "--out", "run", "--stage", "motion"], 4, "stage motion");
    for (from, to, words) in [
        ("rank = 3", "rank = 2147483648", "`lora.rank`"),
        ("accumulate = 2", "accumulate = 2147483648", "`base.course.accumulate`"),
        ("vocab_size = 614", "vocab_size = 9223372036854775807", "`base.text.vocab_size`"),
        ("hidden_size = 8", "hidden_size = 9223372036854775807", "`base.text.hidden_size`"),
        ("norm_num_groups = 4", "norm_num_groups = 3", "3 groups"),
    ] {
        folder.write("wrong.toml", PLAN.replace(from, to));
        fails(&["--config", "wrong.toml", "--out", "run", "--stage", "base"], 2, words);
    }
    // Sizes that could be, but not on this machine.
    let large = PLAN.replace("block_out_channels = [8, 16]", "block_out_channels = [16384, 16384]");
    folder.write("large.toml", large);
    fails(&["--config", "large.toml", "--out", "run", "--stage", "base"], 4, "stage base");
    fails(&["--config", "plan.toml", "--out", "run", "--scale", "1e300"], 2, "scale");
    #[cfg(unix)]
    {
        fails(&["--config", "/dev/zero", "--out", "run"], 2, "/dev/zero: is not an ordinary file");
        let made = std::process::Command::new("mkfifo").arg(folder.path("fifo")).status();
        assert!(made.unwrap().success());
        fails(&["--config", "fifo", "--out", "run"], 2, "fifo: is not an ordinary file");
        // Texts of the data are such files as well.
        let list = PLAN.replace("procedural = 6", "folder = { path = \"data.csv\" }");
        folder.write("list.toml", list);
        std::os::unix::fs::symlink("/dev/zero", folder.path("data.csv")).unwrap();
        fails(&["--config", "list.toml", "--out", "list"], 2, "data.csv: is not an ordinary file");
    }
    let printed = folder.run(&["train", "--preset", "pocket", "--print-config"]).ok();
    assert!(printed.stdout().contains("block_out_channels"));
}

#[cfg(feature = "cli")]
#[test]
fn a_folder_is_for_one_training_at_a_time() {
    use crate::support::program::Folder;

    let folder = Folder::new();
    folder.write("plan.toml", PLAN);
    let args =
        ["train", "--config", "plan.toml", "--stage", "vae", "--samples", "0", "--out", "run"];
    let lock = Places::new(folder.path("run")).lock().unwrap();
    let run = folder.run(&args);
    assert!(run.fails(2).contains("another training runs in run"), "{}", run.stderr);
    assert_eq!(tree(&folder.path("run")).len(), 1, "something was written");
    drop(lock);
    folder.run(&args).ok();
}
