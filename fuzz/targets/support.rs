//! What targets share: files for bytes, a cursor over an input, checksums.

use std::path::{Path, PathBuf};

use animatelcm::Stop;
use animatelcm::media::Background;
use animatelcm::media::read::{Media, Selection};
use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().expect("a temporary folder");
}

/// A folder of this thread.
pub(crate) fn folder() -> PathBuf {
    FOLDER.with(|folder| folder.path().to_path_buf())
}

/// A file of that name with these contents, until the next of the same name.
pub(crate) fn file(name: &str, data: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, data).expect("room for an input");
    path
}

/// A file or folder under `tests/goldens`.
pub(crate) fn golden(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = if here.ends_with("fuzz") { here.join("..") } else { here.to_path_buf() };
    root.join("tests/goldens").join(name)
}

/// Copies a folder of `tests/goldens`, with all that is in it, to `to`.
pub(crate) fn copy_golden(name: &str, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(golden(name)).expect("a folder of goldens") {
        let entry = entry.expect("an entry");
        let own = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            copy_golden(&format!("{name}/{own}"), &to.join(&own));
        } else {
            std::fs::copy(entry.path(), to.join(&own)).expect("room for a copy");
        }
    }
}

/// Reads decisions off the front of an input; zeros once it has ended.
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    pub(crate) fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub(crate) fn long(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// At most `len` of the next bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// The parts of an input between zero bytes: `N` of them, the last with all that is left.
pub(crate) fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut parts = data.splitn(N, |byte| *byte == 0);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// CRC-32 as PNG and zip have it.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0xedb8_8320 }
        })
    })
}

/// Gives an input to what reads sources, hints and other images, as a file of that name: times, and all frames or a few
/// of them.
pub(crate) fn read_image(name: &str, data: &[u8]) {
    let few = Selection { from: 1, every: 2, count: Some(2) };
    let selection = if data.len() % 4 == 3 { few } else { Selection::default() };
    let stop = Stop::default();
    let Ok(media) = Media::read("control", &file(name, data), |_| true, &stop) else { return };
    if let Ok(Some(times)) = media.durations("control") {
        assert!(times.iter().all(|seconds| seconds.is_finite() && *seconds >= 0.0));
    }
    let _ = match data.len() % 8 {
        7 => media.frames_at("control", &[1, 2, 5], &stop),
        3 => media.on(Some(Background([200, 30, 90]))).frames("control", selection, &stop),
        _ => media.frames("control", selection, &stop),
    };
}

/// The pixels of the canvas that an image's header declares, where it is easily found.
pub(crate) fn pixels(data: &[u8]) -> u64 {
    let number = |at: usize, bytes: usize, is_little: bool| -> u64 {
        let digits = data.get(at..at + bytes).unwrap_or_default().iter();
        let join = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        if is_little { digits.rev().fold(0, join) } else { digits.fold(0, join) }
    };
    match data {
        [b'G', b'I', b'F', ..] => number(6, 2, true) * number(8, 2, true),
        [0x89, b'P', b'N', b'G', ..] => number(16, 4, false).saturating_mul(number(20, 4, false)),
        [b'R', b'I', b'F', b'F', ..] => (number(24, 3, true) + 1) * (number(27, 3, true) + 1),
        [b'B', b'M', ..] => number(18, 4, true).saturating_mul(number(22, 4, true)),
        [0xff, 0xd8, ..] => jpeg_pixels(data),
        _ => 0,
    }
}

/// The largest size in the frame headers of a JPEG.
fn jpeg_pixels(data: &[u8]) -> u64 {
    let sizes = data.windows(9).filter(|w| w[0] == 0xff && matches!(w[1], 0xc0..=0xc2));
    let side = |high: u8, low: u8| u64::from(u16::from_be_bytes([high, low]));
    sizes.map(|w| side(w[5], w[6]) * side(w[7], w[8])).max().unwrap_or(0)
}
