//! The program with the tiny model and its adapters.

use crate::support::golden;
use crate::support::ip_adapter::{ENCODER, Images, weights_of};
use crate::support::program::{Folder, Outcome};

fn generate(folder: &Folder, output: &str, adapters: &[&str]) -> Outcome {
    let model = golden::path("tiny/model");
    let mut args = vec!["generate", "a corgi", "--model", model.to_str().unwrap(), "-s", "7"];
    args.extend(["--frames", "6", "-W", "64", "-H", "32", "--steps", "1", "-o", output]);
    for adapter in adapters {
        args.extend(["--ip-adapter", adapter]);
    }
    folder.run(&args)
}

/// A folder with `a.png`, `b.png` and `mask0.png`.
fn folder() -> Folder {
    let (folder, images) = (Folder::new(), Images::new());
    for name in ["a.png", "b.png", "mask0.png"] {
        folder.write(name, std::fs::read(images.path(name)).unwrap());
    }
    folder
}

fn flag(text: &str) -> String {
    format!("{text},model={}", golden::path(&weights_of("plus")).display())
}

#[test]
fn a_clip_with_images_is_made_again_from_its_own_metadata() {
    let folder = folder();
    let adapter = flag("a.png,mask=mask0.png,scale=0:1.0,5:0.5,end=1");
    generate(&folder, "c.png", &[&adapter, &flag("b.png,scale=0.3,name=hat")]).ok();
    generate(&folder, "plain.png", &[]).ok();
    assert_ne!(folder.read("c.png"), folder.read("plain.png"));
    let about = folder.run(&["inspect", "c.png", "--json"]).ok().json();
    let stored = &about["ip_adapters"];
    assert_eq!(stored[0]["scale"], "0:1,5:0.5");
    assert_eq!(stored[1]["name"], "hat");
    for record in [&stored[0]["images"][0], &stored[0]["masks"][0], &stored[1]["images"][0]] {
        assert_eq!(record["sha256"].as_str().map(str::len), Some(64), "{record}");
    }
    assert!(about["weights"].to_string().contains("ip-adapter-plus.safetensors"), "{about}");
    assert!(folder.run(&["inspect", "c.png"]).ok().stdout().contains("b.png by"));
    folder.run(&["replay", "c.png"]).ok();
    assert_eq!(folder.read("c-replay.png"), folder.read("c.png"));

    // Another image in its place, or another mask.
    for name in ["b.png", "mask0.png"] {
        let before = folder.read(name);
        folder.write(name, folder.read("a.png"));
        let outcome = folder.run(&["replay", "c.png", "-y"]);
        let message = outcome.fails(5);
        assert!(message.contains("sha256") && message.contains(name), "{message}");
        folder.write(name, before);
    }
}

#[test]
fn the_same_adapters_stand_in_a_request_file() {
    let folder = folder();
    let model = golden::path("tiny/model");
    let model = model.to_str().unwrap();
    let encoder = golden::path("tiny/extras/image_encoder");
    let encoder = encoder.to_str().unwrap();
    let adapter = flag("a.png,image=b.png,scale=0.5,end=0.9");
    let dump = ["generate", "x", "--model", model, "--ip-adapter", &adapter, "--image-encoder"];
    let dump = folder.run(&[&dump[..], &[encoder, "--dump-request"]].concat()).ok().json();
    let stored = &dump["ip_adapters"][0];
    assert_eq!(stored["images"][1]["file"], "b.png");
    assert_eq!((&stored["scale"], &stored["end"]), (&0.5.into(), &0.9.into()));
    assert_eq!(dump["models"]["image_encoder"], encoder);
    folder.write("job.json", dump.to_string());
    let again = folder.run(&["generate", "--request", "job.json", "--dump-request"]).ok();
    assert_eq!(again.json(), dump);
    let args = ["generate", "--request", "job.json", "-W", "64", "-H", "32", "--frames", "6"];
    folder.run(&[&args[..], &["--steps", "1", "-o", "d.gif"]].concat()).ok();
}

#[test]
fn mistakes_are_told_in_one_line() {
    let folder = folder();
    let fails = |adapter: &str, code| {
        let outcome = generate(&folder, "c.png", &[adapter]);
        outcome.fails(code).to_owned()
    };
    assert!(fails("a.png", 2).contains("has no model"));
    assert!(fails("a.png,model=nowhere.safetensors", 3).contains("nowhere"));
    assert!(fails(&flag("nowhere.png"), 2).contains("nowhere.png"));
    assert!(fails(&flag("a.png,per-frame"), 2).contains("1 images for 6 frames"));
    assert!(fails(&flag("a.png,scale=nan"), 2).contains("scale"));
    let text = folder.run(&["generate", "--help"]).ok();
    assert!(text.stdout().contains("--ip-adapter <IMAGE,model=FILE,...>"), "{}", text.stdout());
    let mut names = folder.names();
    names.retain(|name| name != "no-models");
    assert_eq!(names, ["a.png", "b.png", "mask0.png"]);
}

#[test]
fn inspect_names_adapters_and_their_encoder() {
    let folder = Folder::new();
    let about = |file: &str| {
        let path = golden::path(file);
        let json = folder.run(&["inspect", path.to_str().unwrap(), "--json"]).ok().json();
        assert_eq!(json["supported"], true, "{json}");
        json["kind"].as_str().unwrap().to_owned()
    };
    let base = "an IP-Adapter (4 tokens) for embeddings of 10 channels";
    assert_eq!(about(&weights_of("base")), base);
    assert_eq!(about("ip_adapter/base.bin"), base);
    let plus = "an IP-Adapter (plus, 5 tokens) for states of 14 channels";
    assert_eq!(about(&weights_of("plus")), plus);
    assert_eq!(about(&weights_of("full")), "an IP-Adapter (full) for states of 14 channels");
    assert_eq!(about(ENCODER), "a CLIP image encoder");
    let path = golden::path("tiny/extras/image_encoder");
    let outcome = folder.run(&["inspect", path.to_str().unwrap()]).ok();
    assert!(outcome.stdout().contains("a CLIP image encoder"), "{}", outcome.stdout());
}
