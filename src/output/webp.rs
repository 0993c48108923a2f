//! Animated lossless WebP: VP8L images in a RIFF container.
//!
//! The container is that of <https://developers.google.com/speed/webp/docs/riff_container>; `image-webp`
//! compresses the images and knows no animation.

use std::fmt;
use std::io::{Seek, SeekFrom, Write};

use image_webp::{ColorType, EncodingError, WebPEncoder};

use super::metadata::{self, Metadata};
use super::{ClipInfo, Encode, Fault, exif};
use crate::Stop;
use crate::media::RgbImage;

const HAS_ANIMATION: u8 = 1 << 1;
const HAS_XMP: u8 = 1 << 2;
const HAS_EXIF: u8 = 1 << 3;
/// Flag of a frame that replaces the canvas instead of blending with it.
const REPLACE: u8 = 1 << 1;
/// `RIFF`, a size and `WEBP`, which the encoder of stills writes first.
const STILL_HEADER: usize = 12;

/// An animated WebP in the making.
pub(super) struct Webp<W> {
    out: W,
    clip: ClipInfo,
    exif: Vec<u8>,
    xmp: Vec<u8>,
    seen: usize,
    /// Bytes after `RIFF` and the size.
    size: u64,
}

impl<W: Write> Webp<W> {
    /// Writes the header; the size of the whole is filled in at the end.
    pub(super) fn new(mut out: W, clip: &ClipInfo, metadata: &Metadata) -> Result<Self, Fault> {
        let xmp = if metadata.is_empty() { Vec::new() } else { metadata::to_xmp(metadata) };
        let exif = exif::of_comment(&metadata.parameters);
        let mut flags = HAS_ANIMATION;
        if !xmp.is_empty() {
            flags |= HAS_XMP;
        }
        if !exif.is_empty() {
            flags |= HAS_EXIF;
        }
        out.write_all(b"RIFF\0\0\0\0WEBP")?;
        let mut webp = Self { out, clip: *clip, exif, xmp, seen: 0, size: 4 };
        let extended = [&[flags, 0, 0, 0], &u24(clip.width - 1)[..], &u24(clip.height - 1)];
        webp.chunk(*b"VP8X", &extended.concat())?;
        // An opaque black background, and repeat for ever.
        webp.chunk(*b"ANIM", &[0, 0, 0, 255, 0, 0])?;
        Ok(webp)
    }

    /// Writes a chunk, padded to an even number of bytes.
    fn chunk(&mut self, name: [u8; 4], data: &[u8]) -> Result<(), Fault> {
        let length = u32::try_from(data.len()).map_err(|_| too_large())?;
        self.out.write_all(&name)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(data)?;
        if length % 2 == 1 {
            self.out.write_all(&[0])?;
        }
        self.size += 8 + u64::from(length).next_multiple_of(2);
        Ok(())
    }
}

fn too_large() -> Fault {
    Fault::Codec("the clip does not fit into 4 GiB".into())
}

fn u24(value: u32) -> [u8; 3] {
    let [a, b, c, _] = value.to_le_bytes();
    [a, b, c]
}

impl<W> fmt::Debug for Webp<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webp").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl<W: Write + Seek + Send> Encode<W> for Webp<W> {
    const NAME: &'static str = "webp";

    fn frame(&mut self, frame: &RgbImage) -> Result<(), Fault> {
        let ClipInfo { width, height, .. } = self.clip;
        let mut still = Vec::new();
        WebPEncoder::new(&mut still).encode(frame.as_raw(), width, height, ColorType::Rgb8)?;
        let image = still
            .get(STILL_HEADER..)
            .filter(|image| image.starts_with(b"VP8L"))
            .ok_or_else(|| Fault::Codec("the image is not VP8L".into()))?;
        let duration = self.clip.duration(self.seen, 1000).min((1 << 24) - 1);
        let header = [
            &[0; 6][..], // top left corner
            &u24(width - 1),
            &u24(height - 1),
            &u24(duration),
            &[REPLACE],
        ];
        let body = [&header.concat()[..], image].concat();
        self.chunk(*b"ANMF", &body)?;
        self.seen += 1;
        Ok(())
    }

    fn finish(mut self, _: &Stop) -> Result<W, Fault> {
        let (exif, xmp) = (std::mem::take(&mut self.exif), std::mem::take(&mut self.xmp));
        for (name, data) in [(*b"EXIF", exif), (*b"XMP ", xmp)] {
            if !data.is_empty() {
                self.chunk(name, &data)?;
            }
        }
        let size = u32::try_from(self.size).map_err(|_| too_large())?;
        self.out.seek(SeekFrom::Start(4))?;
        self.out.write_all(&size.to_le_bytes())?;
        self.out.seek(SeekFrom::End(0))?;
        Ok(self.out)
    }
}

impl From<EncodingError> for Fault {
    fn from(error: EncodingError) -> Self {
        match error {
            EncodingError::IoError(error) => Self::Io(error),
            other => Self::Codec(other.to_string()),
        }
    }
}
