//! H.264 in MP4, decoded by Cisco's openh264: 8 bits, 4:2:0, progressive.

use h264_reader::nal::sps::{ChromaFormat, FrameMbsFlags, SeqParameterSet};
use h264_reader::rbsp::{BitReader, decode_nal};
use image::{RgbImage, imageops};
use openh264::OpenH264API;
use openh264::decoder::{DecodedYUV, Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;
use re_mp4::{Avc1Box, Mp4, StsdBoxContent, TkhdBox, TrackKind};

use super::{Fault, Matrix, Picture, Plane};

/// What stands before every unit of a stream.
const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// The first video track's frames, in the order in which they are shown.
pub(super) fn read(
    bytes: &[u8],
    each: &mut dyn FnMut(RgbImage) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let fault = |error: &dyn std::fmt::Display| format!("is not a whole MP4: {error}");
    let mp4 = Mp4::read_bytes(bytes).map_err(|error| fault(&error))?;
    let track = mp4.tracks().values().find(|track| track.kind == Some(TrackKind::Video));
    let track = track.ok_or("has no video track")?;
    let trak = track.trak(&mp4);
    let avc = match &trak.mdia.minf.stbl.stsd.contents {
        StsdBoxContent::Avc1(avc) => avc,
        other => {
            let codec = other.codec_string().unwrap_or_else(|| "an unknown codec".into());
            return Err(format!("holds {codec}, only H.264 is decoded"));
        }
    };
    let stream = Stream::new(avc)?;
    let turn = Turn::of(&trak.tkhd)?;

    let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
    let mut decoder = Decoder::with_api_config(OpenH264API::from_source(), config)
        .map_err(|error| error.to_string())?;
    let undecodable = |error: openh264::Error| format!("cannot be decoded: {error}");
    decoder.decode(&stream.head).map_err(undecodable)?;
    for sample in &track.samples {
        let range = usize::try_from(sample.offset).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(sample.size).ok()?)?;
            bytes.get(start..end)
        });
        let units = stream.units(range.ok_or("ends within a frame")?)?;
        if let Some(picture) = decoder.decode(&units).map_err(undecodable)? {
            each(turn.apply(stream.picture(&picture)?))?;
        }
    }
    for picture in decoder.flush_remaining().map_err(undecodable)? {
        each(turn.apply(stream.picture(&picture)?))?;
    }
    Ok(())
}

/// What is common to all frames.
struct Stream {
    /// The parameter sets, with start codes.
    head: Vec<u8>,
    /// Bytes of the length before every unit of a sample.
    length_bytes: usize,
    is_full: bool,
    /// As the stream says; otherwise players go by the size.
    matrix: Option<Matrix>,
}

impl Stream {
    fn new(avc: &Avc1Box) -> Result<Self, Fault> {
        let avcc = &*avc.avcc;
        let mut head = Vec::new();
        for set in avcc.sequence_parameter_sets.iter().chain(&avcc.picture_parameter_sets) {
            head.extend(START_CODE);
            head.extend(&set.bytes);
        }
        let Some(set) = avcc.sequence_parameter_sets.first() else {
            return Err("has no parameters of its video".into());
        };
        let unread = |error: &dyn std::fmt::Debug| format!("its parameters are broken: {error:?}");
        let bits = decode_nal(&set.bytes).map_err(|error| unread(&error))?;
        let sps = SeqParameterSet::from_bits(BitReader::new(&*bits)).map_err(|e| unread(&e))?;
        let chroma = &sps.chroma_info;
        if chroma.chroma_format != ChromaFormat::YUV420
            || chroma.bit_depth_luma_minus8 + chroma.bit_depth_chroma_minus8 > 0
        {
            return Err("is not 4:2:0 with 8 bits, only that is decoded".into());
        }
        if !matches!(sps.frame_mbs_flags, FrameMbsFlags::Frames) {
            return Err("is interlaced".into());
        }
        let signal = sps.vui_parameters.as_ref().and_then(|vui| vui.video_signal_type.as_ref());
        // ITU-T H.264, table E-5.
        let matrix = signal.and_then(|signal| signal.colour_description.as_ref());
        let matrix = match matrix.map(|colour| colour.matrix_coefficients) {
            None | Some(2) => None,
            Some(1) => Some(Matrix::BT709),
            Some(4..=6) => Some(Matrix::BT601),
            Some(9) => Some(Matrix::BT2020),
            Some(other) => return Err(format!("has colours of an unknown kind ({other})")),
        };
        Ok(Self {
            head,
            length_bytes: usize::from(avcc.length_size_minus_one & 3) + 1,
            is_full: signal.is_some_and(|signal| signal.video_full_range_flag),
            matrix,
        })
    }

    /// A sample's units, each with a start code in place of its length.
    fn units(&self, mut sample: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut stream = Vec::with_capacity(sample.len() + 8);
        while !sample.is_empty() {
            let (length, rest) =
                sample.split_at_checked(self.length_bytes).ok_or("a frame is cut off")?;
            let length = length.iter().fold(0, |all, byte| all << 8 | usize::from(*byte));
            let (unit, rest) = rest.split_at_checked(length).ok_or("a frame is cut off")?;
            stream.extend(START_CODE);
            stream.extend(unit);
            sample = rest;
        }
        Ok(stream)
    }

    fn picture(&self, decoded: &DecodedYUV<'_>) -> Result<RgbImage, Fault> {
        let (width, height) = decoded.dimensions();
        let (luma_stride, cb_stride, cr_stride) = decoded.strides();
        // What players take for high definition.
        let is_large = width >= 1280 || height > 576;
        let guess = if is_large { Matrix::BT709 } else { Matrix::BT601 };
        let half = (width.div_ceil(2), height / 2);
        let picture = || {
            Some(Picture {
                luma: Plane::new(decoded.y(), luma_stride, (width, height))?,
                chroma: Some((
                    Plane::new(decoded.u(), cb_stride, half)?,
                    Plane::new(decoded.v(), cr_stride, half)?,
                )),
                shared: (2, 2),
                is_centred: false,
                is_full: self.is_full,
                matrix: self.matrix.unwrap_or(guess),
            })
        };
        Ok(picture().ok_or("a frame has no pixels")?.to_rgb())
    }
}

/// How a picture is turned before it is shown: phones film sideways.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Turn {
    Not,
    Right,
    Around,
    Left,
}

impl Turn {
    /// What a track's matrix says, of which the turn is the first two rows and columns.
    fn of(header: &TkhdBox) -> Result<Self, Fault> {
        const ONE: i32 = 0x1_0000;
        const MINUS: i32 = -ONE;
        let matrix = &header.matrix;
        match (matrix.a, matrix.b, matrix.c, matrix.d) {
            (ONE, 0, 0, ONE) => Ok(Self::Not),
            (0, ONE, MINUS, 0) => Ok(Self::Right),
            (MINUS, 0, 0, MINUS) => Ok(Self::Around),
            (0, MINUS, ONE, 0) => Ok(Self::Left),
            other => Err(format!("is shown through the matrix {other:?}, only turns are known")),
        }
    }

    fn apply(self, picture: RgbImage) -> RgbImage {
        match self {
            Self::Not => picture,
            Self::Right => imageops::rotate90(&picture),
            Self::Around => imageops::rotate180(&picture),
            Self::Left => imageops::rotate270(&picture),
        }
    }
}
