//! H.264 in MP4, for browsers and phones.
//!
//! Cisco's openh264 writes the constrained baseline profile, which everything decodes. The quantiser is fixed
//! and there is one thread, so equal frames give equal bytes. Room for the index is left at the start of the
//! file, where players want it, so no frame is held in memory.

use std::fmt;
use std::io::{Seek, SeekFrom, Write};

use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Complexity, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, QpRange,
    RateControlMode, UsageType, VuiConfig,
};
use openh264::formats::YUVSource;

use super::boxes::{self, Movie};
use super::ycbcr::{self, Matrix, Planes};
use super::{ClipInfo, Encode, Fault, Metadata};
use crate::Stop;
use crate::media::RgbImage;

/// The quantiser: visually close to the source, at a few megabits a second for 512 by 512.
const QP: u8 = 20;
/// Seconds between frames that can be decoded alone.
const KEY_SECONDS: f64 = 4.0;

/// An MP4 in the making.
pub(super) struct Mp4<W> {
    out: W,
    clip: ClipInfo,
    metadata: Metadata,
    encoder: Encoder,
    movie: Movie,
    /// Bytes that are left for the index, once its size is known.
    room: usize,
    payload: u64,
}

impl<W: Write + Seek> Mp4<W> {
    /// Sets the encoder up. The first frame brings what the file's beginning needs.
    pub(super) fn new(mut out: W, clip: &ClipInfo, metadata: &Metadata) -> Result<Self, Fault> {
        out.write_all(&boxes::file_type())?;
        let coded = (clip.width.next_multiple_of(2), clip.height.next_multiple_of(2));
        let config = EncoderConfig::new()
            // With both ends of the range equal this mode is a constant quantiser; it never drops a frame.
            .rate_control_mode(RateControlMode::Bufferbased)
            .qp(QpRange::new(QP, QP))
            .skip_frames(false)
            .scene_change_detect(false)
            .adaptive_quantization(false)
            .background_detection(false)
            .usage_type(UsageType::CameraVideoRealTime)
            .complexity(Complexity::High)
            .max_frame_rate(FrameRate::from_hz(clip.fps.clamp(1.0, 60.0) as f32))
            // Only the level in the header depends on it.
            .bitrate(BitRate::from_bps(bit_rate(clip)))
            .intra_frame_period(IntraFramePeriod::from_num_frames(
                (clip.fps * KEY_SECONDS).ceil().clamp(1.0, 1000.0) as u32,
            ))
            .num_threads(1)
            .vui(VuiConfig::bt709());
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config)?;
        let movie = Movie {
            coded,
            shown: (clip.width, clip.height),
            rate: clip.fine_rate(),
            sps: Vec::new(),
            pps: Vec::new(),
            sizes: Vec::new(),
            keys: Vec::new(),
            offset: 0,
        };
        let metadata = metadata.clone();
        Ok(Self { out, clip: *clip, metadata, encoder, movie, room: 0, payload: 0 })
    }

    /// Leaves room for the largest index that there can be, and begins the frames.
    fn begin(&mut self) -> Result<(), Fault> {
        let mut largest = Movie {
            sizes: vec![0; self.clip.frames],
            keys: (0..self.clip.frames as u32).collect(),
            ..self.movie.clone()
        };
        if largest.duration().is_none() {
            // Coarser units count for longer.
            self.movie.rate = self.clip.rate();
            largest.rate = self.movie.rate;
        }
        if largest.duration().is_none() {
            return Err(Fault::Codec("the clip lasts longer than the format can say".into()));
        }
        // Unused space becomes an empty box, which has at least eight bytes.
        self.room = largest.movie_box(&self.metadata).len() + 8;
        self.out.write_all(&boxes::free(self.room))?;
        self.out.write_all(&boxes::media_header(0))?;
        self.movie.offset = self.out.stream_position()?;
        Ok(())
    }
}

/// About three bits a pixel, within what levels know.
fn bit_rate(clip: &ClipInfo) -> u32 {
    let pixels = f64::from(clip.width) * f64::from(clip.height);
    (pixels * clip.fps.max(1.0) * 3.0).clamp(64_000.0, 100_000_000.0) as u32
}

/// The NAL units of a stream, without the start codes between them.
fn units(stream: &[u8]) -> Vec<&[u8]> {
    let mut starts = Vec::new();
    let mut at = 0;
    while at + 3 <= stream.len() {
        if stream[at..at + 3] == [0, 0, 1] {
            starts.push(at);
            at += 3;
        } else {
            at += 1;
        }
    }
    let ends = starts.iter().skip(1).copied().chain([stream.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(&start, end)| {
            let unit = &stream[start + 3..end];
            // A zero before a start code belongs to the code, and no unit ends in one.
            let length = unit.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            &unit[..length]
        })
        .filter(|unit| !unit.is_empty())
        .collect()
}

impl<W> fmt::Debug for Mp4<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mp4").field("clip", &self.clip).finish_non_exhaustive()
    }
}

impl<W: Write + Seek + Send> Encode<W> for Mp4<W> {
    const NAME: &'static str = "mp4";

    fn frame(&mut self, frame: &RgbImage) -> Result<(), Fault> {
        let planes = ycbcr::halved(frame, Matrix::Bt709);
        let encoded = self.encoder.encode(&planes)?;
        let is_key = encoded.frame_type() == FrameType::IDR;
        let stream = encoded.to_vec();
        let is_first = self.movie.sizes.is_empty();
        let mut sample = Vec::with_capacity(stream.len() + 8);
        for unit in units(&stream) {
            match unit[0] & 0x1f {
                7 if is_first => self.movie.sps = unit.to_vec(),
                8 if is_first => self.movie.pps = unit.to_vec(),
                7 | 8 if [&self.movie.sps, &self.movie.pps].iter().any(|known| *known == unit) => {}
                7 | 8 => return Err(Fault::Codec("its parameters changed within the clip".into())),
                _ => {
                    sample.extend((unit.len() as u32).to_be_bytes());
                    sample.extend(unit);
                }
            }
        }
        if sample.is_empty() || (is_first && (!is_key || self.movie.sps.len() < 4)) {
            return Err(Fault::Codec(format!("frame {} gave nothing", self.movie.sizes.len())));
        }
        if is_first {
            self.begin()?;
        }
        if is_key {
            self.movie.keys.push(self.movie.sizes.len() as u32);
        }
        self.out.write_all(&sample)?;
        self.movie.sizes.push(sample.len() as u32);
        self.payload += sample.len() as u64;
        Ok(())
    }

    fn finish(mut self, _: &Stop) -> Result<W, Fault> {
        let start = boxes::file_type().len() as u64;
        let index = self.movie.movie_box(&self.metadata);
        let Some(rest) = self.room.checked_sub(index.len()).filter(|&rest| rest >= 8) else {
            return Err(Fault::Codec("the index outgrew its place".into()));
        };
        self.out.seek(SeekFrom::Start(start))?;
        self.out.write_all(&index)?;
        self.out.write_all(&boxes::free(rest))?;
        self.out.write_all(&boxes::media_header(self.payload))?;
        self.out.seek(SeekFrom::End(0))?;
        Ok(self.out)
    }
}

impl From<openh264::Error> for Fault {
    fn from(error: openh264::Error) -> Self {
        Self::Codec(error.to_string())
    }
}

impl YUVSource for Planes {
    fn dimensions(&self) -> (usize, usize) {
        self.size
    }

    fn strides(&self) -> (usize, usize, usize) {
        (self.size.0, self.size.0 / 2, self.size.0 / 2)
    }

    fn y(&self) -> &[u8] {
        &self.y
    }

    fn u(&self) -> &[u8] {
        &self.cb
    }

    fn v(&self) -> &[u8] {
        &self.cr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_fall_into_units() {
        let stream = [0, 0, 0, 1, 0x67, 1, 0, 0, 1, 0x68, 0, 2, 0, 0, 0, 1, 0x65, 9];
        assert_eq!(units(&stream), [&[0x67, 1][..], &[0x68, 0, 2], &[0x65, 9]]);
        assert!(units(&[1, 2, 3]).is_empty());
        assert!(units(&[0, 0, 1]).is_empty());
    }
}
