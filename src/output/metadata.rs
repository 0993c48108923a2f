//! Texts inside the output: what was asked for, so that it can be shown and done again.
//!
//! Reading is ours for every container, needs no feature, and trusts nothing: each length is held against the
//! file, each text has a limit, nothing recurses, and a request must be JSON.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde::de::IgnoredAny;

use super::exif;
use crate::{Error, Result};

/// GIF application extension: eight bytes of name, three of authentication code.
pub(super) const GIF_APPLICATION: &[u8] = b"ANIMATELCM1";
/// Keyword of the request in a PNG.
pub(super) const PNG_REQUEST: &str = "animatelcm";
/// Keyword of the parameters in a PNG, as A1111 writes it.
pub(super) const PNG_PARAMETERS: &str = "parameters";
/// Key of the request in an MP4.
pub(super) const MP4_REQUEST: &str = "animatelcm";
/// Key of the parameters in an MP4.
pub(super) const MP4_PARAMETERS: &str = "parameters";

/// Boxes that an MP4 or QuickTime file may begin with.
const MP4_FIRST: [[u8; 4]; 8] =
    [*b"ftyp", *b"moov", *b"mdat", *b"free", *b"skip", *b"wide", *b"pnot", *b"uuid"];

/// No text in a file is longer: bytes.
const LONGEST: u64 = 16 << 20;

/// The texts that travel in a file. An empty one is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Everything needed to make the clip again, as JSON.
    pub request_json: String,
    /// The settings as text for people and other programs, in A1111's format: prompt, negative prompt, settings.
    pub parameters: String,
}

impl Metadata {
    /// Returns whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.request_json.is_empty() && self.parameters.is_empty()
    }

    /// Replaces characters that some container cannot hold.
    ///
    /// JSON says them in ASCII, where they can only be within strings; in the parameters they become U+FFFD.
    pub(super) fn printable(&self) -> Self {
        let is_bad = |c: char| {
            (c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r' | '\x7f'))
                || matches!(c, '\u{fffe}' | '\u{ffff}')
        };
        let mut request_json = self.request_json.clone();
        while let Some(c) = request_json.chars().find(|&c| is_bad(c)) {
            request_json = request_json.replace(c, &format!("\\u{:04x}", u32::from(c)));
        }
        Self { request_json, parameters: self.parameters.replace(is_bad, "\u{fffd}") }
    }
}

/// Reads the texts of a GIF, PNG, WebP, JPEG or MP4; `None` when it holds none, as Y4M never does.
///
/// Files of other programs are read as well: A1111's `parameters` in a PNG or in the EXIF comment of a JPEG or WebP, a
/// comment in a GIF or MP4.
pub fn read(path: &Path) -> Result<Option<Metadata>> {
    let file = File::open(path).map_err(Error::file(path))?;
    let length = file.metadata().map_err(Error::file(path))?.len();
    let found = scan(&mut Walk { input: BufReader::new(file), at: 0, end: length });
    let metadata = found.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => Error::format(path, error.to_string()),
        io::ErrorKind::UnexpectedEof => Error::format(path, "the file is cut off"),
        _ => Error::file(path)(error),
    })?;
    if !metadata.request_json.is_empty()
        && let Err(error) = serde_json::from_str::<IgnoredAny>(&metadata.request_json)
    {
        return Err(Error::format(path, format!("its request is not JSON: {error}")));
    }
    Ok(Some(metadata).filter(|metadata| !metadata.is_empty()))
}

fn bad(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| bad("a text in it is not UTF-8"))
}

/// A part of a file, read from front to back.
struct Walk<R> {
    input: R,
    at: u64,
    end: u64,
}

impl<R: Read + Seek> Walk<R> {
    fn left(&self) -> u64 {
        self.end - self.at
    }

    /// The next bytes, as many as a fixed field has.
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        if self.left() < N as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.input.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The next bytes, as many as the file itself says.
    fn bytes(&mut self, count: u64) -> io::Result<Vec<u8>> {
        if count > self.left() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if count > LONGEST {
            return Err(bad(format!("a text of {count} bytes is too long")));
        }
        let mut bytes = vec![0; count as usize];
        self.input.read_exact(&mut bytes)?;
        self.at += count;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> io::Result<()> {
        if count > self.left() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count;
        self.input.seek(SeekFrom::Start(self.at)).map(|_| ())
    }
}

/// Tells the containers apart by their first bytes.
fn scan<R: Read + Seek>(walk: &mut Walk<R>) -> io::Result<Metadata> {
    if walk.end < 12 {
        return Err(bad(format!("a file of {} bytes is not a clip", walk.end)));
    }
    let head: [u8; 12] = walk.array()?;
    walk.at = 0;
    walk.input.seek(SeekFrom::Start(0))?;
    match &head {
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => gif(walk),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => png(walk),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => webp(walk),
        [0xff, 0xd8, 0xff, ..] => jpeg(walk),
        // QuickTime's files need not begin with their type.
        [_, _, _, _, name @ .., _, _, _, _] if MP4_FIRST.contains(name) => mp4(walk),
        [b'Y', b'U', b'V', b'4', b'M', b'P', b'E', b'G', b'2', ..] => Ok(Metadata::default()),
        _ => Err(bad("it is neither gif, png, webp, jpeg, mp4 nor y4m")),
    }
}

fn png<R: Read + Seek>(walk: &mut Walk<R>) -> io::Result<Metadata> {
    let mut found = Metadata::default();
    walk.skip(8)?;
    while walk.left() > 0 {
        let length = u64::from(u32::from_be_bytes(walk.array()?));
        let name: [u8; 4] = walk.array()?;
        match &name {
            b"tEXt" | b"iTXt" => {
                let chunk = walk.bytes(length)?;
                let Some(zero) = chunk.iter().position(|&byte| byte == 0) else {
                    return Err(bad("a text chunk has no keyword"));
                };
                let (key, rest) = (&chunk[..zero], &chunk[zero + 1..]);
                let field = if key == PNG_REQUEST.as_bytes() {
                    &mut found.request_json
                } else if key == PNG_PARAMETERS.as_bytes() {
                    &mut found.parameters
                } else {
                    walk.skip(4)?;
                    continue;
                };
                *field = if name == *b"tEXt" {
                    rest.iter().map(|&byte| char::from(byte)).collect()
                } else {
                    international(rest)?
                };
            }
            b"IEND" => return Ok(found),
            _ => walk.skip(length)?,
        }
        walk.skip(4)?; // checksum
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// The text of an `iTXt` chunk, after its keyword.
fn international(rest: &[u8]) -> io::Result<String> {
    let [compressed, _, rest @ ..] = rest else {
        return Err(bad("a text chunk is too short"));
    };
    if *compressed != 0 {
        return Err(bad("compressed texts are not supported"));
    }
    // Two more fields that end in zero: language and translated keyword.
    let mut fields = rest.splitn(3, |&byte| byte == 0).skip(2);
    text(fields.next().ok_or_else(|| bad("a text chunk is too short"))?.to_vec())
}

fn gif<R: Read + Seek>(walk: &mut Walk<R>) -> io::Result<Metadata> {
    let mut found = Metadata::default();
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 * (2_u64 << (flags & 7)) };
    let screen: [u8; 13] = walk.array()?;
    walk.skip(table(screen[10]))?;
    loop {
        match walk.byte()? {
            0x21 => match walk.byte()? {
                0xfe if found.parameters.is_empty() => found.parameters = text(blocks(walk)?)?,
                0xff if found.request_json.is_empty() => {
                    let length = walk.byte()?;
                    let name = walk.bytes(u64::from(length))?;
                    if name == GIF_APPLICATION {
                        found.request_json = text(blocks(walk)?)?;
                    } else if length > 0 {
                        skip_blocks(walk)?;
                    }
                }
                _ => skip_blocks(walk)?,
            },
            0x2c => {
                let image: [u8; 9] = walk.array()?;
                walk.skip(table(image[8]) + 1)?;
                skip_blocks(walk)?;
            }
            0x3b => return Ok(found),
            other => return Err(bad(format!("no block begins with {other:#04x}"))),
        }
    }
}

/// The data of a GIF's blocks, up to the empty one that ends them.
fn blocks<R: Read + Seek>(walk: &mut Walk<R>) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let length = walk.byte()?;
        if length == 0 {
            return Ok(data);
        }
        if data.len() as u64 > LONGEST {
            return Err(bad("a text in it is too long"));
        }
        data.extend(walk.bytes(u64::from(length))?);
    }
}

fn skip_blocks<R: Read + Seek>(walk: &mut Walk<R>) -> io::Result<()> {
    loop {
        let length = walk.byte()?;
        if length == 0 {
            return Ok(());
        }
        // Short ways are read, which costs less than seeking in a buffered file.
        walk.bytes(u64::from(length))?;
    }
}

fn webp<R: Read + Seek>(walk: &mut Walk<R>) -> io::Result<Metadata> {
    walk.skip(4)?;
    let size = u64::from(u32::from_le_bytes(walk.array()?));
    if 8 + size > walk.end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    walk.end = 8 + size;
    walk.skip(4)?;
    let mut found = Metadata::default();
    while walk.left() >= 8 {
        let name: [u8; 4] = walk.array()?;
        let length = u64::from(u32::from_le_bytes(walk.array()?));
        match &name {
            b"XMP " => {
                let own = from_xmp(&text(walk.bytes(length)?)?)?;
                return Ok(if own.is_empty() { found } else { own });
            }
            b"EXIF" if length <= LONGEST => {
                found.parameters = exif::comment(&walk.bytes(length)?).unwrap_or_default();
                walk.skip((length % 2).min(walk.left()))?;
                continue;
            }
            _ => {}
        }
        // The last chunk may lack its padding.
        walk.skip(length.next_multiple_of(2).min(walk.left().max(length)))?;
    }
    Ok(found)
}

/// The comment of an image by another program.
fn jpeg<R: Read + Seek>(walk: &mut Walk<R>) -> io::Result<Metadata> {
    const EXIF: u8 = 0xe1;
    const SCAN: u8 = 0xda;
    walk.skip(2)?;
    while walk.left() >= 4 {
        let [0xff, name] = walk.array()? else { break };
        let length = u64::from(u16::from_be_bytes(walk.array()?)).saturating_sub(2);
        if name == SCAN {
            break;
        }
        if name != EXIF {
            walk.skip(length)?;
        } else if let Some(parameters) = exif::comment(&walk.bytes(length)?) {
            return Ok(Metadata { parameters, ..Metadata::default() });
        }
    }
    Ok(Metadata::default())
}

const XMP_FIELDS: [&str; 2] = ["animatelcm:request", "animatelcm:parameters"];

/// An XMP packet with both texts.
pub(super) fn to_xmp(metadata: &Metadata) -> Vec<u8> {
    let mut fields = String::new();
    for (name, text) in XMP_FIELDS.iter().zip([&metadata.request_json, &metadata.parameters]) {
        if !text.is_empty() {
            fields.extend(["<", name, ">", &escape(text), "</", name, ">"]);
        }
    }
    format!(
        "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\
         <x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\
         <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\
         <rdf:Description rdf:about=\"\" xmlns:animatelcm=\"urn:animatelcm:1\">{fields}\
         </rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end=\"r\"?>"
    )
    .into_bytes()
}

/// Both texts of a packet that [`to_xmp`] made; other packets hold neither.
fn from_xmp(packet: &str) -> io::Result<Metadata> {
    let field = |name: &str| {
        let Some((_, rest)) = packet.split_once(&format!("<{name}>")) else {
            return Ok(String::new());
        };
        let Some((text, _)) = rest.split_once(&format!("</{name}>")) else {
            return Err(bad("its XMP is cut off"));
        };
        unescape(text).ok_or_else(|| bad("its XMP has an unknown entity"))
    };
    let [request, parameters] = XMP_FIELDS;
    Ok(Metadata { request_json: field(request)?, parameters: field(parameters)? })
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\r' => escaped.push_str("&#13;"), // or XML would make it a line feed
            c => escaped.push(c),
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        plain.push_str(before);
        let (entity, after) = after.split_once(';')?;
        plain.push(match entity {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let number = entity.strip_prefix('#')?;
                let code = match number.strip_prefix('x') {
                    Some(hex) => u32::from_str_radix(hex, 16),
                    None => number.parse(),
                };
                char::from_u32(code.ok()?)?
            }
        });
        rest = after;
    }
    plain.push_str(rest);
    Some(plain)
}

/// The next box of an MP4: its name and how many bytes of contents follow.
fn next_box<R: Read + Seek>(walk: &mut Walk<R>) -> io::Result<([u8; 4], u64)> {
    let size = u64::from(u32::from_be_bytes(walk.array()?));
    let name = walk.array()?;
    let (size, header) = match size {
        0 => (walk.left() + 8, 8),
        1 => (u64::from_be_bytes(walk.array()?), 16),
        _ => (size, 8),
    };
    match size.checked_sub(header) {
        Some(length) if length <= walk.left() => Ok((name, length)),
        _ => Err(bad(format!("the box `{}` does not fit", name.escape_ascii()))),
    }
}

fn mp4<R: Read + Seek>(walk: &mut Walk<R>) -> io::Result<Metadata> {
    while walk.left() >= 8 {
        let (name, length) = next_box(walk)?;
        if name == *b"moov" {
            walk.end = walk.at + length;
            return movie(walk);
        }
        walk.skip(length)?;
    }
    Err(bad("it has no movie box"))
}

fn movie<R: Read + Seek>(walk: &mut Walk<R>) -> io::Result<Metadata> {
    let (mut found, mut comment) = (Metadata::default(), String::new());
    let end = walk.end;
    while walk.left() >= 8 {
        let (name, length) = next_box(walk)?;
        let next = walk.at + length;
        match &name {
            b"meta" => keyed(&walk.bytes(length)?, &mut found)?,
            b"udta" => {
                walk.end = next;
                while walk.left() >= 8 {
                    let (name, length) = next_box(walk)?;
                    if name == *b"meta" {
                        let meta = walk.bytes(length)?;
                        comment = commented(&meta)?;
                        // FFmpeg puts keys here.
                        keyed(&meta, &mut found)?;
                    } else {
                        walk.skip(length)?;
                    }
                }
                walk.end = end;
            }
            _ => {}
        }
        walk.skip(next - walk.at)?;
    }
    if found.parameters.is_empty() {
        found.parameters = comment;
    }
    Ok(found)
}

/// The boxes within a slice.
fn boxes(mut data: &[u8]) -> io::Result<Vec<([u8; 4], &[u8])>> {
    let mut boxes = Vec::new();
    while let [a, b, c, d, name @ ..] = data
        && let Some((name, _)) = name.split_first_chunk::<4>()
    {
        let size = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        if size < 8 || size > data.len() {
            return Err(bad(format!("the box `{}` does not fit", name.escape_ascii())));
        }
        boxes.push((*name, &data[8..size]));
        data = &data[size..];
    }
    Ok(boxes)
}

/// The boxes of a `meta` box, which has version and flags before them in MP4 and not in QuickTime.
fn meta_boxes(meta: &[u8]) -> io::Result<Vec<([u8; 4], &[u8])>> {
    let skipped = if meta.get(4..8) == Some(b"hdlr") { 0 } else { 4 };
    boxes(meta.get(skipped..).unwrap_or_default())
}

fn inside<'a>(boxes: &[([u8; 4], &'a [u8])], name: [u8; 4]) -> &'a [u8] {
    boxes.iter().find(|(found, _)| *found == name).map_or(&[], |(_, data)| data)
}

/// The text of a metadata item; empty when it holds something else.
fn item(item: &[u8]) -> io::Result<String> {
    match inside(&boxes(item)?, *b"data") {
        [0, 0, 0, 1, _, _, _, _, value @ ..] => text(value.to_vec()),
        _ => Ok(String::new()),
    }
}

/// Values that are found by the numbers of their keys.
fn keyed(meta: &[u8], found: &mut Metadata) -> io::Result<()> {
    let parts = meta_boxes(meta)?;
    let keys = boxes(inside(&parts, *b"keys").get(8..).unwrap_or_default())?;
    for (number, value) in boxes(inside(&parts, *b"ilst"))? {
        let key = (u32::from_be_bytes(number) as usize).checked_sub(1).and_then(|n| keys.get(n));
        match key {
            Some((_, key)) if *key == MP4_REQUEST.as_bytes() => found.request_json = item(value)?,
            Some((_, key)) if *key == MP4_PARAMETERS.as_bytes() => found.parameters = item(value)?,
            _ => {}
        }
    }
    Ok(())
}

/// The comment among the values that players show.
fn commented(meta: &[u8]) -> io::Result<String> {
    item(inside(&boxes(inside(&meta_boxes(meta)?, *b"ilst"))?, *b"\xa9cmt"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan_bytes(bytes: &[u8]) -> io::Result<Metadata> {
        let end = bytes.len() as u64;
        scan(&mut Walk { input: io::Cursor::new(bytes), at: 0, end })
    }

    /// The beginnings of every container, with something readable in it.
    fn seeds() -> Vec<Vec<u8>> {
        let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
        png.extend(12_u32.to_be_bytes());
        png.extend(b"tEXtparameters\0A----\0\0\0\0IEND----");
        let mut gif = b"GIF89a\x01\0\x01\0\0\0\0".to_vec();
        gif.extend(b"\x21\xfe\x03abc\0\x21\xff\x0bANIMATELCM1\x02{}\0\x3b");
        let xmp = to_xmp(&Metadata { request_json: "{}".into(), parameters: "a".into() });
        let mut webp = b"RIFF".to_vec();
        webp.extend((12 + xmp.len() as u32).to_le_bytes());
        webp.extend(b"WEBPXMP ");
        webp.extend((xmp.len() as u32).to_le_bytes());
        webp.extend(xmp);
        vec![png, gif, webp]
    }

    #[test]
    fn the_seeds_are_readable() {
        for seed in seeds() {
            assert!(!scan_bytes(&seed).unwrap().is_empty());
        }
    }

    #[test]
    fn xmp_survives_its_own_markup() {
        for parameters in ["</animatelcm:parameters><a&b;>", "&amp;&lt;", "a\r\nb\tc\"'", "猫 🐈"]
        {
            let metadata = Metadata { request_json: "{}".into(), parameters: parameters.into() };
            let packet = String::from_utf8(to_xmp(&metadata)).unwrap();
            assert_eq!(from_xmp(&packet).unwrap(), metadata);
        }
        assert_eq!(unescape("&#65;&#x42;&apos;").as_deref(), Some("AB'"));
        assert!(unescape("&nbsp;").is_none() && unescape("&").is_none());
    }

    #[test]
    fn characters_that_no_container_holds_are_replaced() {
        let odd =
            Metadata { request_json: "\"\u{fffe}\"".into(), parameters: "a\0b\u{1}\n".into() };
        let printable = odd.printable();
        assert_eq!(printable.request_json, r#""\ufffe""#);
        assert_eq!(printable.parameters, "a\u{fffd}b\u{fffd}\n");
    }

    #[test]
    fn lying_lengths_are_refused() {
        let mut png = b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXt".to_vec();
        assert!(scan_bytes(&png).is_err());
        png.truncate(14);
        assert!(scan_bytes(&png).is_err());
        for size in [0_u32, 1, 7, 9, u32::MAX] {
            let mut mp4 = b"\0\0\0\x08ftyp".to_vec();
            mp4.extend(size.to_be_bytes());
            mp4.extend(b"moov\0\0\0\x10meta\0\0\0\0\xff\xff\xff\xff");
            let _ = scan_bytes(&mp4); // must not panic or allocate
        }
        assert!(scan_bytes(b"RIFF\xff\xff\xff\xffWEBPXMP \xff\xff\xff\xff<a>").is_err());
    }

    proptest! {
        #[test]
        fn damage_never_panics(
            which in 0_usize..3,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = seeds().swap_remove(which);
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let _ = scan_bytes(&bytes);
        }

        #[test]
        fn boxes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = keyed(&bytes, &mut Metadata::default());
            let _ = commented(&bytes);
        }
    }
}
