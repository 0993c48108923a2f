//! Rendered videos that a model's clips start from, and what is left of them.

use image::RgbImage;

use super::EvalArgs;
use crate::media::read::Media;
use crate::pipeline::Inputs;
use crate::procedural::{Caption, Matches, Oracle, Scene, Score};
use crate::request::{Request, Source};
use crate::rng::Uniform;
use crate::{Error, Result, Stop};

/// The name of the flag, and of the video in requests.
const FIELD: &str = "from-video";

/// The video that one clip starts from.
#[derive(Clone, Debug)]
pub(super) struct Video {
    pub(super) caption: Caption,
    pub(super) frames: Vec<RgbImage>,
}

/// The source of a request whose clips start from rendered videos.
pub(super) fn source(args: &EvalArgs) -> Source {
    let (strength, keep, overlay) = (args.strength, args.keep.clone(), args.overlay);
    Source { strength, keep, overlay, ..Source::video(FIELD) }
}

impl Video {
    /// A video for clips of a prompt, no part of which it shows.
    pub(super) fn other_than(prompt: Caption, seed: u64, side: usize, frames: usize) -> Self {
        let mut random = Uniform::new(seed);
        let differs = |caption: &Caption| {
            caption.color != prompt.color
                && caption.shape != prompt.shape
                && caption.motion != prompt.motion
                && caption.background != prompt.background
        };
        let mut caption = Caption::draw(&mut random);
        while !differs(&caption) {
            caption = Caption::draw(&mut random);
        }
        Self { caption, frames: Scene::new(caption, random.bits()).frames(side, frames) }
    }

    /// Its frames as the input of a request.
    pub(super) fn inputs(&self, stop: &Stop) -> Result<Inputs> {
        // Files without loss of any build; a folder is the only such form of a video.
        let folder =
            tempfile::tempdir().map_err(Error::file(std::path::Path::new("a temporary folder")))?;
        for (number, frame) in self.frames.iter().enumerate() {
            let wrong =
                |e: image::ImageError| Error::Encode { format: "png", reason: e.to_string() };
            frame.save(folder.path().join(format!("{number}.png"))).map_err(wrong)?;
        }
        let mut inputs = Inputs::default();
        inputs.insert(FIELD, Media::read(FIELD, folder.path(), |_| true, stop)?);
        Ok(inputs)
    }
}

/// What is left of the sources of all clips.
#[derive(Debug, Default)]
pub(super) struct Remains {
    score: Score,
    /// Sum of the kept frames' errors, and their number.
    kept: (f64, usize),
}

impl Remains {
    /// Adds a clip.
    pub(super) fn add(&mut self, video: &Video, clip: &[RgbImage], keep: &[usize]) -> Matches {
        let matches = Oracle::default().observe(clip).matches(&video.caption);
        self.score.add(&video.caption, matches);
        for (is, was) in keep.iter().filter_map(|at| clip.get(*at).zip(video.frames.get(*at))) {
            self.kept.0 += distance(is, was);
            self.kept.1 += 1;
        }
        matches
    }

    /// The score against the sources' captions, and the kept frames' mean error of 255 if any are kept.
    pub(super) fn finish(self) -> (Score, Option<f64>) {
        let (sum, count) = self.kept;
        (self.score, (count > 0).then(|| sum / count as f64))
    }
}

/// Mean absolute difference of two frames of one size, from 0 to 255.
fn distance(a: &RgbImage, b: &RgbImage) -> f64 {
    let sum: u64 = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.as_raw().len().max(1) as f64
}

/// The side of the square videos for a request whose model has that size.
pub(super) fn side(request: &Request, (width, height): (usize, usize)) -> Result<usize> {
    let frames = request.frames();
    if width != height || !(8..=1024).contains(&width) || !(1..=1024).contains(&frames) {
        let reason = format!("{frames} frames of {width}×{height} cannot be rendered");
        return Err(Error::request(FIELD, reason).with_hint("rendered videos are square"));
    }
    Ok(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_video_shows_nothing_of_the_prompt_and_is_read_without_loss() {
        let prompt: Caption = "a red circle moving right on a black background".parse().unwrap();
        for seed in 0..20 {
            let video = Video::other_than(prompt, seed, 16, 4);
            let Caption { color, shape, motion, background } = video.caption;
            assert!(color != prompt.color && shape != prompt.shape);
            assert!(motion != prompt.motion && background != prompt.background);
        }
        let video = Video::other_than(prompt, 3, 64, 16);
        let mut remains = Remains::default();
        assert!(remains.add(&video, &video.frames, &[0, 15]).all());
        let mut moved = video.frames.clone();
        moved[15].pixels_mut().for_each(|pixel| pixel[0] ^= 3);
        remains.add(&video, &moved, &[0, 15]);
        let (score, kept) = remains.finish();
        assert_eq!(score.all.trials, 2);
        let far = distance(&moved[15], &video.frames[15]);
        assert!(far > 0.0 && kept == Some(far / 4.0), "{kept:?} {far}");
        assert_eq!(Remains::default().finish().1, None);
    }
}
