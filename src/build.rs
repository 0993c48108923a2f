//! Finds the commit that `--version` shows.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    commit();
}

/// Sets `ANIMATELCM_COMMIT` for builds with optimisation, which others compile anew with every commit.
fn commit() {
    if env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        return;
    }
    // A package of the registry has the commit in a file.
    let packaged = std::fs::read_to_string(".cargo_vcs_info.json").unwrap_or_default();
    let packaged = packaged.split("\"sha1\": \"").nth(1).and_then(|rest| rest.get(..10));
    let found = packaged.map(str::to_owned).or_else(|| {
        // Not that of a repository around this one.
        git(&["rev-parse", "--show-prefix"]).filter(String::is_empty)?;
        if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
            println!("cargo::rerun-if-changed={log}");
        }
        git(&["rev-parse", "--short=10", "HEAD"])
    });
    if let Some(commit) = found {
        println!("cargo::rustc-env=ANIMATELCM_COMMIT={commit}");
    }
}

fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
