//! Prompts and requests from standard input, many clips of one run.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::program::{Folder, Outcome};

/// Runs the program with a text on standard input.
fn piped(folder: &Folder, args: &[&str], text: &str) -> Outcome {
    let mut command = folder.command(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = text.to_owned();
    // A program that does not read it closes the pipe.
    let writer = std::thread::spawn(move || drop(stdin.write_all(text.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Outcome::new(args, output)
}

/// A request of a clip that takes no time.
fn request(prompt: &str, seed: u64) -> Value {
    json!({
        "schema": "animatelcm/v1", "prompt": prompt, "size": {"frames": 2},
        "sampling": {"steps": 1, "seed": seed},
    })
}

/// How often networks were loaded.
fn loads(outcome: &Outcome) -> usize {
    outcome.stderr.lines().filter(|line| line.starts_with("loading ")).count()
}

fn lines(outcome: &Outcome) -> Vec<Value> {
    outcome.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_dash_reads_the_prompt_from_standard_input() {
    let folder = Folder::new();
    for args in [&["generate", "-"][..], &["generate", "-p", "-"]] {
        let args = [args, &["--dump-request"]].concat();
        let dumped = piped(&folder, &args, "a red circle\n").ok().json();
        assert_eq!(dumped["prompt"]["text"], "a red circle");
    }
    let empty = piped(&folder, &["generate", "-"], "\n");
    assert!(empty.fails(2).contains("standard input is empty"), "{}", empty.stderr);
    let both = piped(&folder, &["generate", "-", "--request", "-"], "x");
    assert!(both.fails(2).contains("taken by the request"), "{}", both.stderr);
}

#[test]
fn a_request_comes_from_standard_input() {
    let folder = Folder::new();
    let text = serde_json::to_string_pretty(&request("a red star", 3)).unwrap();
    let made = piped(&folder, &["generate", "--request", "-", "-o", "a.gif"], &text).ok();
    assert_eq!(made.stdout(), "a.gif\n");
}

#[test]
fn json_lines_are_answered_one_by_one_with_the_weights_kept() {
    let folder = Folder::new();
    let wrong = json!({"schema": "animatelcm/v1", "size": {"frames": 0}});
    let text = format!("{}\n\n{wrong}\n{}\n", request("a red star", 3), request("a blue ring", 4));
    folder.write("jobs.jsonl", &text);
    let run = folder.run(&["generate", "--request", "jobs.jsonl", "-o", "c.gif"]);
    assert_eq!(run.code, Some(6), "{}", run.stderr);
    assert!(run.stderr.contains("error: 1 of 3 clips failed"), "{}", run.stderr);
    assert!(run.stderr.contains("frames: must be at least 1"), "{}", run.stderr);
    let answers = lines(&run);
    let events: Vec<_> = answers.iter().map(|answer| answer["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["done", "error", "done"]);
    assert_eq!((&answers[0]["path"], &answers[2]["path"]), (&json!("c-1.gif"), &json!("c-3.gif")));
    assert_eq!(answers[1]["code"], 2);
    assert_eq!(folder.names(), ["c-1.gif", "c-3.gif", "jobs.jsonl"]);

    // The clips are those of single runs, which load all networks each.
    let single = ["generate", "a blue ring", "--frames=2", "--steps=1", "--seed=4", "-o", "s.gif"];
    let single = folder.run(&single).ok();
    assert!(folder.read("s.gif") == folder.read("c-3.gif"));
    assert_eq!(loads(&run), loads(&single), "{}", run.stderr);

    // A list is the same, and flags override every request.
    let list = json!([request("a red star", 3), request("a blue ring", 4)]);
    folder.write("jobs.json", list.to_string());
    let run = folder.run(&["generate", "--request", "jobs.json", "-q", "--seed", "9"]).ok();
    let paths: Vec<_> = lines(&run).iter().map(|answer| answer["path"].clone()).collect();
    assert_eq!(paths, [json!("a-red-star-9.gif"), json!("a-blue-ring-9.gif")]);
}

#[test]
fn wrong_lines_are_named_and_one_clip_is_one_clip() {
    let folder = Folder::new();
    folder.write("jobs.jsonl", format!("{}\n{{\"schema\": 1}}\n", request("a red star", 3)));
    let run = folder.run(&["generate", "--request", "jobs.jsonl", "--dump-request", "-q"]);
    assert_eq!(run.code, Some(6), "{}", run.stderr);
    assert!(run.stderr.contains("jobs.jsonl: line 2: not a request"), "{}", run.stderr);
    for (flags, reason) in [
        (&["--count", "2"][..], "one clip of each"),
        (&["--tensors-out", "t.safetensors"], "for one clip"),
        (&["--open"], "for one clip"),
        (&["-o", "-"], "taken by the answers"),
    ] {
        let run = folder.run(&[&["generate", "--request", "jobs.jsonl"], flags].concat());
        assert!(run.fails(2).contains(reason), "{}", run.stderr);
    }
    // One line in a file of another name is one request, answered like any other.
    folder.write("one.json", request("a red star", 3).to_string());
    let run = folder.run(&["generate", "--request", "one.json", "-o", "one.gif"]).ok();
    assert_eq!(run.stdout(), "one.gif\n");
}

#[test]
fn a_line_is_answered_before_the_next_one_is_written() {
    let folder = Folder::new();
    let mut command = folder.command(&["generate", "--request", "-", "-q"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    for seed in [1, 2] {
        writeln!(stdin, "{}", request("a red star", seed)).unwrap();
        let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        assert_eq!((&answer["event"], &answer["seed"]), (&json!("done"), &json!(seed)));
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn count_makes_clips_of_consecutive_seeds_with_networks_loaded_once() {
    let folder = Folder::new();
    let args = ["generate", "a green ring", "--frames=2", "--steps=1", "--seed=5"];
    let one = folder.run(&[&args[..], &["-o", "one.gif"]].concat()).ok();
    let many = folder.run(&[&args[..], &["-o", "c.gif", "-b", "3"]].concat()).ok();
    assert_eq!(many.stdout(), "c-1.gif\nc-2.gif\nc-3.gif\n");
    assert_eq!(loads(&many), loads(&one), "{}", many.stderr);
    assert!(folder.read("one.gif") == folder.read("c-1.gif"));
    let shown = folder.run(&["inspect", "--json", "c-3.gif"]).ok().json();
    assert_eq!(shown["sampling"]["seed"], 7);
}
