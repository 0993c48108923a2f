//! YUV4MPEG2 (Y4M): a text header followed by uncompressed planes.

use super::{Matrix, Plane, YcbcrImage};
use crate::media::fault::{Convert, Fault};
use crate::media::take::{MOST_TIMES, Take};

/// Magic bytes at the start of the file.
pub(super) const MAGIC: &[u8] = b"YUV4MPEG2 ";

/// Maximum length of a text line in bytes.
const LONGEST_LINE: usize = 4096;

/// Chroma subsampling and siting.
struct Chroma {
    /// Number of pixels per chroma sample, horizontally and vertically; `None` for grayscale.
    shared: Option<(usize, usize)>,
    is_centred: bool,
}

impl Chroma {
    fn named(name: &str) -> Option<Self> {
        let colour = |shared, is_centred| Self { shared: Some(shared), is_centred };
        Some(match name {
            "420" | "420jpeg" => colour((2, 2), true),
            "420mpeg2" | "420paldv" => colour((2, 2), false),
            "422" => colour((2, 1), false),
            "444" => colour((1, 1), false),
            "mono" => Self { shared: None, is_centred: false },
            _ => return None,
        })
    }
}

/// The first line of a file.
struct Header {
    size: (usize, usize),
    chroma: Chroma,
    /// Whether values have full range.
    is_full: bool,
    /// Seconds for which a frame is shown, if it says so.
    duration: Option<f64>,
}

/// Reads the first line; returns it with the remaining bytes.
fn header(bytes: &[u8]) -> Result<(Header, &[u8]), Fault> {
    let (header, rest) = line(bytes)?;
    let mut size: (usize, usize) = (0, 0);
    let mut chroma = Chroma { shared: Some((2, 2)), is_centred: true };
    let mut is_full = false;
    let mut duration = None;
    for word in header.split(' ').skip(1).filter(|word| !word.is_empty()) {
        let (key, value) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
        let number = || value.parse::<u16>().map_err(|_| format!("`{word}` is not a size"));
        match key {
            "W" => size.0 = number()?.into(),
            "H" => size.1 = number()?.into(),
            "I" if !["p", "?"].contains(&value) => {
                return Err(Fault::Foreign("is interlaced".into(), Convert::Deinterlaced));
            }
            "C" => {
                chroma = Chroma::named(value).ok_or_else(|| {
                    let reason = format!("pixels of the kind `{value}` are not read");
                    Fault::Foreign(reason, Convert::Video)
                })?;
            }
            "X" => is_full |= value == "COLORRANGE=FULL",
            "F" => duration = frame_duration(value),
            _ => {}
        }
    }
    if size.0 * size.1 == 0 {
        return Err("has no width or height".into());
    }
    Ok((Header { size, chroma, is_full, duration }, rest))
}

/// Seconds of a frame at a rate that is written as `30000:1001`.
fn frame_duration(text: &str) -> Option<f64> {
    let (over, under) = text.split_once(':')?;
    let seconds = f64::from(under.parse::<u32>().ok()?) / f64::from(over.parse::<u32>().ok()?);
    (seconds.is_finite() && seconds > 0.0).then_some(seconds)
}

impl Header {
    /// Width and height of the chroma planes.
    fn chroma_size(&self) -> Option<(usize, usize)> {
        let (x, y) = self.chroma.shared?;
        Some((self.size.0.div_ceil(x), self.size.1.div_ceil(y)))
    }

    /// Bytes of a luma plane, and of each chroma plane.
    fn bytes(&self) -> (usize, usize) {
        (self.size.0 * self.size.1, self.chroma_size().map_or(0, |(width, height)| width * height))
    }
}

/// Seconds for which each frame is shown: all equal.
pub(super) fn durations(bytes: &[u8]) -> Result<Vec<f64>, Fault> {
    let (header, mut rest) = header(bytes)?;
    let duration = header.duration.ok_or("says no frame rate")?;
    let (luma, chroma) = header.bytes();
    let mut found = Vec::new();
    while found.len() < MOST_TIMES
        && let Ok((_, planes)) = line(rest)
        && let Some(after) = planes.get(luma + 2 * chroma..)
    {
        found.push(duration);
        rest = after;
    }
    Ok(found)
}

/// Reads the frames. Colours default to BT.601 in limited range, as is customary.
pub(super) fn read(bytes: &[u8], take: &mut Take<'_>) -> Result<(), Fault> {
    let (header, mut rest) = header(bytes)?;
    let (luma_bytes, chroma_bytes) = header.bytes();
    let small = header.chroma_size();
    let Header { size, chroma, is_full, .. } = header;
    while !rest.is_empty() && !take.is_full() {
        let (frame, planes) = line(rest)?;
        if frame != "FRAME" && !frame.starts_with("FRAME ") {
            return Err("a frame does not begin with FRAME".into());
        }
        let part = |from: usize, len: usize| planes.get(from..from + len);
        let image = || {
            Some(YcbcrImage {
                luma: Plane::new(part(0, luma_bytes)?, size.0, size)?,
                chroma: match small {
                    None => None,
                    Some(small) => Some((
                        Plane::new(part(luma_bytes, chroma_bytes)?, small.0, small)?,
                        Plane::new(part(luma_bytes + chroma_bytes, chroma_bytes)?, small.0, small)?,
                    )),
                },
                shared: chroma.shared.unwrap_or((1, 1)),
                is_centred: chroma.is_centred,
                is_full,
                matrix: Matrix::BT601,
            })
        };
        let image = image().ok_or("ends within a frame")?;
        if take.wants((size.0 as u32, size.1 as u32))? {
            take.keep(image.to_rgb());
        }
        rest = &planes[luma_bytes + 2 * chroma_bytes..];
    }
    Ok(())
}

/// A line of text, and the remaining bytes.
fn line(bytes: &[u8]) -> Result<(&str, &[u8]), Fault> {
    let end = bytes.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n');
    let end = end.ok_or("a line of its text does not end")?;
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| "its text is not text")?;
    Ok((text, &bytes[end + 1..]))
}
