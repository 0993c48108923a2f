//! CLIP score and FVD, as they are asked for.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use image::RgbImage;

use super::clips::Clips;
use super::report::{Fvd, Measured, Similarity};
use super::{EvalArgs, to_go};
use crate::cli::terminal;
use crate::media::resize::Fit;
use crate::metrics::frechet::{self, Gaussian};
use crate::metrics::{ClipScore, VideoFeatures, sample, videos};
use crate::{Error, Result, Stop};

/// The measures of a run.
pub(super) struct Measures {
    clip: Option<ClipScore>,
    scores: Vec<f64>,
    fvd: Option<Distance>,
}

/// What FVD compares.
struct Distance {
    network: VideoFeatures,
    /// The generated clips that are compared.
    chosen: BTreeSet<usize>,
    generated: Vec<Vec<f64>>,
    real: Gaussian,
    real_clips: usize,
}

impl Measures {
    /// Opens the networks, and measures the real clips.
    pub(super) fn open(
        args: &EvalArgs,
        clips: &Clips,
        (count, seed): (usize, u64),
        stop: &Stop,
    ) -> Result<Self> {
        let clip = match &args.clip_model {
            Some(folder) => Some(ClipScore::open(folder, &clips.device()?, stop)?),
            None => None,
        };
        let fvd = match (&args.fvd, &args.i3d) {
            (Some(folder), Some(i3d)) => {
                Some(Distance::open(args, (folder, i3d), clips, (count, seed), stop)?)
            }
            _ => None,
        };
        Ok(Self { clip, scores: Vec::new(), fvd })
    }

    /// Takes a clip, and returns its CLIP score if that is asked for.
    pub(super) fn add(
        &mut self,
        number: usize,
        frames: &[RgbImage],
        prompt: &str,
        stop: &Stop,
    ) -> Result<Option<f64>> {
        if let Some(fvd) = &mut self.fvd
            && fvd.chosen.contains(&number)
        {
            fvd.generated.push(fvd.network.of(frames, stop)?);
        }
        let Some(clip) = &self.clip else { return Ok(None) };
        let score = clip.score(frames, prompt, stop)?;
        self.scores.push(score);
        Ok(Some(score))
    }

    pub(super) fn finish(self) -> Result<Measured> {
        let count = self.scores.len();
        let mean = self.scores.iter().sum::<f64>() / count.max(1) as f64;
        let clip_score = (count > 0).then_some(Similarity { mean, clips: count });
        let fvd = match self.fvd {
            Some(Distance { generated, real, real_clips, .. }) => Some(Fvd {
                distance: frechet::distance(&Gaussian::of(&generated)?, &real)?,
                generated_clips: generated.len(),
                real_clips,
            }),
            None => None,
        };
        Ok(Measured { clip_score, fvd })
    }
}

impl Distance {
    fn open(
        args: &EvalArgs,
        (folder, i3d): (&Path, &Path),
        clips: &Clips,
        (count, seed): (usize, u64),
        stop: &Stop,
    ) -> Result<Self> {
        const FIELD: &str = "fvd";
        let found = videos::find(FIELD, folder)?;
        let wanted = args.fvd_clips.unwrap_or(usize::MAX);
        for (what, known) in [("real", found.len()), ("generated", count)] {
            if args.fvd_clips.is_some_and(|wanted| wanted > known) {
                let reason = format!("{wanted} asked for, there are {known} {what} clips");
                return Err(Error::request("fvd-clips", reason));
            }
            if wanted.min(known) < 2 {
                let reason = format!("{} {what} clip has no covariance", wanted.min(known));
                return Err(Error::request(FIELD, reason).with_hint("compare many more than two"));
            }
        }
        let network = VideoFeatures::open(i3d, &clips.device()?, stop)?;
        let chosen = sample(found.len(), wanted, seed);
        let (mut real, total) = (Vec::with_capacity(chosen.len()), chosen.len());
        let started = Instant::now();
        for (i, path) in chosen.iter().filter_map(|number| found.get(*number)).enumerate() {
            let selection = (clips.frames(), args.real_every);
            let mut frames = videos::frames(FIELD, path, selection, stop)?;
            if matches!(args.real_fit, Fit::Crop | Fit::Cover) {
                frames = frames.iter().map(|frame| videos::cropped(frame, clips.size())).collect();
            }
            real.push(network.of(&frames, stop)?);
            if !args.quiet {
                let to_go = to_go(started, i + 1, total);
                terminal::line(&format!("real {}/{total}{to_go}", i + 1));
            }
        }
        Ok(Self {
            network,
            // Another draw than that of the real clips.
            chosen: sample(count, wanted, seed.wrapping_add(1)).into_iter().collect(),
            generated: Vec::new(),
            real: Gaussian::of(&real)?,
            real_clips: total,
        })
    }
}
