//! Help, completions, manual pages.

use crate::support::program::Folder;

#[test]
fn help_fits_a_screen_and_the_long_one_has_examples() {
    let folder = Folder::new();
    for command in ["generate", "batch", "inspect", "replay", "preprocess", "eval", "bench"] {
        let short = folder.run(&[command, "-h"]).ok();
        assert!(short.stdout().lines().count() < 24, "{command}: {}", short.stdout());
        let long = folder.run(&[command, "--help"]).ok();
        let examples = long.stdout().split_once("Examples:").unwrap().1;
        let lines = examples.lines().filter(|line| line.contains("animatelcm "));
        assert_eq!(lines.count(), 5, "{command}: {examples}");
    }
    let long = folder.run(&["help", "generate"]).ok();
    assert!(long.stdout().contains("--beta-schedule"), "{}", long.stdout());
}

#[test]
fn completions_and_manual_pages_know_the_flags() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let text = folder.run(&["completions", shell]).ok();
        assert!(text.stdout().contains("negative-prompt"), "{shell}: {}", text.stdout());
        assert!(!text.stdout().contains("\\u00"), "{shell}: {}", text.stdout());
    }
    let bash = folder.run(&["completions", "bash"]).ok();
    assert!(bash.stdout().contains("animatelcm-t2v-lora"), "{}", bash.stdout());
    assert!(folder.run(&["man"]).ok().stdout().contains(".TH animatelcm"));
    assert!(folder.run(&["man", "generate"]).ok().stdout().contains("negative"));
    assert!(folder.run(&["man", "generat"]).fails(2).contains("`generat` is not a command"));
    assert!(folder.run(&["completions", "cmd"]).fails(2).contains("bash"));
}

#[test]
fn the_program_says_what_it_is_made_of() {
    let folder = Folder::new();
    let version = folder.run(&["--version"]).ok();
    let wanted = format!("animatelcm {}", env!("CARGO_PKG_VERSION"));
    assert!(version.stdout().starts_with(&wanted), "{}", version.stdout());
    let features =
        version.stdout().lines().find_map(|line| line.strip_prefix("features: ")).unwrap();
    assert_eq!(features.split(", ").any(|name| name == "mp4"), cfg!(feature = "mp4"));
    assert_eq!(folder.run(&["-V"]).ok().stdout(), format!("{wanted}\n"));
    let licenses = folder.run(&["licenses"]).ok();
    for part in ["OpenH264", "candle-core", "Apache License"] {
        assert!(licenses.stdout().contains(part), "{part}");
    }
}

#[cfg(feature = "hub")]
#[test]
fn errors_of_models_are_events_with_progress_as_json() {
    let folder = Folder::new();
    let failed = folder.run(&["models", "path", "no-such-model", "--progress=json"]);
    assert_eq!(failed.code, Some(2), "{}", failed.stderr);
    let event: serde_json::Value = serde_json::from_str(failed.stderr.trim()).unwrap();
    assert_eq!((&event["event"], &event["code"]), (&"error".into(), &2.into()));
}

#[test]
fn hints_name_the_flag_that_was_meant_or_none() {
    let folder = Folder::new();
    let hint = |args: &[&str]| {
        let failed = folder.run(&[&["generate", "x"], args].concat());
        failed.fails(2);
        failed.hint().to_owned()
    };
    assert_eq!(hint(&["--smapler", "lcm"]), "did you mean `--sampler`?");
    assert!(hint(&["--format", "mp4"]).contains("-o clip.mp4"));
    assert_eq!(hint(&["--colours"]), "see `animatelcm generate --help`");
    assert_eq!(hint(&["--seed", "abc"]), "see `animatelcm generate --help`");
    assert!(folder.run(&["generate", "x", "-W", "-64"]).fails(2).contains("must be at least 8"));
}
