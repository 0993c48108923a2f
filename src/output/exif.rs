//! The comment of EXIF data, where A1111 and the sites that follow it have their parameters in JPEG and WebP.

/// Tag of the directory for photographs.
const EXIF_IFD: u16 = 0x8769;
/// Tag of the comment in it.
const USER_COMMENT: u16 = 0x9286;

/// The smallest EXIF data that hold a comment, big-endian so that its UTF-16 is too; empty for an empty text.
pub(super) fn of_comment(text: &str) -> Vec<u8> {
    const UNDEFINED: u16 = 7;
    const LONG: u16 = 4;
    if text.is_empty() {
        return Vec::new();
    }
    let mut comment = b"UNICODE\0".to_vec();
    comment.extend(text.encode_utf16().flat_map(u16::to_be_bytes));
    let entry = |tag: u16, kind: u16, count: u32, value: u32| {
        [&tag.to_be_bytes()[..], &kind.to_be_bytes(), &count.to_be_bytes(), &value.to_be_bytes()]
            .concat()
    };
    let directory = |entry: Vec<u8>| [&[0, 1], &entry[..], &[0; 4]].concat(); // one entry, none after
    let header = b"MM\0*\0\0\0\x08";
    let inner_at = header.len() as u32 + 18;
    let exif = directory(entry(EXIF_IFD, LONG, 1, inner_at));
    let inner = directory(entry(USER_COMMENT, UNDEFINED, comment.len() as u32, inner_at + 18));
    [&header[..], &exif, &inner, &comment].concat()
}

/// The comment in EXIF data, with or without the `Exif` header used in JPEG; `None` also when they are broken.
///
/// UTF-16 is big-endian, as piexif and A1111 write it, unless it begins with the other mark.
pub(super) fn comment(exif: &[u8]) -> Option<String> {
    let tiff = Tiff::new(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))?;
    let inner = tiff.entry(tiff.number(4, 4)?, EXIF_IFD)?;
    let entry = tiff.entry(tiff.number(inner + 8, 4)?, USER_COMMENT)?;
    let (count, start) = (tiff.number(entry + 4, 4)?, tiff.number(entry + 8, 4)?);
    let bytes = tiff.bytes.get(start..start.checked_add(count)?)?;
    let (code, text) = bytes.split_at_checked(8)?;
    let text = match code {
        b"UNICODE\0" => {
            let is_little = text.starts_with(b"\xff\xfe");
            let read = if is_little { u16::from_le_bytes } else { u16::from_be_bytes };
            let units = text.chunks_exact(2).map(|pair| read([pair[0], pair[1]]));
            String::from_utf16_lossy(&units.collect::<Vec<_>>())
        }
        _ => String::from_utf8_lossy(text).into_owned(),
    };
    Some(text.trim_start_matches('\u{feff}').trim_end_matches('\0').to_owned())
}

/// The bytes of a TIFF, in which EXIF data are.
struct Tiff<'a> {
    bytes: &'a [u8],
    is_little: bool,
}

impl<'a> Tiff<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let is_little = bytes.starts_with(b"II*\0");
        (is_little || bytes.starts_with(b"MM\0*")).then_some(Self { bytes, is_little })
    }

    /// The number of that many bytes at an offset.
    fn number(&self, at: usize, bytes: usize) -> Option<usize> {
        let found = self.bytes.get(at..at.checked_add(bytes)?)?;
        let add = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
        Some(if self.is_little {
            found.iter().rev().fold(0, add)
        } else {
            found.iter().fold(0, add)
        })
    }

    /// The offset of a tag's entry in the directory at `at`.
    fn entry(&self, at: usize, tag: u16) -> Option<usize> {
        let entries = (0..self.number(at, 2)?).map(|i| at + 2 + 12 * i);
        entries
            .take_while(|entry| *entry < self.bytes.len())
            .find(|entry| self.number(*entry, 2) == Some(tag.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_comes_back_and_broken_data_hold_none() {
        let text = "a 猫 🐈\nSteps: 4";
        let exif = of_comment(text);
        assert_eq!(comment(&exif).as_deref(), Some(text));
        let jpeg = [b"Exif\0\0", &exif[..]].concat();
        assert_eq!(comment(&jpeg).as_deref(), Some(text));
        for end in 0..exif.len() {
            let _ = comment(&exif[..end]); // must not panic
        }
        for at in 0..44 {
            let mut broken = exif.clone();
            broken[at] = 0xff;
            let _ = comment(&broken);
        }
        assert_eq!(comment(b""), None);
    }

    #[test]
    fn little_endian_data_and_ascii_are_read() {
        let mut exif = b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x1a\0\0\0\0\0\0\0".to_vec();
        exif.extend(b"\x01\0\x86\x92\x07\0\x0b\0\0\0\x2c\0\0\0\0\0\0\0ASCII\0\0\0a b");
        assert_eq!(comment(&exif).as_deref(), Some("a b"));
    }
}
