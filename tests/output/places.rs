//! Where clips are written: what is kept, and what a run that ends early leaves.

#![cfg(all(feature = "gif", feature = "png", feature = "apng", feature = "webp", feature = "mp4"))]

use std::fs;
use std::path::Path;

use animatelcm::media::RgbImage;
use animatelcm::output::{self, Existing};
use animatelcm::{Error, ErrorKind, Stop};

use crate::support::clips::{FILES, entries, frames, info, texts};

#[test]
fn a_stopped_sink_takes_no_frame_and_leaves_nothing() {
    let clip = info(32, 32, 2, 8.0);
    for name in FILES.into_iter().chain(["clip_%d.png"]) {
        for taken in 0..=2 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            let stop = Stop::default();
            let mut sink = output::open(&path, &clip, &texts(), Existing::Refuse, &stop).unwrap();
            for frame in &frames(&clip)[..taken] {
                sink.frame(frame).unwrap();
            }
            stop.request();
            if taken < 2 {
                let stopped = sink.frame(&frames(&clip)[taken]);
                assert!(matches!(stopped, Err(Error::Cancelled)), "{name} {taken}: {stopped:?}");
                drop(sink);
            } else {
                let stopped = sink.finish();
                assert!(matches!(stopped, Err(Error::Cancelled)), "{name}: {stopped:?}");
            }
            assert!(entries(folder.path()).is_empty(), "{name} {taken}");
        }
    }
}

#[test]
fn a_dropped_sink_leaves_nothing() {
    let clip = info(32, 32, 4, 8.0);
    for name in FILES.into_iter().chain(["clip_%d.png"]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let mut sink =
            output::open(&path, &clip, &texts(), Existing::Refuse, &Stop::default()).unwrap();
        assert!(!path.exists(), "{name} is visible too early");
        for frame in &frames(&clip)[..3] {
            sink.frame(frame).unwrap();
        }
        drop(sink);
        assert!(entries(folder.path()).is_empty(), "{name}");
    }
}

#[test]
fn a_clip_of_another_length_or_size_fails_and_leaves_nothing() {
    let clip = info(32, 32, 2, 8.0);
    let frames = frames(&clip);
    for name in FILES.into_iter().chain(["clip_%d.png"]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let open =
            || output::open(&path, &clip, &texts(), Existing::Refuse, &Stop::default()).unwrap();

        let mut short = open();
        short.frame(&frames[0]).unwrap();
        assert!(matches!(short.finish(), Err(Error::Encode { .. })), "{name}");

        let mut long = open();
        long.frame(&frames[0]).unwrap();
        long.frame(&frames[1]).unwrap();
        assert!(matches!(long.frame(&frames[1]), Err(Error::Encode { .. })), "{name}");
        drop(long);

        let wide = open().frame(&RgbImage::new(33, 32)).unwrap_err().to_string();
        assert!(wide.contains("33 by 32") && wide.contains("32 by 32"), "{wide}");
        assert!(entries(folder.path()).is_empty(), "{name}");
    }
}

#[test]
fn what_is_there_is_kept_unless_told_otherwise() {
    let clip = info(16, 16, 2, 8.0);
    for name in FILES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, "mine").unwrap();
        let error = output::check(&path, Existing::Refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request);
        assert!(error.hint().unwrap().contains("-y"));
        assert!(output::open(&path, &clip, &texts(), Existing::Refuse, &Stop::default()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");

        output::check(&path, Existing::Replace).unwrap();
        let mut sink =
            output::open(&path, &clip, &texts(), Existing::Replace, &Stop::default()).unwrap();
        for frame in &frames(&clip) {
            sink.frame(frame).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine", "{name} is gone before the end");
        sink.finish().unwrap();
        assert_ne!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(entries(folder.path()).len(), 1);
    }
}

#[test]
fn a_series_is_kept_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a_%03d.png");
    fs::write(folder.path().join("a_001.png"), "mine").unwrap();
    fs::write(folder.path().join("b_001.png"), "other").unwrap();
    let error = output::check(&path, Existing::Refuse).unwrap_err();
    assert!(error.to_string().contains("a_001.png"), "{error}");

    let clip = info(8, 8, 2, 8.0);
    let mut sink =
        output::open(&path, &clip, &texts(), Existing::Replace, &Stop::default()).unwrap();
    for frame in &frames(&clip) {
        sink.frame(frame).unwrap();
    }
    sink.finish().unwrap();
    let names = ["a_000.png", "a_001.png", "b_001.png"].map(|name| folder.path().join(name));
    assert_eq!(entries(folder.path()), names);
    assert_eq!(image::open(&names[1]).unwrap().to_rgb8(), frames(&clip)[1]);
    assert_eq!(fs::read_to_string(&names[2]).unwrap(), "other");
}

#[test]
fn places_that_cannot_be_written_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("folder.gif")).unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    for (name, expected) in [
        ("folder.gif", "is a folder"),
        ("none/a.gif", "does not exist"),
        ("none/a_%d.png", "does not exist"),
        ("file/a.gif", "file"),
    ] {
        for existing in [Existing::Refuse, Existing::Replace] {
            let error = output::check(&folder.path().join(name), existing).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Request, "{name}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
    assert_eq!(entries(folder.path()).len(), 2);
}

/// Even root may create nothing there.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_takes_no_files_is_refused() {
    for name in ["/proc/a.gif", "/proc/a_%d.png"] {
        let error = output::check(Path::new(name), Existing::Refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request);
        assert!(error.to_string().contains("cannot write to `/proc`"), "{error}");
        assert!(!error.to_string().contains(".part"), "{error}");
    }
}

/// A device on which every write finds the disk full, reached through a link.
#[cfg(target_os = "linux")]
#[test]
fn devices_are_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("a.gif");
    std::os::unix::fs::symlink("/dev/full", &link).unwrap();
    let error = output::check(&link, Existing::Replace).unwrap_err();
    assert!(error.to_string().contains("not an ordinary file"), "{error}");
}
