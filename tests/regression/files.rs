//! Files that the program writes: what it must not touch, what it leaves behind, and names of every kind.

use std::fs;
#[cfg(unix)]
use std::path::Path;

use crate::support::program::Folder;

/// A clip that takes no time.
const QUICK: [&str; 7] = ["generate", "a green ring", "--frames", "2", "--steps", "1", "--seed=5"];

fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUICK.iter().chain(more).copied().collect()
}

/// Measuring one rendered clip.
const MEASURE: [&str; 6] =
    ["eval", "--procedural", "--ground-truth", "--prompts=1", "-q", "--json"];

#[test]
fn tensors_never_go_where_the_clip_goes() {
    let folder = Folder::new();
    folder.write("sub/keep", "");
    for (clip, tensors) in [
        ("a.gif", "a.gif"),
        ("a.gif", "./a.gif"),
        ("sub/a.gif", "sub/../sub/a.gif"),
        ("s_%d.png", "s_0.png"),
        ("s_%03d.png", "./s_123.png"),
    ] {
        for overwrite in [&[][..], &["-y"]] {
            let args = [&["-o", clip, "--tensors-out", tensors], overwrite].concat();
            let refused = folder.run(&quick(&args));
            let line = refused.fails(2);
            assert!(
                line.starts_with("error: tensors-out: ") && line.contains("the clip"),
                "{line}"
            );
            assert!(!refused.stderr.contains("loading"), "{}", refused.stderr);
        }
    }
    assert_eq!(folder.names(), ["sub"]);
    // Names that no frame can have.
    folder.run(&quick(&["-o", "s_%03d.png", "--tensors-out", "s_0.png"])).ok();
    assert_eq!(folder.names(), ["s_0.png", "s_000.png", "s_001.png", "sub"]);
}

#[cfg(unix)]
#[test]
fn nothing_but_ordinary_files_is_replaced() {
    use std::os::unix::fs::{FileTypeExt, symlink};

    let folder = Folder::new();
    fs::create_dir(folder.path("folder.png")).unwrap();
    symlink("/dev/full", folder.path("device.png")).unwrap();
    symlink("nowhere", folder.path("dangling.png")).unwrap();
    let fifo = folder.path("fifo.png");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let before = folder.names();
    for (name, reason) in [
        ("folder.png", "is a folder"),
        ("device.png", "is not an ordinary file"),
        ("fifo.png", "is not an ordinary file"),
        ("dangling.png", "is a link that leads nowhere"),
        ("none/a.png", "does not exist"),
    ] {
        let sheet = [&MEASURE[..], &["--sheet", name, "-y"]].concat();
        for args in [
            quick(&["-y", "-o", name]),
            quick(&["-y", "-o", "a.gif", "--tensors-out", name]),
            sheet,
        ] {
            let refused = folder.run(&args);
            assert!(refused.fails(2).contains(reason), "{args:?}: {}", refused.stderr);
            assert!(!refused.stderr.contains("loading"), "{}", refused.stderr);
        }
    }
    assert_eq!(folder.names(), before);
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
    // A frame of a series is no exception.
    fs::rename(&fifo, folder.path("f_1.png")).unwrap();
    let refused = folder.run(&quick(&["-y", "-o", "f_%d.png"]));
    assert!(refused.fails(2).contains("f_1.png` is not an ordinary file"), "{}", refused.stderr);
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_what_exists_is_kept() {
    let folder = Folder::new();
    folder.write("real/t.safetensors", "mine");
    folder.write("real/s.png", "mine");
    for name in ["t.safetensors", "s.png"] {
        std::os::unix::fs::symlink(Path::new("real").join(name), folder.path(name)).unwrap();
    }
    let generate = ["-o", "a.gif", "--tensors-out", "t.safetensors"];
    let eval = [&MEASURE[..], &["--sheet", "s.png"]].concat();
    for args in [quick(&generate), eval.clone()] {
        let refused = folder.run(&args);
        assert!(refused.fails(2).contains("exists"), "{}", refused.stderr);
        assert!(refused.hint().contains("-y"), "{}", refused.stderr);
    }
    for name in ["real/t.safetensors", "real/s.png"] {
        assert_eq!(folder.read(name), b"mine");
    }
    folder.run(&[&quick(&generate)[..], &["-y"]].concat()).ok();
    folder.run(&[&eval[..], &["-y"]].concat()).ok();
    for name in ["t.safetensors", "s.png"] {
        assert!(fs::symlink_metadata(folder.path(name)).unwrap().is_symlink(), "{name}");
        assert!(folder.read(&format!("real/{name}")).len() > 100, "{name}");
    }
}

#[cfg(unix)]
#[test]
fn tensors_have_the_permissions_of_ordinary_files() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    folder.write("ordinary", "");
    folder.run(&quick(&["-o", "a.y4m", "--tensors-out", "t.safetensors"])).ok();
    let mode = |name: &str| fs::metadata(folder.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!([mode("a.y4m"), mode("t.safetensors")], [mode("ordinary"); 2]);
}

/// Linux takes any bytes for a name; others insist on text.
#[cfg(target_os = "linux")]
#[test]
fn names_need_not_be_text() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt;

    let folder = Folder::new();
    let odd = |bytes: &[u8]| OsStr::from_bytes(bytes).to_os_string();
    fs::create_dir(folder.path("d").parent().unwrap().join(odd(b"d\xff"))).unwrap();
    let run = |args: Vec<OsString>| {
        let output = folder.command(&[]).args(&args).output().unwrap();
        crate::support::program::Outcome::new(&["with odd names"], output)
    };
    for (clip, shown) in [
        (&b"x\xff.gif"[..], "x\u{fffd}.gif"),
        (b"d\xff/y.gif", "d\u{fffd}/y.gif"),
        (b"\xe7\x8c\xab.gif", "猫.gif"),
    ] {
        let words = |more: &[&str]| -> Vec<OsString> {
            // Flags come before and after the name.
            let mut words: Vec<OsString> = quick(more).into_iter().map(Into::into).collect();
            words.extend(["-o".into(), odd(clip), "--fps".into(), "8".into()]);
            words
        };
        let done = run(words(&["--json"])).ok();
        assert_eq!(done.json()["path"], shown);
        let events = run(words(&["-y", "--progress=json"])).ok().events();
        assert_eq!(events.last().unwrap()["path"], shown);
        for args in [
            vec!["inspect".into(), "--json".into(), odd(clip)],
            vec!["replay".into(), odd(clip), "--json".into()],
        ] {
            let done = run(args).ok();
            assert!(done.json().is_object());
        }
    }
    let beside = folder.path("d").parent().unwrap().join(odd(b"x\xff-replay.gif"));
    assert!(beside.exists(), "the replay has another name");
    let mut words: Vec<OsString> =
        quick(&["-o", "b.gif", "--tensors-out"]).into_iter().map(Into::into).collect();
    words.push(odd(b"t\xff.safetensors"));
    run(words).ok();
}

#[cfg(unix)]
#[test]
fn names_that_the_system_does_not_take_are_refused_before_any_work() {
    let folder = Folder::new();
    let long = |count: usize, end: &str| "n".repeat(count - end.len()) + end;
    for args in [
        &["-o", &long(256, ".gif")][..],
        &["-o", &long(258, "_%03d.png")],
        &["-o", "a.gif", "--tensors-out", &long(300, ".safetensors")],
    ] {
        let refused = folder.run(&quick(args));
        assert!(refused.fails(2).contains("too long a name"), "{}", refused.stderr);
        assert!(!refused.stderr.contains("loading"), "{}", refused.stderr);
    }
    assert!(folder.names().is_empty());
    folder.run(&quick(&["-o", &long(255, ".y4m")])).ok();
    folder.run(&quick(&["-o", &long(256, "_%03d.png")])).ok();
}

#[test]
fn a_series_that_a_killed_run_was_renaming_is_made_whole_by_the_next() {
    let folder = Folder::new();
    let killed = |name: &str, text: &str| {
        folder.write(&format!(".animatelcm-killed.part/{name}"), text);
    };
    // Of three old frames one was away already.
    folder.write("f_1.png", "old 1");
    folder.write("f_2.png", "old 2");
    let plan = r#"{"old":["f_0.png","f_1.png","f_2.png"],"new":["f_0.png","f_1.png"],"is_replacing":true}"#;
    for (name, text) in
        [("lock", ""), ("plan", plan), ("old-0", "old 0"), ("new-0", "new 0"), ("new-1", "new 1")]
    {
        killed(name, text);
    }
    // Even a run that is refused puts it right.
    folder.run(&quick(&["-o", "f_%d.png"])).fails(2);
    assert_eq!(folder.names(), ["f_0.png", "f_1.png"]);
    assert_eq!(folder.read("f_0.png"), b"new 0");
    assert_eq!(folder.read("f_1.png"), b"new 1");
    // Without a plan nothing had begun.
    for (name, text) in [("lock", ""), ("new-0", "half")] {
        killed(name, text);
    }
    folder.run(&quick(&["-o", "other.y4m"])).ok();
    assert_eq!(folder.names(), ["f_0.png", "f_1.png", "other.y4m"]);
}

#[test]
fn an_animated_png_may_be_called_apng() {
    let folder = Folder::new();
    folder.run(&quick(&["-o", "a.apng"])).ok();
    folder.run(&quick(&["-o", "b.png"])).ok();
    assert_eq!(folder.read("a.apng"), folder.read("b.png"));
    folder.run(&["replay", "a.apng"]).ok();
    assert_eq!(folder.read("a-replay.apng"), folder.read("a.apng"));
}

#[test]
fn a_rate_that_is_a_fraction_stays_exact() {
    let folder = Folder::new();
    for (rate, fraction) in
        [("30000/1001", (30_000, 1001)), ("24000/1001", (24_000, 1001)), ("25/2", (25, 2))]
    {
        folder.run(&quick(&["--fps", rate, "-o", "a.mp4", "-y"])).ok();
        folder.run(&quick(&["--fps", rate, "-o", "a.y4m", "-y"])).ok();
        let header = String::from_utf8(folder.read("a.y4m")[..60].to_vec()).unwrap();
        let (over, under) = fraction;
        assert!(header.contains(&format!(" F{over}:{under} ")), "{header}");
        // Units a second in the media header, and units a frame in the table of times.
        let mp4 = folder.read("a.mp4");
        let field = |name: &[u8], offset: usize| {
            let at = mp4.windows(4).position(|bytes| bytes == name).unwrap() + 4 + offset;
            u64::from(u32::from_be_bytes(mp4[at..at + 4].try_into().unwrap()))
        };
        assert_eq!(field(b"mdhd", 12) * under, field(b"stts", 12) * over, "{rate}");
        let before = folder.read("a.mp4");
        folder.run(&["replay", "a.mp4", "-y"]).ok();
        assert_eq!(folder.read("a-replay.mp4"), before, "{rate}");
    }
    for wrong in ["30000/0", "a/b", "1/2/3"] {
        folder.run(&quick(&["--fps", wrong, "-o", "wrong.mp4"])).fails(2);
    }
}

#[test]
fn a_shorter_series_says_what_it_removes_of_a_longer_one() {
    let folder = Folder::new();
    for name in ["f_00.png", "f_01.png", "f_02.png", "f_03.png", "f_05.png"] {
        folder.write(name, "old");
    }
    let run = folder.run(&quick(&["-o", "f_%02d.png", "-y"]));
    let warning = "warning: `f_02.png` to `f_03.png` of an older series will be removed";
    assert!(run.stderr.contains(warning), "{}", run.stderr);
    assert_eq!(folder.names(), ["f_00.png", "f_01.png", "f_05.png"]);
    assert!(!folder.run(&quick(&["-o", "f_%02d.png", "-y"])).stderr.contains("warning"));
}

#[test]
fn a_stop_after_the_clip_is_complete_comes_too_late() {
    use animatelcm::job::{self, Known, Names, Target};
    use animatelcm::output::Existing;
    use animatelcm::request::Job;
    use animatelcm::{Error, Event, Request, Stop};

    let folder = Folder::new();
    let path = folder.path("a.gif");
    let mut request = Request::new("a red circle");
    (request.size.frames, request.sampling.steps, request.sampling.seed) = (Some(1), 1, Some(1));
    let target = Target {
        path: &path,
        existing: Existing::Refuse,
        has_metadata: true,
        tensors: None,
        preview: None,
    };
    let mut late = |event: Event| match event {
        Event::Done(_) => Err(Error::Cancelled),
        _ => Ok(()),
    };
    let job = Job { request, ..Job::default() };
    let names = Names::new(true).unwrap();
    job::run(job, Known::default(), (&names, None), &target, &mut late, &Stop::default()).unwrap();
    assert_eq!(folder.names(), ["a.gif"]);
}

#[cfg(unix)]
#[test]
fn two_signals_leave_nothing_behind() {
    use std::time::{Duration, Instant};

    for name in ["a.gif", "f_%03d.png", "a.mp4"] {
        let folder = Folder::new();
        let args = ["generate", "a red star", "--steps=1", "--frames=64", "-q", "-o", name];
        let mut child = folder.spawn(&args);
        let started = Instant::now();
        while !folder.names().iter().any(|name| name.ends_with(".part"))
            || started.elapsed() < Duration::from_millis(300)
        {
            assert!(started.elapsed() < Duration::from_secs(60), "there is no draft");
            std::thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..2 {
            let id = child.id().to_string();
            let _ = std::process::Command::new("kill").args(["-INT", &id]).status();
        }
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        assert!(folder.names().is_empty(), "{name}: {:?}", folder.names());
    }
}
