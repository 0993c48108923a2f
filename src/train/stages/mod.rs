//! The training stages: trained weights, loss, and output files of each.

mod adapt;
mod base;
mod consistent;
mod image_to_video;
mod motion;
mod pairs;
mod vae;

use std::path::PathBuf;

use candle_core::{Device, Tensor};

use self::adapt::Adapt;
use self::base::Base;
use self::consistent::Consistent;
use self::image_to_video::I2v;
use self::motion::Motion;
use self::vae::Vae;
use super::data::Clips;
use super::files;
use super::latents::Latents;
use super::places::Places;
use super::plan::Plan;
use super::{Compute, PerImage, Vars, Weights, animatediff_name};
use crate::Result;
use crate::models::motion::MotionConfig;
use crate::models::unet::UNetConfig;
use crate::rng::{Noise, RngKind, Uniform};
use crate::schedule::{BetaSchedule, NoiseSchedule};
use crate::spelling::named;
use crate::weights::Component;

/// A training stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Training of the VAE.
    Vae,
    /// Training of the UNet and its text encoder.
    Base,
    /// Consistency distillation of the UNet into a LoRA.
    Lora,
    /// Training of the motion modules.
    Motion,
    /// Consistency distillation of the motion modules.
    Lcm,
    /// Adaptation of a control network to them, for plans that name one.
    Adapt,
    /// Motion modules with an image encoder, for plans that ask for them.
    I2v,
}

// In their order.
named!(Stage, "stage", {
    Vae = "vae",
    Base = "base",
    Lora = "lora",
    Motion = "motion",
    Lcm = "lcm",
    Adapt = "adapt",
    I2v = "i2v",
});

impl Stage {
    /// Output files of the stage that later stages require.
    pub(super) fn results(self, plan: &Plan, places: &Places) -> Vec<PathBuf> {
        let base = |names: &[&str]| names.iter().map(|name| places.base.join(name)).collect();
        match self {
            Self::Vae => base(&["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]),
            Self::Base => base(&[
                "model_index.json",
                "scheduler/scheduler_config.json",
                "text_encoder/config.json",
                "text_encoder/model.safetensors",
                "tokenizer/merges.txt",
                "tokenizer/vocab.json",
                "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors",
            ]),
            Self::Lora => vec![places.lora()],
            Self::Motion => vec![places.motion()],
            Self::Lcm if plan.lcm.joint => vec![places.lcm(), places.joint_lora()],
            Self::Lcm => vec![places.lcm()],
            Self::I2v => vec![places.i2v()],
            Self::Adapt => files::CONTROL.map(|name| places.adapted().join(name)).into(),
        }
    }
}

/// Interface of a stage to the training loop.
pub(super) trait Task: Sync {
    /// All trained variables.
    fn vars(&self) -> &Vars;

    /// Loss of one pass, with random numbers from `random`.
    fn loss(&self, random: &mut Uniform) -> Result<Tensor>;

    /// Called after each optimizer step.
    fn follow(&mut self) -> Result<()> {
        Ok(())
    }

    /// State to keep in the checkpoint besides the variables.
    fn state(&self) -> Weights {
        Weights::new()
    }

    /// Restores the state returned by [`state`](Self::state).
    fn resume(&mut self, _: Weights) -> Result<()> {
        Ok(())
    }

    /// Writes the stage's result; `average` is the EMA of the variables.
    fn write(&self, average: &Weights, places: &Places) -> Result<()>;
}

/// Inputs that the stages are prepared from.
#[derive(Clone, Copy)]
struct Setup<'a> {
    plan: &'a Plan,
    places: &'a Places,
    compute: &'a Compute,
}

/// Prepares a stage. `say` receives progress messages of slow parts.
pub(super) fn prepare(
    stage: Stage,
    plan: &Plan,
    places: &Places,
    compute: &Compute,
    say: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Box<dyn Task>> {
    let clips = Clips::open(plan)?;
    let setup = Setup { plan, places, compute };
    if stage == Stage::Vae {
        return Ok(Box::new(Vae::new(plan, clips, compute)?));
    }
    let latents = Latents::open(&clips, places, compute, say)?;
    Ok(match stage {
        Stage::Vae | Stage::Base => Box::new(Base::new(setup, latents)?),
        Stage::Motion => Box::new(Motion::new(setup, latents)?),
        Stage::Lora => Box::new(Consistent::of_images(setup, latents)?),
        Stage::Lcm => Box::new(Consistent::of_clips(setup, latents)?),
        Stage::I2v => Box::new(I2v::new(setup, latents)?),
        Stage::Adapt => Box::new(Adapt::new(setup, latents, clips)?),
    })
}

fn sub_weights(vars: &Vars, prefix: &str) -> Weights {
    vars.iter()
        .filter_map(|(name, var)| {
            Some((name.strip_prefix(prefix)?.to_owned(), var.as_tensor().clone()))
        })
        .collect()
}

fn sub(weights: &Weights, prefix: &str) -> Weights {
    weights
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone())))
        .collect()
}

fn with_prefix(weights: Weights, prefix: &str) -> impl Iterator<Item = (String, Tensor)> {
    weights.into_iter().map(move |(name, tensor)| (format!("{prefix}{name}"), tensor))
}

/// Standard normal values of a shape.
fn normal(random: &mut Uniform, shape: &[usize], device: &Device) -> Result<Tensor> {
    let count = shape.iter().product();
    let values = Noise::new(RngKind::Cpu, random.bits()).normal(count);
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// The noise schedule of motion models.
fn linear() -> Result<NoiseSchedule> {
    NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, 1000)
}

/// Random noise levels of a batch; `power` below 1 favours noisy ones.
fn draw_levels(
    random: &mut Uniform,
    schedule: &NoiseSchedule,
    (count, each): (usize, usize),
    power: f64,
    device: &Device,
) -> Result<PerImage> {
    let steps = schedule.train_steps();
    let mut draw = || {
        let timestep = (steps as f64 * random.unit().powf(power)) as usize;
        schedule.level(timestep.min(steps - 1))
    };
    let levels = (0..count).map(|_| draw()).collect::<Result<Vec<_>>>()?;
    Ok(PerImage::new(levels, each, device))
}

fn motion_sizes(places: &Places, motion: &MotionConfig) -> Result<UNetConfig> {
    let unet: UNetConfig = files::read_json(&places.base.join("unet/config.json"))?;
    Ok(unet.with_motion(motion.clone()))
}

/// The UNet of few steps with its motion modules: sizes, and all weights with the LoRA merged.
fn few_steps(setup: Setup<'_>) -> Result<(UNetConfig, Weights)> {
    let Setup { plan, places, compute } = setup;
    let device = &compute.device;
    let sizes = motion_sizes(places, &plan.motion.config)?;
    let mut unet = files::read_component(&places.base, Component::UNet, device)?;
    let lora = if plan.lcm.joint { places.joint_lora() } else { places.lora() };
    let changed = files::read_lora(&lora, &unet, device)?.composed(&unet, true)?;
    unet.extend(changed);
    unet.extend(files::read_motion(&places.lcm(), device)?);
    Ok((sizes, unet))
}

fn named_as_animatediff(weights: &Weights) -> Weights {
    weights.iter().map(|(name, tensor)| (animatediff_name(name), tensor.clone())).collect()
}
