//! Options for quality, from flags to the clip and back.

use serde_json::{Value, json};

use crate::support::program::Folder;

const FLAGS: [&str; 8] = [
    "--cfg-scale=1.5",
    "--guidance-rescale=0.7",
    "--dynamic-thresholding=ratio=0.9,max=3",
    "--freeu=b1=1.2,b2=1.4",
    "--free-init=iterations=2,filter=gaussian,fast",
    "--pag-scale=2",
    "--pag-adaptive-scale=0.001",
    "--pag-layers=mid",
];

fn make(folder: &Folder, more: &[&str]) {
    let args = ["generate", "a green ring moving right", "-W=32", "-H=32", "--steps=2", "--seed=5"];
    folder.run(&[&args[..], &["--frames=4"], more].concat()).ok();
}

fn inside(folder: &Folder, clip: &str) -> Value {
    folder.run(&["inspect", "--json", clip]).ok().json()
}

#[test]
fn options_for_quality_are_in_the_clip_which_replays() {
    let folder = Folder::new();
    make(&folder, &["-o", "plain.png"]);
    assert_eq!(inside(&folder, "plain.png")["quality"], Value::Null);
    make(&folder, &[&FLAGS[..], &["-o", "a.png"]].concat());
    let quality = inside(&folder, "a.png")["quality"].clone();
    let want = json!({
        "guidance_rescale": 0.7,
        "dynamic_thresholding": {"ratio": 0.9, "max": 3.0},
        "freeu": {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2},
        "free_init": {
            "iterations": 2, "filter": "gaussian", "order": 4, "spatial": 0.25, "temporal": 0.25,
            "fast": true
        },
        "pag": {"scale": 2.0, "adaptive_scale": 0.001, "layers": ["mid"]}
    });
    assert_eq!(quality, want);
    let shown = folder.run(&["inspect", "a.png"]).ok();
    for part in [
        "guidance rescaled by 0.7, dynamic thresholding at 0.9 up to 3, FreeU b1 1.2",
        "FreeInit 2 times, gaussian",
        "perturbed attention 2, adaptive 0.001, in mid",
    ] {
        assert!(shown.stdout().contains(part), "{part}: {}", shown.stdout());
    }
    folder.run(&["replay", "a.png"]).ok();
    assert!(folder.read("a.png") == folder.read("a-replay.png"), "it was not made again");
}

#[test]
fn a_second_pass_and_tiles_are_in_the_clip_which_has_the_larger_size() {
    let folder = Folder::new();
    let flags = ["--hires=1.5,strength=0.5,upscale=pixels", "--vae-tiling=size=32", "-o", "a.png"];
    make(&folder, &flags);
    let request = inside(&folder, "a.png");
    let want = json!({
        "vae_tiling": {"size": 32, "overlap": 0.25},
        "hires": {"scale": 1.5, "strength": 0.5, "upscale": "pixels"}
    });
    assert_eq!(request["quality"], want);
    assert_eq!(request["size"], json!({"width": 32, "height": 32, "frames": 4}));
    assert_eq!(image::load_from_memory(&folder.read("a.png")).unwrap().width(), 48);
    folder.run(&["replay", "a.png"]).ok();
    assert!(folder.read("a.png") == folder.read("a-replay.png"), "it was not made again");
    // Without a value the size is the model's.
    make(&folder, &["--vae-tiling", "-o", "b.png"]);
    assert!(inside(&folder, "b.png")["quality"]["vae_tiling"]["size"].is_u64());
}

#[test]
fn flags_turn_options_of_a_request_off() {
    let folder = Folder::new();
    make(&folder, &["-o", "plain.png", "--cfg-scale=1.5", "--no-metadata"]);
    make(&folder, &[&FLAGS[..], &["-o", "a.png"]].concat());
    let off = [
        "generate",
        "--request=a.png",
        "--trust-paths",
        "--guidance-rescale=0",
        "--dynamic-thresholding=none",
        "--freeu=none",
        "--free-init=none",
        "--pag-scale=0",
    ];
    folder.run(&[&off[..], &["-o", "b.png", "--no-metadata"]].concat()).ok();
    assert!(folder.read("b.png") == folder.read("plain.png"), "something is left on");
}

#[test]
fn mistyped_options_for_quality_are_refused() {
    let folder = Folder::new();
    for (flag, part) in [
        ("--guidance-rescale=2", "guidance-rescale: must be between 0 and 1"),
        ("--dynamic-thresholding=ratio=2", "dynamic-thresholding: must be between 0 and 1"),
        ("--freeu=b1=x", "`b1=x` is not a number"),
        ("--free-init=filter=cone", "`filter=cone` is not one of"),
        ("--free-init=0", "free-init: must be at least 1"),
        ("--hires=0.5", "hires: must be between 1 and 8"),
        ("--hires=2,strength=0.1", "strength: 0.1 of 4 steps is less than one step"),
        ("--vae-tiling=size=21", "vae-tiling: `size` must be a multiple of"),
        ("--vae-tiling=size=32,overlap=0.3", "is not a whole number of latents"),
        ("--pag-layers=mid", "pag-layers: there is no perturbed-attention guidance"),
    ] {
        let failed = folder.run(&["generate", "a ring", flag, "-o", "a.gif"]);
        assert!(failed.fails(2).contains(part), "{flag}: {}", failed.stderr);
    }
    let args = ["generate", "a ring", "--pag-scale=1", "--pag-layers=lowest", "-o", "a.gif"];
    let failed = folder.run(&args);
    assert!(failed.fails(2).contains("`lowest` is in the name of no self-attention"));
}
