//! What observers see of a clip while it is made.

use std::collections::BTreeMap;

use animatelcm::Result;
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, Files, Models};
use animatelcm::media::RgbImage;
use animatelcm::pipeline::{Event, Observer, Pipeline, Preview, Residency};
use animatelcm::request::{Hires, Request};
use candle_core::Device;

use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny;

/// Keeps previews and the names of all events.
#[derive(Default)]
struct Watcher {
    is_blind: bool,
    previews: Vec<Preview>,
    names: Vec<String>,
}

impl Observer for Watcher {
    fn event(&mut self, event: Event) -> Result<()> {
        let json: serde_json::Value = serde_json::from_str(&event.to_json()).unwrap();
        self.names.push(json["event"].as_str().unwrap().to_owned());
        if let Event::Preview(preview) = event {
            assert_eq!(preview.images.len(), preview.frames);
            let size = (preview.width, preview.height);
            assert!(preview.images.iter().all(|image| image.dimensions() == size));
            self.previews.push(preview);
        }
        Ok(())
    }

    fn wants_previews(&self) -> bool {
        !self.is_blind
    }
}

fn pipeline(files: &Files) -> Pipeline {
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    Pipeline::new(Models::open(files).unwrap(), Device::Cpu, precision, Residency::Sequential)
}

fn pocket() -> Pipeline {
    pipeline(&Files::embedded())
}

fn request() -> Request {
    Request::new("a red star moving up on a grey background").with(|r| {
        r.size.frames = Some(3);
        r.sampling.steps = 2;
        r.sampling.seed = Some(7);
    })
}

/// The values of images `[y][x]` by channel or frame.
type Images = Vec<Vec<Vec<f32>>>;

/// A run: what the observer saw, the frames, and the last latents.
fn run(
    mut pipeline: Pipeline,
    request: &Request,
    is_blind: bool,
) -> (Watcher, Vec<RgbImage>, Vec<Images>) {
    let (mut frames, mut watcher) = (Vec::new(), Watcher { is_blind, ..Watcher::default() });
    let mut tensors = Tensors { recorded: Some(BTreeMap::default()), ..Tensors::default() };
    pipeline.run(request, &mut tensors, &mut watcher, &mut &mut frames).unwrap();
    let latents = tensors.recorded.unwrap()["latents"].squeeze(0).unwrap();
    let latents = (0..latents.dim(0).unwrap()).map(|i| latents.get(i).unwrap().to_vec3().unwrap());
    (watcher, frames, latents.collect())
}

#[test]
fn the_last_preview_of_a_decoder_shows_the_frames() {
    let (seen, frames, _) = run(pocket(), &request(), false);
    let steps: Vec<_> = seen.previews.iter().map(|p| (p.step, p.steps, p.fps)).collect();
    assert_eq!(steps, [(1, 2, 8.0), (2, 2, 8.0)]);
    assert_eq!(seen.previews[1].images.as_ref(), frames);
    assert_ne!(seen.previews[0].images.as_ref(), frames);
    let order: Vec<&str> = seen
        .names
        .iter()
        .map(String::as_str)
        .filter(|name| ["preview", "step"].contains(name))
        .collect();
    assert_eq!(order, ["preview", "step", "preview", "step"]);
    let row = seen.previews[1].row(2);
    assert_eq!(row.dimensions(), (128, 64));
    assert_eq!(row.get_pixel(64 + 30, 20), frames[2].get_pixel(30, 20));
}

#[test]
fn a_run_without_previews_is_the_same_run() {
    let (seen, frames, _) = run(pocket(), &request(), false);
    let (blind, same, _) = run(pocket(), &request(), true);
    assert_eq!(frames, same);
    assert!(blind.previews.is_empty());
    let others: Vec<_> = seen.names.iter().filter(|name| *name != "preview").collect();
    assert_eq!(others, blind.names.iter().collect::<Vec<_>>());
}

#[test]
fn latents_of_stable_diffusion_are_shown_by_comfyuis_factors() {
    let request = Request::new("x").with(|r| {
        (r.size.width, r.size.height, r.size.frames) = (Some(64), Some(32), Some(3));
        (r.sampling.steps, r.sampling.seed) = (2, Some(3));
    });
    let files = Files::new(Base::Folder(tiny::path("tiny/model")));
    let (seen, _, latents) = run(pipeline(&files), &request, false);
    let last = &seen.previews[1];
    assert_eq!((last.frames, last.width, last.height), (3, 16, 8));
    // LCM ends with the last prediction. The table is that of ComfyUI's latent_formats.py.
    let table = [
        [0.3512, 0.2297, 0.3227],
        [0.3250, 0.4974, 0.2350],
        [-0.2829, 0.1762, 0.2721],
        [-0.2120, -0.2616, -0.7177],
    ];
    let mut differing = 0;
    for (frame, image) in last.images.iter().enumerate() {
        for (x, y, pixel) in image.enumerate_pixels() {
            for color in 0..3 {
                let value = |(channel, row): (usize, &[f64; 3])| {
                    f64::from(latents[channel][frame][y as usize][x as usize]) * row[color]
                };
                let sum: f64 = table.iter().enumerate().map(value).sum();
                let want = (f64::midpoint(sum, 1.0).clamp(0.0, 1.0) * 255.0).floor();
                let off = (f64::from(pixel.0[color]) - want).abs();
                // Whole numbers are cut, so rounding in f32 may show.
                assert!(off <= 1.0, "{frame} {x} {y}: {pixel:?}, not {want}");
                differing += usize::from(off > 0.0);
            }
        }
    }
    assert!(differing < 3, "{differing}");
}

#[test]
fn long_clips_are_shown_by_every_second_frame() {
    let long = request().with(|r| {
        (r.size.frames, r.sampling.steps) = (Some(34), 1);
    });
    let (seen, frames, _) = run(pocket(), &long, false);
    let preview = &seen.previews[0];
    assert_eq!((preview.frames, preview.fps), (17, 4.0));
    assert_eq!(preview.images[16], frames[32]);
}

#[test]
fn both_sizes_of_a_run_are_shown_and_large_frames_in_small() {
    let hires = request().with(|r| {
        (r.size.frames, r.sampling.steps) = (Some(1), 1);
        r.quality.hires = Some("4.5,strength=1".parse::<Hires>().unwrap());
    });
    let (seen, frames, _) = run(pocket(), &hires, false);
    let sizes: Vec<_> =
        seen.previews.iter().map(|p| (p.step, p.steps, p.width, p.height)).collect();
    assert_eq!(sizes, [(1, 2, 64, 64), (2, 2, 256, 256)]);
    assert_eq!(frames[0].dimensions(), (288, 288));
}

#[test]
fn the_json_of_a_preview_has_no_pixels() {
    let preview = Preview {
        step: 1,
        steps: 4,
        frames: 2,
        width: 8,
        height: 4,
        fps: 8.0,
        path: None,
        images: vec![RgbImage::new(8, 4); 2].into(),
    };
    let bare =
        r#"{"event":"preview","step":1,"steps":4,"frames":2,"width":8,"height":4,"fps":8.0}"#;
    assert_eq!(Event::Preview(preview.clone()).to_json(), bare);
    let named = Event::Preview(Preview { path: Some("p.gif".into()), ..preview });
    assert!(named.to_json().ends_with(r#","fps":8.0,"path":"p.gif"}"#), "{}", named.to_json());
    assert!(!format!("{named:?}").contains("[0"), "{named:?}");
}
