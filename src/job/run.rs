//! A job becomes a file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;

use super::complete::{clip_info, inputs};
use super::open::open;
use super::parameters::Made;
use super::preview::PreviewFile;
use super::record::{Hashes, check_weights, device_name, metadata, program};
use super::resolve::Names;
use super::tensors;
use super::trust::Known;
use crate::library::Library;
use crate::media::resize::enlarge;
use crate::media::{FrameSink, RgbImage};
use crate::output::{self, Existing, Metadata};
use crate::pipeline::{Done, Event, Observer, Pipeline, Prepared, Recorder, Residency};
use crate::request::{Job, Loop, MOST_PIXELS};
use crate::sampler::Progress;
use crate::{Error, Result, Stop};

/// Where a clip goes.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The file, a series such as `name_%03d.png`, or `-`.
    pub path: &'a Path,
    /// What may happen to a file that is already there.
    pub existing: Existing,
    /// Whether request and hashes are written into the clip.
    pub has_metadata: bool,
    /// A safetensors file for intermediate tensors.
    pub tensors: Option<&'a Path>,
    /// An animation (`.gif`, `.webp` or `.png`) that shows the clip after every step and stays as it was last.
    pub preview: Option<&'a Path>,
}

/// Makes the clip of a complete job. `known` are hashes of weight files that were computed before; networks are those of
/// `library` if there is one, so that several jobs load them once.
///
/// # Errors
///
/// When the job cannot be met, a file is missing or not the one that the clip was made with, or the observer says stop.
/// No file is left then.
pub fn run(
    mut job: Job,
    known: Known,
    (names, library): (&Names, Option<&Arc<Library>>),
    target: &Target<'_>,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<Done> {
    let started = Instant::now();
    let mut log = Log { inner: observer, preview: None, seconds: vec![], warnings: vec![] };
    // Everything that can fail without a network fails before one is loaded.
    job.request.validate()?;
    let format = output::check(target.path, target.existing)?;
    let tensors_out = target
        .tensors
        .map(|path| tensors::check_output(path, target.existing, target.path))
        .transpose()?;
    log.preview = target
        .preview
        .map(|path| PreviewFile::check(path, (target.path, tensors_out.as_ref()), stop))
        .transpose()?;
    let inputs = inputs(&mut job, names, stop)?;
    let (mut pipeline, files) = open(&job, names, Residency::Sequential, stop)?;
    if let Some(library) = library {
        pipeline = pipeline.with_library(library);
    }
    for report in pipeline.models().adapters() {
        log.event(Event::Adapter { report: report.clone() })?;
    }
    let prepared = pipeline.prepare(&job.request, &inputs)?;
    drop(inputs);
    // What is written down is what was used, not what was left out.
    job.request = prepared.request.clone();
    let clip = clip_info(&prepared);
    if clip.width.max(clip.height) as usize > MOST_PIXELS && job.request.output.zoom > 1 {
        let reason = format!("makes {}x{}, at most {MOST_PIXELS} a side", clip.width, clip.height);
        return Err(Error::request("zoom", reason));
    }
    format.check_clip(&clip)?;
    if let Some(message) = output::surplus(target.path, clip.frames, target.existing)? {
        log.event(Event::Warning { message })?;
    }
    log.event(start(&job, &prepared, &pipeline))?;

    let sources = pipeline.models().sources();
    // Files of gigabytes are hashed while the network runs; the result is needed at the first frame.
    let loras = files.loras.iter().map(|lora| lora.source.path().to_path_buf()).collect();
    let mut hashes = Hashes::start(sources.clone(), loras, known, stop)?;
    let has_motion = pipeline.models().unet_config().motion.is_some();
    job.program = Some(program(pipeline.device()));
    let zoom = job.request.output.zoom as u32;
    let mut sink = Lazy {
        opened: None,
        zoom,
        kept: (job.request.output.looping == Loop::PingPong).then(Vec::new),
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
    let recorded = generate(&mut pipeline, &prepared, tensors_out.is_some(), &mut log, &mut sink)?;
    stop.check()?;
    log.event(Event::Encode { format: format.name() })?;
    // Both files or none: the one that has its name last is complete before the other has one.
    let kept = match tensors_out {
        Some(place) => Some(tensors::draft(place, &recorded)?),
        None => None,
    };
    Box::new(sink).finish()?;
    if let Some(draft) = kept {
        draft.commit()?;
    }
    let Log { inner: observer, seconds: step_seconds, warnings, .. } = log;
    let done = Done {
        path: target.path.to_string_lossy().into_owned(),
        seed: job.request.sampling.seed.unwrap_or_default(),
        width: clip.width as usize,
        height: clip.height as usize,
        frames: clip.frames,
        fps: clip.fps,
        seconds: started.elapsed().as_secs_f64(),
        step_seconds,
        weights: job.weights,
        warnings,
    };
    // The clip is complete: it is too late to stop.
    let _ = observer.event(Event::Done(done.clone()));
    Ok(done)
}

/// Makes the clip; its intermediate tensors if they are wanted.
fn generate(
    pipeline: &mut Pipeline,
    prepared: &Prepared,
    is_recorded: bool,
    observer: &mut dyn Observer,
    sink: &mut dyn FrameSink,
) -> Result<BTreeMap<String, Tensor>> {
    if !is_recorded {
        pipeline.generate(prepared, observer, sink)?;
        return Ok(BTreeMap::new());
    }
    let mut recorder = Recorder::new(observer);
    pipeline.generate(prepared, &mut recorder, sink)?;
    Ok(recorder.tensors)
}

fn start(job: &Job, prepared: &Prepared, pipeline: &Pipeline) -> Event {
    let sampling = &prepared.request.sampling;
    let (device, precision) = (pipeline.device(), pipeline.precision());
    Event::Start {
        model: job.models.model.clone(),
        width: prepared.width,
        height: prepared.height,
        frames: prepared.frames,
        steps: prepared.steps(),
        sampler: sampling.sampler.name(),
        seed: sampling.seed.unwrap_or_default(),
        device: device_name(device),
        dtype: format!("{}{}", precision.describe(), job.models.kernels.words()),
    }
}

/// An observer that keeps the time of every step, and what was warned of, and writes previews.
struct Log<'a> {
    inner: &'a mut dyn Observer,
    preview: Option<PreviewFile<'a>>,
    seconds: Vec<f64>,
    warnings: Vec<String>,
}

impl Observer for Log<'_> {
    fn event(&mut self, mut event: Event) -> Result<()> {
        match &mut event {
            Event::Step { seconds, .. } => self.seconds.push(*seconds),
            Event::Warning { message } => self.warnings.push(message.clone()),
            Event::Preview(preview) => {
                if let Some(file) = &self.preview {
                    file.write(preview)?;
                    preview.path = Some(file.name());
                }
            }
            _ => {}
        }
        self.inner.event(event)
    }

    fn step(&mut self, progress: &Progress<'_>) -> Result<()> {
        self.inner.step(progress)
    }

    fn wants_previews(&self) -> bool {
        self.preview.is_some() || self.inner.wants_previews()
    }

    fn wants_tensors(&self) -> bool {
        self.inner.wants_tensors()
    }

    fn tensor(&mut self, name: &str, tensor: Tensor) {
        self.inner.tensor(name, tensor);
    }
}

/// A sink of enlarged frames that is opened when the first one comes: until then nothing is on disk.
struct Lazy<F> {
    open: F,
    zoom: u32,
    /// The frames so far, if they come once more in reverse.
    kept: Option<Vec<RgbImage>>,
    opened: Option<Box<dyn FrameSink + Send>>,
}

/// Writes a frame, enlarged.
fn write(sink: &mut dyn FrameSink, frame: &RgbImage, zoom: u32) -> Result<()> {
    if zoom > 1 { sink.frame(&enlarge(frame, zoom)) } else { sink.frame(frame) }
}

impl<F: FnMut() -> Result<Box<dyn FrameSink + Send>>> FrameSink for Lazy<F> {
    fn frame(&mut self, frame: &RgbImage) -> Result<()> {
        if self.opened.is_none() {
            self.opened = Some((self.open)()?);
        }
        if let Some(kept) = &mut self.kept {
            kept.push(frame.clone());
        }
        match &mut self.opened {
            Some(sink) => write(&mut **sink, frame, self.zoom),
            None => Ok(()),
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Some(mut sink) = self.opened else { return Ok(()) };
        // Between the last and the first, which stand at the ends already.
        let kept = self.kept.unwrap_or_default();
        for frame in kept.iter().skip(1).rev().skip(1) {
            write(&mut *sink, frame, self.zoom)?;
        }
        sink.finish()
    }
}
