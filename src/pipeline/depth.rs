//! Hints that a network makes of pictures: depth.

use super::hints::Hint;
use super::{Event, Observer, Pipeline, Prepared};
use crate::Result;
use crate::library::Part;
use crate::preprocess::{EstimateDepth, depth_hints};

impl Pipeline {
    /// The hints of a run; those of depth are made now, by the network, which is not needed after that.
    pub(super) fn finished_hints(
        &self,
        prepared: &Prepared,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Hint>> {
        let mut hints = prepared.hints.clone();
        for hint in &mut hints {
            let Some((fit, per_picture)) = hint.depth.take() else { continue };
            let network = self.depth(observer)?;
            let frames = hint.images.len();
            let mut tell = |frame| {
                let part = self.models.part_name(&Part::Depth);
                observer.event(Event::Source { part, frame, frames })
            };
            tell(0)?;
            let size = (prepared.width as u32, prepared.height as u32);
            let how = (&*network as &dyn EstimateDepth, per_picture);
            hint.images = depth_hints(&hint.images, (size, fit), how, &mut tell, &self.stop)?;
        }
        Ok(hints)
    }
}
