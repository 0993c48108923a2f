//! Numbered PNGs, one per frame, from 0; all of them appear, or none.

use std::io::{BufWriter, Write};

use super::target::Series;
use super::{ClipInfo, Fault, Metadata, png};
use crate::files::DraftSeries;
use crate::media::{FrameSink, RgbImage};
use crate::{Result, Stop};

const NAME: &str = "png";

/// A series of PNGs in the making.
#[derive(Debug)]
pub(super) struct Sequence {
    series: Series,
    draft: DraftSeries,
    clip: ClipInfo,
    metadata: Metadata,
    stop: Stop,
    seen: usize,
}

impl Sequence {
    /// Makes a folder for the frames to wait in.
    pub(super) fn new(
        series: Series,
        clip: &ClipInfo,
        metadata: &Metadata,
        stop: &Stop,
    ) -> Result<Self> {
        // The last name may be longer than the first.
        series.check_name(clip.frames - 1)?;
        let draft = series.draft()?;
        let (metadata, stop) = (metadata.clone(), stop.clone());
        Ok(Self { series, draft, clip: *clip, metadata, stop, seen: 0 })
    }

    fn write(&self, frame: &RgbImage) -> Result<(), Fault> {
        let mut file = BufWriter::new(self.draft.file(self.seen)?);
        let encoder = png::encoder(&mut file, &self.clip, &self.metadata)?;
        let mut writer = encoder.write_header()?;
        writer.write_image_data(frame.as_raw())?;
        writer.finish()?;
        file.flush()?;
        Ok(file.get_ref().sync_all()?)
    }
}

impl FrameSink for Sequence {
    fn frame(&mut self, frame: &RgbImage) -> Result<()> {
        self.stop.check()?;
        self.clip.check_frame(frame, self.seen, NAME)?;
        self.write(frame).map_err(|fault| fault.of(NAME, &self.series.path(self.seen)))?;
        self.seen += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.clip.check_end(self.seen, NAME)?;
        self.stop.check()?;
        self.series.commit(self.draft, self.seen)
    }
}
