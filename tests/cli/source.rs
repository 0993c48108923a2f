//! `--image` and `--video`: what clips say of their source, replay, and what is refused.

use std::fs;

use crate::support::golden;
use crate::support::program::Folder;

/// A clip of the small model that is quickly made; its source comes after.
const QUICK: [&str; 7] = ["generate", "a green ring", "--steps", "2", "--seed=5", "-y", "-q"];

fn run(folder: &Folder, more: &[&str]) -> crate::support::program::Outcome {
    folder.run(&[&QUICK[..], more].concat())
}

/// A clip of four frames to start from.
fn moving(folder: &Folder, name: &str) {
    run(folder, &["--frames=4", "--no-metadata", "-o", name]).ok();
}

#[test]
fn a_clip_that_starts_from_a_video_says_so_and_replays() {
    let folder = Folder::new();
    for name in ["v.gif", "v.webp", "v.png", "v.mp4", "v.y4m", "v/%03d.png"] {
        if name.starts_with("v/") {
            fs::create_dir(folder.path("v")).unwrap();
        }
        moving(&folder, name);
        let name = name.strip_suffix("/%03d.png").unwrap_or(name);
        let more = ["--video", name, "--strength=0.5", "--video-from=1", "--fit=crop"];
        run(&folder, &[&more[..], &["-o", "a.webp"]].concat()).ok();
        let job = folder.run(&["inspect", "--json", "a.webp"]).ok().json();
        let source = &job["source"];
        assert_eq!(source["video"], name);
        assert_eq!(source["sha256"].as_str().unwrap().len(), 64);
        assert_eq!((&source["strength"], &source["from"]), (&0.5.into(), &1.into()));
        assert_eq!((&source["fit"], &job["size"]["frames"]), (&"crop".into(), &3.into()));
        let shown = folder.run(&["inspect", "a.webp"]).ok();
        let said = format!("{name} at strength 0.5, from frame 1, fit crop");
        assert!(shown.stdout().contains(&said), "{}", shown.stdout());
        assert!(shown.stdout().contains("Denoising strength: 0.5"), "{}", shown.stdout());
        folder.run(&["replay", "a.webp", "-o", "b.webp", "-y", "-q"]).ok();
        assert!(folder.read("a.webp") == folder.read("b.webp"), "{name} was not made again");
    }
    // Another video by the same name is not taken.
    let other = ["--frames=4", "--seed=6", "--no-metadata", "-o", "v/%03d.png"];
    folder.run(&[&["generate", "a red ring", "--steps=1", "-y", "-q"][..], &other].concat()).ok();
    let again = folder.run(&["replay", "a.webp", "-o", "c.webp", "-q"]);
    assert!(again.fails(5).contains("sha256 is"), "{}", again.stderr);
}

#[test]
fn a_dumped_source_makes_the_same_clip_and_flags_go_over_it() {
    let folder = Folder::new();
    moving(&folder, "v.gif");
    let more = ["--video", "v.gif", "--strength=0.5", "--video-every=2"];
    let dumped = run(&folder, &[&more[..], &["--dump-request"]].concat()).ok();
    folder.write("r.json", &dumped.bytes);
    run(&folder, &[&more[..], &["-o", "a.gif"]].concat()).ok();
    let read = ["generate", "--request", "r.json", "-y", "-q"];
    folder.run(&[&read[..], &["-o", "b.gif"]].concat()).ok();
    assert!(folder.read("a.gif") == folder.read("b.gif"));
    folder.run(&[&read[..], &["--strength=1", "-o", "c.gif"]].concat()).ok();
    assert!(folder.read("a.gif") != folder.read("c.gif"));
    let job = folder.run(&["inspect", "--json", "c.gif"]).ok().json();
    assert_eq!((&job["source"]["strength"], &job["size"]["frames"]), (&1.0.into(), &2.into()));
    // An image in its place; the strength stays.
    run(&folder, &["--frames=1", "--no-metadata", "-o", "i_%03d.png"]).ok();
    let image = ["--image", "i_000.png", "-o", "d.gif"];
    folder.run(&[&read[..], &image].concat()).ok();
    let job = folder.run(&["inspect", "--json", "d.gif"]).ok().json();
    assert_eq!(
        (&job["source"]["image"], &job["source"]["strength"]),
        (&"i_000.png".into(), &0.5.into())
    );
    assert_eq!(job["size"]["frames"], 16);
}

#[test]
fn the_rate_of_the_video_becomes_that_of_the_clip() {
    let folder = Folder::new();
    // Four frames, eight a second.
    moving(&folder, "v.png");
    let fps = |more: &[&str]| {
        let more = [&["--video", "v.png", "--strength=0.5", "-o", "a.gif"][..], more].concat();
        run(&folder, &more).ok();
        let job = folder.run(&["inspect", "--json", "a.gif"]).ok().json();
        (job["size"]["frames"].as_u64().unwrap(), job["output"]["fps"].as_f64().unwrap())
    };
    assert_eq!(fps(&[]), (4, 8.0));
    assert_eq!(fps(&["--video-fps=4"]), (2, 4.0));
    assert_eq!(fps(&["--video-fps=8", "--video-every=2"]), (2, 4.0));
    assert_eq!(fps(&["--video-fps=4", "--fps=10"]), (2, 10.0));
}

#[test]
fn every_frame_starts_from_an_image() {
    let folder = Folder::new();
    run(&folder, &["--frames=1", "--no-metadata", "-o", "i_%03d.png"]).ok();
    let image = ["--image", "i_000.png", "--frames=3", "-o", "a.gif"];
    run(&folder, &image).ok();
    let job = folder.run(&["inspect", "--json", "a.gif"]).ok().json();
    assert_eq!(
        (&job["source"]["image"], &job["source"]["strength"]),
        (&"i_000.png".into(), &0.8.into())
    );
    folder.run(&["replay", "a.gif", "-q"]).ok();
    assert!(folder.read("a.gif") == folder.read("a-replay.gif"));
}

#[test]
fn impossible_sources_are_one_line_of_error_and_leave_nothing() {
    let folder = Folder::new();
    moving(&folder, "v.gif");
    let before = folder.names();
    let refused = |more: &[&str], part: &str, hint: &str| {
        let outcome = run(&folder, &[more, &["-o", "a.gif"]].concat());
        assert!(outcome.fails(2).contains(part), "{part}: {}", outcome.stderr);
        assert!(outcome.hint().contains(hint), "{hint}: {}", outcome.stderr);
        assert_eq!(folder.names(), before);
    };
    for strength in ["0", "-0.1", "1.5", "NaN"] {
        let strength = format!("--strength={strength}");
        refused(&["--video=v.gif", &strength], "strength: must be above 0 and at most 1", "");
    }
    refused(&["--video=v.gif", "--strength=0.4"], "0.4 of 2 steps is less than one step", "0.5");
    refused(&["--image=v.gif", "--video=v.gif"], "cannot be used with", "");
    let of_videos = ["--strength=0.5", "--video-fps=8", "--video-from=0", "--video-every=1"];
    let others = ["--fit=pad", "--motion-scale=1", "--insertion-weights=1,-1", "--color-match=on"];
    let kept = ["--keep=0", "--mask=v.gif", "--overlay=off"];
    for flag in of_videos.into_iter().chain(others).chain(kept) {
        let name = flag.trim_start_matches("--").split('=').next().unwrap();
        refused(&[flag], &format!("{name}: there is no image or video"), "--image FILE");
    }
    refused(&["--image=v.gif"], "image: v.gif has more than one frame", "--video");
    refused(&["--video=v.gif", "--frames=9"], "frames: 9 asked for, v.gif gives 4", "--frames 4");
    refused(&["--video=v.gif", "--video-every=0"], "must be at least 1", "");
    refused(&["--video=none.mp4"], "video: none.mp4", "");
    let scale = ["--video=v.gif", "--motion-scale=0.5"];
    refused(&scale, "motion-scale: is of images, a video has none", "");
    refused(&["--video=v.gif", "--color-match=on"], "color-match: takes the colours of", "");
    refused(&["--video=v.gif", "--color-match=maybe"], "neither `on` nor `off`", "");
    refused(&["--video=v.gif", "--fit=fill"], "none of `stretch`, `crop`, `cover`, `pad`", "");
    refused(&["--video=v.gif", "--keep=0,4"], "keep: frame 4 is not in the clip, 0 to 3", "");
    refused(&["--video=v.gif", "--keep=0,0"], "keep: frame 0 is listed twice", "");
    refused(&["--video=v.gif", "--keep=0,1,2,3"], "keep: keeps all 4 frames", "");
    refused(&["--video=v.gif", "--overlay=on"], "overlay: nothing of the source is kept", "--keep");
    refused(&["--video=v.gif", "--keep="], "not a whole number", "");
    refused(&["--video=v.gif", "--mask=none.png"], "mask: none.png", "");
    refused(&["--video=v.gif", "-W", "128", "--mask=v.gif", "--keep=0,1,2,3"], "keeps all", "");
    // What is not read is named, with the line that converts it.
    for (name, part) in
        [("hevc.mp4", "holds HEVC"), ("ten_bits.mp4", "10 bits"), ("picture.avif", "is an AVIF")]
    {
        let path = golden::path(&format!("media/{name}"));
        refused(&["--video", path.to_str().unwrap()], part, "ffmpeg -i");
    }
    let whole = fs::read(golden::path("video/plain.mp4")).unwrap();
    folder.write("cut.mp4", &whole[..whole.len() / 2]);
    let cut = run(&folder, &["--video=cut.mp4", "-o", "a.gif"]);
    assert!(cut.fails(2).contains("video: cut.mp4: "), "{}", cut.stderr);
    assert!(!folder.path("a.gif").exists());
}

#[test]
fn kept_frames_and_masks_are_told_replayed_and_dumped() {
    let folder = Folder::new();
    moving(&folder, "v.webp");
    let white = image::RgbImage::from_pixel(64, 64, image::Rgb([255; 3]));
    let mask = image::RgbImage::from_fn(64, 64, |x, y| {
        if x < 24 { image::Rgb([0; 3]) } else { *white.get_pixel(x, y) }
    });
    mask.save(folder.path("m.png")).unwrap();
    let more = ["--video=v.webp", "--keep=0,3", "--mask", "m.png", "--strength=1"];
    run(&folder, &[&more[..], &["-o", "a.webp"]].concat()).ok();
    let source = folder.run(&["inspect", "--json", "a.webp"]).ok().json()["source"].clone();
    assert_eq!(source["keep"], serde_json::json!([0, 3]));
    assert_eq!(source["mask"]["file"], "m.png");
    assert_eq!(source["mask"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(source["overlay"], true);
    let shown = folder.run(&["inspect", "a.webp"]).ok();
    assert!(shown.stdout().contains("frames 0 3 kept, mask m.png"), "{}", shown.stdout());
    folder.run(&["replay", "a.webp", "-o", "b.webp", "-q"]).ok();
    assert!(folder.read("a.webp") == folder.read("b.webp"));
    let dumped = run(&folder, &[&more[..], &["--dump-request"]].concat()).ok();
    folder.write("r.json", &dumped.bytes);
    folder.run(&["generate", "--request", "r.json", "-o", "c.webp", "-q"]).ok();
    assert!(folder.read("a.webp") == folder.read("c.webp"));
    // Another mask by the same name is not taken.
    white.save(folder.path("m.png")).unwrap();
    let again = folder.run(&["replay", "a.webp", "-o", "d.webp", "-q"]);
    assert!(again.fails(5).contains("m.png"), "{}", again.stderr);
    // The kept frames have no error at all, unless their latents are all that is wanted.
    run(&folder, &[&more[..], &["-o", "on_%03d.png"]].concat()).ok();
    run(&folder, &[&more[..], &["--overlay=off", "-o", "off_%03d.png"]].concat()).ok();
    run(&folder, &["--frames=4", "-o", "v_%03d.png"]).ok();
    let same = |a: &str, b: &str| {
        let pixels = |name: &str| image::open(folder.path(name)).unwrap().to_rgb8();
        pixels(a) == pixels(b)
    };
    assert!(same("on_000.png", "v_000.png") && same("on_003.png", "v_003.png"));
    assert!(!same("off_000.png", "v_000.png") && !same("off_003.png", "v_003.png"));
    assert!(same("on_001.png", "off_001.png") && !same("on_001.png", "v_001.png"));
    run(&folder, &[&more[..], &["--overlay=off", "-o", "off.webp"]].concat()).ok();
    let source = folder.run(&["inspect", "--json", "off.webp"]).ok().json()["source"].clone();
    assert_eq!(source["overlay"], false);
    let shown = folder.run(&["inspect", "off.webp"]).ok();
    assert!(shown.stdout().contains("mask m.png, overlay off"), "{}", shown.stdout());
    folder.run(&["replay", "off.webp", "-o", "again.webp", "-q"]).ok();
    assert!(folder.read("off.webp") == folder.read("again.webp"));
    // What is not used is not mentioned.
    run(&folder, &["--video=v.webp", "--strength=0.5", "-o", "e.webp"]).ok();
    let source = folder.run(&["inspect", "--json", "e.webp"]).ok().json()["source"].clone();
    let unused = ["keep", "mask", "overlay"];
    assert!(unused.iter().all(|name| source.get(name).is_none()), "{source}");
}

#[test]
fn what_is_behind_a_transparent_image_is_in_the_request_and_in_the_frames() {
    let folder = Folder::new();
    let clear = image::RgbaImage::from_pixel(64, 64, image::Rgba([0, 0, 255, 0]));
    clear.save(folder.path("clear.png")).unwrap();
    let solid = |name: &str, color| {
        image::RgbImage::from_pixel(64, 64, image::Rgb(color)).save(folder.path(name)).unwrap();
    };
    solid("blue.png", [0, 0, 255]);
    solid("orange.png", [255, 165, 0]);
    let make = |more: &[&str]| {
        let often = ["--frames=2", "--no-metadata", "-o", "a.gif"];
        run(&folder, &[&often[..], more].concat()).ok();
        folder.read("a.gif")
    };
    let orange = make(&["--image", "orange.png"]);
    assert!(make(&["--image", "clear.png", "--background-color=orange"]) == orange);
    assert!(make(&["--image", "clear.png"]) == make(&["--image", "blue.png"]));
    clear.save(folder.path("clear.webp")).unwrap();
    assert!(make(&["--image", "clear.webp", "--background=#ffa500"]) == orange);

    let on = ["--image", "clear.png", "--background-color", "orange", "--frames=2"];
    run(&folder, &[&on[..], &["-o", "b.gif"]].concat()).ok();
    let job = folder.run(&["inspect", "--json", "b.gif"]).ok().json();
    assert_eq!(job["background_color"], "#ffa500");
    assert!(folder.run(&["inspect", "b.gif"]).ok().stdout().contains("#ffa500"));
    folder.run(&["replay", "b.gif", "-q"]).ok();
    assert!(folder.read("b.gif") == folder.read("b-replay.gif"));
    run(&folder, &["--image", "clear.png", "--frames=2", "-o", "c.gif"]).ok();
    let job = folder.run(&["inspect", "--json", "c.gif"]).ok().json();
    assert!(job.get("background_color").is_none(), "{job}");

    let error = run(&folder, &["--background-color=white", "-o", "d.gif"]);
    assert!(error.fails(2).contains("there is no image, video or hint"), "{}", error.stderr);
    let error = run(&folder, &["--image", "clear.png", "--background-color=whitish"]);
    assert!(error.fails(2).contains("`whitish` is not a colour"), "{}", error.stderr);

    let hint = ["preprocess", "gray", "clear.png", "-y", "-o", "hint.png"];
    folder.run(&[&hint[..], &["--background-color=white"]].concat()).ok();
    let hint = image::open(folder.path("hint.png")).unwrap().to_rgb8();
    assert!(hint.pixels().all(|pixel| pixel.0 == [255; 3]));
}

#[test]
fn an_image_gets_a_prompt_that_the_clip_carries() {
    let folder = Folder::new();
    let cases = golden::load("blip/cases");
    let picture = cases.tensor("picture.2");
    let (height, width, _) = picture.dims3().unwrap();
    let values = picture.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let picture = image::RgbImage::from_raw(width as u32, height as u32, values).unwrap();
    picture.save(folder.path("p.png")).unwrap();
    let want = golden::json("blip/captions")["pictures"][2]["text"].clone();
    let network = golden::path("blip").display().to_string();
    let words = ["generate", "--image=p.png", "--frames=2", "--steps=2", "--seed=5"];
    let caption = [&words[..], &["--caption", "--caption-model", network.as_str()]].concat();
    let run = |more: &[&str]| folder.run(&[&caption[..], more].concat());
    let told = run(&["-o", "a.gif"]).ok();
    let line = format!("caption: {}", want.as_str().unwrap());
    assert!(told.stderr.lines().any(|said| said == line), "{}", told.stderr);
    let job = folder.run(&["inspect", "--json", "a.gif"]).ok().json();
    assert_eq!(job["prompt"]["text"], want);
    // The clip needs no network to be made again, and is that of the prompt.
    folder.run(&["replay", "a.gif", "-q"]).ok();
    assert!(folder.read("a.gif") == folder.read("a-replay.gif"));
    let typed = ["-p", want.as_str().unwrap(), "-q", "-o", "b.gif"];
    folder.run(&[&words[..], &typed].concat()).ok();
    assert!(folder.read("a.gif") == folder.read("b.gif"));
    let events = run(&["-o", "c.gif", "--progress=json"]).ok().events();
    assert!(events.iter().any(|e| e["event"] == "caption" && e["prompt"] == want), "{events:?}");
    let dumped = run(&["--dump-request", "-q"]).ok().json();
    assert_eq!(dumped["prompt"]["text"], want);
    // The file is called by it.
    assert_eq!(run(&["-q"]).ok().stdout(), format!("{}-5.gif\n", want.as_str().unwrap()));

    folder.write("many.jsonl", "{\"schema\":\"animatelcm/v1\"}\n{\"schema\":\"animatelcm/v1\"}\n");
    let before = folder.names();
    let refused = |args: &[&str], part: &str, hint: &str| {
        let outcome = folder.run(args);
        assert!(outcome.fails(2).contains(part), "{part}: {}", outcome.stderr);
        assert!(outcome.hint().contains(hint), "{hint}: {}", outcome.stderr);
        assert_eq!(folder.names(), before);
    };
    let with = |more: &[&'static str]| [&caption[..], more].concat();
    refused(&with(&["a dog"]), "caption: takes the place of a prompt", "");
    refused(&with(&["--travel=0: a; 1: b"]), "caption: takes the place of a prompt", "");
    refused(&with(&["--request=a.gif"]), "caption: takes the place of a prompt", "");
    refused(&["generate", "--caption", "-o", "d.gif"], "caption: there is no image", "--image");
    refused(&["generate", "--caption", "--video=a.gif"], "caption: there is no image", "--image");
    refused(&with(&["--strength=0.1"]), "strength: 0.1 of 2 steps", "");
    refused(&["generate", "a", "--caption-model=x"], "--caption", "");
    let taken = folder.run(&with(&["-o", "a.gif"]));
    assert!(taken.fails(2).contains("a.gif"), "{}", taken.stderr);
    let lost = folder.run(&["generate", "--caption", "--image=p.png", "--offline", "-o", "d.gif"]);
    assert!(lost.stderr.contains("blip-image-captioning-base"), "{}", lost.stderr);
    assert!(lost.hint().contains("models pull blip-image-captioning-base"), "{}", lost.stderr);
    refused(&["generate", "--caption", "--request=many.jsonl"], "caption: is for one request", "");
}
