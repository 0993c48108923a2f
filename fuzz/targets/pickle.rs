//! The pickle in a torch file, inside a sound zip file with three storages.

use super::support::{crc32, file};
use super::weights;

/// Runs the pickle and reads what it describes.
pub fn run(data: &[u8]) {
    // A block of deflate that holds 64 bytes as they are.
    let packed = [&[1, 64, 0, !64, !0], &[2; 64][..]].concat();
    let zip = container(&[
        Member { name: "a/data.pkl", bytes: data, packed: None },
        Member { name: "a/data/0", bytes: &[0; 256], packed: None },
        Member { name: "a/data/1", bytes: &[1; 64], packed: None },
        Member { name: "a/data/2", bytes: &[2; 64], packed: Some(&packed) },
    ]);
    weights::open(&file("w.ckpt", &zip));
}

/// A file in a zip file.
struct Member<'a> {
    name: &'a str,
    bytes: &'a [u8],
    /// The same as deflate has it, if it is not stored as it is.
    packed: Option<&'a [u8]>,
}

/// A zip file.
fn container(members: &[Member<'_>]) -> Vec<u8> {
    let (mut zip, mut table) = (Vec::new(), Vec::new());
    for Member { name, bytes, packed } in members {
        let at = zip.len() as u32;
        let inside = packed.unwrap_or(bytes);
        let method: u16 = if packed.is_some() { 8 } else { 0 };
        let mut header = vec![20, 0, 0, 0];
        header.extend(method.to_le_bytes());
        header.extend([0; 4]);
        header.extend(crc32(bytes).to_le_bytes());
        header.extend((inside.len() as u32).to_le_bytes());
        header.extend((bytes.len() as u32).to_le_bytes());
        header.extend((name.len() as u32).to_le_bytes());
        zip.extend([b"PK\x03\x04", &header[..], name.as_bytes(), inside].concat());
        table.extend([b"PK\x01\x02\x14\0", &header[..], &[0; 10], &at.to_le_bytes()].concat());
        table.extend(name.as_bytes());
    }
    let (count, at) = (members.len() as u16, zip.len() as u32);
    zip.extend(&table);
    zip.extend([b"PK\x05\x06\0\0\0\0", &count.to_le_bytes()[..], &count.to_le_bytes()].concat());
    zip.extend([(table.len() as u32).to_le_bytes(), at.to_le_bytes()].concat());
    zip.extend([0; 2]);
    zip
}
