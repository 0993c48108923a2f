//! `animatelcm eval`: how often a model's clips show what their prompts say.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use image::RgbImage;
use serde::Serialize;

use super::flags::{ClipFlags, ModelFlags, SamplingFlags};
use super::{duration, generate, print, to_json, tune};
use crate::files::{Existing, Place};
use crate::job::{self, Names};
use crate::media;
use crate::pipeline::{Event, Inputs, Pipeline, Residency};
use crate::procedural::{Caption, Count, Matches, Observation, Oracle, Scene, Score};
use crate::request::{Job, Request};
use crate::rng::Uniform;
use crate::{Error, Result, Stop};

/// The arguments of `animatelcm eval`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct EvalArgs {
    /// Captions of the procedural grammar, whose truth can be measured: background, colour, shape, motion.
    #[arg(long, required = true, help_heading = "Measuring")]
    procedural: bool,
    /// Number of prompts.
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Measuring")]
    prompts: usize,
    /// Measure clips that the grammar's own renderer makes instead of a model's: the most that can be reached.
    #[arg(long, help_heading = "Measuring")]
    ground_truth: bool,
    /// A PNG with some frames of the first clips, one clip a row, below its caption and what is wrong.
    #[arg(long, value_name = "FILE", help_heading = "Measuring")]
    sheet: Option<PathBuf>,
    /// Overwrite that PNG if it is there.
    #[arg(short = 'y', long, help_heading = "Measuring")]
    overwrite: bool,

    #[command(flatten)]
    models: ModelFlags,
    #[command(flatten)]
    clip: ClipFlags,
    #[command(flatten)]
    sampling: SamplingFlags,

    /// Print JSON instead of a table.
    #[arg(long, help_heading = "Reporting")]
    json: bool,
    /// Say nothing on the way.
    #[arg(short, long, help_heading = "Reporting")]
    quiet: bool,
}

/// The measurements, and their settings.
#[derive(Debug, Serialize)]
struct Report {
    clips: String,
    sampler: Option<String>,
    steps: Option<usize>,
    cfg_scale: Option<f64>,
    width: usize,
    height: usize,
    frames: usize,
    prompts: usize,
    seed: u64,
    score: Score,
    /// Every clip, in order.
    rows: Vec<Row>,
}

/// One clip.
#[derive(Debug, Serialize)]
struct Row {
    prompt: String,
    /// Seed of the clip's first noise; none of a rendered clip.
    seed: Option<u64>,
    #[serde(flatten)]
    matches: Matches,
    all: bool,
}

impl Row {
    /// The prompt, and what of it is not true.
    fn label(&self) -> String {
        let Matches { background, color, shape, motion, steady } = self.matches;
        let parts =
            [("background", background), ("colour", color), ("shape", shape), ("motion", motion)];
        let wrong: Vec<&str> =
            parts.iter().filter(|(_, hit)| !hit).map(|(part, _)| *part).collect();
        let verdict = if wrong.is_empty() {
            "all true".into()
        } else {
            format!("wrong: {}", wrong.join(", "))
        };
        let steady = if steady { "" } else { ", unsteady" };
        format!("{} - {verdict}{steady}", self.prompt)
    }
}

/// Clips on a sheet.
const ON_SHEET: usize = 16;

/// The side of clips that no model makes.
const SIDE: usize = 64;

pub(super) fn run(args: &EvalArgs, stop: &Stop) -> Result<()> {
    if args.prompts == 0 {
        return Err(Error::request("prompts", "must be at least 1, got 0"));
    }
    let mut sheet = None;
    if let Some(path) = &args.sheet {
        let existing = if args.overwrite { Existing::Replace } else { Existing::Refuse };
        let place = Place::resolve("sheet", path, existing)?;
        place.probe()?;
        sheet = Some(place);
        if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
            let reason = format!("{} is not a .png", path.display());
            return Err(Error::request("sheet", reason));
        }
    }
    let seed =
        args.sampling.seed.map_or(0, |seed| seed.number().unwrap_or_else(generate::random_seed));
    let mut clips = Clips::open(args, stop)?;
    let mut score = Score::default();
    let mut rows: Vec<Row> = Vec::new();
    let mut shown: Vec<Vec<RgbImage>> = Vec::new();
    let started = Instant::now();
    for i in 0..args.prompts {
        // Prompts and seeds are a prefix of those of a longer run.
        let mut random = Uniform::part(seed, i as u64);
        let caption = Caption::draw(&mut random);
        let (frames, clip_seed) = match &mut clips {
            Clips::Rendered { side, frames } => {
                stop.check()?;
                (Scene::new(caption, random.bits()).frames(*side, *frames), None)
            }
            Clips::Generated { pipeline, request, .. } => {
                let seed = seed.wrapping_add(i as u64);
                request.prompt.text = caption.to_string();
                request.sampling.seed = Some(seed);
                (generated(pipeline, request, stop)?, Some(seed))
            }
        };
        let seen = Oracle::default().observe(&frames);
        let matches = seen.matches(&caption);
        score.add(&caption, matches);
        rows.push(Row {
            prompt: caption.to_string(),
            seed: clip_seed,
            matches,
            all: matches.all(),
        });
        if !args.quiet {
            let to_go = to_go(started, i + 1, args.prompts);
            let said = said(caption, &seen);
            super::terminal::line(&format!("{}/{} {said}{to_go}", i + 1, args.prompts));
        }
        if args.sheet.is_some() && shown.len() < ON_SHEET {
            shown.push(frames);
        }
    }
    if let Some(place) = sheet {
        let labels: Vec<String> = rows.iter().map(Row::label).collect();
        let labels = labels.iter().map(String::as_str);
        let rows: Vec<_> = labels.zip(shown.iter().map(Vec::as_slice)).collect();
        place.write(&media::labelled_sheet(&rows)?)?;
    }
    let report = clips.report(args.prompts, seed, score, rows);
    print(&if args.json { to_json(&report)? } else { report.table() })
}

/// How long the rest takes at the mean pace; nothing after the last.
fn to_go(started: Instant, done: usize, of: usize) -> String {
    let left = of.saturating_sub(done);
    if left == 0 {
        return String::new();
    }
    let each = started.elapsed().as_secs_f64() / done.max(1) as f64;
    format!(", {} to go", duration(each * left as f64))
}

/// The source of the clips.
enum Clips {
    Rendered {
        side: usize,
        frames: usize,
    },
    Generated {
        pipeline: Box<Pipeline>,
        request: Box<Request>,
        model: String,
        size: (usize, usize),
    },
}

impl Clips {
    fn open(args: &EvalArgs, stop: &Stop) -> Result<Self> {
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
            return Ok(Self::Rendered { side, frames });
        }
        let names = Names::new(args.models.offline)?;
        let mut job = Job::default();
        generate::spec(&args.models, &mut job.models);
        job::apply_defaults(&names, &job.models, &mut job.request)?;
        generate::how(&args.clip, &args.sampling, &mut job.request)?;
        job.request.validate()?;
        let (pipeline, _) = job::open(&job, &names, Residency::KeepAll, stop)?;
        let prepared = pipeline.prepare(&job.request, &Inputs::default())?;
        Ok(Self::Generated {
            size: (prepared.width, prepared.height),
            model: job.models.model.unwrap_or_else(|| "embedded".into()),
            pipeline: Box::new(pipeline),
            request: Box::new(job.request),
        })
    }

    fn report(self, prompts: usize, seed: u64, score: Score, rows: Vec<Row>) -> Report {
        match self {
            Self::Rendered { side, frames } => Report {
                clips: "ground truth".into(),
                sampler: None,
                steps: None,
                cfg_scale: None,
                width: side,
                height: side,
                frames,
                prompts,
                seed,
                score,
                rows,
            },
            Self::Generated { request, model, size, .. } => Report {
                clips: model,
                sampler: Some(request.sampling.sampler.to_string()),
                steps: Some(request.sampling.steps),
                cfg_scale: Some(request.sampling.cfg_scale),
                width: size.0,
                height: size.1,
                frames: request.size.frames,
                prompts,
                seed,
                score,
                rows,
            },
        }
    }
}

fn generated(pipeline: &mut Pipeline, request: &Request, stop: &Stop) -> Result<Vec<RgbImage>> {
    let mut frames = Vec::new();
    let mut observer = |event: Event| {
        if matches!(event, Event::Ready) {
            tune::keep_freed_memory();
        }
        stop.check()
    };
    let prepared = pipeline.prepare(request, &Inputs::default())?;
    pipeline.generate(&prepared, &mut observer, &mut &mut frames)?;
    Ok(frames)
}

/// A prompt and what of it is true.
fn said(caption: Caption, seen: &Observation) -> String {
    let matches = seen.matches(&caption);
    let word = |hit: bool, word: &str| if hit { word.to_owned() } else { format!("[{word}]") };
    format!(
        "{} {} {} on {}",
        word(matches.color, caption.color.word()),
        word(matches.shape, caption.shape.word()),
        word(matches.motion, caption.motion.word()),
        word(matches.background, caption.background.word()),
    )
}

impl Report {
    fn table(&self) -> String {
        let mut text = format!(
            "{}, {} frames of {}x{}, {} prompts, seed {}",
            self.clips, self.frames, self.width, self.height, self.prompts, self.seed
        );
        if let (Some(sampler), Some(steps), Some(scale)) =
            (&self.sampler, self.steps, self.cfg_scale)
        {
            text.push_str(&format!(", {steps} steps of {sampler}, guidance {scale}"));
        }
        text.push_str("\n\n                 rate         95 % CI   chance\n");
        let row = |name: &str, count: Count, chance: Option<f64>| {
            let (low, high) = count.interval();
            let chance = chance.map_or(String::new(), |c| format!("{:6.1}%", 100.0 * c));
            let line = format!(
                "{name:<15}{:5.1}%  {:5.1} - {:5.1}%  {chance}",
                100.0 * count.share(),
                100.0 * low,
                100.0 * high,
            );
            format!("{}\n", line.trim_end())
        };
        for (name, count, chance) in self.score.rows() {
            text.push_str(&row(name, count, chance));
        }
        for words in [&self.score.shape_by_word, &self.score.motion_by_word] {
            text.push('\n');
            for (word, count) in words {
                let counted = format!("{word:<15}{:4} of {}\n", count.hits, count.trials);
                text.push_str(&counted);
            }
        }
        text
    }
}
