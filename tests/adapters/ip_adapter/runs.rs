//! Whole runs with image prompts against diffusers.

use std::collections::BTreeMap;

use animatelcm::media::RgbImage;
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::IpAdapter as Asked;
use animatelcm::rng::{Noise, RngKind};
use animatelcm::sampler::WindowSchedule;
use candle_core::{Device, Tensor};

use crate::support::close::{assert_close, assert_relative, relative_l2};
use crate::support::golden;
use crate::support::ip_adapter::{
    ENCODER, F32, Images, floats, pipeline, request, run, weights_of,
};
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny::{self, case};

/// Whole runs in f32, absolute.
const RUN: f64 = 1e-3;

fn bits(recorded: &BTreeMap<String, Tensor>) -> Vec<u32> {
    floats(&recorded["frames"]).into_iter().map(f32::to_bits).collect()
}

#[test]
fn runs_of_every_kind_equal_diffusers() {
    let images = Images::new();
    let plain = run(&[], request()).unwrap();
    for (kind, scale) in [("base", 0.6), ("plus", 0.8), ("full", 0.7)] {
        let adapter = images.adapter(kind, &format!("a.png,scale={scale}"));
        let got = run(&[adapter], request()).unwrap();
        assert_close(&got["latents"], &case(&format!("ip_{kind}"))["latents.final"], RUN);
        assert!(relative_l2(&got["latents"], &plain["latents"]) > 0.01, "{kind} has no effect");
    }
    let want = golden::load("ip_adapter/runs");
    let adapter = images.adapter("full", "a.png,scale=0.7");
    let got = run(
        &[adapter],
        request().with(|r| {
            r.sampling.cfg_scale = 1.0;
        }),
    )
    .unwrap();
    assert_close(&got["latents"], &want.tensor("unguided"), RUN);
}

#[test]
fn runs_with_several_images_equal_diffusers() {
    let images = Images::new();
    let want = golden::load("ip_adapter/runs");
    let mut last = None;
    for kind in ["base", "plus", "full"] {
        let adapter = images.adapter(kind, "a.png,image=b.png,scale=0.7");
        let got = run(&[adapter], request()).unwrap();
        assert_close(&got["latents"], &want.tensor(&format!("two_pictures.{kind}")), RUN);
        last = Some(got);
    }
    // A folder of images is as good as its images.
    std::fs::create_dir(images.path("all")).unwrap();
    for name in ["a.png", "b.png"] {
        std::fs::copy(images.path(name), images.path(&format!("all/{name}"))).unwrap();
    }
    let got = run(&[images.adapter("full", "all,scale=0.7")], request()).unwrap();
    assert_eq!(bits(&got), bits(&last.unwrap()));
}

#[test]
fn two_adapters_at_once_equal_diffusers_in_any_order() {
    let images = Images::new();
    let a = images.adapter("base", "a.png,scale=0.6");
    let b = images.adapter("plus", "b.png,scale=0.35");
    let got = run(&[a.clone(), b.clone()], request()).unwrap();
    assert_close(&got["latents"], &golden::load("ip_adapter/runs").tensor("two_adapters"), RUN);
    let reversed = run(&[b, a], request()).unwrap();
    assert_relative(&got["latents"], &reversed["latents"], F32);
}

#[test]
fn masked_runs_equal_diffusers() {
    let images = Images::new();
    // diffusers has a scale for every image of an adapter; here they are two entries that share a file.
    let want = golden::load("ip_adapter/runs").tensor("masks");
    let a = images.adapter("plus", "a.png,scale=0.7,mask=mask0.png");
    let b = images.adapter("plus", "b.png,scale=0.4,mask=mask2.png");
    let got = run(&[a.clone(), b], request()).unwrap();
    assert_close(&got["latents"], &want, RUN);
    assert!(relative_l2(&run(&[a], request()).unwrap()["latents"], &want) > 1e-3);

    // The case of the tiny model: halves.
    let left = RgbImage::from_fn(64, 32, |x, _| image::Rgb([if x < 32 { 255 } else { 0 }; 3]));
    let right = RgbImage::from_fn(64, 32, |x, _| image::Rgb([if x < 32 { 0 } else { 255 }; 3]));
    left.save(images.path("left.png")).unwrap();
    right.save(images.path("right.png")).unwrap();
    let a = images.adapter("base", "a.png,scale=0.7,mask=left.png");
    let b = images.adapter("base", "b.png,scale=0.4,mask=right.png");
    let got = run(&[a, b], request()).unwrap();
    assert_close(&got["latents"], &case("ip_masked")["latents.final"], RUN);

    // Two images with their masks in one entry.
    let both = images.adapter("base", "a.png,image=b.png,mask=left.png,mask=right.png,scale=0.5");
    let a = images.adapter("base", "a.png,scale=0.5,mask=left.png");
    let b = images.adapter("base", "b.png,scale=0.5,mask=right.png");
    let (one, two) = (run(&[both], request()).unwrap(), run(&[a, b], request()).unwrap());
    assert_eq!(bits(&one), bits(&two));
}

#[test]
fn a_part_of_a_run_equals_diffusers() {
    let images = Images::new();
    let adapter = images.adapter("plus", "b.png,scale=0.8,end=0.5");
    let got = run(
        &[adapter],
        request().with(|r| {
            r.sampling.steps = 4;
        }),
    )
    .unwrap();
    assert_close(&got["latents"], &golden::load("ip_adapter/runs").tensor("first_half"), RUN);
}

#[test]
fn strength_zero_is_bit_identical_to_absence() {
    let images = Images::new();
    let plain = bits(&run(&[], request()).unwrap());
    for more in ["scale=0", "scale=0:0,3:0", "start=0.9", "scale=0,mask=mask0.png"] {
        let adapter = images.adapter("plus", &format!("a.png,{more}"));
        assert!(bits(&run(&[adapter], request()).unwrap()) == plain, "`{more}` changes the clip");
    }
    let adapter = images.adapter("plus", "a.png,scale=0.01");
    assert!(bits(&run(&[adapter], request()).unwrap()) != plain, "a small strength is nothing");
}

#[test]
fn images_are_encoded_once_a_clip_and_before_the_unet_is_loaded() {
    let images = Images::new();
    let ip_adapters = vec![
        images.adapter("base", "a.png,scale=0.6"),
        images.adapter("plus", "b.png,scale=0.5"),
        images.adapter("base", "b.png,scale=0.2"),
    ];
    let request = request().with(|r| {
        r.ip_adapters = ip_adapters;
        r.sampling.steps = 3;
    });
    let mut loaded = Vec::new();
    let mut make = |pipeline: &mut Pipeline| {
        loaded.clear();
        let mut listener = |event: Event| {
            if let Event::Load { part, bytes } = event {
                assert!(bytes > 0, "{part}");
                loaded.push(part);
            }
            Ok(())
        };
        let mut frames = Vec::new();
        pipeline.run(&request, &mut Tensors::default(), &mut listener, &mut &mut frames).unwrap();
        (loaded.clone(), frames)
    };
    let once = ["text", "image-encoder", "ip-adapter", "ip-adapter", "vae", "unet"];
    let mut lean = pipeline(Residency::Sequential);
    let (parts, first) = make(&mut lean);
    assert_eq!(parts, once);
    assert_eq!(make(&mut lean).0, once);
    let mut ready = pipeline(Residency::KeepAll);
    let (parts, second) = make(&mut ready);
    assert_eq!((parts.as_slice(), &second), (&once[..], &first));
    assert_eq!(make(&mut ready).0.len(), 0);
}

#[test]
fn what_images_need_is_part_of_the_plan() {
    let images = Images::new();
    let plan = |ip_adapters: Vec<Asked>| {
        let request = request().with(|r| {
            r.ip_adapters = ip_adapters;
        });
        pipeline(Residency::Sequential).prepared(&request).unwrap().memory
    };
    let (without, with) = (plan(vec![]), plan(vec![images.adapter("full", "a.png,image=b.png")]));
    let bytes = |file: &str| {
        let numbers: usize = tiny::tensors(&[file]).values().map(Tensor::elem_count).sum();
        4 * numbers as u64
    };
    assert_eq!(with.image_encoder, bytes(ENCODER).max(bytes(&weights_of("full"))));
    // Keys and values of 2 x 17 tokens and, with guidance, of no image, for 16 attentions of 8 and 16 channels.
    assert_eq!(with.fixed - without.fixed, 2 * 2 * 34 * (5 * 8 + 11 * 16) * 4);
    assert_eq!((with.weights, without.image_encoder), (without.weights, 0));
}

#[test]
fn images_in_windows_are_those_of_clips_of_those_frames() {
    let images = Images::new();
    let noise = Noise::new(RngKind::Cpu, 4).latents((1, 6, 4, 8, 16), &Device::Cpu).unwrap();
    let noise = noise.transpose(1, 2).unwrap().contiguous().unwrap();
    let latents = |adapters: [&str; 2], first: usize, count: usize| {
        let request = request().with(|r| {
            r.sampling.steps = 1;
            r.size.frames = Some(count);
            r.ip_adapters =
                vec![images.adapter("plus", adapters[0]), images.adapter("base", adapters[1])];
            if count == 6 {
                r.windows.length = Some(3);
                r.windows.overlap = Some(0);
                r.windows.schedule = Some(WindowSchedule::Static);
            }
        });
        let mut tensors = Tensors {
            latents: Some(noise.narrow(2, first, count).unwrap().contiguous().unwrap()),
            recorded: Some(BTreeMap::new()),
            ..Tensors::default()
        };
        let (mut frames, mut silent) = (Vec::new(), |_: Event| Ok(()));
        pipeline(Residency::Sequential)
            .run(&request, &mut tensors, &mut silent, &mut &mut frames)
            .unwrap();
        tensors.recorded.unwrap()["latents"].clone()
    };
    let got = latents(
        [
            "a.png,image=b.png,image=b.png,image=b.png,image=a.png,image=a.png,per-frame",
            "a.png,mask=mask0.png,scale=0:1,2:0.6,5:0.3",
        ],
        0,
        6,
    );
    let parts = [
        ["a.png,image=b.png,image=b.png,per-frame", "a.png,mask=mask0.png,scale=0:1,2:0.6"],
        ["b.png,image=a.png,image=a.png,per-frame", "a.png,mask=mask0.png,scale=0:0.5,2:0.3"],
    ];
    for (i, part) in parts.into_iter().enumerate() {
        let alone = latents(part, 3 * i, 3);
        assert_relative(&got.narrow(2, 3 * i, 3).unwrap(), &alone, F32);
    }
    let turned = latents(parts[1], 0, 3);
    assert!(relative_l2(&turned, &got.narrow(2, 0, 3).unwrap()) > 1e-3);
}
