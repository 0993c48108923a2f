//! Prompts for single frames, as they are typed, kept and made again.

use std::io::Cursor;

use image::AnimationDecoder;
use image::RgbaImage;
use image::codecs::png::PngDecoder;
use serde_json::{Value, json};

use crate::support::program::Folder;

/// A small clip of the model inside the program.
fn make(folder: &Folder, more: &[&str]) {
    let args = ["generate", "-W=32", "-H=32", "--frames=8", "--steps=2", "--seed=5", "-y"];
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

/// How much redder than blue a frame is, in 8-bit levels of its most coloured pixels.
fn redness(frame: &RgbaImage) -> f64 {
    let mut levels: Vec<f64> =
        frame.pixels().map(|pixel| f64::from(pixel.0[0]) - f64::from(pixel.0[2])).collect();
    levels.sort_by(|a, b| b.abs().total_cmp(&a.abs()));
    let most = &levels[..levels.len() / 20];
    most.iter().sum::<f64>() / most.len() as f64
}

#[test]
fn a_red_circle_becomes_a_blue_one_within_four_frames_of_the_key() {
    let folder = Folder::new();
    let keys = "0: a red circle standing still on a white background; \
                6: a red circle standing still on a white background; \
                10: a blue circle standing still on a white background";
    for seed in ["--seed=3", "--seed=4"] {
        folder.run(&["generate", "--travel", keys, seed, "-y", "-o", "clip.png"]).ok();
        let colors: Vec<f64> = frames(&folder, "clip.png").iter().map(redness).collect();
        assert_eq!(colors.len(), 16);
        assert!(colors[..=4].iter().all(|red| *red > 60.0), "{colors:?}");
        assert!(colors[14..].iter().all(|red| *red < -60.0), "{colors:?}");
    }
}

#[test]
fn every_spelling_makes_the_same_frames_and_replays() {
    let folder = Folder::new();
    let (a, b) = ("a red circle on a grey background", "a blue star on a grey background");
    let keys = format!("0: {a}; 4: {b}");
    make(&folder, &["--travel", &keys, "-o", "a.png"]);
    let want = frames(&folder, "a.png");
    let map = json!({"0": a, "4": b});
    let job = inside(&folder, "a.png");
    assert_eq!(job["prompt"]["travel"], map);
    assert_eq!(job["prompt"]["interpolation"], Value::Null);
    folder.write("map.json", map.to_string());
    folder.write("lines.txt", format!("0: {a}\n4: {b}\n"));
    let file = json!({"prompt_map": {"4": "a blue star", "0": "a red circle"},
                      "tail_prompt": "on a grey background", "steps": 25});
    folder.write("cli.json", file.to_string());
    let (map, lines) = (map.to_string(), format!("0: {a}\n4: {b}"));
    for args in [
        &["--travel", map.as_str()][..],
        &["--travel=map.json"],
        &["--prompt-map=lines.txt"],
        &[lines.as_str()],
    ] {
        make(&folder, &[args, &["-o", "b.png"]].concat());
        assert!(frames(&folder, "b.png") == want, "{args:?}");
    }
    make(&folder, &["--travel=cli.json", "-o", "b.png"]);
    assert_eq!(
        inside(&folder, "b.png")["prompt"]["travel"]["4"],
        "a blue star, on a grey background"
    );
    make(&folder, &["--travel", &keys, "--travel-interpolation=slerp", "-o", "c.png"]);
    assert_eq!(inside(&folder, "c.png")["prompt"]["interpolation"], "spherical");
    assert!(frames(&folder, "c.png") != want);
    for clip in ["a.png", "c.png"] {
        folder.run(&["replay", clip, "-o", "again.png", "-y"]).ok();
        assert!(folder.read(clip) == folder.read("again.png"), "{clip} was not made again");
    }
}

#[test]
fn the_clip_tells_its_keys_to_people_and_to_other_programs() {
    let folder = Folder::new();
    make(&folder, &["a circle", "--travel", "0: red; 4: blue", "-o", "a.png"]);
    let shown = folder.run(&["inspect", "a.png"]).ok();
    let shown = shown.stdout();
    for part in ["0: red\n", "4: blue\n", "\na circle\n0: red\n4: blue\nSteps: 2"] {
        assert!(shown.contains(part), "{part:?}: {shown}");
    }
    // As another program's text it means the same.
    let start = shown.find("\na circle\n0: red").unwrap();
    folder.write("text.txt", shown[start..].trim());
    let args = ["generate", "--request=text.txt", "--rng=cpu", "--frames=8"];
    folder.run(&[&args[..], &["-o", "b.png"]].concat()).ok();
    assert!(frames(&folder, "a.png") == frames(&folder, "b.png"));
}

#[test]
fn requests_have_keys_and_flags_go_over_them() {
    let folder = Folder::new();
    let request = json!({"schema": "animatelcm/v1", "size": {"frames": 8},
        "prompt": {"text": "a circle", "travel": {"10": "x", "2": "blue", "0": "red"}}});
    folder.write("r.json", request.to_string());
    let dumped = |args: &[&str]| {
        let all = [&["generate", "--request=r.json", "--dump-request"][..], args].concat();
        folder.run(&all).ok().json()["prompt"].clone()
    };
    let same = dumped(&[]);
    assert_eq!(same["travel"], json!({"0": "red", "2": "blue", "10": "x"}));
    assert_eq!(dumped(&["--travel", "0: a; 3: b"])["travel"], json!({"0": "a", "3": "b"}));
    // A prompt that is typed is the only one.
    let typed = dumped(&["a star"]);
    assert_eq!((&typed["text"], &typed["travel"]), (&json!("a star"), &Value::Null));
    let fails = folder.run(&["generate", "--request=r.json", "-o", "a.gif"]);
    assert_eq!(fails.fails(2), "error: travel: frame 10 is beyond the clip of 8 frames");
    let doubled = request.to_string().replace("\"10\"", "\"0\"");
    folder.write("r.json", doubled);
    let again = ["generate", "--request=r.json", "-o", "a.gif"];
    assert!(folder.run(&again).fails(2).contains("frame 0 has two prompts"));
}

#[test]
fn what_is_wrong_with_keys_ends_before_any_work() {
    let folder = Folder::new();
    folder.write("bytes.bin", b"\xff\xfe");
    folder.write("bad.txt", "0: a\n0: b");
    for (travel, part) in [
        ("0: a; 16: b", "travel: frame 16 is beyond the clip of 16 frames"),
        ("0: a; 0: b", "travel: frame 0 has two prompts"),
        ("4: a; 0: b", "travel: frame 0 comes after frame 4"),
        ("0: a; -4: b", "travel: `-4` is not the number of a frame"),
        ("nowhere.txt", "travel: `nowhere.txt` does not begin with a frame"),
        ("bytes.bin", "travel: bytes.bin: is not UTF-8 text"),
        ("bad.txt", "travel: bad.txt: frame 0 has two prompts"),
        ("{\"0\": 1}", "travel: is not a map from frames to prompts"),
        ("0: (a:1.2.3)", "travel: `1.2.3` is not a weight"),
    ] {
        let outcome = folder.run(&["generate", "--travel", travel, "-o", "a.gif"]);
        assert!(outcome.fails(2).contains(part), "{travel}: {}", outcome.stderr);
    }
    let twice = folder.run(&["generate", "0: a\n8: b", "--travel", "0: c", "-o", "a.gif"]);
    assert!(twice.fails(2).contains("the prompt has lines for frames"));
    let wrong = folder.run(&["generate", "x", "--travel-interpolation=cubic", "-o", "a.gif"]);
    assert!(wrong.fails(2).contains("none of `linear`, `spherical`"), "{}", wrong.stderr);
}

#[test]
fn edited_prompts_replay_and_keep_what_was_typed() {
    let folder = Folder::new();
    let prompt = "a [red:blue:1] circle on a [black|white] background";
    let outcome =
        folder.run(&["generate", prompt, "--frames=2", "--steps=2", "--seed=5", "-o", "a.png"]);
    assert!(!outcome.stderr.contains("warning"), "{}", outcome.stderr);
    assert_eq!(inside(&folder, "a.png")["prompt"]["text"], prompt);
    folder.run(&["replay", "a.png", "-o", "b.png"]).ok();
    assert!(folder.read("a.png") == folder.read("b.png"));
}
