//! SparseCtrl against diffusers, in every layout, and how it behaves with others and with bad input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use animatelcm::Stop;
use animatelcm::adapters::sparse_ctrl::{SparseControl, SparseHint};
use animatelcm::adapters::{Conditioner, ControlSettings, Pass, Progress, Strength};
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, ControlFile, Files, Models, Part};
use animatelcm::media::RgbImage;
use animatelcm::media::tensor::from_rgb;
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::sparse_ctrl::{SparseCtrl, SparseCtrlConfig};
use animatelcm::models::unet::{Injection, Residuals, UNetInput};
use animatelcm::pipeline::{Event, Pipeline, Residency, memory};
use animatelcm::request::Control;
use animatelcm::request::Request;
use animatelcm::rng::{Noise, RngKind};
use animatelcm::sampler::WindowSchedule;
use animatelcm::weights::VarBuilder;
use animatelcm::weights::{Component, Source, random};
use animatelcm::{Error, Result};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_close, assert_relative, relative_l2};
use crate::support::control::{
    all_weights, bits, hint_folder, images, published, request, run_from, save,
};
use crate::support::golden;
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny::{self, case, fold};

/// Modules and single passes in f32, relative L2.
const F32: f64 = 1e-5;
/// Whole runs in f32, absolute.
const RUN: f64 = 1e-3;

const RGB: &str = "sparse_ctrl/rgb/diffusion_pytorch_model.safetensors";

/// The tiny network that follows drawings: its own layers and the rest of the other one's.
fn scribble_weights() -> BTreeMap<String, Tensor> {
    let load = |name| candle_core::safetensors::load(golden::path(name), &Device::Cpu).unwrap();
    let mut weights: BTreeMap<String, Tensor> = load(RGB).into_iter().collect();
    weights.retain(|name, _| !name.starts_with("controlnet_cond_embedding."));
    weights.extend(load("sparse_ctrl/scribble.safetensors"));
    weights
}

/// The same as a folder of diffusers.
fn scribble_folder(folder: &Path) -> PathBuf {
    let place = folder.join("scribble");
    if place.exists() {
        return place;
    }
    std::fs::create_dir(&place).unwrap();
    save(&scribble_weights(), &place.join("diffusion_pytorch_model.safetensors"));
    let config = place.join("config.json");
    std::fs::copy(golden::path("sparse_ctrl/scribble.json"), config).unwrap();
    place
}

fn net(kind: &str) -> SparseCtrl {
    let (config, weights) = if kind == "rgb" {
        let weights = tiny::tensors(&[RGB]);
        (tiny::config::<SparseCtrlConfig>("sparse_ctrl/rgb/config.json"), weights)
    } else {
        let float = |(name, x): (String, Tensor)| (name, x.to_dtype(DType::F32).unwrap());
        let weights = scribble_weights().into_iter().map(float).collect();
        (tiny::config("sparse_ctrl/scribble.json"), weights)
    };
    SparseCtrl::new(&config, &VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu)).unwrap()
}

/// Latents of hints, `(hints, 4, height, width)`.
fn hint_latents() -> Tensor {
    golden::load("sparse_ctrl/units").tensor("latents").squeeze(0).unwrap().transpose(0, 1).unwrap()
}

/// Pixels of hints, `(hints, 3, height, width)` in `[0, 1]`.
fn hint_pixels() -> Tensor {
    from_rgb(&images("sparse_ctrl/units", "pictures_u8"), &Device::Cpu).unwrap()
}

fn residuals(net: &SparseCtrl, hint: &Tensor, frames: &[usize], norm: MotionNorm) -> Residuals {
    let context = case("unet")["ctx"].narrow(0, 0, 1).unwrap();
    let x = net.embed(&hint.contiguous().unwrap(), frames, 6, &Stop::default()).unwrap();
    let input = UNetInput {
        timestep: 759.0,
        frames: 6,
        context: &context,
        motion_norm: norm,
        injection: &Injection::default(),
        stop: &Stop::default(),
    };
    net.forward(&x, &input).unwrap()
}

fn assert_residuals(got: &Residuals, golden: &str, name: &str, skips: &[usize], scale: f64) {
    let want = golden::load(golden);
    let name = |part: &str| if name.is_empty() { part.into() } else { format!("{name}.{part}") };
    for i in skips {
        let got = (&got.skips[*i] * scale).unwrap();
        assert_relative(&got, &want.tensor(&name(&format!("down{i}"))), F32);
    }
    assert_relative(&(&got.mid * scale).unwrap(), &want.tensor(&name("mid")), F32);
}

#[test]
fn residuals_equal_diffusers() {
    let config: SparseCtrlConfig = tiny::config("tiny/extras/sparsectrl/config.json");
    let file = "tiny/extras/sparsectrl/diffusion_pytorch_model.safetensors";
    let one_layer = SparseCtrl::new(&config, &tiny::vb(&[file], DType::F32)).unwrap();
    let hint = fold(&case("sparsectrl")["cond"]);
    let index = Tensor::new(&[0u32, 4], &Device::Cpu).unwrap();
    let hint = hint.index_select(&index, 0).unwrap();
    let got = residuals(&one_layer, &hint, &[0, 4], MotionNorm::Pooled);
    assert_eq!(got.skips.len(), 8);
    assert_residuals(&got, "tiny/cases/sparsectrl", "", &[0, 3, 7], 0.9);

    let units = "sparse_ctrl/units";
    let (rgb, scribble) = (net("rgb"), net("scribble"));
    let got = residuals(&rgb, &hint_latents(), &[0, 2, 5], MotionNorm::Pooled);
    assert_residuals(&got, units, "rgb", &[0, 4, 9, 11], 1.0);
    let got = residuals(&scribble, &hint_pixels(), &[1, 2, 4], MotionNorm::Pooled);
    assert_residuals(&got, units, "scribble", &[0, 4, 9, 11], 0.8);
    // As AnimateDiff's own code norms, for which the published weights were trained.
    let got = residuals(&rgb, &hint_latents(), &[0, 2, 5], MotionNorm::PerFrame);
    assert_residuals(&got, units, "rgb_per_frame", &[0, 4, 9, 11], 1.0);
}

#[test]
fn hints_go_with_their_frames_in_any_order() {
    let net = net("rgb");
    let hint = hint_latents().contiguous().unwrap();
    let want = residuals(&net, &hint, &[0, 2, 5], MotionNorm::Pooled);
    let index = Tensor::new(&[2u32, 0, 1], &Device::Cpu).unwrap();
    let turned = hint.index_select(&index, 0).unwrap();
    let got = residuals(&net, &turned, &[5, 0, 2], MotionNorm::Pooled);
    assert_eq!(relative_l2(&got.mid, &want.mid), 0.0);
    let other = residuals(&net, &turned, &[0, 2, 5], MotionNorm::Pooled);
    assert!(relative_l2(&other.mid, &want.mid) > 1e-3);

    for (frames, part) in [(&[0, 6, 2][..], "frame 6"), (&[0, 2], "3 hints for 2 frames")] {
        let error = net.embed(&hint, frames, 6, &Stop::default()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// What a control adds in a pass, told by the UNet's output.
fn injected(net: &SparseCtrl, settings: ControlSettings, frames: &[usize], clip: usize) -> Tensor {
    let hint = hint_latents().contiguous().unwrap();
    let hint = SparseHint { hints: &hint, frames: &[0, 2, 5], clip };
    let mut control = SparseControl::new(net, hint, settings, &Stop::default()).unwrap();
    let unit = case("unet");
    let (x, context) = (fold(&unit["x"]), unit["ctx"].narrow(0, 0, 1).unwrap());
    let motion_norm = MotionNorm::PerFrame;
    let pass = Pass {
        x: &x,
        timestep: 759.0,
        progress: Progress { step: 0, steps: 1 },
        clips: 1,
        frames,
        context: &context,
        negatives: 0,
        motion_norm,
        stop: &Stop::default(),
    };
    let mut injection = Injection::default();
    control.inject(&pass, &mut injection).unwrap();
    let input = UNetInput {
        timestep: 759.0,
        frames: frames.len(),
        context: &context,
        motion_norm,
        injection: &injection,
        stop: &Stop::default(),
    };
    tiny::unet(DType::F32).forward(&x, &input).unwrap()
}

#[test]
fn strengths_belong_to_frames() {
    let net = net("rgb");
    let settings = |scale: &str| ControlSettings {
        strength: scale.parse::<Strength>().unwrap(),
        ..Default::default()
    };
    let all = [0, 1, 2, 3, 4, 5];
    let unit = case("unet");
    let context = unit["ctx"].narrow(0, 0, 1).unwrap();
    let plain = residuals(&net, &hint_latents(), &[0, 2, 5], MotionNorm::PerFrame);
    let scales = Tensor::new(&[1f32, 0.8, 0.6, 0.4, 0.2, 0.2], &Device::Cpu).unwrap();
    let scales = scales.reshape((6, 1, 1, 1)).unwrap();
    let mut injection = Injection::default();
    injection.add_residuals(plain.map(|_, x| x.broadcast_mul(&scales)).unwrap()).unwrap();
    let input = UNetInput {
        timestep: 759.0,
        frames: 6,
        context: &context,
        motion_norm: MotionNorm::PerFrame,
        injection: &injection,
        stop: &Stop::default(),
    };
    let want = tiny::unet(DType::F32).forward(&fold(&unit["x"]), &input).unwrap();
    let got = injected(&net, settings("0:1.0,4:0.2"), &all, 6);
    assert_relative(&got, &want, F32);
    // A window of a longer clip sees the hints of its own frames.
    let window = injected(&net, settings("1"), &[2, 3, 4, 5, 6, 7], 8);
    assert!(relative_l2(&window, &injected(&net, settings("1"), &all, 6)) > 1e-3);
}

#[test]
fn guess_mode_weighs_residuals_as_diffusers_does() {
    let plain = residuals(&net("scribble"), &hint_pixels(), &[1, 2, 4], MotionNorm::Pooled);
    let graded = plain.map(|i, x| x * (10f64.powf(i as f64 / 12.0 - 1.0))).unwrap();
    assert_residuals(&graded, "sparse_ctrl/units", "guess", &[0, 4, 9, 11], 0.8);
}

#[test]
fn the_network_asks_for_exactly_the_published_names_and_shapes() {
    let rgb = SparseCtrlConfig::default();
    for (config, name, count) in
        [(rgb.clone(), "sparse_ctrl_rgb", 478), (rgb.scribble(), "sparse_ctrl_scribble", 492)]
    {
        let ours = random::inventory(|vb| SparseCtrl::new(&config, &vb)).unwrap();
        assert_eq!(ours.len(), count);
        assert_eq!(ours, published(name).into_iter().collect());
    }
}

/// A network's weights under AnimateDiff's names, below a prefix, with its tables of positions.
fn animatediff_weights(kind: &str, prefix: &str) -> BTreeMap<String, Tensor> {
    let names: BTreeMap<String, String> = published(&format!("sparse_ctrl_{kind}"))
        .into_iter()
        .zip(published(&format!("sparse_ctrl_{kind}_animatediff")))
        .map(|((ours, _), (theirs, _))| (ours, theirs))
        .collect();
    let weights = match kind {
        "rgb" => candle_core::safetensors::load(golden::path(RGB), &Device::Cpu).unwrap(),
        _ => scribble_weights().into_iter().collect(),
    };
    let table = "transformer_blocks.0.attention_blocks.0.pos_encoder.pe";
    weights
        .into_iter()
        .map(|(name, tensor)| {
            let theirs = names.get(&name).cloned().unwrap_or_else(|| {
                let module = name.strip_suffix("transformer_blocks.0.pos_embed.pe").unwrap();
                format!("{module}temporal_transformer.{table}")
            });
            (format!("{prefix}{theirs}"), tensor)
        })
        .collect()
}

#[test]
fn every_layout_gives_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sparse.safetensors");
    for (kind, source, count) in [
        ("rgb", golden::path("sparse_ctrl/rgb"), 476),
        ("scribble", scribble_folder(folder.path()), 486),
    ] {
        let want = all_weights(Component::SparseCtrl, &Source::from(source));
        assert_eq!(want.len(), count, "{kind}");
        for prefix in ["", "module.", "controlnet.", "controlnet.module."] {
            save(&animatediff_weights(kind, prefix), &file);
            let got = all_weights(Component::SparseCtrl, &Source::from(file.clone()));
            assert!(got == want, "{kind} below `{prefix}`");
        }
    }
}

// Whole runs.

/// A control with the tiny network that `model` names.
fn control(name: &str, hint: &str, model: &str, more: &str) -> Control {
    format!("{name}={hint},model={model}{more}").parse().unwrap()
}

/// The tiny model with both networks, and a ControlNet and a T2I-Adapter beside them.
fn files(folder: &Path) -> Files {
    let file = |name: &str, path: PathBuf| ControlFile { name: name.into(), source: path.into() };
    Files {
        controls: vec![
            file("rgb", golden::path("sparse_ctrl/rgb")),
            file("scribble", scribble_folder(folder)),
            file("net", golden::path("tiny/extras/controlnet")),
            file("adapter", golden::path("t2i_adapter/full")),
        ],
        ..Files::new(Base::Folder(golden::path("tiny/model")))
    }
}

fn tensors() -> Tensors {
    let posterior = golden::load("sparse_ctrl/runs").tensor("posterior");
    let hint_noise = BTreeMap::from([("a".to_owned(), posterior)]);
    Tensors { hint_noise, ..crate::support::control::tensors() }
}

fn run(
    folder: &Path,
    controls: Vec<Control>,
    request: Request,
) -> Result<BTreeMap<String, Tensor>> {
    run_from(
        &files(folder),
        &request.with(|r| {
            r.controls = controls;
        }),
        tensors(),
    )
}

/// Two or three hints as a folder of images.
fn hints(folder: &Path, count: usize) -> String {
    let all = images("sparse_ctrl/units", "pictures_u8");
    hint_folder(folder, &format!("hints{count}"), &all[..count])
}

#[test]
fn runs_equal_diffusers() {
    let want = golden::load("sparse_ctrl/runs");
    let folder = tempfile::tempdir().unwrap();
    let (two, three) = (hints(folder.path(), 2), hints(folder.path(), 3));
    let rgb = control("a", &three, "rgb", ",frames=0,2,5,scale=0.9");
    let got = run(folder.path(), vec![rgb], request()).unwrap();
    assert_close(&got["latents"], &want.tensor("rgb"), RUN);

    let scribble = control("b", &two, "scribble", ",frames=1,4,scale=0.8");
    let got = run(folder.path(), vec![scribble], request()).unwrap();
    assert_close(&got["latents"], &want.tensor("scribble"), RUN);

    let guess = control("b", &two, "scribble", ",frames=1,4,scale=0.8,guess");
    let got = run(
        folder.path(),
        vec![guess],
        request().with(|r| {
            r.sampling.cfg_scale = 1.0;
        }),
    )
    .unwrap();
    assert_close(&got["latents"], &want.tensor("guess"), RUN);
}

#[test]
fn a_seed_gives_diffusers_clip_without_any_given_noise() {
    let want = golden::load("sparse_ctrl/runs");
    let folder = tempfile::tempdir().unwrap();
    let hint = hints(folder.path(), 3);
    let controls = vec![control("a", &hint, "rgb", ",frames=0,2,5,scale=0.9")];
    let request = request().with(|r| {
        r.sampling.seed = Some(7);
        r.controls = controls;
    });
    let got = run_from(&files(folder.path()), &request, Tensors::default()).unwrap();
    assert_close(&got["latents"], &want.tensor("seed"), RUN);
}

#[test]
fn one_image_is_the_first_frame_and_as_many_as_frames_are_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let image = &images("sparse_ctrl/units", "pictures_u8")[..1];
    let one = hint_folder(folder.path(), "one", image);
    let six = hint_folder(folder.path(), "six", &vec![image[0].clone(); 6]);
    let files = files(folder.path());
    let frames = |hint: &str, more: &str| {
        let controls = vec![control("b", hint, "scribble", more)];
        bits(
            &run_from(
                &files,
                &request().with(|r| {
                    r.sampling.steps = 1;
                    r.controls = controls;
                }),
                tensors(),
            )
            .unwrap(),
        )
    };
    assert_eq!(frames(&one, ""), frames(&one, ",frames=0"));
    assert_ne!(frames(&one, ""), frames(&one, ",frames=3"));
    assert_eq!(frames(&six, ""), frames(&six, ",frames=0,1,2,3,4,5"));
    assert_ne!(frames(&six, ""), frames(&one, ""));
}

#[test]
fn strength_zero_is_bit_identical_to_absence() {
    let folder = tempfile::tempdir().unwrap();
    let hint = hints(folder.path(), 3);
    let files = files(folder.path());
    // With the seed's own noise: a control that does not count must not draw from it.
    let run = |controls: Vec<Control>| {
        let request = request().with(|r| {
            r.sampling.steps = 2;
            r.controls = controls;
            r.sampling.seed = Some(3);
        });
        bits(&run_from(&files, &request, Tensors::default()).unwrap())
    };
    let plain = run(vec![]);
    for model in ["rgb", "scribble"] {
        for more in [",scale=0", ",scale=0:0,3:0", ",start=0.9", ",scale=0,guess"] {
            let got = run(vec![control("a", &hint, model, &format!(",frames=0,2,5{more}"))]);
            assert!(got == plain, "`{more}` of {model} changes the clip");
        }
        let got = run(vec![control("a", &hint, model, ",frames=0,2,5,scale=0.01")]);
        assert!(got != plain, "a small strength of {model} changes nothing");
    }
}

#[test]
fn the_order_of_controls_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let (two, three) = (hints(folder.path(), 2), hints(folder.path(), 3));
    let six = images("tiny/cases/controlnet", "cond_u8");
    let six = hint_folder(folder.path(), "six", &six);
    let mut controls = vec![
        control("a", &three, "rgb", ",frames=0,2,5,scale=0.5"),
        control("b", &two, "scribble", ",frames=1,4,scale=0:0.2,5:0.7"),
        control("c", &six, "net", ",scale=0.4,end=0.75"),
        control("d", &six, "adapter", ",scale=0.6,end=0.5"),
    ];
    let files = files(folder.path());
    let run = |controls: &[Control]| {
        run_from(
            &files,
            &request().with(|r| {
                r.controls = controls.into();
            }),
            tensors(),
        )
        .unwrap()
    };
    let there = run(&controls);
    controls.reverse();
    assert_close(&run(&controls)["latents"], &there["latents"], RUN);
    let plain = run(&[])["latents"].clone();
    assert!(relative_l2(&there["latents"], &plain) > 0.01);
    controls.pop();
    assert!(relative_l2(&run(&controls)["latents"], &there["latents"]) > 0.01);
}

#[test]
fn parts_are_loaded_only_when_they_are_needed() {
    let folder = tempfile::tempdir().unwrap();
    let hint = hints(folder.path(), 3);
    let loaded = |model: &str, more: &str| {
        let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
        let models = Models::open(&files(folder.path())).unwrap();
        let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::Sequential);
        let controls = vec![control("a", &hint, model, &format!(",frames=0,2,5{more}"))];
        let request = request().with(|r| {
            r.sampling.steps = 1;
            r.controls = controls;
        });
        let mut parts = Vec::new();
        let mut listener = |event: Event| {
            match event {
                Event::Load { part, bytes } => parts.push((part, bytes)),
                Event::Report { report } if parts.last().unwrap().0 == "vae-encoder" => {
                    assert_eq!(report.bytes, parts.last().unwrap().1);
                }
                _ => {}
            }
            Ok(())
        };
        let mut frames = Vec::new();
        let mut none = Tensors::default();
        pipeline.run(&request, &mut none, &mut listener, &mut &mut frames).unwrap();
        parts.into_iter().map(|(part, _)| part).collect::<Vec<_>>()
    };
    assert_eq!(loaded("rgb", ""), ["text", "vae-encoder", "vae", "sparsectrl", "unet"]);
    assert!(!loaded("rgb", ",scale=0").contains(&"vae-encoder"));
    assert!(!loaded("scribble", "").contains(&"vae-encoder"));
}

#[test]
fn the_estimate_of_memory_knows_every_network() {
    let folder = tempfile::tempdir().unwrap();
    let models = Models::open(&files(folder.path())).unwrap();
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    let plan = |names: &[&str]| {
        let controls = names.iter().map(|name| control(name, "hint.png", name, "")).collect();
        let request = request().with(|r| {
            r.controls = controls;
        });
        memory::Plan::new(&models, precision, &Device::Cpu, &request, (64, 32))
    };
    let plain = plan(&[]);
    assert_eq!(plain.encode, 0);
    for name in ["rgb", "scribble", "net", "adapter"] {
        let bytes = models.bytes(&Part::SideNetwork(name.to_owned()), precision);
        let with = plan(&[name]);
        assert!(bytes > 10_000, "{name}");
        assert_eq!(with.weights, plain.weights + bytes, "{name}");
        assert!(with.pass > plain.pass, "{name}");
        assert_eq!(with.encode > 0, name == "rgb");
    }
    let all = plan(&["rgb", "scribble", "net", "adapter"]);
    assert!(all.encode > models.bytes(&Part::VaeEncoder, precision));
    assert_eq!(all.decode, plain.decode);
}

#[test]
fn hints_are_encoded_by_whichever_autoencoder_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let hint = hints(folder.path(), 3);
    let controls = vec![control("a", &hint, "rgb", ",frames=0,2,5")];
    let request = request().with(|r| {
        r.sampling.steps = 1;
        r.controls = controls;
    });
    let latents = |vae: PathBuf, tensors: Tensors| {
        let files = Files { vae: Some(vae), ..files(folder.path()) };
        run_from(&files, &request, tensors).map(|got| got["latents"].clone())
    };
    let own = latents(golden::path("tiny/model/vae"), tensors()).unwrap();
    // TAESD knows no distribution: what is drawn has no effect.
    let taesd = latents(golden::path("tiny/extras/taesd"), tensors()).unwrap();
    let undrawn = Tensors { hint_noise: BTreeMap::new(), ..tensors() };
    let again = latents(golden::path("tiny/extras/taesd"), undrawn).unwrap();
    assert_eq!(relative_l2(&taesd, &again), 0.0);
    assert!(relative_l2(&taesd, &own) > 1e-3);

    // A file with the decoder only.
    let file = golden::path("tiny/model/vae/diffusion_pytorch_model.safetensors");
    let mut weights = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    weights.retain(|name, _| !name.starts_with("encoder.") && !name.starts_with("quant_conv."));
    let half = folder.path().join("half");
    std::fs::create_dir(&half).unwrap();
    let config = golden::path("tiny/model/vae/config.json");
    std::fs::copy(config, half.join("config.json")).unwrap();
    let weights = weights.into_iter().collect();
    save(&weights, &half.join("diffusion_pytorch_model.safetensors"));
    let error = latents(half, tensors()).unwrap_err();
    assert_eq!(error.to_string(), "vae: has no encoder");
    assert!(error.hint().unwrap().contains("--vae"));
}

#[test]
fn impossible_configurations_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |field: &str, value: serde_json::Value| {
        let place = folder.path().join(field);
        std::fs::create_dir(&place).unwrap();
        let weights = "diffusion_pytorch_model.safetensors";
        save(&scribble_weights(), &place.join(weights));
        let config = std::fs::read(golden::path("sparse_ctrl/scribble.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        config[field] = value;
        std::fs::write(place.join("config.json"), config.to_string()).unwrap();
        open(place).to_string()
    };
    for (field, value, part) in [
        ("motion_max_seq_length", 1_000_000_000.into(), "not between 1 and 4096"),
        ("conditioning_embedding_out_channels", vec![4; 70].into(), "lists 70 stages"),
        ("conditioning_channels", 1.into(), "hints of 1 channels"),
        ("concat_conditioning_mask", false.into(), "concat_conditioning_mask"),
        ("global_pool_conditions", true.into(), "global_pool_conditions"),
        ("controlnet_conditioning_channel_order", "bgr".into(), "\"bgr\""),
        ("cross_attention_dim", 1024.into(), "context of 1024"),
    ] {
        let error = open(field, value);
        assert!(error.contains(part), "{field}: {error}");
    }
}

#[test]
fn networks_in_windows_see_what_they_see_in_clips_of_those_frames() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let image =
        |i: u32| RgbImage::from_fn(64, 32, |x, y| image::Rgb([x, y, 25 * i].map(|v| v as u8)));
    let drawn: Vec<RgbImage> = (0..10).map(image).collect();
    let hint = |name: &str, images: &[RgbImage]| hint_folder(folder.path(), name, images);
    let (all, sparse) = (hint("all", &drawn), hint("sparse", &drawn[3..5]));
    let noise = Noise::new(RngKind::Cpu, 4).latents((1, 10, 4, 8, 16), &Device::Cpu).unwrap();
    let noise = noise.transpose(1, 2).unwrap().contiguous().unwrap();
    let latents = |controls: Vec<Control>, first: usize, count: usize| {
        let request = request().with(|r| {
            r.sampling.steps = 1;
            r.size.frames = Some(count);
            r.controls = controls;
            if count == 10 {
                r.windows.length = Some(5);
                r.windows.overlap = Some(0);
                r.windows.schedule = Some(WindowSchedule::Static);
            }
        });
        let part = noise.narrow(2, first, count).unwrap().contiguous().unwrap();
        let tensors = Tensors { latents: Some(part), ..Tensors::default() };
        run_from(&files, &request, tensors).unwrap()["latents"].clone()
    };
    let got = latents(
        vec![
            control("n", &all, "net", ",scale=0:1,4:0.2,9:0.7"),
            control("t", &all, "adapter", ",scale=0.8"),
            control("s", &sparse, "scribble", ",frames=1,7"),
        ],
        0,
        10,
    );
    for (i, curve, frame) in [(0, "0:1,4:0.2", 1), (1, "0:0.3,4:0.7", 2)] {
        let first = 5 * i;
        let all = hint(&format!("all{i}"), &drawn[first..first + 5]);
        let sparse = hint(&format!("sparse{i}"), &drawn[3 + i..4 + i]);
        let alone = latents(
            vec![
                control("n", &all, "net", &format!(",scale={curve}")),
                control("t", &all, "adapter", ",scale=0.8"),
                control("s", &sparse, "scribble", &format!(",frames={frame}")),
            ],
            first,
            5,
        );
        assert_relative(&got.narrow(2, first, 5).unwrap(), &alone, F32);
        let plain = latents(vec![], first, 5);
        assert!(relative_l2(&alone, &plain) > 1e-3, "the hints change nothing");
    }
}

#[test]
fn hints_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (two, three) = (hints(folder.path(), 2), hints(folder.path(), 3));
    let files = files(folder.path());
    let fails = |control: Control, frames: usize| -> Error {
        let request = request().with(|r| {
            r.controls = vec![control];
            r.size.frames = Some(frames);
        });
        let error = run_from(&files, &request, Tensors::default()).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2, "{error}");
        error
    };
    for (hint, more, part) in [
        (&two, "", "2 images, but for which frames"),
        (&two, ",frames=0,2,4", "2 images, for 3 frames"),
        (&three, ",frames=0,2,6", "frame 6 is not in the clip, 0 to 5"),
        (&three, ",frames=0,2,2", "frame 2 is listed twice"),
    ] {
        let error = fails(control("a", hint, "rgb", more), 6);
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = fails(control("a", &two, "net", ",frames=0,2"), 6);
    assert!(
        error.to_string().contains("`frames` is for SparseCtrl, net is a ControlNet"),
        "{error}"
    );

    // Noise of another shape, before the long part.
    let hint_noise = Tensor::zeros((2, 4, 8, 16), DType::F32, &Device::Cpu).unwrap();
    let hint_noise = BTreeMap::from([("a".to_owned(), hint_noise)]);
    let controls = vec![control("a", &three, "rgb", ",frames=0,2,5")];
    let wrong = Tensors { hint_noise, ..Tensors::default() };
    let error = run_from(
        &files,
        &request().with(|r| {
            r.controls = controls;
        }),
        wrong,
    )
    .unwrap_err();
    assert!(error.to_string().contains("`noise.control.a` is [2, 4, 8, 16]"), "{error}");
}

// Files that are something else.

fn open(source: PathBuf) -> Error {
    let controls = vec![ControlFile { name: "mine".into(), source: source.into() }];
    let files = Files { controls, ..Files::new(Base::Folder(golden::path("tiny/model"))) };
    Models::open(&files).unwrap_err()
}

#[test]
fn other_networks_are_called_by_their_name() {
    let error = open(golden::path("tiny/extras/sparsectrl"));
    assert!(error.to_string().contains("has 1 layers a stage, the model 2"), "{error}");
    for file in ["layouts/motion_v3.safetensors", "layouts/motion_lcm.ckpt", tiny::MOTION] {
        let error = open(golden::path(file));
        assert!(error.to_string().contains("has no ControlNet, SparseCtrl or T2I"), "{error}");
        assert_eq!(error.hint().as_deref(), Some("give motion modules with --motion"), "{file}");
    }
    // A SparseCtrl network is neither a model nor motion modules.
    let files = Files::new(Base::File(golden::path(RGB)));
    let error = Models::open(&files).unwrap_err();
    assert!(error.to_string().contains("is a SparseCtrl network"), "{error}");
    assert_eq!(error.hint().as_deref(), Some("give it with --control"));

    // That of Stable Diffusion 1.5 beside the tiny model: shapes tell.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sparse.safetensors");
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap();
    let mut weights = animatediff_weights("rgb", "");
    for (i, width) in [320, 640, 1280, 1280].into_iter().enumerate() {
        weights.insert(format!("down_blocks.{i}.resnets.0.conv1.weight"), zeros(&[width, 1]));
    }
    weights.insert("conv_in.weight".into(), zeros(&[320, 4, 3, 3]));
    save(&weights, &file);
    let error = open(file.clone()).to_string();
    assert!(error.contains("is a SparseCtrl network for 4 channels in, widths [320,"), "{error}");

    // One tensor more, one less.
    let mut weights = animatediff_weights("rgb", "");
    let bias = weights.remove("controlnet_down_blocks.3.bias").unwrap();
    save(&weights, &file);
    let controls = vec![control("a", &hints(folder.path(), 1), "sparse", "")];
    let run = || {
        let source = Source::from(file.clone());
        let files = Files {
            controls: vec![ControlFile { name: "sparse".into(), source }],
            ..Files::new(Base::Folder(golden::path("tiny/model")))
        };
        let request = request().with(|r| {
            r.controls = controls.clone();
        });
        run_from(&files, &request, Tensors::default()).unwrap_err()
    };
    assert!(run().to_string().contains("controlnet_down_blocks.3.bias"), "{}", run());
    weights.insert("controlnet_down_blocks.3.bias".into(), bias.clone());
    weights.insert("controlnet_down_blocks.3.bios".into(), bias);
    save(&weights, &file);
    assert!(run().to_string().contains("controlnet_down_blocks.3.bios"), "{}", run());
}

/// The program with the tiny model and its SparseCtrl networks.
#[cfg(feature = "cli")]
mod program {
    use super::{golden, hint_folder, images};
    use crate::support::program::{Folder, Outcome};

    fn generate(folder: &Folder, more: &[&str]) -> Outcome {
        let model = golden::path("tiny/model");
        let mut args = vec!["generate", "a corgi", "--model", model.to_str().unwrap(), "-s", "7"];
        args.extend(["--frames", "6", "-W", "64", "-H", "32", "--steps", "1"]);
        args.extend(more);
        folder.run(&args)
    }

    fn control(folder: &Folder, more: &str) -> String {
        let all = images("sparse_ctrl/units", "pictures_u8");
        hint_folder(folder.path("x").parent().unwrap(), "hint", &all);
        format!("keys=hint,model={},frames=0,2,5{more}", golden::path("sparse_ctrl/rgb").display())
    }

    #[test]
    fn a_controlled_clip_is_made_again_from_its_own_metadata() {
        let folder = Folder::new();
        let control = control(&folder, ",scale=0:1.0,5:0.5");
        let outcome = generate(&folder, &["-o", "a.png", "--control", &control, "-v"]).ok();
        assert!(outcome.stderr.contains("sparsectrl"), "{}", outcome.stderr);
        folder.run(&["replay", "a.png"]).ok();
        assert_eq!(folder.read("a-replay.png"), folder.read("a.png"));
        let about = folder.run(&["inspect", "a.png", "--json"]).ok().json().to_string();
        assert!(about.contains("[0,2,5]"), "{about}");
    }

    #[test]
    fn noise_of_hints_can_be_given() {
        let folder = Folder::new();
        let control = control(&folder, "");
        let posterior = golden::load("sparse_ctrl/runs").tensor("posterior");
        for (file, name, values) in [
            ("given", "noise.control.keys", posterior.clone()),
            ("other", "noise.control.keys", (&posterior * 2.0).unwrap()),
            ("wrong", "noise.control.kyes", posterior.clone()),
            ("nan", "noise.control.keys", (&posterior * f64::NAN).unwrap()),
        ] {
            let path = folder.path(&format!("{file}.safetensors"));
            candle_core::safetensors::save(&[(name, values)].into(), path).unwrap();
        }
        let run = |file: &str| {
            let tensors = format!("{file}.safetensors");
            let output = format!("{file}.png");
            generate(&folder, &["-o", &output, "--control", &control, "--tensors-in", &tensors])
        };
        run("given").ok();
        run("other").ok();
        assert_ne!(folder.read("given.png"), folder.read("other.png"));
        assert!(run("wrong").fails(2).contains("`noise.control.kyes`"));
        assert!(run("nan").fails(2).contains("NaN"));
    }

    #[test]
    fn inspect_names_the_network_and_what_it_touches() {
        let folder = Folder::new();
        let path = golden::path("sparse_ctrl/rgb");
        let file = golden::path(super::RGB);
        for path in [path, file] {
            let outcome = folder.run(&["inspect", path.to_str().unwrap()]).ok();
            let text = outcome.stdout();
            assert!(text.contains("a SparseCtrl network that follows latents"), "{text}");
            assert!(text.contains("12 skips and the middle"), "{text}");
        }
    }
}
