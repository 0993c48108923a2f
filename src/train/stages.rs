//! The five stages: what each learns, its loss, and what it writes.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::data::{Clips, Words};
use super::files;
use super::plan::{Consistency, Plan};
use super::text::{Frozen, Ids};
use super::{
    Batch, Cell, Distillation, Grid, Loss, LowRank, PerImage, Student, Vars, Weights,
    animatediff_name, builder, fresh, is_spatial_module, variables,
};
use crate::models::clip::TextEncoder;
use crate::models::motion::{MotionConfig, MotionNorm};
use crate::models::unet::{Injection, UNet, UNetConfig, UNetInput};
use crate::models::vae::{AutoencoderKl, VaeConfig};
use crate::rng::{Noise, RngKind, Uniform};
use crate::schedule::{BetaSchedule, NoiseSchedule};
use crate::weights::Component;
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
}

impl std::str::FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name).ok_or_else(|| {
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

    /// The LoRA that a joint distillation makes.
    pub fn joint_lora(&self) -> PathBuf {
        self.out.join("joint_lora.safetensors")
    }
}

/// What the loop needs of a stage.
pub(super) trait Task {
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

/// Prepares a stage. `say` is told what takes long.
pub(super) fn prepare(
    stage: Stage,
    plan: &Plan,
    places: &Places,
    device: &Device,
    say: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Box<dyn Task>> {
    let clips = Clips::open(plan)?;
    Ok(match stage {
        Stage::Vae => Box::new(Vae::new(plan, clips, device)?),
        Stage::Base => Box::new(Base::new(plan, &clips, places, device, say)?),
        Stage::Lora => Box::new(Consistent::of_pictures(plan, &clips, places, device, say)?),
        Stage::Motion => Box::new(Motion::new(plan, &clips, places, device, say)?),
        Stage::Lcm => Box::new(Consistent::of_clips(plan, &clips, places, device, say)?),
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

// ---- vae

struct Vae {
    vars: Vars,
    vae: AutoencoderKl,
    config: VaeConfig,
    clips: Clips,
    plan: Plan,
    device: Device,
}

impl Vae {
    fn new(plan: &Plan, clips: Clips, device: &Device) -> Result<Self> {
        let config = plan.vae.config.clone();
        let make = |vb| AutoencoderKl::new(&config, &vb);
        let vars = variables(&fresh(make, plan.seed, |_| false, device)?)?;
        let vae = AutoencoderKl::new(&config, &builder(&[&sub_weights(&vars, "")], device))?;
        Ok(Self { vars, vae, config, clips, plan: plan.clone(), device: device.clone() })
    }

    fn pictures(&self, random: &mut Uniform, count: usize) -> Result<Tensor> {
        let mut draw = || (random.below(self.clips.len()), random.below(self.plan.frames));
        let chosen: Vec<(usize, usize)> = (0..count).map(|_| draw()).collect();
        self.clips.pictures(&chosen, &self.device)
    }
}

impl Task for Vae {
    fn vars(&self) -> &Vars {
        &self.vars
    }

    fn loss(&self, random: &mut Uniform) -> Result<Tensor> {
        let stage = &self.plan.vae;
        let x = self.pictures(random, stage.course.batch)?;
        let posterior = self.vae.encode(&x)?;
        let noise = normal(random, posterior.mean.dims(), &self.device)?;
        let deviation = (&posterior.log_variance * 0.5)?.exp()?;
        let z = (&posterior.mean + (deviation * noise)?)?;
        let d = (self.vae.decode(&z)? - &x)?;
        let weight = ((foreground(&x)? * stage.emphasis)? + 0.6)?;
        let weighted = (d.sqr()? + (d.abs()? * 0.3)?)?.broadcast_mul(&weight)?.mean_all()?;
        let divergence = ((posterior.mean.sqr()? + posterior.log_variance.exp()?)?
            - (&posterior.log_variance + 1.0)?)?
            .mean_all()?;
        Ok((weighted + (divergence * (0.5 * stage.divergence))?)?)
    }

    fn write(&self, average: &Weights, places: &Places) -> Result<()> {
        let vae = AutoencoderKl::new(&self.config, &builder(&[average], &self.device))?;
        // Latents of unit deviation are what the noise schedule expects.
        let x = self.pictures(&mut Uniform::part(self.plan.seed, u64::MAX), 64)?;
        let z = vae.encode(&x)?.mean.flatten_all()?.to_vec1::<f32>()?;
        let count = z.len().max(1) as f64;
        let mean = z.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
        let variance = z.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count;
        let scaling_factor = 1.0 / variance.sqrt().max(1e-6);
        let config = VaeConfig { scaling_factor, ..self.config.clone() };
        files::write_vae(&places.base, &config, self.plan.side, average)
    }
}

/// How far each pixel is from its picture's typical colour, `(batch, 1, height, width)` in `[0, 1]`.
fn foreground(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let area = height * width;
    let mut out = Vec::with_capacity(batch * area);
    for picture in values.chunks_exact(channels * area) {
        let typical: Vec<f32> = picture
            .chunks_exact(area)
            .map(|plane| {
                let mut plane = plane.to_vec();
                let middle = plane.len() / 2;
                *plane.select_nth_unstable_by(middle, f32::total_cmp).1
            })
            .collect();
        out.extend((0..area).map(|i| {
            let far = |(c, typical): (usize, &f32)| (picture[c * area + i] - typical).abs();
            let most = typical.iter().enumerate().map(far).fold(0.0, f32::max);
            // A sixteenth of the range is far enough.
            (8.0 * most).min(1.0)
        }));
    }
    Ok(Tensor::from_vec(out, (batch, 1, height, width), x.device())?)
}

// ---- latents

/// All clips as the UNet knows them.
struct Latents {
    /// `(frames, channels, height, width)` each.
    clips: Vec<Tensor>,
    words: Vec<Words>,
}

impl Latents {
    /// From the cache, or else from the autoencoder of the base folder.
    fn open(
        clips: &Clips,
        places: &Places,
        device: &Device,
        say: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Self> {
        let vae_file = places.base.join("vae/diffusion_pytorch_model.safetensors");
        let config: VaeConfig = files::read_json(&places.base.join("vae/config.json"))?;
        let hash = crate::weights::sha256(&vae_file.clone().into())?;
        let fingerprint = format!("{} vae {hash}", clips.fingerprint());
        let words = (0..clips.len()).map(|i| clips.words(i)).collect();
        let cache = places.out.join("latents.safetensors");
        if let Some(kept) = cached(&cache, &fingerprint, device)? {
            return Ok(Self { clips: kept, words });
        }
        let weights = files::read_component(&places.base, Component::Vae, device)?;
        let vae = AutoencoderKl::new(&config, &builder(&[&weights], device))?;
        let mut latents = Vec::with_capacity(clips.len());
        for index in 0..clips.len() {
            if index.is_multiple_of(64) {
                say(&format!("latents of clip {index} of {}", clips.len()))?;
            }
            latents.push(clips.latents(index, &vae, device)?);
        }
        let all: Weights = [("latents".to_owned(), Tensor::stack(&latents, 0)?)].into();
        let metadata = [("fingerprint".to_owned(), fingerprint)].into();
        files::write_tensors(&cache, &all, Some(metadata))?;
        Ok(Self { clips: latents, words })
    }

    /// Some frames, one of each of some clips, `(count, channels, height, width)`, and the clips' numbers.
    fn pictures(&self, random: &mut Uniform, count: usize) -> Result<(Tensor, Vec<usize>)> {
        let mut chosen = Vec::with_capacity(count);
        let mut frames = Vec::with_capacity(count);
        for _ in 0..count {
            let clip = random.below(self.clips.len());
            let latents = &self.clips[clip];
            frames.push(latents.narrow(0, random.below(latents.dim(0)?), 1)?);
            chosen.push(clip);
        }
        Ok((Tensor::cat(&frames, 0)?, chosen))
    }

    /// Some whole clips, `(count*frames, channels, height, width)`, and their numbers.
    fn clips(&self, random: &mut Uniform, count: usize) -> Result<(Tensor, Vec<usize>)> {
        let chosen: Vec<usize> = (0..count).map(|_| random.below(self.clips.len())).collect();
        let latents: Vec<&Tensor> = chosen.iter().map(|i| &self.clips[*i]).collect();
        Ok((Tensor::cat(&latents, 0)?, chosen))
    }

    fn captions(
        &self,
        chosen: &[usize],
        random: &mut Uniform,
        (no_caption, no_part): (f64, f64),
    ) -> Vec<String> {
        chosen.iter().map(|i| self.words[*i].draw(random, no_caption, no_part)).collect()
    }

    fn whole_captions(&self, chosen: &[usize]) -> Vec<String> {
        chosen.iter().map(|i| self.words[*i].whole()).collect()
    }
}

fn cached(path: &Path, fingerprint: &str, device: &Device) -> Result<Option<Vec<Tensor>>> {
    if !path.is_file() {
        return Ok(None);
    }
    let archive = crate::weights::Archive::open(&path.to_path_buf().into())?;
    if archive.metadata().get("fingerprint").map(String::as_str) != Some(fingerprint) {
        return Ok(None);
    }
    let all = archive.tensor("latents", candle_core::DType::F32, device)?;
    let clips = (0..all.dim(0)?).map(|i| Ok(all.get(i)?)).collect::<Result<Vec<_>>>()?;
    Ok(Some(clips))
}

fn input<'a>(frames: usize, context: &'a Tensor, injection: &'a Injection) -> UNetInput<'a> {
    let motion_norm = MotionNorm::PerFrame;
    UNetInput { timestep: 0.0, frames, context, motion_norm, injection }
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

// ---- base

struct Base {
    vars: Vars,
    unet: UNet,
    text: TextEncoder,
    ids: Ids,
    latents: Latents,
    schedule: NoiseSchedule,
    plan: Plan,
    device: Device,
}

impl Base {
    fn new(
        plan: &Plan,
        clips: &Clips,
        places: &Places,
        device: &Device,
        say: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Self> {
        let latents = Latents::open(clips, places, device, say)?;
        let (sizes, text_sizes) = (&plan.base.unet, &plan.base.text);
        let make = |vb| UNet::new(sizes, &vb);
        // A network that begins by saying nothing learns faster.
        let unet = fresh(make, plan.seed ^ 1, |name| name.starts_with("conv_out."), device)?;
        let text = fresh(|vb| TextEncoder::new(text_sizes, &vb), plan.seed ^ 2, |_| false, device)?;
        let all: Weights = with_prefix(unet, "unet.").chain(with_prefix(text, "text.")).collect();
        let vars = variables(&all)?;
        let unet = UNet::new(sizes, &builder(&[&sub_weights(&vars, "unet.")], device))?;
        let text = TextEncoder::new(text_sizes, &builder(&[&sub_weights(&vars, "text.")], device))?;
        let ids = Ids::own(text_sizes, device)?;
        let (schedule, plan, device) = (linear()?, plan.clone(), device.clone());
        Ok(Self { vars, unet, text, ids, latents, schedule, plan, device })
    }
}

impl Task for Base {
    fn vars(&self) -> &Vars {
        &self.vars
    }

    fn loss(&self, random: &mut Uniform) -> Result<Tensor> {
        let stage = &self.plan.base;
        let count = stage.course.batch;
        let (clean, chosen) = self.latents.pictures(random, count)?;
        let shares = (stage.no_caption, stage.no_part);
        let captions = self.latents.captions(&chosen, random, shares);
        let context = self.text.forward(&self.ids.of(&captions)?, 0)?;
        let at = draw_levels(random, &self.schedule, (count, 1), 1.0, &self.device)?;
        let noise = normal(random, clean.dims(), &self.device)?;
        let x = at.add_noise(&clean, &noise)?;
        let injection = Injection::default();
        let y = self.unet.forward_each(&x, &at.timesteps(), &input(1, &context, &injection))?;
        stage.course.loss.of(&y, &noise)
    }

    fn write(&self, average: &Weights, places: &Places) -> Result<()> {
        let (unet, text) = (sub(average, "unet."), sub(average, "text."));
        let stage = &self.plan.base;
        files::write_base(&places.base, (&stage.unet, &unet), (&stage.text, &text))
    }
}

// ---- motion

struct Motion {
    vars: Vars,
    unet: UNet,
    text: Frozen,
    latents: Latents,
    schedule: NoiseSchedule,
    plan: Plan,
    device: Device,
}

fn motion_sizes(places: &Places, motion: &MotionConfig) -> Result<UNetConfig> {
    let unet: UNetConfig = files::read_json(&places.base.join("unet/config.json"))?;
    Ok(unet.with_motion(motion.clone()))
}

impl Motion {
    fn new(
        plan: &Plan,
        clips: &Clips,
        places: &Places,
        device: &Device,
        say: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Self> {
        let latents = Latents::open(clips, places, device, say)?;
        let sizes = motion_sizes(places, &plan.motion.config)?;
        let base = files::read_component(&places.base, Component::UNet, device)?;
        // Modules that begin as the identity: AnimateDiff's own beginning.
        let is_zero =
            |name: &str| name.strip_suffix(".weight").is_some_and(|m| m.ends_with(".proj_out"));
        let all = fresh(|vb| UNet::new(&sizes, &vb), plan.seed ^ 3, is_zero, device)?;
        let modules: Weights =
            all.into_iter().filter(|(name, _)| name.contains(".motion_modules.")).collect();
        let vars = variables(&modules)?;
        let unet = UNet::new(&sizes, &builder(&[&base, &sub_weights(&vars, "")], device))?;
        let text = Frozen::open(&places.base, device)?;
        let schedule = files::read_schedule(&places.base)?;
        let (plan, device) = (plan.clone(), device.clone());
        Ok(Self { vars, unet, text, latents, schedule, plan, device })
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
        let at = draw_levels(random, &self.schedule, (count, frames), stage.power, &self.device)?;
        let noise = normal(random, clean.dims(), &self.device)?;
        let x = at.add_noise(&clean, &noise)?;
        let injection = Injection::default();
        let input = input(frames, &context, &injection);
        let y = self.unet.forward_each(&x, &at.timesteps(), &input)?;
        stage.course.loss.of(&y, &noise)
    }

    fn write(&self, average: &Weights, places: &Places) -> Result<()> {
        files::publish(&places.motion(), &named_as_animatediff(average))
    }
}

fn named_as_animatediff(weights: &Weights) -> Weights {
    weights.iter().map(|(name, tensor)| (animatediff_name(name), tensor.clone())).collect()
}

// ---- consistency

/// Both distillations: single frames with a LoRA, and clips.
struct Consistent {
    vars: Vars,
    distillation: Distillation,
    grid: Grid,
    text: Frozen,
    latents: Latents,
    /// Of a clip; 1 for pictures.
    frames: usize,
    count: usize,
    loss: Loss,
    settings: Consistency,
    of_clips: bool,
    device: Device,
}

impl Consistent {
    fn of_pictures(
        plan: &Plan,
        clips: &Clips,
        places: &Places,
        device: &Device,
        say: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Self> {
        let latents = Latents::open(clips, places, device, say)?;
        let sizes: UNetConfig = files::read_json(&places.base.join("unet/config.json"))?;
        let base = files::read_component(&places.base, Component::UNet, device)?;
        let stage = &plan.lora;
        let lora = LowRank::new(&base, stage.rank, stage.alpha, plan.seed ^ 4, is_spatial_module)?;
        let student = Student { lora: Some(lora), lora_learns: true, ..Student::default() };
        let norm = MotionNorm::PerFrame;
        let distillation = Distillation::new(sizes, norm, base, student, device)?;
        let schedule = files::read_schedule(&places.base)?;
        Ok(Self {
            vars: distillation.vars(),
            distillation,
            grid: Grid::new(&schedule, stage.consistency.cells, stage.consistency.skip)?,
            text: Frozen::open(&places.base, device)?,
            latents,
            frames: 1,
            count: stage.course.batch,
            loss: stage.course.loss,
            settings: stage.consistency,
            of_clips: false,
            device: device.clone(),
        })
    }

    fn of_clips(
        plan: &Plan,
        clips: &Clips,
        places: &Places,
        device: &Device,
        say: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Self> {
        let latents = Latents::open(clips, places, device, say)?;
        let sizes = motion_sizes(places, &plan.motion.config)?;
        let mut base = files::read_component(&places.base, Component::UNet, device)?;
        let stage = &plan.lcm;
        let lora = if stage.joint {
            let (rank, alpha) = (plan.lora.rank, plan.lora.alpha);
            LowRank::new(&base, rank, alpha, plan.seed ^ 4, is_spatial_module)?
        } else {
            files::read_lora(&places.lora(), &base, device)?
        };
        base.extend(files::read_motion(&places.motion(), device)?);
        let student = Student {
            lora: Some(lora),
            lora_learns: stage.joint,
            motion_learns: true,
            insertion: stage.insertion,
        };
        let norm = MotionNorm::PerFrame;
        let distillation = Distillation::new(sizes, norm, base, student, device)?;
        let schedule = files::read_schedule(&places.base)?;
        Ok(Self {
            vars: distillation.vars(),
            distillation,
            grid: Grid::new(&schedule, stage.consistency.cells, stage.consistency.skip)?,
            text: Frozen::open(&places.base, device)?,
            latents,
            frames: plan.frames,
            count: stage.course.batch,
            loss: stage.course.loss,
            settings: stage.consistency,
            of_clips: true,
            device: device.clone(),
        })
    }
}

impl Task for Consistent {
    fn vars(&self) -> &Vars {
        &self.vars
    }

    fn loss(&self, random: &mut Uniform) -> Result<Tensor> {
        let (clean, chosen) = if self.of_clips {
            self.latents.clips(random, self.count)?
        } else {
            self.latents.pictures(random, self.count)?
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

    fn kept(&self) -> Weights {
        self.distillation.target().clone()
    }

    fn resume(&mut self, kept: Weights) -> Result<()> {
        self.distillation.set_target(kept)
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
