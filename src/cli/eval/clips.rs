//! Prompts, and the clips that are made for them.

use image::RgbImage;

use super::EvalArgs;
use super::report::Settings;
use super::sources::{self, Video};
use crate::cli::{generate, terminal, tune};
use crate::device::DeviceChoice;
use crate::job::{self, Names};
use crate::pipeline::{Event, Inputs, Pipeline, Residency};
use crate::procedural::{Caption, Scene};
use crate::request::{Job, Request};
use crate::rng::Uniform;
use crate::text::prompt::PromptMode;
use crate::{Error, Result, Stop, files};

/// The side of clips that no model makes.
const SIDE: usize = 64;

/// What clips are made for.
pub(super) enum Prompts {
    /// Captions of the grammar, drawn by a seed.
    Drawn { count: usize, seed: u64 },
    /// Lines of a file, and what they mean if they are captions of the grammar.
    Listed(Vec<(String, Option<Caption>)>),
}

/// What one clip is made for.
pub(super) struct Prompt {
    pub(super) text: String,
    /// What it means, where that is known.
    pub(super) caption: Option<Caption>,
    /// Seed of the renderer.
    scene: u64,
}

impl Prompts {
    pub(super) fn open(args: &EvalArgs, seed: u64) -> Result<Self> {
        const FIELD: &str = "prompt-file";
        let count = args.prompts;
        if count == Some(0) {
            return Err(Error::request("prompts", "must be at least 1, got 0"));
        }
        let Some(path) = &args.prompt_file else {
            return Ok(Self::Drawn { count: count.unwrap_or(64), seed });
        };
        let text = files::read_text(path).map_err(|e| Error::unreadable(FIELD, path, &e))?;
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
        let caption = |line: &str| -> Result<Option<Caption>> {
            args.procedural.then(|| line.parse()).transpose()
        };
        let read = |line: &str| Ok((line.to_owned(), caption(line)?));
        let mut prompts: Vec<_> =
            lines.filter(|line| !line.is_empty()).map(read).collect::<Result<_>>()?;
        let known = prompts.len();
        if known == 0 {
            return Err(Error::request(FIELD, format!("{}: has no prompts", path.display())));
        }
        if let Some(count) = count {
            if count > known {
                let reason = format!("{count} asked for, {} has {known}", path.display());
                return Err(Error::request("prompts", reason));
            }
            prompts.truncate(count);
        }
        Ok(Self::Listed(prompts))
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Drawn { count, .. } => *count,
            Self::Listed(prompts) => prompts.len(),
        }
    }

    /// The prompt `number`, for one of several clips. Prompts and scenes are a prefix of those of a longer run.
    pub(super) fn get(&self, number: usize, clip: usize) -> Prompt {
        match self {
            Self::Drawn { seed, .. } => {
                let mut random = Uniform::part(*seed, number as u64);
                let caption = Caption::draw(&mut random);
                let mut scene = random.bits();
                for _ in 0..clip {
                    scene = random.bits();
                }
                Prompt { text: caption.to_string(), caption: Some(caption), scene }
            }
            Self::Listed(prompts) => {
                let (text, caption) = prompts.get(number).cloned().unwrap_or_default();
                Prompt { text, caption, scene: 0 }
            }
        }
    }
}

/// The source of the clips.
pub(super) enum Clips {
    Rendered {
        side: usize,
        frames: usize,
        device: DeviceChoice,
    },
    Generated {
        pipeline: Box<Pipeline>,
        request: Box<Request>,
        model: String,
        size: (usize, usize),
    },
}

/// A clip.
pub(super) struct Made {
    pub(super) frames: Vec<RgbImage>,
    /// The seed of its first noise, if there was one.
    pub(super) seed: Option<u64>,
    /// What it started from.
    pub(super) from: Option<Video>,
}

impl Clips {
    pub(super) fn open(args: &EvalArgs, stop: &Stop) -> Result<Self> {
        if args.ground_truth {
            let side = args.clip.width.or(args.clip.height).unwrap_or(SIDE);
            let frames = args.clip.frames.unwrap_or(16);
            if args.clip.width.zip(args.clip.height).is_some_and(|(w, h)| w != h) {
                return Err(Error::request("height", "rendered clips are square"));
            }
            if !(8..=1024).contains(&side) || !(1..=1024).contains(&frames) {
                let reason = format!("{frames} frames of {side}×{side} cannot be rendered");
                return Err(Error::request("ground-truth", reason));
            }
            let device = args.models.device.unwrap_or_default();
            return Ok(Self::Rendered { side, frames, device });
        }
        let names = Names::new(args.models.offline)?.with_folders(&args.models.models_dir)?;
        let mut job = Job::default();
        generate::spec(&args.models, &mut job.models);
        job::apply_defaults(&names, &job.models, &mut job.request)?;
        generate::how(&args.clip, &args.sampling, &mut job.request)?;
        generate::long(&args.long, &mut job.request);
        generate::quality(&args.quality, &mut job.request)?;
        if !args.procedural {
            // As in the programs of the tables: no weights, no chunks.
            job.request.prompt.mode = PromptMode::Plain;
        }
        if args.from_video {
            job.request.source = Some(sources::source(args));
            // A video would else say how many.
            job.request.size.frames = Some(job.request.frames());
        }
        job.request.validate()?;
        let (pipeline, _) = job::open(&job, &names, Residency::KeepAll, stop)?;
        // What does not depend on the source is known without one.
        let plain = Request { source: None, ..job.request.clone() };
        let prepared = pipeline.prepare(&plain, &Inputs::default())?;
        if args.from_video {
            sources::side(&job.request, (prepared.width, prepared.height))?;
        }
        for warning in prepared.warnings.iter().filter(|_| !args.quiet) {
            terminal::line(&format!("warning: {warning}"));
        }
        Ok(Self::Generated {
            size: (prepared.width, prepared.height),
            model: job.models.model.unwrap_or_else(|| "embedded".into()),
            pipeline: Box::new(pipeline),
            request: Box::new(job.request),
        })
    }

    /// Makes the clip of a prompt.
    pub(super) fn make(&mut self, prompt: &Prompt, seed: u64, stop: &Stop) -> Result<Made> {
        match self {
            Self::Rendered { side, frames, .. } => {
                stop.check()?;
                let Some(caption) = prompt.caption else {
                    return Err(Error::request("ground-truth", "only captions can be rendered"));
                };
                let frames = Scene::new(caption, prompt.scene).frames(*side, *frames);
                Ok(Made { frames, seed: None, from: None })
            }
            Self::Generated { pipeline, request, size, .. } => {
                request.prompt.text.clone_from(&prompt.text);
                request.sampling.seed = Some(seed);
                let from = match prompt.caption.filter(|_| request.source.is_some()) {
                    Some(caption) => {
                        let side = sources::side(request, *size)?;
                        let frames = request.frames();
                        Some(Video::other_than(caption, prompt.scene, side, frames))
                    }
                    None => None,
                };
                let inputs = from.as_ref().map(|video| video.inputs(stop)).transpose()?;
                let inputs = inputs.unwrap_or_default();
                let frames = generated(pipeline, request, &inputs, stop)?;
                Ok(Made { frames, seed: Some(seed), from })
            }
        }
    }

    /// Width and height.
    pub(super) fn size(&self) -> (usize, usize) {
        match self {
            Self::Rendered { side, .. } => (*side, *side),
            Self::Generated { size, .. } => *size,
        }
    }

    pub(super) fn frames(&self) -> usize {
        match self {
            Self::Rendered { frames, .. } => *frames,
            Self::Generated { request, .. } => request.frames(),
        }
    }

    /// The device of what measures them.
    pub(super) fn device(&self) -> Result<candle_core::Device> {
        match self {
            Self::Rendered { device, .. } => device.open(),
            Self::Generated { pipeline, .. } => Ok(pipeline.device().clone()),
        }
    }

    pub(super) fn settings(&self) -> Settings {
        let (width, height) = self.size();
        let frames = self.frames();
        match self {
            Self::Rendered { .. } => Settings {
                clips: "ground truth".into(),
                sampler: None,
                steps: None,
                cfg_scale: None,
                width,
                height,
                frames,
            },
            Self::Generated { request, model, .. } => Settings {
                clips: model.clone(),
                sampler: Some(request.sampling.sampler.to_string()),
                steps: Some(request.sampling.steps),
                cfg_scale: Some(request.sampling.cfg_scale),
                width,
                height,
                frames,
            },
        }
    }
}

fn generated(
    pipeline: &mut Pipeline,
    request: &Request,
    inputs: &Inputs,
    stop: &Stop,
) -> Result<Vec<RgbImage>> {
    let mut frames = Vec::new();
    let mut observer = |event: Event| {
        if matches!(event, Event::Ready) {
            tune::keep_freed_memory();
        }
        Ok(stop.check()?)
    };
    let prepared = pipeline.prepare(request, inputs)?;
    pipeline.generate(&prepared, &mut observer, &mut &mut frames)?;
    Ok(frames)
}
