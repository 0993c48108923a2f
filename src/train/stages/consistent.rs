//! The `lora` and `lcm` stages: consistency distillation.

use candle_core::{Device, Tensor};

use super::{Setup, Task, motion_sizes, named_as_animatediff, normal};
use crate::Result;
use crate::models::motion::MotionNorm;
use crate::models::unet::UNetConfig;
use crate::rng::Uniform;
use crate::train::latents::Latents;
use crate::train::places::Places;
use crate::train::plan::{Consistency, Course, LcmStage, LoraStage, Plan};
use crate::train::text::Frozen;
use crate::train::{
    Batch, Cell, Distillation, Grid, Loss, LowRank, Student, Vars, Weights, files,
    is_spatial_module,
};
use crate::weights::Component;

/// Consistency distillation of single frames into a LoRA, or of clips into motion modules.
pub(super) struct Consistent {
    vars: Vars,
    distillation: Distillation,
    grid: Grid,
    text: Frozen,
    latents: Latents,
    /// Frames of a clip; 1 for single images.
    frames: usize,
    count: usize,
    loss: Loss,
    settings: Consistency,
    of_clips: bool,
    device: Device,
}

impl Consistent {
    pub(super) fn of_images(setup: Setup<'_>, latents: Latents) -> Result<Self> {
        let Setup { plan, places, compute, .. } = setup;
        let sizes: UNetConfig = files::read_json(&places.base.join("unet/config.json"))?;
        let base = files::read_component(&places.base, Component::UNet, &compute.device)?;
        let student =
            Student { lora: Some(first(plan, &base)?), lora_learns: true, ..Student::default() };
        let distillation = Distillation::new(sizes, MotionNorm::PerFrame, base, student, compute)?;
        let LoraStage { course, consistency, .. } = plan.lora;
        Self::new(setup, latents, distillation, (course, consistency, 1))
    }

    pub(super) fn of_clips(setup: Setup<'_>, latents: Latents) -> Result<Self> {
        let Setup { plan, places, compute, .. } = setup;
        let device = &compute.device;
        let sizes = motion_sizes(places, &plan.motion.config)?;
        let mut base = files::read_component(&places.base, Component::UNet, device)?;
        let LcmStage { course, consistency, insertion, joint } = plan.lcm;
        let lora = if joint {
            first(plan, &base)?
        } else {
            files::read_lora(&places.lora(), &base, device)?
        };
        base.extend(files::read_motion(&places.motion(), device)?);
        let student =
            Student { lora: Some(lora), lora_learns: joint, motion_learns: true, insertion };
        let distillation = Distillation::new(sizes, MotionNorm::PerFrame, base, student, compute)?;
        let mut this = Self::new(setup, latents, distillation, (course, consistency, plan.frames))?;
        this.of_clips = true;
        Ok(this)
    }

    fn new(
        setup: Setup<'_>,
        latents: Latents,
        distillation: Distillation,
        (course, settings, frames): (Course, Consistency, usize),
    ) -> Result<Self> {
        let (base, device) = (&setup.places.base, &setup.compute.device);
        let schedule = files::read_schedule(base)?;
        Ok(Self {
            vars: distillation.vars(),
            distillation,
            grid: Grid::new(&schedule, settings.cells, settings.skip)?,
            text: Frozen::open(base, setup.compute)?,
            latents,
            frames,
            count: course.batch,
            loss: course.loss,
            settings,
            of_clips: false,
            device: device.clone(),
        })
    }
}

/// A new LoRA, which does not change the weights yet.
fn first(plan: &Plan, base: &Weights) -> Result<LowRank> {
    LowRank::new(base, plan.lora.rank, plan.lora.alpha, plan.seed ^ 4, is_spatial_module)
}

impl Task for Consistent {
    fn vars(&self) -> &Vars {
        &self.vars
    }

    fn loss(&self, random: &mut Uniform) -> Result<Tensor> {
        let (clean, chosen) = if self.of_clips {
            self.latents.clips(random, self.count)?
        } else {
            self.latents.images(random, self.count)?
        };
        let context = self.text.states(&self.latents.whole_captions(&chosen))?;
        let empty = self.text.states(&vec![String::new(); self.count])?;
        let cells: Vec<Cell> =
            (0..self.count).map(|_| self.grid.cell(random.below(self.grid.len()))).collect();
        let [low, high] = self.settings.guidance;
        let scales = (0..self.count).map(|_| random.between(low, high)).collect();
        let noise = normal(random, clean.dims(), &self.device)?;
        let batch = Batch { clean, noise, context, empty, frames: self.frames, cells, scales };
        self.distillation.loss(&batch, self.loss)
    }

    fn follow(&mut self) -> Result<()> {
        self.distillation.follow(self.settings.follow)
    }

    fn state(&self) -> Weights {
        self.distillation.target().clone()
    }

    fn resume(&mut self, state: Weights) -> Result<()> {
        self.distillation.set_target(state)
    }

    fn write(&self, average: &Weights, places: &Places) -> Result<()> {
        let is_factor = |name: &str| name.contains(".lora_");
        let part = |lora: bool| -> Weights {
            let chosen = average.iter().filter(|(name, _)| is_factor(name) == lora);
            chosen.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
        };
        let (factors, modules) = (part(true), part(false));
        if let Some(lora) = self.distillation.lora().filter(|_| !factors.is_empty()) {
            let path = if self.of_clips { places.joint_lora() } else { places.lora() };
            files::publish(&path, &lora.to_kohya(&factors)?)?;
        }
        if self.of_clips {
            files::publish(&places.lcm(), &named_as_animatediff(&modules))?;
        }
        Ok(())
    }
}
