//! Clips that are longer than the motion modules know, and clips that loop.

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::{AnimationDecoder, RgbaImage};
use serde_json::{Value, json};

use crate::support::program::Folder;

/// The model inside the program knows 64 frames.
fn make(folder: &Folder, more: &[&str]) {
    let args = ["generate", "a green ring moving right", "-W=32", "-H=32", "--steps=2", "--seed=5"];
    folder.run(&[&args[..], more].concat()).ok();
}

fn inside(folder: &Folder, clip: &str) -> Value {
    folder.run(&["inspect", "--json", clip]).ok().json()
}

fn frames(folder: &Folder, clip: &str) -> Vec<RgbaImage> {
    let png = PngDecoder::new(Cursor::new(folder.read(clip))).unwrap().apng().unwrap();
    let frames = png.into_frames().collect_frames().unwrap();
    frames.into_iter().map(image::Frame::into_buffer).collect()
}

#[test]
fn a_clip_beyond_the_motion_modules_is_made_in_windows_and_replays() {
    let folder = Folder::new();
    make(&folder, &["--frames=70", "-o", "long.png"]);
    assert_eq!(frames(&folder, "long.png").len(), 70);
    let request = inside(&folder, "long.png");
    let windows = json!({
        "length": 16, "overlap": 4, "stride": 1, "schedule": "uniform", "fuse": "pyramid"
    });
    assert_eq!(request["windows"], windows);
    let shown = folder.run(&["inspect", "long.png"]).ok();
    assert!(shown.stdout().contains("16 frames, overlap 4, stride 1, uniform, pyramid"));
    folder.run(&["replay", "long.png"]).ok();
    assert!(folder.read("long.png") == folder.read("long-replay.png"), "it was not made again");
}

#[test]
fn flags_say_which_windows_and_which_noise_and_go_over_a_request() {
    let folder = Folder::new();
    make(&folder, &["--frames=40", "-o", "plain.png"]);
    // As before: the motion modules know as many, and nothing is said of windows.
    let plain = inside(&folder, "plain.png");
    assert_eq!((&plain["windows"], &plain["sampling"]["noise"]), (&Value::Null, &Value::Null));
    let flags = [
        "--context-length=12",
        "--context-overlap=5",
        "--context-stride=2",
        "--context-schedule=looped_uniform",
        "--context-fuse=overlap-linear",
        "--noise=free-noise",
    ];
    make(&folder, &[&["--frames=40", "-o", "a.png"][..], &flags].concat());
    let request = inside(&folder, "a.png");
    let windows = json!({
        "length": 12, "overlap": 5, "stride": 2, "schedule": "uniform-looped",
        "fuse": "overlap-linear"
    });
    assert_eq!(request["windows"], windows);
    assert_eq!(request["sampling"]["noise"], json!("free-noise"));
    assert!(frames(&folder, "a.png") != frames(&folder, "plain.png"));
    folder.run(&["replay", "a.png"]).ok();
    assert!(folder.read("a.png") == folder.read("a-replay.png"), "it was not made again");
    let again =
        ["generate", "--request=a.png", "--trust-paths", "--context-fuse=flat", "-o", "b.png"];
    folder.run(&again).ok();
    let other = inside(&folder, "b.png");
    assert_eq!(other["windows"]["fuse"], json!("flat"));
    assert_eq!(other["windows"]["overlap"], json!(5));
    assert!(frames(&folder, "a.png") != frames(&folder, "b.png"));
}

#[test]
fn one_window_makes_the_same_file_and_is_warned_of() {
    let folder = Folder::new();
    make(&folder, &["--frames=8", "--no-metadata", "-o", "none.png"]);
    make(&folder, &["--frames=8", "--no-metadata", "--context-length=16", "-o", "one.png"]);
    assert!(folder.read("none.png") == folder.read("one.png"));
    let args =
        ["generate", "a ring", "--frames=8", "--steps=1", "--context-length=16", "-o", "a.gif"];
    let said = folder.run(&args).ok().stderr;
    assert!(said.contains("context-length: all 8 frames are in one window of 16"), "{said}");
}

#[test]
fn a_closed_loop_replays_and_a_schedule_that_cannot_close_is_refused() {
    let folder = Folder::new();
    make(&folder, &["--frames=12", "--loop=closed", "-o", "a.png"]);
    let request = inside(&folder, "a.png");
    assert_eq!(request["output"]["loop"], json!("closed"));
    assert_eq!(request["windows"]["schedule"], json!("uniform-looped"));
    assert_eq!(frames(&folder, "a.png").len(), 12);
    folder.run(&["replay", "a.png"]).ok();
    assert!(folder.read("a.png") == folder.read("a-replay.png"), "it was not made again");
    let args = ["generate", "a ring", "--loop=closed", "--context-schedule=static", "-o", "b.gif"];
    let refused = folder.run(&args);
    assert!(refused.fails(2).contains("loop: `closed` takes the schedule `uniform-looped`"));
}

#[test]
fn a_pingpong_goes_back_without_doubled_ends() {
    let folder = Folder::new();
    make(&folder, &["--frames=5", "-o", "once.png"]);
    make(&folder, &["--frames=5", "--loop=pingpong", "-o", "both.png"]);
    let (once, both) = (frames(&folder, "once.png"), frames(&folder, "both.png"));
    assert_eq!(both[..5], once);
    assert_eq!(both[5..], [once[3].clone(), once[2].clone(), once[1].clone()]);
    let request = inside(&folder, "both.png");
    assert_eq!(request["size"]["frames"], json!(5));
    assert_eq!(request["output"]["loop"], json!("pingpong"));
    assert_eq!(request["windows"], Value::Null);
    folder.run(&["replay", "both.png"]).ok();
    assert!(folder.read("both.png") == folder.read("both-replay.png"), "it was not made again");
    // Enlarged too, in every format; the result counts the frames of the file.
    let args = ["generate", "a ring", "--frames=3", "--steps=1", "--loop=pingpong", "--zoom=2"];
    let done = folder.run(&[&args[..], &["-o", "a.gif", "--json"]].concat()).ok().json();
    assert_eq!((&done["frames"], &done["width"]), (&json!(4), &json!(128)));
    // There is nothing between two frames.
    make(&folder, &["--frames=2", "--loop=pingpong", "-o", "two.png"]);
    assert_eq!(frames(&folder, "two.png").len(), 2);
}
