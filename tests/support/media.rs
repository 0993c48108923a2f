//! Files of other programs, read.

use std::path::{Path, PathBuf};

use animatelcm::media::RgbImage;
use animatelcm::media::read::{self, Selection};
use animatelcm::{Result, Stop};

use crate::support::tiny;

pub(crate) fn golden(name: &str) -> PathBuf {
    tiny::path(&format!("media/{name}"))
}

pub(crate) fn try_frames(path: &Path) -> Result<Vec<RgbImage>> {
    Ok(read::frames("control", path, Selection::default(), &Stop::default())?.images)
}

pub(crate) fn frames(name: &str) -> Vec<RgbImage> {
    try_frames(&golden(name)).unwrap()
}

pub(crate) fn png(name: &str) -> RgbImage {
    image::open(golden(name)).unwrap().to_rgb8()
}

/// What a refusal says: its reason and its hint.
pub(crate) fn refusal(path: &Path) -> (String, String) {
    let error = try_frames(path).unwrap_err();
    assert_eq!(error.kind().exit_code(), 2);
    let (text, hint) = (error.to_string(), error.hint().unwrap_or_default().into_owned());
    assert!(text.starts_with("control: ") && text.lines().count() == 1, "{text}");
    assert!(text.contains(&*path.file_name().unwrap().to_string_lossy()), "{text}");
    (text, hint)
}

/// A GIF of one-pixel frames on a canvas of `side`.
pub(crate) fn gif(side: u16, count: usize) -> Vec<u8> {
    let mut bytes = b"GIF89a".to_vec();
    bytes.extend([side.to_le_bytes(), side.to_le_bytes()].concat());
    bytes.extend([0x80, 0, 0, 0, 0, 0, 255, 255, 255]);
    for _ in 0..count {
        bytes.extend(b"\x21\xf9\x04\0\x0a\0\0\0\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0");
    }
    bytes.push(b';');
    bytes
}
