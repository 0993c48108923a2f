//! `animatelcm generate`: what was typed becomes a job, the job a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use candle_core::Device;
use serde_json::json;

use super::args::{ClipFlags, GenerateArgs, ModelFlags, OutputFlags, Reporting, SamplingFlags};
use super::controls;
use super::parameters::Made;
use super::progress::Progress;
use super::record::{Hashes, check_weights, device_name, metadata, program};
use super::resolve::{self, Names};
use super::{embeddings, import, lora_tags, print, tensors, to_json, trust};
use crate::device::Precision;
use crate::media::{FrameSink, RgbImage};
use crate::output::{self, ClipInfo, Existing, Metadata};
use crate::pipeline::load::Models;
use crate::pipeline::request::{FileRecord, Job, Request, Spec};
use crate::pipeline::{Event, Listener, Pipeline, Prepared, Residency};
use crate::sampler::SamplerKind;
use crate::{Error, Result, Stop};

pub(super) fn run(args: &GenerateArgs, stop: &Stop) -> Result<()> {
    let names = Names::new(args.models.offline)?;
    let (mut job, notes) = job(args, &names, stop)?;
    if args.dump_request {
        return print(&to_json(&job)?);
    }
    let mut progress = Progress::new(&args.reporting, stop);
    for message in notes {
        progress.event(Event::Warning { message })?;
    }
    let seed = job.request.seed.unwrap_or_else(random_seed);
    job.request.seed = Some(seed);
    let OutputFlags { overwrite, no_metadata, tensors_out, .. } = &args.output;
    let existing = if *overwrite { Existing::Replace } else { Existing::Refuse };
    let clips = clips(args, &job.request, seed)?;
    if clips.len() > 1 {
        // A name that is taken is found before the first clip is made.
        job.request.validate()?;
        for (_, path) in &clips {
            output::check(path, existing)?;
        }
    }
    for (seed, path) in &clips {
        let mut job = job.clone();
        job.request.seed = Some(*seed);
        let target = Target {
            path,
            existing,
            has_metadata: !no_metadata,
            tensors: tensors_out.as_deref(),
            is_one_of_many: clips.len() > 1,
        };
        make(job, &names, &target, &args.reporting, stop)?;
    }
    Ok(())
}

/// The seed and the file of every clip.
fn clips(args: &GenerateArgs, request: &Request, seed: u64) -> Result<Vec<(u64, PathBuf)>> {
    let count = args.output.count.unwrap_or(1);
    let wrong = |reason: &str| Err(Error::request("count", reason.to_owned()));
    if count == 0 || count > MOST_CLIPS {
        return wrong(&format!("must be from 1 to {MOST_CLIPS}, got {count}"));
    }
    let named = |seed: u64| {
        let request = Request { seed: Some(seed), ..request.clone() };
        default_name(&request)
    };
    let output = args.output.output.as_deref();
    if count == 1 {
        return Ok(vec![(seed, output.map_or_else(|| named(seed), Path::to_path_buf))]);
    }
    if output.is_some_and(|path| path.as_os_str() == "-") {
        return wrong("standard output takes one clip");
    }
    if args.output.tensors_out.is_some() {
        return wrong("--tensors-out is for one clip");
    }
    let clips = (0..count).map(|i| {
        let seed = seed.wrapping_add(i);
        let path = output.map_or_else(|| named(seed), |path| numbered(path, i + 1, count));
        (seed, path)
    });
    Ok(clips.collect())
}

/// The most clips of one run.
const MOST_CLIPS: u64 = 100_000;

/// `clip.gif` becomes `clip-01.gif`, `f_%03d.png` becomes `f_01-%03d.png`.
fn numbered(path: &Path, number: u64, count: u64) -> PathBuf {
    let digits = count.to_string().len();
    let name = path.file_name().unwrap_or_default();
    let bytes = name.as_encoded_bytes();
    let pattern = bytes.iter().position(|byte| *byte == b'%');
    let point = bytes.iter().rposition(|byte| *byte == b'.').filter(|at| *at > 0);
    // Both are ASCII, so the name may be cut there.
    let name = name.to_string_lossy();
    let (at, number) = match (pattern, point) {
        (Some(at), _) => (at, format!("{number:0digits$}-")),
        (None, at) => (at.unwrap_or(name.len()), format!("-{number:0digits$}")),
    };
    let (before, after) = name.split_at_checked(at).unwrap_or((&name, ""));
    path.with_file_name(format!("{before}{number}{after}"))
}

/// Where the clip goes.
pub(super) struct Target<'a> {
    pub(super) path: &'a Path,
    pub(super) existing: Existing,
    pub(super) has_metadata: bool,
    pub(super) tensors: Option<&'a Path>,
    /// Whether its JSON is a line among others.
    pub(super) is_one_of_many: bool,
}

/// Makes the clip of a complete job.
pub(super) fn make(
    mut job: Job,
    names: &Names,
    target: &Target<'_>,
    reporting: &Reporting,
    stop: &Stop,
) -> Result<()> {
    // Everything that can fail without a network fails before one is loaded.
    job.request.validate()?;
    let format = output::check(target.path, target.existing)?;
    if reporting.json && target.path.as_os_str() == "-" {
        let reason = "standard output is taken by the video";
        return Err(Error::request("json", reason).with_hint("--progress json tells all on stderr"));
    }
    let tensors_out = target
        .tensors
        .map(|path| tensors::check_output(path, target.existing, target.path))
        .transpose()?;
    let device = job.models.open()?;
    let precision = job.models.precision(&device)?;
    let mut files = resolve::files(&job.models, names)?;
    files.controls = resolve::controls(&job.request, names)?;
    files.ip_adapters = resolve::ip_adapters(&job.request, names)?;
    controls::check_hints(&mut job.request.controls, stop)?;
    controls::check_pictures(&mut job.request.ip_adapters, stop)?;
    let mut extra = tensors::read(&mut job, stop)?;
    extra.recorded = tensors_out.as_ref().map(|_| BTreeMap::new());
    let models = Models::open_until(&files, stop)?;
    let sources = models.sources();
    let mut progress = Progress::new(reporting, stop);
    for adapter in models.adapters() {
        progress.detail(adapter);
    }
    let pipeline = Pipeline::new(models, device, precision, Residency::OneAtATime);
    let mut pipeline = pipeline.until(stop);
    let prepared = pipeline.prepare(&job.request)?;
    // What is written down is what was used, not what was left out.
    job.request.width = Some(prepared.width);
    job.request.height = Some(prepared.height);
    job.request.beta_schedule =
        Some(job.request.betas(pipeline.models().unet_config().motion.is_some()));
    job.request.spacing = pipeline.models().spacing(&job.request)?;
    job.request.prediction = Some(pipeline.models().prediction(&job.request));
    if pipeline.models().zero_snr(&job.request) {
        job.request.zero_snr = Some(true);
    }
    let clip = clip_info(&prepared, &job.request);
    format.check_clip(&clip)?;
    if let Some(message) = output::surplus(target.path, clip.frames, target.existing)? {
        progress.event(Event::Warning { message })?;
    }
    tensors::check(&extra, latents_shape(pipeline.models(), &prepared, &job.request))?;

    let device = pipeline.device().clone();
    progress.note(&describe(&job, &prepared, &device, precision));
    // Files of gigabytes are hashed while the network runs; the result is needed at the first frame.
    let loras = files.loras.iter().map(|lora| lora.source.path().to_path_buf()).collect();
    let mut hashes = Hashes::start(sources.clone(), loras, stop)?;
    let has_motion = pipeline.models().unet_config().motion.is_some();
    job.program = Some(program(&device));
    let request = job.request.clone();
    let mut sink = Lazy {
        opened: None,
        open: || {
            let (weights, lora_hashes) = hashes.join()?;
            check_weights(&job.weights, &weights)?;
            job.weights = weights;
            let made =
                Made { files: &files, sources: &sources, lora_hashes: &lora_hashes, has_motion };
            let metadata =
                if target.has_metadata { metadata(&job, &made)? } else { Metadata::default() };
            output::open(target.path, &clip, &metadata, target.existing, stop)
        },
    };
    let result = pipeline.generate(&request, &mut extra, &mut progress, &mut sink);
    if let Err(error) = result {
        progress.finish();
        return Err(error);
    }
    stop.check()?;
    progress.encoding(format.name());
    // Both files or none: the one that has its name last is complete before the other has one.
    let kept = match (tensors_out, extra.recorded.take()) {
        (Some(place), Some(recorded)) => Some(tensors::draft(place, &recorded)?),
        _ => None,
    };
    Box::new(sink).finish()?;
    if let Some(draft) = kept {
        draft.commit()?;
    }
    progress.finish();

    let seconds = progress.seconds();
    let summary = json!({
        "event": "done",
        // A path need not be text, but JSON is.
        "path": target.path.to_string_lossy(),
        "seed": request.seed,
        "width": clip.width, "height": clip.height, "frames": clip.frames, "fps": clip.fps,
        "seconds": seconds,
        "step_seconds": progress.steps.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
        "weights": job.weights,
    });
    progress.emit(&summary);
    progress.note(&done(&progress.steps, seconds));
    if reporting.json && target.is_one_of_many {
        print(&format!("{summary}\n"))
    } else if reporting.json {
        print(&to_json(&summary)?)
    } else if target.path.as_os_str() == "-" {
        Ok(())
    } else {
        print(&format!("{}\n", target.path.display()))
    }
}

/// `(1, channels, frames, height, width)`.
fn latents_shape(models: &Models, prepared: &Prepared, request: &Request) -> [usize; 5] {
    let (width, height) = (prepared.width / models.factor(), prepared.height / models.factor());
    [1, models.latent_channels(), request.frames, height, width]
}

fn done(steps: &[Duration], seconds: f64) -> String {
    let sampling: f64 = steps.iter().map(Duration::as_secs_f64).sum();
    let rate = steps.len() as f64 / sampling.max(1e-9);
    format!("done in {seconds:.1} s, {rate:.2} steps/s")
}

/// The job that the flags mean, over a request file if there is one, over a preset's defaults if not; and what of the
/// file could not be taken over.
fn job(args: &GenerateArgs, names: &Names, stop: &Stop) -> Result<(Job, Vec<String>)> {
    let mut notes = Vec::new();
    let mut job = match &args.request {
        Some(path) => {
            let read = import::read(path, args.sampling.sampler.is_some(), stop)?;
            let named = |note: String| format!("{}: {note}", path.display());
            notes = read.notes.into_iter().map(named).collect();
            let mut job = read.job;
            if read.is_of_clip && !args.trust_paths && !args.dump_request {
                trust::check(&without_given(args, &job), stop)?;
            }
            // Hashes are a demand of clips, which a stranger may have made, on the hints and images that they name.
            job.weights.clear();
            if !read.is_of_clip || args.trust_paths {
                forget_hashes(&mut job.request);
            }
            job
        }
        None => Job::new(Spec::default(), Request::default()),
    };
    spec(&args.models, &mut job.models);
    set_some(&mut job.models.image_encoder, args.control.image_encoder.as_ref());
    if args.request.is_none() {
        resolve::apply_defaults(names, &job.models, &mut job.request)?;
    }
    request(args, &mut job.request)?;
    if let Some(folder) = &args.lora_dir {
        lora_tags::resolve(&mut job, folder)?;
    }
    if let Some(folder) = &args.embedding_dir {
        embeddings::resolve(&mut job, folder)?;
    }
    if let Some(path) = &args.output.tensors_in {
        let Some(file) = path.to_str().map(str::to_owned) else {
            let reason =
                format!("`{}` must be valid unicode, since the clip names it", path.display());
            return Err(Error::request("tensors-in", reason));
        };
        job.tensors_in = Some(FileRecord { file, sha256: None });
    }
    let has_prompt = args.prompt.is_some() || args.prompt_flag.is_some() || args.request.is_some();
    if !has_prompt && !args.dump_request {
        return Err(Error::request("prompt", "is missing")
            .with_hint("animatelcm generate \"a red circle moving right on a black background\""));
    }
    Ok((job, notes))
}

/// Takes hints and images as they are now.
fn forget_hashes(request: &mut Request) {
    for control in &mut request.controls {
        control.sha256 = None;
    }
    for adapter in &mut request.ip_adapters {
        for image in adapter.images.iter_mut().chain(&mut adapter.masks) {
            image.sha256 = None;
        }
    }
}

/// A job without what flags replace.
fn without_given(args: &GenerateArgs, job: &Job) -> Job {
    let mut job = job.clone();
    let (flags, models) = (&args.models, &mut job.models);
    for (named, is_given) in [
        (&mut models.model, flags.model.is_some()),
        (&mut models.model_config, flags.model_config.is_some()),
        (&mut models.checkpoint, flags.checkpoint.is_some()),
        (&mut models.vae, flags.vae.is_some()),
        (&mut models.motion, flags.motion.is_some()),
        (&mut models.image_encoder, args.control.image_encoder.is_some()),
    ] {
        named.take_if(|_| is_given);
    }
    models.lcm_lora.take_if(|_| flags.lcm_lora.is_some());
    if !flags.lora.is_empty() {
        models.loras.clear();
    }
    if !flags.embedding.is_empty() {
        models.embeddings.clear();
    }
    if !args.control.control.is_empty() {
        job.request.controls.clear();
    }
    if !args.control.ip_adapter.is_empty() {
        job.request.ip_adapters.clear();
    }
    job.tensors_in.take_if(|_| args.output.tensors_in.is_some());
    job
}

fn set<T: Clone>(slot: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        *slot = value.clone();
    }
}

fn set_some<T: Clone>(slot: &mut Option<T>, value: Option<&T>) {
    if value.is_some() {
        *slot = value.cloned();
    }
}

pub(super) fn spec(flags: &ModelFlags, spec: &mut Spec) {
    set_some(&mut spec.model, flags.model.as_ref());
    set_some(&mut spec.model_config, flags.model_config.as_ref());
    set_some(&mut spec.checkpoint, flags.checkpoint.as_ref());
    set_some(&mut spec.vae, flags.vae.as_ref());
    set_some(&mut spec.motion, flags.motion.as_ref());
    set_some(&mut spec.lcm_lora, flags.lcm_lora.as_ref());
    if !flags.lora.is_empty() {
        spec.loras.clone_from(&flags.lora);
    }
    if !flags.embedding.is_empty() {
        spec.embeddings.clone_from(&flags.embedding);
    }
    spec.lora_legacy_scale |= flags.lora_legacy_scale;
    spec.allow_partial |= flags.allow_partial;
    set(&mut spec.device, flags.device.as_ref());
    set(&mut spec.dtype, flags.dtype.as_ref());
    set(&mut spec.quantize, flags.quantize.as_ref());
    set(&mut spec.kernels, flags.kernels.as_ref());
}

fn request(args: &GenerateArgs, request: &mut Request) -> Result<()> {
    set(&mut request.prompt, args.prompt.as_ref().or(args.prompt_flag.as_ref()));
    set(&mut request.negative_prompt, args.negative_prompt.as_ref());
    set(&mut request.prompt_mode, args.prompt_mode.as_ref());
    if !args.control.control.is_empty() {
        request.controls.clone_from(&args.control.control);
    }
    if !args.control.ip_adapter.is_empty() {
        request.ip_adapters.clone_from(&args.control.ip_adapter);
    }
    how(&args.clip, &args.sampling, request)
}

/// Size, length and sampling.
pub(super) fn how(clip: &ClipFlags, flags: &SamplingFlags, request: &mut Request) -> Result<()> {
    set_some(&mut request.width, clip.width.as_ref());
    set_some(&mut request.height, clip.height.as_ref());
    set(&mut request.frames, clip.frames.as_ref());
    set(&mut request.fps, clip.fps.as_ref());
    set(&mut request.steps, flags.steps.as_ref());
    set(&mut request.cfg_scale, flags.cfg_scale.as_ref());
    if let Some(name) = &flags.sampler {
        let (sampler, spacing) = SamplerKind::with_spacing(name)?;
        request.sampler = sampler;
        request.spacing = spacing;
    }
    set_some(&mut request.spacing, flags.spacing.as_ref());
    set(&mut request.lcm_original_steps, flags.lcm_original_steps.as_ref());
    set_some(&mut request.beta_schedule, flags.beta_schedule.as_ref());
    set(&mut request.beta_start, flags.beta_start.as_ref());
    set(&mut request.beta_end, flags.beta_end.as_ref());
    set_some(&mut request.prediction, flags.prediction.as_ref());
    set_some(&mut request.zero_snr, flags.zero_snr.as_ref());
    set(&mut request.motion_norm, flags.motion_norm.as_ref());
    set(&mut request.clip_skip, flags.clip_skip.as_ref());
    if let Some(seed) = flags.seed {
        request.seed = seed.number();
    }
    set(&mut request.rng, flags.rng.as_ref());
    Ok(())
}

/// Good enough to be different every time; small enough to be typed again.
pub(super) fn random_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mixed =
        (now.as_nanos() as u64 ^ u64::from(std::process::id())).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed >> 32
}

/// `a-red-circle-7.gif`.
fn default_name(request: &Request) -> PathBuf {
    let mut slug: String = request
        .prompt
        .to_lowercase()
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .take(6)
        .collect::<Vec<_>>()
        .join("-");
    while slug.len() > 60 {
        slug.pop();
    }
    if slug.is_empty() {
        slug.push_str("clip");
    }
    PathBuf::from(format!("{slug}-{}.gif", request.seed.unwrap_or_default()))
}

fn clip_info(prepared: &Prepared, request: &Request) -> ClipInfo {
    ClipInfo {
        width: prepared.width as u32,
        height: prepared.height as u32,
        frames: request.frames,
        fps: request.fps,
    }
}

/// One line before the work: what will happen, and the seed.
fn describe(job: &Job, prepared: &Prepared, device: &Device, precision: Precision) -> String {
    let request = &job.request;
    let model = match &job.models.model {
        Some(model) => model,
        None => "the small model inside the program, which knows coloured shapes; see --model",
    };
    format!(
        "{} frames of {}x{}, {} steps of {}, seed {}, {} {}{}, {model}",
        request.frames,
        prepared.width,
        prepared.height,
        request.steps,
        request.sampler,
        request.seed.unwrap_or_default(),
        device_name(device),
        precision.describe(),
        job.models.kernels.words(),
    )
}

/// A sink that is opened when the first frame comes: until then nothing is on disk.
struct Lazy<F> {
    open: F,
    opened: Option<Box<dyn FrameSink + Send>>,
}

impl<F: FnMut() -> Result<Box<dyn FrameSink + Send>>> FrameSink for Lazy<F> {
    fn frame(&mut self, frame: &RgbImage) -> Result<()> {
        if self.opened.is_none() {
            self.opened = Some((self.open)()?);
        }
        match &mut self.opened {
            Some(sink) => sink.frame(frame),
            None => Ok(()),
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        match self.opened {
            Some(sink) => sink.finish(),
            None => Ok(()),
        }
    }
}

/// A file that the user named cannot be read.
pub(super) fn unreadable(field: &'static str, path: &Path, error: &std::io::Error) -> Error {
    Error::request(field, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_of_one_run_are_numbered() {
        let name = |path: &str, number, count| numbered(Path::new(path), number, count);
        assert_eq!(name("a.gif", 1, 4), Path::new("a-1.gif"));
        assert_eq!(name("d.x/a.b.gif", 3, 12), Path::new("d.x/a.b-03.gif"));
        assert_eq!(name("d/f_%03d.png", 2, 3), Path::new("d/f_2-%03d.png"));
        assert_eq!(name("é%d.png", 2, 3), Path::new("é2-%d.png"));
    }
}
