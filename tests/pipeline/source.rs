//! Clips that start from images and videos, against diffusers; which frames are taken, and what is refused.

use std::collections::BTreeMap;
use std::path::Path;

use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, ControlFile, Files, Models, Motion};
use animatelcm::media::RgbImage;
use animatelcm::media::read::{self, Selection};
use animatelcm::media::resize::{Fit, resize};
use animatelcm::models::motion::MotionNorm;
use animatelcm::pipeline::{Pipeline, Residency, SourceFrames};
use animatelcm::request::{Request, Source};
use animatelcm::sampler::SamplerKind;
use animatelcm::{Error, Result, Stop};
use candle_core::{Device, Tensor};
use image::{DynamicImage, ImageBuffer, Luma, LumaA, Rgb, Rgba};
use serde_json::Value;

use crate::support::close::{assert_close, relative_l2};
use crate::support::control::{bits, hint_folder, images, run_from};
use crate::support::golden::{self, Golden};
use crate::support::run::{Runs, Tensors, With};

/// Whole runs in f32, absolute.
const RUN: f64 = 1e-3;

/// Latents of the encoder in f32, relative L2.
const F32: f64 = 1e-5;

const NET: &str = "tiny/extras/controlnet";

fn tiny_files() -> Files {
    Files::new(Base::Folder(golden::path("tiny/model")))
}

fn with_control() -> Files {
    let control = ControlFile { name: "net".into(), source: golden::path(NET).into() };
    Files { controls: vec![control], ..tiny_files() }
}

/// A request for the tiny model in diffusers' semantics.
fn request(source: Source) -> Request {
    Request::default().with(|r| {
        r.size.width = Some(64);
        r.size.height = Some(32);
        r.sampling.seed = Some(33);
        r.sampling.original_inference_steps = Some(50);
        r.sampling.motion_norm = MotionNorm::Pooled;
        r.source = Some(source);
    })
}

/// The request of a golden run, with its source as files in a folder.
fn golden_request(about: &Value, run: &Value, folder: &Path) -> Request {
    let pictures = |name: &str| images("video_to_video/runs", name);
    let source = match run["video"].as_str().unwrap_or("video_u8") {
        "image" => {
            let path = folder.join("image.png");
            pictures("video_u8")[0].save(&path).unwrap();
            Source::image(path.to_str().unwrap())
        }
        name => Source::video(hint_folder(folder, name, &pictures(name))),
    };
    let number = |name: &str| run[name].as_f64().unwrap();
    request(Source { strength: Some(number("strength")), ..source }).with(|r| {
        r.prompt.text = about["prompt"].as_str().unwrap().into();
        r.prompt.negative = about["negative"].as_str().unwrap().into();
        r.sampling.seed = about["seed"].as_u64();
        r.sampling.sampler = run["sampler"].as_str().unwrap().parse().unwrap();
        if r.sampling.sampler != SamplerKind::Lcm {
            r.sampling.original_inference_steps = None;
        }
        r.sampling.steps = run["steps"].as_u64().unwrap() as usize;
        r.sampling.cfg_scale = number("guidance");
        if r.source_video().is_none() {
            r.size.frames = Some(6);
        }
        if run.get("scale").is_some() {
            let hint = hint_folder(folder, "hint", &pictures("hint_u8"));
            let (scale, start, end) = (number("scale"), number("start"), number("end"));
            let text = format!("c=\"{hint}\",model=net,scale={scale},start={start},end={end}");
            r.controls = vec![text.parse().unwrap()];
        }
    })
}

/// The noise that was recorded, in the layout of files.
fn recorded(golden: &Golden) -> Tensors {
    let start = golden.tensor("noise.start").transpose(1, 2).unwrap().contiguous().unwrap();
    Tensors {
        latents: Some(start),
        noise: (0..2).map(|i| golden.tensor(&format!("noise.{i}"))).collect(),
        source_noise: Some(golden.tensor("noise.source")),
        ..Tensors::default()
    }
}

fn pipeline(files: &Files) -> Pipeline {
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    Pipeline::new(Models::open(files).unwrap(), Device::Cpu, precision, Residency::Sequential)
}

#[test]
fn runs_that_start_from_a_video_equal_diffusers_with_its_noise_and_from_the_seed_alone() {
    let golden = golden::load("video_to_video/runs");
    let about = golden::json("video_to_video/video_to_video");
    let runs = about["runs"].as_object().unwrap();
    assert!(runs.len() >= 10);
    for (name, run) in runs {
        let folder = tempfile::tempdir().unwrap();
        let request = golden_request(&about, run, folder.path());
        let mut files = if request.controls.is_empty() { tiny_files() } else { with_control() };
        let is_taesd = run.get("vae").is_some();
        files.vae = is_taesd.then(|| golden::path("tiny/extras/taesd"));
        let plan = pipeline(&files).prepared(&request).unwrap().plan;
        let got: Vec<f64> = plan.steps.iter().map(|step| step.at.timestep).collect();
        let want: Vec<f64> =
            run["timesteps"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
        assert_eq!(got, want, "{name}");
        // The generator draws what was recorded, in the same order; TAESD leaves out the first of it.
        let given = (!is_taesd).then(|| recorded(&golden));
        for tensors in given.into_iter().chain([Tensors::default()]) {
            let got = run_from(&files, &request, tensors).unwrap();
            if run.get("video").is_none() && !is_taesd {
                let want = golden.tensor("encoded").transpose(1, 2).unwrap();
                let error = relative_l2(&got["source"], &want.contiguous().unwrap());
                assert!(error < F32, "{name}: {error:e}");
            }
            let want = golden.tensor(&format!("{name}.latents"));
            assert_close(&got["latents"], &want, RUN);
            let frames = format!("{name}.frames");
            if golden.names().contains(&frames.as_str()) {
                assert_close(&got["frames"], &golden.tensor(&frames), RUN);
            }
        }
    }
}

/// So many frames of a clip's size with a bar that moves.
fn video(count: u32, (width, height): (u32, u32)) -> Vec<RgbImage> {
    let frame = |i: u32| {
        RgbImage::from_fn(width, height, |x, y| {
            if (4 * i..4 * i + 4).contains(&x) {
                Rgb([220, 40, 20 * i as u8])
            } else {
                Rgb([30, (3 * x) as u8, (5 * y) as u8])
            }
        })
    };
    (0..count).map(frame).collect()
}

/// The places in `all` of the frames that a prepared run starts from.
#[track_caller]
fn taken(all: &[RgbImage], request: &Request) -> Vec<usize> {
    let prepared = pipeline(&tiny_files()).prepared(request).unwrap();
    let images = prepared.source.unwrap().images;
    assert_eq!(prepared.frames, images.len());
    images.iter().map(|image| all.iter().position(|frame| frame == image).unwrap()).collect()
}

/// Writes a GIF whose frames are shown for so many hundredths of a second.
fn gif(path: &Path, frames: &[RgbImage], delays: &[u16]) {
    let (width, height) = frames[0].dimensions();
    let file = std::fs::File::create(path).unwrap();
    let mut encoder = image::codecs::gif::GifEncoder::new(file);
    for (frame, delay) in frames.iter().zip(delays.iter().cycle()) {
        let delay = image::Delay::from_numer_denom_ms(u32::from(*delay) * 10, 1);
        let rgba = DynamicImage::ImageRgb8(frame.clone()).into_rgba8();
        encoder.encode_frame(image::Frame::from_parts(rgba, 0, 0, delay)).unwrap();
    }
    assert_eq!((width, height), frames[1].dimensions());
}

#[test]
fn a_video_gives_its_frames_as_far_as_the_model_knows_so_many() {
    let folder = tempfile::tempdir().unwrap();
    let all = video(12, (64, 32));
    let path = hint_folder(folder.path(), "video", &all);
    let source = Source::video(&path);
    // The tiny motion modules know 8.
    assert_eq!(taken(&all, &request(source.clone())), [0, 1, 2, 3, 4, 5, 6, 7]);
    let some = |from, every| request(Source { from, every, ..source.clone() });
    assert_eq!(taken(&all, &some(2, 3)), [2, 5, 8, 11]);
    assert_eq!(taken(&all, &some(10, 1)), [10, 11]);
    assert_eq!(taken(&all, &some(11, 1)), [11]);
    assert_eq!(taken(&all, &some(1, 2).with(|r| r.size.frames = Some(3))), [1, 3, 5]);
    // Whoever said no number is told that there would be more.
    let told = |request: &Request| {
        let warnings = pipeline(&tiny_files()).prepared(request).unwrap().warnings;
        warnings.iter().filter(|text| text.starts_with("video: ")).count()
    };
    assert_eq!(told(&request(source.clone())), 1);
    assert_eq!(told(&request(source.clone()).with(|r| r.size.frames = Some(8))), 0);
    assert_eq!((told(&some(4, 1)), told(&some(3, 1))), (0, 1));
    // Without motion modules the video alone decides.
    let still = pipeline(&Files { motion: Motion::None, ..tiny_files() });
    assert_eq!(still.prepared(&request(source)).unwrap().frames, 12);
}

#[test]
fn a_video_is_sampled_in_time_by_the_nearest_frame() {
    let folder = tempfile::tempdir().unwrap();
    let all = video(8, (64, 32));
    let path = folder.path().join("a.gif");
    let at = |fps: f64, from, every| {
        let source =
            Source { fps: Some(fps), from, every, ..Source::video(path.to_str().unwrap()) };
        request(source)
    };
    let numbers = |request: &Request| {
        let found = read::frames("video", &path, Selection::default(), &Stop::default()).unwrap();
        taken(&found.images, request)
    };
    gif(&path, &all, &[10]);
    assert_eq!(numbers(&at(10.0, 0, 1)), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(numbers(&at(5.0, 0, 1)), [0, 2, 4, 6]);
    assert_eq!(numbers(&at(5.0, 1, 2)), [1, 5]);
    assert_eq!(numbers(&at(20.0, 6, 1)), [6, 6, 7, 7]);
    assert_eq!(numbers(&at(20.0, 0, 1).with(|r| r.size.frames = Some(3))), [0, 0, 1]);
    // Frames are shown for 100 and 300 ms in turn.
    gif(&path, &all, &[10, 30]);
    assert_eq!(numbers(&at(5.0, 0, 1)), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(numbers(&at(2.5, 1, 1)), [1, 3, 5, 7]);
}

#[cfg(feature = "mp4")]
#[test]
fn the_times_of_videos_are_read() {
    let durations = |name: &str| {
        let path = golden::path(name);
        let media = read::Media::read("video", &path, |_| true, &Stop::default()).unwrap();
        let frames = media.frames("video", Selection::default(), &Stop::default()).unwrap();
        let durations = media.durations("video").unwrap();
        assert_eq!(durations.as_ref().map_or(1, Vec::len), frames.images.len(), "{name}");
        durations
    };
    for name in ["video/plain.mp4", "media/trimmed.mp4", "media/fragments.mp4", "video/clip.y4m"] {
        let found = durations(name).unwrap();
        let is_usual = |seconds: &f64| (0.01..1.0).contains(seconds);
        assert!(found.iter().all(is_usual), "{name}: {found:?}");
    }
    for name in ["media/combinations.webp", "media/apng-canvas.png"] {
        if let Some(found) =
            read::Media::read("video", &golden::path(name), |_| true, &Stop::default())
                .unwrap()
                .durations("video")
                .unwrap()
        {
            assert!(found.iter().all(|seconds| *seconds > 0.0), "{name}: {found:?}");
        }
    }
    assert_eq!(durations("media/o1.png"), None);
}

#[test]
fn controls_share_the_frames_of_the_source() {
    let folder = tempfile::tempdir().unwrap();
    let all = video(8, (40, 48));
    let path = hint_folder(folder.path(), "video", &all);
    let source = Source { from: 1, every: 2, fit: Some(Fit::Crop), ..Source::video(&path) };
    let with_hint = |hint: &str| {
        request(source.clone()).with(|r| {
            r.sampling.steps = 2;
            r.controls = vec![format!("c={hint},model=net").parse().unwrap()];
        })
    };
    let shared = run_from(&with_control(), &with_hint("video"), Tensors::default()).unwrap();
    let own = with_hint(&format!("\"{path}\",from=1,every=2,fit=crop"));
    let own = run_from(&with_control(), &own, Tensors::default()).unwrap();
    assert_eq!(bits(&shared), bits(&own));
    let prepared = pipeline(&with_control()).prepared(&with_hint("video")).unwrap();
    let hash = prepared.request.source.unwrap().sha256;
    assert!(hash.is_some() && prepared.request.controls[0].sha256 == hash);

    let error = with_hint("video,from=1").validate().unwrap_err();
    assert!(error.to_string().starts_with("control: `c`: `from` and `every`"), "{error}");
}

#[test]
fn photos_stand_upright_and_every_depth_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let source = |path: &Path| {
        let request =
            request(Source::image(path.to_str().unwrap())).with(|r| r.size.frames = Some(2));
        let prepared = pipeline(&tiny_files()).prepared(&request).unwrap();
        let SourceFrames { images, size, .. } = prepared.source.unwrap();
        assert_eq!((images.len(), images[0].dimensions()), (1, (64, 32)));
        (images[0].clone(), size)
    };
    let upright = image::open(golden::path("media/o1.png")).unwrap().to_rgb8();
    let (image, size) = source(&golden::path("media/o6.png"));
    assert_eq!(size, upright.dimensions());
    assert!(image == resize(&upright, 64, 32, Fit::Stretch, &Stop::default()).unwrap());

    let save = |name: &str, image: DynamicImage| {
        let path = folder.path().join(name);
        image.save(&path).unwrap();
        source(&path).0
    };
    let value = |x: u32, y: u32| (3 * x + y) as u8;
    let grey = RgbImage::from_fn(64, 32, |x, y| Rgb([value(x, y); 3]));
    let l8 = ImageBuffer::from_fn(64, 32, |x, y| Luma([value(x, y)]));
    assert!(save("l8.png", DynamicImage::ImageLuma8(l8)) == grey);
    let l16 = ImageBuffer::from_fn(64, 32, |x, y| Luma([u16::from(value(x, y)) * 257]));
    assert!(save("l16.png", DynamicImage::ImageLuma16(l16)) == grey);
    let rgb16 = ImageBuffer::from_fn(64, 32, |x, y| Rgb([u16::from(value(x, y)) * 257; 3]));
    assert!(save("rgb16.png", DynamicImage::ImageRgb16(rgb16)) == grey);
    // Transparency is dropped, as in PIL.
    let rgba = ImageBuffer::from_fn(64, 32, |x, y| {
        let value = value(x, y);
        Rgba([value, value, value, x as u8])
    });
    assert!(save("rgba.png", DynamicImage::ImageRgba8(rgba)) == grey);
    let la = ImageBuffer::from_fn(64, 32, |x, y| LumaA([value(x, y), 7]));
    assert!(save("la.png", DynamicImage::ImageLumaA8(la)) == grey);
}

#[test]
fn frames_of_another_shape_are_fitted_and_stretching_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = hint_folder(folder.path(), "video", &video(2, (30, 60)));
    let prepare = |fit| {
        let request = request(Source { fit: Some(fit), ..Source::video(&path) });
        pipeline(&tiny_files()).prepared(&request).unwrap()
    };
    let quiet = [Fit::Crop, Fit::Cover, Fit::Pad].map(|fit| (fit, false));
    for (fit, is_told) in [(Fit::Stretch, true)].into_iter().chain(quiet) {
        let prepared = prepare(fit);
        let want = resize(&video(2, (30, 60))[1], 64, 32, fit, &Stop::default()).unwrap();
        assert!(prepared.source.unwrap().images[1] == want, "{fit:?}");
        let told = prepared.warnings.iter().any(|text| text.starts_with("fit: "));
        assert_eq!(told, is_told, "{fit:?}: {:?}", prepared.warnings);
    }
}

#[test]
fn the_encoder_is_counted_as_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = hint_folder(folder.path(), "video", &video(2, (64, 32)));
    let pipeline = pipeline(&tiny_files());
    let with = pipeline.prepared(&request(Source::video(path))).unwrap().memory;
    let plain =
        Request { source: None, ..request(Source::default()).with(|r| r.size.frames = Some(2)) };
    let without = pipeline.prepared(&plain).unwrap().memory;
    assert_eq!(without.encode, 0);
    assert!(with.encode > 4 * 64 * 32);
}

#[test]
fn a_source_that_cannot_be_met_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let all = video(6, (64, 32));
    let many = hint_folder(folder.path(), "many", &all);
    let one = hint_folder(folder.path(), "one", &all[..1]);
    let mixed = [all[0].clone(), all[1].clone(), video(1, (32, 32)).remove(0)];
    let mixed = hint_folder(folder.path(), "mixed", &mixed);
    let moving = folder.path().join("moving.gif");
    gif(&moving, &all, &[10]);
    let still = format!("{one}/0.png");
    let pipeline = pipeline(&tiny_files());
    let refused = |request: &Request, start: &str, hint: &str| {
        let error = pipeline.prepared(request).map(|_| ()).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(start) && text.lines().count() == 1, "{start}: {text}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{start}: {:?}", error.hint());
        assert_eq!(error.kind().exit_code(), 2, "{text}");
    };
    let video = |file: &str| Source::video(file);
    for file in [&one, &still] {
        refused(&request(video(file)), &format!("video: {file} has 1 frame"), "--image");
        let timed = Source { fps: Some(8.0), ..video(file) };
        refused(&request(timed), &format!("video: {file} has 1 frame"), "--image");
    }
    refused(
        &request(video(&mixed)),
        &format!("video: {mixed}: frame 2 is 32x32, frame 0 64x32"),
        "one size",
    );
    refused(
        &request(Source { from: 6, ..video(&many) }),
        &format!("video-from: 6 asked for, {many} has the frames 0 to 5"),
        "",
    );
    refused(
        &request(Source { every: 2, ..video(&many) }).with(|r| r.size.frames = Some(4)),
        &format!("frames: 4 asked for, {many} gives 3 of its 6"),
        "--frames 3",
    );
    refused(
        &request(Source { fps: Some(8.0), ..video(&many) }),
        &format!("video-fps: {many} has no frame rate"),
        "--video-every",
    );
    let moving = moving.to_str().unwrap();
    for fps in [None, Some(8.0)] {
        refused(
            &request(Source { fps, from: 6, ..video(moving) }),
            &format!("video-from: 6 asked for, {moving} has the frames 0 to 5"),
            "",
        );
    }
    refused(
        &request(Source::image(moving)).with(|r| r.size.frames = Some(2)),
        &format!("image: {moving} has more than one frame"),
        "--video",
    );
    let windows = request(video(&many)).with(|r| r.windows.length = Some(9));
    refused(&windows, "context-length: 9 asked for", "at most 8");
    let little = Source { strength: Some(0.2), ..video(&many) };
    refused(&request(little), "strength: 0.2 of 4", "0.25");
}

/// A run whose tensors have other shapes than it needs.
#[test]
fn noise_of_another_shape_is_refused() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = hint_folder(folder.path(), "video", &video(3, (64, 32)));
    let zeros = |shape: [usize; 4]| {
        Tensor::zeros(&shape[..], candle_core::DType::F32, &Device::Cpu).map_err(Error::from)
    };
    let run = |noise: Tensor| {
        let tensors = Tensors { source_noise: Some(noise), ..Tensors::default() };
        let request = request(Source::video(&path)).with(|r| r.sampling.steps = 2);
        run_from(&tiny_files(), &request, tensors)
    };
    let recorded: BTreeMap<String, Tensor> = run(zeros([3, 4, 8, 16])?)?;
    assert_eq!(recorded["source"].dims(), [1, 4, 3, 8, 16]);
    let error = run(zeros([2, 4, 8, 16])?).unwrap_err().to_string();
    assert!(error.starts_with("tensors-in: `noise.source` is [2, 4, 8, 16]"), "{error}");
    Ok(())
}
