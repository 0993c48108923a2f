//! Common parts of animated and numbered PNGs: header, texts, errors.

use std::io::Write;

use ::png::{BitDepth, ColorType, Encoder, EncodingError};

use super::metadata::{PNG_PARAMETERS, PNG_REQUEST};
use super::{ClipInfo, Fault, Metadata};

/// An 8-bit RGB encoder with the texts in place.
pub(super) fn encoder<W: Write>(
    out: W,
    clip: &ClipInfo,
    metadata: &Metadata,
) -> Result<Encoder<'static, W>, Fault> {
    let mut encoder = Encoder::new(out, clip.width, clip.height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    for (key, text) in
        [(PNG_PARAMETERS, &metadata.parameters), (PNG_REQUEST, &metadata.request_json)]
    {
        if text.is_empty() {
            continue;
        }
        // tEXt is what everything reads, but it holds Latin-1 only.
        if text.chars().all(|c| u32::from(c) < 256) {
            encoder.add_text_chunk(key.to_owned(), text.clone())?;
        } else {
            encoder.add_itxt_chunk(key.to_owned(), text.clone())?;
        }
    }
    Ok(encoder)
}

impl From<EncodingError> for Fault {
    fn from(error: EncodingError) -> Self {
        match error {
            EncodingError::IoError(error) => Self::Io(error),
            other => Self::Codec(other.to_string()),
        }
    }
}
