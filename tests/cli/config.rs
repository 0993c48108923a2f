//! `config.toml`.

use crate::support::program::{Folder, Outcome};

/// Runs the program with a configuration.
fn run(folder: &Folder, args: &[&str]) -> Outcome {
    let output = folder.command(args).env("ANIMATELCM_CONFIG", "c.toml").output().unwrap();
    Outcome::new(args, output)
}

#[test]
fn defaults_of_the_file_stand_behind_what_is_typed() {
    let folder = Folder::new();
    folder.write("c.toml", "steps = 6\nsampler = \"Euler a\"\nnegative-prompt = \"blurry\"\n");
    let dump =
        |args: &[&str]| run(&folder, &[&["generate", "--dump-request"], args].concat()).ok().json();
    let json = dump(&["a red star", "--sampler", "lcm"]);
    assert_eq!(json["sampling"]["steps"], 6);
    assert_eq!(json["sampling"]["sampler"], "lcm");
    assert_eq!(json["prompt"]["negative"], "blurry");
    // A request is complete without it.
    folder.write("r.json", r#"{"schema": "animatelcm/v1", "prompt": "a red star"}"#);
    assert_eq!(dump(&["--request", "r.json"])["sampling"]["steps"], 4);
}

#[test]
fn the_file_is_shown_and_its_mistakes_are_named() {
    let folder = Folder::new();
    folder.write("c.toml", "steps = 6\n");
    assert_eq!(run(&folder, &["config", "path"]).ok().stdout(), "c.toml\n");
    assert_eq!(run(&folder, &["config", "show"]).ok().stdout(), "# c.toml\nsteps = 6\n");
    folder.write("c.toml", "frmaes = 6\n");
    let wrong = run(&folder, &["generate", "a red star"]);
    assert!(wrong.fails(2).contains("c.toml: `frmaes` is no flag"), "{}", wrong.stderr);
    assert_eq!(wrong.hint(), "did you mean `frames`?");
    let missing = folder.command(&["inspect", "x"]).env("ANIMATELCM_CONFIG", "none.toml").output();
    assert_eq!(missing.unwrap().status.code(), Some(2));
}
