//! Clips of AnimateLCM-I2V: what they say of their image, replay, requests, inspect, and what is refused.

use crate::support::control::save;
use crate::support::i2v::tensors;
use crate::support::program::{Folder, Outcome};
use crate::support::tiny_folder::tiny;

/// A folder with the tiny model, AnimateLCM-I2V's file and an image.
fn folder() -> Folder {
    let folder = Folder::new();
    tiny(&folder);
    save(&tensors(), &folder.path("i2v.safetensors"));
    let shade = |x: u32, y: u32| image::Rgb([(x * 4) as u8, (y * 5) as u8, 90]);
    animatelcm::RgbImage::from_fn(50, 40, shade).save(folder.path("cat.png")).unwrap();
    folder
}

/// A clip that is quickly made; its source comes after.
fn run(folder: &Folder, more: &[&str]) -> Outcome {
    let quick =
        ["generate", "a cat", "--model", "model", "--motion", "i2v.safetensors", "--seed=1"];
    let small = ["--width=64", "--height=32", "--frames=4", "--steps=2", "-y", "-q"];
    folder.run(&[&quick[..], &small, more].concat())
}

#[test]
fn a_clip_of_an_image_says_so_and_replays() {
    let folder = folder();
    run(&folder, &["--image=cat.png", "-o", "a.gif"]).ok();
    let job = folder.run(&["inspect", "--json", "a.gif"]).ok().json();
    let source = &job["source"];
    assert_eq!((&source["image"], &source["fit"]), (&"cat.png".into(), &"cover".into()));
    assert_eq!((&source["motion_scale"], &source["color_match"]), (&0.8.into(), &true.into()));
    assert!(source.get("strength").is_none() && source.get("insertion_weights").is_none());
    let (beta_end, steps) =
        (&job["schedule"]["beta_end"], &job["sampling"]["original_inference_steps"]);
    assert_eq!((beta_end, steps), (&0.014.into(), &200.into()));
    let shown = folder.run(&["inspect", "a.gif"]).ok();
    let said = "cat.png, fit cover, motion scale 0.8, colours matched";
    assert!(shown.stdout().contains(said), "{}", shown.stdout());
    assert!(!shown.stdout().contains("Denoising strength"), "{}", shown.stdout());
    folder.run(&["replay", "a.gif", "-o", "b.gif", "-q"]).ok();
    assert!(folder.read("a.gif") == folder.read("b.gif"));
}

#[test]
fn a_dumped_request_makes_the_same_clip_and_every_flag_counts() {
    let folder = folder();
    let more = ["--image=cat.png", "--insertion-weights=1,0.5,-1,0", "--ref-drift=0.3"];
    let dumped = run(&folder, &[&more[..], &["--dump-request"]].concat()).ok();
    folder.write("r.json", &dumped.bytes);
    run(&folder, &[&more[..], &["-o", "a.gif"]].concat()).ok();
    let job = folder.run(&["inspect", "--json", "a.gif"]).ok().json();
    let source = &job["source"];
    assert_eq!(source["insertion_weights"].to_string(), "[1.0,0.5,-1.0,0.0]");
    assert_eq!(source["motion_scale"], 0.3);
    let read = ["generate", "--request", "r.json", "-y", "-q"];
    folder.run(&[&read[..], &["-o", "b.gif"]].concat()).ok();
    assert!(folder.read("a.gif") == folder.read("b.gif"));
    // Another image in its place; the rest stays.
    std::fs::copy(folder.path("cat.png"), folder.path("dog.png")).unwrap();
    folder.run(&[&read[..], &["--image=dog.png", "-o", "d.gif"]].concat()).ok();
    let job = folder.run(&["inspect", "--json", "d.gif"]).ok().json();
    let source = &job["source"];
    assert_eq!((&source["image"], &source["motion_scale"]), (&"dog.png".into(), &0.3.into()));
    for flag in [
        "--motion-scale=0",
        "--insertion-weights=1,1,1,1",
        "--color-match=off",
        "--fit=stretch",
        "--strength=0.5",
    ] {
        folder.run(&[&read[..], &[flag, "-o", "c.gif"]].concat()).ok();
        assert!(folder.read("a.gif") != folder.read("c.gif"), "{flag}");
    }
}

#[test]
fn the_file_says_what_it_is_and_what_it_needs() {
    let folder = folder();
    let shown = folder.run(&["inspect", "i2v.safetensors"]).ok();
    assert!(
        shown.stdout().contains("for image to video, with their image encoder (AnimateLCM-I2V)")
    );
    assert!(shown.stdout().contains("i2v encoder 36"), "{}", shown.stdout());
    let none = run(&folder, &["-o", "a.gif"]);
    assert!(none.fails(2).contains("image: is missing"), "{}", none.stderr);
    assert!(none.hint().contains("--image FILE"), "{}", none.stderr);
    let three = run(&folder, &["--image=cat.png", "--insertion-weights=1,1,1", "-o", "a.gif"]);
    assert!(three.fails(2).contains("3 given for 4 down blocks"), "{}", three.stderr);
    let plain = ["generate", "a ring", "--image=cat.png", "--motion-scale=1", "-o", "a.gif"];
    let plain = folder.run(&plain);
    assert!(plain.fails(2).contains("motion-scale: the motion modules have no image encoder"));
    assert!(!folder.path("a.gif").exists());
}
