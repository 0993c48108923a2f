//! The `motion` stage: training of the motion modules.

use candle_core::Tensor;

use super::{Setup, Task, draw_levels, motion_sizes, named_as_animatediff, normal, sub_weights};
use crate::Result;
use crate::models::motion::MotionNorm;
use crate::models::unet::UNet;
use crate::rng::Uniform;
use crate::schedule::NoiseSchedule;
use crate::train::latents::Latents;
use crate::train::places::Places;
use crate::train::plan::Plan;
use crate::train::text::Frozen;
use crate::train::{Compute, Network, Vars, Weights, builder, files, fresh, variables};
use crate::weights::Component;

pub(super) struct Motion {
    vars: Vars,
    unet: Network<UNet>,
    text: Frozen,
    latents: Latents,
    schedule: NoiseSchedule,
    plan: Plan,
    compute: Compute,
}

impl Motion {
    pub(super) fn new(setup: Setup<'_>, latents: Latents) -> Result<Self> {
        let Setup { plan, places, compute, .. } = setup;
        let device = &compute.device;
        let sizes = motion_sizes(places, &plan.motion.config)?;
        let base = files::read_component(&places.base, Component::UNet, device)?;
        // Zero-initialised output projections, so that each module begins as the identity, as in AnimateDiff.
        let is_zero =
            |name: &str| name.strip_suffix(".weight").is_some_and(|m| m.ends_with(".proj_out"));
        let all = fresh(|vb| UNet::new(&sizes, &vb), plan.seed ^ 3, is_zero, device)?;
        let modules: Weights =
            all.into_iter().filter(|(name, _)| name.contains(".motion_modules.")).collect();
        let vars = variables(&modules)?;
        let weights = sub_weights(&vars, "");
        let make =
            move |compute: &Compute| UNet::new(&sizes, &builder(&[&base, &weights], compute));
        let unet = Network::new(compute, make)?;
        let text = Frozen::open(&places.base, compute)?;
        let schedule = files::read_schedule(&places.base)?;
        let (plan, compute) = (plan.clone(), compute.clone());
        Ok(Self { vars, unet, text, latents, schedule, plan, compute })
    }
}

impl Task for Motion {
    fn vars(&self) -> &Vars {
        &self.vars
    }

    fn loss(&self, random: &mut Uniform) -> Result<Tensor> {
        let stage = &self.plan.motion;
        let (count, frames) = (stage.course.batch, self.plan.frames);
        let (clean, chosen) = self.latents.clips(random, count)?;
        let shares = (stage.no_caption, stage.no_part);
        let context = self.text.states(&self.latents.captions(&chosen, random, shares))?;
        let at = draw_levels(
            random,
            &self.schedule,
            (count, frames),
            stage.power,
            &self.compute.device,
        )?;
        let noise = normal(random, clean.dims(), &self.compute.device)?;
        let x = at.add_noise(&clean, &noise)?;
        let (unet, norm) = (self.unet.get()?, MotionNorm::PerFrame);
        let y = self.compute.predict(&unet, &x, &at, &context, (frames, norm))?;
        stage.course.loss.of(&at.weigh(&y, stage.balance)?, &at.weigh(&noise, stage.balance)?)
    }

    fn write(&self, average: &Weights, places: &Places) -> Result<()> {
        files::publish(&places.motion(), &named_as_animatediff(average))
    }
}
