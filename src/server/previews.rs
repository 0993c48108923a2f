//! What running clips look like: the newest preview of each, in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use image::codecs::jpeg::JpegEncoder;
use serde_json::{Value, json};

use crate::pipeline::Preview;
use crate::queue::JobId;

/// Quality of the JPEG, of 100.
const QUALITY: u8 = 85;

/// A preview's frames side by side.
#[derive(Clone, Debug)]
struct Picture {
    jpeg: Arc<[u8]>,
    frames: usize,
    width: u32,
    height: u32,
}

/// The newest previews of the jobs that run.
#[derive(Debug, Default)]
pub(super) struct Previews(Mutex<BTreeMap<JobId, Picture>>);

impl Previews {
    /// Replaces the preview of a job. One that cannot be encoded is left out: the clip does not depend on it.
    pub(super) fn put(&self, job: &JobId, preview: &Preview) {
        let row = preview.row(preview.frames);
        let mut jpeg = Vec::new();
        if row.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, QUALITY)).is_err() {
            return;
        }
        let Preview { frames, width, height, .. } = *preview;
        let picture = Picture { jpeg: jpeg.into(), frames, width, height };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone(), picture);
    }

    /// Drops the preview of a job that has ended.
    pub(super) fn remove(&self, job: &JobId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(job);
    }

    /// What a job's record says of its preview; null without one.
    pub(super) fn view(&self, job: &JobId) -> Value {
        self.get(job).map_or(Value::Null, |Picture { frames, width, height, .. }| {
            json!({"url": url(job.as_str()), "frames": frames, "columns": frames, "width": width, "height": height})
        })
    }

    /// The preview of a job as JPEG.
    pub(super) fn jpeg(&self, job: &JobId) -> Option<Arc<[u8]>> {
        self.get(job).map(|picture| picture.jpeg)
    }

    fn get(&self, job: &JobId) -> Option<Picture> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(job).cloned()
    }
}

/// The address of a job's preview.
pub(super) fn url(job: &str) -> String {
    format!("/v1/jobs/{job}/preview")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::RgbImage;

    #[test]
    fn a_job_has_its_newest_preview_until_it_ends() {
        let job = JobId::new().unwrap();
        let preview = |value: u8| Preview {
            step: 1,
            steps: 4,
            frames: 3,
            width: 16,
            height: 8,
            fps: 8.0,
            path: None,
            images: vec![RgbImage::from_pixel(16, 8, image::Rgb([value; 3])); 3].into(),
        };
        let previews = Previews::default();
        assert_eq!(previews.view(&job), Value::Null);
        previews.put(&job, &preview(10));
        previews.put(&job, &preview(200));
        let row = image::load_from_memory(&previews.jpeg(&job).unwrap()).unwrap().to_rgb8();
        assert_eq!(row.dimensions(), (48, 8));
        assert!(row.pixels().all(|pixel| pixel.0.iter().all(|value| value.abs_diff(200) < 3)));
        assert_eq!(previews.view(&job)["columns"], 3);
        previews.remove(&job);
        assert_eq!(previews.view(&job), Value::Null);
    }
}
