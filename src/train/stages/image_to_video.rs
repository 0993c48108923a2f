//! The `i2v` stage: motion modules and an image encoder that start from an image, without a teacher.

use candle_core::{Device, Tensor};

use super::{Setup, Task, few_steps, motion_sizes, named_as_animatediff, normal};
use crate::models::i2v_encoder::I2vEncoderConfig;
use crate::models::motion::MotionNorm;
use crate::rng::Uniform;
use crate::train::latents::Latents;
use crate::train::places::Places;
use crate::train::plan::I2vStage;
use crate::train::text::Frozen;
use crate::train::{Grid, ImageToVideo, Pairs, Vars, Weights, files, first_encoder};
use crate::{Error, Result};

pub(super) struct I2v {
    learner: ImageToVideo,
    grid: Grid,
    text: Frozen,
    latents: Latents,
    frames: usize,
    stage: I2vStage,
    device: Device,
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
            grid: Grid::new(&files::read_schedule(&places.base)?, stage.cells, stage.skip)?,
            text: Frozen::open(&places.base, compute)?,
            latents,
            frames: plan.frames,
            stage,
            device: compute.device.clone(),
        })
    }
}

impl Task for I2v {
    fn vars(&self) -> &Vars {
        self.learner.vars()
    }

    fn loss(&self, random: &mut Uniform) -> Result<Tensor> {
        let count = self.stage.course.batch;
        let (clean, chosen) = self.latents.clips(random, count)?;
        let context = self.text.states(&self.latents.whole_captions(&chosen))?;
        let cells = (0..count).map(|_| self.grid.cell(random.below(self.grid.len()))).collect();
        let noise = normal(random, clean.dims(), &self.device)?;
        let pairs = Pairs { clean, noise, context, frames: self.frames, cells };
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
