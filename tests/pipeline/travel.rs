//! Prompts that differ between frames and steps, against diffusers and against runs that do not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use animatelcm::adapters::{Conditioner, Pass};
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, ControlFile, Files, Models};
use animatelcm::models::Predict;
use animatelcm::models::control_net::ControlNet;
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::unet::{Injection, UNetInput};
use animatelcm::pipeline::denoiser::{Guidance, Guided, Settings};
use animatelcm::pipeline::windows::Windowed;
use animatelcm::pipeline::{Event, KeyStates, Pipeline, Residency, States};
use animatelcm::request::{Control, Interpolation, Key, Loop, Request, Travel};
use animatelcm::rng::NoiseKind;
use animatelcm::sampler::{Denoiser, Fuse, WindowPlan, WindowSchedule, WindowSettings};
use animatelcm::schedule::{NoiseLevel, Prediction};
use animatelcm::{Result, Stop};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::support::close::{assert_close, assert_relative, relative_l2};
use crate::support::control::{hint_folder, images, tensors};
use crate::support::golden;
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny;

fn files() -> Files {
    Files::new(Base::Folder(golden::path("tiny/model")))
}

fn pipeline(files: &Files) -> Pipeline {
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    Pipeline::new(Models::open(files).unwrap(), Device::Cpu, precision, Residency::Sequential)
}

/// A request of the tiny model's goldens.
fn request() -> Request {
    crate::support::control::request().with(|r| {
        r.prompt.text.clear();
        r.sampling.cfg_scale = 1.0;
    })
}

/// A small clip without goldens.
fn small(keys: &[(usize, &str)]) -> Request {
    request().with(|r| {
        r.prompt.travel = travel(keys);
        (r.size.width, r.size.height) = (Some(32), Some(32));
        r.sampling.steps = 2;
    })
}

fn travel(keys: &[(usize, &str)]) -> Travel {
    let key = |(frame, text): &(usize, &str)| Key { frame: *frame, text: (*text).into() };
    Travel::new(keys.iter().map(key).collect()).unwrap()
}

/// Everything that a run records, and its warnings.
fn run(request: &Request, tensors: Tensors) -> Result<(BTreeMap<String, Tensor>, Vec<String>)> {
    let mut tensors = Tensors { recorded: Some(BTreeMap::new()), ..tensors };
    let (mut frames, mut warnings) = (Vec::new(), Vec::new());
    let mut listener = |event: Event| {
        if let Event::Warning { message } = event {
            warnings.push(message);
        }
        Ok(())
    };
    pipeline(&files()).run(request, &mut tensors, &mut listener, &mut &mut frames)?;
    Ok((tensors.recorded.unwrap(), warnings))
}

fn latents(request: &Request) -> Vec<f32> {
    let recorded = run(request, Tensors::default()).unwrap().0;
    recorded["latents"].flatten_all().unwrap().to_vec1().unwrap()
}

/// The settings of a golden in a request.
fn about(case: &Value, request: Request) -> Request {
    request.with(|r| {
        if let Some(keys) = case.get("keys") {
            r.prompt.travel = serde_json::from_value(keys.clone()).unwrap();
            r.prompt.interpolation = case["interpolation"].as_str().unwrap().parse().unwrap();
        }
        if let Some(edited) = case.get("edited") {
            r.prompt.text = edited.as_str().unwrap().into();
        }
        if let Some(scale) = case.get("guidance") {
            r.sampling.cfg_scale = scale.as_f64().unwrap();
        }
        if let Some(frames) = case.get("frames") {
            r.size.frames = Some(frames.as_u64().unwrap() as usize);
        }
    })
}

#[test]
fn the_states_of_every_frame_are_those_of_diffusers() {
    let want = golden::load("prompt_travel/states");
    let cases = golden::json("prompt_travel/prompt_travel");
    let cases = cases["states"].as_object().unwrap();
    assert_eq!(cases.len(), want.names().len());
    for (name, case) in cases {
        let request = about(case, request()).with(|r| {
            r.sampling.steps = 1;
            (r.size.width, r.size.height) = (Some(32), Some(32));
        });
        let (got, _) = run(&request, Tensors::default()).unwrap();
        assert_relative(&got["context"], &want.tensor(name), 1e-5);
    }
}

#[test]
fn travelling_and_edited_runs_equal_diffusers() {
    let want = golden::load("prompt_travel/runs");
    let cases = golden::json("prompt_travel/prompt_travel");
    for (name, case) in cases["runs"].as_object().unwrap() {
        let (got, _) = run(&about(case, request()), tensors()).unwrap();
        assert_close(&got["latents"], &want.tensor(&format!("{name}.latents")), 1e-3);
    }
}

#[test]
fn keys_that_say_the_same_make_the_clip_without_keys_to_the_bit() {
    for cfg_scale in [1.0, 1.5] {
        let guided = |request: Request| request.with(|r| r.sampling.cfg_scale = cfg_scale);
        let plain = guided(small(&[]).with(|r| r.prompt.text = "a corgi, walking".into()));
        let want = latents(&plain);
        for keys in [
            vec![(0, "a corgi, walking"), (3, "a corgi, walking"), (5, "a corgi, walking")],
            vec![(4, "a corgi, walking")],
        ] {
            assert!(latents(&guided(small(&keys))) == want, "{keys:?}");
        }
        // What all begin with.
        let head = small(&[(0, "walking"), (2, "walking")]);
        assert!(latents(&guided(head.with(|r| r.prompt.text = "a corgi,".into()))) == want);
        let lines =
            plain.clone().with(|r| r.prompt.text = "a corgi\n0: walking\n4: walking".into());
        assert!(latents(&lines) == want);
        let other = latents(&guided(small(&[(0, "a corgi, walking"), (3, "a dog")])));
        assert!(other != want, "the keys change nothing");
    }
}

#[test]
fn editing_makes_the_clip_of_what_is_left_of_it() {
    let clip = |text: &str| latents(&small(&[]).with(|r| r.prompt.text = text.into()));
    assert!(clip("a [corgi:dog:0]") == clip("a dog"));
    assert!(clip("a [corgi:dog:2]") == clip("a corgi"));
    assert!(clip("a [(corgi:1.3)::1.0]") == clip("a (corgi:1.3)"));
    let half = clip("a [corgi:dog:0.5]");
    assert!(half == clip("a [corgi|dog]") && half != clip("a dog") && half != clip("a corgi"));
    // The negative prompt has a language, too.
    let guided = |negative: &str| {
        latents(&small(&[]).with(|r| {
            r.prompt.text = "a corgi".into();
            r.prompt.negative = negative.into();
            r.sampling.cfg_scale = 2.0;
        }))
    };
    assert!(guided("[bad:dog:0]") == guided("dog") && guided("[bad|dog]") != guided("dog"));
}

#[test]
fn prompts_of_different_lengths_travel_and_change_together() {
    let long = "the dog (walking:1.2) ".repeat(40);
    let request = small(&[(0, "a corgi"), (4, &long)]).with(|r| r.sampling.cfg_scale = 1.5);
    let (got, _) = run(&request, Tensors::default()).unwrap();
    assert_eq!(got["context"].dims(), [6, 154, 12]);
    assert_eq!(got["negative_context"].dims(), [1, 154, 12]);
    let edited = small(&[]).with(|r| r.prompt.text = format!("a corgi [{long}:1]"));
    assert_eq!(run(&edited, Tensors::default()).unwrap().0["context"].dims(), [1, 154, 12]);
}

#[test]
fn every_kind_of_clip_travels() {
    let keys = [(1, "a corgi"), (5, "the park")];
    let whole = latents(&small(&keys));
    let spherical = small(&keys).with(|r| r.prompt.interpolation = Interpolation::Spherical);
    assert!(latents(&spherical) != whole);
    // One window is none.
    let one = small(&keys).with(|r| r.windows.length = Some(6));
    assert!(latents(&one) == whole);
    for looping in [Loop::None, Loop::Closed, Loop::PingPong] {
        for noise in [NoiseKind::Independent, NoiseKind::FreeNoise] {
            let long = |keys: &[(usize, &str)]| {
                latents(&small(keys).with(|r| {
                    r.size.frames = Some(13);
                    r.output.looping = looping;
                    r.sampling.noise = noise;
                }))
            };
            assert!(long(&[(1, "a corgi"), (9, "the park")]) != long(&[(1, "a corgi")]));
        }
    }
}

/// Predicts for every frame the mean of its context as its clean latents, and keeps the number of contexts.
#[derive(Debug, Default)]
struct MeanOfContext {
    contexts: Mutex<BTreeSet<usize>>,
}

impl Predict for MeanOfContext {
    fn predict(&self, x: &Tensor, input: &UNetInput<'_>) -> Result<Tensor> {
        let (images, channels, height, width) = x.dims4()?;
        let contexts = input.context.dim(0)?;
        self.contexts.lock().unwrap().insert(contexts);
        let means = input.context.mean((1, 2))?.unsqueeze(1)?;
        let means = means.repeat((1, images / contexts))?.reshape((images, 1, 1, 1))?;
        Ok(means.broadcast_as((images, channels, height, width))?.contiguous()?)
    }
}

const SETTINGS: Settings = Settings {
    prediction: Prediction::Sample,
    dtype: DType::F32,
    motion_norm: MotionNorm::PerFrame,
};

const AT: NoiseLevel = NoiseLevel { timestep: 500.0, alpha: 0.6, sigma: 0.8 };

/// States of which all values are one number, by frame.
fn states(keys: &[(usize, f32)]) -> States {
    let key = |(frame, value): &(usize, f32)| KeyStates {
        frame: *frame,
        versions: vec![(1, Tensor::full(*value, (1, 7, 5), &Device::Cpu).unwrap())],
    };
    States::new(keys.iter().map(key).collect(), Interpolation::Linear, None).unwrap()
}

#[test]
fn frames_in_windows_have_the_states_that_they_have_in_the_clip() {
    let settings = WindowSettings {
        length: 4,
        overlap: 2,
        stride: 2,
        schedule: WindowSchedule::UniformLooped,
        fuse: Fuse::Pyramid,
        is_closed: true,
    };
    let x = Tensor::ones((1, 11, 4, 2, 6), DType::F32, &Device::Cpu).unwrap();
    let travelling = states(&[(2, 0.0), (7, 1.0), (9, 3.0)]);
    let network = MeanOfContext::default();
    for guidance in [None, Some(Guidance::Batched), Some(Guidance::TwoPasses)] {
        let guided = || {
            let guided = Guided::new(&network, SETTINGS, travelling.clone()).unwrap();
            match guidance {
                Some(guidance) => guided.guide(states(&[(0, -1.0)]), 2.0, guidance).unwrap(),
                None => guided,
            }
        };
        let whole = guided().denoise(&x, AT).unwrap();
        let mean = |frame: usize| {
            let values = whole.get_on_dim(1, frame).unwrap().flatten_all().unwrap();
            values.to_vec1::<f32>().unwrap()[0]
        };
        for (frame, state) in [(0, 0.0), (3, 0.2), (8, 2.0), (10, 3.0)] {
            let want = if guidance.is_some() { -1.0 + 2.0 * (state + 1.0) } else { state };
            assert!((mean(frame) - want).abs() < 1e-5, "{guidance:?}, frame {frame}");
        }
        let plan = WindowPlan::new(11, settings).unwrap();
        let mut windowed = Windowed::new(guided(), Some(plan));
        for step in 0..3 {
            windowed.begin_step(step, 3);
            assert_close(&windowed.denoise(&x, AT).unwrap(), &whole, 1e-5);
        }
    }
    // A clip with one prompt has one context, as ever.
    let network = MeanOfContext::default();
    let mut guided = Guided::new(&network, SETTINGS, states(&[(0, 1.0)])).unwrap();
    guided.denoise(&x, AT).unwrap();
    let mut guided = guided.guide(states(&[(0, 1.0)]), 2.0, Guidance::Batched).unwrap();
    guided.denoise(&x, AT).unwrap();
    assert_eq!(*network.contexts.lock().unwrap(), BTreeSet::from([1, 2]));
}

/// The clips of a pass, and the shape of its states.
type Call = (usize, Vec<usize>);

/// A conditioner that adds nothing and keeps what it sees.
#[derive(Debug, Default)]
struct Seen(std::sync::Arc<Mutex<Vec<Call>>>);

impl Conditioner for Seen {
    fn label(&self) -> &'static str {
        "seen"
    }

    fn inject(&mut self, pass: &Pass<'_>, _: &mut Injection) -> Result<()> {
        self.0.lock().unwrap().push((pass.clips, pass.context.dims().to_vec()));
        Ok(())
    }
}

#[test]
fn both_ways_of_guidance_make_the_same_clip_beside_a_controlnet() {
    let folder = tempfile::tempdir().unwrap();
    let net = golden::path("tiny/extras/controlnet");
    let control = ControlFile { name: "net".into(), source: net.into() };
    let files = Files { controls: vec![control], ..files() };
    let hint = hint_folder(folder.path(), "hint", &images("video_to_video/runs", "hint_u8"));
    let request = |keys: &[(usize, &str)], guess: &str| {
        request().with(|r| {
            r.prompt.travel = travel(keys);
            r.sampling.cfg_scale = 1.5;
            r.sampling.steps = 1;
            let control: Control = format!("canny={hint},model=net{guess}").parse().unwrap();
            r.controls = vec![control];
        })
    };
    let made = |request: &Request, guidance| {
        let mut pipeline = pipeline(&files);
        let seen = Seen::default();
        let log = std::sync::Arc::clone(&seen.0);
        pipeline.add_conditioner(Box::new(seen));
        let mut prepared = pipeline.prepared(request).unwrap();
        prepared.guidance = guidance;
        let latents = pipeline.latents(&prepared, &mut |_: Event| Ok(())).unwrap();
        let log = log.lock().unwrap().clone();
        (latents, log)
    };
    for guess in ["", ",guess"] {
        let travelling = request(&[(0, "a corgi"), (5, "bad quality")], guess);
        let (batched, seen) = made(&travelling, Guidance::Batched);
        assert_eq!(seen, [(2, vec![12, 77, 12])]);
        let (twice, seen) = made(&travelling, Guidance::TwoPasses);
        assert_eq!(seen, [(1, vec![1, 77, 12]), (1, vec![6, 77, 12])]);
        assert_relative(&batched, &twice, 1e-5);
        let (plain, _) = made(&request(&[(0, "a corgi")], guess), Guidance::Batched);
        assert!(relative_l2(&plain, &batched) > 1e-3);
    }
}

#[test]
fn a_controlnet_reads_every_frame_s_own_prompt() {
    let config = tiny::config("tiny/extras/controlnet/config.json");
    let weights = "tiny/extras/controlnet/diffusion_pytorch_model.safetensors";
    let net = ControlNet::new(&config, &tiny::vb(&[weights], DType::F32)).unwrap();
    let random = |shape| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
    let (x, hint) = (random((3, 4, 8, 16)), random((3, 8, 8, 16)));
    let context = Tensor::randn(0f32, 1.0, (3, 77, 12), &Device::Cpu).unwrap();
    let forward = |x: &Tensor, hint: &Tensor, context: &Tensor| {
        net.forward(x, hint, 759.0, context, &Stop::default()).unwrap().mid
    };
    let together = forward(&x, &hint, &context);
    for frame in 0..3 {
        let one = |x: &Tensor| x.narrow(0, frame, 1).unwrap();
        let alone = forward(&one(&x), &one(&hint), &one(&context));
        assert_relative(&one(&together), &alone, 1e-5);
    }
}

#[test]
fn what_cannot_be_travelled_is_refused_and_what_is_too_fast_is_named() {
    let refused = |request: &Request, reason: &str| {
        let error = pipeline(&files()).prepared(request).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(error.to_string().contains(reason), "{error}");
    };
    refused(&small(&[(0, "a"), (6, "b")]), "travel: frame 6 is beyond the clip of 6 frames");
    refused(&small(&[(0, "a"), (4, "<lora:x:1>")]), "travel: `<lora:x:1>` asks for a LoRA");
    let many = small(&[]).with(|r| r.prompt.text = format!("[a|b]{}", "BREAK ".repeat(40)));
    assert!(run(&many, Tensors::default()).is_ok());
    let (_, warnings) = run(&small(&[(0, "a"), (3, "b")]), Tensors::default()).unwrap();
    assert!(warnings.iter().any(|text| text.starts_with("travel: frames 0 and 3")), "{warnings:?}");
    let (_, warnings) = run(&small(&[(0, "a"), (4, "b AND c")]), Tensors::default()).unwrap();
    let warnings: Vec<_> = warnings.iter().filter(|text| text.starts_with("prompt")).collect();
    assert_eq!(warnings, ["prompt: `AND`, which joins prompts in A1111, is a word here"]);
}

#[test]
fn memory_counts_a_prompt_for_each_frame_and_nothing_without() {
    let pass = |request: &Request| pipeline(&files()).prepared(request).unwrap().memory.pass;
    let plain = pass(&small(&[]));
    assert_eq!(pass(&small(&[(3, "a")])), plain);
    // Six frames of 77 states of 12 values, and keys and values of 16 channels.
    let tiny = &small(&[(0, "a"), (4, "b")]);
    assert_eq!(pass(tiny) - plain, 6 * 77 * (12 + 2 * 16) * 4);
}
