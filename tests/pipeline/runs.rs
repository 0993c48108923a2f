//! Whole runs against the reference, and the same run from every layout of files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use animatelcm::Quantize;
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, Files, Library, LoraFile, Models, Motion, Part};
use animatelcm::media::RgbImage;
use animatelcm::models::motion::MotionNorm;
use animatelcm::pipeline::denoiser::{Guidance, Guided, Settings};
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::Request;
use animatelcm::rng::{Noise, RngKind};
use animatelcm::sampler::{Heun, PlanSettings, Run, SamplerKind};
use animatelcm::schedule::{BetaSchedule, NoiseSchedule, Prediction, Spacing};
use animatelcm::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::support::close::{assert_close, relative_l2};
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny::{self, case};

/// Whole runs in f32, absolute on frames in `[0, 1]`.
const FRAMES: f64 = 1e-3;

const PROMPT: &str = "A corgi walking in the park, 4k!!";
const NEGATIVE: &str = "bad quality";

fn tiny_files() -> Files {
    Files::new(Base::Folder(tiny::path("tiny/model")))
}

/// The request of the tiny model's goldens under official semantics, without guidance.
fn tiny_request() -> Request {
    Request::default().with(|r| {
        r.prompt.text = PROMPT.into();
        r.prompt.negative = NEGATIVE.into();
        r.size.width = Some(64);
        r.size.height = Some(32);
        r.size.frames = Some(6);
        r.sampling.seed = Some(0);
        // AnimateLCM's; the model's own file says 50.
        r.sampling.original_inference_steps = Some(100);
    })
}

/// The recorded noise and first latents of the tiny model's goldens.
fn tiny_tensors() -> Tensors {
    let noise = case("noise");
    Tensors {
        latents: Some(case("unet")["x"].clone()),
        noise: (0..3).map(|i| noise[&format!("noise.{i}")].clone()).collect(),
        recorded: Some(BTreeMap::new()),
        ..Tensors::default()
    }
}

fn run_in(
    dtype: DtypeChoice,
    files: &Files,
    request: &Request,
    tensors: Tensors,
) -> Result<(BTreeMap<String, Tensor>, Vec<RgbImage>)> {
    let precision = Precision::new(dtype, &Device::Cpu);
    let mut pipeline =
        Pipeline::new(Models::open(files)?, Device::Cpu, precision, Residency::Sequential);
    let mut frames = Vec::new();
    let mut tensors = Tensors { recorded: Some(BTreeMap::new()), ..tensors };
    pipeline.run(request, &mut tensors, &mut |_: Event| Ok(()), &mut &mut frames)?;
    Ok((tensors.recorded.unwrap(), frames))
}

fn run(
    files: &Files,
    request: &Request,
    tensors: Tensors,
) -> Result<(BTreeMap<String, Tensor>, Vec<RgbImage>)> {
    run_in(DtypeChoice::F32, files, request, tensors)
}

#[test]
fn a_run_without_guidance_equals_the_official_semantics() {
    let want = case("official_nocfg");
    let (got, frames) = run(&tiny_files(), &tiny_request(), tiny_tensors()).unwrap();
    assert_close(&got["latents"], &want["latents.final"], 1e-3);
    assert_close(&got["frames"], &want["frames"].squeeze(0).unwrap(), FRAMES);
    assert_eq!(frames.len(), 6);
    assert_eq!(frames[0].dimensions(), (64, 32));
}

#[test]
fn a_guided_run_equals_the_official_semantics_at_every_step() {
    let want = case("official_cfg");
    let request = tiny_request().with(|r| {
        r.sampling.cfg_scale = 1.5;
    });
    let (got, _) = run(&tiny_files(), &request, tiny_tensors()).unwrap();
    for i in 0..3 {
        assert_close(&got[&format!("latents.{i}")], &want[&format!("latents.{i}")], 1e-3);
    }
    assert_close(&got["latents"], &want["latents.final"], 1e-3);
    assert_close(&got["frames"], &want["frames"].squeeze(0).unwrap(), FRAMES);
}

#[test]
fn with_pooled_norms_and_fifty_steps_runs_equal_diffusers() {
    let request = tiny_request().with(|r| {
        r.sampling.original_inference_steps = Some(50);
        r.sampling.motion_norm = MotionNorm::Pooled;
        r.sampling.cfg_scale = 1.5;
    });
    let want = case("lcm_cfg");
    let (got, _) = run(&tiny_files(), &request, tiny_tensors()).unwrap();
    assert_close(&got["context"], &want["prompt_embeds"], 1e-4);
    assert_close(&got["negative_context"], &want["negative_embeds"], 1e-4);
    assert_close(&got["latents"], &want["latents.final"], 1e-3);
    assert_close(&got["frames"], &want["frames"].squeeze(0).unwrap(), FRAMES);

    let request = request.with(|r| {
        r.sampling.cfg_scale = 1.0;
    });
    let (got, _) = run(&tiny_files(), &request, tiny_tensors()).unwrap();
    assert_close(&got["latents"], &case("lcm_nocfg")["latents.final"], 1e-3);
    assert!(!got.contains_key("negative_context"), "the negative prompt was encoded for nothing");
}

#[test]
fn other_samplers_equal_diffusers() {
    let unet = tiny::unet(DType::F32);
    let prompts = case("lcm_cfg");
    let settings = Settings {
        prediction: Prediction::Epsilon,
        dtype: DType::F32,
        motion_norm: MotionNorm::Pooled,
    };
    let schedule = NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, 1000).unwrap();
    for (name, sampler, spacing) in [
        ("ddim", SamplerKind::Ddim, Spacing::Linspace),
        ("euler_trailing", SamplerKind::Euler, Spacing::Trailing),
        ("dpmpp_2m", SamplerKind::Dpmpp2m, Spacing::Linspace),
        ("dpmpp_2m_karras", SamplerKind::Dpmpp2m, Spacing::Karras),
    ] {
        let plan = sampler
            .plan(
                &schedule,
                &PlanSettings {
                    steps: 5,
                    spacing: Some(spacing),
                    set_alpha_to_one: true,
                    ..PlanSettings::default()
                },
            )
            .unwrap();
        let mut guided = Guided::new(&unet, settings, &prompts["prompt_embeds"])
            .unwrap()
            .guide(&prompts["negative_embeds"], 3.0, Guidance::Batched)
            .unwrap();
        let x = case("unet")["x"].transpose(1, 2).unwrap().contiguous().unwrap();
        let x = (x * plan.initial_scale).unwrap();
        let mut noise = Noise::new(RngKind::Cpu, 0);
        let got =
            sampler.build().sample(&mut Run::new(&mut guided, &plan.steps, &mut noise), x).unwrap();
        let got = got.transpose(1, 2).unwrap().contiguous().unwrap();
        let want = &case(name)["latents.final"];
        let error = relative_l2(&got, want);
        assert!(error < 2e-5, "{name}: {error:e}");
    }
}

#[test]
fn a_sampler_of_ones_own_runs_on_the_model_and_records_the_latents_of_each_step() {
    let run = |request: &Request, own: bool| {
        let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
        let models = Models::open(&tiny_files()).unwrap();
        let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::Sequential);
        if own {
            pipeline.set_sampler(Box::new(Heun));
        }
        let mut tensors = Tensors { noise: vec![], ..tiny_tensors() };
        let (mut frames, mut silent) = (Vec::new(), |_: Event| Ok(()));
        pipeline.run(request, &mut tensors, &mut silent, &mut &mut frames).unwrap();
        tensors.recorded.unwrap()
    };
    let request = |sampler| {
        tiny_request().with(|r| {
            r.sampling.sampler = sampler;
            r.sampling.steps = 3;
        })
    };
    let heun = run(&request(SamplerKind::Heun), false);
    let own = run(&request(SamplerKind::Euler), true);
    let steps: Vec<_> = heun.keys().filter(|name| name.starts_with("latents")).collect();
    assert_eq!(steps, ["latents", "latents.0", "latents.1", "latents.2"]);
    assert_close(&heun["latents"], &heun["latents.2"], 0.0);
    for name in steps {
        assert_close(&own[name], &heun[name], 0.0);
    }
    let euler = run(&request(SamplerKind::Euler), false);
    assert!(relative_l2(&euler["latents.0"], &heun["latents.0"]) > 1e-3);
}

#[test]
fn two_prompts_in_one_batch_equal_diffusers() {
    let unet = tiny::unet(DType::F32);
    let want = case("lcm_batch");
    let text = case("text");
    let settings = Settings {
        prediction: Prediction::Epsilon,
        dtype: DType::F32,
        motion_norm: MotionNorm::Pooled,
    };
    let schedule = NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, 1000).unwrap();
    let settings_of_plan = PlanSettings { original_inference_steps: 50, ..PlanSettings::default() };
    let plan = SamplerKind::Lcm.plan(&schedule, &settings_of_plan).unwrap();
    let frames_first = |name: &str| want[name].transpose(1, 2).unwrap().contiguous().unwrap();
    let noise = (0..3).map(|i| frames_first(&format!("noise.{i}"))).collect();
    let contexts = batch_contexts(&text);
    for guidance in [Guidance::Batched, Guidance::TwoPasses] {
        let mut guided = Guided::new(&unet, settings, &contexts.0)
            .unwrap()
            .guide(&contexts.1, 2.0, guidance)
            .unwrap();
        let mut noise = Noise::new(RngKind::Cpu, 0).with_replay(Vec::clone(&noise));
        let x = frames_first("latents.init");
        let sampler = SamplerKind::Lcm.build();
        let got = sampler.sample(&mut Run::new(&mut guided, &plan.steps, &mut noise), x).unwrap();
        let got = got.transpose(1, 2).unwrap().contiguous().unwrap();
        assert_close(&got, &want["latents.final"], 1e-3);
    }
}

/// Prompts and negative prompts of the batch golden: `[PROMPT, "a dog"]` and `[NEGATIVE, "dog"]`.
fn batch_contexts(_: &std::collections::HashMap<String, Tensor>) -> (Tensor, Tensor) {
    let models = Models::open(&tiny_files()).unwrap();
    let (text, _) = models.text(DType::F32, &Device::Cpu).unwrap();
    let encode = |prompts: [&str; 2]| {
        let states: Vec<Tensor> =
            prompts.iter().map(|p| text.encode(p, 0).unwrap().states).collect();
        Tensor::cat(&states, 0).unwrap()
    };
    (encode([PROMPT, "a dog"]), encode([NEGATIVE, "dog"]))
}

#[test]
fn loras_in_every_naming_equal_diffusers() {
    let lora = |name: &str, scale: f64| LoraFile {
        scale,
        ..LoraFile::new(tiny::path(&format!("tiny/extras/{name}.safetensors")))
    };
    for (name, loras) in [
        ("lora_kohya", vec![lora("lora-kohya", 0.8)]),
        ("lora_peft", vec![lora("lora-peft", 0.7)]),
        ("lora_motion", vec![lora("motion-lora", 1.0)]),
        (
            "lora_all",
            vec![lora("lora-kohya", 0.8), lora("lora-peft", 0.5), lora("motion-lora", 0.9)],
        ),
    ] {
        let files = Files { loras, ..tiny_files() };
        let request = tiny_request().with(|r| {
            r.sampling.steps = 2;
            r.sampling.cfg_scale = 1.5;
            r.sampling.original_inference_steps = Some(50);
            r.sampling.motion_norm = MotionNorm::Pooled;
        });
        let (got, _) = run(&files, &request, tiny_tensors()).unwrap();
        let want = case(name);
        assert_close(&got["context"], &want["prompt_embeds"], 1e-4);
        assert_close(&got["latents"], &want["latents.final"], 1e-3);
    }
}

#[test]
fn half_precision_runs_stay_within_their_measured_error() {
    let want = case("official_nocfg")["frames"].squeeze(0).unwrap();
    // Measured on the CPU, relative L2 of frames: 4.8e-4 and 5.0e-3; the tolerances leave half as much again.
    for (dtype, tolerance) in [(DtypeChoice::F16, 7e-4), (DtypeChoice::Bf16, 7.5e-3)] {
        let (got, _) = run_in(dtype, &tiny_files(), &tiny_request(), tiny_tensors()).unwrap();
        let error = relative_l2(&got["frames"], &want);
        assert!(error < tolerance, "{dtype:?}: {error:e}");
    }
}

#[test]
fn eight_bits_take_a_quarter_and_stay_within_their_measured_error() {
    let files = Files::new(Base::Embedded);
    let models = Models::open(&files).unwrap();
    let plain = Precision::new(DtypeChoice::F32, &Device::Cpu);
    let before = models.bytes(&Part::UNet, plain);
    let request = Request::default().with(|r| {
        r.prompt.text = "a red circle moving right".into();
        r.sampling.seed = Some(1);
    });
    let clip = |precision| {
        let models = Models::open(&files).unwrap();
        let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::Sequential);
        let mut tensors = Tensors { recorded: Some(BTreeMap::new()), ..Tensors::default() };
        let mut frames = Vec::new();
        let mut loaded = 0;
        let mut listener = |event: Event| {
            if let Event::Load { part: "unet", bytes } = event {
                loaded = bytes;
            }
            Ok(())
        };
        pipeline.run(&request, &mut tensors, &mut listener, &mut &mut frames).unwrap();
        (tensors.recorded.unwrap().remove("frames").unwrap(), loaded)
    };
    let (want, loaded) = clip(plain);
    assert_eq!(loaded, before);
    for (quantize, tolerance) in [(Quantize::Int8, 5e-2), (Quantize::W8A8, 5e-2)] {
        let precision = plain.quantized(quantize, &Device::Cpu).unwrap();
        // A quarter, and what is not rounded: small layers, norms, biases, scales.
        let after = models.bytes(&Part::UNet, precision);
        assert!(after * 100 < before * 30, "{after} of {before} bytes");
        let (got, loaded) = clip(precision);
        assert_eq!(loaded, after);
        let error = relative_l2(&got, &want);
        assert!(error > 1e-4 && error < tolerance, "{quantize:?}: {error:e}");
    }
}

#[test]
fn the_embedded_model_meets_its_reference_runs_from_the_seed_alone() {
    let runs: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(tiny::path("pocket/runs.json")).unwrap())
            .unwrap();
    for run_info in runs {
        let file = run_info["file"].as_str().unwrap();
        let want = tiny::tensors(&[&format!("pocket/{file}")]);
        let request = Request::default().with(|r| {
            r.prompt.text = run_info["prompt"].as_str().unwrap().into();
            r.prompt.negative = run_info["negative_prompt"].as_str().unwrap_or_default().into();
            r.sampling.cfg_scale = run_info["guidance_scale"].as_f64().unwrap();
            r.sampling.seed = run_info["seed"].as_u64();
        });
        let mut files = Files::new(Base::Embedded);
        files.loras.push(LoraFile::new(Files::embedded_lora()));
        let (got, _) = run(&files, &request, Tensors::default()).unwrap();
        assert_close(&got["context"], &want["context"], 1e-4);
        for i in 0..4 {
            assert_close(&got[&format!("latents.{i}")], &want[&format!("latents.{i}")], 1e-3);
        }
        let kept: Vec<u32> = run_info["kept"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i.as_u64().unwrap() as u32)
            .collect();
        let kept = Tensor::new(kept, &Device::Cpu).unwrap();
        let frames = got["frames"].index_select(&kept, 0).unwrap();
        assert_close(&frames, &want["frames"], FRAMES);
    }
}

/// Lays the files of a layout out in `folder`.
fn assemble(files: &Value, folder: &Path) {
    for (place, file) in files.as_object().unwrap() {
        let place = folder.join(place);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::copy(tiny::path(file.as_str().unwrap()), place).unwrap();
    }
}

/// The only file of a layout that is not a folder.
fn single(files: &Value, folder: &Path) -> Option<PathBuf> {
    let mut names = files.as_object().unwrap().keys();
    match (names.next(), names.next()) {
        (Some(name), None) => Some(folder.join(name)),
        _ => None,
    }
}

#[test]
fn every_layout_of_the_same_model_gives_bit_identical_frames() {
    let layouts: Value =
        serde_json::from_str(&std::fs::read_to_string(tiny::path("layouts/layouts.json")).unwrap())
            .unwrap();
    let request = tiny_request().with(|r| {
        r.sampling.steps = 1;
        r.size.frames = Some(2);
    });
    let frames = |files: &Files| run(files, &request, Tensors::default()).unwrap().1;
    let want = frames(&tiny_files());

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    assemble(&layouts["bases"]["folder"]["files"], &config);
    std::fs::create_dir_all(config.join("motion_adapter")).unwrap();
    std::fs::copy(
        tiny::path("tiny/model/motion_adapter/config.json"),
        config.join("motion_adapter/config.json"),
    )
    .unwrap();
    let motion = tiny::path("tiny/model/motion_adapter");

    let mut seen = 0;
    for (name, layout) in layouts["bases"].as_object().unwrap() {
        let place = folder.path().join(name);
        assemble(&layout["files"], &place);
        let has_motion = layout["motion"].as_bool().unwrap_or(false);
        let motion = if has_motion { Motion::Base } else { Motion::File(motion.clone()) };
        let mut choices = vec![];
        match single(&layout["files"], &place) {
            Some(file) => {
                // Over a folder, and alone with a folder for the sizes.
                choices.push(Files {
                    checkpoint: Some(file.clone()),
                    motion: motion.clone(),
                    ..Files::new(Base::Folder(config.clone()))
                });
                if name != "single_novae" {
                    choices.push(Files {
                        config: Some(config.clone()),
                        motion,
                        ..Files::new(Base::File(file))
                    });
                }
            }
            None => choices.push(Files { motion, ..Files::new(Base::Folder(place)) }),
        }
        for files in choices {
            assert!(frames(&files) == want, "{name} gives other frames");
            seen += 1;
        }
    }
    for (name, layout) in layouts["motions"].as_object().unwrap() {
        let place = folder.path().join(format!("motion_{name}"));
        assemble(&layout["files"], &place);
        let file = single(&layout["files"], &place).unwrap_or_else(|| place.join("motion"));
        let files = Files {
            config: Some(config.clone()),
            motion: Motion::File(file),
            ..Files::new(Base::Folder(config.clone()))
        };
        let same = frames(&files) == want;
        assert_eq!(same, layout["mid"].as_bool().unwrap(), "{name}");
        seen += 1;
    }
    assert!(seen >= 17, "only {seen} layouts were compared");
}

#[test]
fn one_seed_is_one_clip_and_another_seed_another() {
    let frames = |seed: u64, rng: RngKind| {
        let request = tiny_request().with(|r| {
            r.sampling.seed = Some(seed);
            r.sampling.rng = rng;
            r.sampling.steps = 1;
            r.size.frames = Some(2);
        });
        run(&tiny_files(), &request, Tensors::default()).unwrap().1
    };
    assert!(frames(1, RngKind::Cpu) == frames(1, RngKind::Cpu));
    assert!(frames(1, RngKind::Cpu) != frames(2, RngKind::Cpu));
    assert!(frames(1, RngKind::Cpu) != frames(1, RngKind::Cuda));
}

#[test]
fn switching_motion_off_and_the_norm_over_change_the_clip() {
    let request = tiny_request().with(|r| {
        r.sampling.steps = 1;
        r.size.frames = Some(3);
    });
    let frames =
        |files: &Files, request: &Request| run(files, request, Tensors::default()).unwrap().1;
    let with = frames(&tiny_files(), &request);
    let without = frames(&Files { motion: Motion::None, ..tiny_files() }, &request);
    assert!(with != without);
    let pooled = request.with(|r| {
        r.sampling.motion_norm = MotionNorm::Pooled;
    });
    assert!(with != frames(&tiny_files(), &pooled));
}

#[test]
fn a_listener_and_a_sink_can_stop_a_run() {
    let mut pipeline = Pipeline::new(
        Models::open(&tiny_files()).unwrap(),
        Device::Cpu,
        Precision::new(DtypeChoice::F32, &Device::Cpu),
        Residency::KeepAll,
    );
    let mut frames = Vec::new();
    let mut steps = 0;
    let mut listener = |event: Event| match event {
        Event::Step { .. } => {
            steps += 1;
            Err(Error::Cancelled)
        }
        _ => Ok(()),
    };
    let request = tiny_request();
    let error = pipeline
        .run(&request, &mut Tensors::default(), &mut listener, &mut &mut frames)
        .unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    assert_eq!((steps, frames.len()), (1, 0));
}

#[test]
fn requests_that_the_model_cannot_meet_are_refused_before_anything_is_loaded() {
    let pipeline = Pipeline::new(
        Models::open(&tiny_files()).unwrap(),
        Device::Cpu,
        Precision::new(DtypeChoice::F32, &Device::Cpu),
        Residency::KeepAll,
    );
    let refused = |request: Request, code: u8, words: &str| {
        let error = pipeline.prepared(&request).unwrap_err();
        assert_eq!(error.kind().exit_code(), code, "{error}");
        let text = format!("{error} {}", error.hint().unwrap_or_default());
        assert!(text.contains(words), "{text}");
    };
    refused(
        tiny_request().with(|r| {
            r.windows.length = Some(9);
        }),
        2,
        "at most 8",
    );
    refused(
        tiny_request().with(|r| {
            r.size.width = Some(62);
        }),
        2,
        "try 60 or 64",
    );
    refused(
        tiny_request().with(|r| {
            r.sampling.steps = 101;
        }),
        2,
        "steps",
    );
    let memory = pipeline.prepared(&tiny_request()).unwrap().memory;
    let error = memory.choose(Some(memory.weights + 1)).unwrap_err();
    assert_eq!(error.kind().exit_code(), 4);
    assert!(error.hint().unwrap().contains("--frames"));
}

#[test]
fn pipelines_of_different_precision_do_not_meet() {
    let request = Request::new("a red circle moving right").with(|r| {
        r.size.frames = Some(2);
        r.sampling.steps = 2;
        r.sampling.seed = Some(4);
    });
    let clip = |dtype: DtypeChoice, quantize: Quantize| {
        let precision = Precision::new(dtype, &Device::Cpu).quantized(quantize, &Device::Cpu);
        let models = Models::open(&Files::embedded()).unwrap();
        let mut pipeline =
            Pipeline::new(models, Device::Cpu, precision.unwrap(), Residency::Sequential);
        let mut frames = Vec::new();
        let mut quiet = |_: Event| Ok(());
        pipeline.run(&request, &mut Tensors::default(), &mut quiet, &mut &mut frames).unwrap();
        frames
    };
    let kinds = [
        (DtypeChoice::F32, Quantize::None),
        (DtypeChoice::F32, Quantize::Int8),
        (DtypeChoice::Bf16, Quantize::None),
    ];
    let alone: Vec<_> = kinds.iter().map(|(dtype, quantize)| clip(*dtype, *quantize)).collect();
    assert!(alone[0] != alone[1] && alone[0] != alone[2], "the precision changes nothing");
    // Twice each, all at once.
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2 * kinds.len())
            .map(|i| scope.spawn(move || (i, clip(kinds[i % 3].0, kinds[i % 3].1))))
            .collect();
        for thread in threads {
            let (i, frames) = thread.join().unwrap();
            assert!(frames == alone[i % 3], "{:?} is another clip", kinds[i % 3]);
        }
    });
}

#[test]
fn pipelines_that_share_a_library_share_networks_and_give_the_bytes_of_each_alone() {
    let request = Request::new("a red circle moving right").with(|r| {
        r.size.frames = Some(2);
        r.sampling.steps = 2;
        r.sampling.seed = Some(4);
    });
    let kinds = [(1.0, Quantize::None), (0.5, Quantize::None), (1.0, Quantize::Int8)];
    // The clip, and the networks that were loaded for it.
    let clip = |(strength, quantize): (f64, Quantize), library: Option<&Arc<Library>>| {
        let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
        let precision = precision.quantized(quantize, &Device::Cpu).unwrap();
        let mut files = Files::embedded();
        files.loras[0].scale = strength;
        let models = Models::open(&files).unwrap();
        let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::Sequential);
        if let Some(library) = library {
            pipeline = pipeline.with_library(library);
        }
        let (mut frames, mut loaded) = (Vec::new(), Vec::new());
        let mut observer = |event: Event| {
            if let Event::Load { part, .. } = event {
                loaded.push(part);
            }
            Ok(())
        };
        pipeline.run(&request, &mut Tensors::default(), &mut observer, &mut &mut frames).unwrap();
        (frames, loaded)
    };
    let alone = kinds.map(|kind| clip(kind, None).0);
    assert!(alone[0] != alone[1] && alone[0] != alone[2]);

    let library = Arc::new(Library::new(u64::MAX));
    let mut loaded: Vec<&str> = std::thread::scope(|scope| {
        let (clip, library) = (&clip, &library);
        let make = move |i: usize| (i, clip(kinds[i % 3], Some(library)));
        let threads: Vec<_> = (0..6).map(|i| scope.spawn(move || make(i))).collect();
        let clips = threads.into_iter().map(|thread| thread.join().unwrap());
        clips
            .flat_map(|(i, (frames, loaded))| {
                assert!(frames == alone[i % 3], "{:?} is another clip", kinds[i % 3]);
                loaded
            })
            .collect()
    });
    loaded.sort_unstable();
    assert_eq!(loaded, ["text", "unet", "unet", "unet", "vae"]);

    // A library that has room for one UNet drops the one that was used before.
    let room = library.bytes() / 2;
    let library = Arc::new(Library::new(room));
    assert_eq!(clip(kinds[0], Some(&library)).1, ["text", "vae", "unet"]);
    assert!(clip(kinds[0], Some(&library)).1.is_empty() && library.bytes() <= room);
    assert_eq!(clip(kinds[1], Some(&library)), (alone[1].clone(), vec!["unet"]));
    assert!(library.bytes() <= room);
    assert_eq!(clip(kinds[0], Some(&library)), (alone[0].clone(), vec!["unet"]));
}
