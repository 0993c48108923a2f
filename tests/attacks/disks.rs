//! Places that take no clip: full, closed, not there.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::attack::refused;
use crate::support::program::{Folder, Outcome};

#[test]
fn what_cannot_be_written_is_refused_before_any_work() {
    let folder = Folder::new();
    for args in [
        ["-o", "/proc/clip.gif"],
        ["-o", "/proc/clip_%03d.png"],
        ["--tensors-out", "/proc/t.safetensors"],
    ] {
        let words = ["generate", "a red star", "--seed=1"];
        let output: &[&str] = if args[0] == "-o" { &[] } else { &["-o", "clip.gif"] };
        let outcome = folder.run(&[&words[..], &args, output].concat());
        refused(&folder, &outcome, 2, &["/proc"], &[]);
        assert!(!outcome.stderr.contains("loading"), "{}", outcome.stderr);
    }
}

/// Runs the program on a file system of so many KiB that it has for itself, and lists what is left on it.
fn on_a_disk_of(kib: u32, folder: &Folder, args: &[&str]) -> Option<(Outcome, String)> {
    let program = folder.command(&[]).get_program().to_owned();
    fs::create_dir_all(folder.path("disk")).unwrap();
    let script = format!(
        "mount -t tmpfs -o size={kib}k tmpfs disk || exit 99; cd disk; \"$@\"; code=$?; ls -A > ../left; exit $code"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", &script, "sh"]).arg(program).args(args);
    command.current_dir(folder.path("")).env("HF_HOME", folder.path("no-models"));
    let output = command.output().ok()?;
    if output.status.code() == Some(99)
        || String::from_utf8_lossy(&output.stderr).contains("unshare:")
    {
        return None;
    }
    let left = String::from_utf8(folder.read("left")).unwrap();
    Some((Outcome::new(args, output), left))
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let words = ["generate", "a red star", "--frames=16", "--steps=1", "--seed=1"];
    for output in [
        &["-o", "a.gif"][..],
        &["-o", "a.webp"],
        &["-o", "a.png"],
        &["-o", "a.mp4"],
        &["-o", "a.y4m"],
        &["-o", "f_%03d.png"],
    ] {
        // The size of the first is less than any clip, that of the second less than most.
        for kib in [4, 16] {
            let Some((outcome, left)) = on_a_disk_of(kib, &folder, &[&words[..], output].concat())
            else {
                println!("SKIPPED: no small file system can be mounted here");
                return;
            };
            if kib == 16 && outcome.code == Some(0) {
                continue;
            }
            assert!(
                outcome.fails(1).contains(output[1].split('_').next().unwrap()),
                "{}",
                outcome.stderr
            );
            assert!(outcome.hint().contains("space"), "{}", outcome.stderr);
            assert_eq!(left, "", "{output:?}");
        }
    }
    // A clip that fits and tensors that do not: neither is left.
    let more = ["-o", "a.gif", "--tensors-out", "t.safetensors"];
    let (outcome, left) = on_a_disk_of(128, &folder, &[&words[..], &more].concat()).unwrap();
    assert!(outcome.fails(1).contains("t.safetensors"), "{}", outcome.stderr);
    assert!(outcome.hint().contains("space"), "{}", outcome.stderr);
    assert_eq!(left, "");
}

#[test]
fn a_full_pipe_is_an_error() {
    let folder = Folder::new();
    let full = fs::OpenOptions::new().write(true).open(Path::new("/dev/full")).unwrap();
    let args = ["generate", "x", "--frames=2", "--steps=1", "-q", "-o", "-"];
    let output = folder.command(&args).stdout(full).output().unwrap();
    let outcome = Outcome::new(&args, output);
    refused(&folder, &outcome, 1, &["standard output"], &[]);
}
