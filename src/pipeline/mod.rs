//! From a request to frames.
//!
//! [`Pipeline::generate`] is the whole story: text, noise levels, first latents, the sampler's walk, decoding.

mod conditions;
pub mod control;
pub mod denoiser;
mod embedded;
pub mod flops;
mod grammar;
pub mod ip_adapter;
pub mod load;
pub mod memory;
mod parts;
pub mod request;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use candle_core::{DType, Device, Tensor};

use crate::adapters::Conditioner;
use crate::device::{self, Precision};
use crate::media::FrameSink;
use crate::media::tensor::to_rgb;
use crate::models::clip::VisionEncoder;
use crate::models::image_projection::IpAdapter;
use crate::models::unet::UNet;
use crate::models::vae::{Vae, VaeEncoder};
use crate::rng::Noise;
use crate::sampler::{Plan, PlanSettings, Progress, Run, Sampler};
use crate::schedule::{NoiseSchedule, Prediction};
use crate::text::TextModel;
use crate::weights::{Component, LoadReport, Resident};
use crate::{Error, Result, Stop};
use control::Hint;
use denoiser::Guidance;
use ip_adapter::Pictures;
use load::{Models, SideNetwork};
use memory::Plan as MemoryPlan;
use request::Request;

/// Something that happened during a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A part is about to be loaded.
    Load {
        /// Which: `text`, `image-encoder`, `ip-adapter`, `unet`, `vae`, `vae-encoder`, `controlnet`, `sparsectrl` or
        /// `t2i-adapter`.
        part: &'static str,
        /// Bytes that it will have in memory.
        bytes: u64,
    },
    /// A part is loaded; every tensor of its files is accounted for.
    Report {
        /// What was used, changed and left aside.
        report: LoadReport,
    },
    /// Everything is loaded; the first step begins.
    Loaded,
    /// Something is not as it was probably meant.
    Warning {
        /// What, in one line.
        message: String,
    },
    /// A denoising step is done.
    Step {
        /// Which, from 1.
        step: usize,
        /// Of how many.
        steps: usize,
        /// The timestep that the network was told.
        timestep: f64,
    },
    /// A frame is decoded and with the sink.
    Decode {
        /// Which, from 1.
        frame: usize,
        /// Of how many.
        frames: usize,
    },
}

/// Hears of a run. An error stops it; [`Error::Cancelled`] is how to cancel between two events, [`Pipeline::until`] how
/// to cancel at once.
pub trait Listener {
    /// Something happened.
    fn event(&mut self, event: Event) -> Result<()>;
}

impl<F: FnMut(Event) -> Result<()>> Listener for F {
    fn event(&mut self, event: Event) -> Result<()> {
        self(event)
    }
}

/// Tensors that go around the generator, and those that are kept for comparison.
///
/// All are in the layout of files, `(1, channels, frames, height, width)`.
#[derive(Debug, Default)]
pub struct Tensors {
    /// First latents in place of drawn ones, as unit noise.
    pub latents: Option<Tensor>,
    /// Noise of the steps, drawn in place of the generator's while it lasts.
    pub noise: Vec<Tensor>,
    /// Noise of hints that become latents, by the control's name: `(hints, channels, height, width)`.
    pub hint_noise: BTreeMap<String, Tensor>,
    /// If present, receives `context`, `negative_context`, `latents.0` and so on after each step, `latents` at the
    /// end, and `frames`, `(frames, 3, height, width)` in `[0, 1]`.
    pub recorded: Option<BTreeMap<String, Tensor>>,
}

impl Tensors {
    fn record(
        &mut self,
        name: impl Into<String>,
        tensor: impl FnOnce() -> Result<Tensor>,
    ) -> Result<()> {
        if let Some(recorded) = &mut self.recorded {
            recorded.insert(name.into(), tensor()?);
        }
        Ok(())
    }
}

/// Models, a device, and what is loaded of them.
#[derive(Debug)]
pub struct Pipeline {
    models: Models,
    device: Device,
    precision: Precision,
    residency: Residency,
    text: Option<TextModel>,
    unet: Option<UNet>,
    vae: Option<Vae>,
    encoder: Option<VaeEncoder>,
    side_networks: BTreeMap<String, SideNetwork>,
    /// The weights of those models that stay.
    resident: BTreeMap<Component, Resident>,
    own_conditioners: Vec<Mutex<Box<dyn Conditioner>>>,
    own_sampler: Option<Box<dyn Sampler + Send + Sync>>,
    image_encoders: BTreeMap<PathBuf, VisionEncoder>,
    ip_adapters: BTreeMap<String, IpAdapter>,
    stop: Stop,
}

/// Which parts stay in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// Each only while it is needed: least memory for one clip.
    #[default]
    OneAtATime,
    /// All: no loading between clips.
    KeepAll,
}

impl Pipeline {
    /// Nothing is loaded yet.
    pub fn new(models: Models, device: Device, precision: Precision, residency: Residency) -> Self {
        Self {
            models,
            device,
            precision,
            residency,
            text: None,
            unet: None,
            vae: None,
            encoder: None,
            side_networks: BTreeMap::new(),
            resident: BTreeMap::new(),
            own_conditioners: vec![],
            own_sampler: None,
            image_encoders: BTreeMap::new(),
            ip_adapters: BTreeMap::new(),
            stop: Stop::default(),
        }
    }

    /// Ends loading, encoding, denoising and decoding with [`Error::Cancelled`] within a layer once `stop` is
    /// requested, for good.
    #[must_use]
    pub fn until(mut self, stop: &Stop) -> Self {
        self.stop = stop.clone();
        self.models.stop_with(stop);
        self
    }

    /// What it runs.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// In which number formats it runs.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Gives a LoRA other strengths in the UNet and in the text encoder; it is counted as in [`Models::adapters`].
    ///
    /// The parts that it changes are made again when they are needed next; the clip is the one that a new pipeline would
    /// make. Meanwhile the memory of the old ones is free. On a GPU with [`Residency::KeepAll`] only the weights that
    /// change are read and patched again; on the CPU, where packed weights are all that stays, those of the whole part.
    ///
    /// # Errors
    ///
    /// When there is no such LoRA, or a strength is not a number.
    pub fn set_lora_strength(&mut self, lora: usize, unet: f64, text: f64) -> Result<()> {
        for (component, names) in self.models.set_lora_strength(lora, unet, text)? {
            if let Some(resident) = self.resident.get_mut(&component) {
                resident.forget(names);
            }
            match component {
                Component::UNet => self.unet = None,
                Component::Text => self.text = None,
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds a conditioner of one's own to all runs; it comes after those of the requests.
    pub fn add_conditioner(&mut self, conditioner: Box<dyn Conditioner>) {
        self.own_conditioners.push(Mutex::new(conditioner));
    }

    /// Samples all later runs with `sampler`, over the noise levels of the request's own.
    pub fn set_sampler(&mut self, sampler: Box<dyn Sampler + Send + Sync>) {
        self.own_sampler = Some(sampler);
    }

    /// Fills in what the request leaves to the model, and checks it against the model and the memory.
    pub fn prepare(&self, request: &Request) -> Result<Prepared> {
        request.validate()?;
        let (native_width, native_height) = self.models.native_size();
        let width = request.width.unwrap_or(native_width);
        let height = request.height.unwrap_or(native_height);
        let factor = self.models.factor();
        for (field, value) in [("width", width), ("height", height)] {
            if !value.is_multiple_of(factor) {
                let near = (value / factor).max(1) * factor;
                let error =
                    Error::request(field, format!("must be a multiple of {factor}, got {value}"));
                return Err(error.with_hint(format!("try {near} or {}", near + factor)));
            }
        }
        if let Some(longest) = self.models.longest_clip()
            && request.frames > longest
        {
            let reason = format!("{} asked for, the motion modules know {longest}", request.frames);
            return Err(
                Error::request("frames", reason).with_hint(format!("use at most {longest}"))
            );
        }
        for adapter in &request.ip_adapters {
            if !self.models.ip_adapters().any(|name| name == adapter.model) {
                return Err(ip_adapter::unopened(adapter));
            }
        }
        let hints = control::hints(request, &self.models, (width, height), &self.stop)?;
        let pictures =
            ip_adapter::pictures(request, self.models.longest_clip(), (width, height), &self.stop)?;
        let schedule = self.models.schedule(request)?;
        let plan = request.sampler.plan(
            &schedule,
            &PlanSettings {
                steps: request.steps,
                spacing: self.models.spacing(request)?,
                lcm_original_steps: request.lcm_original_steps,
                set_alpha_to_one: self.models.set_alpha_to_one(),
                ..PlanSettings::default()
            },
        )?;
        let prediction = self.models.prediction(request);
        if prediction == Prediction::Epsilon && plan.steps.iter().any(|step| step.at.alpha == 0.0) {
            let reason =
                "noise alone does not tell the image, and the schedule begins with nothing else";
            return Err(Error::request("prediction", reason)
                .with_hint("--prediction v, or --zero-snr false"));
        }
        let size = (width, height);
        let memory = MemoryPlan::new(&self.models, self.precision, &self.device, request, size)
            .with_pictures(&self.models, self.precision, request, &pictures)?;
        let available = device::available_memory(&self.device);
        let guidance = memory.choose(available)?;
        Ok(Prepared { width, height, hints, pictures, schedule, plan, guidance, memory })
    }

    /// Makes a clip.
    ///
    /// # Errors
    ///
    /// When the request cannot be met, weights do not fit, or the listener or the sink says stop.
    pub fn generate(
        &mut self,
        request: &Request,
        tensors: &mut Tensors,
        listener: &mut dyn Listener,
        sink: &mut dyn FrameSink,
    ) -> Result<()> {
        let prepared = self.prepare(request)?;
        let Some(seed) = request.seed else {
            return Err(Error::request("seed", "is missing"));
        };
        let states = self.encode(request, tensors, listener)?;
        let hints = self.encode_hints(request, &prepared, tensors, listener)?;
        let image_prompts = self.image_prompts(request, &prepared, listener)?;
        // The autoencoder is small: if something is wrong with it, that shows before the long part.
        self.load_vae(listener)?;
        self.load_side_networks(request.controls.iter().map(|c| c.model.clone()), listener)?;
        self.load_unet(listener)?;
        listener.event(Event::Loaded)?;

        let mut noise = Noise::new(request.rng, seed).with_replay(frames_first(&tensors.noise)?);
        let x = first_latents(tensors, &mut noise, &prepared, request, &self.models, &self.device)?;
        let latents = {
            let guided = self.guided(request, &prepared, &states)?;
            let conditioners = self.conditioners(request, &prepared, &hints, image_prompts)?;
            let mut guided = guided.condition(conditioners);
            let mut observer = |Progress { step, steps, at, x, .. }: Progress<'_>| {
                // A step begins with the latents that the step before it made.
                if step > 0 {
                    tensors.record(format!("latents.{}", step - 1), || channels_first(x))?;
                }
                listener.event(Event::Step { step: step + 1, steps, timestep: at.timestep })
            };
            let mut run = Run::new(&mut guided, &prepared.plan.steps, &mut noise)
                .with_observer(&mut observer);
            match &self.own_sampler {
                Some(sampler) => sampler.sample(&mut run, x)?,
                None => request.sampler.build().sample(&mut run, x)?,
            }
        };
        let last = prepared.plan.steps.len() - 1;
        tensors.record(format!("latents.{last}"), || channels_first(&latents))?;
        tensors.record("latents", || channels_first(&latents))?;

        if self.residency == Residency::OneAtATime {
            self.unet = None;
            self.side_networks.clear();
        }
        let vae = loaded(self.vae.as_ref())?;
        decode((vae, &self.stop), &latents, self.precision.vae, tensors, listener, sink)?;
        if self.residency == Residency::OneAtATime {
            self.vae = None;
        }
        Ok(())
    }
}

/// A request that can be met: what is not written in it, worked out.
#[derive(Debug)]
pub struct Prepared {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// For every control its pictures in the clip's size.
    pub hints: Vec<Hint>,
    /// For every IP-Adapter its pictures and how they are used.
    pub pictures: Vec<Pictures>,
    /// The noise schedule.
    pub schedule: NoiseSchedule,
    /// The sampler's way.
    pub plan: Plan,
    /// How guidance is computed, should there be any.
    pub guidance: Guidance,
    /// What it will need.
    pub memory: MemoryPlan,
}

/// `(1, frames, channels, height, width)` at the plan's first noise level, in f32.
fn first_latents(
    tensors: &Tensors,
    noise: &mut Noise,
    prepared: &Prepared,
    request: &Request,
    models: &Models,
    device: &Device,
) -> Result<Tensor> {
    let factor = models.factor();
    let (height, width) = (prepared.height / factor, prepared.width / factor);
    let channels = models.latent_channels();
    let unit = match &tensors.latents {
        Some(latents) => {
            let wanted = [1, channels, request.frames, height, width];
            if latents.dims() != wanted {
                let reason = format!("`latents` is {:?}, the run needs {wanted:?}", latents.dims());
                return Err(Error::request("tensors-in", reason));
            }
            let latents = latents.to_dtype(DType::F32)?.to_device(device)?;
            latents.transpose(1, 2)?.contiguous()?
        }
        None => noise.latents((1, request.frames, channels, height, width), device)?,
    };
    Ok((unit * prepared.plan.initial_scale)?)
}

/// Decodes a few frames at a time into the sink.
fn decode(
    (vae, stop): (&Vae, &Stop),
    latents: &Tensor,
    dtype: DType,
    tensors: &mut Tensors,
    listener: &mut dyn Listener,
    sink: &mut dyn FrameSink,
) -> Result<()> {
    /// As many latents are decoded at once as one frame of 512×512 has.
    const AT_ONCE: usize = 64 * 64;
    let (_, frames, _, height, width) = latents.dims5()?;
    let step = (AT_ONCE / (height * width)).max(1);
    let mut kept = Vec::new();
    for start in (0..frames).step_by(step) {
        let z = latents.narrow(1, start, step.min(frames - start))?.squeeze(0)?.to_dtype(dtype)?;
        let pictures = vae.decode(&z, stop)?.to_dtype(DType::F32)?.affine(0.5, 0.5)?;
        let pictures = pictures.clamp(0f32, 1f32)?.to_device(&Device::Cpu)?; // (frames, 3, height, width)
        for i in 0..pictures.dim(0)? {
            sink.frame(&to_rgb(&pictures.get(i)?)?)?;
            listener.event(Event::Decode { frame: start + i + 1, frames })?;
        }
        if tensors.recorded.is_some() {
            kept.push(pictures);
        }
    }
    tensors.record("frames", || Ok(Tensor::cat(&kept, 0)?))
}

fn loaded<T>(part: Option<&T>) -> Result<&T> {
    part.ok_or_else(|| Error::Missing { name: "model".into(), reason: "is not loaded".into() })
}

/// `(batch, frames, channels, ..)` to the layout of files.
fn channels_first(x: &Tensor) -> Result<Tensor> {
    Ok(x.transpose(1, 2)?.contiguous()?.to_device(&Device::Cpu)?)
}

fn frames_first(noise: &[Tensor]) -> Result<Vec<Tensor>> {
    noise.iter().map(|x| Ok(x.transpose(1, 2)?.contiguous()?)).collect()
}
