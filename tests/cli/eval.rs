//! What `eval` measures and prints.

use crate::support::program::Folder;
use crate::support::{golden, metrics};

#[test]
fn rendered_clips_are_true_and_their_report_says_so() {
    let folder = Folder::new();
    let args = ["eval", "--procedural", "--ground-truth", "--prompts", "12", "--seed", "3"];
    let run = folder.run(&[&args[..], &["--json", "--sheet", "sheet.png"]].concat()).ok();
    let report = run.json();
    for part in ["background", "color", "shape", "motion", "all", "steady"] {
        let count = &report["score"][part];
        assert_eq!(
            (count["hits"].as_u64(), count["trials"].as_u64()),
            (Some(12), Some(12)),
            "{part}"
        );
        // Wilson's interval of 12 of 12.
        assert!((count["low"].as_f64().unwrap() - 0.7575).abs() < 1e-4, "{part}");
    }
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 12);
    for row in rows {
        let prompt = row["prompt"].as_str().unwrap();
        assert!(prompt.parse::<animatelcm::procedural::Caption>().is_ok(), "{prompt}");
        for part in ["background", "color", "shape", "motion", "steady", "all"] {
            assert_eq!(row[part], true, "{prompt}: {part}");
        }
        assert!(row["seed"].is_null(), "nothing is drawn for what is rendered");
    }
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(lines.len(), 12);
    assert!(lines[..11].iter().all(|line| line.ends_with(" to go")), "{lines:?}");
    assert!(lines[11].starts_with("12/12 ") && !lines[11].contains("to go"), "{lines:?}");
    // A line of text above each clip.
    let sheet = image::load_from_memory(&folder.read("sheet.png")).unwrap().to_rgb8();
    assert_eq!((sheet.width(), sheet.height()), (8 * 64, 12 * (10 + 64)));
    let text = image::imageops::crop_imm(&sheet, 0, 0, 8 * 64, 10).to_image();
    let white = text.pixels().filter(|pixel| pixel[0] == 255).count();
    assert!(white > 200 && text.pixels().all(|p| p[0] == 0 || p[0] == 255), "{white}");

    let run = folder.run(&[&args[..], &["-q"]].concat()).ok();
    let line = |start: &str| run.stdout().lines().find(|line| line.starts_with(start)).unwrap();
    let (all, header) = (line("all four"), line("     "));
    assert!(all.contains("100.0%") && all.contains("75.8 - 100.0%"), "{all}");
    // Headers end where their columns do.
    let end = |line: &str, text: &str| line.find(text).unwrap() + text.len();
    let ends = ["rate", "95 % CI", "chance"].map(|name| end(header, name));
    assert_eq!(ends, [end(all, "  100.0%"), end(all, "- 100.0%"), all.len()], "{}", run.stdout());
    assert!(run.stderr.is_empty());
    let again = [&args[..], &["--sheet", "sheet.png"]].concat();
    assert!(folder.run(&again).fails(2).contains("sheet.png"));
}

#[test]
fn the_model_inside_shows_what_it_is_asked_for() {
    // Of 256 clips nine in ten are true in everything; these sixteen leave room for other rounding, not for another
    // model.
    let folder = Folder::new();
    let args = ["eval", "--procedural", "--prompts", "16", "--seed", "7", "-q", "--json"];
    let score = &folder.run(&args).ok().json()["score"];
    for (part, least) in
        [("background", 15), ("color", 15), ("shape", 14), ("motion", 9), ("all", 9)]
    {
        assert!(score[part]["hits"].as_u64().unwrap() >= least, "{part}: {}", score[part]);
    }
}

#[test]
fn a_model_is_measured_with_the_flags_of_generate() {
    let folder = Folder::new();
    let args = ["eval", "--procedural", "--prompts", "2", "--steps", "2", "--frames", "8", "-q"];
    let report = folder.run(&[&args[..], &["--json"]].concat()).ok().json();
    assert_eq!(report["clips"], "embedded");
    assert_eq!((&report["steps"], &report["frames"]), (&2.into(), &8.into()));
    assert_eq!(report["score"]["all"]["trials"], 2);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["seed"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1)]);
    let hits = rows.iter().filter(|row| row["shape"] == true).count();
    assert_eq!(report["score"]["shape"]["hits"], hits);
    assert_eq!(folder.run(&[&args[..], &["--json"]].concat()).ok().json(), report);
    let other = [&args[..], &["--json", "--sampler", "ddim", "--lcm-lora", "none"]].concat();
    assert_eq!(folder.run(&other).ok().json()["sampler"], "ddim");
    let larger = [&args[..], &["--json", "--hires=1.5", "--context-length=4"]].concat();
    let larger = folder.run(&larger).ok().json();
    assert_eq!((&larger["width"], &larger["frames"]), (&96.into(), &8.into()));
    let refused = folder.run(&[&args[..], &["--context-length=4", "--context-overlap=4"]].concat());
    assert!(refused.fails(2).contains("context-overlap"), "{}", refused.stderr);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let folder = Folder::new();
    let fails = |args: &[&str], words: &str| {
        let args = [&["eval"], args].concat();
        let run = folder.run(&args);
        assert!(run.fails(2).contains(words), "{args:?}: {}", run.stderr);
    };
    fails(&[], "--procedural");
    fails(&["--prompt-file", "x.txt"], "x.txt");
    fails(&["--procedural", "--clip-score"], "--clip");
    fails(&["--procedural", "--fvd", "real"], "--i3d");
    fails(&["--procedural", "--clips-per-prompt", "0"], "clips-per-prompt");
    fails(&["--procedural", "--real-every", "0"], "real-every");
    fails(&["--procedural", "--real-fit", "zoom"], "zoom");
    let fvd = ["--procedural", "--ground-truth", "--fvd", "none", "--i3d", "none.pt"];
    fails(&fvd, "none");
    fails(&["--procedural", "--prompts", "0"], "prompts");
    fails(&["--procedural", "--ground-truth", "-W", "64", "-H", "32"], "square");
    fails(&["--procedural", "--ground-truth", "--frames", "0"], "frames");
    fails(&["--procedural", "--ground-truth", "--sheet", "sheet.gif"], "sheet.gif");
    fails(&["--procedural", "--steps", "0"], "steps");
    assert!(folder.names().is_empty());
}

/// Makes some clips of the renderer as real ones: folders of images, all with the same seed.
fn real_clips(folder: &Folder, count: usize) {
    use animatelcm::procedural::{Caption, Scene};
    for (i, caption) in Caption::all().step_by(17).take(count).enumerate() {
        let clip = folder.path("real").join(format!("class-{}", i % 2)).join(format!("{i}"));
        std::fs::create_dir_all(&clip).unwrap();
        for (n, frame) in Scene::new(caption, 1).frames(32, 16).iter().enumerate() {
            frame.save(clip.join(format!("{n}.png"))).unwrap();
        }
    }
}

#[test]
fn the_measures_of_papers_are_those_of_the_library() {
    let folder = Folder::new();
    let clip = folder.path("clip");
    std::fs::create_dir(&clip).unwrap();
    metrics::clip_folder(&clip);
    real_clips(&folder, 5);
    let i3d = golden::path("i3d/i3d.safetensors");
    let args = ["eval", "--procedural", "--ground-truth", "--prompts", "3", "--clips-per-prompt"];
    let args = [&args[..], &["2", "-W", "32", "--seed", "3", "--clip-score", "--clip", "clip"]];
    let args = [&args.concat()[..], &["--fvd", "real", "--i3d", i3d.to_str().unwrap()]].concat();
    let run = folder.run(&[&args[..], &["--json"]].concat()).ok();
    let report = run.json();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &report["score"]["all"]["trials"]), (6, &6.into()));
    // Two clips of a prompt have its words, and are two.
    assert_eq!(rows[0]["prompt"], rows[1]["prompt"]);
    assert_ne!(rows[1]["prompt"], rows[2]["prompt"]);
    let score = |row: &serde_json::Value| row["clip_score"].as_f64().unwrap();
    assert_ne!(score(&rows[0]), score(&rows[1]));
    let mean = rows.iter().map(score).sum::<f64>() / 6.0;
    assert!((report["clip_score"]["mean"].as_f64().unwrap() - mean).abs() < 1e-9);
    assert!(mean.abs() <= 100.0);

    let fvd = &report["fvd"];
    assert_eq!((&fvd["generated_clips"], &fvd["real_clips"]), (&6.into(), &5.into()));
    assert!(fvd["distance"].as_f64().unwrap() > 0.0);
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(lines.iter().filter(|line| line.starts_with("real ")).count(), 5);
    assert!(lines.last().unwrap().contains("CLIP score "), "{lines:?}");

    // The same clips on both sides are no way apart; every second frame is another clip.
    let table = folder.run(&[&args[..], &["-q"]].concat()).ok();
    let distance = format!("{:.2}", fvd["distance"].as_f64().unwrap());
    assert!(table.stdout().contains(&format!("{distance}  6 clips and 5 real ones")));
    assert!(table.stdout().contains(&format!("{mean:.2}  6 clips")), "{}", table.stdout());
    let some = folder.run(&[&args[..], &["-q", "--json", "--fvd-clips", "3"]].concat()).ok();
    assert_eq!(some.json()["fvd"]["real_clips"], 3);
    assert_eq!(some.json()["fvd"]["generated_clips"], 3);
    let many = [&args[..], &["--fvd-clips", "6"]].concat();
    assert!(folder.run(&many).fails(2).contains("5 real clips"));
    let long = [&args[..], &["--real-every", "2"]].concat();
    assert!(folder.run(&long).fails(2).contains("has 8 of 16 frames"));
    let short = [&args[..], &["--frames", "8"]].concat();
    assert!(folder.run(&short).fails(2).contains("an I3D takes 9 or more"));
    let foreign = golden::path("tiny/model/vae/diffusion_pytorch_model.safetensors");
    let foreign = ["eval", "--procedural", "--ground-truth", "--fvd", "real", "--i3d"]
        .into_iter()
        .chain([foreign.to_str().unwrap()])
        .collect::<Vec<_>>();
    folder.run(&foreign).fails(3);
}

#[test]
fn a_clip_is_no_way_from_itself() {
    let folder = Folder::new();
    let i3d = golden::path("i3d/i3d.pt");
    let args = ["eval", "--procedural", "--ground-truth", "--prompts", "4", "-W", "32", "-q"];
    // The clips of this very run, written where the real ones are sought.
    for i in 0..4 {
        use animatelcm::procedural::{Caption, Scene};
        let mut random = animatelcm::rng::Uniform::part(0, i);
        let caption = Caption::draw(&mut random);
        let clip = folder.path("real").join(i.to_string());
        std::fs::create_dir_all(&clip).unwrap();
        for (n, frame) in Scene::new(caption, random.bits()).frames(32, 16).iter().enumerate() {
            frame.save(clip.join(format!("{n}.png"))).unwrap();
        }
    }
    let args = [&args[..], &["--json", "--fvd", "real", "--i3d", i3d.to_str().unwrap()]].concat();
    let same = folder.run(&args).ok().json()["fvd"]["distance"].as_f64().unwrap();
    let other = folder.run(&[&args[..], &["--seed", "1"]].concat()).ok();
    let other = other.json()["fvd"]["distance"].as_f64().unwrap();
    assert!(same.abs() < 1e-4 * other, "{same} and {other}");
}

#[test]
fn prompts_come_from_a_file_as_they_are() {
    let folder = Folder::new();
    folder.write("prompts.txt", "\u{feff}a red circle (moving) right\r\n\n  a blue square\n");
    let args = ["eval", "--prompt-file", "prompts.txt", "--steps", "1", "--frames", "2", "--json"];
    let report = folder.run(&[&args[..], &["-q", "--clips-per-prompt", "2"]].concat()).ok().json();
    let rows = report["rows"].as_array().unwrap();
    let prompts: Vec<_> = rows.iter().map(|row| row["prompt"].as_str().unwrap()).collect();
    let (first, second) = ("a red circle (moving) right", "a blue square");
    assert_eq!(prompts, [first, first, second, second]);
    let seeds: Vec<_> = rows.iter().map(|row| row["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [0, 1, 2, 3]);
    assert!(report.get("score").is_none() && rows[0].get("shape").is_none());
    assert_eq!((&report["prompts"], &report["clips_per_prompt"]), (&2.into(), &2.into()));
    let run = folder.run(&[&args[..], &["--prompts", "1", "--sheet", "sheet.png"]].concat()).ok();
    assert_eq!(run.stderr, format!("1/1 {first}\n"));
    let sheet = image::load_from_memory(&folder.read("sheet.png")).unwrap();
    assert_eq!(sheet.width(), 2 * 64);
    assert!(folder.run(&[&args[..], &["--prompts", "3"]].concat()).fails(2).contains("has 2"));
    // Captions of the grammar are measured, and nothing else is one.
    let measured = [&args[..], &["--procedural", "-q"]].concat();
    assert!(folder.run(&measured).fails(2).contains("`a red circle (moving) right` is unknown"));
    folder.write("prompts.txt", "A red circle moving right on a black background\n");
    let report = folder.run(&measured).ok().json();
    assert_eq!(report["score"]["all"]["trials"], 1);
    assert!(report["rows"][0]["background"].is_boolean(), "{report}");
    folder.write("prompts.txt", "\n \n");
    assert!(folder.run(&args).fails(2).contains("has no prompts"));
}

#[test]
fn clips_from_a_video_are_measured_against_it_and_against_the_prompt() {
    let folder = Folder::new();
    let args = ["eval", "--procedural", "--from-video", "--prompts=3", "--seed=2", "--steps=4"];
    let run = |more: &[&str]| folder.run(&[&args[..], more].concat()).ok();
    let low = run(&["--strength=0.25", "--keep=0,15", "--json", "-q", "--sheet=sheet.png"]).json();
    let source = &low["source"];
    assert_eq!((&source["strength"], &source["keep"]), (&0.25.into(), &[0, 15].into()));
    // Motions as in the video and as in the prompt.
    let motions = |report: &serde_json::Value| {
        let hits = |of: &serde_json::Value| of["motion"]["hits"].as_u64().unwrap();
        (hits(&report["source"]["score"]), hits(&report["score"]))
    };
    assert!(motions(&low).0 > motions(&low).1, "{low}");
    assert_eq!(source["kept_error"], 0.0);
    for row in low["rows"].as_array().unwrap() {
        let caption = |text: &serde_json::Value| {
            text.as_str().unwrap().parse::<animatelcm::procedural::Caption>().unwrap()
        };
        let (prompt, from) = (caption(&row["prompt"]), caption(&row["source"]["caption"]));
        assert!(prompt.color != from.color && prompt.motion != from.motion);
    }
    // The video stands above each clip.
    let sheet = image::load_from_memory(&folder.read("sheet.png")).unwrap();
    // A label takes one line of text or more.
    let labels = sheet.height() - 6 * 64;
    assert!(sheet.width() == 8 * 64 && labels >= 6 * 10 && labels.is_multiple_of(10), "{labels}");

    // What the autoencoder makes of them.
    let off = ["--strength=0.25", "--keep=0,15", "--overlay=off", "--json", "-q"];
    let error = run(&off).json()["source"]["kept_error"].as_f64().unwrap();
    assert!(error > 0.0 && error < 4.0, "{error}");

    let high = run(&["--strength=1", "--json", "-q"]).json();
    assert!(motions(&high).0 < motions(&high).1, "{high}");
    assert!(high["source"].get("kept_error").is_none());
    let table = run(&["--strength=1", "-q"]);
    assert!(table.stdout().contains("start from, at strength 1\n"), "{}", table.stdout());
    assert!(!table.stdout().contains("kept frames"), "{}", table.stdout());
    for (more, says) in [
        (&["--from-video", "--prompt-file=p.txt"][..], "--prompt-file"),
        (&["--strength=0.5"], "--from-video"),
        (&["--from-video", "--strength=2"], "strength"),
        (&["--from-video", "--strength=0.1"], "strength"),
        (&["--from-video", "--keep=16"], "16"),
        (&["--from-video", "--overlay=off"], "--keep"),
        (&["--from-video", "-W", "64", "-H", "32"], "square"),
    ] {
        let failed = folder.run(&[&["eval", "--procedural", "-q"][..], more].concat());
        assert!(
            failed.fails(2).contains(says) || failed.hint().contains(says),
            "{}",
            failed.stderr
        );
    }
}
