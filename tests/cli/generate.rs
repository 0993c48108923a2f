//! Clips, events, exit codes.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Cursor;

use animatelcm::procedural::{Caption, Oracle};
use candle_core::{Device, Tensor};
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, DynamicImage, Frame, ImageDecoder};
use serde_json::{Value, json};

use crate::support::close::assert_close;
use crate::support::golden;
use crate::support::program::Folder;

/// A clip that takes no time.
const QUICK: [&str; 7] = ["generate", "a green ring", "--frames", "2", "--steps", "1", "--seed=5"];

fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUICK.iter().chain(more).copied().collect()
}

fn size(frame: &Frame) -> (u32, u32) {
    frame.buffer().dimensions()
}

fn gif(bytes: &[u8]) -> Vec<Frame> {
    GifDecoder::new(Cursor::new(bytes)).unwrap().into_frames().collect_frames().unwrap()
}

/// The words of a shell command that quotes with `"` only.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut is_quoted, mut word) = (Vec::new(), false, None::<String>);
    for c in line.chars() {
        match c {
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            ' ' if !is_quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn the_first_command_of_the_readme_makes_a_looping_gif() {
    let readme = include_str!("../../README.md");
    let line = readme.lines().find_map(|line| line.strip_prefix("cargo run --release -- "));
    let words = words(line.expect("the README has no command"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = *words.last().unwrap();
    assert_eq!(words[0], "generate");

    let folder = Folder::new();
    let done = folder.run(&words).ok();
    assert_eq!(done.stdout(), format!("{output}\n"));
    assert_eq!(folder.names(), [output]);
    let bytes = folder.read(output);
    let frames = gif(&bytes);
    assert_eq!(frames.len(), 16);
    assert!(frames.iter().all(|frame| size(frame) == (64, 64)));
    assert!(bytes.windows(16).any(|w| w == b"NETSCAPE2.0\x03\x01\0\0\0"), "it does not loop");
    let first = frames[0].buffer();
    assert!(frames.iter().any(|frame| frame.buffer() != first), "nothing moves");
    // The seed was not chosen, so it must be told.
    assert!(done.stderr.contains("seed "), "{}", done.stderr);
    // Whoever types no prompt is shown the same one.
    assert_eq!(folder.run(&["generate"]).hint(), format!("animatelcm generate \"{}\"", words[1]));
}

#[test]
fn the_first_command_shows_what_it_says() {
    let readme = include_str!("../../README.md");
    let line = readme.lines().find_map(|line| line.strip_prefix("cargo run --release -- "));
    let prompt = &words(line.unwrap())[1];
    let caption: Caption = prompt.parse().unwrap();
    let folder = Folder::new();
    let is_true = |seed: &u64| {
        let seed = format!("--seed={seed}");
        let done = folder.run(&["generate", prompt, &seed, "-y", "-o", "a.png"]).ok();
        assert!(!done.stderr.contains("warning: "), "{}", done.stderr);
        let png = PngDecoder::new(Cursor::new(folder.read("a.png"))).unwrap().apng().unwrap();
        let frames = png.into_frames().collect_frames().unwrap().into_iter();
        let frames: Vec<_> =
            frames.map(|frame| DynamicImage::from(frame.into_buffer()).into_rgb8()).collect();
        Oracle::default().observe(&frames).matches(&caption).all()
    };
    let shown = (1..=8).filter(is_true).count();
    assert!(shown >= 7, "{shown} of 8 clips show `{prompt}`");
}

#[test]
fn the_image_in_the_readme_says_what_made_it() {
    let path = golden::path("../../assets/readme.gif");
    let shown = Folder::new().run(&["inspect", "--json", path.to_str().unwrap()]).ok().json();
    let prompt = shown["prompt"]["text"].as_str().unwrap();
    let told = format!("generate \"{prompt}\" --seed {}", shown["sampling"]["seed"]);
    assert!(include_str!("../../README.md").contains(&told), "{told}");
    assert_eq!(shown["models"]["model"], Value::Null, "not the model inside the program");
}

/// The messages of the warnings among events.
fn warnings(events: &[Value]) -> Vec<String> {
    let warnings = events.iter().filter(|event| event["event"] == "warning");
    warnings.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_small_model_is_given_words_that_it_knows_and_says_which_it_does_not() {
    let folder = Folder::new();
    let make = |prompt: &str, name: &str, more: &[&str]| {
        let args = ["generate", prompt, "--frames=2", "--steps=1", "--seed=5", "-y", "-o", name];
        folder.run(&[&args[..], more].concat()).ok()
    };
    let (typed, known) =
        ("a Red ball rotating on a gray background", "a red circle spinning on a grey background");
    let said = make(typed, "a.png", &["--no-metadata"]).stderr;
    let read = "warning: prompt, for the small model inside the program: read `ball` as `circle`, \
                `rotating` as `spinning`, `gray` as `grey`\n";
    assert!(said.contains(read), "{said}");
    assert!(said.contains("hardly ever shows `spinning`"), "{said}");
    make(known, "b.png", &["--no-metadata"]);
    assert!(folder.read("a.png") == folder.read("b.png"), "it was told other words");
    // The clip keeps what was asked for.
    make(typed, "a.png", &[]);
    assert_eq!(folder.run(&["inspect", "--json", "a.png"]).ok().json()["prompt"]["text"], typed);

    let unknown = warnings(&make("a cat or a Sqare", "a.png", &["-q", "--progress=json"]).events());
    assert_eq!(unknown.len(), 1, "{unknown:?}");
    assert!(
        unknown[0].contains("unknown words: `cat`, `or`, `Sqare` (`square`?); "),
        "{unknown:?}"
    );
    assert!(
        unknown[0].contains("`a COLOR SHAPE MOTION on a BACKGROUND background`"),
        "{unknown:?}"
    );
    let (clear, other) = ("a green ring growing on a white background", golden::path("tiny/model"));
    let other = ["-q", "--progress=json", "--model", other.to_str().unwrap()];
    assert_eq!(warnings(&make(clear, "a.png", &other[..2]).events()), [""; 0]);
    assert_eq!(warnings(&make("a cat", "a.png", &other).events()), [""; 0]);
}

#[test]
fn settings_that_ruin_a_clip_or_do_nothing_are_warned_of_once_each() {
    let folder = Folder::new();
    let word = golden::path("text/embeddings/EasyStyle.safetensors");
    let photo = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 4, y as u8 * 4, 99]));
    photo.save(folder.path("photo.png")).unwrap();
    let drawn =
        image::RgbImage::from_fn(64, 64, |x, _| image::Rgb([if x % 21 == 0 { 255 } else { 0 }; 3]));
    drawn.save(folder.path("lines.png")).unwrap();
    let model = golden::path("tiny/model");
    let net = golden::path("tiny/extras/controlnet");
    let (model, word) = (model.to_str().unwrap(), word.to_str().unwrap());
    let control = |hint: &str| format!("canny={hint},model={}", net.display());
    let (photo, lines) = (control("photo.png"), control("lines.png"));
    let make = |more: &[&str]| {
        let args = ["generate", "a dog", "--model", model, "--frames=2", "--steps=1", "--seed=1"];
        let done = folder.run(&[&args[..], &["-y", "-o", "a.gif", "--json"], more].concat()).ok();
        let found = done.json()["warnings"].as_array().unwrap().clone();
        let found: Vec<String> = found.iter().map(|w| w.as_str().unwrap().to_owned()).collect();
        let lines = done.stderr.lines().filter_map(|line| line.strip_prefix("warning: "));
        assert_eq!(lines.collect::<Vec<_>>(), found);
        found
    };
    assert_eq!(make(&[]), [""; 0]);
    assert_eq!(make(&["--cfg-scale=2", "-n", "bad", "--control", &lines]), [""; 0]);
    for (more, part) in [
        (&["--cfg-scale=7.5"][..], "cfg-scale: 7.5 with the sampler lcm burns colours"),
        (&["-n", "bad"], "negative-prompt: has no effect with --cfg-scale 1"),
        (&["--tcd-gamma=0.5"], "tcd-gamma: has no effect with the sampler lcm"),
        (&["-W=128", "-H=128"], "size: 128x128 is far from the 32x32 of the model"),
        (&["--embedding", word], "embedding: "),
        (&["--dtype=f16"], "dtype: f16 is slower than f32 on a CPU"),
        (&["--control", &photo], "control: `canny`: photo.png looks like a photo"),
    ] {
        let found = make(more);
        assert_eq!(found.len(), 1, "{more:?}: {found:?}");
        assert!(found[0].starts_with(part), "{more:?}: {found:?}");
    }
    assert_eq!(make(&["--cfg-scale=7.5", "--sampler=euler"]), [""; 0]);
    let negative = ["--embedding", word, "--cfg-scale=1.5", "-n", "an easystyle dog"];
    assert_eq!(make(&negative), [""; 0]);
}

#[test]
fn quiet_keeps_warnings_in_json() {
    let folder = Folder::new();
    let warned = quick(&["-n", "grey", "-y", "-o", "a.gif", "-q"]);
    let silent = folder.run(&warned).ok();
    assert_eq!(silent.stderr, "");
    let done = folder.run(&[&warned[..], &["--json"]].concat()).ok();
    assert_eq!(done.stderr, "");
    assert_eq!(done.json()["warnings"].as_array().unwrap().len(), 1);
    let events = folder.run(&[&warned[..], &["--progress=json"]].concat()).ok().events();
    assert_eq!(warnings(&events).len(), 1);
    folder.write(
        "r.txt",
        "a red star\nSteps: 1, Sampler: LCM, Seed: 1, Size: 64x64, Hires upscale: 2",
    );
    let request = ["generate", "--request=r.txt", "--frames=2", "-o", "b.gif", "-q", "--json"];
    let done = folder.run(&request).ok().json();
    let imported = done["warnings"].as_array().unwrap();
    assert!(imported.iter().any(|w| w.as_str().unwrap().starts_with("r.txt: ")), "{imported:?}");
}

#[test]
fn zoom_enlarges_every_pixel_and_replays() {
    let folder = Folder::new();
    folder.run(&quick(&["-o", "small.png"])).ok();
    let done = folder.run(&quick(&["--zoom=3", "-o", "large.png", "--json"])).ok().json();
    assert_eq!((&done["width"], &done["height"]), (&json!(192), &json!(192)));
    let first = |name: &str| image::load_from_memory(&folder.read(name)).unwrap().into_rgb8();
    let (small, large) = (first("small.png"), first("large.png"));
    assert_eq!(large.dimensions(), (192, 192));
    assert!(large.enumerate_pixels().all(|(x, y, pixel)| pixel == small.get_pixel(x / 3, y / 3)));
    folder.run(&["replay", "large.png"]).ok();
    assert!(folder.read("large.png") == folder.read("large-replay.png"), "it was not made again");
    // A clip that is not enlarged says nothing of it, as before.
    let inside =
        |name: &str| folder.run(&["inspect", "--json", name]).ok().json()["output"].clone();
    assert_eq!(inside("small.png"), json!({"fps": 8.0}));
    assert_eq!(inside("large.png"), json!({"fps": 8.0, "zoom": 3}));
    let wrong = folder.run(&quick(&["--zoom=0", "-o", "a.gif"]));
    assert!(wrong.fails(2).contains("zoom: must be at least 1, got 0"), "{}", wrong.stderr);
    let wrong = folder.run(&quick(&["--zoom=64", "-W=256", "-o", "a.png"]));
    assert!(wrong.fails(2).contains("zoom: makes 16384x4096"), "{}", wrong.stderr);
    let wrong = folder.run(&quick(&["--zoom=64", "-o", "a.mp4"]));
    assert!(wrong.fails(2).contains("mp4 holds images of"), "{}", wrong.stderr);
}

#[test]
fn every_format_holds_the_clip() {
    let folder = Folder::new();
    let make = |name: &str| {
        assert_eq!(folder.run(&quick(&["-o", name])).ok().stdout(), format!("{name}\n"));
        folder.read(if name.contains('%') { "f_001.png" } else { name })
    };
    assert_eq!(gif(&make("a.gif")).len(), 2);

    let webp = WebPDecoder::new(Cursor::new(make("a.webp"))).unwrap();
    assert_eq!(webp.dimensions(), (64, 64));
    let webp = webp.into_frames().collect_frames().unwrap();
    assert_eq!(webp.len(), 2);

    let png = PngDecoder::new(Cursor::new(make("a.png"))).unwrap();
    assert!(png.is_apng().unwrap());
    let png = png.apng().unwrap().into_frames().collect_frames().unwrap();
    assert_eq!(png.len(), 2);

    let last = image::load_from_memory(&make("f_%03d.png")).unwrap().into_rgba8();
    assert_eq!(&last, png[1].buffer(), "both are exact");
    assert_eq!(webp[1].buffer(), png[1].buffer(), "both are exact");

    let mp4 = make("a.mp4");
    assert_eq!(&mp4[4..8], b"ftyp");
    assert!(mp4.windows(4).any(|w| w == b"avc1"));

    let y4m = make("a.y4m");
    assert!(y4m.starts_with(b"YUV4MPEG2 W64 H64 F8:1"));
    assert_eq!(y4m.windows(5).filter(|w| w == b"FRAME").count(), 2);
    assert_eq!(
        folder.names(),
        ["a.gif", "a.mp4", "a.png", "a.webp", "a.y4m", "f_000.png", "f_001.png"]
    );
}

#[test]
fn raw_video_goes_to_stdout_and_nothing_else_does() {
    let folder = Folder::new();
    folder.run(&quick(&["-o", "a.y4m"])).ok();
    let piped = folder.run(&quick(&["-o", "-"])).ok();
    assert!(piped.bytes == folder.read("a.y4m"), "the pipe and the file differ");
    assert_eq!(folder.names(), ["a.y4m"]);
    let both = folder.run(&quick(&["-o", "-", "--json"]));
    assert!(both.fails(2).contains("json"), "{}", both.stderr);
}

#[test]
fn without_a_name_the_clip_is_called_after_prompt_and_seed() {
    let folder = Folder::new();
    assert_eq!(folder.run(&quick(&[])).ok().stdout(), "a-green-ring-5.gif\n");
    assert_eq!(folder.names(), ["a-green-ring-5.gif"]);
}

#[test]
fn a_seed_gives_the_same_bytes_and_another_seed_others() {
    let folder = Folder::new();
    let make = |seed: &str, name: &str| {
        let args = ["generate", "-p", "a red star", "--frames=2", "--steps=2", "--seed", seed];
        folder.run(&[&args[..], &["-o", name, "--no-metadata"]].concat()).ok();
        folder.read(name)
    };
    let first = make("1", "a.png");
    assert!(first == make("1", "b.png"), "the same seed gave another clip");
    assert!(first != make("2", "c.png"), "another seed gave the same clip");
}

#[test]
fn json_describes_the_result() {
    let folder = Folder::new();
    let done = folder.run(&quick(&["-o", "a.gif", "--json", "-q", "--fps", "12.5"])).ok().json();
    for (key, value) in [
        ("event", json!("done")),
        ("path", json!("a.gif")),
        ("seed", json!(5)),
        ("width", json!(64)),
        ("height", json!(64)),
        ("frames", json!(2)),
        ("fps", json!(12.5)),
    ] {
        assert_eq!(done[key], value, "{key}");
    }
    assert!(done["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(done["step_seconds"].as_array().unwrap().len(), 1);
    let weights = done["weights"].as_array().unwrap();
    assert_eq!(weights.len(), 5, "unet, vae, text encoder, motion modules, LoRA");
    for weight in weights {
        assert_eq!(weight["sha256"].as_str().unwrap().len(), 64, "{weight}");
    }
}

/// The fields of each event, as `docs/programs.md` documents them.
fn schema() -> HashMap<&'static str, BTreeSet<&'static str>> {
    [
        ("start", "model width height frames steps sampler seed device dtype"),
        ("adapter", "report"),
        ("load", "part bytes"),
        ("report", "report"),
        ("source", "part frame frames"),
        ("caption", "prompt"),
        ("ready", ""),
        ("step", "step steps timestep seconds eta_seconds"),
        ("decode", "frame frames"),
        ("encode", "format"),
        ("warning", "message"),
        ("done", "path seed width height frames fps seconds step_seconds weights warnings"),
        ("error", "code message hint"),
    ]
    .map(|(event, fields)| (event, fields.split_whitespace().chain(["event"]).collect()))
    .into()
}

/// Checks every event against the schema and returns their kinds, in order and once each.
#[track_caller]
fn kinds(events: &[Value]) -> Vec<String> {
    let schema = schema();
    let mut kinds: Vec<String> = events
        .iter()
        .map(|event| {
            let kind = event["event"].as_str().unwrap();
            let fields: BTreeSet<&str> =
                event.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(Some(&fields), schema.get(kind), "{event}");
            kind.to_owned()
        })
        .collect();
    kinds.dedup();
    kinds
}

#[test]
fn progress_events_follow_one_schema() {
    let folder = Folder::new();
    let long = "blue ".repeat(100);
    let args = ["generate", &long, "--frames=3", "--steps=2", "--seed=1", "-o", "a.webp"];
    let more = ["--progress", "json", "--prompt-mode", "plain"];
    let done = folder.run(&[&args[..], &more].concat()).ok();
    assert_eq!(done.stdout(), "a.webp\n");
    let events = done.events();
    let found = kinds(&events);
    let shown: Vec<&str> = found
        .iter()
        .map(String::as_str)
        .filter(|kind| !["load", "report"].contains(kind))
        .collect();
    let order = ["adapter", "start", "warning", "ready", "step", "decode", "encode", "done"];
    assert_eq!(shown, order);
    let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).collect::<Vec<_>>();
    let parts: Vec<_> = of("load").iter().map(|e| e["part"].as_str().unwrap()).collect();
    assert_eq!(parts.iter().collect::<BTreeSet<_>>().len(), 3, "{parts:?}");
    assert_eq!(
        of("step").iter().map(|e| (&e["step"], &e["steps"])).collect::<Vec<_>>(),
        [(&json!(1), &json!(2)), (&json!(2), &json!(2))]
    );
    assert_eq!(of("step")[1]["eta_seconds"], 0.0);
    assert_eq!(of("decode").iter().map(|e| &e["frame"]).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(of("encode")[0]["format"], "webp");
    assert_eq!(of("done")[0]["path"], "a.webp");
}

#[test]
fn every_frame_of_a_source_is_an_event_once_it_is_encoded() {
    let folder = Folder::new();
    let video = ["generate", "a red ring", "--frames=18", "--steps=1", "--seed=1", "-q"];
    folder.run(&[&video[..], &["-o", "v.gif"]].concat()).ok();
    let again = ["generate", "x", "--video", "v.gif", "--steps=2", "--strength=0.5", "-y"];
    let events = [&again[..], &["--frames=18", "--progress=json", "-o", "a.gif"]].concat();
    let events = folder.run(&events).ok().events();
    let found = kinds(&events);
    let at = |kind: &str| found.iter().position(|found| found == kind).unwrap();
    assert!(at("source") < at("ready"), "{found:?}");
    let source: Vec<_> = events.iter().filter(|event| event["event"] == "source").collect();
    let frames: Vec<_> = source.iter().map(|event| event["frame"].as_u64().unwrap()).collect();
    assert_eq!(frames, (0..=18).collect::<Vec<_>>());
    assert!(source.iter().all(|event| event["part"] == "vae-encoder" && event["frames"] == 18));
    // Lines tell every 16th.
    let lines = [&again[..], &["--frames=18", "-o", "a.gif"]].concat();
    let lines = folder.run(&lines).ok().stderr;
    let told: Vec<_> = lines.lines().filter(|line| line.starts_with("encoded ")).collect();
    let want = [16, 18].map(|n| format!("encoded {n}/18 of the source by vae-encoder"));
    assert_eq!(told, want, "{lines}");
}

#[test]
fn failures_are_events_too() {
    let folder = Folder::new();
    for args in [
        &quick(&["-o", "a.gif", "--progress=json", "--width", "13"])[..],
        &quick(&["-o", "a.gif", "--progress", "json", "--steps", "many"]),
        &quick(&["-o", "a.doc", "--progress=json"]),
    ] {
        let failed = folder.run(args);
        assert_eq!(failed.code, Some(2));
        let events = failed.events();
        assert_eq!(kinds(&events).last().unwrap(), "error");
        let error = events.last().unwrap();
        assert_eq!(error["code"], 2);
        assert!(error["message"].is_string() && error["hint"].is_string(), "{error}");
    }
    assert!(folder.names().is_empty());
}

#[test]
fn a_pipe_gets_lines_and_quiet_gets_none() {
    let folder = Folder::new();
    let lines = folder.run(&quick(&["-o", "a.gif"])).ok().stderr;
    for part in ["seed 5", "loading unet", "step 1/1", "decoded 2 frames", "done in"] {
        assert!(lines.contains(part), "{part}: {lines}");
    }
    assert!(!lines.contains(['\r', '\x1b']), "{lines:?}");
    for quiet in [["-y", "-q"], ["-y", "--progress=none"]] {
        let done = folder.run(&[&quick(&["-o", "a.gif"]), &quiet[..]].concat()).ok();
        assert_eq!(done.stderr, "");
        assert_eq!(done.stdout(), "a.gif\n");
    }
    let verbose = folder.run(&quick(&["-o", "a.gif", "-yv"])).ok().stderr;
    for part in ["unet: ", "vae: ", "text encoder: ", "tensors", "129 of 129 modules"] {
        assert!(verbose.contains(part), "{part}: {verbose}");
    }
}

#[test]
fn what_exists_is_refused_before_any_work_and_replaced_on_demand() {
    let folder = Folder::new();
    for name in ["a.gif", "f_000.png", "t.safetensors"] {
        folder.write(name, "mine");
    }
    for args in [
        &["-o", "a.gif"][..],
        &["-o", "f_%03d.png"],
        &["-o", "b.gif", "--tensors-out", "t.safetensors"],
    ] {
        let refused = folder.run(&quick(args));
        assert!(refused.fails(2).contains("exists"), "{}", refused.stderr);
        assert!(refused.hint().contains("-y"), "{}", refused.stderr);
        assert!(!refused.stderr.contains("loading"), "{}", refused.stderr);
    }
    assert_eq!(folder.names(), ["a.gif", "f_000.png", "t.safetensors"]);
    assert_eq!(folder.read("a.gif"), b"mine");

    folder.run(&quick(&["-o", "a.gif", "-y", "--tensors-out", "t.safetensors"])).ok();
    assert_eq!(gif(&folder.read("a.gif")).len(), 2);
    assert_ne!(folder.read("t.safetensors"), b"mine");
    assert_eq!(folder.names(), ["a.gif", "f_000.png", "t.safetensors"]);
}

#[test]
fn a_dumped_request_makes_the_same_clip_and_flags_go_over_it() {
    let folder = Folder::new();
    let flags = ["-n", "grey", "--cfg-scale=1.5", "--fps=12", "--sampler=euler", "--rng=cuda"];
    let quick = quick(&flags);
    let dumped = folder.run(&[&quick[..], &["--dump-request"]].concat()).ok();
    let json = dumped.json();
    assert_eq!(json["schema"], "animatelcm/v1");
    assert_eq!(json["prompt"]["negative"], "grey");
    assert_eq!(json["sampling"]["seed"], 5);
    assert!(folder.names().is_empty(), "dumping makes no clip");
    folder.write("r.json", &dumped.bytes);

    let make = |args: &[&str], name: &str| {
        folder.run(&[args, &["-o", name]].concat()).ok();
        folder.read(name)
    };
    let request = ["generate", "--request", "r.json"];
    let typed = make(&quick, "a.gif");
    assert!(typed == make(&request, "b.gif"), "the request made another clip");
    let over = make(&[&request[..], &["--seed", "9", "-p", "a blue star"]].concat(), "c.gif");
    let mut retyped = quick.clone();
    retyped[1] = "a blue star";
    *retyped.iter_mut().find(|word| **word == "--seed=5").unwrap() = "--seed=9";
    assert!(over == make(&retyped, "d.gif"), "flags do not go over the request");
    assert!(over != typed);

    // What is inside a clip is a request, too.
    folder.write("inside.json", &folder.run(&["inspect", "--json", "a.gif"]).ok().bytes);
    assert!(typed == make(&["generate", "--request", "inside.json"], "e.gif"));
}

#[test]
fn gamma_is_in_clips_by_tcd_alone() {
    let folder = Folder::new();
    let make = |flags: &[&str], name: &str| {
        let args = ["generate", "a green ring", "--frames=2", "--steps=3", "--seed=5", "-o", name];
        folder.run(&[&args[..], flags].concat()).ok();
        let job = folder.run(&["inspect", "--json", name]).ok().json();
        (folder.read(name), job["sampling"]["tcd_gamma"].clone())
    };
    let (_, none) = make(&[], "lcm.gif");
    assert!(none.is_null());
    let (usual, gamma) = make(&["--sampler=tcd"], "tcd.gif");
    assert_eq!(gamma, 0.3);
    let (smooth, gamma) = make(&["--sampler=tcd", "--tcd-gamma=0"], "smooth.gif");
    assert_eq!(gamma, 0.0);
    assert!(usual != smooth);
    folder.run(&["replay", "smooth.gif", "-o", "again.gif"]).ok();
    assert!(smooth == folder.read("again.gif"));
    // Another sampler over the request leaves it behind.
    let other = ["generate", "--request", "smooth.gif", "--sampler=euler", "-o", "euler.gif"];
    assert!(!folder.run(&other).ok().stderr.contains("warning"));
}

#[test]
fn replay_makes_the_same_bytes_from_every_container() {
    let folder = Folder::new();
    for name in ["a.gif", "a.webp", "a.png", "a.mp4"] {
        folder.run(&quick(&["-n", "grey ✿", "--cfg-scale=2", "-o", name])).ok();
        let replayed = folder.run(&["replay", name]).ok();
        let other = name.replace('.', "-replay.");
        assert_eq!(replayed.stdout(), format!("{other}\n"));
        assert!(folder.read(name) == folder.read(&other), "{name} was not made again");
    }
    folder.run(&quick(&["-o", "f_%03d.png"])).ok();
    folder.run(&["replay", "f_001.png", "-o", "g_%03d.png"]).ok();
    for i in ["000", "001"] {
        let (was, is) = (format!("f_{i}.png"), format!("g_{i}.png"));
        assert!(folder.read(&was) == folder.read(&is), "{was} was not made again");
    }

    let again = folder.run(&["replay", "a.gif"]);
    assert!(again.fails(2).contains("exists"));
    folder.run(&["replay", "a.gif", "-y"]).ok();
}

#[test]
fn a_replay_says_whether_it_is_identical() {
    let folder = Folder::new();
    folder.run(&quick(&["-o", "a.png"])).ok();
    folder.run(&quick(&["-o", "f_%03d.png"])).ok();
    let names = folder.names();
    for clip in ["a.png", "f_001.png"] {
        let checked = folder.run(&["replay", clip, "--check", "-q"]).ok();
        assert_eq!(checked.stdout(), format!("{clip}: identical\n"));
        let json = folder.run(&["replay", clip, "--check", "--json"]).ok().json();
        assert_eq!(json["likeness"], json!({"kind": "identical"}));
    }
    assert_eq!(folder.names(), names, "a check keeps nothing");
    let again = folder.run(&["replay", "a.png"]).ok();
    assert!(again.stderr.contains("a.png: identical"), "{}", again.stderr);
    let json = folder.run(&["replay", "f_001.png", "-o", "g_%03d.png", "--json"]).ok().json();
    assert_eq!(json["likeness"]["kind"], "identical");

    // Another clip's frames under this one's request.
    folder
        .run(
            &quick(&["-o", "b.gif", "--seed", "6", "--no-metadata"])
                .into_iter()
                .filter(|w| *w != "--seed=5")
                .collect::<Vec<_>>(),
        )
        .ok();
    let bytes = folder.read("b.gif");
    folder.run(&quick(&["-o", "c.gif"])).ok();
    let marked = folder.read("c.gif");
    // Blocks of metadata stand before the first image in both.
    let from = marked.windows(11).position(|w| w == b"ANIMATELCM1").unwrap() - 3;
    let end = bytes.len() - 1;
    let mut mixed = bytes[..end].to_vec();
    let texts = {
        let mut at = from + 14;
        while marked[at] != 0 {
            at += usize::from(marked[at]) + 1;
        }
        &marked[from..=at]
    };
    mixed.extend(texts);
    mixed.push(0x3b);
    folder.write("d.gif", mixed);
    let differs = folder.run(&["replay", "d.gif", "--check"]);
    assert!(differs.fails(5).contains("of the pixels, by at most"), "{}", differs.stderr);
}

#[test]
fn a_clip_says_that_its_weights_were_rounded_and_replays() {
    let folder = Folder::new();
    folder.run(&quick(&["-o", "plain.gif"])).ok();
    let said = folder.run(&quick(&["--quantize=int8", "-o", "a.gif"])).ok().stderr;
    assert!(said.contains("f32 with int8 weights"), "{said}");
    assert!(folder.read("a.gif") != folder.read("plain.gif"));
    folder.run(&["replay", "a.gif"]).ok();
    assert!(folder.read("a.gif") == folder.read("a-replay.gif"));
    let runs_on = |name: &str| folder.run(&["inspect", name]).ok().stdout().to_owned();
    assert!(runs_on("a.gif").contains("with int8 weights"));
    assert!(!runs_on("plain.gif").contains("int8"));
    let said = folder.run(&quick(&["--quantize=w8a8", "-o", "b.gif"])).ok().stderr;
    assert!(said.contains("f32 with int8 weights and activations"), "{said}");
    assert!(folder.read("b.gif") != folder.read("a.gif"));
    folder.run(&["replay", "b.gif"]).ok();
    assert!(folder.read("b.gif") == folder.read("b-replay.gif"));
    let error = folder.run(&quick(&["--quantize=int4", "-o", "c.gif"]));
    assert!(error.fails(2).contains("`int4` is none of `none`, `int8`, `w8a8`"));
}

#[test]
fn kernels_that_no_gpu_has_run_are_not_for_the_cpu() {
    let folder = Folder::new();
    let error = folder.run(&quick(&["--device=cpu", "--kernels=experimental", "-o", "a.gif"]));
    assert!(error.fails(2).contains("for GPUs"));
    let error = folder.run(&quick(&["--kernels=fast", "-o", "a.gif"]));
    assert!(error.fails(2).contains("`fast` is none of `default`, `experimental`"));
    folder.run(&quick(&["--device=cpu", "--kernels=default", "-o", "a.gif"])).ok();
}

#[test]
fn clips_without_a_request_cannot_be_replayed() {
    let folder = Folder::new();
    folder.run(&quick(&["-o", "a.gif", "--no-metadata"])).ok();
    folder.run(&quick(&["-o", "a.y4m"])).ok();
    let bytes = folder.read("a.gif");
    for word in [&b"ANIMATELCM1"[..], b"green ring", b"sha256"] {
        assert!(!bytes.windows(word.len()).any(|w| w == word), "it still has metadata");
    }
    for name in ["a.gif", "a.y4m"] {
        assert!(folder.run(&["replay", name]).fails(2).contains("no request"));
        assert!(folder.run(&["inspect", name]).ok().stdout().contains("without a request"));
    }
}

#[test]
fn inspect_prints_what_a_clip_was_made_by() {
    let folder = Folder::new();
    for name in ["a.gif", "a.webp", "a.png", "a.mp4", "f_%03d.png"] {
        folder.run(&quick(&["-n", "grey", "-o", name])).ok();
        let name = name.replace("%03d", "000");
        let shown = folder.run(&["inspect", &name]).ok();
        for part in [
            "a green ring",
            "grey",
            "5, cpu generator",
            "2 frames of 64x64",
            "1 steps of lcm",
            "linear betas",
            "pocket/unet",
            "Negative prompt: grey",
            "Seed: 5",
        ] {
            assert!(shown.stdout().contains(part), "{name}, {part}: {}", shown.stdout());
        }
        let job = folder.run(&["inspect", "--json", &name]).ok().json();
        assert_eq!(job["prompt"]["text"], "a green ring");
        assert_eq!(job["size"]["width"], 64);
        assert_eq!(job["program"]["name"], "animatelcm");
        for weight in job["weights"].as_array().unwrap() {
            let sha256 = weight["sha256"].as_str().unwrap();
            assert!(shown.stdout().contains(sha256), "{name}: {sha256}");
        }
    }
}

/// Runs the embedded model as a reference run was made and returns what it recorded.
fn reference_run(run: &Value, more: &[&str]) -> HashMap<String, Tensor> {
    let folder = Folder::new();
    let golden = golden::load(&format!(
        "pocket/{}",
        run["file"].as_str().unwrap().replace(".safetensors", "")
    ));
    let mut tensors = HashMap::from([("latents".to_owned(), golden.tensor("init"))]);
    for i in 0..3 {
        let name = format!("noise.{i}");
        tensors.insert(name.clone(), golden.tensor(&name));
    }
    candle_core::safetensors::save(&tensors, folder.path("in.safetensors")).unwrap();

    let scale = run["guidance_scale"].to_string();
    let args = ["generate", run["prompt"].as_str().unwrap(), "--cfg-scale", &scale];
    let mut args = [&args[..], &["-o", "a.gif", "--tensors-out", "out.safetensors"], more].concat();
    if let Some(negative) = run["negative_prompt"].as_str() {
        args.extend(["-n", negative]);
    }
    folder.run(&args).ok();
    candle_core::safetensors::load(folder.path("out.safetensors"), &Device::Cpu).unwrap()
}

/// Compares what was recorded with the reference: context, latents after each step, and the kept frames.
#[track_caller]
fn assert_meets(run: &Value, out: &HashMap<String, Tensor>) {
    let golden = golden::load(&format!(
        "pocket/{}",
        run["file"].as_str().unwrap().replace(".safetensors", "")
    ));
    assert_close(&out["context"], &golden.tensor("context"), 1e-4);
    for i in 0..4 {
        let name = format!("latents.{i}");
        assert_close(&out[&name], &golden.tensor(&name), 1e-3);
    }
    assert_close(&out["latents"], &golden.tensor("latents.3"), 1e-3);
    assert_eq!(out["frames"].dims(), [16, 3, 64, 64]);
    let frames = golden.tensor("frames");
    for (i, kept) in run["kept"].as_array().unwrap().iter().enumerate() {
        let ours = out["frames"].get(kept.as_u64().unwrap() as usize).unwrap();
        assert_close(&ours, &frames.get(i).unwrap(), 1e-3);
    }
}

#[test]
fn tensors_in_and_out_meet_the_reference_runs() {
    let runs = golden::json("pocket/runs");
    // One without guidance and the one with it; the seed must not matter.
    for run in [&runs[0], &runs[3]] {
        let out = reference_run(run, &["--tensors-in", "in.safetensors", "--seed=1"]);
        assert_meets(run, &out);
        assert_eq!(out.contains_key("negative_context"), run["negative_prompt"].is_string());
    }
}

#[test]
fn the_seed_alone_meets_the_reference_runs() {
    let run = &golden::json("pocket/runs")[1];
    let seed = run["seed"].to_string();
    assert_meets(run, &reference_run(run, &["--seed", &seed]));
}

#[test]
fn a_clip_knows_the_tensors_that_it_was_made_from() {
    let folder = Folder::new();
    let run = golden::load("pocket/run0");
    let tensors = HashMap::from([("latents", run.tensor("init"))]);
    let save = |tensors: &HashMap<&str, Tensor>| {
        candle_core::safetensors::save(tensors, folder.path("in.safetensors")).unwrap();
    };
    save(&tensors);
    let args = ["generate", "a red star", "--steps=1", "--seed=3", "-o", "a.gif"];
    folder.run(&[&args[..], &["--tensors-in", "in.safetensors"]].concat()).ok();
    folder.run(&["replay", "a.gif", "-o", "b.gif"]).ok();
    assert!(folder.read("a.gif") == folder.read("b.gif"));

    save(&HashMap::from([("latents", run.tensor("latents.0"))]));
    let refused = folder.run(&["replay", "a.gif", "-o", "c.gif"]);
    assert!(refused.fails(5).contains("in.safetensors: sha256"), "{}", refused.stderr);
    assert_eq!(folder.names(), ["a.gif", "b.gif", "in.safetensors"]);
}

#[test]
fn a_clip_is_not_replayed_with_other_weights() {
    let folder = Folder::new();
    let lora = fs::read(golden::path("../../assets/pocket/animatelcm_lora.safetensors")).unwrap();
    folder.write("l.safetensors", &lora);
    folder.run(&quick(&["--lora", "l.safetensors:0.5", "-o", "a.gif"])).ok();
    folder.run(&["replay", "a.gif", "-o", "b.gif"]).ok();
    assert!(folder.read("a.gif") == folder.read("b.gif"));
    let mut other = lora;
    *other.last_mut().unwrap() ^= 1;
    folder.write("l.safetensors", &other);
    let refused = folder.run(&["replay", "a.gif", "-o", "c.gif"]);
    let line = refused.fails(5);
    assert!(line.contains("l.safetensors") && line.contains("sha256"), "{line}");
    assert_eq!(folder.names(), ["a.gif", "b.gif", "l.safetensors"]);
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let folder = Folder::new();
    for (code, args) in [
        (2, &["--frames", "0"][..]),
        (2, &["--sampler", "magic"]),
        (2, &["--sampler", "tcd", "--tcd-gamma", "1.5"]),
        (2, &["--sampler", "pndm-karras"]),
        (2, &["--no-such-flag"]),
        (3, &["--model", "no-such-model"]),
        (3, &["--model", "./nowhere.safetensors"]),
        (3, &["--model", "animatelcm", "--offline"]),
        (4, &["--width=8192", "--height=8192", "--frames=64"]),
        #[cfg(not(feature = "cuda"))]
        (4, &["--device", "cuda"]),
    ] {
        let command = ["generate", "a green ring", "--seed=5", "-o", "a.png"];
        let failed = folder.run(&[&command[..], args].concat());
        failed.fails(code);
        assert!(!failed.hint().is_empty() || code == 2 || code == 3, "{}", failed.stderr);
    }
    assert!(folder.names().is_empty());
    let helped = folder.run(&["--help"]).ok();
    assert!(helped.stdout().contains("130 interrupted"), "{}", helped.stdout());
    let version = folder.run(&["-V"]).ok();
    assert_eq!(version.stdout(), format!("animatelcm {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn words_of_the_wrong_kind_get_advice() {
    let folder = Folder::new();
    let said = |args: &[&str]| {
        let failed = folder.run(args);
        format!("{} {}", failed.fails(2), failed.hint())
    };
    assert!(said(&quick(&["--fram", "4"])).contains("--frames"));
    assert!(said(&quick(&["--progress", "loud"])).contains("json"));
    assert!(said(&quick(&["--device", "gpu"])).contains("metal"));
    assert!(said(&quick(&["--dtype", "f8"])).contains("bf16"));
    assert!(said(&quick(&["--sampler", "magic"])).contains("euler-a"));
    assert!(said(&quick(&["-o", "clip.avi"])).contains(".webp"));
    assert!(said(&["generate"]).contains("prompt"));
    assert!(said(&["generat"]).contains("generate"));
    assert!(said(&["inspect"]).contains("FILE"));
}

/// Sends the signal of Ctrl-C.
#[cfg(unix)]
fn interrupt(id: u32) {
    let status = std::process::Command::new("kill").args(["-INT", &id.to_string()]).status();
    assert!(status.unwrap().success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_at_the_next_step_and_leaves_nothing_behind() {
    use std::io::{BufRead, BufReader, Read};

    let folder = Folder::new();
    let args = ["generate", "a red star", "--steps=90", "--cfg-scale=2", "--progress=json"];
    let out = ["-o", "a.webp", "--tensors-out", "t.safetensors"];
    let mut child = folder.spawn(&[&args[..], &out].concat());
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let steps = lines.by_ref().find(|line| line.contains(r#""event":"step""#)).unwrap();
    interrupt(child.id());
    let rest: Vec<Value> = lines.map(|line| serde_json::from_str(&line).unwrap()).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{steps}");
    let error = rest.last().unwrap();
    assert_eq!((&error["event"], &error["code"]), (&json!("error"), &json!(130)));
    assert!(rest.len() < 20, "it went on for {} events", rest.len());
    let mut result = String::new();
    child.stdout.take().unwrap().read_to_string(&mut result).unwrap();
    assert_eq!(result, "");
    assert!(folder.names().is_empty(), "{:?}", folder.names());
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let folder = Folder::new();
    let mut child = folder.spawn(&quick(&["-o", "-"]));
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{stderr}");
}
