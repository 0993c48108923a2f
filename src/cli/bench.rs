//! `animatelcm bench`: how fast, and in how much memory.
//!
//! Whole clips are made, and their events timed: what is measured is what `generate` does, loading and encoding of
//! files aside. The device is waited for before every reading of the clock.

mod process;
mod report;
mod summary;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use clap::{Args, ValueEnum};

use self::process::{Command, peak, reset_peak};
use self::report::{Part, Report, Settings, Shares, Versions};
use self::summary::Summary;
use super::flags::{ModelFlags, Seed, at_least, control};
use super::{generate, print, to_json, tune};
use crate::Quantize;
use crate::device::Precision;
use crate::job::{self, Names};
use crate::kernels::{self, Weights, clock};
use crate::library::{Base, ControlFile, Files, Motion, Part as Network, Preset};
use crate::media::{FrameSink, RgbImage};
use crate::pipeline::{Event, Inputs, Pipeline, Prepared, Residency};
use crate::request::{Control, Job, Source};
use crate::{Error, Result, Stop};

/// The arguments of `animatelcm bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    models: ModelFlags,
    /// Random weights of a published model's sizes.
    ///
    /// No files are read.
    #[arg(long, value_name = "sd15", help_heading = "Models")]
    #[arg(conflicts_with_all = ["model", "model_config", "checkpoint", "vae", "lcm_lora", "lora"])]
    random_weights: Option<Preset>,

    /// Width in pixels [default: the model's own].
    #[arg(short = 'W', long, value_name = "PIXELS", help_heading = "Clip", value_parser = at_least::<8>)]
    width: Option<usize>,
    /// Height in pixels [default: the model's own].
    #[arg(short = 'H', long, value_name = "PIXELS", help_heading = "Clip", value_parser = at_least::<8>)]
    height: Option<usize>,
    /// Number of frames [default: 16].
    #[arg(short, long, value_name = "N", help_heading = "Clip", value_parser = at_least::<1>)]
    frames: Option<usize>,
    /// Denoising steps; also 1,2,4,8 [default: 4].
    ///
    /// Several numbers are measured one after another.
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = at_least::<1>)]
    #[arg(help_heading = "Clip")]
    steps: Vec<usize>,
    /// The sampler, as in `generate` [default: lcm].
    #[arg(long, value_name = "NAME", aliases = ["sampling-method", "sampler-name"])]
    #[arg(help_heading = "Clip")]
    sampler: Option<String>,
    /// Guidance; none at 1 or below [default: 1].
    #[arg(long, value_name = "SCALE", help_heading = "Clip")]
    cfg_scale: Option<f64>,
    /// The seed of the clips; -1 for a random one [default: 0].
    #[arg(short, long, value_name = "N", help_heading = "Clip", hide_short_help = true)]
    seed: Option<Seed>,
    /// An image that the clips start from.
    #[arg(long, value_name = "FILE", alias = "init-img", conflicts_with = "video")]
    #[arg(help_heading = "Source", hide_short_help = true)]
    image: Option<String>,
    /// A video that the clips start from.
    #[arg(long, value_name = "FILE|DIR", help_heading = "Source", hide_short_help = true)]
    video: Option<String>,
    /// Share of the steps that are made, as in `generate` [default: 0.8; with AnimateLCM-I2V noise alone].
    #[arg(long, value_name = "SHARE", help_heading = "Source", hide_short_help = true)]
    strength: Option<f64>,
    /// A network beside the UNet, as in `generate`; beside random weights FILE is controlnet, sparsectrl-rgb,
    /// sparsectrl-scribble, t2i-adapter or t2i-adapter-light. Repeatable.
    #[arg(long, value_name = "NAME=HINT,model=FILE,...", value_parser = control)]
    #[arg(help_heading = "Control", hide_short_help = true)]
    control: Vec<Control>,

    /// Clips that are timed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least::<1>, help_heading = "Measuring")]
    repeats: usize,
    /// Clips that are made first and not timed.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        help_heading = "Measuring",
        hide_short_help = true
    )]
    warmup: usize,
    /// Do not time a fresh process from its start to its first finished clip.
    #[arg(long, help_heading = "Measuring", hide_short_help = true)]
    no_cold_start: bool,
    /// Threads on the CPU [default: RAYON_NUM_THREADS, else one for each processor].
    #[arg(long, value_name = "N", value_parser = thread_count)]
    #[arg(help_heading = "Measuring", hide_short_help = true)]
    threads: Option<usize>,
    /// Format of the report.
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        default_value = "table",
        help_heading = "Reporting"
    )]
    format: Format,
    /// The same as --format json.
    #[arg(long, conflicts_with = "format", help_heading = "Reporting", hide_short_help = true)]
    json: bool,
    /// Hide progress.
    #[arg(short, long, help_heading = "Reporting", hide_short_help = true)]
    quiet: bool,
}

/// Formats of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table for the terminal.
    Table,
    /// An object; a list of them for several numbers of steps.
    Json,
    /// A line for each number of steps, seconds and bytes.
    Csv,
    /// A table for documents.
    Markdown,
}

impl BenchArgs {
    /// The number of threads that was asked for.
    pub(super) fn threads(&self) -> Option<usize> {
        self.threads
    }

    fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }
}

fn thread_count(text: &str) -> std::result::Result<usize, String> {
    /// More than any processor has, and less than a system refuses.
    const MOST: usize = 1024;
    match at_least::<1>(text)? {
        n if n > MOST => Err(format!("must be at most {MOST}")),
        n => Ok(n),
    }
}

pub(super) fn run(args: &BenchArgs, stop: &Stop) -> Result<()> {
    let reports = measure(args, stop)?;
    print(&match (args.format(), reports.as_slice()) {
        (Format::Json, [only]) => to_json(only)?,
        (Format::Json, all) => to_json(&all)?,
        (Format::Csv, all) => report::csv(all),
        (Format::Markdown, all) => report::markdown(all),
        (Format::Table, [only]) => only.table(),
        (Format::Table, all) => report::sweep(all),
    })
}

/// Measures every number of steps with the same networks in memory.
fn measure(args: &BenchArgs, stop: &Stop) -> Result<Vec<Report>> {
    let names = Names::new(args.models.offline)?.with_folders(&args.models.models_dir)?;
    let job = job(args, &names)?;
    let jobs: Vec<Job> = if args.steps.is_empty() {
        vec![job]
    } else {
        let with = |steps: &usize| {
            let mut job = job.clone();
            job.request.sampling.steps = *steps;
            job
        };
        args.steps.iter().map(with).collect()
    };
    let first = jobs.first().ok_or_else(|| Error::request("steps", "must be at least 1"))?;
    jobs.iter().try_for_each(|job| job.request.validate())?;
    let notes = Notes { quiet: args.quiet, stop };
    notes.say("opening");
    let inputs = Inputs::read(&first.request, stop)?;
    let files = files(args, first, &names)?;
    let mut pipeline = job::open_files(&first.models, &files, Residency::KeepAll, stop)?;
    // What cannot be made is found before anything is measured.
    let prepared: Vec<Prepared> =
        jobs.iter().map(|job| pipeline.prepare(&job.request, &inputs)).collect::<Result<_>>()?;
    let warnings: BTreeSet<&String> = prepared.iter().flat_map(|p| &p.warnings).collect();
    for warning in warnings {
        notes.say(&format!("warning: {warning}"));
    }

    // First, while this process has nothing in memory yet.
    let mut cold_starts = vec![None; jobs.len()];
    if args.random_weights.is_none() && !args.no_cold_start {
        for (job, seconds) in jobs.iter().zip(&mut cold_starts) {
            notes.say(&format!("cold start{}", of_sweep(&jobs, job)));
            let (offline, models_dir) = (args.models.offline, &args.models.models_dir);
            let command = Command { job, offline, models_dir, stop };
            *seconds = Some(command.seconds_to_first_clip()?);
        }
    }

    notes.say("loading");
    let started = Instant::now();
    pipeline.load(&mut |_: Event| notes.go_on())?;
    if first.request.source.is_some() {
        pipeline.load_encoder(&mut |_: Event| notes.go_on())?;
    }
    pipeline.device().synchronize()?;
    tune::keep_freed_memory();
    let load = started.elapsed().as_secs_f64();

    let limit = limit(pipeline.device(), pipeline.precision())?;
    let mut reports = Vec::with_capacity(jobs.len());
    for ((job, prepared), cold_start) in jobs.iter().zip(&prepared).zip(cold_starts) {
        let mut times = Times::default();
        let of = of_sweep(&jobs, job);
        for i in 0..args.warmup {
            notes.say(&format!("warm-up {}/{}{of}", i + 1, args.warmup));
            Stopwatch::new(pipeline.device(), &notes).clip(&mut pipeline, prepared)?;
        }
        for i in 0..args.repeats {
            notes.say(&format!("clip {}/{}{of}", i + 1, args.repeats));
            let watch = Stopwatch::new(pipeline.device(), &notes);
            times.add(watch.clip(&mut pipeline, prepared)?);
        }
        let setting = Setting { args, job, prepared, cold_start, load, limit };
        reports.push(setting.report(&pipeline, &times));
    }
    Ok(reports)
}

/// Label of a run in a sweep, with its number of steps; empty for a single run.
fn of_sweep(jobs: &[Job], job: &Job) -> String {
    match (jobs.len(), job.request.sampling.steps) {
        (1, _) => String::new(),
        (_, 1) => ", 1 step".into(),
        (_, steps) => format!(", {steps} steps"),
    }
}

/// One run of a sweep: its job, with what is known before its clips are timed.
struct Setting<'a> {
    args: &'a BenchArgs,
    job: &'a Job,
    prepared: &'a Prepared,
    cold_start: Option<f64>,
    load: f64,
    limit: Option<f64>,
}

impl Setting<'_> {
    fn report(&self, pipeline: &Pipeline, times: &Times) -> Report {
        let Self { args, job, prepared, .. } = self;
        let precision = pipeline.precision();
        let models = pipeline.models();
        let request = &prepared.request;
        let encodes = request.source.is_some()
            || models.side_networks().any(|(_, config)| config.sees_latents());
        let bytes = |part: Network| models.bytes(&part, precision);
        let mut encoders = if encodes { bytes(Network::VaeEncoder) } else { 0 };
        if models.i2v_encoder_config().is_some() {
            encoders += bytes(Network::I2vEncoder);
        }
        let plain = Precision { quantize: Quantize::None, ..precision };
        let peaks = times.peaks;
        let steps = prepared.plan.steps.len().max(1) as u64;
        let part = |times: &[f64], flops, peak| Part::new(Summary::of(times), flops, peak);
        let encoded = |times: &[f64], flops, peak| {
            (!times.is_empty()).then(|| Part::new(Summary::of(times), flops, peak))
        };
        let on_cpu = pipeline.device().is_cpu();
        let shares =
            |kinds, seconds: &[f64]| on_cpu.then(|| Shares::new(kinds, seconds.iter().sum()));
        Report {
            settings: Settings {
                model: match (args.random_weights, &job.models.model) {
                    (Some(preset), _) => format!("random weights, {preset}"),
                    (None, Some(model)) => model.clone(),
                    (None, None) => "embedded".into(),
                },
                width: prepared.width,
                height: prepared.height,
                frames: request.frames(),
                steps: request.sampling.steps,
                cfg_scale: request.sampling.cfg_scale,
                sampler: request.sampling.sampler.to_string(),
                seed: request.sampling.seed.unwrap_or_default(),
                source: request.source.as_ref().map(|source| source.file().to_owned()),
                strength: request.source.as_ref().and_then(|source| source.strength),
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
            limit_gflop_per_second: self.limit,
            parameters: report::Parameters {
                text: bytes(Network::Text) / precision.text.size_in_bytes() as u64,
                unet: models.bytes(&Network::UNet, plain) / precision.unet.size_in_bytes() as u64,
                vae: bytes(Network::Vae) / precision.vae.size_in_bytes() as u64,
            },
            cold_start_seconds: self.cold_start,
            load_seconds: self.load,
            text_encode: part(&times.text, times.work.text, peaks.text),
            source_encode: encoded(&times.source, times.work.source, peaks.source),
            i2v_encode: encoded(&times.i2v, times.work.i2v, peaks.i2v),
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
            // A run drops the text encoder and those of the source before the rest is loaded.
            estimated_memory_bytes: prepared.memory.total(prepared.guidance)
                + bytes(Network::Text)
                + encoders,
        }
    }
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
    let seed = args.seed.map_or(0, |seed| seed.number().unwrap_or_else(generate::random_seed));
    request.sampling.seed = Some(seed);
    request.size.width = args.width.or(request.size.width);
    request.size.height = args.height.or(request.size.height);
    request.size.frames = args.frames.or(request.size.frames);
    if let Some(name) = &args.sampler {
        generate::sampler(name, request)?;
    }
    request.sampling.cfg_scale = args.cfg_scale.unwrap_or(request.sampling.cfg_scale);
    if request.is_guided() {
        request.prompt.negative = "blurry".into();
    }
    request.controls.clone_from(&args.control);
    let (image, video) = (args.image.clone(), args.video.clone());
    if image.is_some() || video.is_some() {
        request.source = Some(Source { image, video, ..Source::default() });
    }
    match (&mut request.source, args.strength) {
        (Some(source), Some(strength)) => source.strength = Some(strength),
        (None, Some(_)) => {
            let reason = "there is no image or video to start from";
            return Err(
                Error::request("strength", reason).with_hint("--image FILE or --video FILE")
            );
        }
        (_, None) => {}
    }
    Ok(job)
}

fn files(args: &BenchArgs, job: &Job, names: &Names) -> Result<Files> {
    let (spec, request) = (&job.models, &job.request);
    let Some(preset) = args.random_weights else {
        let controls = job::controls(request, names)?;
        let depth = job::depth(request, spec, names)?;
        return Ok(Files { controls, depth, ..job::files(spec, names)? });
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
        Ok(self.stop.check()?)
    }
}

/// Seconds of one clip.
#[derive(Debug, Default)]
struct ClipTimes {
    text: f64,
    /// The source by the autoencoder's encoder, and by AnimateLCM-I2V's; `None` without.
    source: Option<f64>,
    i2v: Option<f64>,
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
    source: u64,
    i2v: u64,
    steps: u64,
    decode: u64,
}

impl Work {
    fn whole(self) -> u64 {
        [self.text, self.source, self.i2v, self.steps, self.decode]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// Peak memory of each part of a clip, in bytes, where the system tells it.
#[derive(Clone, Copy, Debug, Default)]
struct Peaks {
    text: Option<u64>,
    source: Option<u64>,
    i2v: Option<u64>,
    steps: Option<u64>,
    decode: Option<u64>,
}

impl Peaks {
    fn or_higher(self, other: Self) -> Self {
        Self {
            text: self.text.max(other.text),
            source: self.source.max(other.source),
            i2v: self.i2v.max(other.i2v),
            steps: self.steps.max(other.steps),
            decode: self.decode.max(other.decode),
        }
    }

    fn whole(self) -> Option<u64> {
        self.text.max(self.source).max(self.i2v).max(self.steps).max(self.decode)
    }
}

/// Seconds of all clips.
#[derive(Debug, Default)]
struct Times {
    text: Vec<f64>,
    source: Vec<f64>,
    i2v: Vec<f64>,
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
        self.source.extend(clip.source);
        self.i2v.extend(clip.i2v);
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
        let mut observer = |event: Event| {
            match event {
                // What is not the source's is counted with the text: hints and images of IP-Adapters.
                Event::Ready | Event::Source { frame: 0, .. } => {
                    times.text += lap()?;
                    times.peaks.text = times.peaks.text.max(peak());
                    reset_peak();
                    times.work.text += clock::stop().flops();
                    clock::start();
                }
                Event::Source { part, frame, frames } if frame == frames => {
                    let (work, peaks) = (&mut times.work, &mut times.peaks);
                    let (seconds, flops, highest) = match part {
                        "i2v-encoder" => (&mut times.i2v, &mut work.i2v, &mut peaks.i2v),
                        "vae-encoder" => (&mut times.source, &mut work.source, &mut peaks.source),
                        // A hint's depth.
                        _ => return self.notes.go_on(),
                    };
                    *seconds = Some(lap()?);
                    *highest = peak();
                    reset_peak();
                    *flops = clock::stop().flops();
                    clock::start();
                }
                Event::Step { step, steps, .. } => {
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
