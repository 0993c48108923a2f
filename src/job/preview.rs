//! A file that shows how far a clip is: an animation that is written again after every step.

use std::path::Path;

use crate::files::Place;
use crate::media::resize::enlarge;
use crate::output::{self, ClipInfo, Existing, Format, Metadata};
use crate::pipeline::Preview;
use crate::{Error, Result, Stop};

/// Small frames are enlarged to about this many pixels a side, each pixel to a square.
const SIDE: u32 = 256;

/// The field of the request, for messages.
const FIELD: &str = "preview";

/// The place of an animation that previews are written to.
#[derive(Debug)]
pub(super) struct PreviewFile<'a> {
    path: &'a Path,
    stop: Stop,
}

impl<'a> PreviewFile<'a> {
    /// Checks that the file can be written and is neither the clip, which goes to `output`, nor `beside`. A file that is
    /// there is replaced.
    pub(super) fn check(
        path: &'a Path,
        (output, beside): (&Path, Option<&Place>),
        stop: &Stop,
    ) -> Result<Self> {
        let place = place(output, path, Existing::Replace)?;
        if beside.is_some_and(|beside| beside.path() == place.path()) {
            let reason = format!("`{}` is where the tensors go", path.display());
            return Err(Error::request(FIELD, reason).with_hint("choose another name"));
        }
        Ok(Self { path, stop: stop.clone() })
    }

    /// Replaces the file by a preview's frames; until they are complete it is the one before.
    pub(super) fn write(&self, preview: &Preview) -> Result<()> {
        let zoom = (SIDE / preview.width.max(preview.height).max(1)).max(1);
        let clip = ClipInfo {
            width: preview.width * zoom,
            height: preview.height * zoom,
            frames: preview.frames,
            // A GIF's players know no faster ones.
            fps: preview.fps.clamp(0.01, 50.0),
        };
        let metadata = Metadata::default();
        let mut sink = output::open(self.path, &clip, &metadata, Existing::Replace, &self.stop)?;
        for image in preview.images.iter() {
            if zoom > 1 { sink.frame(&enlarge(image, zoom))? } else { sink.frame(image)? }
        }
        sink.finish()
    }

    /// The path, for events.
    pub(super) fn name(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

/// Checks, before any work, that previews of a clip that goes to `output` can be written to `path`: an animation, and
/// not the clip.
///
/// # Errors
///
/// When they cannot.
pub fn check(output: &Path, path: &Path, existing: Existing) -> Result<()> {
    place(output, path, existing).map(drop)
}

/// The place of a preview's file.
fn place(output: &Path, path: &Path, existing: Existing) -> Result<Place> {
    let Ok(format @ (Format::Gif | Format::Webp | Format::Apng)) = Format::from_path(path) else {
        let reason = format!("`{}` is none of .gif, .webp and .png", path.display());
        return Err(Error::request(FIELD, reason));
    };
    if !format.is_available() {
        return Err(Error::Feature { feature: format.name() });
    }
    output::check_beside(output, FIELD, path, existing)
}
