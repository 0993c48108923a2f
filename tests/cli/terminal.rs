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

#[test]
fn a_preview_shows_the_clip_in_the_terminal() {
    let folder = Folder::new();
    let clip = ["generate", "a green ring", "--frames=2", "--steps=1", "--seed=5", "-q", "-y"];
    let show = |more: &[&str]| on_terminal(&folder, &[&clip[..], more].concat());
    for (protocol, name, sign, times) in [
        // Frames are played: at least 22 lines of half blocks, drawn twice.
        ("--preview", "a.gif", "▀", 44 * 22 * 2),
        ("--preview=blocks", "f_%03d.png", "\x1b[22A", 1),
        ("--preview=kitty", "a.webp", "\x1b_Ga=f,f=24,s=64,v=64", 1),
        ("--preview=iterm2", "a.mp4", "\x1b]1337;File=inline=1;", 1),
        ("--preview=sixel", "a.png", "\x1bP0;1;0q\"1;1;256;256", 1),
    ] {
        let Some(shown) = show(&[protocol, "-o", name]) else { return };
        assert_eq!(shown.code, Some(0), "{protocol}: {}", shown.stdout());
        let found = shown.stdout().matches(sign).count();
        assert_eq!(found, times, "{protocol}: {:?}", shown.stdout());
    }
}

#[test]
fn a_preview_is_drawn_after_every_step_but_the_last() {
    let folder = Folder::new();
    let clip =
        ["generate", "a green ring", "--frames=2", "--steps=3", "--seed=5", "-y", "-o", "a.gif"];
    for (protocol, sign, most) in [
        ("kitty", "\x1b_Ga=f,f=24,s=64,v=64", 3),
        ("iterm2", "\x1b]1337;File=inline=1;", 3),
        ("sixel", "\x1bP0;1;0q", 3),
    ] {
        let preview = format!("--preview={protocol}");
        let Some(shown) = on_terminal(&folder, &[&clip[..], &[&preview]].concat()) else { return };
        assert_eq!(shown.code, Some(0), "{protocol}: {}", shown.stdout());
        // Two steps and the finished clip.
        assert_eq!(shown.stdout().matches(sign).count(), most, "{protocol}: {:?}", shown.stdout());
        // Two are drawn in one place, which is emptied at the end.
        assert_eq!(shown.stdout().matches("\x1b7\x1b[J").count(), 2, "{:?}", shown.stdout());
        assert_eq!(shown.stdout().matches("A\r\x1b[J").count(), 1, "{:?}", shown.stdout());
    }
}

#[test]
fn a_preview_without_a_terminal_is_refused_before_any_work() {
    let folder = Folder::new();
    let args = ["generate", "a green ring", "--preview", "-o", "a.gif"];
    let refused = folder.run(&args);
    assert!(refused.fails(2).contains("preview: needs a terminal"), "{}", refused.stderr);
    assert!(refused.hint().contains("--open"), "{}", refused.stderr);
    assert!(folder.names().is_empty());
    let piped = folder.run(&["generate", "a green ring", "--open", "-o", "-"]);
    assert!(piped.fails(2).contains("open: standard output is no file"), "{}", piped.stderr);
}

#[test]
fn the_systems_viewer_gets_the_finished_file() {
    use std::os::unix::fs::PermissionsExt;

    let folder = Folder::new();
    folder.write("bin/xdg-open", "#!/bin/sh\nhead -c 6 \"$1\" > seen; echo \"$#\" >> seen\n");
    let viewer = folder.path("bin/xdg-open");
    std::fs::set_permissions(&viewer, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path("bin").display(), std::env::var("PATH").unwrap());
    let args = ["generate", "a green ring", "--frames=2", "--steps=1", "--seed=5", "--open"];
    let named = [&args[..], &["-o", "-a.gif"]].concat();
    let output = folder.command(&named).env("PATH", path).output().unwrap();
    let opened = Outcome::new(&args, output).ok();
    assert_eq!(folder.read("seen"), b"GIF89a1\n", "{}", opened.stderr);

    // A system without one says so; the clip is there.
    let named = [&args[..], &["-o", "b.gif"]].concat();
    let output = folder.command(&named).env("PATH", folder.path("none")).output().unwrap();
    let alone = Outcome::new(&args, output).ok();
    assert_eq!(alone.stdout(), "b.gif\n");
    assert!(alone.stderr.contains("warning: open: xdg-open: "), "{}", alone.stderr);
}
