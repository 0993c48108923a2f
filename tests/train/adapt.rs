//! Control networks that learn to steer few-step sampling: against torch, in whole trainings, and what is written.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use animatelcm::library::SideConfig;
use animatelcm::models::control_net::{ControlNet, ControlNetConfig};
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::sparse_ctrl::{SparseCtrl, SparseCtrlConfig};
use animatelcm::models::t2i_adapter::{T2iAdapter, T2iAdapterConfig};
use animatelcm::train::{
    AdamW, Adaptation, Cell, Compute, Grid, HintedBatch, Loss, LowRank, Pairs, Plan, Weights, clip,
    fresh, gradients, layers,
};
#[cfg(feature = "cli")]
use animatelcm::train::{Options, Places, Stage, run};
#[cfg(feature = "cli")]
use candle_core::DType;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::parts::{drawn, factors, numbers, scalar, schedule, tiny_config, tiny_weights};
use super::trainings::PLAN;
#[cfg(feature = "cli")]
use super::trainings::{OPTIONS, Stop, tensors};
use crate::support::golden;
use crate::support::tiny;

/// The folder of a network of random weights beside the UNet of [`PLAN`].
pub(super) fn network(kind: &str, folder: &Path) {
    let plan = Plan::from_toml("plan", PLAN).unwrap();
    let (unet, device) = (&plan.base.unet, &Device::Cpu);
    let (config, class, weights) = match kind {
        "controlnet" => {
            let config = ControlNetConfig {
                conditioning_embedding_out_channels: vec![4, 6],
                ..ControlNetConfig::beside(unet)
            };
            let weights = fresh(|vb| ControlNet::new(&config, &vb), 7, |_| false, device);
            (serde_json::to_value(config), "ControlNetModel", weights)
        }
        "sparsectrl" => {
            let config = SparseCtrlConfig::beside(unet);
            let weights = fresh(|vb| SparseCtrl::new(&config, &vb), 8, |_| false, device);
            (serde_json::to_value(config), "SparseControlNetModel", weights)
        }
        _ => {
            let config = T2iAdapterConfig {
                channels: unet.block_out_channels.clone(),
                downscale_factor: 2,
                ..T2iAdapterConfig::default()
            };
            let weights = fresh(|vb| T2iAdapter::new(&config, &vb), 9, |_| false, device);
            (serde_json::to_value(config), "T2IAdapter", weights)
        }
    };
    let mut config: Value = config.unwrap();
    config["_class_name"] = json!(class);
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let weights: HashMap<String, Tensor> = weights.unwrap().into_iter().collect();
    let path = folder.join("diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&weights, path).unwrap();
}

/// [`PLAN`] with a stage that adapts the network in a folder.
pub(super) fn plan(network: &Path, more: &str) -> String {
    let network = network.display();
    format!(
        "{PLAN}\n[adapt]\nnetwork = '{network}'\nrank = 2\nalpha = 2.0\n{more}\n\
         course = {{ steps = 4, batch = 2, warmup = 2, rate = 0.02, loss = {{ huber = 0.1 }} }}\n"
    )
}

/// The tiny ControlNet, what it is, and a LoRA over all of its layers as the goldens have it.
fn tiny_control() -> (SideConfig, Weights, LowRank) {
    let config: ControlNetConfig = tiny::config("tiny/extras/controlnet/config.json");
    let file = "tiny/extras/controlnet/diffusion_pytorch_model.safetensors";
    let weights: Weights = tiny::tensors(&[file]).into_iter().collect();
    let lora = LowRank::from_factors(&factors(&layers(&weights), 0.1), 2.0).unwrap();
    (SideConfig::ControlNet(config), weights, lora)
}

fn adaptation() -> Adaptation {
    let (config, weights, lora) = tiny_control();
    let (unet, compute) = (tiny_weights(true), Compute::exact(&Device::Cpu));
    let unet = (&tiny_config(true), &unet);
    Adaptation::new(unet, MotionNorm::Pooled, (config, weights), lora, &compute).unwrap()
}

fn batch(step: usize, cells: Vec<Cell>) -> HintedBatch {
    let clips = cells.len();
    HintedBatch {
        hints: drawn(&format!("hint.{step}"), &[clips * 3, 3, 32, 32]),
        hinted: vec![],
        pairs: pairs(step, cells),
    }
}

/// The clips of a step, as the goldens draw them.
pub(super) fn pairs(step: usize, cells: Vec<Cell>) -> Pairs {
    let clips = cells.len();
    Pairs {
        clean: drawn(&format!("clean.{step}"), &[clips * 3, 4, 8, 8]),
        noise: drawn(&format!("noise.{step}"), &[clips * 3, 4, 8, 8]),
        context: drawn(&format!("context.{step}"), &[clips, 5, 12]),
        frames: 3,
        cells,
    }
}

#[test]
fn adaptation_without_a_teacher_is_that_of_torch() {
    let golden = golden::json("train/adapt");
    let mut adaptation = adaptation();
    let grid = Grid::new(&schedule(), 50, 1).unwrap();
    let vars = adaptation.vars().clone();
    assert_eq!(vars.len() as u64, 2 * golden["modules"].as_u64().unwrap());
    let mut optimizer = AdamW::new(1e-2);
    let (losses, norms) = (numbers(&golden["losses"]), numbers(&golden["norms"]));
    for step in 0..losses.len() {
        let indices = numbers(&golden["batches"][step]["indices"]);
        let cells = indices.iter().map(|index| grid.cell(*index as usize)).collect();
        let loss = adaptation.loss(&batch(step, cells), Loss::Huber(0.3)).unwrap();
        let tolerance = 2e-5 * (1 + step) as f64;
        let (got, want) = (scalar(&loss), losses[step]);
        assert!((got - want).abs() <= tolerance * want, "loss {step}: {got}, not {want}");
        let mut found = gradients(&mut loss.backward().unwrap(), &vars).unwrap();
        let (got, want) = (clip(&mut found, 1.0).unwrap(), norms[step]);
        assert!((got - want).abs() <= 10.0 * tolerance * want, "norm {step}: {got}, not {want}");
        optimizer.step(&vars, &found, 1e-3).unwrap();
        adaptation.follow(0.95).unwrap();
    }
    check_target(&golden, adaptation.target());
}

/// How far weights have come, along a drawn direction, against how far they have moved.
pub(super) fn check_target(golden: &Value, target: &Weights) {
    let wanted = golden["target"].as_object().unwrap();
    assert!(wanted.len() > 15);
    for (name, wanted) in wanted {
        let target = &target[name];
        let with = drawn(&format!("{name}.first"), target.dims());
        let values: Vec<f32> = (target * with).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let got: f64 = values.into_iter().map(f64::from).sum();
        let reach = golden["moved"][name].as_f64().unwrap() * (target.elem_count() as f64).sqrt();
        let wanted = wanted.as_f64().unwrap();
        assert!((got - wanted).abs() <= 5e-3 * reach + 2e-5, "{name}: {got}, not {wanted}");
    }
}

#[test]
fn a_network_that_is_adapted_becomes_consistent() {
    let mut adaptation = adaptation();
    let grid = Grid::new(&schedule(), 10, 1).unwrap();
    let vars = adaptation.vars().clone();
    let mut optimizer = AdamW::new(0.0);
    let batch = batch(0, vec![grid.cell(5), grid.cell(3)]);
    let mut losses = Vec::new();
    for _ in 0..24 {
        let loss = adaptation.loss(&batch, Loss::Huber(0.3)).unwrap();
        losses.push(scalar(&loss));
        let mut found = gradients(&mut loss.backward().unwrap(), &vars).unwrap();
        clip(&mut found, 1.0).unwrap();
        optimizer.step(&vars, &found, 8e-3).unwrap();
        adaptation.follow(0.95).unwrap();
    }
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.8 * first, "{losses:?}");
    // A pair of another number of clips is no batch.
    let pairs = Pairs { cells: vec![grid.cell(5)], ..batch.pairs };
    let wrong = HintedBatch { pairs, ..batch };
    assert!(adaptation.loss(&wrong, Loss::Mse).unwrap_err().to_string().contains("1 cells for 6"));
}

/// The weights of a checkpoint's average over those of a network.
#[cfg(feature = "cli")]
fn merged(before: &Weights, state: &Weights) -> Weights {
    let mut after = before.clone();
    for (name, weight) in before {
        let module = name.strip_suffix(".weight").unwrap_or_default();
        let factor = |end: &str| state.get(&format!("average:{module}.{end}.weight"));
        let (Some(down), Some(up)) = (factor("lora_down"), factor("lora_up")) else { continue };
        let flat = |x: &Tensor| x.flatten_from(1).unwrap();
        // Alpha is the rank.
        let change = flat(up).matmul(&flat(down)).unwrap().reshape(weight.shape()).unwrap();
        after.insert(name.clone(), (weight + change).unwrap());
    }
    after
}

#[cfg(feature = "cli")]
#[test]
fn every_kind_of_network_is_adapted_written_and_loaded_with_what_it_learned() {
    use crate::support::program::Folder;

    let folder = Folder::new();
    let compute = Compute::exact(&Device::Cpu);
    let out = folder.path("run");
    for (i, (kind, more, control)) in [
        ("controlnet", "preprocess = { kind = 'canny' }", "canny=hint.png,preprocess"),
        ("sparsectrl", "hint_frames = [0, 2]", "rgb=hint.png,frames=1"),
        ("t2i", "", "color=hint.png"),
    ]
    .into_iter()
    .enumerate()
    {
        network(kind, &folder.path(kind));
        let plan = Plan::from_toml("plan", &plan(&folder.path(kind), more)).unwrap();
        assert_eq!(plan.stages().len(), 6);
        let options = Options { restart: i > 0, ..OPTIONS };
        for stage in plan.stages().into_iter().filter(|stage| i == 0 || *stage == Stage::Adapt) {
            run(stage, &plan, &Places::new(&out), &compute, options, &mut Stop::default()).unwrap();
        }
        let load = |path: &Path| -> Weights {
            let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
            let single = |x: Tensor| x.to_dtype(DType::F32).unwrap();
            tensors.into_iter().map(|(name, tensor)| (name, single(tensor))).collect()
        };
        let file = "diffusion_pytorch_model.safetensors";
        let before = load(&folder.path(kind).join(file));
        let after = merged(&before, &load(&out.join("state/adapt.safetensors")));
        let written = load(&out.join("adapted").join(file));
        assert!(written.keys().eq(before.keys()), "{kind}");
        let far = |a: &Tensor, b: &Tensor| {
            let far = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            f64::from(far.to_scalar::<f32>().unwrap())
        };
        let mut moved = 0;
        for (name, weight) in &written {
            assert!(far(weight, &after[name]) < 2e-3, "{kind}: {name}");
            moved += usize::from(far(weight, &before[name]) > 4e-3);
        }
        assert!(2 * moved > layers(&before).len(), "{kind}: {moved} have moved");

        // `--control` loads it, and it does what the network did not.
        image::RgbImage::from_fn(16, 16, |x, y| {
            image::Rgb([if x > 8 { 250 } else { 10 }, (9 * y) as u8, 90])
        })
        .save(folder.path("hint.png"))
        .unwrap();
        let words = ["generate", "a red circle moving up on a black background", "--frames=4"];
        let model = ["--model=run/base", "--motion=run/motion_lcm.safetensors"];
        let rest = ["--lcm-lora=run/lcm_lora.safetensors", "--seed=3", "--no-metadata", "-q", "-y"];
        let clip = |network: &str| {
            let control = format!("--control={control},model={network}");
            let more = [control.as_str(), "-o", "clip.gif"];
            folder.run(&[&words[..], &model, &rest, &more].concat()).ok();
            folder.read("clip.gif")
        };
        assert!(clip("run/adapted") != clip(kind), "{kind}");
        let seen = folder.run(&["inspect", &format!("run/adapted/{file}")]).ok();
        let named = match kind {
            "controlnet" => "ControlNet",
            "sparsectrl" => "SparseCtrl",
            _ => "T2I-Adapter",
        };
        assert!(seen.stdout().contains(named), "{}", seen.stdout());
    }
    // Settings of other kinds are no settings.
    for (kind, more, words) in [
        ("sparsectrl", "preprocess = { kind = 'canny' }", "hints are latents"),
        ("t2i", "hint_frames = [1]", "a T2I-Adapter has a hint for every frame"),
    ] {
        let plan = Plan::from_toml("plan", &plan(&folder.path(kind), more)).unwrap();
        let options = Options { restart: true, ..OPTIONS };
        let places = Places::new(&out);
        let ended = run(Stage::Adapt, &plan, &places, &compute, options, &mut Stop::default());
        let error = ended.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let net = plan(&folder.path("controlnet"), "preprocess = { kind = 'canny' }");
    let net = Plan::from_toml("plan", &net).unwrap();
    run(Stage::Adapt, &net, &Places::new(&out), &compute, OPTIONS, &mut Stop::default()).unwrap();
    let states = tensors(&out, "state/adapt.safetensors");
    assert!(states.keys().any(|name| name.starts_with("kept:")));
}

#[cfg(feature = "cli")]
#[test]
fn adaptations_that_cannot_be_are_refused() {
    use crate::support::program::Folder;

    let folder = Folder::new();
    network("controlnet", &folder.path("net"));
    let whole = plan(&folder.path("net"), "preprocess = { kind = 'canny' }");
    let fails = |plan: &str, more: &[&str], words: &str| {
        folder.write("plan.toml", plan);
        let run = folder.run(&[&["train", "--config", "plan.toml", "--out=run"], more].concat());
        assert!(run.fails(2).contains(words), "{words}: {}", run.stderr);
    };
    fails(PLAN, &["--stage=adapt"], "stage: the plan has no `adapt`");
    for (from, to, words) in [
        ("kind = 'canny'", "kind = 'depth'", "`depth` needs a network"),
        ("kind = 'canny'", "kind = 'canny', low = -1.0", "low"),
        ("rank = 2", "rank = 0", "`adapt.rank`"),
        ("rank = 2", "hint_frames = [4]", "4 is not in a clip of 4"),
        ("rank = 2", "hint_frames = [1, 1]", "1 is listed twice"),
        ("rank = 2", "follow = 1.0", "`follow` must be"),
        ("rank = 2", "guidance = 2.0", "guidance"),
        ("network", "net", "net"),
    ] {
        fails(
            &whole.replacen(from, to, 1).replace(
                "{ kind = 'canny', low = -1.0 }",
                "{ kind = 'canny', low = -1.0, high = 2.0 }",
            ),
            &[],
            words,
        );
    }
    fails(&format!("{whole}\n[goals]\nadapt = {{ color = 0.5 }}\n"), &[], "`adapt` makes no clips");
}
