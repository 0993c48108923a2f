//! From a request to frames.
//!
//! [`Pipeline::generate`] is the whole story: text, noise levels, first latents, the sampler's walk, decoding.

pub mod control;
pub mod denoiser;
mod embedded;
pub mod flops;
pub mod ip_adapter;
pub mod load;
pub mod memory;
pub mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use crate::adapters::ip_adapter::{ImagePrompt, Neighbour, Sight};
use crate::adapters::{Conditioner, Pass};
use crate::device::{self, Precision};
use crate::media::FrameSink;
use crate::media::tensor::{from_rgb, to_rgb};
use crate::models::clip::VisionEncoder;
use crate::models::image_projection::IpAdapter;
use crate::models::unet::{Injection, UNet};
use crate::models::vae::{Vae, VaeEncoder};
use crate::rng::Noise;
use crate::sampler::{Denoiser, Observer, Plan, PlanSettings, Progress};
use crate::schedule::{NoiseLevel, NoiseSchedule};
use crate::text::{Chunks, TextModel};
use crate::weights::{Component, LoadReport, Resident};
use crate::{Error, Result};
use control::Hint;
use denoiser::{Guidance, Guided, Settings};
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

/// Hears of a run. An error stops it; [`Error::Cancelled`] is how to cancel.
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
    conditioners: Vec<Mutex<Box<dyn Conditioner>>>,
    image_encoders: BTreeMap<PathBuf, VisionEncoder>,
    ip_adapters: BTreeMap<String, IpAdapter>,
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
            conditioners: vec![],
            image_encoders: BTreeMap::new(),
            ip_adapters: BTreeMap::new(),
        }
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
    /// With [`Residency::KeepAll`] only the weights that it changes are read and patched again, when they are needed
    /// next; the clip is the one that a new pipeline would make. Meanwhile the memory of the old ones is free.
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
        self.conditioners.push(Mutex::new(conditioner));
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
        let hints = control::hints(request, &self.models, (width, height))?;
        let pictures = ip_adapter::pictures(request, (width, height))?;
        let schedule = self.models.schedule(request)?;
        let plan = request.sampler.plan(
            &schedule,
            &PlanSettings {
                steps: request.steps,
                spacing: request.spacing,
                lcm_original_steps: request.lcm_original_steps,
                set_alpha_to_one: self.models.set_alpha_to_one(),
                ..PlanSettings::default()
            },
        )?;
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
            let parts = control::Parts {
                networks: &self.side_networks,
                hints: &prepared.hints,
                latents: &hints,
                dtype: self.precision.unet,
                device: &self.device,
            };
            let mut conditioners = control::conditioners(request, &parts)?;
            let boxed = |prompt| Box::new(prompt) as Box<dyn Conditioner>;
            conditioners.extend(image_prompts.into_iter().map(boxed));
            let own = self.conditioners.iter().map(|own| Box::new(Lent::new(own)) as _);
            conditioners.extend(own);
            let mut guided = guided.condition(conditioners, &prepared.plan.steps);
            let mut asked = 0;
            let mut recording = |x: &Tensor, at: NoiseLevel| {
                // What the sampler asks about is what the step before it made.
                if asked > 0 {
                    tensors.record(format!("latents.{}", asked - 1), || channels_first(x))?;
                }
                asked += 1;
                guided.denoise(x, at)
            };
            let sampler = request.sampler.build();
            let mut observer = Steps(listener);
            sampler.sample(&mut recording, x, &prepared.plan.steps, &mut noise, &mut observer)?
        };
        let last = prepared.plan.steps.len() - 1;
        tensors.record(format!("latents.{last}"), || channels_first(&latents))?;
        tensors.record("latents", || channels_first(&latents))?;

        if self.residency == Residency::OneAtATime {
            self.unet = None;
            self.side_networks.clear();
        }
        let vae = loaded(self.vae.as_ref())?;
        decode(vae, &latents, self.precision.vae, tensors, listener, sink)?;
        if self.residency == Residency::OneAtATime {
            self.vae = None;
        }
        Ok(())
    }

    /// The network with its prompts, `context` and perhaps a negative one.
    fn guided(
        &self,
        request: &Request,
        prepared: &Prepared,
        (context, negative): &(Tensor, Option<Tensor>),
    ) -> Result<Guided<'_>> {
        let settings = Settings {
            prediction: self.models.prediction(),
            dtype: self.precision.unet,
            motion_norm: request.motion_norm,
        };
        let guided = Guided::new(loaded(self.unet.as_ref())?, settings, context)?;
        match negative {
            Some(negative) => guided.guide(negative, request.cfg_scale, prepared.guidance),
            None => Ok(guided),
        }
    }

    /// Loads all parts now instead of when they are needed. With [`Residency::KeepAll`] they then stay.
    pub fn load(&mut self, listener: &mut dyn Listener) -> Result<()> {
        self.load_text(listener)?;
        if self.models.side_networks().any(|(_, config)| config.sees_latents()) {
            self.load_encoder(listener)?;
        }
        self.load_vae(listener)?;
        let names: Vec<String> = self.models.side_networks().map(|(n, _)| n.to_owned()).collect();
        self.load_side_networks(names, listener)?;
        let names: Vec<String> = self.models.ip_adapters().map(str::to_owned).collect();
        for name in names {
            let encoder = self.models.ip_adapter_config(&name)?.1.to_path_buf();
            self.load_image_encoder(&encoder, listener)?;
            self.load_ip_adapter(&name, listener)?;
        }
        self.load_unet(listener)
    }

    /// The states of the prompt and, with guidance, of the negative prompt.
    fn encode(
        &mut self,
        request: &Request,
        tensors: &mut Tensors,
        listener: &mut dyn Listener,
    ) -> Result<(Tensor, Option<Tensor>)> {
        self.load_text(listener)?;
        let Some(text) = self.text.take() else {
            return Err(Error::Missing { name: "text".into(), reason: "was not loaded".into() });
        };
        let mut read = |name: &str, prompt: &str| {
            let chunks = text.read(prompt, request.prompt_mode)?;
            if let Some(lost) = chunks.truncated() {
                let lost: String = lost.chars().take(60).collect();
                let message = format!("the {name} is too long; it ends before `{lost}`");
                listener.event(Event::Warning { message })?;
            }
            Ok::<_, Error>(chunks)
        };
        let prompt = read("prompt", &request.prompt)?;
        let negative = request
            .is_guided()
            .then(|| read("negative prompt", &request.negative_prompt))
            .transpose()?;
        // Both have the same number of tokens, or they could not share a batch.
        let count = prompt.len().max(negative.as_ref().map_or(1, Chunks::len));
        let context = text.states(&prompt, count, request.clip_skip)?;
        let negative = negative
            .map(|negative| text.states(&negative, count, request.clip_skip))
            .transpose()?;
        tensors.record("context", || Ok(context.to_dtype(DType::F32)?))?;
        if let Some(negative) = &negative {
            tensors.record("negative_context", || Ok(negative.to_dtype(DType::F32)?))?;
        }
        if self.residency == Residency::KeepAll {
            self.text = Some(text);
        }
        Ok((context, negative))
    }

    /// Latents of the hints that have to be latents, `(hints, channels, height, width)` in f32, by the control's place
    /// in the request.
    ///
    /// Their noise has a generator of its own, seeded like that of the clip: diffusers draws it from torch's global
    /// one, and a control changes no other noise.
    fn encode_hints(
        &mut self,
        request: &Request,
        prepared: &Prepared,
        tensors: &Tensors,
        listener: &mut dyn Listener,
    ) -> Result<BTreeMap<usize, Tensor>> {
        let wanted = control::of_latents(request, &self.models);
        let mut all = BTreeMap::new();
        if wanted.is_empty() {
            return Ok(all);
        }
        self.load_encoder(listener)?;
        let encoder = loaded(self.encoder.as_ref())?;
        let mut noise = Noise::new(request.rng, request.seed.unwrap_or_default());
        let factor = self.models.factor();
        let (height, width) = (prepared.height / factor, prepared.width / factor);
        for (i, control) in wanted {
            let Some(hint) = prepared.hints.get(i) else { continue };
            let shape = (hint.pictures.len(), self.models.latent_channels(), height, width);
            let drawn = match tensors.hint_noise.get(&control.name) {
                Some(given) if given.shape() == &shape.into() => given.clone(),
                Some(given) => {
                    let (name, got) = (&control.name, given.dims());
                    let reason = format!("`noise.control.{name}` is {got:?}, not {shape:?}");
                    return Err(Error::request("tensors-in", reason));
                }
                None => {
                    let count = shape.0 * shape.1 * shape.2 * shape.3;
                    Tensor::from_vec(noise.normal(count), shape, &Device::Cpu)?
                }
            };
            let drawn = drawn.to_dtype(self.precision.vae)?.to_device(&self.device)?;
            let pictures = from_rgb(&hint.pictures, &self.device)?.affine(2.0, -1.0)?;
            let pictures = pictures.to_dtype(self.precision.vae)?;
            // One at a time: the encoder works at full size.
            let latents = (0..shape.0)
                .map(|i| encoder.sample(&pictures.narrow(0, i, 1)?, &drawn.narrow(0, i, 1)?));
            let latents = Tensor::cat(&latents.collect::<Result<Vec<_>>>()?, 0)?;
            all.insert(i, latents.to_dtype(DType::F32)?);
        }
        if self.residency == Residency::OneAtATime {
            self.encoder = None;
        }
        Ok(all)
    }

    /// Builds a model of what is left of it in memory and the files.
    fn build<T>(
        &mut self,
        component: Component,
        dtype: DType,
        build: impl FnOnce(&Models, &mut Resident) -> Result<T>,
    ) -> Result<T> {
        let before = self.resident.remove(&component);
        let mut resident = before.unwrap_or_else(|| Resident::new(dtype, &self.device));
        let built = build(&self.models, &mut resident);
        if self.residency == Residency::KeepAll {
            self.resident.insert(component, resident);
        }
        built
    }

    /// What the IP-Adapters of a request make of their pictures. No network that took part is needed after that.
    fn image_prompts(
        &mut self,
        request: &Request,
        prepared: &Prepared,
        listener: &mut dyn Listener,
    ) -> Result<Vec<ImagePrompt>> {
        if request.ip_adapters.is_empty() {
            return Ok(vec![]);
        }
        // Image encoders are large: one after the other looks at all of its pictures.
        let mut paths = Vec::new();
        for adapter in &request.ip_adapters {
            paths.push(self.models.ip_adapter_config(&adapter.model)?.1.to_path_buf());
        }
        let mut sights = BTreeMap::new();
        for path in paths.iter().collect::<BTreeSet<_>>() {
            self.load_image_encoder(path, listener)?;
            let encoder = loaded(self.image_encoders.get(path))?;
            let all = request.ip_adapters.iter().zip(&prepared.pictures).zip(&paths).enumerate();
            for (i, ((adapter, pictures), own)) in all {
                if own == path {
                    let wants = self.models.ip_adapter_config(&adapter.model)?.0.wants();
                    let is_guided = request.is_guided();
                    sights.insert(i, Sight::of(encoder, &pictures.images, wants, is_guided)?);
                }
            }
            if self.residency == Residency::OneAtATime {
                self.image_encoders.clear();
            }
        }
        let factor = self.models.factor();
        let unet = Neighbour {
            attentions: self.models.unet_config().cross_attentions()?,
            dtype: self.precision.unet,
            height: prepared.height / factor,
            width: prepared.width / factor,
        };
        let mut prompts = Vec::new();
        for (i, (adapter, pictures)) in
            request.ip_adapters.iter().zip(&prepared.pictures).enumerate()
        {
            self.load_ip_adapter(&adapter.model, listener)?;
            let net = loaded(self.ip_adapters.get(&adapter.model))?;
            let sight = loaded(sights.get(&i))?;
            prompts.push(ImagePrompt::new(net, sight, pictures.settings.clone(), &unet)?);
        }
        if self.residency == Residency::OneAtATime {
            self.ip_adapters.clear();
        }
        Ok(prompts)
    }

    fn load_image_encoder(&mut self, path: &Path, listener: &mut dyn Listener) -> Result<()> {
        if !self.image_encoders.contains_key(path) {
            let dtype = self.precision.text;
            let bytes = self.models.image_encoder_bytes(path, dtype);
            listener.event(Event::Load { part: "image-encoder", bytes })?;
            let (encoder, report) = self.models.image_encoder(path, dtype, &self.device)?;
            listener.event(Event::Report { report })?;
            self.image_encoders.insert(path.to_path_buf(), encoder);
        }
        Ok(())
    }

    fn load_ip_adapter(&mut self, name: &str, listener: &mut dyn Listener) -> Result<()> {
        if !self.ip_adapters.contains_key(name) {
            let dtype = self.precision.text;
            let bytes = self.models.ip_adapter_bytes(name, dtype);
            listener.event(Event::Load { part: "ip-adapter", bytes })?;
            let (adapter, report) = self.models.ip_adapter(name, dtype, &self.device)?;
            listener.event(Event::Report { report })?;
            self.ip_adapters.insert(name.to_owned(), adapter);
        }
        Ok(())
    }

    fn load_text(&mut self, listener: &mut dyn Listener) -> Result<()> {
        if self.text.is_none() {
            listener.event(Event::Load { part: "text", bytes: self.models.text_bytes() })?;
            let (text, report) =
                self.build(Component::Text, self.precision.text, Models::rebuild_text)?;
            listener.event(Event::Report { report })?;
            self.text = Some(text);
        }
        Ok(())
    }

    fn load_unet(&mut self, listener: &mut dyn Listener) -> Result<()> {
        if self.unet.is_none() {
            let bytes = self.models.unet_bytes(self.precision.unet);
            listener.event(Event::Load { part: "unet", bytes })?;
            let (unet, report) =
                self.build(Component::UNet, self.precision.unet, Models::rebuild_unet)?;
            listener.event(Event::Report { report })?;
            self.unet = Some(unet);
        }
        Ok(())
    }

    fn load_side_networks(
        &mut self,
        names: impl IntoIterator<Item = String>,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        let dtype = self.precision.unet;
        for name in names {
            if self.side_networks.contains_key(&name) {
                continue;
            }
            let bytes = self.models.side_network_bytes(&name, dtype);
            let part =
                self.models.side_config(&name).map_or("controlnet", |c| c.component().name());
            listener.event(Event::Load { part, bytes })?;
            let (net, report) = self.models.side_network(&name, dtype, &self.device)?;
            listener.event(Event::Report { report })?;
            self.side_networks.insert(name, net);
        }
        Ok(())
    }

    fn load_encoder(&mut self, listener: &mut dyn Listener) -> Result<()> {
        if self.encoder.is_none() {
            let bytes = self.models.vae_encoder_bytes(self.precision.vae);
            listener.event(Event::Load { part: "vae-encoder", bytes })?;
            let (encoder, report) = self.models.vae_encoder(self.precision.vae, &self.device)?;
            listener.event(Event::Report { report })?;
            self.encoder = Some(encoder);
        }
        Ok(())
    }

    fn load_vae(&mut self, listener: &mut dyn Listener) -> Result<()> {
        if self.vae.is_none() {
            let bytes = self.models.vae_bytes(self.precision.vae);
            listener.event(Event::Load { part: "vae", bytes })?;
            let (vae, report) = self.models.vae(self.precision.vae, &self.device)?;
            listener.event(Event::Report { report })?;
            self.vae = Some(vae);
        }
        Ok(())
    }
}

/// A conditioner that a run has and the pipeline keeps.
#[derive(Debug)]
struct Lent<'a> {
    label: String,
    own: &'a Mutex<Box<dyn Conditioner>>,
}

impl<'a> Lent<'a> {
    fn new(own: &'a Mutex<Box<dyn Conditioner>>) -> Self {
        let label = own.lock().unwrap_or_else(PoisonError::into_inner).label().to_owned();
        Self { label, own }
    }
}

impl Conditioner for Lent<'_> {
    fn label(&self) -> &str {
        &self.label
    }

    fn inject(&mut self, pass: &Pass<'_>, injection: &mut Injection) -> Result<()> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).inject(pass, injection)
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
    vae: &Vae,
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
        let pictures = vae.decode(&z)?.to_dtype(DType::F32)?.affine(0.5, 0.5)?;
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

/// Turns a sampler's reports into events.
struct Steps<'a>(&'a mut dyn Listener);

impl Observer for Steps<'_> {
    fn step(&mut self, progress: Progress<'_>) -> Result<()> {
        let Progress { step, steps, at, .. } = progress;
        self.0.event(Event::Step { step: step + 1, steps, timestep: at.timestep })
    }
}
