//! Clips that keep frames, or parts of frames, of their source, against diffusers; their pixels; and what is refused.

use std::path::Path;
use std::sync::Arc;

use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, Files, Models};
use animatelcm::media::RgbImage;
use animatelcm::models::motion::MotionNorm;
use animatelcm::pipeline::overlay::Overlay;
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::{FileRecord, Loop, Request, Source};
use animatelcm::sampler::SamplerKind;
use candle_core::{DType, Device, Tensor};
use image::{GrayImage, Rgb};
use serde_json::Value;

use crate::support::close::assert_close;
use crate::support::control::{hint_folder, images, run_from};
use crate::support::golden;
use crate::support::run::{Runs, Tensors, With};

/// Whole runs in f32, absolute.
const RUN: f64 = 1e-3;

fn tiny_files() -> Files {
    Files::new(Base::Folder(golden::path("tiny/model")))
}

fn pipeline() -> Pipeline {
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    let models = Models::open(&tiny_files()).unwrap();
    Pipeline::new(models, Device::Cpu, precision, Residency::Sequential)
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

fn record(file: &str) -> FileRecord {
    FileRecord { file: file.to_owned(), sha256: None }
}

/// The masks of a golden file, `(masks, height, width)`, in grey.
fn masks(name: &str) -> Vec<RgbImage> {
    let planes = golden::load("inpaint/runs").tensor(name);
    let (_, height, width) = planes.dims3().unwrap();
    let bytes = planes.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let mask = |plane: &[u8]| {
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            Rgb([plane[y as usize * width + x as usize]; 3])
        })
    };
    bytes.chunks(height * width).map(mask).collect()
}

/// The request of a golden run, with its source as files in a folder.
fn golden_request(about: &Value, run: &Value, folder: &Path) -> Request {
    let video = run["video"].as_str().unwrap_or("video_u8");
    let frames = images("video_to_video/runs", video);
    let keep = run["keep"].as_array().cloned().unwrap_or_default();
    let mask = run["mask"].as_str().map(|name| match masks(name).as_slice() {
        [only] => {
            only.save(folder.join("mask.png")).unwrap();
            folder.join("mask.png").to_str().unwrap().to_owned()
        }
        all => hint_folder(folder, name, all),
    });
    let source = Source {
        strength: run["strength"].as_f64(),
        keep: keep.iter().map(|frame| frame.as_u64().unwrap() as usize).collect(),
        mask: mask.map(|file| record(&file)),
        ..Source::video(hint_folder(folder, video, &frames))
    };
    request(source).with(|r| {
        r.prompt.text = about["prompt"].as_str().unwrap().into();
        r.prompt.negative = about["negative"].as_str().unwrap().into();
        r.sampling.sampler = run["sampler"].as_str().unwrap().parse().unwrap();
        if r.sampling.sampler != SamplerKind::Lcm {
            r.sampling.original_inference_steps = None;
        }
        r.sampling.steps = run["steps"].as_u64().unwrap() as usize;
        r.sampling.cfg_scale = run["guidance"].as_f64().unwrap();
    })
}

#[test]
fn runs_that_keep_parts_of_a_video_equal_diffusers_from_the_seed_alone() {
    let golden = golden::load("inpaint/runs");
    let about = golden::json("inpaint/inpaint");
    let runs = about["runs"].as_object().unwrap();
    assert!(runs.len() >= 8);
    for (name, run) in runs {
        let folder = tempfile::tempdir().unwrap();
        let request = golden_request(&about, run, folder.path());
        if run.get("mask").is_some() {
            let mask = pipeline().prepared(&request).unwrap().mask.unwrap();
            let got = mask.flatten_all().unwrap().to_vec1::<u8>().unwrap();
            let want = golden.tensor(&format!("{name}.made")).flatten_all().unwrap();
            assert_eq!(got, want.to_vec1::<u8>().unwrap(), "{name}");
        }
        let got = run_from(&tiny_files(), &request, Tensors::default()).unwrap();
        assert_close(&got["latents"], &golden.tensor(&format!("{name}.latents")), RUN);
    }
}

/// So many frames of a clip's size with a bar that moves.
fn video(count: u32) -> Vec<RgbImage> {
    let frame = |i: u32| {
        RgbImage::from_fn(64, 32, |x, y| {
            if (4 * i..4 * i + 4).contains(&x) {
                Rgb([220, 40, 20 * i as u8])
            } else {
                Rgb([30, (3 * x) as u8, (5 * y) as u8])
            }
        })
    };
    (0..count).map(frame).collect()
}

/// Mean difference of two images of one size, in 8-bit levels.
fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    let sum: u64 = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.as_raw().len() as f64
}

#[test]
fn kept_frames_are_those_of_the_autoencoder_with_every_sampler_windows_and_loops() {
    let folder = tempfile::tempdir().unwrap();
    let path = hint_folder(folder.path(), "v", &video(6));
    let overlay = Some(false);
    let source = Source { keep: vec![0, 4], strength: Some(1.0), overlay, ..Source::video(path) };
    for kind in SamplerKind::ALL {
        for looping in [Loop::None, Loop::Closed] {
            let request = request(source.clone()).with(|r| {
                r.sampling.sampler = kind;
                r.sampling.steps = 2;
                if !kind.has_teacher() {
                    r.sampling.original_inference_steps = None;
                }
                if looping != Loop::None {
                    r.output.looping = looping;
                    r.windows.length = Some(4);
                    r.windows.overlap = Some(1);
                }
            });
            let got = run_from(&tiny_files(), &request, Tensors::default()).unwrap();
            let own = got["source"].transpose(1, 2).unwrap().contiguous().unwrap();
            let mut trip = Vec::new();
            pipeline().decode(&own, &mut |_: Event| Ok(()), &mut &mut trip).unwrap();
            let clip = got["frames"].affine(255.0, 0.0).unwrap().round().unwrap();
            for (at, trip) in trip.iter().enumerate() {
                let frame = clip.get(at).unwrap().permute((1, 2, 0)).unwrap();
                let bytes = frame.to_dtype(DType::U8).unwrap().flatten_all().unwrap();
                let frame = RgbImage::from_raw(64, 32, bytes.to_vec1().unwrap()).unwrap();
                let error = difference(&frame, trip);
                assert_eq!(error <= 2.0, [0, 4].contains(&at), "{kind}, frame {at}: {error}");
            }
        }
    }
}

/// The frames of a request's clip.
fn clip(request: &Request) -> Vec<RgbImage> {
    let mut frames = Vec::new();
    let mut silent = |_: Event| Ok(());
    pipeline().run(request, &mut Tensors::default(), &mut silent, &mut &mut frames).unwrap();
    frames
}

#[test]
fn an_overlay_is_that_of_diffusers() {
    let golden = golden::load("inpaint/overlay");
    let picture = |name: &str| {
        let pixels = golden.tensor(name);
        let (height, width, _) = pixels.dims3().unwrap();
        let bytes = pixels.flatten_all().unwrap().to_vec1().unwrap();
        RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
    };
    for name in ["soft", "hard"] {
        let levels = golden.tensor(&format!("{name}.mask"));
        let (height, width) = levels.dims2().unwrap();
        let levels = levels.flatten_all().unwrap().to_vec1().unwrap();
        let mask = GrayImage::from_raw(width as u32, height as u32, levels).unwrap();
        let images = Arc::from([picture("source")]);
        let overlay = Overlay { images, masks: Arc::from([mask]), keep: vec![] };
        let mut frame = picture("made");
        assert!(overlay.apply(7, &mut frame));
        assert!(frame == picture(name), "{name}");
    }
}

#[test]
fn kept_frames_have_the_sources_pixels_and_others_are_as_without() {
    let folder = tempfile::tempdir().unwrap();
    let video = video(6);
    let path = hint_folder(folder.path(), "v", &video);
    let kept = |overlay| Source { keep: vec![0, 4], overlay, ..Source::video(&path) };
    for looping in [Loop::None, Loop::Closed] {
        let run = |overlay| {
            clip(&request(kept(overlay)).with(|r| {
                r.sampling.steps = 2;
                if looping != Loop::None {
                    r.output.looping = looping;
                    r.windows.length = Some(4);
                    r.windows.overlap = Some(1);
                }
            }))
        };
        let (with, without) = (run(None), run(Some(false)));
        for (at, ((with, without), source)) in with.iter().zip(&without).zip(&video).enumerate() {
            if [0, 4].contains(&at) {
                assert!(with == source && without != source, "frame {at}");
            } else {
                assert!(with == without, "frame {at}");
            }
        }
    }
    // Frames of another size are those that the clip was told of; the tensors are those of the frames.
    let request = request(kept(None)).with(|r| r.size.width = Some(48));
    let fitted = pipeline().prepared(&request).unwrap().source.unwrap().images;
    let frames = clip(&request);
    assert!(frames[0] == fitted[0] && frames[4] == fitted[4] && fitted[4].width() == 48);
    let got = run_from(&tiny_files(), &request, Tensors::default()).unwrap();
    for (at, frame) in frames.iter().enumerate() {
        let values = got["frames"].get(at).unwrap();
        assert!(animatelcm::media::tensor::to_rgb(&values).unwrap() == *frame, "frame {at}");
    }
}

#[test]
fn masks_blend_the_sources_pixels_at_the_size_of_the_frames() {
    let folder = tempfile::tempdir().unwrap();
    let video = video(3);
    let path = hint_folder(folder.path(), "v", &video);
    // Black to column 18, no edge of a latent, then grey up to white from column 30 on; the other way round in frame 2.
    let level = |x: u32| (21 * (i64::from(x) - 18)).clamp(0, 255) as u8;
    let mask = |i: usize| {
        RgbImage::from_fn(64, 32, |x, _| Rgb([level(if i == 2 { 63 - x } else { x }); 3]))
    };
    mask(0).save(folder.path().join("mask.png")).unwrap();
    let one = folder.path().join("mask.png").to_str().unwrap().to_owned();
    let each = hint_folder(folder.path(), "m", &[mask(0), mask(1), mask(2)]);
    for (file, mirrored, keep) in [(&one, 9, vec![]), (&each, 2, vec![1])] {
        let run = |overlay| {
            let source = Source {
                keep: keep.clone(),
                mask: Some(record(file)),
                overlay,
                ..Source::video(&path)
            };
            clip(&request(source))
        };
        let (with, without) = (run(None), run(Some(false)));
        for (at, ((with, without), source)) in with.iter().zip(&without).zip(&video).enumerate() {
            for (x, y, pixel) in with.enumerate_pixels() {
                let level = level(if at == mirrored { 63 - x } else { x });
                let level = if keep.contains(&at) { 0 } else { level };
                let (made, source) = (without.get_pixel(x, y), source.get_pixel(x, y));
                match level {
                    0 => assert_eq!(pixel, source, "frame {at}, {x} {y}"),
                    255 => assert_eq!(pixel, made, "frame {at}, {x} {y}"),
                    _ => {
                        for ((is, made), source) in pixel.0.iter().zip(made.0).zip(source.0) {
                            let share = f64::from(level) / 255.0;
                            let want = share * f64::from(made) + (1.0 - share) * f64::from(source);
                            // Premultiplied, divided and composed: half a level, one and a half.
                            let near = 2.0 - share;
                            assert!((f64::from(*is) - want).abs() <= near, "{at} {x} {y}: {is}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn made_parts_see_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (mut a, path) = (video(4), hint_folder(folder.path(), "a", &video(4)));
    a[0] = RgbImage::from_pixel(64, 32, Rgb([250, 240, 10]));
    let other = hint_folder(folder.path(), "b", &a);
    let last = |path: &str, keep: &[usize]| -> Tensor {
        let source = Source { keep: keep.to_vec(), strength: Some(1.0), ..Source::video(path) };
        let got = run_from(&tiny_files(), &request(source), Tensors::default()).unwrap();
        got["latents"].narrow(2, 3, 1).unwrap()
    };
    let change = |a: &Tensor, b: &Tensor| {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    };
    assert!(change(&last(&path, &[0]), &last(&other, &[0])) > 1e-3);
    // What is made begins with noise alone and does not know the frame that was there.
    assert!(change(&last(&path, &[1]), &last(&other, &[1])) < 1e-6);
}

#[test]
fn frames_and_masks_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let video = hint_folder(folder.path(), "v", &video(6));
    let grey = |width, height, value| RgbImage::from_pixel(width, height, Rgb([value; 3]));
    grey(64, 32, 255).save(path("white.png")).unwrap();
    grey(64, 32, 127).save(path("black.png")).unwrap();
    grey(64, 33, 255).save(path("wrong.png")).unwrap();
    let three = hint_folder(folder.path(), "three", &vec![grey(64, 32, 255); 3]);
    let six = hint_folder(folder.path(), "six", &vec![grey(64, 32, 255); 6]);
    let error = |source: Source| {
        let error = pipeline().prepared(&request(source)).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        (error.to_string(), error.hint().unwrap_or_default().into_owned())
    };
    let keep = |keep: &[usize]| error(Source { keep: keep.to_vec(), ..Source::video(&video) }).0;
    assert_eq!(keep(&[0, 6]), "keep: frame 6 is not in the clip, 0 to 5");
    assert_eq!(
        keep(&[0, 1, 2, 3, 4, 5]),
        "keep: keeps all 6 frames, so that nothing would be made"
    );
    let mask = |file: &str| error(Source { mask: Some(record(file)), ..Source::video(&video) });
    let (text, hint) = mask(&path("wrong.png"));
    assert!(text.contains("wrong.png is 64x33") && hint.contains("size of one"), "{text}: {hint}");
    assert!(mask(&path("black.png")).0.starts_with("mask: nothing is white"));
    let (text, hint) = mask(&three);
    assert!(text.contains("has 3 frames, but frame 5 of"), "{text}");
    assert!(hint.contains("one for all"), "{hint}");
    assert!(mask(&path("none.png")).0.starts_with("mask: "), "a missing file");
    // Of a video of which some frames are taken, the mask's are the same.
    let some = |file: &str| Source {
        from: 1,
        every: 2,
        mask: Some(record(file)),
        ..Source::video(&video)
    };
    let prepared = pipeline().prepared(&request(some(&six))).unwrap();
    assert_eq!(prepared.mask.unwrap().dims()[1], 3);
    assert!(error(some(&three)).0.contains("frame 5 of"));
    let image = Source { mask: Some(record(&three)), ..Source::image(path("white.png")) };
    let request = request(image).with(|r| r.size.frames = Some(4));
    let error = pipeline().prepared(&request).unwrap_err().to_string();
    assert!(error.contains("has 3 frames, the clip 4"), "{error}");
}
