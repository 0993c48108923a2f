//! How long each frame of an animation or video is shown.

use image::ImageFormat;

use super::fault::Fault;
use super::take::MOST_TIMES;
use super::{animation, video, webp};

/// Delays up to this are shown for [`USUAL`] seconds instead, as in browsers.
const TOO_SHORT: f64 = 0.010_001;

/// Seconds for which browsers show a frame without a usable delay.
const USUAL: f64 = 0.1;

/// Seconds for which each frame of a file with these contents is shown, in order; `None` for still images and for
/// formats that are not read.
pub(super) fn durations(bytes: &[u8]) -> Result<Option<Vec<f64>>, Fault> {
    if let Some(kind) = video::Kind::of(bytes) {
        return video::durations(kind, bytes).map(Some);
    }
    let mut found = match image::guess_format(bytes) {
        Ok(ImageFormat::Gif) => gif(bytes),
        Ok(ImageFormat::Png) if animation::is_apng(bytes) => apng(bytes),
        Ok(ImageFormat::WebP) if webp::is_animated(bytes) => webp::durations(webp::whole(bytes)?),
        _ => return Ok(None),
    };
    for seconds in &mut found {
        if *seconds <= TOO_SHORT {
            *seconds = USUAL;
        }
    }
    Ok(Some(found))
}

/// The delays of a GIF. What cannot be followed ends the list: the decoder says what is wrong.
fn gif(bytes: &[u8]) -> Vec<f64> {
    /// Bytes before the global colour table.
    const HEADER: usize = 13;
    /// Bytes of an image descriptor after its first.
    const DESCRIPTOR: usize = 9;
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut found = Vec::new();
    let mut walk = || {
        let mut at = HEADER + table(*bytes.get(10)?);
        // Hundredths of a second.
        let mut delay = 0u16;
        while found.len() < MOST_TIMES {
            match (*bytes.get(at)?, *bytes.get(at + 1)?) {
                (0x21, label) => {
                    if let (0xf9, Some(&[_, _, low, high])) =
                        (label, bytes.get(at + 2..).and_then(|rest| rest.first_chunk()))
                    {
                        delay = u16::from_le_bytes([low, high]);
                    }
                    at = after_blocks(bytes, at + 2)?;
                }
                (0x2c, _) => {
                    found.push(f64::from(delay) / 100.0);
                    delay = 0;
                    // The descriptor, its colour table, and the size of codes.
                    at += 1 + DESCRIPTOR + table(*bytes.get(at + DESCRIPTOR)?);
                    at = after_blocks(bytes, at + 1)?;
                }
                _ => break,
            }
        }
        Some(())
    };
    // The end of the bytes ends the list as well.
    let _ = walk();
    found
}

/// The offset behind the data blocks at `at`.
fn after_blocks(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    }
}

/// The delays of an APNG.
fn apng(bytes: &[u8]) -> Vec<f64> {
    let number = |bytes: &[u8], at: usize| {
        let pair = bytes.get(at..)?.first_chunk()?;
        Some(f64::from(u16::from_be_bytes(*pair)))
    };
    let delay = |body: &[u8]| {
        let (over, under) = (number(body, 20)?, number(body, 22)?);
        // Without a denominator hundredths are meant.
        Some(over / if under == 0.0 { 100.0 } else { under })
    };
    let controls = animation::png_chunks(bytes).filter(|(kind, _)| *kind == b"fcTL");
    controls.map_while(|(_, body)| delay(body)).take(MOST_TIMES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_of_a_gif_are_those_before_its_images() {
        let mut bytes = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff".to_vec();
        bytes.extend(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0");
        let image = b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0";
        for delay in [7, 0, 250] {
            bytes.extend(b"\x21\xf9\x04\0");
            bytes.extend([delay, 0, 0, 0]);
            bytes.extend(image);
        }
        bytes.extend(image);
        bytes.push(b';');
        assert_eq!(durations(&bytes).unwrap(), Some(vec![0.07, 0.1, 2.5, 0.1]));
        // Cut anywhere, a part of them.
        for end in 0..bytes.len() {
            assert!(gif(&bytes[..end]).len() <= 4);
        }
    }

    #[test]
    fn stills_have_no_durations() {
        assert_eq!(durations(b"\x89PNG\r\n\x1a\n").unwrap(), None);
        assert_eq!(durations(b"").unwrap(), None);
    }

    #[test]
    fn raw_video_has_the_rate_of_its_header() {
        let y4m = |rate: &str| {
            let frame = "FRAME\n\0\0\0\0\0\0";
            durations(format!("YUV4MPEG2 W2 H2{rate}\n{frame}{frame}").as_bytes())
        };
        assert_eq!(y4m(" F8:1").unwrap(), Some(vec![0.125; 2]));
        assert_eq!(y4m(" F30000:1001").unwrap(), Some(vec![1001.0 / 30000.0; 2]));
        for none in ["", " F0:0", " F8", " F8:0"] {
            assert!(y4m(none).is_err(), "{none}");
        }
    }
}
