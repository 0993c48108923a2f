//! ControlNets against diffusers, and how they behave together and with bad input.

use std::collections::BTreeMap;
use std::path::Path;

use animatelcm::adapters::control_net::Control as ControlAdapter;
use animatelcm::adapters::{Conditioner, ControlSettings, Pass, Progress, Strength};
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, ControlFile, Files, Models};
use animatelcm::media::RgbImage;
use animatelcm::media::read::{self, Selection};
use animatelcm::media::resize::{Fit, resize};
use animatelcm::media::tensor::from_rgb;
use animatelcm::models::control_net::{ControlNet, ControlNetConfig};
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::unet::{Injection, Residuals, UNet, UNetInput};
use animatelcm::pipeline::denoiser::{Guidance, Guided, Settings};
use animatelcm::pipeline::windows::Windowed;
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::{Control, Request};
use animatelcm::sampler::{Denoiser, Fuse, WindowPlan, WindowSchedule, WindowSettings};
use animatelcm::schedule::{NoiseLevel, Prediction};
use animatelcm::weights::{Component, Source, random};
use animatelcm::{Error, Result, Stop};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_close, assert_relative, relative_l2};
use crate::support::control::{
    all_weights, bits, hint_folder, images, published, request, run_from, save, tensors,
};
use crate::support::golden;
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny::{self, case, fold};

/// Modules and single passes in f32, relative L2.
const F32: f64 = 1e-5;

/// Whole runs in f32, absolute.
const RUN: f64 = 1e-3;

const NET: &str = "tiny/extras/controlnet";

const WEIGHTS: &str = "tiny/extras/controlnet/diffusion_pytorch_model.safetensors";

fn config() -> ControlNetConfig {
    tiny::config("tiny/extras/controlnet/config.json")
}

fn net_of(config: &ControlNetConfig) -> ControlNet {
    ControlNet::new(config, &tiny::vb(&[WEIGHTS], DType::F32)).unwrap()
}

fn net() -> ControlNet {
    net_of(&config())
}

/// Images `(frames, height, width, 3)` as a network wants them: `(frames, 3, height, width)` in `[0, 1]`.
fn hint(case: &str, name: &str) -> Tensor {
    from_rgb(&images(case, name), &Device::Cpu).unwrap()
}

fn first_hint() -> Tensor {
    hint("tiny/cases/controlnet", "cond_u8")
}

/// Residuals of one clip at timestep 759, without strengths.
fn residuals(net: &ControlNet, hint: &Tensor) -> Residuals {
    let unit = case("unet");
    let hint = net.embed(hint, &Stop::default()).unwrap();
    let context = unit["ctx"].narrow(0, 0, 1).unwrap();
    net.forward(&fold(&unit["x"]), &hint, 759.0, &context, &Stop::default()).unwrap()
}

#[test]
fn residuals_equal_diffusers() {
    let want = case("controlnet");
    let got = residuals(&net(), &first_hint());
    assert_eq!(got.skips.len(), 12);
    for i in [0, 5, 11] {
        let got = (&got.skips[i] * 0.7).unwrap();
        assert_relative(&got, &want[&format!("unit.down{i}")], F32);
    }
    assert_relative(&(got.mid * 0.7).unwrap(), &want["unit.mid"], F32);
}

#[test]
fn channel_order_and_global_pooling_equal_diffusers() {
    let want = golden::load("control/units");
    let order = "bgr".to_owned();
    let bgr = ControlNetConfig { controlnet_conditioning_channel_order: order, ..config() };
    let got = residuals(&net_of(&bgr), &first_hint());
    assert_relative(&got.skips[0], &want.tensor("bgr.down0"), F32);
    assert_relative(&got.mid, &want.tensor("bgr.mid"), F32);

    let pooled = ControlNetConfig { global_pool_conditions: true, ..config() };
    let got = residuals(&net_of(&pooled), &first_hint());
    for (got, name) in [(&got.skips[0], "down0"), (&got.skips[11], "down11"), (&got.mid, "mid")] {
        let want = want.tensor(&format!("pooled.{name}"));
        assert_relative(got, &want.broadcast_as(got.shape()).unwrap(), F32);
    }
}

/// What an adapter adds in a pass over `clips` clips of the golden's latents: the skips and the middle, as the UNet
/// receives them, told apart by the UNet's output.
fn injected(
    adapter: &mut dyn Conditioner,
    frames: &[usize],
    negatives: usize,
    clips: usize,
) -> Tensor {
    let unit = case("unet");
    let x = Tensor::cat(&vec![fold(&unit["x"]); clips], 0).unwrap();
    let context = unit["ctx"].narrow(0, 0, 1).unwrap().repeat((clips, 1, 1)).unwrap();
    let pass = Pass {
        x: &x,
        timestep: 759.0,
        progress: Progress { step: 0, steps: 1 },
        clips,
        frames,
        context: &context,
        negatives,
        motion_norm: MotionNorm::PerFrame,
        stop: &Stop::default(),
    };
    let mut injection = Injection::default();
    adapter.inject(&pass, &mut injection).unwrap();
    output(&x, &context, &injection)
}

fn output(x: &Tensor, context: &Tensor, injection: &Injection) -> Tensor {
    let motion_norm = MotionNorm::PerFrame;
    let input = UNetInput {
        timestep: 759.0,
        frames: 6,
        context,
        motion_norm,
        injection,
        stop: &Stop::default(),
    };
    tiny::unet(DType::F32).forward(x, &input).unwrap()
}

/// The UNet's output with residuals that are given instead of computed.
fn output_with(residuals: Residuals, clips: usize) -> Tensor {
    let unit = case("unet");
    let x = Tensor::cat(&vec![fold(&unit["x"]); clips], 0).unwrap();
    let context = unit["ctx"].narrow(0, 0, 1).unwrap().repeat((clips, 1, 1)).unwrap();
    let mut injection = Injection::default();
    injection.add_residuals(residuals).unwrap();
    output(&x, &context, &injection)
}

const ALL: [usize; 6] = [0, 1, 2, 3, 4, 5];

#[test]
fn guess_mode_weighs_residuals_as_diffusers_does() {
    let want = golden::load("control/units");
    let want = Residuals {
        skips: (0..12).map(|i| want.tensor(&format!("guess.down{i}"))).collect(),
        mid: want.tensor("guess.mid"),
    };
    let net = net();
    let settings =
        ControlSettings { guess: true, strength: Strength::constant(0.7), ..Default::default() };
    let mut control = ControlAdapter::new(&net, &first_hint(), settings, &Stop::default()).unwrap();
    let got = injected(&mut control, &ALL, 0, 1);
    assert_relative(&got, &output_with(want, 1), F32);
}

#[test]
fn guess_mode_leaves_the_negative_half_alone() {
    let net = net();
    let settings = ControlSettings { guess: true, ..Default::default() };
    let mut control = ControlAdapter::new(&net, &first_hint(), settings, &Stop::default()).unwrap();
    let both = injected(&mut control, &ALL, 1, 2);
    let alone = injected(&mut control, &ALL, 0, 1);
    let unit = case("unet");
    let context = unit["ctx"].narrow(0, 0, 1).unwrap();
    let plain = output(&fold(&unit["x"]), &context, &Injection::default());
    assert_close(&both.narrow(0, 0, 6).unwrap(), &plain, 1e-4);
    assert_close(&both.narrow(0, 6, 6).unwrap(), &alone, 1e-4);
    assert_eq!(relative_l2(&injected(&mut control, &ALL, 1, 1), &plain), 0.0);
    assert!(relative_l2(&alone, &plain) > 0.01, "the hint has no effect");
}

#[test]
fn strengths_and_hints_belong_to_frames() {
    let net = net();
    let strength: Strength = "0:1.0,4:0.2".parse().unwrap();
    let plain = residuals(&net, &first_hint());
    let scales = [1.0, 0.8, 0.6, 0.4, 0.2, 0.2];
    let by_frame = |x: &Tensor| {
        let scales = Tensor::new(&scales, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        x.broadcast_mul(&scales.reshape((6, 1, 1, 1)).unwrap())
    };
    let want = output_with(plain.map(|_, x| by_frame(x)).unwrap(), 1);
    let settings = || ControlSettings { strength: strength.clone(), ..Default::default() };
    let mut control =
        ControlAdapter::new(&net, &first_hint(), settings(), &Stop::default()).unwrap();
    let got = injected(&mut control, &ALL, 0, 1);
    assert_relative(&got, &want, F32);

    // The frames of a window in another order: hints and strengths go with them.
    let order = [3usize, 4, 5, 0, 1, 2];
    let index = Tensor::new(&[3u32, 4, 5, 0, 1, 2], &Device::Cpu).unwrap();
    let reordered = first_hint().index_select(&index, 0).unwrap();
    let text = order.iter().enumerate().map(|(i, f)| format!("{i}:{}", scales[*f]));
    let strength = text.collect::<Vec<_>>().join(",").parse().unwrap();
    let settings = ControlSettings { strength, ..Default::default() };
    let mut other = ControlAdapter::new(&net, &reordered, settings, &Stop::default()).unwrap();
    let (a, b) = (injected(&mut control, &order, 0, 1), injected(&mut other, &ALL, 0, 1));
    assert_close(&a, &b, 1e-5);
    assert!(relative_l2(&a, &got) > 1e-3);
}

#[test]
fn residuals_for_another_network_are_refused() {
    let mut injection = Injection::default();
    let residuals = residuals(&net(), &first_hint());
    let fewer = Residuals { skips: residuals.skips[..11].to_vec(), mid: residuals.mid.clone() };
    injection.add_residuals(residuals).unwrap();
    let error = injection.add_residuals(fewer).unwrap_err();
    assert!(error.to_string().contains("11 residuals for 12 skips"), "{error}");
}

#[test]
fn the_network_asks_for_exactly_the_published_names_and_shapes() {
    let ours = random::inventory(|vb| ControlNet::new(&ControlNetConfig::default(), &vb)).unwrap();
    assert_eq!(ours.len(), 340);
    assert_eq!(ours, published("control_net").into_iter().collect());
}

/// The tiny network's weights under LDM's names, below a prefix.
fn ldm_weights(prefix: &str) -> BTreeMap<String, Tensor> {
    let names: BTreeMap<String, String> = published("control_net")
        .into_iter()
        .zip(published("control_net_ldm"))
        .map(|((ours, _), (theirs, _))| (ours, theirs))
        .collect();
    let weights = candle_core::safetensors::load(golden::path(WEIGHTS), &Device::Cpu).unwrap();
    weights
        .into_iter()
        .map(|(name, tensor)| {
            // The tiny hint network has two blocks fewer, so its last layer has another number.
            let theirs = names[&name].replace("input_hint_block.14.", "input_hint_block.10.");
            (theirs.replace("control_model.", prefix), tensor)
        })
        .collect()
}

#[test]
fn every_layout_gives_the_same_weights() {
    let all_weights = |source: &Source| all_weights(Component::ControlNet, source);
    let want = all_weights(&Source::from(golden::path(NET)));
    assert_eq!(want.len(), 334);
    assert_eq!(all_weights(&Source::from(golden::path(WEIGHTS))), want);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("control.safetensors");
    for prefix in ["control_model.", ""] {
        save(&ldm_weights(prefix), &file);
        assert_eq!(all_weights(&Source::from(file.clone())), want, "below `{prefix}`");
    }
    // As first published: in one file with the model that it was trained beside.
    let mut both = ldm_weights("control_model.");
    let layout = golden::path("layouts/ldm.safetensors");
    both.extend(candle_core::safetensors::load(layout, &Device::Cpu).unwrap());
    save(&both, &file);
    assert_eq!(all_weights(&Source::from(file)), want);
}

// Whole runs.

/// A control with the tiny network.
fn control(name: &str, hint: &str, more: &str) -> Control {
    format!("{name}={hint},model=net{more}").parse().unwrap()
}

fn files() -> Files {
    let source = Source::from(golden::path(NET));
    Files {
        controls: vec![ControlFile { name: "net".into(), source }],
        ..Files::new(Base::Folder(golden::path("tiny/model")))
    }
}

fn run_with(files: &Files, request: &Request) -> Result<BTreeMap<String, Tensor>> {
    run_from(files, request, tensors())
}

fn run(controls: Vec<Control>, request: Request) -> Result<BTreeMap<String, Tensor>> {
    run_with(
        &files(),
        &request.with(|r| {
            r.controls = controls;
        }),
    )
}

#[test]
fn a_controlled_run_equals_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    let hint = hint_folder(folder.path(), "a", &images("tiny/cases/controlnet", "cond_u8"));
    let got = run(vec![control("a", &hint, ",scale=0.7,end=0.75")], request()).unwrap();
    assert_close(&got["latents"], &case("controlnet")["latents.final"], RUN);
    assert!(relative_l2(&got["latents"], &case("lcm_cfg")["latents.final"]) > 0.01);
}

#[test]
fn two_controls_equal_diffusers_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let first = hint_folder(folder.path(), "a", &images("tiny/cases/controlnet", "cond_u8"));
    let second = hint_folder(folder.path(), "b", &images("control/two", "second_u8"));
    let a = control("a", &first, ",scale=0.7,end=0.75");
    let b = control("b", &second, ",scale=0.4,start=0.25");
    let got = run(vec![a.clone(), b.clone()], request()).unwrap();
    assert_close(&got["latents"], &golden::load("control/two").tensor("latents.final"), RUN);
    let reversed = run(vec![b, a], request()).unwrap();
    assert_eq!(bits(&got), bits(&reversed), "the order matters");
}

#[test]
fn runs_in_guess_mode_equal_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    let hint = hint_folder(folder.path(), "a", &images("tiny/cases/controlnet", "cond_u8"));
    let want = golden::load("control/guess");
    let controls = vec![control("a", &hint, ",scale=0.8,guess")];
    let got = run(
        controls.clone(),
        request().with(|r| {
            r.sampling.cfg_scale = 1.0;
        }),
    )
    .unwrap();
    assert_close(&got["latents"], &want.tensor("plain"), RUN);
    let got = run(controls, request()).unwrap();
    assert_close(&got["latents"], &want.tensor("guided"), RUN);
}

#[test]
fn strength_zero_is_bit_identical_to_absence() {
    let folder = tempfile::tempdir().unwrap();
    let hint = hint_folder(folder.path(), "a", &images("tiny/cases/controlnet", "cond_u8"));
    let request = || {
        request().with(|r| {
            r.sampling.steps = 2;
        })
    };
    let plain = bits(&run(vec![], request()).unwrap());
    for more in [",scale=0", ",scale=0:0,3:0", ",start=0.9", ",scale=0,guess"] {
        let got = bits(&run(vec![control("a", &hint, more)], request()).unwrap());
        assert!(got == plain, "`{more}` changes the clip");
    }
    let got = bits(&run(vec![control("a", &hint, ",scale=0.01")], request()).unwrap());
    assert!(got != plain, "a small strength changes nothing");
}

#[test]
fn one_image_serves_all_frames_and_the_network_is_loaded_once() {
    let folder = tempfile::tempdir().unwrap();
    let image = images("tiny/cases/controlnet", "cond_u8").remove(2);
    let still = folder.path().join("still.png");
    image.save(&still).unwrap();
    let same = hint_folder(folder.path(), "same", &vec![image; 6]);
    let request = |controls| {
        request().with(|r| {
            r.sampling.steps = 1;
            r.controls = controls;
        })
    };
    let one = request(vec![control("a", still.to_str().unwrap(), "")]);
    let six = request(vec![control("a", &same, "")]);
    let frames = |request| bits(&run_with(&files(), request).unwrap());
    assert_eq!(frames(&one), frames(&six));

    let mut loaded = Vec::new();
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    let models = Models::open(&files()).unwrap();
    let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::Sequential);
    let two =
        request(vec![control("a", still.to_str().unwrap(), ""), control("b", &same, ",scale=0.5")]);
    let mut listener = |event: Event| {
        if let Event::Load { part, .. } = event {
            loaded.push(part);
        }
        Ok(())
    };
    let mut frames = Vec::new();
    pipeline.run(&two, &mut Tensors::default(), &mut listener, &mut &mut frames).unwrap();
    assert_eq!(loaded.iter().filter(|part| **part == "controlnet").count(), 1, "{loaded:?}");
}

/// The tiny model under guidance with a control.
fn guided<'a>(
    (net, unet): (&'a ControlNet, &'a UNet),
    hint: &Tensor,
    control: ControlSettings,
    guidance: Guidance,
) -> Guided<'a> {
    let prompts = case("lcm_cfg");
    let settings = Settings {
        prediction: Prediction::Epsilon,
        dtype: DType::F32,
        motion_norm: MotionNorm::PerFrame,
    };
    let control = ControlAdapter::new(net, hint, control, &Stop::default()).unwrap();
    Guided::new(unet, settings, &prompts["prompt_embeds"])
        .unwrap()
        .guide(&prompts["negative_embeds"], 1.5, guidance)
        .unwrap()
        .condition(vec![Box::new(control)])
}

/// Latents `(1, 6, 4, height, width)` of the tiny model's goldens, and a noise level for them.
fn noisy() -> (Tensor, NoiseLevel) {
    let x = case("unet")["x"].transpose(1, 2).unwrap().contiguous().unwrap();
    (x, NoiseLevel::from_ratio(759.0, 5.0))
}

#[test]
fn guidance_in_two_passes_gives_the_same_clip() {
    let (net, unet) = (net(), tiny::unet(DType::F32));
    let (x, at) = noisy();
    for guess in [false, true] {
        let denoised = |guidance| {
            let settings = ControlSettings { guess, ..Default::default() };
            guided((&net, &unet), &first_hint(), settings, guidance).denoise(&x, at).unwrap()
        };
        assert_relative(&denoised(Guidance::TwoPasses), &denoised(Guidance::Batched), F32);
    }
}

#[test]
fn some_frames_of_a_clip_are_denoised_with_their_own_hints_and_strengths() {
    let (net, unet) = (net(), tiny::unet(DType::F32));
    let (x, at) = noisy();
    let window = x.narrow(1, 2, 3).unwrap().contiguous().unwrap();
    let guided = |hint: &Tensor, strength: &str| {
        let settings =
            ControlSettings { strength: strength.parse().unwrap(), ..Default::default() };
        guided((&net, &unet), hint, settings, Guidance::Batched)
    };
    let hint = first_hint();
    let mut of_clip = guided(&hint, "0:0.5,2:1,4:0.25");
    let own = of_clip.denoise_frames(&window, at, &[2, 3, 4]).unwrap();
    let alone = guided(&hint.narrow(0, 2, 3).unwrap(), "0:1,2:0.25").denoise(&window, at).unwrap();
    assert_close(&own, &alone, 0.0);
    let others = of_clip.denoise_frames(&window, at, &[0, 1, 2]).unwrap();
    assert!(relative_l2(&others, &alone) > 1e-3);
    assert!(of_clip.denoise_frames(&window, at, &[2, 3]).is_err());
}

#[test]
fn in_context_windows_frames_keep_their_hints_and_strengths() {
    let (net, unet) = (net(), tiny::unet(DType::F32));
    let (x, at) = noisy();
    let guided = |hint: &Tensor, strength: &str| {
        let settings =
            ControlSettings { strength: strength.parse().unwrap(), ..Default::default() };
        guided((&net, &unet), hint, settings, Guidance::Batched)
    };
    let hint = first_hint();
    let settings = WindowSettings {
        length: 4,
        overlap: 2,
        stride: 1,
        schedule: WindowSchedule::Static,
        fuse: Fuse::Pyramid,
        is_closed: false,
    };
    let plan = WindowPlan::new(6, settings).unwrap();
    let got = Windowed::new(guided(&hint, "0:0.5,2:1,4:0.25"), Some(plan)).denoise(&x, at).unwrap();
    // The same by hand, of two clips of four frames each.
    let part = |x: &Tensor, first| x.narrow(1, first, 4).unwrap().contiguous().unwrap();
    let alone = |first, strength: &str| {
        let hint = hint.narrow(0, first, 4).unwrap();
        guided(&hint, strength).denoise(&part(&x, first), at).unwrap()
    };
    let (a, b) = (alone(0, "0:0.5,2:1,4:0.25"), alone(2, "0:1,2:0.25"));
    // Frames 2 and 3 are third and fourth of the first, first and second of the second: 2 and 1 of 3, 1 and 2 of 3.
    let frame = |x: &Tensor, i| x.narrow(1, i, 1).unwrap();
    let mixed = |i, share: f64| {
        let (a, b) = (frame(&a, i) * share, frame(&b, i - 2) * (1.0 - share));
        (a.unwrap() + b.unwrap()).unwrap()
    };
    let want = [
        a.narrow(1, 0, 2).unwrap(),
        mixed(2, 2.0 / 3.0),
        mixed(3, 1.0 / 3.0),
        b.narrow(1, 2, 2).unwrap(),
    ];
    assert_relative(&got, &Tensor::cat(&want, 1).unwrap(), F32);
}

// Hints.

#[test]
fn a_hint_of_another_size_is_resized_exactly_as_pil_does() {
    let fit = golden::load("control/fit");
    let image = |name: &str| {
        let tensor = fit.tensor(name).to_dtype(DType::U8).unwrap();
        let (height, width, _) = tensor.dims3().unwrap();
        let bytes = tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
    };
    let want = image("after");
    let got = resize(&image("before"), want.width(), want.height(), Fit::Stretch, &Stop::default())
        .unwrap();
    let worst = got.as_raw().iter().zip(want.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
    assert_eq!(worst, Some(0), "of 255");
}

#[test]
fn animations_are_read_frame_by_frame() {
    use image::codecs::gif::GifEncoder;
    use image::{DynamicImage, Frame, Rgb};
    let folder = tempfile::tempdir().unwrap();
    let images: Vec<RgbImage> =
        (0..5).map(|i| RgbImage::from_pixel(8, 4, Rgb([i * 50, 255 - i * 50, 7]))).collect();
    let path = folder.path().join("hint.gif");
    let mut encoder = GifEncoder::new(std::fs::File::create(&path).unwrap());
    for image in &images {
        let frame = Frame::new(DynamicImage::ImageRgb8(image.clone()).to_rgba8());
        encoder.encode_frame(frame).unwrap();
    }
    drop(encoder);
    let close = |a: &RgbImage, b: &RgbImage| {
        a.dimensions() == b.dimensions()
            && a.as_raw().iter().zip(b.as_raw()).all(|(a, b)| a.abs_diff(*b) < 4)
    };
    let frames = |path: &Path| {
        read::frames("control", path, Selection::default(), &Stop::default()).unwrap().images
    };
    let got = frames(&path);
    assert_eq!(got.len(), 5);
    assert!(got.iter().zip(&images).all(|(a, b)| close(a, b)));

    // A folder's images in the order of their numbers; other files are passed over.
    let place = folder.path().join("many");
    std::fs::create_dir(&place).unwrap();
    for (i, image) in images.iter().enumerate() {
        image.save(place.join(format!("frame{}.png", 8 + i))).unwrap();
    }
    std::fs::write(place.join("notes.txt"), "x").unwrap();
    std::fs::write(place.join(".hidden.png"), "x").unwrap();
    assert_eq!(frames(&place), images);
}

#[test]
fn hints_that_do_not_fit_are_refused_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let images = images("tiny/cases/controlnet", "cond_u8");
    let five = hint_folder(folder.path(), "five", &images[..5]);
    let text = folder.path().join("text.png");
    std::fs::write(&text, "this is no image").unwrap();
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    for (hint, parts) in [
        (five.as_str(), ["has 5 frames", "the clip 6"]),
        (text.to_str().unwrap(), ["text.png", "control"]),
        (empty, ["no image", "empty"]),
        ("nowhere.gif", ["nowhere.gif", "control"]),
    ] {
        let mut loaded = 0;
        let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
        let models = Models::open(&files()).unwrap();
        let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::Sequential);
        let request = request().with(|r| {
            r.controls = vec![control("a", hint, "")];
        });
        let mut listener = |_: Event| {
            loaded += 1;
            Ok(())
        };
        let mut frames = Vec::new();
        let error = pipeline
            .run(&request, &mut Tensors::default(), &mut listener, &mut &mut frames)
            .unwrap_err();
        assert_eq!(error.kind().exit_code(), 2, "{error}");
        assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
        assert_eq!(loaded, 0, "{hint}");
    }
}

// Files that are something else.

fn open_as_control(source: &Path) -> Error {
    let source = Source::from(source.to_path_buf());
    let controls = vec![ControlFile { name: "mine".into(), source }];
    let files = Files { controls, ..files() };
    Models::open(&files).unwrap_err()
}

#[test]
fn files_that_are_no_control_net_are_called_by_their_name() {
    let path = |name: &str| golden::path(name);
    for (file, part, hint) in [
        ("tiny/extras/lora-kohya.safetensors", "is a LoRA", "--lora"),
        (
            "tiny/model/unet/diffusion_pytorch_model.safetensors",
            "has no ControlNet, SparseCtrl or T2I-Adapter weights",
            "",
        ),
        (
            "tiny/model/text_encoder/model.safetensors",
            "has no ControlNet, SparseCtrl or T2I-Adapter weights",
            "",
        ),
    ] {
        let error = open_as_control(&path(file));
        assert_eq!(error.kind().exit_code(), 3, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{:?}", error.hint());
    }
    // And the other way round.
    let files = Files::new(Base::File(path(WEIGHTS)));
    let error = Models::open(&files).unwrap_err();
    assert!(error.to_string().contains("is a ControlNet"), "{error}");
    assert_eq!(error.hint().as_deref(), Some("give it with --control"));
}

#[test]
fn control_nets_for_other_models_are_called_by_their_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("control.safetensors");
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap();
    let weights = || candle_core::safetensors::load(golden::path(WEIGHTS), &Device::Cpu).unwrap();
    let with = |more: &[(&str, &[usize])]| {
        let mut all: BTreeMap<String, Tensor> = weights().into_iter().collect();
        all.extend(more.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))));
        save(&all, &file);
        open_as_control(&file).to_string()
    };
    let xl = with(&[("add_embedding.linear_1.weight", &[4, 4])]);
    assert!(xl.contains("is a ControlNet for Stable Diffusion XL"), "{xl}");
    let key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let sd2 = with(&[(key, &[8, 1024])]);
    assert!(sd2.contains("is a ControlNet for Stable Diffusion 2"), "{sd2}");
    // One for Stable Diffusion 1.5 beside the tiny model: shapes tell, before a weight is read.
    let names = (0..4).map(|i| format!("down_blocks.{i}.resnets.0.conv1.weight"));
    let names: Vec<String> = names.collect();
    let widths = [[320, 1], [640, 1], [1280, 1], [1280, 1]];
    let mut wide: Vec<(&str, &[usize])> = vec![
        ("conv_in.weight", &[320, 4, 3, 3]),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", &[1280, 768]),
    ];
    wide.extend(names.iter().map(String::as_str).zip(widths.iter().map(<[usize; 2]>::as_slice)));
    let wide = with(&wide);
    assert!(wide.contains("`mine`") && wide.contains("widths [320, 640, 1280, 1280]"), "{wide}");
    assert!(
        wide.contains("[8, 16, 16, 16]") && wide.contains("768") && wide.contains("12"),
        "{wide}"
    );
}

/// The program with the tiny model and its ControlNet.
#[cfg(feature = "cli")]
mod program {
    use serde_json::Value;

    use super::{Path, golden, hint_folder, images};
    use crate::support::program::{Folder, Outcome};

    fn generate(folder: &Folder, output: &str, controls: &[&str]) -> Outcome {
        let model = golden::path("tiny/model");
        let mut args = vec!["generate", "a corgi", "--model", model.to_str().unwrap(), "-s", "7"];
        args.extend(["--frames", "6", "-W", "64", "-H", "32", "--steps", "1", "-o", output]);
        for control in controls {
            args.extend(["--control", control]);
        }
        folder.run(&args)
    }

    fn flag(more: &str) -> String {
        format!("edges=hint,model={}{more}", golden::path(super::NET).display())
    }

    fn hint(folder: &Folder) {
        let root = folder.path("x");
        let root: &Path = root.parent().unwrap();
        hint_folder(root, "hint", &images("tiny/cases/controlnet", "cond_u8"));
    }

    #[test]
    fn a_controlled_clip_is_made_again_from_its_own_metadata() {
        let folder = Folder::new();
        hint(&folder);
        let control = flag(",scale=0:1.0,5:0.5,guess");
        generate(&folder, "a.png", &[&control]).ok();
        generate(&folder, "plain.png", &[]).ok();
        assert_ne!(folder.read("a.png"), folder.read("plain.png"));
        let about = folder.run(&["inspect", "a.png", "--json"]).ok().json();
        let text = about.to_string();
        assert!(text.contains("0:1,5:0.5"), "{text}");
        folder.run(&["replay", "a.png"]).ok();
        assert_eq!(folder.read("a-replay.png"), folder.read("a.png"));

        // Another hint in its place.
        std::fs::copy(folder.path("hint/1.png"), folder.path("hint/0.png")).unwrap();
        let outcome = folder.run(&["replay", "a.png", "-y"]);
        assert!(outcome.fails(5).contains("sha256"), "{}", outcome.stderr);
    }

    #[test]
    fn the_same_controls_stand_in_a_request_file() {
        let folder = Folder::new();
        hint(&folder);
        let model = golden::path("tiny/model");
        let model = model.to_str().unwrap();
        let control = flag(",scale=0.5,end=0.9");
        let dump = ["generate", "x", "--model", model, "--control", &control, "--dump-request"];
        let job = folder.run(&dump).ok().json();
        let stored: &Value = &job["controls"][0];
        assert_eq!(stored["name"], "edges");
        assert_eq!(stored["scale"], 0.5);
        assert_eq!(stored["end"], 0.9);
        folder.write("job.json", job.to_string());
        let again = folder.run(&["generate", "--request", "job.json", "--dump-request"]).ok();
        assert_eq!(again.json(), job);
    }

    #[test]
    fn mistakes_are_told_in_one_line() {
        let folder = Folder::new();
        hint(&folder);
        let net = flag("");
        let fails = |controls: &[&str], code| {
            let outcome = generate(&folder, "a.png", controls);
            outcome.fails(code).to_owned()
        };
        assert!(fails(&["edges=hint"], 2).contains("has no model"));
        assert!(fails(&["edges=hint,model=nowhere.safetensors"], 3).contains("nowhere"));
        let other = net.replace("edges=hint", "edges=nowhere.gif");
        assert!(fails(&[&other], 2).contains("nowhere.gif"));
        assert!(fails(&[&net, &net], 2).contains("two are called `edges`"));
        std::fs::remove_file(folder.path("hint/3.png")).unwrap();
        let message = fails(&[&net], 2);
        assert!(message.contains("5 frames") && message.contains("clip 6"), "{message}");
        assert_eq!(folder.names(), ["hint"]);
    }

    #[test]
    fn inspect_names_a_control_net() {
        let folder = Folder::new();
        let net = golden::path(super::WEIGHTS);
        let net = net.to_str().unwrap();
        let outcome = folder.run(&["inspect", net]).ok();
        assert!(outcome.stdout().contains("a ControlNet"), "{}", outcome.stdout());
        let about = folder.run(&["inspect", net, "--json"]).ok().json();
        assert_eq!(about["supported"], true);
        assert_eq!(about["components"]["controlnet"], 334);
    }
}
