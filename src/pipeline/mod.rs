//! From a request to frames.
//!
//! [`Pipeline::prepare`] completes and checks a request, [`Pipeline::latents`] samples, [`Pipeline::decode`] makes
//! frames; [`Pipeline::generate`] is the latter two. No file is opened but those of weights: images, videos and tensors
//! come as [`Inputs`].

mod conditions;
pub mod denoiser;
mod depth;
mod event;
mod free_init;
mod hints;
mod hires;
mod images;
mod inpaint;
mod inputs;
mod masks;
pub mod memory;
pub mod overlay;
mod parts;
mod passes;
mod perturbed;
mod preview;
mod prompts;
mod rescale;
mod source;
mod states;
pub mod thresholding;
mod warnings;
pub mod windows;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor};

pub use event::{Done, Event, Observer, Recorder};
pub use inputs::Inputs;
pub use perturbed::Perturbed;
pub use preview::Preview;
pub use source::SourceFrames;
pub(crate) use source::image as image_of;
pub use states::{KeyStates, States};

use crate::adapters::Conditioner;
use crate::device::{self, DeviceChoice, DtypeChoice, Precision};
use crate::library::{Files, Library, Models, Part};
use crate::media::FrameSink;
use crate::media::hsv::HsvMean;
use crate::media::tensor::{from_rgb, to_rgb, to_rgb_cut};
use crate::models::Decode;
use crate::models::vae::{Tiled, Tiling, Vae};
use crate::request::{Hires, MOST_PIXELS, Request, Schedule, Upscale, VaeTiling};
use crate::rng::Noise;
use crate::sampler::{Denoiser, Plan, PlanSettings, Sampler, Tcd, WindowPlan};
use crate::schedule::{NoiseSchedule, Prediction};
use crate::weights::{Component, Resident};
use crate::{Error, Result, Stop};
use denoiser::Guidance;
use event::record;
use hints::Hint;
use images::AdapterImages;
use memory::Plan as MemoryPlan;
use overlay::Overlay;
use passes::{Start, Tally};
use thresholding::Thresholded;
use windows::Windowed;

/// Models, a device, and what is loaded of them.
#[derive(Debug)]
pub struct Pipeline {
    models: Models,
    device: Device,
    precision: Precision,
    residency: Residency,
    library: Arc<Library>,
    /// The decoder from sampling to decoding.
    vae: Option<Arc<Vae>>,
    /// The mean colour to which decoded frames are moved, from sampling to decoding.
    colors: Option<HsvMean>,
    /// What is put over decoded frames, from sampling to decoding.
    overlay: Option<Arc<Overlay>>,
    /// Tensors of loaded networks, to rebuild those of which few weights change.
    resident: Mutex<BTreeMap<Component, Resident>>,
    own_conditioners: Vec<Mutex<Box<dyn Conditioner>>>,
    own_sampler: Option<Box<dyn Sampler + Send + Sync>>,
    stop: Stop,
}

/// Which networks stay in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// Each only while it is needed: least memory for one clip.
    #[default]
    Sequential,
    /// All: no loading between clips.
    KeepAll,
}

impl Residency {
    /// Bytes that a library may keep.
    fn limit(self) -> u64 {
        match self {
            Self::Sequential => 0,
            Self::KeepAll => u64::MAX,
        }
    }
}

impl Pipeline {
    /// Nothing is loaded yet.
    pub fn new(models: Models, device: Device, precision: Precision, residency: Residency) -> Self {
        Self {
            models,
            device,
            precision,
            residency,
            library: Arc::new(Library::new(residency.limit())),
            vae: None,
            colors: None,
            overlay: None,
            resident: Mutex::default(),
            own_conditioners: vec![],
            own_sampler: None,
            stop: Stop::default(),
        }
    }

    /// The pipeline of these files, on the best device and in its usual dtypes. Networks are loaded when a clip needs
    /// them.
    ///
    /// # Errors
    ///
    /// When a file is missing, damaged, or not what it is used as.
    pub fn open(files: &Files) -> Result<Self> {
        let device = DeviceChoice::Auto.open()?;
        let precision = Precision::new(DtypeChoice::Auto, &device);
        Ok(Self::new(Models::open(files)?, device, precision, Residency::default()))
    }

    /// Ends loading, encoding, denoising and decoding with [`Error::Cancelled`] within a layer once `stop` is
    /// requested, for good.
    #[must_use]
    pub fn until(mut self, stop: &Stop) -> Self {
        self.stop = stop.clone();
        self.models.stop_with(stop);
        self
    }

    /// Takes networks from a library that other pipelines share, which then decides what stays in memory.
    #[must_use]
    pub fn with_library(mut self, library: &Arc<Library>) -> Self {
        self.library = Arc::clone(library);
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

    /// In which dtypes it runs.
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
        let keys =
            [(Component::UNet, self.key(&Part::UNet)?), (Component::Text, self.key(&Part::Text)?)];
        let changed = self.models.set_lora_strength(lora, unet, text)?;
        for (component, key) in &keys {
            let Some(names) = changed.get(component) else { continue };
            self.library.forget(key);
            if let Some(resident) = lock(&self.resident).get_mut(component) {
                resident.forget(names);
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

    /// Completes a request by what the model says, decodes its inputs, and checks both against model and memory.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] for what cannot be met, [`Error::Refused`] for an input that is not the one that the request
    /// has the hash of, [`Error::Memory`] when the run does not fit.
    pub fn prepare(&self, request: &Request, inputs: &Inputs) -> Result<Prepared> {
        request.validate()?;
        let is_schedule_asked = request.schedule != Schedule::default();
        let mut request = request.clone();
        self.models.complete(&mut request)?;
        let size = self.size(&request)?;
        for adapter in &request.ip_adapters {
            if !self.models.ip_adapters().any(|name| name == adapter.model) {
                return Err(images::unopened(adapter));
            }
        }
        inputs.identify(&mut request)?;
        let Some(hires) = request.quality.hires else {
            return self.prepare_pass(request, inputs, (size, None), is_schedule_asked);
        };
        let larger = hires.size(size, self.models.factor());
        if larger.0.max(larger.1) > MOST_PIXELS {
            let (width, height) = larger;
            let reason = format!("makes {width}x{height}, at most {MOST_PIXELS} a side");
            return Err(Error::request("hires", reason));
        }
        if hires.upscale == Upscale::Pixels {
            self.models.check_encoder()?;
        }
        let first = self.prepare_pass(request, inputs, (size, None), is_schedule_asked)?;
        let request = first.request.clone();
        let last = self.prepare_pass(request, inputs, (larger, Some(hires)), is_schedule_asked)?;
        Ok(Prepared { warnings: first.warnings.clone(), first: Some(Box::new(first)), ..last })
    }

    /// [`prepare`](Self::prepare) for a clip of that size (width, height), the first or the second one of its run.
    fn prepare_pass(
        &self,
        mut request: Request,
        inputs: &Inputs,
        (size, hires): ((usize, usize), Option<Hires>),
        is_schedule_asked: bool,
    ) -> Result<Prepared> {
        let (width, height) = size;
        let is_open = request.is_open();
        let source = source::read(&mut request, inputs, &self.models, size, &self.stop)?;
        if is_open {
            // With the number of frames of a video.
            request.validate()?;
        }
        let frames = request.frames();
        request.size.frames = Some(frames);
        let windows = windows::plan(&mut request, self.models.longest_clip())?;
        let at_once = windows.map_or(frames, |windows| windows.length());
        let given = (inputs, source.as_ref());
        let factor = self.models.factor();
        let kept = masks::kept(&request, given, (size, factor), &self.stop)?;
        let hints = hints::hints(&request, given, &self.models, (size, at_once), &self.stop)?;
        let adapter_images = images::adapter_images(&request, inputs, size, &self.stop)?;
        let config = self.models.scheduler(&request);
        let schedule = config.schedule()?;
        let settings = PlanSettings {
            steps: hires.and_then(|hires| hires.steps).unwrap_or(request.sampling.steps),
            spacing: request.sampling.spacing,
            original_inference_steps: self.models.original_inference_steps(&request),
            gamma: request.sampling.tcd_gamma.unwrap_or(Tcd::GAMMA),
            set_alpha_to_one: config.set_alpha_to_one,
            ..PlanSettings::default()
        };
        let mut plan = request.sampling.sampler.plan(&schedule, &settings)?;
        let mut iterations = vec![];
        if let Some(hires) = hires {
            plan = plan.last_part(hires.strength)?;
        } else if let Some(strength) = request.source.as_ref().and_then(|source| source.strength) {
            plan = plan.last_part(strength)?;
        } else {
            iterations = passes::iterations(&request, &schedule, &settings)?;
        }
        if config.prediction_type == Prediction::Epsilon
            && plan.steps.iter().any(|step| step.at.alpha == 0.0)
        {
            let reason =
                "noise alone does not tell the image, and the schedule begins with nothing else";
            let is_meant = is_schedule_asked || config.rescale_betas_zero_snr;
            let error = if is_meant {
                Error::request("prediction", reason)
            } else {
                Error::Weights { component: "scheduler".into(), summary: reason.into() }
            };
            return Err(error.with_hint("--prediction v, or --zero-snr false"));
        }
        let sampled = if self.models.i2v_encoder_config().is_some() { 1 } else { frames };
        let tiling = match &mut request.quality.vae_tiling {
            Some(VaeTiling { size, overlap }) => {
                let size = *size.get_or_insert(self.models.tile_size());
                Some(Tiling::new(size, *overlap, factor)?)
            }
            None => None,
        };
        let perturbed = request.quality.pag.as_ref();
        let perturbed = perturbed.map(|pag| Perturbed::new(pag, self.models.unet_config()));
        let perturbed = perturbed.transpose()?;
        let given = hires.is_none().then_some(inputs);
        if let Some(inputs) = given {
            let channels = self.models.latent_channels();
            inputs.check([1, channels, frames, height / factor, width / factor], sampled)?;
        }
        let memory = MemoryPlan::new(&self.models, self.precision, &self.device, &request, size)
            .with_adapter_images(&self.models, self.precision, &request, &adapter_images)?;
        // What the library keeps can make room.
        let available = device::available_memory(&self.device)
            .map(|bytes| bytes.saturating_add(self.library.bytes()));
        let guidance = memory.choose(available)?;
        let running = (self.precision, &self.device);
        let mut warnings = warnings::warnings(&request, &self.models, running, &hints);
        warnings.extend(source::warnings(&request, source.as_ref()));
        Ok(Prepared {
            request,
            warnings,
            width,
            height,
            frames,
            // A second pass starts from the first one's clip, but AnimateLCM-I2V sees the image in both.
            source: source
                .filter(|_| hires.is_none() || self.models.i2v_encoder_config().is_some()),
            sampled,
            overlay: kept.as_ref().and_then(|kept| kept.overlay.clone()),
            mask: kept.map(|kept| kept.made),
            hints,
            adapter_images,
            schedule,
            plan,
            iterations,
            windows,
            perturbed,
            tiling,
            guidance,
            memory,
            first: None,
            latents: given.and_then(|inputs| inputs.latents.clone()),
            noise: given.map(|inputs| inputs.noise.clone()).unwrap_or_default(),
            hint_noise: given.map(|inputs| inputs.hint_noise.clone()).unwrap_or_default(),
            source_noise: given.and_then(|inputs| inputs.source_noise.clone()),
        })
    }

    /// The completed request's width and height, which the autoencoder must be able to make.
    fn size(&self, request: &Request) -> Result<(usize, usize)> {
        let (native_width, native_height) = self.models.native_size();
        let width = request.size.width.unwrap_or(native_width);
        let height = request.size.height.unwrap_or(native_height);
        let factor = self.models.factor();
        for (field, value) in [("width", width), ("height", height)] {
            if !value.is_multiple_of(factor) {
                let near = (value / factor).max(1) * factor;
                let error =
                    Error::request(field, format!("must be a multiple of {factor}, got {value}"));
                return Err(error.with_hint(format!("try {near} or {}", near + factor)));
            }
        }
        Ok((width, height))
    }

    /// Makes a clip: [`latents`](Self::latents), then [`decode`](Self::decode).
    ///
    /// # Errors
    ///
    /// Those of both.
    pub fn generate(
        &mut self,
        prepared: &Prepared,
        observer: &mut dyn Observer,
        sink: &mut dyn FrameSink,
    ) -> Result<()> {
        let latents = self.latents(prepared, observer)?;
        self.decode_in(&latents, prepared.tiling, observer, sink)
    }

    /// Samples the clean latents of a clip, `(1, frames, channels, height, width)` in f32.
    ///
    /// # Errors
    ///
    /// When the seed is missing, weights do not fit, or the observer says stop.
    pub fn latents(&mut self, prepared: &Prepared, observer: &mut dyn Observer) -> Result<Tensor> {
        let request = &prepared.request;
        let Some(seed) = request.sampling.seed else {
            return Err(Error::request("seed", "is missing"));
        };
        for message in &prepared.warnings {
            observer.event(Event::Warning { message: message.clone() })?;
        }
        self.make_room(prepared)?;
        let states = self.encode(prepared, observer)?;
        // The smaller clip comes first, should there be one.
        let runs: Vec<&Prepared> =
            prepared.first.as_deref().into_iter().chain([prepared]).collect();
        let replay = frames_first(&runs[0].noise)?;
        let mut noise = Noise::new(request.sampling.rng, seed).with_replay(replay);
        self.colors = runs[0].source.as_ref().and_then(|source| source.colors);
        self.overlay.clone_from(&prepared.overlay);
        let is_start = request.source.as_ref().is_some_and(|source| source.strength.is_some());
        let (mut start, mut given) = (None, Vec::new());
        for (i, run) in runs.iter().enumerate() {
            // A second pass does not change the first one's noise.
            let mut later = noise.clone();
            let noise = if i == 0 { &mut noise } else { &mut later };
            let source = run.source.as_ref();
            let clean = source
                .map(|source| self.encode_source(run, source, noise, observer))
                .transpose()?;
            if let Some(clean) = clean.as_ref().filter(|_| i == 0 && is_start) {
                start = Some(self.noised_source(run, clean, noise)?);
            }
            let i2v = self.i2v_control(run, clean.as_ref(), observer)?;
            let hints = self.finished_hints(run, observer)?;
            let latents = self.encode_hints(run, &hints, observer)?;
            given.push((i2v, (hints, latents), self.image_prompts(run, observer)?));
        }
        // The autoencoder is small: if something is wrong with it, that shows before the long part.
        let vae = self.vae(observer)?;
        self.vae = Some(Arc::clone(&vae));
        let mut side_networks = BTreeMap::new();
        for control in &request.controls {
            side_networks
                .insert(control.model.clone(), self.side_network(&control.model, observer)?);
        }
        let unet = self.unet(observer)?;

        let mut start = match start {
            Some(start) => start,
            None => Start::Noise(first_latents(runs[0], &mut noise, &self.models, &self.device)?),
        };
        let mut tally = None;
        let mut made = Vec::new();
        for (run, (i2v, hints, image_prompts)) in runs.iter().zip(given) {
            if let (Some(smaller), Some(hires)) = (made.last(), &request.quality.hires) {
                let smaller = (smaller, &*vae);
                start = self.enlarged(run, hires, smaller, &mut noise, observer)?;
            }
            let guided = self.guided(&*unet, run, states.clone())?;
            let (hints, latents) = &hints;
            let hints = (hints.as_slice(), latents);
            let mut conditioners = self.conditioners(run, &side_networks, hints, image_prompts)?;
            conditioners.extend(i2v.map(|control| Box::new(control) as Box<dyn Conditioner>));
            let windowed = Windowed::new(guided.condition(conditioners), run.windows);
            let mut denoiser = Thresholded::new(windowed, request.quality.dynamic_thresholding);
            if tally.is_none() {
                observer.event(Event::Ready)?;
            }
            let tally = tally.get_or_insert_with(|| Tally::of(&runs));
            let passes = (&mut denoiser as &mut dyn Denoiser, &mut noise);
            made.push(self.sample(run, passes, &start, tally, observer)?);
        }
        let Some(latents) = made.pop() else {
            return Err(Error::Missing { name: "latents".into(), reason: "nothing ran".into() });
        };
        record(observer, "latents", || channels_first(&latents))?;
        Ok(latents)
    }

    /// Decodes latents, `(1, frames, channels, height, width)`, into frames, a few at a time.
    ///
    /// # Errors
    ///
    /// When weights do not fit, or the observer or the sink says stop.
    pub fn decode(
        &mut self,
        latents: &Tensor,
        observer: &mut dyn Observer,
        sink: &mut dyn FrameSink,
    ) -> Result<()> {
        self.decode_in(latents, None, observer, sink)
    }

    /// [`decode`](Self::decode), each frame in tiles if there are any.
    ///
    /// # Errors
    ///
    /// Those of [`decode`](Self::decode).
    pub fn decode_in(
        &mut self,
        latents: &Tensor,
        tiling: Option<Tiling>,
        observer: &mut dyn Observer,
        sink: &mut dyn FrameSink,
    ) -> Result<()> {
        let vae = match self.vae.take() {
            Some(vae) => vae,
            None => self.vae(observer)?,
        };
        let (colors, overlay) = (self.colors.take(), self.overlay.take());
        let with = Decoding { dtype: self.precision.vae, colors, overlay };
        decode((&Tiled::new(&vae, tiling), &self.stop), latents, with, observer, sink)
    }
}

/// A request that can be met, with everything that the run needs beside weights.
#[derive(Debug)]
pub struct Prepared {
    /// The request, completed: nothing is left to the model but the seed, and inputs have their hashes.
    pub request: Request,
    /// Width of the frames in pixels.
    pub width: usize,
    /// Height of the frames in pixels.
    pub height: usize,
    /// Number of frames.
    pub frames: usize,
    /// The frames that the clip starts from, in its size; noise if `None`.
    pub source: Option<SourceFrames>,
    /// How many frames' latents are sampled from the source.
    sampled: usize,
    /// 1 where latents are made and 0 where those of the source are kept, `(1, frames, 1, height, width)` in bytes; all
    /// are made if `None`.
    pub mask: Option<Tensor>,
    /// What is put over decoded frames, should there be anything.
    pub overlay: Option<Arc<Overlay>>,
    /// The images of every control, in the clip's size.
    pub hints: Vec<Hint>,
    /// The images of every IP-Adapter, and how they are used.
    pub adapter_images: Vec<AdapterImages>,
    /// The noise schedule.
    pub schedule: NoiseSchedule,
    /// Timesteps and noise levels that the sampler visits.
    pub plan: Plan,
    /// The same of each of FreeInit's iterations, should there be any.
    pub iterations: Vec<Plan>,
    /// The context windows, should there be any.
    pub windows: Option<WindowPlan>,
    /// Perturbed-attention guidance, should there be any.
    pub perturbed: Option<Perturbed>,
    /// Tiles of the autoencoder, should there be any.
    pub tiling: Option<Tiling>,
    /// How guidance is computed, should there be any.
    pub guidance: Guidance,
    /// Memory that the run needs.
    pub memory: MemoryPlan,
    /// What is probably not meant, a line each; the observer hears of it when sampling begins.
    pub warnings: Vec<String>,
    /// The run at a smaller size whose clip this one starts from, should there be one.
    pub first: Option<Box<Self>>,
    latents: Option<Tensor>,
    noise: Vec<Tensor>,
    hint_noise: BTreeMap<String, Tensor>,
    source_noise: Option<Tensor>,
}

/// Unit noise, `(1, frames, channels, height, width)` in f32.
fn first_latents(
    prepared: &Prepared,
    noise: &mut Noise,
    models: &Models,
    device: &Device,
) -> Result<Tensor> {
    let factor = models.factor();
    let (height, width) = (prepared.height / factor, prepared.width / factor);
    match &prepared.latents {
        Some(latents) => {
            let latents = latents.to_dtype(DType::F32)?.to_device(device)?;
            Ok(latents.transpose(1, 2)?.contiguous()?)
        }
        None => {
            let (frames, channels) = (prepared.frames, models.latent_channels());
            let kind = prepared.request.sampling.noise;
            let windows = prepared.windows.map_or((frames, frames), |w| (w.length(), w.hop()));
            noise.clip(kind, (1, frames, channels, height, width), windows, device)
        }
    }
}

/// How latents become frames.
struct Decoding {
    dtype: DType,
    /// The mean colour to which each frame is moved.
    colors: Option<HsvMean>,
    /// What is put over the frames then.
    overlay: Option<Arc<Overlay>>,
}

/// Decodes a few frames at a time into the sink.
fn decode(
    (vae, stop): (&dyn Decode, &Stop),
    latents: &Tensor,
    Decoding { dtype, colors, overlay }: Decoding,
    observer: &mut dyn Observer,
    sink: &mut dyn FrameSink,
) -> Result<()> {
    /// As many latents are decoded at once as one frame of 512×512 has.
    const AT_ONCE: usize = 64 * 64;
    let (_, frames, _, height, width) = latents.dims5()?;
    let step = (AT_ONCE / (height * width)).max(1);
    let mut kept = Vec::new();
    for start in (0..frames).step_by(step) {
        let count = step.min(frames - start);
        let z = latents.narrow(1, start, count)?.squeeze(0)?.to_dtype(dtype)?;
        let images = vae.decode(&z, count, stop)?.to_dtype(DType::F32)?.affine(0.5, 0.5)?;
        let images = images.clamp(0f32, 1f32)?.to_device(&Device::Cpu)?; // (frames, 3, height, width)
        let to_image = if colors.is_some() { to_rgb_cut } else { to_rgb };
        let each = (0..images.dim(0)?).map(|i| to_image(&images.get(i)?));
        for (i, frame) in each.enumerate() {
            let (mut frame, number) = (frame?, start + i);
            let mut is_changed = false;
            if let Some(mean) = colors {
                stop.check()?;
                mean.apply(&mut frame);
                is_changed = true;
            }
            is_changed |= overlay.as_ref().is_some_and(|over| over.apply(number, &mut frame));
            sink.frame(&frame)?;
            observer.event(Event::Decode { frame: number + 1, frames })?;
            if observer.wants_tensors() {
                let own = || from_rgb(std::slice::from_ref(&frame), &Device::Cpu);
                kept.push(if is_changed { own()? } else { images.narrow(0, i, 1)? });
            }
        }
    }
    record(observer, "frames", || Ok(Tensor::cat(&kept, 0)?))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `(batch, frames, channels, ..)` to the layout of files.
fn channels_first(x: &Tensor) -> Result<Tensor> {
    Ok(x.transpose(1, 2)?.contiguous()?.to_device(&Device::Cpu)?)
}

fn frames_first(noise: &[Tensor]) -> Result<Vec<Tensor>> {
    noise.iter().map(|x| Ok(x.transpose(1, 2)?.contiguous()?)).collect()
}
