//! AnimateLCM-I2V against a reference of torch: encoder, place of its features, runs; and what is refused.

use std::path::Path;

use animatelcm::adapters::i2v::{I2vControl, I2vSettings};
use animatelcm::adapters::{Conditioner, Pass, Progress};
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, Files, Models, Part};
use animatelcm::media::resize::Fit;
use animatelcm::models::i2v_encoder::{I2vEncoder, I2vEncoderConfig};
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::unet::{Injection, UNetConfig, UNetInput};
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::{Request, Source};
use animatelcm::weights::{Checkpoint, Component};
use animatelcm::{Result, Stop};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_close, assert_relative, relative_l2};
use crate::support::control::{bits, images, run_from, save};
use crate::support::golden;
use crate::support::i2v::{files, files_in, pickled, tensors};
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny::{self, fold};

/// Modules and single passes in f32, relative L2.
const F32: f64 = 1e-5;
/// Whole runs in f32, absolute.
const RUN: f64 = 1e-3;

const UNITS: &str = "i2v/units";
const ALL: [usize; 6] = [0, 1, 2, 3, 4, 5];

fn encoder() -> I2vEncoder {
    let unet: UNetConfig = tiny::config("tiny/model/unet/config.json");
    let weights = tiny::vb(&["i2v/encoder.safetensors"], DType::F32);
    I2vEncoder::new(&I2vEncoderConfig::beside(&unet), &weights).unwrap()
}

fn control(frames: usize, motion_scale: f64, weights: &[f64]) -> I2vControl {
    let settings = I2vSettings { motion_scale, insertion_weights: weights.to_vec() };
    let latents = golden::load(UNITS).tensor("latents");
    let how = (&settings, DType::F32);
    I2vControl::new(&encoder(), &latents, frames, how, &Stop::default()).unwrap()
}

/// The tiny UNet's output for clips of these frames, with what a control adds to it.
fn with(control: &mut I2vControl, frames: &[usize], clips: usize) -> Tensor {
    let units = golden::load(UNITS);
    let x = fold(&units.tensor("unet.x")).narrow(0, 0, frames.len()).unwrap();
    let x = Tensor::cat(&vec![x; clips], 0).unwrap();
    let context = units.tensor("context").repeat((clips, 1, 1)).unwrap();
    let motion_norm = MotionNorm::PerFrame;
    let pass = Pass {
        x: &x,
        timestep: 749.0,
        progress: Progress { step: 0, steps: 1 },
        clips,
        frames,
        context: &context,
        negatives: clips - 1,
        motion_norm,
        stop: &Stop::default(),
    };
    let mut injection = Injection::default();
    control.inject(&pass, &mut injection).unwrap();
    let input = UNetInput {
        timestep: 749.0,
        frames: frames.len(),
        context: &context,
        motion_norm,
        injection: &injection,
        stop: &Stop::default(),
    };
    tiny::unet(DType::F32).forward(&x, &input).unwrap()
}

#[test]
fn features_equal_the_reference_and_without_motion_scale_all_frames_have_the_same() {
    let (units, encoder, stop) = (golden::load(UNITS), encoder(), Stop::default());
    for (latents, name, scale) in [("latents", "feature", 0.8), ("odd.latents", "odd", 0.35)] {
        let latents = units.tensor(latents);
        let features = encoder.forward(&latents, 6, scale, &stop).unwrap();
        assert_eq!(features.len(), 4);
        for (i, feature) in features.iter().enumerate() {
            assert_relative(feature, &units.tensor(&format!("{name}.{i}")), F32);
        }
        let one = |i: usize, at| features[i].narrow(0, at, 1).unwrap();
        assert!(relative_l2(&one(3, 0), &one(3, 5)) > 1e-3);
        for still in encoder.forward(&latents, 6, 0.0, &stop).unwrap() {
            let first = still.narrow(0, 0, 1).unwrap();
            for at in 1..6 {
                assert_eq!(relative_l2(&still.narrow(0, at, 1).unwrap(), &first), 0.0);
            }
        }
    }
    let two = Tensor::cat(&[units.tensor("latents"), units.tensor("latents")], 0).unwrap();
    assert!(encoder.forward(&two, 6, 0.8, &stop).is_err());
    stop.request();
    assert!(encoder.forward(&units.tensor("latents"), 6, 0.8, &stop).is_err());
}

#[test]
fn features_are_added_before_the_motion_modules_in_both_halves() {
    let units = golden::load(UNITS);
    let want = fold(&units.tensor("unet.y"));
    assert_relative(&with(&mut control(6, 0.8, &[]), &ALL, 1), &want, F32);
    let both = with(&mut control(6, 0.8, &[]), &ALL, 2);
    for half in [0, 6] {
        assert_relative(&both.narrow(0, half, 6).unwrap(), &want, F32);
    }
    let weighted = with(&mut control(6, 0.8, &[1.0, 0.5, -0.25, 0.0]), &ALL, 1);
    assert_relative(&weighted, &fold(&units.tensor("unet.weighted")), F32);
    assert!(relative_l2(&weighted, &want) > 1e-2);

    let three = I2vSettings { motion_scale: 0.8, insertion_weights: vec![1.0; 3] };
    let (latents, how) = (units.tensor("latents"), (&three, DType::F32));
    let error = I2vControl::new(&encoder(), &latents, 6, how, &Stop::default()).unwrap_err();
    assert!(error.to_string().contains("3 given for 4 down blocks"), "{error}");
    let mut fewer = Injection::default();
    fewer.add_motion_inputs(vec![latents.clone(); 4]).unwrap();
    assert!(fewer.add_motion_inputs(vec![latents; 3]).is_err());
}

#[test]
fn positions_begin_again_in_every_window() {
    let first = with(&mut control(4, 0.8, &[]), &[0, 1, 2, 3], 1);
    let later = with(&mut control(4, 0.8, &[]), &[2, 3, 4, 5], 1);
    assert_eq!(relative_l2(&first, &later), 0.0);
    // A clip of fewer frames has the same features.
    assert_eq!(relative_l2(&with(&mut control(6, 0.8, &[]), &[0, 1, 2, 3], 1), &first), 0.0);
}

/// A request that starts from the picture of the golden runs, everything else by default.
fn request(folder: &Path) -> Request {
    let golden = golden::load("i2v/images").tensor("tall_u8");
    let (height, width, _) = golden.dims3().unwrap();
    let bytes = golden.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let image = animatelcm::RgbImage::from_raw(width as u32, height as u32, bytes).unwrap();
    let path = folder.join("tall.png");
    image.save(&path).unwrap();
    let about = golden::json("i2v/i2v");
    Request::default().with(|r| {
        r.prompt.text = about["prompt"].as_str().unwrap().into();
        r.prompt.negative = about["negative"].as_str().unwrap().into();
        r.sampling.seed = about["seed"].as_u64();
        r.size.width = Some(64);
        r.size.height = Some(32);
        r.size.frames = Some(6);
        r.source = Some(Source::image(path.to_str().unwrap()));
    })
}

fn source(request: &mut Request) -> &mut Source {
    request.source.as_mut().unwrap()
}

fn pipeline(files: &Files) -> Pipeline {
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    Pipeline::new(Models::open(files).unwrap(), Device::Cpu, precision, Residency::Sequential)
}

#[test]
fn runs_equal_the_reference_from_the_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let files = files_in(folder.path());
    let golden = golden::load("i2v/runs");
    let about = golden::json("i2v/i2v");
    for (name, run) in about["runs"].as_object().unwrap() {
        let number = |name: &str| run[name].as_f64().unwrap();
        let mut request = request(folder.path());
        request.sampling.steps = run["steps"].as_u64().unwrap() as usize;
        request.sampling.cfg_scale = number("guidance");
        if name == "still" || name == "three" {
            let weights = run["weights"].as_array().unwrap().iter();
            let source = source(&mut request);
            source.motion_scale = Some(number("motion_scale"));
            source.insertion_weights = Some(weights.map(|w| w.as_f64().unwrap()).collect());
            request.schedule.beta_end = Some(number("beta_end"));
        }
        // The rest is the model's word.
        let prepared = pipeline(&files).prepared(&request).unwrap();
        let got: Vec<f64> = prepared.plan.steps.iter().map(|step| step.at.timestep).collect();
        let want = run["timesteps"].as_array().unwrap().iter();
        assert_eq!(got, want.map(|t| t.as_f64().unwrap()).collect::<Vec<_>>(), "{name}");

        let got = run_from(&files, &request, Tensors::default()).unwrap();
        let image = golden.tensor("image").unsqueeze(2).unwrap();
        assert_relative(&got["source"], &image, F32);
        assert_close(&got["latents"], &golden.tensor(&format!("{name}.latents")), RUN);
        if name == "guided" {
            let some = |x: &Tensor| {
                let x = x.squeeze(0).unwrap_or_else(|_| x.clone());
                x.index_select(&Tensor::new(&[0u32, 3], &Device::Cpu).unwrap(), 0).unwrap()
            };
            let want = images("i2v/runs", "guided.frames_u8");
            let want = animatelcm::media::tensor::from_rgb(&want, &Device::Cpu).unwrap();
            // A value that is cut may be the next one, which is moved as far.
            let difference = (some(&got["frames"]) - want).unwrap().abs().unwrap();
            let mean = difference.mean_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(mean < 2e-4, "{mean}");
            source(&mut request).color_match = Some(false);
            let plain = run_from(&files, &request, Tensors::default()).unwrap();
            assert_close(&some(&plain["frames"]), &golden.tensor("guided.decoded"), RUN);
        }
    }
}

#[test]
fn noise_that_is_given_takes_the_place_of_the_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let files = files_in(folder.path());
    let request = request(folder.path()).with(|r| r.sampling.steps = 1);
    let run = |frames: usize| {
        let noise = Tensor::zeros((frames, 4, 8, 16), DType::F32, &Device::Cpu).unwrap();
        run_from(&files, &request, Tensors { source_noise: Some(noise), ..Tensors::default() })
    };
    let drawn = run_from(&files, &request, Tensors::default()).unwrap();
    assert!(relative_l2(&run(1).unwrap()["source"], &drawn["source"]) > 1e-3);
    let error = run(6).unwrap_err().to_string();
    assert!(error.starts_with("tensors-in: `noise.source` is [6, 4, 8, 16]"), "{error}");
}

#[test]
fn the_model_says_its_schedule_and_a_request_goes_over_it() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = pipeline(&files_in(folder.path()));
    let request = request(folder.path());
    let made = pipeline.prepared(&request).unwrap().request;
    assert_eq!((made.schedule.beta_start, made.schedule.beta_end), (Some(0.00085), Some(0.014)));
    assert_eq!(made.sampling.original_inference_steps, Some(200));
    let said = made.source.clone().unwrap();
    assert_eq!((said.strength, said.fit), (None, Some(Fit::Cover)));
    assert_eq!((said.motion_scale, said.color_match), (Some(0.8), Some(true)));
    assert_eq!(said.insertion_weights, None);
    // What was completed is completed.
    assert_eq!(pipeline.prepared(&made).unwrap().request, made);

    let asked = request.with(|r| {
        r.schedule.beta_end = Some(0.012);
        r.sampling.original_inference_steps = Some(50);
        let source = source(r);
        (source.motion_scale, source.color_match) = (Some(0.3), Some(false));
        source.fit = Some(Fit::Pad);
    });
    let made = pipeline.prepared(&asked).unwrap().request;
    assert_eq!(made.schedule.beta_end, Some(0.012));
    assert_eq!(made.sampling.original_inference_steps, Some(50));
    assert_eq!(made.source.unwrap().sha256.take().map(|_| ()), Some(()));
}

#[test]
fn with_a_strength_the_clip_also_starts_from_the_noised_image() {
    let folder = tempfile::tempdir().unwrap();
    let files = files_in(folder.path());
    let noise = request(folder.path()).with(|r| r.sampling.steps = 2);
    let half = noise.clone().with(|r| source(r).strength = Some(0.5));
    assert_eq!(pipeline(&files).prepared(&half).unwrap().plan.steps.len(), 1);
    let (noise, half) = (
        run_from(&files, &noise, Tensors::default()).unwrap(),
        run_from(&files, &half, Tensors::default()).unwrap(),
    );
    // The same sample of the image, which is drawn first.
    assert_eq!(relative_l2(&noise["source"], &half["source"]), 0.0);
    assert!(relative_l2(&noise["latents"], &half["latents"]) > 1e-2);
}

#[test]
fn a_clip_in_windows_has_the_image_in_each() {
    let folder = tempfile::tempdir().unwrap();
    let files = files_in(folder.path());
    let long = request(folder.path()).with(|r| {
        r.sampling.steps = 2;
        r.windows.length = Some(4);
        r.windows.overlap = Some(2);
    });
    let still = |r: &mut Request| source(r).motion_scale = Some(0.0);
    let run = |request: &Request| run_from(&files, request, Tensors::default()).unwrap();
    let (with, without) = (run(&long), run(&long.clone().with(still)));
    assert_eq!(with["latents"].dims(), [1, 4, 6, 8, 16]);
    assert_ne!(bits(&with), bits(&without));
}

#[test]
fn every_tensor_is_a_weight_and_a_missing_or_superfluous_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("i2v.safetensors");
    let all = tensors();
    save(&all, &path);
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_motion(&path.clone().into()).unwrap();
    let used = [Component::UNet, Component::I2vEncoder].map(|c| checkpoint.names(c).count());
    assert_eq!((used[0] + used[1], used[1]), (all.len(), 36));
    assert_eq!(checkpoint.ignored().count(), 0);

    // The same from a pickle, bit for bit.
    let pickle = folder.path().join("i2v.ckpt");
    std::fs::write(&pickle, pickled(&all)).unwrap();
    let request = request(folder.path()).with(|r| r.sampling.steps = 1);
    let run = |files: &Files| bits(&run_from(files, &request, Tensors::default()).unwrap());
    assert_eq!(run(&files(&path)), run(&files(&pickle)));

    let wrong = |change: fn(&mut std::collections::BTreeMap<String, Tensor>), part: &str| {
        let mut some = all.clone();
        change(&mut some);
        save(&some, &path);
        let error = Models::open(&files(&path)).unwrap_err().to_string();
        assert!(error.contains("i2v encoder") && error.contains(part), "{part}: {error}");
    };
    wrong(
        |all| drop(all.remove("img_encoder.body.5.block1.bias")),
        "img_encoder.body.5.block1.bias",
    );
    wrong(|all| drop(all.remove("img_encoder.body.2.in_conv.weight")), "body.2.in_conv.weight");
    wrong(|all| all.retain(|name, _| !name.contains("body.7.")), "4 weights missing");
    wrong(
        |all| {
            let tensor = all["img_encoder.conv_in.bias"].clone();
            all.insert("img_encoder.body.8.block1.bias".into(), tensor);
        },
        "img_encoder.body.8.block1.bias",
    );
    wrong(
        |all| {
            let tensor = all["img_encoder.conv_in.bias"].narrow(0, 0, 4).unwrap();
            all.insert("img_encoder.conv_in.bias".into(), tensor);
        },
        "of another shape",
    );
}

#[test]
fn what_the_model_cannot_start_from_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let files = files_in(folder.path());
    let refused = |files: &Files, request: &Request, start: &str, hint: &str| {
        let error = pipeline(files).prepared(request).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2, "{error}");
        assert!(error.to_string().starts_with(start), "{error}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{error:?}");
    };
    let image = request(folder.path());
    let none = image.clone().with(|r| r.source = None);
    refused(&files, &none, "image: is missing", "--image FILE");
    let frames = [image::Rgb([9; 3]); 2].map(|p| animatelcm::RgbImage::from_pixel(8, 8, p));
    let video = crate::support::control::hint_folder(folder.path(), "video", &frames);
    let video = image.clone().with(|r| r.source = Some(Source::video(video)));
    refused(&files, &video, "video: the motion modules are those of AnimateLCM-I2V", "t2v");
    let three = image.clone().with(|r| source(r).insertion_weights = Some(vec![1.0; 3]));
    refused(&files, &three, "insertion-weights: 3 given for 4 down blocks", "");
    let kept = image.clone().with(|r| source(r).keep = vec![0]);
    refused(&files, &kept, "keep: AnimateLCM-I2V starts from noise", "t2v");

    // Other motion modules start from a noised image, as ever.
    let plain = Files::new(Base::Folder(golden::path("tiny/model")));
    let scale = image.clone().with(|r| source(r).motion_scale = Some(0.5));
    refused(&plain, &scale, "motion-scale: the motion modules have no image encoder", "i2v");
    let ones = image.clone().with(|r| source(r).insertion_weights = Some(vec![1.0; 4]));
    refused(&plain, &ones, "insertion-weights: the motion modules", "i2v");
    let one_step = image.clone().with(|r| r.sampling.steps = 1);
    refused(&plain, &one_step, "strength: 0.8 of 1 steps", "");
    let made = pipeline(&plain).prepared(&image).unwrap();
    let said = made.request.source.unwrap();
    assert_eq!((said.strength, said.fit), (Some(0.8), Some(Fit::Stretch)));
    assert_eq!((said.motion_scale, said.color_match, made.plan.steps.len()), (None, None, 3));
}

#[test]
fn the_encoder_is_counted_as_memory_and_loaded_with_everything() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let mut pipeline = pipeline(&files_in(folder.path()));
    let precision = pipeline.precision();
    let bytes = pipeline.models().bytes(&Part::I2vEncoder, precision);
    let values: usize =
        tensors().iter().filter(|(n, _)| n.starts_with("img")).map(|(_, t)| t.elem_count()).sum();
    assert_eq!(bytes, 4 * values as u64);
    let request = request(folder.path());
    let with = pipeline.prepared(&request)?.memory;
    let plain = Files::new(Base::Folder(golden::path("tiny/model")));
    let without = self::pipeline(&plain).prepared(&request)?.memory;
    assert!(with.image_encoder > bytes && without.image_encoder == 0);
    assert!(with.pass > without.pass);

    let mut parts = Vec::new();
    pipeline.load(&mut |event: Event| {
        if let Event::Load { part, .. } = event {
            parts.push(part.to_string());
        }
        Ok(())
    })?;
    assert!(parts.contains(&"i2v-encoder".to_owned()), "{parts:?}");
    Ok(())
}
