//! Animated PNG: every pixel exact, and a still image for readers that know no animation.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use ::png::Writer;

use super::{ClipInfo, Encode, Fault, Metadata, png};
use crate::Stop;
use crate::media::RgbImage;

/// An APNG in the making.
pub(super) struct Apng<W: Write> {
    writer: Writer<Shared<W>>,
    out: Shared<W>,
}

impl<W: Write> Apng<W> {
    /// Writes the header and the texts.
    pub(super) fn new(out: W, clip: &ClipInfo, metadata: &Metadata) -> Result<Self, Fault> {
        let out = Shared(Arc::new(Mutex::new(out)));
        let mut encoder = png::encoder(out.clone(), clip, metadata)?;
        encoder.set_animated(clip.frames as u32, 0)?;
        let (num, den) = clip.rate();
        encoder.set_frame_delay(den as u16, num as u16)?;
        Ok(Self { writer: encoder.write_header()?, out })
    }
}

impl<W: Write> fmt::Debug for Apng<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Apng").finish_non_exhaustive()
    }
}

impl<W: Write + Send> Encode<W> for Apng<W> {
    const NAME: &'static str = "apng";

    fn frame(&mut self, frame: &RgbImage) -> Result<(), Fault> {
        Ok(self.writer.write_image_data(frame.as_raw())?)
    }

    fn finish(self, _: &Stop) -> Result<W, Fault> {
        self.writer.finish()?;
        Arc::into_inner(self.out.0)
            .and_then(|out| out.into_inner().ok())
            .ok_or_else(|| Fault::Codec("the encoder kept its output".into()))
    }
}

/// A sink that the `png` crate may keep and that comes back all the same.
struct Shared<W>(Arc<Mutex<W>>);

impl<W> Clone for Shared<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W> Shared<W> {
    fn with<T>(&self, run: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<T> {
        run(&mut *self.0.lock().map_err(|_| io::Error::other("the output is unusable"))?)
    }
}

impl<W: Write> Write for Shared<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.with(|out| out.write(data))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with(W::flush)
    }
}
