//! The five stages: what each learns, its loss, and what it writes.

mod base;
mod consistent;
mod motion;
mod vae;

use std::fs::{File, TryLockError};
use std::path::PathBuf;

use candle_core::{Device, Tensor};

use self::base::Base;
use self::consistent::Consistent;
use self::motion::Motion;
use self::vae::Vae;
use super::data::Clips;
use super::files;
use super::latents::Latents;
use super::plan::Plan;
use super::{Compute, PerImage, Vars, Weights, animatediff_name};
use crate::models::motion::MotionConfig;
use crate::models::unet::UNetConfig;
use crate::rng::{Noise, RngKind, Uniform};
use crate::schedule::{BetaSchedule, NoiseSchedule};
use crate::{Error, Result};

/// A part of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The autoencoder.
    Vae,
    /// The image model and its text encoder.
    Base,
    /// The image model's consistency.
    Lora,
    /// The motion modules.
    Motion,
    /// Their consistency.
    Lcm,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Vae, Self::Base, Self::Lora, Self::Motion, Self::Lcm];

    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vae => "vae",
            Self::Base => "base",
            Self::Lora => "lora",
            Self::Motion => "motion",
            Self::Lcm => "lcm",
        }
    }

    /// The files of its result, as far as later stages cannot do without.
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
        }
    }
}

impl std::str::FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let bare = crate::spelling::bare(name);
        Self::ALL.into_iter().find(|stage| stage.name() == bare).ok_or_else(|| {
            let known = Self::ALL.map(|stage| format!("`{}`", stage.name())).join(", ");
            Error::request("stage", format!("`{name}` is none of {known}"))
        })
    }
}

/// Where a training's files are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Everything that is written.
    pub out: PathBuf,
    /// The diffusers folder that later stages begin from.
    pub base: PathBuf,
}

impl Places {
    /// The folder of a training whose base model is made by itself.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        let out = out.into();
        Self { base: out.join("base"), out }
    }

    /// The image consistency's LoRA.
    pub fn lora(&self) -> PathBuf {
        self.out.join("lcm_lora.safetensors")
    }

    /// The motion modules that learned from clips.
    pub fn motion(&self) -> PathBuf {
        self.out.join("motion_teacher.safetensors")
    }

    /// The motion modules of the consistency model.
    pub fn lcm(&self) -> PathBuf {
        self.out.join("motion_lcm.safetensors")
    }

    /// Claims the folder for one training, until the lock is dropped or the program ends.
    ///
    /// # Errors
    ///
    /// When another training has it.
    pub fn lock(&self) -> Result<Lock> {
        std::fs::create_dir_all(&self.out).map_err(Error::file(&self.out))?;
        let path = self.out.join(".lock");
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(Error::file(&path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let reason = format!("another training runs in {}", self.out.display());
                Err(Error::request("out", reason)
                    .with_hint("wait for its end, or name another folder"))
            }
            // A file system without locks has to do without.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Lock { _file: file }),
        }
    }

    /// The LoRA that a joint distillation makes.
    pub fn joint_lora(&self) -> PathBuf {
        self.out.join("joint_lora.safetensors")
    }
}

/// See [`Places::lock`].
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// What the loop needs of a stage.
pub(super) trait Task: Sync {
    /// Everything that learns.
    fn vars(&self) -> &Vars;

    /// The loss of one pass, whose random numbers are those of `random`.
    fn loss(&self, random: &mut Uniform) -> Result<Tensor>;

    /// After each step of the optimizer.
    fn follow(&mut self) -> Result<()> {
        Ok(())
    }

    /// What else must be kept to go on later.
    fn kept(&self) -> Weights {
        Weights::new()
    }

    /// Takes that up again.
    fn resume(&mut self, _: Weights) -> Result<()> {
        Ok(())
    }

    /// Writes what was learned; `average` are averages of the variables.
    fn write(&self, average: &Weights, places: &Places) -> Result<()>;
}

/// What the stages are prepared from.
#[derive(Clone, Copy)]
struct Setup<'a> {
    plan: &'a Plan,
    places: &'a Places,
    compute: &'a Compute,
}

/// Prepares a stage. `say` is told what takes long.
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
        Stage::Lora => Box::new(Consistent::of_pictures(setup, latents)?),
        Stage::Lcm => Box::new(Consistent::of_clips(setup, latents)?),
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

/// Normal numbers of a shape.
fn normal(random: &mut Uniform, shape: &[usize], device: &Device) -> Result<Tensor> {
    let count = shape.iter().product();
    let values = Noise::new(RngKind::Cpu, random.bits()).normal(count);
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// The schedule that motion models are trained on.
fn linear() -> Result<NoiseSchedule> {
    NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, 1000)
}

/// Noise levels of a batch; `power` below 1 favours noisy ones.
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

fn named_as_animatediff(weights: &Weights) -> Weights {
    weights.iter().map(|(name, tensor)| (animatediff_name(name), tensor.clone())).collect()
}
