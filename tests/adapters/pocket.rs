//! One small trained adapter of every kind on a small trained model: whole clips equal the reference's, and the image
//! follows.

use std::collections::HashMap;

use animatelcm::Stop;
use animatelcm::media::read::{self, Selection};
use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::support::close::assert_close;
use crate::support::golden;
use crate::support::program::Folder;

/// Latents and frames of whole runs in f32, absolute; frames are in `[0, 1]`, stored in half precision. Measured on all
/// frames in full precision: 2.2e-5 at most.
const RUN: f64 = 1e-3;

/// Pixels of a side of the model's images.
const SIDE: usize = 64;

/// A color in `[0, 1]`.
type Color = [f32; 3];

/// A clip's pixels, frame by frame, row by row.
type Clip = Vec<Vec<Color>>;

const GREEN: Color = [0.16, 0.75, 0.27];
const NAVY: Color = [0.06, 0.08, 0.31];
const WHITE: Color = [0.96, 0.96, 0.96];

/// One of the golden's runs.
struct Run {
    about: Value,
}

impl Run {
    fn named(name: &str) -> Self {
        let golden = golden::json("pocket_adapters/runs");
        let runs = golden["runs"].as_array().unwrap();
        let about = runs.iter().find(|run| run["name"] == name).unwrap();
        Self { about: about.clone() }
    }

    fn generate(&self, more: &[&str]) -> HashMap<String, Tensor> {
        let folder = Folder::new();
        let seed = self.about["seed"].to_string();
        let mut args = vec!["generate", self.about["prompt"].as_str().unwrap(), "--seed", &seed];
        args.extend([
            "--dtype=f32",
            "--device=cpu",
            "-q",
            "-o",
            "clip.png",
            "--tensors-out",
            "out.safetensors",
        ]);
        let model = [
            ("--model", "base"),
            ("--motion", "motion_lcm.safetensors"),
            ("--lcm-lora", "animatelcm_lora.safetensors"),
        ];
        let model = model.map(|(flag, name)| {
            format!("{flag}={}", golden::path(&format!("pocket_adapters/model/{name}")).display())
        });
        args.extend(model.iter().map(String::as_str));
        args.extend(more);
        folder.run(&args).ok();
        candle_core::safetensors::load(folder.path("out.safetensors"), &Device::Cpu).unwrap()
    }

    /// The run's tensors, after they were found to equal the reference's.
    #[track_caller]
    fn checked(&self) -> Clip {
        let place = golden::path("pocket_adapters");
        let args: Vec<String> = self.about["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|arg| arg.as_str().unwrap().replace("{}", place.to_str().unwrap()))
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let got = self.generate(&args);
        let (want, name) =
            (golden::load("pocket_adapters/runs"), self.about["name"].as_str().unwrap());
        assert_close(&got["latents"], &want.tensor(&format!("{name}.latents")), RUN);
        let kept = Tensor::new(&[11u32], &Device::Cpu).unwrap();
        let frames = got["frames"].index_select(&kept, 0).unwrap();
        assert_close(&frames, &want.tensor(&format!("{name}.frames")), RUN);
        clip(&got["frames"])
    }

    /// The same prompt and seed without the adapter.
    fn plain(&self) -> Clip {
        clip(&self.generate(&[])["frames"])
    }
}

fn clip(frames: &Tensor) -> Clip {
    let pixels = frames.permute((0, 2, 3, 1)).unwrap().flatten(1, 2).unwrap();
    let pixels = pixels.to_vec3::<f32>().unwrap();
    pixels.iter().map(|frame| frame.iter().map(|p| [p[0], p[1], p[2]]).collect()).collect()
}

fn distance(a: Color, b: Color) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
}

fn middle(mut values: Vec<f32>) -> f32 {
    values.sort_by(f32::total_cmp);
    values[values.len() / 2]
}

/// The background of a frame: the middle value of the outermost pixels, by channel.
fn ground(frame: &[Color]) -> Color {
    let outer = |i: &usize| {
        let (y, x) = (i / SIDE, i % SIDE);
        y.min(x) == 0 || y.max(x) == SIDE - 1
    };
    std::array::from_fn(|c| middle((0..frame.len()).filter(outer).map(|i| frame[i][c]).collect()))
}

/// Which pixels are not background.
fn object(frame: &[Color]) -> Vec<bool> {
    let ground = ground(frame);
    let far: Vec<f32> = frame.iter().map(|&pixel| distance(pixel, ground)).collect();
    let furthest = far.iter().copied().fold(0.0, f32::max);
    far.into_iter().map(|far| far > (0.5 * furthest).max(0.15)).collect()
}

/// The mean color of the objects of a clip.
fn object_color(clip: &Clip) -> Color {
    let inside = clip.iter().flat_map(|frame| {
        frame.iter().zip(object(frame)).filter(|(_, inside)| *inside).map(|(pixel, _)| *pixel)
    });
    mean(inside)
}

fn mean(colors: impl Iterator<Item = Color>) -> Color {
    let (mut sum, mut count) = ([0.0; 3], 0.0);
    for color in colors {
        sum = std::array::from_fn(|c| sum[c] + color[c]);
        count += 1.0;
    }
    sum.map(|sum| sum / count)
}

fn mean_ground(clip: &Clip) -> Color {
    mean(clip.iter().map(|frame| ground(frame)))
}

/// Horizontal middle of a frame's object, in pixels.
fn across(frame: &[Color]) -> f32 {
    let inside: Vec<f32> = object(frame)
        .iter()
        .enumerate()
        .filter(|(_, inside)| **inside)
        .map(|(i, _)| (i % SIDE) as f32)
        .collect();
    inside.iter().sum::<f32>() / inside.len().max(1) as f32
}

/// How much object and silhouette overlap: intersection over union, the mean over frames.
fn overlap(clip: &[&Vec<Color>], hint: &str) -> f64 {
    let path = golden::path(&format!("pocket_adapters/{hint}.gif"));
    let hints =
        read::frames("control", &path, Selection::default(), &Stop::default()).unwrap().images;
    assert_eq!(hints.len(), clip.len());
    let shares = clip.iter().zip(&hints).map(|(frame, hint)| {
        let wanted = hint.pixels().map(|pixel| pixel.0[0] > 127);
        let pairs: Vec<_> = object(frame).into_iter().zip(wanted).collect();
        let count = |f: fn(&&(bool, bool)) -> bool| pairs.iter().filter(f).count() as f64;
        count(|(a, b)| *a && *b) / count(|(a, b)| *a || *b)
    });
    shares.sum::<f64>() / hints.len() as f64
}

fn all(clip: &Clip) -> Vec<&Vec<Color>> {
    clip.iter().collect()
}

/// The overlap with a hint, with the adapter and without it.
fn overlaps(name: &str, hint: &str) -> (f64, f64) {
    let run = Run::named(name);
    (overlap(&all(&run.checked()), hint), overlap(&all(&run.plain()), hint))
}

#[test]
fn a_control_net_has_the_object_follow_an_orbit() {
    let (with, without) = overlaps("controlnet", "star");
    // Measured: 0.84 and 0.03.
    assert!(with > 0.7 && without < 0.3, "{with} with the hint, {without} without");
}

#[test]
fn a_t2i_adapter_has_the_object_follow_a_diagonal() {
    let (with, without) = overlaps("t2i_adapter", "square");
    // Measured: 0.73 and 0.21.
    assert!(with > 0.6 && without < 0.3, "{with} with the hint, {without} without");
}

#[test]
fn sparse_ctrl_has_the_object_where_it_is_told_at_four_frames_of_sixteen() {
    let run = Run::named("sparsectrl");
    let (with, without) = (run.checked(), run.plain());
    let told = |clip: &Clip| overlap(&[0, 5, 10, 15].map(|f: usize| &clip[f]), "circle");
    let (told, untold) = (told(&with), told(&without));
    // Measured: 0.92 and 0.10.
    assert!(told > 0.8 && untold < 0.3, "{told} with the hints, {untold} without");
}

#[test]
fn an_ip_adapter_takes_the_background_of_an_image_without_a_word() {
    let far = |clip: &Clip, ground: Color| distance(mean_ground(clip), ground);
    for (name, image, other) in [("red_on_white", WHITE, NAVY), ("yellow_on_navy", NAVY, WHITE)] {
        let run = Run::named(&format!("ip_{name}"));
        let (with, without) = (run.checked(), run.plain());
        // Measured: 0.04 and 0.09 from its own, 1.38 and 1.36 from the other's, 1.19 and 0.33 without it.
        let (near, far, before) = (far(&with, image), far(&with, other), far(&without, image));
        assert!(
            near < 0.2 && near < 0.5 * before && far > 1.0,
            "{name}: {near} from its background, {far} from another's, {before} without it"
        );
    }
}

#[test]
fn a_style_lora_makes_the_background_white() {
    let run = Run::named("style_lora");
    let far = |clip: &Clip| distance(mean_ground(clip), WHITE);
    let (with, without) = (far(&run.checked()), far(&run.plain()));
    // Measured: 0.02 and 1.47.
    assert!(with < 0.2 && without > 1.0, "{with} from white with the LoRA, {without} without");
}

#[test]
fn a_motion_lora_moves_the_object_to_the_left() {
    let run = Run::named("motion_lora");
    let way = |clip: &Clip| {
        let third = |frames: &[Vec<Color>]| frames.iter().map(|f| across(f)).sum::<f32>() / 3.0;
        third(&clip[13..]) - third(&clip[..3])
    };
    let (with, without) = (way(&run.checked()), way(&run.plain()));
    // Measured: 16.8 and 4.1 pixels to the left.
    assert!(with < -10.0 && with < without - 8.0, "{with} pixels with the LoRA, {without} without");
}

#[test]
fn a_word_is_a_color() {
    let run = Run::named("word");
    let far = |clip: &Clip| distance(object_color(clip), GREEN);
    let (with, without) = (far(&run.checked()), far(&run.plain()));
    // Measured: 0.20 and 0.71.
    assert!(with < 0.3 && without > 0.6, "{with} from green with the word, {without} without");
}

#[test]
fn a_hint_and_an_image_act_together() {
    let run = Run::named("shape_and_picture");
    let (with, without) = (run.checked(), run.plain());
    let (share, plain) = (overlap(&all(&with), "square"), overlap(&all(&without), "square"));
    // Measured: 0.91 and 0.22.
    assert!(share > 0.7 && plain < 0.3, "{share} with the hint, {plain} without");
    let far = |clip: &Clip| distance(mean_ground(clip), NAVY);
    let (ground, before) = (far(&with), far(&without));
    // Measured: 0.21 and 0.39. Some frames stay brown.
    assert!(
        ground < 0.25 && ground < 0.7 * before,
        "{ground} from navy with the image, {before} without"
    );
}
