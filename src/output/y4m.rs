//! YUV4MPEG2: a line of text, then raw planes; what every video tool reads from a pipe.
//!
//! 4:4:4, so no colour is lost before the encoder behind the pipe has seen it. The header cannot name a
//! matrix, and readers that are not told assume BT.601, so that is what it is. There is no metadata: FFmpeg
//! refuses a header line of more than about a hundred bytes.

use std::fmt;
use std::io::Write;

use super::ycbcr::{self, Matrix};
use super::{ClipInfo, Encode, Fault};
use crate::Stop;
use crate::media::RgbImage;

/// A Y4M stream.
pub(super) struct Y4m<W> {
    out: W,
}

impl<W: Write> Y4m<W> {
    /// Writes the header.
    pub(super) fn new(mut out: W, clip: &ClipInfo) -> Result<Self, Fault> {
        let (num, den) = clip.fine_rate();
        let ClipInfo { width, height, .. } = clip;
        writeln!(
            out,
            "YUV4MPEG2 W{width} H{height} F{num}:{den} Ip A1:1 C444 XCOLORRANGE=LIMITED"
        )?;
        Ok(Self { out })
    }
}

impl<W> fmt::Debug for Y4m<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Y4m").finish_non_exhaustive()
    }
}

impl<W: Write + Send> Encode<W> for Y4m<W> {
    const NAME: &'static str = "y4m";

    fn frame(&mut self, frame: &RgbImage) -> Result<(), Fault> {
        let planes = ycbcr::full(frame, Matrix::Bt601);
        self.out.write_all(b"FRAME\n")?;
        for plane in [&planes.y, &planes.cb, &planes.cr] {
            self.out.write_all(plane)?;
        }
        // A reader behind a pipe sees each frame when it is done.
        self.out.flush()?;
        Ok(())
    }

    fn finish(self, _: &Stop) -> Result<W, Fault> {
        Ok(self.out)
    }
}
