//! Detection of unsupported formats.

use super::fault::{Convert, Fault};

/// The supported formats, for messages.
const KNOWN: &str = "a GIF, PNG, JPEG, WebP, BMP, TIFF, MP4 or Y4M";

/// The error for an unsupported file that begins with `head`.
pub(super) fn fault(head: &[u8]) -> Fault {
    match named(head) {
        Some((name, convert)) => Fault::Foreign(format!("is {name}, which is not read"), convert),
        None if head.is_empty() => "is empty".into(),
        None => Fault::Foreign(format!("is not {KNOWN}"), Convert::Video),
    }
}

/// The name of an unsupported format that shares MP4's container format (ISO BMFF).
pub(super) fn of_brand(head: &[u8]) -> Option<(&'static str, Convert)> {
    if head.get(4..8) != Some(b"ftyp") {
        return None;
    }
    let name = match head.get(8..12)? {
        b"avif" | b"avis" => "an AVIF",
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => "a HEIC",
        b"crx " => "a CR3 raw image",
        _ => return None,
    };
    Some((name, Convert::Image))
}

fn named(head: &[u8]) -> Option<(&'static str, Convert)> {
    let riff = if head.starts_with(b"RIFF") { head.get(8..12) } else { None };
    let found = match head {
        _ if of_brand(head).is_some() => return of_brand(head),
        _ if riff == Some(b"AVI ") => ("an AVI", Convert::Video),
        [0x1a, 0x45, 0xdf, 0xa3, ..] => ("a Matroska or WebM", Convert::Video),
        [b'F', b'L', b'V', 1, ..] => ("an FLV", Convert::Video),
        [0, 0, 1, 0xba | 0xb3, ..] => ("an MPEG video", Convert::Video),
        [0x30, 0x26, 0xb2, 0x75, ..] => ("a WMV", Convert::Video),
        [b'O', b'g', b'g', b'S', ..] => ("an Ogg", Convert::Video),
        [0x47, ..] if head.get(188) == Some(&0x47) => ("an MPEG transport stream", Convert::Video),
        [0, 0, 0, 1, 0x67, ..] | [0, 0, 1, 0x67, ..] => ("a bare H.264 stream", Convert::Video),
        [0xff, 0x0a, ..] | [0, 0, 0, 0x0c, b'J', b'X', b'L', b' ', ..] => {
            ("a JPEG XL", Convert::Image)
        }
        [0, 0, 0, 0x0c, b'j', b'P', ..] => ("a JPEG 2000", Convert::Image),
        [b'8', b'B', b'P', b'S', ..] => ("a Photoshop document", Convert::Image),
        [0x76, 0x2f, 0x31, 0x01, ..] => ("an OpenEXR", Convert::Image),
        [b'q', b'o', b'i', b'f', ..] => ("a QOI", Convert::Image),
        [0, 0, 1, 0, _, 0, ..] => ("an icon", Convert::Image),
        [b'P', b'1'..=b'7', b'\n' | b' ' | b'\r', ..] => ("a PNM", Convert::Image),
        _ => return None,
    };
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_names() {
        let text = |head: &[u8]| match fault(head) {
            Fault::Foreign(reason, convert) => (reason, convert),
            other => panic!("{other:?}"),
        };
        let (reason, convert) = text(b"\0\0\0\x1cftypavif\0\0\0\0");
        assert_eq!((reason.as_str(), convert), ("is an AVIF, which is not read", Convert::Image));
        let (reason, convert) = text(b"\x1a\x45\xdf\xa3\x01");
        assert!(reason.contains("Matroska") && convert == Convert::Video, "{reason}");
        assert!(text(b"RIFF\0\0\0\0AVI LIST").0.contains("an AVI"));
        assert!(text(b"hello").0.contains("is not a GIF"));
        assert!(matches!(fault(b""), Fault::Broken(_)));
    }
}
