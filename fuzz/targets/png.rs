//! PNGs and APNGs as hints.

use super::support::{crc32, read_image};

/// Reads all frames, of the input as it is and with the checksums put right.
pub fn run(data: &[u8]) {
    read_image("hint.png", data);
    if let Some(sound) = with_checksums(data) {
        read_image("hint.png", &sound);
    }
}

/// The same file with right checksums; nothing if they are right already.
fn with_checksums(data: &[u8]) -> Option<Vec<u8>> {
    let mut sound = data.to_vec();
    let mut at = 8;
    while let Some(length) = data.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let (start, length) = (at + 4, u32::from_be_bytes(*length) as usize);
        let end = start + 4 + length;
        let Some(chunk) = data.get(start..end) else { break };
        let checksum = crc32(chunk).to_be_bytes();
        if let Some(place) = sound.get_mut(end..end + 4) {
            place.copy_from_slice(&checksum);
        }
        at = end + 4;
    }
    (sound != data).then_some(sound)
}
