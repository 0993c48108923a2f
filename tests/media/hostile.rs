//! Images and videos that are broken, or made to hurt.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use animatelcm::Stop;
use animatelcm::media::read::{self, Selection};

use crate::support::media::{gif, golden, refusal, try_frames};
use crate::support::tiny;

#[test]
fn tables_that_lie_are_refused_before_memory_is_taken() {
    for (name, reason) in [
        ("mp4-sample-bomb.mp4", "declares 4294967295 frames"),
        ("mp4-stco-empty.mp4", "`stco`"),
        ("mp4-stsc-empty.mp4", "`stsc`"),
        ("mp4-loop.mp4", ""),
        ("png-65535.png", "65535x65535 pixels need 16.0 GiB"),
        ("apng-canvas.png", "pixels need"),
    ] {
        let start = Instant::now();
        let (text, _) = refusal(&golden(name));
        assert!(text.contains(reason), "{text}");
        assert!(start.elapsed() < Duration::from_secs(1), "{name}");
    }
}

/// `plain.mp4` with the contents of a table replaced by zeros of its own length, or its count by another.
fn damaged(kind: &[u8], count: u32) -> Vec<u8> {
    let mut bytes = fs::read(tiny::path("video/plain.mp4")).unwrap();
    let at = bytes.windows(4).position(|found| found == kind).unwrap() + 8;
    let at = if kind == b"stsz" { at + 4 } else { at };
    bytes[at..at + 4].copy_from_slice(&count.to_be_bytes());
    bytes
}

#[test]
fn counts_of_every_table_may_be_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.mp4");
    for kind in [b"stsz", b"stco", b"stsc", b"stts", b"ctts"] {
        for count in [0, 1, 2, 0xffff, u32::MAX] {
            fs::write(&path, damaged(kind, count)).unwrap();
            let got = try_frames(&path);
            assert!(got.as_ref().map_or(true, |frames| frames.len() <= 7), "{count}");
            // Times are no reason to refuse; places and sizes are.
            if count == 0 && kind != b"ctts" {
                assert!(got.is_err(), "{}", kind.escape_ascii());
            }
        }
    }
}

/// A PNG chunk; its checksum is right.
fn chunk(kind: &[u8], body: &[u8]) -> Vec<u8> {
    let mut sum = u32::MAX;
    for byte in kind.iter().chain(body) {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    let length = (body.len() as u32).to_be_bytes();
    [&length[..], kind, body, &(!sum).to_be_bytes()].concat()
}

fn png_header(width: u32, height: u32, depth: u8, colour: u8) -> Vec<u8> {
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    let header = [&size[..], &[depth, colour, 0, 0, 0]].concat();
    [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header)].concat()
}

#[test]
fn images_larger_than_their_budget_are_refused_with_their_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    let end = [chunk(b"IDAT", b"x\x9cc\0\0\0\x01\0\x01"), chunk(b"IEND", b"")].concat();
    let mut animated = png_header(20_000, 20_000, 8, 6);
    animated.extend(chunk(b"acTL", &[0, 0, 0, 2, 0, 0, 0, 0]));
    let mut webp = b"RIFF\x24\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\xff\xff\xff\0\0".to_vec();
    webp.extend(b"ANIM\x06\0\0\0\0\0\0\0\0\0");
    for (bytes, size) in [
        (png_header(1_000_000, 1_000_000, 8, 2), "1000000x1000000"),
        // A grey one: a library panics where it is made RGB.
        (png_header(30_000, 30_000, 8, 0), "30000x30000"),
        (png_header(30_000, 30_000, 1, 0), "30000x30000"),
        (png_header(13_000, 13_000, 1, 0), "13000x13000"),
        (animated, "20000x20000"),
        (b"GIF89a\xff\xff\xff\xff\0\0\0;".to_vec(), "65535x65535"),
        (webp, "16777216x256"),
    ] {
        fs::write(&path, [bytes, end.clone()].concat()).unwrap();
        let (text, _) = refusal(&path);
        assert!(text.contains(size) || text.contains("limit"), "{text}");
    }
}

#[test]
fn an_animation_of_many_small_frames_on_a_large_canvas_ends_within_its_budget() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.gif");
    fs::write(&path, gif(2000, 4000)).unwrap();
    let (text, hint) = refusal(&path);
    assert!(text.contains("its frames of 2000x2000 need more than"), "{text}");
    assert!(hint.contains("from=0,every="), "{hint}");
    // A few of them are read.
    let some = Selection { from: 1, every: 2, count: Some(3) };
    let got = read::frames("control", &path, some, &Stop::default()).unwrap();
    assert_eq!((got.images.len(), got.seen), (3, 6));
}

#[test]
fn what_is_no_ordinary_file_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    #[cfg(unix)]
    {
        assert!(refusal(Path::new("/dev/zero")).0.contains("is not an ordinary file"));
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert!(refusal(&pipe).0.contains("is not an ordinary file"));
    }
    let empty = folder.path().join("empty.png");
    fs::File::create(&empty).unwrap().flush().unwrap();
    assert!(refusal(&empty).0.contains("is empty"));
    assert!(refusal(&folder.path().join("none.png")).0.contains("none.png"));
}
