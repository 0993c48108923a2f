//! The `i2v` stage: motion modules and an image encoder that start from an image, without a teacher.

use candle_core::Tensor;

use super::pairs::PairsOfClips;
use super::{Setup, Task, few_steps, motion_sizes, named_as_animatediff};
use crate::models::i2v_encoder::I2vEncoderConfig;
use crate::models::motion::MotionNorm;
use crate::rng::Uniform;
use crate::train::latents::Latents;
use crate::train::places::Places;
use crate::train::plan::I2vStage;
use crate::train::{ImageToVideo, Vars, Weights, files, first_encoder};
use crate::{Error, Result};

pub(super) struct I2v {
    learner: ImageToVideo,
    pairs: PairsOfClips,
    stage: I2vStage,
}

impl I2v {
    pub(super) fn new(setup: Setup<'_>, latents: Latents) -> Result<Self> {
        let Setup { plan, places, compute, .. } = setup;
        let Some(stage) = plan.i2v else {
            let error = Error::request("i2v", "the plan has no such stage");
            return Err(error.with_hint("a section `[i2v]`"));
        };
        let layers = motion_sizes(places, &plan.motion.config)?.layers_per_block;
        if layers < 2 {
            let reason = "the UNet has one layer a stage, features are added in the second";
            return Err(Error::request("i2v", reason));
        }
        let (sizes, base) = few_steps(setup)?;
        let encoder = I2vEncoderConfig::beside(&sizes);
        let encoder = first_encoder(&encoder, plan.seed ^ 7, &compute.device)?;
        let (norm, scale) = (MotionNorm::PerFrame, stage.motion_scale);
        Ok(Self {
            learner: ImageToVideo::new((&sizes, base), norm, encoder, scale, compute)?,
            pairs: PairsOfClips::new(setup, latents, (stage.cells, stage.skip))?,
            stage,
        })
    }
}

impl Task for I2v {
    fn vars(&self) -> &Vars {
        self.learner.vars()
    }

    fn loss(&self, random: &mut Uniform) -> Result<Tensor> {
        let (pairs, _) = self.pairs.draw(random, self.stage.course.batch)?;
        self.learner.loss(&pairs, self.stage.course.loss)
    }

    fn follow(&mut self) -> Result<()> {
        self.learner.follow(self.stage.follow)
    }

    fn state(&self) -> Weights {
        self.learner.target().clone()
    }

    fn resume(&mut self, state: Weights) -> Result<()> {
        self.learner.set_target(state)
    }

    fn write(&self, average: &Weights, places: &Places) -> Result<()> {
        // The encoder's names have no motion module in them and stay as they are.
        files::publish(&places.i2v(), &named_as_animatediff(average))
    }
}
