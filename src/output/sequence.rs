//! One PNG a frame, numbered from 0; all of them appear, or none.

use std::fs::File;
use std::io::{BufWriter, Write};

use super::target::{DraftSeries, Target};
use super::{ClipInfo, Fault, Metadata, png};
use crate::Result;
use crate::media::{FrameSink, RgbImage};

const NAME: &str = "png";

/// A series of PNGs in the making.
#[derive(Debug)]
pub(super) struct Sequence {
    series: DraftSeries,
    clip: ClipInfo,
    metadata: Metadata,
    seen: usize,
}

impl Sequence {
    /// Makes a folder for the frames to wait in.
    pub(super) fn new(target: Target, clip: &ClipInfo, metadata: &Metadata) -> Result<Self> {
        let series = target.draft_series()?;
        Ok(Self { series, clip: *clip, metadata: metadata.clone(), seen: 0 })
    }

    fn write(&self, frame: &RgbImage) -> Result<(), Fault> {
        let mut file = BufWriter::new(File::create_new(self.series.draft(self.seen))?);
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
        self.clip.check_frame(frame, self.seen, NAME)?;
        self.write(frame).map_err(|fault| fault.of(NAME, &self.series.place(self.seen)))?;
        self.seen += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.clip.check_end(self.seen, NAME)?;
        self.series.commit(self.seen)
    }
}
