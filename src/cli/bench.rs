//! `animatelcm bench`: how fast, and in how much memory.
//!
//! Whole clips are made, and their events timed: what is measured is what `generate` does, loading and encoding of
//! files aside. The device is waited for before every reading of the clock.

mod process;
mod report;
mod summary;

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use clap::Args;

use self::process::{Command, peak, reset_peak};
use self::report::{Part, Report, Settings, Shares, Versions};
use self::summary::Summary;
use super::flags::{ModelFlags, control};
use super::{generate, print, to_json, tune};
use crate::device::{Precision, Quantize};
use crate::job::{self, Names};
use crate::kernels::{self, Weights, clock};
use crate::library::{Base, ControlFile, Files, Motion, Part as Network, Preset};
use crate::media::{FrameSink, RgbImage};
use crate::pipeline::{Event, Inputs, Pipeline, Prepared, Residency};
use crate::request::{Control, Job};
use crate::{Result, Stop};

/// The arguments of `animatelcm bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    models: ModelFlags,
    /// No files: the sizes of a published model, with random weights.
    #[arg(long, value_name = "sd15", help_heading = "Models")]
    #[arg(conflicts_with_all = ["model", "model_config", "checkpoint", "vae", "lcm_lora", "lora"])]
    random_weights: Option<Preset>,

    /// Width in pixels [default: the model's own].
    #[arg(short = 'W', long, value_name = "PIXELS", help_heading = "Clip")]
    width: Option<usize>,
    /// Height in pixels [default: the model's own].
    #[arg(short = 'H', long, value_name = "PIXELS", help_heading = "Clip")]
    height: Option<usize>,
    /// Number of frames [default: 16].
    #[arg(short, long, value_name = "N", help_heading = "Clip")]
    frames: Option<usize>,
    /// Denoising steps [default: 4].
    #[arg(long, value_name = "N", help_heading = "Clip")]
    steps: Option<usize>,
    /// Classifier-free guidance; none at 1 or below [default: 1].
    #[arg(long, value_name = "SCALE", help_heading = "Clip")]
    cfg_scale: Option<f64>,
    /// A network beside the UNet, as in `generate`; beside random weights FILE is controlnet, sparsectrl-rgb,
    /// sparsectrl-scribble, t2i-adapter or t2i-adapter-light. Repeatable.
    #[arg(long, value_name = "NAME=HINT,model=FILE,...", value_parser = control, help_heading = "Control")]
    control: Vec<Control>,

    /// Clips that are timed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one, help_heading = "Measuring")]
    repeats: usize,
    /// Clips that are made first and not timed.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Measuring")]
    warmup: usize,
    /// Do not time a fresh process from its start to its first finished clip.
    #[arg(long, help_heading = "Measuring")]
    no_cold_start: bool,
    /// Print JSON instead of a table.
    #[arg(long, help_heading = "Reporting")]
    json: bool,
    /// Say nothing on the way.
    #[arg(short, long, help_heading = "Reporting")]
    quiet: bool,
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(error) => Err(format!("{error}")),
    }
}

pub(super) fn run(args: &BenchArgs, stop: &Stop) -> Result<()> {
    let report = measure(args, stop)?;
    print(&if args.json { to_json(&report)? } else { report.table() })
}

fn measure(args: &BenchArgs, stop: &Stop) -> Result<Report> {
    let names = Names::new(args.models.offline)?;
    let job = job(args, &names)?;
    job.request.validate()?;
    let inputs = Inputs::read(&job.request, stop)?;
    let files = files(args, &job, &names)?;
    let mut pipeline = job::open_files(&job.models, &files, Residency::KeepAll, stop)?;
    let precision = pipeline.precision();
    let prepared = pipeline.prepare(&job.request, &inputs)?;
    let size = (prepared.width, prepared.height);
    let notes = Notes { quiet: args.quiet, stop };

    // First, while this process has nothing in memory yet.
    let cold_start = if args.random_weights.is_some() || args.no_cold_start {
        None
    } else {
        notes.say("cold start");
        let command = Command { job: &job, offline: args.models.offline, stop };
        Some(command.seconds_to_first_clip()?)
    };

    notes.say("loading");
    let started = Instant::now();
    pipeline.load(&mut |_: Event| notes.go_on())?;
    pipeline.device().synchronize()?;
    tune::keep_freed_memory();
    let load = started.elapsed().as_secs_f64();

    let mut times = Times::default();
    for i in 0..args.warmup {
        notes.say(&format!("warm-up {}/{}", i + 1, args.warmup));
        Stopwatch::new(pipeline.device(), &notes).clip(&mut pipeline, &prepared)?;
    }
    for i in 0..args.repeats {
        notes.say(&format!("clip {}/{}", i + 1, args.repeats));
        let watch = Stopwatch::new(pipeline.device(), &notes);
        times.add(watch.clip(&mut pipeline, &prepared)?);
    }

    let models = pipeline.models();
    let request = &prepared.request;
    let encodes = models.side_networks().any(|(_, config)| config.sees_latents());
    let bytes = |part: Network| models.bytes(&part, precision);
    let encoder = if encodes { bytes(Network::VaeEncoder) } else { 0 };
    let plain = Precision { quantize: Quantize::None, ..precision };
    let peaks = times.peaks;
    let steps = prepared.plan.steps.len().max(1) as u64;
    let part = |times: &[f64], flops, peak| Part::new(Summary::of(times), flops, peak);
    let on_cpu = pipeline.device().is_cpu();
    let shares = |kinds, seconds: &[f64]| on_cpu.then(|| Shares::new(kinds, seconds.iter().sum()));
    Ok(Report {
        settings: Settings {
            model: match (args.random_weights, &job.models.model) {
                (Some(preset), _) => format!("random weights, {preset}"),
                (None, Some(model)) => model.clone(),
                (None, None) => "embedded".into(),
            },
            width: size.0,
            height: size.1,
            frames: request.size.frames,
            steps: request.sampling.steps,
            cfg_scale: request.sampling.cfg_scale,
            sampler: request.sampling.sampler.to_string(),
            controls: request.controls.iter().map(|control| control.model.clone()).collect(),
            dtype: precision.unet.as_str(),
            vae_dtype: precision.vae.as_str(),
            quantize: precision.quantize,
            kernels: job.models.kernels,
            repeats: args.repeats,
            warmup: args.warmup,
            threads: rayon::current_num_threads(),
        },
        versions: Versions::current(),
        device: report::device_name(pipeline.device()),
        limit_gflop_per_second: limit(pipeline.device(), precision)?,
        parameters: report::Parameters {
            text: bytes(Network::Text) / precision.text.size_in_bytes() as u64,
            unet: models.bytes(&Network::UNet, plain) / precision.unet.size_in_bytes() as u64,
            vae: bytes(Network::Vae) / precision.vae.size_in_bytes() as u64,
        },
        cold_start_seconds: cold_start,
        load_seconds: load,
        text_encode: part(&times.text, times.work.text, peaks.text),
        unet_step: Part {
            shares: shares(&times.step_kinds, &times.steps),
            ..part(&times.steps, times.work.steps / steps, peaks.steps)
        },
        decode: Part {
            shares: shares(&times.decode_kinds, &times.decode),
            ..part(&times.decode, times.work.decode, peaks.decode)
        },
        clip: part(&times.clip, times.work.whole(), peaks.whole()),
        peak_memory_bytes: peaks.whole(),
        // A run drops text encoder and the autoencoder's encoder before the rest is loaded.
        estimated_memory_bytes: prepared.memory.total(prepared.guidance)
            + bytes(Network::Text)
            + encoder,
    })
}

/// Measures the CPU's peak performance in GFLOP/s: the fastest of several matrix products that fit the caches.
fn limit(device: &Device, precision: Precision) -> Result<Option<f64>> {
    const SIDE: usize = 768;
    if !device.is_cpu() {
        return Ok(None);
    }
    let square = Tensor::ones((SIDE, SIDE), precision.unet, device)?;
    let weights = Weights::quantized(&square, None, precision.quantize)?;
    let mut fastest = f64::INFINITY;
    for _ in 0..20 {
        let started = Instant::now();
        kernels::linear(&square, &weights, None)?;
        fastest = fastest.min(started.elapsed().as_secs_f64());
    }
    Ok(Some(2.0 * (SIDE * SIDE * SIDE) as f64 / 1e9 / fastest))
}

/// The job that `generate` would run for these flags.
fn job(args: &BenchArgs, names: &Names) -> Result<Job> {
    let mut job = Job::default();
    generate::spec(&args.models, &mut job.models);
    job::apply_defaults(names, &job.models, &mut job.request)?;
    let request = &mut job.request;
    request.prompt.text = "a corgi walking in the park, 4k".into();
    request.prompt.negative = "blurry".into();
    request.sampling.seed = Some(0);
    request.size.width = args.width.or(request.size.width);
    request.size.height = args.height.or(request.size.height);
    request.size.frames = args.frames.unwrap_or(request.size.frames);
    request.sampling.steps = args.steps.unwrap_or(request.sampling.steps);
    request.sampling.cfg_scale = args.cfg_scale.unwrap_or(request.sampling.cfg_scale);
    request.controls.clone_from(&args.control);
    Ok(job)
}

fn files(args: &BenchArgs, job: &Job, names: &Names) -> Result<Files> {
    let (spec, request) = (&job.models, &job.request);
    let Some(preset) = args.random_weights else {
        let controls = job::controls(request, names)?;
        return Ok(Files { controls, ..job::files(spec, names)? });
    };
    let kind = |name: &str| ControlFile { name: name.to_owned(), source: name.into() };
    let controls = job::networks(request).into_iter().map(kind).collect();
    let motion = match spec.motion.as_deref() {
        None => Motion::Base,
        Some("none") => Motion::None,
        Some(file) => Motion::File(file.into()),
    };
    Ok(Files { motion, controls, ..Files::new(Base::Random(preset)) })
}

/// Lines on stderr, and the ear for Ctrl-C.
struct Notes<'a> {
    quiet: bool,
    stop: &'a Stop,
}

impl Notes<'_> {
    fn say(&self, text: &str) {
        if !self.quiet {
            super::terminal::line(text);
        }
    }

    fn go_on(&self) -> Result<()> {
        self.stop.check()
    }
}

/// Seconds of one clip.
#[derive(Debug, Default)]
struct ClipTimes {
    text: f64,
    steps: Vec<f64>,
    decode: f64,
    clip: f64,
    peaks: Peaks,
    work: Work,
    /// Kernel times of all steps.
    step_kinds: Kinds,
    decode_kinds: Kinds,
}

/// Seconds of each kind of operation.
type Kinds = [Duration; clock::Kind::ALL.len()];

/// Floating-point operations of each part of a clip.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    text: u64,
    steps: u64,
    decode: u64,
}

impl Work {
    fn whole(self) -> u64 {
        self.text.saturating_add(self.steps).saturating_add(self.decode)
    }
}

/// Peak memory of each part of a clip, in bytes, where the system tells it.
#[derive(Clone, Copy, Debug, Default)]
struct Peaks {
    text: Option<u64>,
    steps: Option<u64>,
    decode: Option<u64>,
}

impl Peaks {
    fn or_higher(self, other: Self) -> Self {
        Self {
            text: self.text.max(other.text),
            steps: self.steps.max(other.steps),
            decode: self.decode.max(other.decode),
        }
    }

    fn whole(self) -> Option<u64> {
        self.text.max(self.steps).max(self.decode)
    }
}

/// Seconds of all clips.
#[derive(Debug, Default)]
struct Times {
    text: Vec<f64>,
    steps: Vec<f64>,
    decode: Vec<f64>,
    clip: Vec<f64>,
    peaks: Peaks,
    /// Operations of the last clip; all clips take the same.
    work: Work,
    step_kinds: Kinds,
    decode_kinds: Kinds,
}

impl Times {
    fn add(&mut self, clip: ClipTimes) {
        self.text.push(clip.text);
        self.steps.extend(clip.steps);
        self.decode.push(clip.decode);
        self.clip.push(clip.clip);
        self.peaks = self.peaks.or_higher(clip.peaks);
        self.work = clip.work;
        let add = |sum: &mut Kinds, times: Kinds| {
            sum.iter_mut().zip(times).for_each(|(sum, time)| *sum += time);
        };
        add(&mut self.step_kinds, clip.step_kinds);
        add(&mut self.decode_kinds, clip.decode_kinds);
    }
}

/// Takes the times of one clip from its events.
struct Stopwatch<'a> {
    device: Device,
    notes: &'a Notes<'a>,
}

impl<'a> Stopwatch<'a> {
    fn new(device: &Device, notes: &'a Notes<'a>) -> Self {
        Self { device: device.clone(), notes }
    }

    /// Makes a clip that nobody sees.
    fn clip(&self, pipeline: &mut Pipeline, prepared: &Prepared) -> Result<ClipTimes> {
        let mut times = ClipTimes::default();
        self.device.synchronize()?;
        reset_peak();
        clock::start();
        let started = Instant::now();
        let mut mark = started;
        let mut lap = || -> Result<f64> {
            // Steps are only queued on a GPU: a step is over when the device says so.
            self.device.synchronize()?;
            let now = Instant::now();
            let seconds = (now - mark).as_secs_f64();
            mark = now;
            Ok(seconds)
        };
        let steps = prepared.request.sampling.steps;
        let mut observer = |event: Event| {
            match event {
                Event::Ready => {
                    times.text = lap()?;
                    times.peaks.text = peak();
                    reset_peak();
                    times.work.text = clock::stop().flops();
                    clock::start();
                }
                Event::Step { step, .. } => {
                    times.steps.push(lap()?);
                    if step == steps {
                        let tally = clock::stop();
                        times.step_kinds = tally.times;
                        times.work.steps = tally.flops();
                        times.peaks.steps = peak();
                        reset_peak();
                        clock::start();
                    }
                }
                Event::Decode { .. } => times.decode += lap()?,
                _ => {}
            }
            self.notes.go_on()
        };
        pipeline.generate(prepared, &mut observer, &mut Nowhere)?;
        let tally = clock::stop();
        times.decode_kinds = tally.times;
        times.work.decode = tally.flops();
        times.peaks.decode = peak();
        times.clip = started.elapsed().as_secs_f64();
        Ok(times)
    }
}

/// Takes frames and forgets them.
struct Nowhere;

impl FrameSink for Nowhere {
    fn frame(&mut self, _: &RgbImage) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
