//! Parser of the boxes of the ISO base media file format. All reads are bounds-checked.

/// A box.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    /// Its four-character code.
    pub(super) kind: &'a [u8; 4],
    /// Its offset in the parsed bytes.
    pub(super) start: usize,
    /// Its contents.
    pub(super) body: &'a [u8],
}

/// The consecutive boxes in `bytes`.
///
/// A box with an excessive length, or with length 0, extends to the end of the bytes; an invalid box ends the
/// iteration.
pub(super) fn boxes(bytes: &[u8]) -> impl Iterator<Item = Part<'_>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(start..)?;
        let kind = rest.get(4..)?.first_chunk()?;
        let (header, length) = match u32_at(rest, 0)? {
            0 => (8, rest.len()),
            1 => (16, usize::try_from(u64_at(rest, 8)?).unwrap_or(usize::MAX)),
            length => (8, length as usize),
        };
        if length < header {
            return None;
        }
        let part = Part { kind, start, body: rest.get(header..length.min(rest.len()))? };
        start = start.saturating_add(length);
        Some(part)
    })
}

/// The contents of the first box of a type.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "names are byte strings")]
pub(super) fn child<'a>(bytes: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    boxes(bytes).find(|part| part.kind == kind).map(|part| part.body)
}

/// The contents of a nested box.
pub(super) fn descendant<'a>(bytes: &'a [u8], path: &[&[u8; 4]]) -> Option<&'a [u8]> {
    path.iter().try_fold(bytes, |bytes, kind| child(bytes, kind))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(u32_at(bytes, at)?.cast_signed())
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The entries of a table, `N` numbers each, after its version and entry count.
pub(super) fn table<const N: usize>(body: &[u8]) -> impl Iterator<Item = [u32; N]> {
    let entries = body.get(8..).unwrap_or_default().chunks_exact(4 * N);
    entries.take(u32_at(body, 4).unwrap_or(0) as usize).map(|entry| {
        let mut numbers = [0; N];
        for (number, bytes) in numbers.iter_mut().zip(entry.chunks_exact(4)) {
            *number = u32_at(bytes, 0).unwrap_or(0);
        }
        numbers
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(bytes: &[u8]) -> Vec<(String, usize, usize)> {
        let name = |part: Part<'_>| String::from_utf8_lossy(part.kind).into_owned();
        boxes(bytes).map(|part| (name(part), part.start, part.body.len())).collect()
    }

    #[test]
    fn boxes_stay_within_their_bytes() {
        let two = b"\0\0\0\x0afree..\0\0\0\x08mdat";
        assert_eq!(kinds(two), [("free".into(), 0, 2), ("mdat".into(), 10, 0)]);
        // Length 0, a 64-bit length, an excessive length, and invalid lengths.
        assert_eq!(kinds(b"\0\0\0\0mdat123"), [("mdat".into(), 0, 3)]);
        assert_eq!(kinds(b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x11x"), [("mdat".into(), 0, 1)]);
        assert_eq!(kinds(b"\xff\xff\xff\xffmdat12"), [("mdat".into(), 0, 2)]);
        for none in [&b"\0\0\0\x07moov"[..], b"\0\0\0\x01moov\0\0\0\0\0\0\0\x0f", b"\0\0\0", b""] {
            assert_eq!(kinds(none), []);
        }
    }

    #[test]
    fn tables_have_no_more_entries_than_bytes() {
        let body = b"\0\0\0\0\xff\xff\xff\xff\0\0\0\x01\0\0\0\x02\0\0\0\x03";
        assert_eq!(table::<2>(body).collect::<Vec<_>>(), [[1, 2]]);
        assert_eq!(table::<1>(&body[..6]).count(), 0);
    }
}
