//! What people see on a terminal: the bar, images in text. `script` of util-linux lends the terminal.

use std::process::Stdio;

use crate::support::program::{Folder, Outcome};

/// Runs the program on a terminal of its own, where stdout and stderr are one; `None` without `script`.
fn on_terminal(folder: &Folder, args: &[&str]) -> Option<Outcome> {
    let quoted = |word: &&str| format!("'{}'", word.replace('\'', r"'\''"));
    let words: Vec<String> = args.iter().map(quoted).collect();
    let line = format!("{} {}", env!("CARGO_BIN_EXE_animatelcm"), words.join(" "));
    let mut command = folder.command(&[]);
    let environment: Vec<_> = command
        .get_envs()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
        .collect();
    command = std::process::Command::new("script");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]).envs(environment);
    for name in ["KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL", "KONSOLE_VERSION", "TMUX"] {
        command.env_remove(name);
    }
    command.current_dir(folder.path(".")).env("TERM", "xterm-256color").stdin(Stdio::null());
    Some(Outcome::new(args, command.output().ok()?))
}

#[test]
fn the_bar_names_what_is_done_and_says_when_it_ends() {
    let folder = Folder::new();
    let args =
        ["generate", "a red star", "-W=256", "-H=256", "--frames=8", "--steps=3", "--seed=1"];
    let Some(done) = on_terminal(&folder, &[&args[..], &["-o", "a.gif"]].concat()) else { return };
    assert_eq!(done.code, Some(0), "{}", done.stdout());
    let shown = done.stdout();
    for part in ["denoising", "0/3  ", "1/3  ", " s to go", "decoding", "seed 1", "a.gif"] {
        assert!(shown.contains(part), "{part}: {shown:?}");
    }
    // It moves within a step.
    let still = shown.matches("0/3  0 s").count();
    assert!(still > 1, "{still}: {shown:?}");
}
