use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::program::{Folder, Outcome};

/// A request of a clip that takes no time.
fn line(prompt: &str, seed: u64) -> String {
    let request = json!({
        "prompt": prompt, "size": {"frames": 2}, "sampling": {"steps": 1, "seed": seed},
    });
    format!("{request}\n")
}

/// Four clips.
fn four() -> String {
    ["a red star", "a blue ring", "a green star", "a red ring"]
        .iter()
        .zip(1..)
        .map(|(prompt, seed)| line(prompt, seed))
        .collect()
}

const BATCH: [&str; 5] = ["batch", "jobs.jsonl", "-o", "out", "--format=gif"];

fn batch(folder: &Folder, more: &[&str]) -> Outcome {
    folder.run(&[&BATCH[..], more].concat())
}

/// The files in `out`, reports aside.
fn clips(folder: &Folder) -> Vec<String> {
    let names = crate::support::program::names(&folder.path("out"));
    names.into_iter().filter(|name| !name.starts_with("report.")).collect()
}

/// The lines of a report.
fn report(folder: &Folder, name: &str) -> Vec<Value> {
    let text = String::from_utf8(folder.read(&format!("out/{name}"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn statuses(folder: &Folder) -> Vec<String> {
    let records = report(folder, "report.1-of-1.jsonl");
    records.iter().map(|record| record["status"].as_str().unwrap().to_owned()).collect()
}

/// How often networks were loaded.
fn loads(outcome: &Outcome) -> usize {
    outcome.stderr.lines().filter(|line| line.starts_with("loading ")).count()
}

#[test]
fn clips_are_those_of_generate_and_are_made_once() {
    let folder = Folder::new();
    folder.write("jobs.jsonl", four());
    let made = batch(&folder, &[]).ok();
    let clips = clips(&folder);
    assert_eq!(clips.len(), 4, "{clips:?}");
    assert!(
        clips.iter().zip(1..).all(|(clip, number)| {
            clip.len() == 23 && clip.starts_with(&format!("{number:06}-")) && clip.ends_with(".gif")
        }),
        "{clips:?}"
    );
    let paths: Vec<String> = clips.iter().map(|clip| format!("out/{clip}\n")).collect();
    assert_eq!(made.stdout(), paths.concat());
    assert!(made.stderr.contains("4 of 4 clips to make"), "{}", made.stderr);
    assert!(made.stderr.contains("2/4 out/000002-"), "{}", made.stderr);
    assert!(made.stderr.contains(" s to go"), "{}", made.stderr);
    for (i, clip) in clips.iter().enumerate() {
        let text: Value = serde_json::from_str(four().lines().nth(i).unwrap()).unwrap();
        let mut request = text;
        request["schema"] = json!("animatelcm/v1");
        folder.write("one.json", request.to_string());
        let single = folder.run(&["generate", "--request", "one.json", "-o", "one.gif", "-y"]).ok();
        assert!(folder.read("one.gif") == folder.read(&format!("out/{clip}")), "{clip}");
        assert_eq!(loads(&single), loads(&made), "networks are loaded once: {}", made.stderr);
    }
    let records = report(&folder, "report.1-of-1.jsonl");
    for (record, clip) in records.iter().zip(&clips) {
        assert_eq!((&record["status"], &record["error"]), (&json!("done"), &Value::Null));
        assert_eq!(record["path"], json!(format!("out/{clip}")));
        assert_eq!(record["sha256"].as_str().unwrap().len(), 64);
        assert!(clip.contains(&record["key"].as_str().unwrap()[..12]));
        assert_eq!(record["device"], "cpu");
    }

    // The same command does nothing more.
    let again = batch(&folder, &[]).ok();
    assert_eq!((again.stdout(), loads(&again)), (made.stdout(), 0));
    assert!(again.stderr.contains("0 made, 4 there, 0 failed"), "{}", again.stderr);
    assert_eq!(statuses(&folder)[4..], ["skipped"; 4]);
    assert_eq!(batch(&folder, &["--check"]).ok().stdout(), "4 of 4 clips are there\n");

    // A line that changes is another clip.
    folder.write("jobs.jsonl", four().replace("a blue ring", "a navy ring"));
    let dry = batch(&folder, &["--dry-run"]).ok();
    let states: Vec<&str> = dry.stdout().lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(states, ["there", "missing", "there", "there"]);
    let check = batch(&folder, &["--check", "--json"]);
    assert_eq!(check.code, Some(6), "{}", check.stderr);
    assert!(check.stderr.contains("error: 1 of 4 clips are missing"), "{}", check.stderr);
    assert_eq!((&check.json()["there"], &check.json()["missing"]), (&json!(3), &json!(1)));
    batch(&folder, &[]).ok();
    assert_eq!(self::clips(&folder).len(), 5);
    assert_eq!(statuses(&folder)[8..], ["skipped", "done", "skipped", "skipped"]);
    // And so is every one in another format.
    let other = folder.run(&["batch", "jobs.jsonl", "-o", "out", "--format", "y4m", "--dry-run"]);
    assert!(other.ok().stdout().lines().all(|line| line.starts_with("missing ")));
}

#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    let whole = Folder::new();
    whole.write("jobs.jsonl", four());
    batch(&whole, &["-q"]).ok();
    let folder = Folder::new();
    folder.write("jobs.jsonl", four());
    for item in 1..=4 {
        let mut child = folder.spawn(&[&BATCH[..], &["--progress=json"]].concat());
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // Once per run, while an item is being made.
        let event = lines.by_ref().map(|line| line.unwrap()).find(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["event"] == "start" && event["item"] == item && event["items"] == 4
        });
        assert!(event.is_some(), "item {item}");
        stop(&child);
        let rest: Vec<String> = lines.map(|line| line.unwrap()).collect();
        let code = child.wait().unwrap().code();
        // The last may have been too fast for the signal.
        let is_whole = code == Some(0) && item == 4;
        assert!(code == Some(130) || is_whole, "item {item}: {code:?} {rest:?}");
        let there = clips(&folder);
        assert!(there.len() == item - 1 || (there.len() == item && is_late(&rest)), "{there:?}");
        assert!(there.iter().all(|name| name.ends_with(".gif")), "{there:?}");
        // The item that was cut off is made, so that the next run comes one further.
        let made = batch(&folder, &["--fail-fast", "-q"]);
        made.ok();
        for name in clips(&folder).iter().skip(item) {
            std::fs::remove_file(folder.path(&format!("out/{name}"))).unwrap();
        }
    }
    batch(&folder, &["-q"]).ok();
    assert_eq!(clips(&folder), clips(&whole));
    for name in clips(&folder) {
        let file = format!("out/{name}");
        assert!(folder.read(&file) == whole.read(&file), "{name}");
    }
    assert!(statuses(&folder).iter().any(|status| status == "cancelled"));
}

/// Whether a clip was complete before the run heard of the signal.
fn is_late(events: &[String]) -> bool {
    events.iter().any(|line| line.contains("\"event\":\"done\""))
}

#[cfg(unix)]
fn stop(child: &std::process::Child) {
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
}

#[cfg(not(unix))]
fn stop(_: &std::process::Child) {}

#[test]
fn shards_at_once_make_everything_once() {
    let folder = Folder::new();
    folder.write("jobs.jsonl", four());
    let start = |shard: &str| {
        let mut command = folder.command(&[&BATCH[..], &["--shard", "auto", "-q"]].concat());
        command.env("ANIMATELCM_SHARD", shard).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let both = [start("1/2"), start("2/2")].map(|child| child.wait_with_output().unwrap());
    for (output, shard) in both.iter().zip(1..) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let name = format!("report.{shard}-of-2.jsonl");
        let records = report(&folder, &name);
        let numbers: Vec<_> = records.iter().map(|r| r["number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, [shard, shard + 2]);
        assert!(records.iter().all(|record| record["status"] == "done"));
    }
    assert_eq!(batch(&folder, &["--check"]).ok().stdout(), "4 of 4 clips are there\n");
    let other = batch(&folder, &["--check", "--shard", "2/3"]).ok();
    assert_eq!(other.stdout(), "1 of 1 clips are there\n");
}

#[test]
fn a_report_is_written_by_one_process_and_half_a_line_stays_alone() {
    let folder = Folder::new();
    folder.write("jobs.jsonl", line("a red star", 1));
    folder.write("out/report.1-of-1.jsonl", "{\"number\": 1, \"na");
    let file = std::fs::File::open(folder.path("out/report.1-of-1.jsonl")).unwrap();
    file.lock().unwrap();
    let busy = batch(&folder, &[]);
    assert!(busy.fails(2).contains("another run of shard 1/1"), "{}", busy.stderr);
    drop(file);
    batch(&folder, &[]).ok();
    let text = String::from_utf8(folder.read("out/report.1-of-1.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "{\"number\": 1, \"na"));
    assert!(serde_json::from_str::<Value>(lines[1]).is_ok());
}

#[test]
fn each_set_of_weights_is_loaded_once() {
    let folder = Folder::new();
    // The same model in other dtypes is another set.
    let mut lines = Vec::new();
    for (dtype, seed) in ["f32", "bf16", "f32", "bf16"].iter().zip(1..) {
        let mut request: Value = serde_json::from_str(&line("a red star", seed)).unwrap();
        request["models"] = json!({"dtype": dtype, "device": "cpu"});
        lines.push(request.to_string());
    }
    folder.write("jobs.jsonl", lines.join("\n"));
    let made = batch(&folder, &[]).ok();
    let order: Vec<&str> = made.stdout().lines().map(|line| &line[4..10]).collect();
    assert_eq!(order, ["000001", "000003", "000002", "000004"]);
    let unets = made.stderr.lines().filter(|line| line.starts_with("loading unet")).count();
    assert_eq!(unets, 2, "{}", made.stderr);
}

#[test]
fn what_fails_does_not_end_the_others_unless_asked_to() {
    let folder = Folder::new();
    folder.write("jobs.jsonl", four());
    // A file that has a clip's name and is not it.
    let dry = batch(&folder, &["--dry-run", "--json"]).ok();
    assert!(!folder.path("out").exists(), "nothing is written");
    let second: Value = serde_json::from_str(dry.stdout().lines().nth(1).unwrap()).unwrap();
    assert_eq!(
        (&second["number"], &second["line"], &second["seed"]),
        (&json!(2), &json!(2), &json!(2))
    );
    let taken = second["path"].as_str().unwrap();
    folder.write(taken, "theirs");
    let failed = batch(&folder, &["--json", "--progress=json"]);
    assert_eq!(failed.code, Some(6), "{}", failed.stderr);
    let records: Vec<Value> =
        failed.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<_> = records.iter().map(|record| record["status"].as_str().unwrap()).collect();
    assert_eq!(found, ["done", "failed", "done", "done"]);
    assert_eq!(records[1]["error"]["code"], 2);
    assert_eq!(folder.read(taken), b"theirs");
    let events = failed.events();
    let items: Vec<_> = events.iter().filter(|event| event["event"] == "item").collect();
    assert_eq!(items.len(), 4);
    assert_eq!((&items[1]["status"], &items[1]["item"]), (&json!("failed"), &json!(2)));
    assert!(items[0]["eta_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(items[3]["eta_seconds"], 0.0);
    assert!(events.iter().any(|e| e["event"] == "step" && e["item"] == 3 && e["items"] == 4));
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["code"]), (&json!("error"), &json!(6)));

    let again = batch(&folder, &["--fail-fast"]);
    assert_eq!(again.code, Some(6), "{}", again.stderr);
    assert!(again.stderr.contains("error: 1 of 4 clips failed"), "{}", again.stderr);
    assert_eq!(statuses(&folder)[4..], ["skipped", "failed"]);
    batch(&folder, &["-y", "-q"]).ok();
    assert_ne!(folder.read(taken), b"theirs");
}

#[test]
fn clips_without_metadata_are_known_by_the_report() {
    for flags in [&["--format=y4m"][..], &["--format=gif", "--no-metadata"]] {
        let folder = Folder::new();
        folder.write("jobs.jsonl", four());
        let args = [&BATCH[..4], flags].concat();
        folder.run(&args).ok();
        folder.run(&args).ok();
        assert_eq!(statuses(&folder)[4..], ["skipped"; 4], "{flags:?}");
        // A file that changed is not the clip.
        let clip = clips(&folder)[0].clone();
        let mut bytes = folder.read(&format!("out/{clip}"));
        *bytes.last_mut().unwrap() ^= 1;
        folder.write(&format!("out/{clip}"), bytes);
        let dry = folder.run(&[&args[..], &["--dry-run"]].concat()).ok();
        assert!(dry.stdout().starts_with("other "), "{}", dry.stdout());
    }
}

#[test]
fn names_follow_a_template_and_standard_input_is_a_manifest() {
    let folder = Folder::new();
    let args = ["batch", "-", "-o", "out", "--format=gif", "--name={number}-{seed}-{slug}", "-q"];
    let mut command = folder.command(&args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(line("a Red star", 7).as_bytes()).unwrap();
    let outcome = Outcome::new(&args, child.wait_with_output().unwrap()).ok();
    assert!(outcome.stdout().starts_with("out/000001-7-a-red-star-"), "{}", outcome.stdout());
    assert_eq!(clips(&folder).len(), 1);
}

#[test]
fn what_cannot_start_is_said_before_anything_is_made() {
    let folder = Folder::new();
    folder.write("jobs.jsonl", four());
    folder.write("file", "");
    let absent = |field: Value| {
        let mut request: Value = serde_json::from_str(&line("a", 1)).unwrap();
        request.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        format!("{}{request}\n", line("a red star", 1))
    };
    folder.write("weights.jsonl", absent(json!({"models": {"checkpoint": "none.safetensors"}})));
    folder.write("hint.jsonl", absent(json!({"source": {"image": "none.png"}})));
    folder.write("mp4.jsonl", absent(json!({"size": {"width": 12}})));
    folder.write("out/report.1-of-1.jsonl", line("a red star", 1));
    for (args, code, part) in [
        (&["jobs.jsonl", "-o", "file"][..], 2, "`file` is not a folder"),
        (&["jobs.jsonl", "-o", "jobs.jsonl"], 2, "`jobs.jsonl` is not a folder"),
        (&["out/report.1-of-1.jsonl", "-o", "out"], 2, "is where the report goes"),
        (&["jobs.jsonl", "-o", "/proc/out"], 2, "/proc/out"),
        (&["none.jsonl", "-o", "x"], 2, "none.jsonl"),
        (&["weights.jsonl", "-o", "x"], 3, "weights.jsonl: line 2: --checkpoint none.safetensors"),
        (&["hint.jsonl", "-o", "x"], 2, "hint.jsonl: line 2: image"),
        (&["mp4.jsonl", "-o", "x"], 2, "line 2: output: mp4 holds images of 16 by 16"),
        (&["jobs.jsonl", "-o", "x", "--format", "avi"], 2, "`avi` is none of gif"),
        (&["jobs.jsonl", "-o", "x", "--name", "{nr}"], 2, "`{nr}` is none of"),
        (&["jobs.jsonl", "-o", "x", "--shard", "3/2"], 2, "is not I/N"),
        (&["jobs.jsonl", "-o", "x", "--shard", "auto"], 2, "is set"),
        (&["jobs.jsonl", "-o", "x", "--shard", "1/2", "--shards", "2"], 2, "for --shard auto"),
    ] {
        let failed = folder.run(&[&["batch"], args].concat());
        assert!(failed.fails(code).contains(part), "{args:?}: {}", failed.stderr);
        assert!(!failed.stderr.contains("loading"), "{}", failed.stderr);
    }
    assert!(!folder.path("x").exists());
}
