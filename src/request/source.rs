//! What a clip starts from instead of noise: an image or a video.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{Control, FileRecord, at_least, between, is_default};
use crate::media::resize::Fit;
use crate::sampler::kept_steps;
use crate::{Error, Result};

/// The largest factor in AnimateLCM-I2V.
const MOST_FACTOR: f64 = 100.0;

/// The word with which a control takes the frames of the source's video as its hint.
const VIDEO: &str = "video";

/// The image or video that a clip starts from, and how far it may go from there.
///
/// One of `image` and `video` is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// An image that every frame starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// An animation, a video or a folder of images whose frames the clip's start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video: Option<String>,
    /// The SHA-256 of the image or video; in a clip always there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Share of the steps that are made, from the clean end: near 0 the frames stay as they are, at 1 little is left of
    /// them. `None` is [`STRENGTH`](Self::STRENGTH); for AnimateLCM-I2V, which is told of the image in another way, it is
    /// a start from noise alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Frames a second at which the video is sampled; every frame is taken once if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fps: Option<f64>,
    /// The video's first frame that is taken, from 0.
    #[serde(skip_serializing_if = "is_default")]
    pub from: usize,
    /// Every so many frames one is taken.
    #[serde(skip_serializing_if = "is_one")]
    pub every: usize,
    /// Resizing of frames of another size than the clip's: `cover` for AnimateLCM-I2V, else `stretch`, if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
    /// Factor of the frames' positions in AnimateLCM-I2V's image encoder: with 0 all frames are told the same. 0.8 if
    /// `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub motion_scale: Option<f64>,
    /// Factors of what AnimateLCM-I2V's image encoder adds to each down block; 1 for all if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insertion_weights: Option<Vec<f64>>,
    /// Whether the colours of all frames are moved to the mean of the image's. On for AnimateLCM-I2V, else off, if
    /// `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color_match: Option<bool>,
    /// The clip's frames, from 0, that stay those of the source.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<usize>,
    /// An image, or a video with a frame for each of the source's: white where the clip is made, black where it stays
    /// the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<FileRecord>,
    /// Whether the source's own pixels stand where it is kept, as masks say in their grey levels; else what the
    /// autoencoder makes of them. On if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<bool>,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            image: None,
            video: None,
            sha256: None,
            strength: None,
            fps: None,
            from: 0,
            every: 1,
            fit: None,
            motion_scale: None,
            insertion_weights: None,
            color_match: None,
            keep: vec![],
            mask: None,
            overlay: None,
        }
    }
}

/// Sources of which every frame is taken do not mention it.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(every: &usize) -> bool {
    *every == 1
}

impl Source {
    /// The strength of models that start from a noised image or video, as in diffusers'
    /// `AnimateDiffVideoToVideoPipeline`.
    pub const STRENGTH: f64 = 0.8;

    /// A source whose frames all start from this image.
    pub fn image(file: impl Into<String>) -> Self {
        Self { image: Some(file.into()), ..Self::default() }
    }

    /// A source whose frames start from those of this video.
    pub fn video(file: impl Into<String>) -> Self {
        Self { video: Some(file.into()), ..Self::default() }
    }

    /// The name of the option that the file was given by.
    pub fn field(&self) -> &'static str {
        if self.video.is_some() { "video" } else { "image" }
    }

    /// The file or folder.
    pub fn file(&self) -> &str {
        self.video.as_deref().or(self.image.as_deref()).unwrap_or_default()
    }

    /// The name of a given option that only AnimateLCM-I2V has.
    pub(crate) fn i2v_only(&self) -> Option<&'static str> {
        let scale = self.motion_scale.map(|_| "motion-scale");
        scale.or(self.insertion_weights.as_ref().map(|_| "insertion-weights"))
    }

    /// The name of a given option by which parts of the source stay as they are.
    pub(crate) fn keeping(&self) -> Option<&'static str> {
        let keep = (!self.keep.is_empty()).then_some("keep");
        keep.or(self.mask.as_ref().map(|_| "mask"))
    }

    /// Checks what can be checked without a model, for a run of so many steps and a clip of so many frames; `None` if
    /// these are the video's.
    pub(super) fn validate(&self, steps: usize, frames: Option<usize>) -> Result<()> {
        let wrong = |field: &'static str, reason: &str| Err(Error::request(field, reason));
        match (&self.image, &self.video) {
            (Some(_), Some(_)) => return wrong("source", "an image or a video, not both"),
            (None, None) => return wrong("source", "is neither an image nor a video"),
            _ if self.file().is_empty() => return wrong(self.field(), "is empty"),
            _ => {}
        }
        self.check_kept(frames)?;
        if let Some(strength) = self.strength {
            kept_steps(steps, strength)?;
        }
        between("motion-scale", self.motion_scale, 0.0, MOST_FACTOR)?;
        for weight in self.insertion_weights.iter().flatten() {
            between("insertion-weights", Some(*weight), -MOST_FACTOR, MOST_FACTOR)?;
        }
        if self.insertion_weights.as_ref().is_some_and(Vec::is_empty) {
            return wrong("insertion-weights", "is empty");
        }
        if self.video.is_some() {
            if let Some(field) = self.i2v_only() {
                return wrong(field, "is of images, a video has none");
            }
            if self.color_match == Some(true) {
                return wrong("color-match", "takes the colours of an image, a video has none");
            }
        }
        between("video-fps", self.fps, 0.01, 1000.0)?;
        at_least("video-every", self.every, 1)?;
        if self.image.is_some() {
            for (field, is_given) in [
                ("video-fps", self.fps.is_some()),
                ("video-from", self.from > 0),
                ("video-every", self.every > 1),
            ] {
                if is_given {
                    return wrong(field, "an image has no frames to choose from");
                }
            }
        }
        Ok(())
    }
}

impl Source {
    /// Checks what is kept of a clip of so many frames, `None` if these are not known yet.
    fn check_kept(&self, frames: Option<usize>) -> Result<()> {
        let wrong = |reason: String| Err(Error::request("keep", reason));
        let mut seen = HashSet::new();
        for frame in &self.keep {
            if let Some(frames) = frames.filter(|frames| frame >= frames) {
                return wrong(format!("frame {frame} is not in the clip, 0 to {}", frames - 1));
            }
            if !seen.insert(frame) {
                return wrong(format!("frame {frame} is listed twice"));
            }
        }
        if let Some(frames) = frames.filter(|frames| seen.len() == *frames) {
            return wrong(format!("keeps all {frames} frames, so that nothing would be made"));
        }
        if self.mask.as_ref().is_some_and(|record| record.file.is_empty()) {
            return Err(Error::request("mask", "is empty"));
        }
        if self.overlay.is_some() && self.keeping().is_none() {
            let error = Error::request("overlay", "nothing of the source is kept");
            return Err(error.with_hint("--keep 0,15, or --mask FILE"));
        }
        Ok(())
    }
}

/// The video that a control's hint stands for, if it is that of the source.
pub(super) fn shared<'a>(source: Option<&'a Source>, control: &Control) -> Option<&'a str> {
    let video = source?.video.as_deref()?;
    (control.hint == VIDEO).then_some(video)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Job, Request, Spec};

    #[test]
    fn a_source_is_read_back_as_written() {
        let source = Source {
            strength: Some(0.35),
            fps: Some(12.5),
            from: 3,
            every: 2,
            fit: Some(Fit::Pad),
            keep: vec![0, 15],
            mask: Some(FileRecord { file: "m.png".into(), sha256: None }),
            overlay: Some(false),
            ..Source::video("a.mp4")
        };
        let i2v = Source {
            motion_scale: Some(0.35),
            insertion_weights: Some(vec![1.0, 0.5, -0.25]),
            color_match: Some(false),
            fit: Some(Fit::Cover),
            ..Source::image("c.png")
        };
        for source in [source, Source::image("a b.png"), i2v] {
            let request = Request { source: Some(source), ..Request::default() };
            let job = Job::new(Spec::default(), request);
            let json = serde_json::to_string(&job).unwrap();
            assert_eq!(Job::from_json(&json).unwrap(), job, "{json}");
        }
        let short = r#"{"schema":"animatelcm/v1","source":{"image":"a.png"}}"#;
        let request = Job::from_json(short).unwrap().request;
        assert_eq!(request.source, Some(Source::image("a.png")));
        assert_eq!((request.source.unwrap().strength, request.size.frames), (None, None));
        // A video decides the number of frames, unless the request says how many.
        let is_open = |size: &str| {
            let json = r#"{"schema":"animatelcm/v1","source":{"video":"a.mp4"}"#;
            Job::from_json(&format!("{json}{size}}}")).unwrap().request.is_open()
        };
        assert!(is_open("") && is_open(r#","size":{}"#));
        assert!(!is_open(r#","size":{"frames":7}"#));
    }

    #[test]
    fn impossible_sources_name_their_field() {
        let request = |source| Request { source: Some(source), ..Request::default() };
        let wrong = |source, start: &str| {
            let error = request(source).validate().unwrap_err();
            assert_eq!(error.kind().exit_code(), 2);
            assert!(error.to_string().starts_with(start), "{start}: {error}");
        };
        let (image, video) = (Source::image("a.png"), Source::video("a.gif"));
        let both = Source { image: Some("a".into()), ..video.clone() };
        wrong(both, "source: an image or a video, not both");
        wrong(Source::default(), "source: is neither");
        wrong(Source::image(""), "image: is empty");
        for strength in [0.0, -0.1, 1.01, f64::NAN, f64::INFINITY] {
            let strength = Some(strength);
            wrong(Source { strength, ..image.clone() }, "strength: must be above 0 and at most 1");
        }
        // Four steps by default.
        let strength = Some(0.24);
        wrong(Source { strength, ..image.clone() }, "strength: 0.24 of 4 steps is less than");
        assert!(request(Source { strength: Some(0.25), ..image.clone() }).validate().is_ok());
        wrong(Source { fps: Some(0.0), ..video.clone() }, "video-fps: must be between");
        wrong(Source { every: 0, ..video.clone() }, "video-every: must be at least 1");
        wrong(Source { fps: Some(8.0), ..image.clone() }, "video-fps: an image has no frames");
        wrong(Source { from: 1, ..image.clone() }, "video-from");
        wrong(Source { every: 2, ..image.clone() }, "video-every");
        let (scale, weights) = (Some(0.5), Some(vec![1.0]));
        wrong(Source { motion_scale: scale, ..video.clone() }, "motion-scale: is of images");
        wrong(Source { insertion_weights: weights, ..video.clone() }, "insertion-weights: is of");
        wrong(Source { color_match: Some(true), ..video.clone() }, "color-match: takes");
        for scale in [f64::NAN, f64::INFINITY, 101.0, -101.0] {
            let (one, all) = (Some(scale), Some(vec![1.0, scale]));
            wrong(Source { motion_scale: one, ..image.clone() }, "motion-scale: must be between");
            wrong(Source { insertion_weights: all, ..image.clone() }, "insertion-weights: must");
        }
        let none = Some(vec![]);
        wrong(Source { insertion_weights: none, ..image.clone() }, "insertion-weights: is empty");
        assert!(request(video).is_open() && !request(image.clone()).is_open());
        let keep = |keep: &[usize]| Source { keep: keep.to_vec(), ..image.clone() };
        wrong(keep(&[0, 16]), "keep: frame 16 is not in the clip, 0 to 15");
        wrong(keep(&[3, 0, 3]), "keep: frame 3 is listed twice");
        wrong(keep(&(0..16).collect::<Vec<_>>()), "keep: keeps all 16 frames");
        assert!(request(keep(&[15, 0])).validate().is_ok());
        let mask = Some(FileRecord { file: String::new(), sha256: None });
        wrong(Source { mask, ..image.clone() }, "mask: is empty");
        wrong(Source { overlay: Some(true), ..image.clone() }, "overlay: nothing of the source is");
        // A second pass would change what is kept.
        let mask = Some(FileRecord { file: "m.png".into(), sha256: None });
        let masked = Source { mask, ..image.clone() };
        assert!(request(masked.clone()).validate().is_ok());
        for (source, start) in [(keep(&[0]), "keep: cannot"), (masked, "mask: cannot")] {
            let mut request = request(source);
            request.quality.hires = Some("1.5".parse().unwrap());
            let error = request.validate().unwrap_err();
            assert!(error.to_string().starts_with(start), "{error}");
            assert_eq!(error.hint().unwrap_or_default(), "leave out --hires");
        }
    }

    #[test]
    fn a_control_shares_the_video_of_the_source_alone() {
        let control = |hint: &str| format!("c={hint},model=m").parse::<Control>().unwrap();
        let video = Source::video("a.gif");
        assert_eq!(shared(Some(&video), &control("video")), Some("a.gif"));
        assert_eq!(shared(Some(&video), &control("./video")), None);
        assert_eq!(shared(Some(&Source::image("a.png")), &control("video")), None);
        assert_eq!(shared(None, &control("video")), None);
    }
}
