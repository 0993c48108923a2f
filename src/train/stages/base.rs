//! The `base` stage: training of the UNet and the text encoder.

use candle_core::Tensor;

use super::{Setup, Task, draw_levels, linear, normal, sub, sub_weights, with_prefix};
use crate::Result;
use crate::models::clip::TextEncoder;
use crate::models::motion::MotionNorm;
use crate::models::unet::UNet;
use crate::rng::Uniform;
use crate::schedule::NoiseSchedule;
use crate::train::latents::Latents;
use crate::train::places::Places;
use crate::train::plan::Plan;
use crate::train::text::Ids;
use crate::train::{Compute, Network, Vars, Weights, builder, files, fresh, variables};

pub(super) struct Base {
    vars: Vars,
    unet: Network<UNet>,
    text: TextEncoder,
    ids: Ids,
    latents: Latents,
    schedule: NoiseSchedule,
    plan: Plan,
    compute: Compute,
}

impl Base {
    pub(super) fn new(setup: Setup<'_>, latents: Latents) -> Result<Self> {
        let Setup { plan, compute, .. } = setup;
        let device = &compute.device;
        let (sizes, text_sizes) = (&plan.base.unet, &plan.base.text);
        let make = |vb| UNet::new(sizes, &vb);
        // A zero-initialised output layer speeds up training.
        let unet = fresh(make, plan.seed ^ 1, |name| name.starts_with("conv_out."), device)?;
        let text = fresh(|vb| TextEncoder::new(text_sizes, &vb), plan.seed ^ 2, |_| false, device)?;
        let all: Weights = with_prefix(unet, "unet.").chain(with_prefix(text, "text.")).collect();
        let vars = variables(&all)?;
        let (weights, config) = (sub_weights(&vars, "unet."), sizes.clone());
        let make = move |compute: &Compute| UNet::new(&config, &builder(&[&weights], compute));
        let unet = Network::new(compute, make)?;
        let weights = sub_weights(&vars, "text.");
        let text = TextEncoder::new(text_sizes, &builder(&[&weights], &Compute::exact(device)))?;
        let ids = Ids::own(text_sizes, device)?;
        let (schedule, plan, compute) = (linear()?, plan.clone(), compute.clone());
        Ok(Self { vars, unet, text, ids, latents, schedule, plan, compute })
    }
}

impl Task for Base {
    fn vars(&self) -> &Vars {
        &self.vars
    }

    fn loss(&self, random: &mut Uniform) -> Result<Tensor> {
        let stage = &self.plan.base;
        let count = stage.course.batch;
        let (clean, chosen) = self.latents.images(random, count)?;
        let shares = (stage.no_caption, stage.no_part);
        let captions = self.latents.captions(&chosen, random, shares);
        let context = self.text.forward(&self.ids.of(&captions)?, 0, &self.compute.stop)?;
        let at = draw_levels(random, &self.schedule, (count, 1), 1.0, &self.compute.device)?;
        let noise = normal(random, clean.dims(), &self.compute.device)?;
        let x = at.add_noise(&clean, &noise)?;
        let unet = self.unet.get()?;
        let y = self.compute.predict(&unet, &x, &at, &context, (1, MotionNorm::PerFrame))?;
        stage.course.loss.of(&y, &noise)
    }

    fn write(&self, average: &Weights, places: &Places) -> Result<()> {
        let (unet, text) = (sub(average, "unet."), sub(average, "text."));
        let stage = &self.plan.base;
        files::write_base(&places.base, (&stage.unet, &unet), (&stage.text, &text))
    }
}
