//! H.264 in MP4, decoded by Cisco's openh264: 8 bits, 4:2:0, progressive.

use image::{RgbImage, imageops};
use openh264::OpenH264API;
use openh264::decoder::{DecodedYUV, Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;

use super::boxes::{Part, boxes, child, descendant, i32_at};
use super::h264::Stream;
use super::samples::{Samples, track_id};
use crate::media::fault::{Convert, Fault};
use crate::media::take::{Decoded, Take};

/// Bytes of a sample entry before its boxes.
const ENTRY: usize = 78;

/// The fault of a file that was cut off before its index, or while it was recorded.
const NO_INDEX: &str = "is not a whole MP4: its index (`moov`) is missing";

/// Reads the frames of the first decodable video track, in presentation order.
pub(super) fn read(bytes: &[u8], take: &mut Take<'_>) -> Result<(), Fault> {
    let moov = child(bytes, b"moov").ok_or(NO_INDEX)?;
    if child(moov, b"cmov").is_some() {
        let reason = "is a QuickTime file whose index is compressed".into();
        return Err(Fault::Foreign(reason, Convert::Video));
    }
    let (trak, entry) = track(moov)?;
    let avcc = avcc(entry)?;
    let turn = Turn::of(child(trak, b"tkhd").unwrap_or_default())?;
    let samples = Samples::read(bytes, moov, trak)?;
    let sample = |i: usize| -> Result<&[u8], Fault> {
        let found = samples.all.get(i).and_then(|sample| {
            let start = usize::try_from(sample.offset).ok()?;
            bytes.get(start..start.checked_add(sample.size as usize)?)
        });
        found.ok_or_else(|| "ends within a frame".into())
    };
    if samples.all.is_empty() {
        return Err("has no frames".into());
    }
    let stream = Stream::new(avcc, sample(0)?)?;

    let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
    let mut decoder = Decoder::with_api_config(OpenH264API::from_source(), config)
        .map_err(|error| error.to_string())?;
    let undecodable = |error: openh264::Error| {
        Fault::Foreign(format!("cannot be decoded: {error}"), Convert::Video)
    };
    if !stream.head.is_empty() {
        decoder.decode(&stream.head).map_err(undecodable)?;
    }
    take.listed(&samples.shown, |each| {
        // The decoder outputs frames in presentation order.
        let mut rank = 0;
        let mut show = |image: &DecodedYUV<'_>| {
            let make = || Ok(turn.apply(stream.image(image)?));
            let (width, height) = image.dimensions();
            rank += 1;
            each(rank - 1, Decoded { size: (width as u32, height as u32), make: &make })
        };
        for i in 0..samples.all.len() {
            let units = stream.units(sample(i)?)?;
            if let Some(image) = decoder.decode(&units).map_err(undecodable)?
                && !show(&image)?
            {
                return Ok(());
            }
        }
        for image in decoder.flush_remaining().map_err(undecodable)? {
            if !show(&image)? {
                break;
            }
        }
        Ok(())
    })
}

/// Seconds for which each frame of that track is shown, in presentation order.
pub(super) fn durations(bytes: &[u8]) -> Result<Vec<f64>, Fault> {
    let moov = child(bytes, b"moov").ok_or(NO_INDEX)?;
    let (trak, _) = track(moov)?;
    Ok(Samples::read(bytes, moov, trak)?.durations().ok_or("says no frame rate")?)
}

/// The first H.264 video track, or else the first video track, with its first sample entry.
fn track<'a>(moov: &'a [u8]) -> Result<(&'a [u8], Part<'a>), Fault> {
    let is_video = |trak: &&[u8]| {
        let kind = descendant(trak, &[b"mdia", b"hdlr"]).and_then(|body| body.get(8..12));
        kind == Some(b"vide")
    };
    let traks = boxes(moov).filter(|part| part.kind == b"trak").map(|part| part.body);
    let mut traks: Vec<&[u8]> = traks.filter(is_video).collect();
    traks.sort_by_key(|trak| track_id(trak));
    let entry = |trak: &&'a [u8]| {
        let table = descendant(trak, &[b"mdia", b"minf", b"stbl", b"stsd"])?;
        Some((*trak, boxes(table.get(8..)?).next()?))
    };
    let found: Vec<_> = traks.iter().filter_map(entry).collect();
    let is_h264 = |(_, entry): &&(&[u8], Part<'_>)| is_h264(*entry.kind);
    let best = found.iter().find(is_h264).or(found.first());
    best.copied().ok_or_else(|| "has no video track".into())
}

fn is_h264(kind: [u8; 4]) -> bool {
    matches!(&kind, b"avc1" | b"avc2" | b"avc3" | b"avc4")
}

/// The decoder configuration of a sample entry.
fn avcc(entry: Part<'_>) -> Result<&[u8], Fault> {
    let parts = entry.body.get(ENTRY..).unwrap_or_default();
    if is_h264(*entry.kind) {
        return child(parts, b"avcC").ok_or_else(|| "has no parameters of its video".into());
    }
    if entry.kind == b"encv" {
        return Err("is encrypted (DRM), which is not read".into());
    }
    let reason = format!("holds {}, only H.264 is decoded", codec(*entry.kind, parts));
    Err(Fault::Foreign(reason, Convert::Video))
}

/// The name of a codec.
fn codec(kind: [u8; 4], parts: &[u8]) -> String {
    let name = match &kind {
        b"hvc1" | b"hev1" | b"dvh1" | b"dvhe" => "HEVC (H.265)",
        b"vvc1" | b"vvi1" => "VVC (H.266)",
        b"av01" => "AV1",
        b"vp08" => "VP8",
        b"vp09" => "VP9",
        b"mp4v" => child(parts, b"esds").map_or("MPEG-4 part 2", object_type),
        b"jpeg" | b"mjpa" | b"mjpb" | b"mjpg" => "Motion JPEG",
        b"apch" | b"apcn" | b"apcs" | b"apco" | b"ap4h" | b"ap4x" => "ProRes",
        b"AVdn" | b"AVdh" => "DNxHD",
        b"s263" | b"h263" => "H.263",
        b"dvc " | b"dvcp" | b"dvpp" | b"dv5p" | b"dv5n" => "DV",
        b"SVQ1" | b"SVQ3" => "Sorenson video",
        b"png " => "PNG frames",
        b"rle " => "QuickTime animation",
        b"raw " | b"2vuy" | b"yuv2" | b"v210" => "raw frames",
        _ => {
            let name = kind.escape_ascii();
            return format!("the codec `{name}`");
        }
    };
    name.to_owned()
}

/// The codec of an `mp4v` track, from its `esds` box.
fn object_type(esds: &[u8]) -> &'static str {
    /// The contents of a descriptor, after its tag and length.
    fn inside(bytes: &[u8]) -> Option<&[u8]> {
        let length = bytes.get(1..)?.iter().position(|byte| byte & 0x80 == 0)?;
        bytes.get(length + 2..)
    }
    // Skips the version, then the elementary stream's id and flags, to the decoder descriptor.
    let decoder = esds.get(4..).and_then(inside).and_then(|track| inside(track.get(3..)?));
    match decoder.and_then(|decoder| decoder.first()) {
        Some(0x60..=0x65) => "MPEG-2",
        Some(0x6a) => "MPEG-1",
        Some(0x6c) => "Motion JPEG",
        _ => "MPEG-4 part 2",
    }
}

/// Rotation of a frame for display, as used by phone cameras.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Turn {
    Not,
    Right,
    Around,
    Left,
}

impl Turn {
    /// The rotation given by the matrix of a track header, from its first two rows and columns.
    fn of(header: &[u8]) -> Result<Self, Fault> {
        const ONE: i32 = 0x1_0000;
        const MINUS: i32 = -ONE;
        let start = if header.first() == Some(&1) { 52 } else { 40 };
        let matrix = [0, 4, 12, 16].map(|at| i32_at(header, start + at));
        let [Some(a), Some(b), Some(c), Some(d)] = matrix else {
            return Err("the header of its track is cut off".into());
        };
        match (a, b, c, d) {
            (ONE, 0, 0, ONE) => Ok(Self::Not),
            (0, ONE, MINUS, 0) => Ok(Self::Right),
            (MINUS, 0, 0, MINUS) => Ok(Self::Around),
            (0, MINUS, ONE, 0) => Ok(Self::Left),
            other => {
                Err(format!("is shown through the matrix {other:?}, only turns are known").into())
            }
        }
    }

    fn apply(self, image: RgbImage) -> RgbImage {
        match self {
            Self::Not => image,
            Self::Right => imageops::rotate90(&image),
            Self::Around => imageops::rotate180(&image),
            Self::Left => imageops::rotate270(&image),
        }
    }
}
