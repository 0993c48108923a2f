//! What `eval` measures and prints.

use crate::support::program::Folder;

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
    fails(&["--procedural", "--prompts", "0"], "prompts");
    fails(&["--procedural", "--ground-truth", "-W", "64", "-H", "32"], "square");
    fails(&["--procedural", "--ground-truth", "--frames", "0"], "frames");
    fails(&["--procedural", "--ground-truth", "--sheet", "sheet.gif"], "sheet.gif");
    fails(&["--procedural", "--steps", "0"], "steps");
    assert!(folder.names().is_empty());
}
