//! H.264 stream parameters, and conversion of its frames to RGB.

use h264_reader::nal::sps::{ChromaFormat, FrameMbsFlags, SeqParameterSet};
use h264_reader::rbsp::{BitReader, decode_nal};
use image::RgbImage;
use openh264::decoder::DecodedYUV;
use openh264::formats::YUVSource;

use super::boxes::u16_at;
use super::{Matrix, Plane, YcbcrImage};
use crate::media::fault::{Convert, Fault};

/// The start code before every NAL unit of a stream.
const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// NAL unit type of a sequence parameter set.
const PARAMETERS: u8 = 7;

/// Parameters common to all frames.
pub(super) struct Stream {
    /// The parameter sets, with start codes.
    pub(super) head: Vec<u8>,
    /// Size in bytes of the length before every NAL unit of a sample.
    length_bytes: usize,
    is_full: bool,
    /// The matrix given by the stream; `None` means that it is chosen by size, as in players.
    matrix: Option<Matrix>,
}

impl Stream {
    /// Parses an `avcC` box, and the first sample if the box has no parameter sets.
    pub(super) fn new(avcc: &[u8], first: &[u8]) -> Result<Self, Fault> {
        let lengths = avcc.get(4).ok_or("has no parameters of its video")?;
        let mut stream = Self {
            head: Vec::new(),
            length_bytes: usize::from(lengths & 3) + 1,
            is_full: false,
            matrix: None,
        };
        let sets = parameter_sets(avcc).ok_or("its parameters are cut off")?;
        for set in &sets {
            stream.head.extend(START_CODE);
            stream.head.extend(*set);
        }
        let is_sps = |unit: &&[u8]| unit.first().is_some_and(|byte| byte & 31 == PARAMETERS);
        let in_band = || stream.split(first).ok()?.into_iter().find(is_sps);
        let set = sets.iter().copied().find(is_sps).or_else(in_band);
        let set = set.ok_or("has no parameters of its video")?;

        let unread = |error: &dyn std::fmt::Debug| format!("its parameters are broken: {error:?}");
        let bits = decode_nal(set).map_err(|error| unread(&error))?;
        let sps = SeqParameterSet::from_bits(BitReader::new(&*bits)).map_err(|e| unread(&e))?;
        check(&sps)?;
        let signal = sps.vui_parameters.as_ref().and_then(|vui| vui.video_signal_type.as_ref());
        // ITU-T H.264, table E-5.
        let matrix = signal.and_then(|signal| signal.colour_description.as_ref());
        stream.matrix = match matrix.map(|colour| colour.matrix_coefficients) {
            None | Some(2) => None,
            Some(1) => Some(Matrix::BT709),
            Some(4..=6) => Some(Matrix::BT601),
            Some(9) => Some(Matrix::BT2020),
            Some(other) => {
                return Err(format!("has colours of an unknown kind ({other})").into());
            }
        };
        stream.is_full = signal.is_some_and(|signal| signal.video_full_range_flag);
        Ok(stream)
    }

    /// The NAL units of a sample.
    fn split<'a>(&self, mut sample: &'a [u8]) -> Result<Vec<&'a [u8]>, Fault> {
        let mut units = Vec::new();
        while !sample.is_empty() {
            let (length, rest) =
                sample.split_at_checked(self.length_bytes).ok_or("a frame is cut off")?;
            let length = length.iter().fold(0, |all, byte| all << 8 | usize::from(*byte));
            let (unit, rest) = rest.split_at_checked(length).ok_or("a frame is cut off")?;
            units.push(unit);
            sample = rest;
        }
        Ok(units)
    }

    /// The NAL units of a sample, with start codes in place of their lengths.
    pub(super) fn units(&self, sample: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut stream = Vec::with_capacity(sample.len() + 8);
        for unit in self.split(sample)? {
            stream.extend(START_CODE);
            stream.extend(unit);
        }
        Ok(stream)
    }

    /// Converts a decoded frame to RGB.
    pub(super) fn image(&self, decoded: &DecodedYUV<'_>) -> Result<RgbImage, Fault> {
        let (width, height) = decoded.dimensions();
        let (luma_stride, cb_stride, cr_stride) = decoded.strides();
        // The size from which players assume high definition.
        let is_large = width >= 1280 || height > 576;
        let guess = if is_large { Matrix::BT709 } else { Matrix::BT601 };
        let half = (width.div_ceil(2), height / 2);
        let image = || {
            Some(YcbcrImage {
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
        Ok(image().ok_or("a frame has no pixels")?.to_rgb())
    }
}

/// The parameter sets of an `avcC` box: sequence parameter sets, then picture parameter sets.
fn parameter_sets(avcc: &[u8]) -> Option<Vec<&[u8]>> {
    let mut sets = Vec::new();
    let mut at = 5;
    for mask in [31, 255] {
        let count = avcc.get(at)? & mask;
        at += 1;
        for _ in 0..count {
            let length = usize::from(u16_at(avcc, at)?);
            sets.push(avcc.get(at + 2..at + 2 + length)?);
            at += 2 + length;
        }
    }
    Some(sets)
}

/// Rejects what openh264 does not decode, by name.
fn check(sps: &SeqParameterSet) -> Result<(), Fault> {
    let chroma = &sps.chroma_info;
    let bits = 8 + chroma.bit_depth_luma_minus8.max(chroma.bit_depth_chroma_minus8);
    let profile = match u8::from(sps.profile_idc) {
        88 => "Extended",
        110 => "High 10",
        122 => "High 4:2:2",
        44 => "CAVLC 4:4:4 Intra",
        244 => "High 4:4:4 Predictive",
        _ => "High",
    };
    let is_lossless = chroma.qpprime_y_zero_transform_bypass_flag;
    if chroma.chroma_format != ChromaFormat::YUV420 || bits > 8 || is_lossless {
        let how = match (&chroma.chroma_format, is_lossless) {
            (_, true) => "lossless".to_owned(),
            (ChromaFormat::YUV420, _) => format!("4:2:0, {bits} bits"),
            (ChromaFormat::YUV422, _) => format!("4:2:2, {bits} bits"),
            (ChromaFormat::YUV444, _) => format!("4:4:4, {bits} bits"),
            _ => format!("grey, {bits} bits"),
        };
        let only = "only 4:2:0 with 8 bits is decoded";
        let reason = format!("holds H.264 of the profile {profile} ({how}), {only}");
        return Err(Fault::Foreign(reason, Convert::Video));
    }
    if !matches!(sps.frame_mbs_flags, FrameMbsFlags::Frames) {
        return Err(Fault::Foreign("is interlaced".into(), Convert::Deinterlaced));
    }
    Ok(())
}
