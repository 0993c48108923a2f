//! Options for quality, against diffusers; in windows, from a source, and what is refused.

use std::collections::BTreeMap;

use animatelcm::Result;
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, ControlFile, Files, Models};
use animatelcm::media::RgbImage;
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::unet::FreeU;
use animatelcm::pipeline::denoiser::{Guidance, Guided, Settings};
use animatelcm::pipeline::thresholding::thresholded;
use animatelcm::pipeline::{Event, Perturbed, Pipeline, Residency};
use animatelcm::request::{DynamicThresholding, FreeInit, Pag, Quality, Request, Source};
use animatelcm::sampler::{Denoiser, SamplerKind};
use animatelcm::schedule::{NoiseLevel, Prediction};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::support::close::{assert_close, assert_relative, relative_l2};
use crate::support::control::hint_folder;
use crate::support::golden;
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny::{self, case};

/// Final latents in f32, relative L2.
const RUN: f64 = 1e-4;

fn pipeline() -> Pipeline {
    let models = Models::open(&Files::new(Base::Folder(golden::path("tiny/model")))).unwrap();
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    Pipeline::new(models, Device::Cpu, precision, Residency::Sequential)
}

/// The tensors of a run, and what was told.
fn run(request: &Request) -> Result<(BTreeMap<String, Tensor>, Vec<Event>)> {
    let mut tensors = Tensors { recorded: Some(BTreeMap::new()), ..Tensors::default() };
    let (mut frames, mut events) = (Vec::<RgbImage>::new(), Vec::new());
    let mut listen = |event: Event| {
        events.push(event);
        Ok(())
    };
    pipeline().run(request, &mut tensors, &mut listen, &mut &mut frames)?;
    Ok((tensors.recorded.unwrap(), events))
}

/// The options of a golden run.
fn quality(run: &Value) -> Quality {
    let number = |name: &str| run[name].as_f64().unwrap();
    let has = |name: &str| run.get(name).is_some();
    Quality {
        guidance_rescale: run["rescale"].as_f64().unwrap_or_default(),
        dynamic_thresholding: has("ratio")
            .then(|| DynamicThresholding { ratio: number("ratio"), max: number("max") }),
        free_u: has("b1").then(|| FreeU {
            b1: number("b1"),
            b2: number("b2"),
            s1: number("s1"),
            s2: number("s2"),
        }),
        free_init: has("iters").then(|| FreeInit {
            iterations: number("iters") as usize,
            filter: serde_json::from_value(run["method"].clone()).unwrap(),
            order: number("order") as usize,
            spatial: number("spatial"),
            temporal: number("temporal"),
            fast: run["fast"].as_bool().unwrap_or_default(),
        }),
        pag: has("layers").then(|| Pag {
            scale: number("scale"),
            adaptive_scale: number("adaptive"),
            layers: serde_json::from_value(run["layers"].clone()).unwrap(),
        }),
        hires: has("hires").then(|| serde_json::from_value(run["hires"].clone()).unwrap()),
        ..Quality::default()
    }
}

/// The request of a golden run.
fn golden_request(about: &Value, run: &Value) -> Request {
    let number = |name: &str| about[name].as_u64().unwrap() as usize;
    Request::default().with(|r| {
        r.prompt.text = about["prompt"].as_str().unwrap().into();
        r.prompt.negative = about["negative"].as_str().unwrap().into();
        (r.size.width, r.size.height) = (Some(number("width")), Some(number("height")));
        r.size.frames = Some(number("frames"));
        r.sampling.seed = about["seed"].as_u64();
        r.sampling.sampler = run["sampler"].as_str().unwrap().parse().unwrap();
        if r.sampling.sampler == SamplerKind::Lcm {
            r.sampling.original_inference_steps = Some(50);
        }
        r.sampling.motion_norm = MotionNorm::Pooled;
        r.sampling.steps = run["steps"].as_u64().unwrap() as usize;
        r.sampling.cfg_scale = run["guidance"].as_f64().unwrap();
        r.quality = quality(run);
    })
}

#[track_caller]
fn runs_equal_diffusers(part: &str, least: usize) {
    let about = golden::json("quality/quality");
    let want = golden::load(&format!("quality/{part}"));
    let runs = about[part].as_object().unwrap();
    assert!(runs.len() >= least);
    for (name, settings) in runs {
        let (got, _) = run(&golden_request(&about, settings)).unwrap();
        let error = relative_l2(&got["latents"], &want.tensor(name));
        assert!(error < RUN, "{part}, {name}: {error:e}");
    }
}

#[test]
fn rescaled_guidance_and_thresholds_equal_diffusers() {
    runs_equal_diffusers("guidance", 7);
    let golden = golden::load("quality/guidance");
    for ratio in [0.5, 0.73, 0.995] {
        let settings = DynamicThresholding { ratio, max: 4.0 };
        let got = thresholded(&golden.tensor("quantile.x"), settings).unwrap();
        assert_close(&got, &golden.tensor(&format!("quantile.{ratio}")), 1e-6);
    }
}

#[test]
fn free_u_equals_diffusers_at_odd_sizes_too() {
    runs_equal_diffusers("free_u", 3);
    let golden = golden::load("quality/free_u");
    for i in 0..6 {
        let x = golden.tensor(&format!("filter.{i}.x"));
        for (block, factors) in [
            (0, FreeU { b1: 3.0, s1: 0.2, b2: 1.0, s2: 1.0 }),
            (1, FreeU { b1: 1.0, s1: 1.0, b2: 3.0, s2: 0.2 }),
        ] {
            let (backbone, skip) = factors.apply(block, &x, &x).unwrap();
            assert_close(&skip, &golden.tensor(&format!("filter.{i}")), 2e-6);
            let half = x.dim(1).unwrap() / 2;
            let rest = x.dim(1).unwrap() - half;
            let narrow = |x: &Tensor, from, count| x.narrow(1, from, count).unwrap();
            assert_close(&narrow(&backbone, half, rest), &narrow(&x, half, rest), 0.0);
            if half > 0 {
                let thrice = (narrow(&x, 0, half) * 3.0).unwrap();
                assert_close(&narrow(&backbone, 0, half), &thrice, 0.0);
            }
        }
        // Later up blocks stay as they are.
        let (backbone, skip) = FreeU::default().apply(2, &x, &x).unwrap();
        assert_close(&backbone, &x, 0.0);
        assert_close(&skip, &x, 0.0);
    }
}

#[test]
fn free_init_equals_diffusers_with_every_filter_from_the_seed_alone() {
    runs_equal_diffusers("free_init", 6);
}

#[test]
fn perturbed_attention_equals_diffusers_with_guidance_and_without() {
    runs_equal_diffusers("pag", 4);
}

#[test]
fn a_second_pass_equals_diffusers_from_enlarged_latents_and_from_frames() {
    runs_equal_diffusers("hires", 4);
}

#[test]
fn a_second_pass_has_hints_and_memory_of_its_own_size() {
    let folder = tempfile::tempdir().unwrap();
    let hint = hint_folder(folder.path(), "hint", &[RgbImage::new(10, 10)]);
    let source = golden::path("tiny/extras/controlnet").into();
    let files = Files {
        controls: vec![ControlFile { name: "net".into(), source }],
        ..Files::new(Base::Folder(golden::path("tiny/model")))
    };
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    let models = Models::open(&files).unwrap();
    let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::Sequential);
    let request = request(|r| {
        r.controls = vec![format!("c=\"{hint}\",model=net").parse().unwrap()];
        r.quality.hires = Some("1.6".parse().unwrap());
        r.quality.free_init = Some("2".parse().unwrap());
    });
    let prepared = pipeline.prepared(&request).unwrap();
    let first = prepared.first.as_ref().unwrap();
    assert_eq!((first.width, first.height), (40, 24));
    assert_eq!((prepared.width, prepared.height), (64, 40));
    assert_eq!(first.hints[0].images[0].dimensions(), (40, 24));
    assert_eq!(prepared.hints[0].images[0].dimensions(), (64, 40));
    assert!(prepared.memory.pass > 2 * first.memory.pass);
    // FreeInit's two passes of two steps, and half of two.
    assert_eq!(prepared.steps(), 2 + 2 + 1);
    // What is asked for is the size of the first pass.
    assert_eq!(prepared.request.size, request.size);
    let (mut frames, mut passes) = (Vec::<RgbImage>::new(), Vec::new());
    let mut listen = |event: Event| {
        if let Event::Pass { pass, passes: all } = event {
            passes.push((pass, all));
        }
        Ok(())
    };
    let mut none = Tensors::default();
    pipeline.run(&request, &mut none, &mut listen, &mut &mut frames).unwrap();
    assert_eq!((frames.len(), frames[0].dimensions()), (5, (64, 40)));
    assert_eq!(passes, [(1, 3), (2, 3), (3, 3)]);
}

/// Latents of a clip of 40x24 pixels and five frames, guided or not.
fn request(change: impl FnOnce(&mut Request)) -> Request {
    let request = Request::new("a corgi").with(|r| {
        (r.size.width, r.size.height, r.size.frames) = (Some(40), Some(24), Some(5));
        r.sampling.steps = 2;
        r.sampling.seed = Some(3);
        r.sampling.cfg_scale = 1.5;
    });
    request.with(change)
}

/// Every option by itself.
fn options() -> Vec<(&'static str, Quality)> {
    let thresholding = Some(DynamicThresholding::default());
    let off = Quality::default();
    vec![
        ("rescale", Quality { guidance_rescale: 0.7, ..off.clone() }),
        ("threshold", Quality { dynamic_thresholding: thresholding, ..off.clone() }),
        ("free_u", Quality { free_u: Some(FreeU::default()), ..off.clone() }),
        ("free_init", Quality { free_init: Some(FreeInit::default()), ..off.clone() }),
        ("pag", Quality { pag: Some(Pag::default()), ..off.clone() }),
        ("hires", Quality { hires: Some("1,strength=0.5".parse().unwrap()), ..off }),
    ]
}

#[test]
fn every_option_works_in_windows() {
    let long = |quality: Quality| {
        let request = request(|r| {
            (r.size.frames, r.quality) = (Some(11), quality);
            r.windows.length = Some(6);
        });
        run(&request).unwrap().0.remove("latents").unwrap()
    };
    let plain = long(Quality::default());
    for (name, quality) in options() {
        let with = long(quality);
        assert!(relative_l2(&with, &plain) > 1e-3, "{name} has no effect");
        if name == "threshold" {
            // Of the whole clip, not of its windows.
            let most: f32 = with.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
            assert!((0.99..=1.01).contains(&most), "{most}");
        }
    }
}

#[test]
fn every_option_but_free_init_works_from_a_video() {
    let folder = tempfile::tempdir().unwrap();
    let frame = |i: u8| RgbImage::from_pixel(40, 24, [i * 40; 3].into());
    let frames: Vec<_> = (0..5).map(frame).collect();
    let video = Source::video(hint_folder(folder.path(), "video", &frames));
    let from = |quality: Quality| {
        let request = request(|r| {
            (r.source, r.quality) =
                (Some(Source { strength: Some(0.5), ..video.clone() }), quality);
        });
        run(&request).map(|(mut tensors, _)| tensors.remove("latents").unwrap())
    };
    let plain = from(Quality::default()).unwrap();
    for (name, quality) in options() {
        match from(quality) {
            Ok(with) => assert!(relative_l2(&with, &plain) > 1e-4, "{name} has no effect"),
            Err(error) => {
                assert_eq!((name, error.kind().exit_code()), ("free_init", 2), "{error}");
                assert!(error.to_string().starts_with("free-init: is for clips from noise"));
            }
        }
    }
}

#[test]
fn steps_of_all_passes_are_counted_and_recorded() {
    let free_init = FreeInit { iterations: 3, fast: true, ..FreeInit::default() };
    let request = request(|r| {
        r.sampling.steps = 4;
        r.quality.free_init = Some(free_init);
    });
    assert_eq!(pipeline().prepared(&request).unwrap().steps(), 1 + 2 + 4);
    let (tensors, events) = run(&request).unwrap();
    let told: Vec<String> = events
        .iter()
        .filter_map(|event| match event {
            Event::Pass { pass, passes } => Some(format!("pass {pass}/{passes}")),
            Event::Step { step, steps, .. } => Some(format!("{step}/{steps}")),
            _ => None,
        })
        .collect();
    let want = "pass 1/3,1/7,pass 2/3,2/7,3/7,pass 3/3,4/7,5/7,6/7,7/7";
    assert_eq!(told.join(","), want);
    for i in 0..7 {
        assert!(tensors.contains_key(&format!("latents.{i}")), "{i}");
    }
    assert!(!tensors.contains_key("latents.7"));
    assert_close(&tensors["latents"], &tensors["latents.6"], 0.0);
}

#[test]
fn one_pass_after_the_other_makes_the_same_as_a_batch_of_three() {
    let unet = tiny::unet(DType::F32);
    let prompts = case("lcm_cfg");
    let (context, negative) = (&prompts["prompt_embeds"], &prompts["negative_embeds"]);
    let x = case("unet")["x"].transpose(1, 2).unwrap().contiguous().unwrap();
    let settings = Settings {
        prediction: Prediction::Epsilon,
        dtype: DType::F32,
        motion_norm: MotionNorm::PerFrame,
    };
    let at = NoiseLevel::from_ratio(500.0, 1.0);
    let layers = vec!["attentions.0".to_owned(), "motion_modules.1.*attn2".to_owned()];
    let pag = Perturbed::new(&Pag { layers, ..Pag::default() }, unet.config()).unwrap();
    let denoised = |is_guided: bool, guidance, pag: Option<&Perturbed>| {
        let mut guided = Guided::new(&unet, settings, context).unwrap().perturb(pag.cloned());
        if is_guided {
            guided = guided.guide(negative, 2.0, guidance).unwrap();
        }
        guided.computed(guidance).denoise(&x, at).unwrap()
    };
    for is_guided in [false, true] {
        let batched = denoised(is_guided, Guidance::Batched, Some(&pag));
        let apart = denoised(is_guided, Guidance::TwoPasses, Some(&pag));
        assert_relative(&apart, &batched, 1e-5);
        assert!(relative_l2(&denoised(is_guided, Guidance::Batched, None), &batched) > 1e-3);
    }
}

#[test]
fn memory_counts_a_clip_for_every_output() {
    let clips = |cfg_scale: f64, pag: Option<Pag>| {
        let request = request(|r| (r.sampling.cfg_scale, r.quality.pag) = (cfg_scale, pag));
        pipeline().prepared(&request).unwrap().memory.clips
    };
    let pag = || Some(Pag::default());
    assert_eq!(
        [clips(1.0, None), clips(2.0, None), clips(1.0, pag()), clips(2.0, pag())],
        [1, 2, 2, 3]
    );
}

#[test]
fn a_pattern_that_names_no_attention_is_refused() {
    let layers = vec!["mid".to_owned(), "down_blocks.7".to_owned()];
    let request = request(|r| r.quality.pag = Some(Pag { layers, ..Pag::default() }));
    let error = pipeline().prepared(&request).unwrap_err();
    assert_eq!(error.kind().exit_code(), 2);
    let wanted = "pag-layers: `down_blocks.7` is in the name of no self-attention";
    assert_eq!(error.to_string(), wanted);
    let hint = error.hint().unwrap().into_owned();
    assert!(hint.contains("down_blocks.0.attentions.0.transformer_blocks.0.attn1"), "{hint}");
}

#[test]
fn what_takes_guidance_warns_without_it() {
    let warned = |cfg_scale: f64| {
        let request = request(|r| {
            r.sampling.cfg_scale = cfg_scale;
            r.quality.guidance_rescale = 0.5;
            r.quality.dynamic_thresholding = Some(DynamicThresholding::default());
        });
        let warnings = pipeline().prepared(&request).unwrap().warnings;
        let starts = ["guidance-rescale: ", "dynamic-thresholding: "];
        starts.map(|start| warnings.iter().any(|text| text.starts_with(start)))
    };
    assert_eq!((warned(1.0), warned(1.5)), ([true, true], [false, false]));
}
