//! Texts in clips.

#![cfg(all(feature = "gif", feature = "png", feature = "apng", feature = "webp", feature = "mp4"))]

use std::fs;
use std::io::Cursor;

use animatelcm::Error;
use animatelcm::output::{self, Metadata};
use image::ImageDecoder;
use image::codecs::webp::WebPDecoder;

use crate::support::clips::{encode, entries, frames, info, texts, write};

/// Those of them that hold texts, and a series.
const WITH_TEXTS: [&str; 5] = ["clip.gif", "clip.webp", "clip.png", "clip.mp4", "clip_%03d.png"];

#[test]
fn numbered_files_are_exact_and_each_carries_the_texts() {
    let folder = tempfile::tempdir().unwrap();
    let clip = info(9, 7, 3, 8.0);
    let frames = frames(&clip);
    write(&folder.path().join("a_%02d.png"), &clip, &texts(), &frames).unwrap();
    let names = ["a_00.png", "a_01.png", "a_02.png"].map(|name| folder.path().join(name));
    assert_eq!(entries(folder.path()), names);
    for (path, frame) in names.iter().zip(&frames) {
        assert_eq!(image::open(path).unwrap().to_rgb8(), *frame);
        assert_eq!(output::metadata::read(path).unwrap().unwrap(), texts());
    }
}

#[test]
fn texts_come_back_from_every_container() {
    let long = Metadata {
        request_json: format!("{{\"prompt\":\"{}\"}}", "ä long \\n prompt ".repeat(6000)),
        parameters: "many\nwords, ".repeat(9000),
    };
    assert!(long.request_json.len() > 100_000 && long.parameters.len() > 100_000);
    let latin = Metadata { request_json: "{}".into(), parameters: "caf\u{e9}".into() };
    let only_request = Metadata { request_json: "[1]".into(), ..Metadata::default() };
    let only_parameters = Metadata { parameters: "a".into(), ..Metadata::default() };
    for metadata in [texts(), long, latin, only_request, only_parameters, Metadata::default()] {
        for name in WITH_TEXTS {
            let folder = tempfile::tempdir().unwrap();
            let clip = info(16, 16, 1, 8.0);
            write(&folder.path().join(name), &clip, &metadata, &frames(&clip)).unwrap();
            let found = output::metadata::read(&entries(folder.path())[0]).unwrap();
            let expected = Some(&metadata).filter(|metadata| !metadata.is_empty());
            assert!(found.as_ref() == expected, "{name}");
        }
    }
}

#[test]
fn other_programs_find_the_texts() {
    let clip = info(16, 16, 1, 8.0);
    let gif = encode("a.gif", &clip, &texts());
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    assert!(options.read_info(Cursor::new(&gif)).unwrap().read_next_frame().unwrap().is_some());
    let webp = encode("a.webp", &clip, &texts());
    let mut decoder = WebPDecoder::new(Cursor::new(&webp)).unwrap();
    let exif = decoder.exif_metadata().unwrap().unwrap();
    assert!(exif.starts_with(b"MM\0*"));
    let utf16: Vec<u8> = texts().parameters.encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert!(exif.ends_with(&[b"UNICODE\0", &utf16[..]].concat()));
    let png = encode("a.png", &clip, &texts());
    let reader = png::Decoder::new(Cursor::new(&png)).read_info().unwrap();
    let found = |key: &str| {
        let chunk = reader.info().utf8_text.iter().find(|chunk| chunk.keyword == key).unwrap();
        chunk.get_text().unwrap()
    };
    assert_eq!(found("parameters"), texts().parameters);
    let request = &reader.info().utf8_text.iter().find(|c| c.keyword == "animatelcm").unwrap();
    assert_eq!(request.get_text().unwrap(), texts().request_json);
    // The keys of an MP4 are in a box of QuickTime's kind, which exiftool insists on.
    let mp4 = encode("a.mp4", &clip, &texts());
    let at = |name: &[u8]| mp4.windows(name.len()).position(|bytes| bytes == name).unwrap();
    assert_eq!(at(b"meta") + 8, at(b"hdlr\0\0\0\0\0\0\0\0mdta"), "no version, no flags");
    assert!(at(b"mdtaanimatelcm") < at(b"mdtaparameters"));
}

#[test]
fn files_that_are_no_clips_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gif");
    assert!(matches!(output::metadata::read(&path), Err(Error::File { .. })));
    assert!(matches!(
        output::metadata::read(folder.path()),
        Err(Error::File { .. } | Error::Format { .. })
    ));
    for bytes in [&b""[..], b"hello, world", b"GIF89a", b"\x89PNG\r\n\x1a\n\0\0\0\0", b"RIFF"] {
        fs::write(&path, bytes).unwrap();
        assert!(matches!(output::metadata::read(&path), Err(Error::Format { .. })), "{bytes:?}");
    }
}

#[test]
fn cut_files_never_give_half_a_text() {
    let clip = info(16, 16, 1, 8.0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut");
    for name in ["a.gif", "a.webp", "a.png", "a.mp4"] {
        let bytes = encode(name, &clip, &texts());
        for length in (0..bytes.len()).step_by(7) {
            fs::write(&path, &bytes[..length]).unwrap();
            if let Ok(Some(found)) = output::metadata::read(&path) {
                assert!(
                    found.request_json.is_empty() || found.request_json == texts().request_json
                );
                assert!(found.parameters.is_empty() || found.parameters == texts().parameters);
            }
        }
    }
}

#[test]
fn a_request_that_is_not_json_is_refused() {
    let clip = info(16, 16, 1, 8.0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let metadata = Metadata { request_json: "{\"seed\":".into(), ..Metadata::default() };
    write(&path, &clip, &metadata, &frames(&clip)).unwrap();
    assert!(matches!(output::metadata::read(&path), Err(Error::Format { .. })));
}
