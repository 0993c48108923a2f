//! The `adapt` stage: a control network learns to steer few-step sampling, without a teacher.

use candle_core::Tensor;

use super::pairs::PairsOfClips;
use super::{Setup, Task, few_steps};
use crate::library::SideConfig;
use crate::media::RgbImage;
use crate::media::tensor::{from_rgb, to_grey};
use crate::models::motion::MotionNorm;
use crate::rng::Uniform;
use crate::train::data::Clips;
use crate::train::latents::Latents;
use crate::train::places::Places;
use crate::train::plan::AdaptStage;
use crate::train::{Adaptation, Compute, HintedBatch, LowRank, Vars, Weights, files, layers};
use crate::{Error, Result};

pub(super) struct Adapt {
    adaptation: Adaptation,
    pairs: PairsOfClips,
    clips: Clips,
    frames: usize,
    /// The frames that have hints; all if empty.
    hinted: Vec<usize>,
    stage: AdaptStage,
    compute: Compute,
}

impl Adapt {
    pub(super) fn new(setup: Setup<'_>, latents: Latents, clips: Clips) -> Result<Self> {
        let Setup { plan, places, compute, .. } = setup;
        let device = &compute.device;
        let Some(stage) = plan.adapt.clone() else {
            let error = Error::request("adapt", "the plan has no such stage");
            return Err(error.with_hint("a section `[adapt]` with `network`"));
        };
        let (sizes, unet) = few_steps(setup)?;
        let (config, base) = files::read_control(&stage.network, &places.base, &sizes, device)?;
        let hinted = hinted(&stage, &config)?;
        let seed = plan.seed ^ 6;
        let lora = LowRank::new(&layers(&base), stage.rank, stage.alpha, seed, |_| true)?;
        let norm = MotionNorm::PerFrame;
        let adaptation = Adaptation::new((&sizes, &unet), norm, (config, base), lora, compute)?;
        Ok(Self {
            adaptation,
            pairs: PairsOfClips::new(setup, latents, (stage.cells, stage.skip))?,
            clips,
            frames: plan.frames,
            hinted,
            stage,
            compute: compute.clone(),
        })
    }

    /// The hints of clips, whose latents are `clean`.
    fn hints(&self, chosen: &[usize], clean: &Tensor) -> Result<Tensor> {
        let config = self.adaptation.config();
        let all: Vec<usize> = (0..self.frames).collect();
        let wanted = if self.hinted.is_empty() { &all } else { &self.hinted };
        if config.sees_latents() {
            let at = |clip: usize| wanted.iter().map(move |at| (clip * self.frames + at) as u32);
            let at: Vec<u32> = (0..chosen.len()).flat_map(at).collect();
            return Ok(clean.index_select(&Tensor::new(at, clean.device())?, 0)?);
        }
        let mut images: Vec<RgbImage> = Vec::new();
        for clip in chosen {
            for image in self.clips.frames(*clip, wanted)? {
                images.push(match self.stage.preprocess {
                    Some(preprocess) => preprocess.apply(&image, &self.compute.stop)?,
                    None => image,
                });
            }
        }
        match config {
            SideConfig::T2iAdapter(config) if config.in_channels == 1 => {
                to_grey(&images, &self.compute.device)
            }
            _ => from_rgb(&images, &self.compute.device),
        }
    }
}

/// The frames of a clip that have hints, none where all have; fails where a setting is for another kind of network.
fn hinted(stage: &AdaptStage, config: &SideConfig) -> Result<Vec<usize>> {
    if stage.preprocess.is_some() && config.sees_latents() {
        let reason = "`preprocess`: the network's hints are latents of frames";
        return Err(Error::request("adapt", reason));
    }
    match (config, stage.hint_frames.as_slice()) {
        (SideConfig::SparseCtrl(_), []) => Ok(vec![0]),
        (SideConfig::SparseCtrl(_), frames) => Ok(frames.to_vec()),
        (_, []) => Ok(vec![]),
        _ => {
            let reason = format!("`hint_frames`: {} has a hint for every frame", config.kind());
            Err(Error::request("adapt", reason))
        }
    }
}

impl Task for Adapt {
    fn vars(&self) -> &Vars {
        self.adaptation.vars()
    }

    fn loss(&self, random: &mut Uniform) -> Result<Tensor> {
        let count = self.stage.course.batch;
        let (pairs, chosen) = self.pairs.draw(random, count)?;
        let hints = self.hints(&chosen, &pairs.clean)?;
        let batch = HintedBatch { pairs, hints, hinted: self.hinted.clone() };
        self.adaptation.loss(&batch, self.stage.course.loss)
    }

    fn follow(&mut self) -> Result<()> {
        self.adaptation.follow(self.stage.follow)
    }

    fn state(&self) -> Weights {
        self.adaptation.target().clone()
    }

    fn resume(&mut self, state: Weights) -> Result<()> {
        self.adaptation.set_target(state)
    }

    fn write(&self, average: &Weights, places: &Places) -> Result<()> {
        let weights = self.adaptation.weights(average)?;
        files::write_control(&places.adapted(), self.adaptation.config(), &weights)
    }
}
