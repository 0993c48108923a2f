//! `preprocess`, and `--control NAME=HINT,model=FILE,preprocess`.

use std::fs;

use crate::support::golden;
use crate::support::program::Folder;

/// A clip of four frames that move.
fn moving(folder: &Folder, name: &str) {
    let clip = ["generate", "a green ring", "--steps=1", "--seed=5", "--frames=4", "-q"];
    folder.run(&[&clip[..], &["--no-metadata", "-o", name]].concat()).ok();
}

fn pixels(folder: &Folder, name: &str) -> image::RgbImage {
    image::open(folder.path(name)).unwrap().to_rgb8()
}

#[test]
fn every_input_becomes_every_output_frame_by_frame() {
    let folder = Folder::new();
    fs::create_dir(folder.path("in")).unwrap();
    moving(&folder, "in/%03d.png");
    for name in ["v.gif", "v.webp", "v.png", "v.mp4", "v.y4m"] {
        moving(&folder, name);
    }
    folder.run(&["preprocess", "canny", "in", "-o", "want_%03d.png"]).ok();
    let frames: Vec<_> = (0..4).map(|i| pixels(&folder, &format!("want_{i:03}.png"))).collect();
    let is_edge = |pixel: &image::Rgb<u8>| pixel.0 == [255; 3];
    assert!(frames.iter().all(|frame| frame.pixels().any(is_edge)));
    assert!(frames.iter().all(|frame| frame.pixels().all(|p| is_edge(p) || p.0 == [0; 3])));
    for input in ["v.webp", "v.png"] {
        folder.run(&["preprocess", "canny", input, "-o", "got_%03d.png", "-y"]).ok();
        for (i, want) in frames.iter().enumerate() {
            assert!(pixels(&folder, &format!("got_{i:03}.png")) == *want, "{input}, frame {i}");
        }
    }
    for input in ["v.gif", "v.mp4", "v.y4m"] {
        for output in ["o.gif", "o.webp", "o.png", "o.mp4", "o.y4m"] {
            let told = folder
                .run(&["preprocess", "softedge", input, "-o", output, "-y", "--json"])
                .ok()
                .json();
            assert_eq!((&told["frames"], &told["width"]), (&4.into(), &64.into()), "{input}");
            assert_eq!(told["fps"], 8.0, "{input}");
            assert_eq!(told["preprocess"]["kind"], "softedge");
        }
    }
    // Some of the frames, in another size, at another rate.
    let some = ["--from=1", "--every=2", "-W", "32", "--fps=4", "--json", "-y"];
    let some = [&["preprocess", "gray", "v.png", "-o", "o.webp"][..], &some].concat();
    let told = folder.run(&some).ok().json();
    assert_eq!((&told["frames"], &told["height"]), (&2.into(), &32.into()));
    assert_eq!(told["fps"], 4.0);
    // One image becomes one, which other programs take for a still.
    let path = folder.run(&["preprocess", "invert", "in/000.png", "-o", "one.png"]).ok();
    assert_eq!(path.stdout(), "one.png\n");
    let (one, own) = (pixels(&folder, "one.png"), pixels(&folder, "in/000.png"));
    assert!(one.pixels().zip(own.pixels()).all(|(a, b)| a.0 == b.0.map(|value| 255 - value)));
    let y4m = folder.run(&["preprocess", "gray", "v.png", "-o", "-"]).ok();
    assert!(y4m.bytes.starts_with(b"YUV4MPEG2 "));
}

#[test]
fn what_cannot_be_made_is_one_line_of_error_and_leaves_nothing() {
    let folder = Folder::new();
    moving(&folder, "v.gif");
    let before = folder.names();
    let refused = |words: &[&str], part: &str, hint: &str| {
        let outcome = folder.run(&[&["preprocess"][..], words].concat());
        assert!(outcome.fails(2).contains(part), "{part}: {}", outcome.stderr);
        assert!(outcome.hint().contains(hint), "{hint}: {}", outcome.stderr);
        assert_eq!(folder.names(), before);
    };
    refused(&["midas", "v.gif", "-o", "a.gif"], "needs a network", "Depth Anything V2");
    refused(&["gray", "v.gif", "-o", "a.gif", "--device=cpu"], "`gray` needs no network", "");
    refused(&["gray", "v.gif", "-o", "a.gif", "--per-picture"], "no parameter `per-picture`", "");
    refused(&["openpose", "v.gif", "-o", "a.gif"], "finds people", "DWPose");
    refused(&["cany", "v.gif", "-o", "a.gif"], "none of `canny`", "did you mean `canny`?");
    refused(&["canny", "v.gif", "-o", "a.gif", "--sigma=2"], "no parameter `sigma`", "");
    refused(&["canny", "v.gif", "-o", "a.gif", "--low=300"], "above `high`", "");
    refused(&["canny", "v.gif", "-o", "a.jpg"], "none of the known endings", "");
    refused(&["canny", "v.gif", "-o", "v.gif"], "v.gif", "");
    refused(&["canny", "-", "-o", "a.gif"], "not read from standard input", "a file or a folder");
    refused(&["canny", "none.gif", "-o", "a.gif"], "input: none.gif", "");
    refused(&["canny", "v.gif", "-o", "a.gif", "--from=4"], "the frames 0 to 3", "");
    refused(&["canny", "v.gif", "-o", "a.gif", "-W", "9000"], "at most 8192", "-W 2048");
    refused(&["canny", "v.gif", "-o", "a.gif", "--fps=60"], "browsers play a gif", "");
    let avif = golden::path("media/picture.avif");
    refused(&["canny", avif.to_str().unwrap(), "-o", "a.gif"], "is an AVIF", "ffmpeg -i");
    fs::create_dir(folder.path("mixed")).unwrap();
    for (name, side) in [("1.png", 8), ("2.png", 9)] {
        image::RgbImage::new(side, 8).save(folder.path("mixed").join(name)).unwrap();
    }
    let mixed = folder.run(&["preprocess", "canny", "mixed", "-o", "a.gif"]);
    assert!(mixed.fails(2).contains("different sizes: 8x8 and 9x8"), "{}", mixed.stderr);
    folder.run(&["preprocess", "canny", "mixed", "-o", "a.gif", "-W", "8", "-H", "8"]).ok();
}

#[test]
fn a_hint_made_in_passing_is_that_of_the_command_and_replays() {
    let folder = Folder::new();
    let path = |name: &str| golden::path(&format!("pocket_adapters/{name}")).display().to_string();
    let net = path("controlnet");
    let model = format!("--model={}", path("model/base"));
    let motion = format!("--motion={}", path("model/motion_lcm.safetensors"));
    let lora = format!("--lcm-lora={}", path("model/animatelcm_lora.safetensors"));
    moving(&folder, "v.webp");
    folder.run(&["preprocess", "canny", "v.webp", "--low=40", "--high=90", "-o", "e.webp"]).ok();
    let clip = |control: &str, more: &[&str], name: &str| {
        let words = ["generate", "a red square", "--steps=1", "--seed=3", "--frames=4", "-q", "-y"];
        let control = format!("{control},model={net}");
        let with = [&model, &motion, &lora, "--control", &control, "-o", name];
        folder.run(&[&words[..], &with, more].concat()).ok();
        let job = folder.run(&["inspect", "--json", name]).ok().json();
        folder.run(&["preprocess", "gray", name, "-o", "frames.y4m", "-y"]).ok();
        (job["controls"][0].clone(), folder.read("frames.y4m"))
    };
    let (_, want) = clip("canny=e.webp", &[], "a.webp");
    let (control, got) = clip("canny=v.webp,preprocess,low=40,high=90", &[], "b.webp");
    assert!(got == want);
    let (_, other) = clip("canny=v.webp", &[], "c.webp");
    assert!(other != want);
    assert_eq!(control["preprocess"].to_string(), r#"{"high":90.0,"kind":"canny","low":40.0}"#);
    assert_eq!(control["sha256"].as_str().unwrap().len(), 64);
    let shown = folder.run(&["inspect", "b.webp"]).ok();
    assert!(shown.stdout().contains("canny (low 40, high 90)"), "{}", shown.stdout());
    folder.run(&["replay", "b.webp", "-o", "d.webp", "-q"]).ok();
    assert!(folder.read("b.webp") == folder.read("d.webp"));
    // Also of the video that the clip starts from.
    let source = ["--video=v.webp", "--strength=1"];
    let (_, shared) = clip("canny=video,preprocess,low=40,high=90", &source, "f.webp");
    let (_, own) = clip("canny=e.webp", &source, "g.webp");
    assert!(shared == own);
}

#[test]
fn depth_is_made_by_the_network_of_a_folder() {
    let folder = Folder::new();
    moving(&folder, "v.webp");
    let network = golden::path("depth_anything").display().to_string();
    let model = ["--depth-model", network.as_str()];
    let made = ["preprocess", "depth", "v.webp", "-W", "40", "-H", "32", "-o"];
    folder.run(&[&made[..], &["d.webp", "-q"], &model].concat()).ok();
    folder.run(&[&made[..], &["own_%03d.png", "--per-picture", "-q"], &model].concat()).ok();
    folder.run(&[&made[..], &["d_%03d.png", "-q"], &model].concat()).ok();
    let frames = |name: &str| -> Vec<_> {
        (0..4).map(|i| pixels(&folder, &format!("{name}_{i:03}.png"))).collect()
    };
    let range = |image: &image::RgbImage| {
        assert!(image.pixels().all(|p| p[0] == p[1] && p[1] == p[2]));
        let values = || image.pixels().map(|pixel| pixel[0]);
        (values().min().unwrap(), values().max().unwrap())
    };
    let own = frames("own");
    assert!(own.iter().all(|image| range(image) == (0, 255) && image.dimensions() == (40, 32)));
    let shared: Vec<_> = frames("d").iter().map(range).collect();
    assert!(shared.iter().any(|range| range.0 == 0) && shared.iter().any(|range| range.1 == 255));
    assert!(shared.iter().any(|range| *range != (0, 255)), "{shared:?}");
    // A picture alone has its own range either way.
    let one = ["preprocess", "depth", "own_000.png", "-o", "one.png", "-q"];
    folder.run(&[&one[..], &model].concat()).ok();
    assert_eq!(range(&pixels(&folder, "one.png")), (0, 255));

    // Without weights it says what to pull, without a configuration what is missing.
    let lost = folder.run(&[&made[..], &["e.webp", "--offline"]].concat());
    assert!(lost.stderr.contains("depth-anything-v2-small"), "{}", lost.stderr);
    assert!(lost.hint().contains("models pull depth-anything-v2-small"), "{}", lost.stderr);
    let weights = golden::path("depth_anything/model.safetensors");
    fs::copy(&weights, folder.path("bare.safetensors")).unwrap();
    let bare = [&made[..], &["e.webp", "--depth-model", "bare.safetensors"]].concat();
    let bare = folder.run(&bare);
    assert!(bare.stderr.contains("has no config.json beside it"), "{}", bare.stderr);
    let config = fs::read_to_string(golden::path("depth_anything/config.json")).unwrap();
    for (from, to, says) in [
        (r#""relative_to""#, "", ""),
        (r#""hidden_size": 12"#, r#""hidden_size": 15"#, "15"),
        (r#""model_type": "depth_anything""#, r#""model_type": "clip""#, "not `depth_anything`"),
        (r#""fusion_hidden_size""#, r#""depth_estimation_type": "metric", "x""#, "metric"),
        (r#""out_indices": [1, 2, 4, 5]"#, r#""out_indices": [1, 2, 4, 6]"#, "out_indices"),
    ] {
        folder.write("config.json", config.replace(from, to).as_bytes());
        let run = [&made[..], &["f.webp", "-y", "--depth-model", "bare.safetensors"]].concat();
        let run = folder.run(&run);
        match says {
            "" => drop(run.ok()),
            says => assert!(run.code != Some(0) && run.stderr.contains(says), "{}", run.stderr),
        }
    }

    // In passing, with any network of a tiny model.
    let path = |name: &str| golden::path(&format!("pocket_adapters/{name}")).display().to_string();
    let base = format!("--model={}", path("model/base"));
    let motion = format!("--motion={}", path("model/motion_lcm.safetensors"));
    let lora = format!("--lcm-lora={}", path("model/animatelcm_lora.safetensors"));
    let clip = |control: &str, name: &str| {
        let words = ["generate", "a red square", "--steps=1", "--seed=3", "--frames=4", "-y"];
        let control = format!("{control},model={}", path("controlnet"));
        let with = [&base, &motion, &lora, "--control", &control, "-o", name];
        let run = folder.run(&[&words[..], &with, &model].concat()).ok();
        let job = folder.run(&["inspect", "--json", name]).ok().json();
        folder.run(&["preprocess", "gray", name, "-o", "frames.y4m", "-y"]).ok();
        (job, folder.read("frames.y4m"), run.stderr)
    };
    let whole = ["preprocess", "depth", "v.webp", "-W", "64", "-H", "64", "-o", "w.webp", "-q"];
    folder.run(&[&whole[..], &model].concat()).ok();
    let (job, got, said) = clip("depth=v.webp,preprocess", "b.webp");
    assert!(said.contains("loading depth-anything"), "{said}");
    assert!(said.contains("estimated the depth of 4/4"), "{said}");
    assert_eq!(job["controls"][0]["preprocess"].to_string(), r#"{"kind":"depth"}"#);
    assert_eq!(job["models"]["depth_model"], network);
    let (plain, want, _) = clip("depth=w.webp", "c.webp");
    // Its hash is among those of the weights.
    let count = |job: &serde_json::Value| job["weights"].as_array().unwrap().len();
    assert_eq!(count(&job), count(&plain) + 1, "{job}");
    assert!(got == want);
    folder.run(&["replay", "b.webp", "-o", "r.webp", "-q"]).ok();
    assert!(folder.read("b.webp") == folder.read("r.webp"));
    let (_, other, _) = clip("depth=v.webp,preprocess,per-picture", "d2.webp");
    assert!(other != want);
}

#[test]
fn hints_that_cover_the_frame_are_preprocessed_too() {
    let folder = Folder::new();
    moving(&folder, "v.webp");
    let made = ["preprocess", "gray", "v.webp", "-W", "48", "-H", "32", "--fit=cover", "-o"];
    folder.run(&[&made[..], &["c_%03d.png"]].concat()).ok();
    let grey = pixels(&folder, "c_000.png");
    assert!(grey.pixels().all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
}
