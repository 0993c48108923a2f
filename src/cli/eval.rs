//! `animatelcm eval`: how often a model's clips show what their prompts say, and the measures of papers.

mod clips;
mod measures;
mod report;
mod sources;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use self::clips::{Clips, Made, Prompts};
use self::measures::Measures;
use self::report::{Report, Row, SourceReport, SourceRow, Verdict, said};
use self::sources::Remains;
use super::flags::{
    ClipFlags, LongFlags, ModelFlags, QualityFlags, SamplingFlags, at_least, on_or_off,
};
use super::{duration, generate, print, to_json};
use crate::files::{Existing, Place};
use crate::media;
use crate::media::resize::Fit;
use crate::procedural::{Oracle, Score};
use crate::request::Source;
use crate::{Error, Result, Stop};

/// The arguments of `animatelcm eval`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct EvalArgs {
    /// Captions of the procedural grammar.
    ///
    /// Drawn by the seed, or the lines of --prompt-file. Their truth can be measured: background, colour, shape,
    /// motion.
    #[arg(long, required_unless_present = "prompt_file", help_heading = "Prompts")]
    procedural: bool,
    /// Prompts from a text file, one a line.
    ///
    /// Each is taken as it is.
    #[arg(long, value_name = "FILE", help_heading = "Prompts")]
    prompt_file: Option<PathBuf>,
    /// Number of prompts [default: 64, or the file's].
    #[arg(long, value_name = "N", help_heading = "Prompts")]
    prompts: Option<usize>,
    /// Clips for each prompt, with consecutive seeds.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        help_heading = "Prompts",
        hide_short_help = true
    )]
    clips_per_prompt: usize,

    /// Measure clips that the grammar's own renderer makes instead of a model's: the most that can be reached.
    #[arg(
        long,
        conflicts_with = "prompt_file",
        help_heading = "Measuring",
        hide_short_help = true
    )]
    ground_truth: bool,
    /// Start each clip from a rendered video that shows nothing of its prompt, and measure what of both is in it.
    #[arg(long, requires = "procedural", conflicts_with_all = ["prompt_file", "ground_truth"])]
    #[arg(help_heading = "Measuring", hide_short_help = true)]
    from_video: bool,
    /// Strength of --from-video, as in `generate` [default: 0.8].
    #[arg(long, value_name = "SHARE", requires = "from_video")]
    #[arg(help_heading = "Measuring", hide_short_help = true)]
    strength: Option<f64>,
    /// Frames of the video that stay, such as 0,15; their mean error is measured.
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', value_parser = at_least::<0>)]
    #[arg(requires = "from_video", help_heading = "Measuring", hide_short_help = true)]
    keep: Vec<usize>,
    /// The video's own pixels in frames that stay, as in `generate` [default: on].
    #[arg(long, value_name = "on|off", value_parser = on_or_off, requires = "keep")]
    #[arg(help_heading = "Measuring", hide_short_help = true)]
    overlay: Option<bool>,
    /// CLIP score: 100 times the cosine of frame and prompt, averaged over frames and clips.
    #[arg(long, requires = "clip_model", help_heading = "Measuring", hide_short_help = true)]
    clip_score: bool,
    /// A folder of transformers' CLIPModel for --clip-score, such as a download of
    /// laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
    #[arg(
        long = "clip",
        value_name = "DIR",
        requires = "clip_score",
        help_heading = "Measuring",
        hide_short_help = true
    )]
    clip_model: Option<PathBuf>,
    /// Fréchet video distance (FVD) to the real clips of a folder: videos, animations, folders of images, at any depth.
    #[arg(
        long,
        value_name = "DIR",
        requires = "i3d",
        help_heading = "Measuring",
        hide_short_help = true
    )]
    fvd: Option<PathBuf>,
    /// The I3D for --fvd, trained on Kinetics-400: a state dict of pytorch-i3d (i3d_pretrained_400.pt) or the same as
    /// safetensors.
    #[arg(
        long,
        value_name = "FILE",
        requires = "fvd",
        help_heading = "Measuring",
        hide_short_help = true
    )]
    i3d: Option<PathBuf>,
    /// Clips of each side that FVD compares, drawn by the seed [default: all].
    #[arg(
        long,
        value_name = "N",
        requires = "fvd",
        help_heading = "Measuring",
        hide_short_help = true
    )]
    fvd_clips: Option<usize>,
    /// Take each N-th frame of a real clip, from its beginning.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        help_heading = "Measuring",
        hide_short_help = true
    )]
    real_every: usize,
    /// Crop or stretch real frames to the shape of the model's.
    #[arg(
        long,
        value_name = "FIT",
        default_value = "crop",
        help_heading = "Measuring",
        hide_short_help = true
    )]
    real_fit: Fit,
    /// PNG with frames of the first clips.
    ///
    /// One clip a row, below its caption and what is wrong.
    #[arg(long, value_name = "FILE", help_heading = "Measuring")]
    sheet: Option<PathBuf>,
    /// Overwrite that PNG if it is there.
    #[arg(short = 'y', long, help_heading = "Measuring", hide_short_help = true)]
    overwrite: bool,

    #[command(flatten)]
    models: ModelFlags,
    #[command(flatten)]
    clip: ClipFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    long: LongFlags,
    #[command(flatten)]
    quality: QualityFlags,

    /// Print JSON instead of a table.
    #[arg(long, help_heading = "Reporting")]
    json: bool,
    /// Hide progress.
    #[arg(short, long, help_heading = "Reporting", hide_short_help = true)]
    quiet: bool,
}

/// Clips on a sheet.
const ON_SHEET: usize = 16;

pub(super) fn run(args: &EvalArgs, stop: &Stop) -> Result<()> {
    for (field, value) in
        [("clips-per-prompt", args.clips_per_prompt), ("real-every", args.real_every)]
    {
        if value == 0 {
            return Err(Error::request(field, "must be at least 1, got 0"));
        }
    }
    let sheet = sheet(args)?;
    let seed =
        args.sampling.seed.map_or(0, |seed| seed.number().unwrap_or_else(generate::random_seed));
    let prompts = Prompts::open(args, seed)?;
    let count = prompts
        .len()
        .checked_mul(args.clips_per_prompt)
        .ok_or_else(|| Error::request("clips-per-prompt", "are too many"))?;
    let mut clips = Clips::open(args, stop)?;
    let mut measures = Measures::open(args, &clips, (count, seed), stop)?;
    let (mut score, mut remains) = (Score::default(), Remains::default());
    let mut rows: Vec<Row> = Vec::new();
    let mut shown = Vec::new();
    let started = Instant::now();
    for i in 0..count {
        let prompt = prompts.get(i / args.clips_per_prompt, i % args.clips_per_prompt);
        let made = clips.make(&prompt, seed.wrapping_add(i as u64), stop)?;
        let Made { frames, seed: clip_seed, from } = made;
        let seen = prompt.caption.map(|caption| {
            let matches = Oracle::default().observe(&frames).matches(&caption);
            score.add(&caption, matches);
            (caption, matches)
        });
        let source = from.as_ref().map(|video| {
            let matches = remains.add(video, &frames, &args.keep);
            (video.caption, matches)
        });
        let clip_score = measures.add(i, &frames, &prompt.text, stop)?;
        if !args.quiet {
            let said = seen.map_or_else(|| prompt.text.clone(), |(c, m)| said(c, m));
            let from =
                source.map_or(String::new(), |(c, m)| format!(", from {}", self::said(c, m)));
            let said = said + &from;
            let similarity = clip_score.map_or(String::new(), |s| format!(", CLIP score {s:.2}"));
            let to_go = to_go(started, i + 1, count);
            super::terminal::line(&format!("{}/{count} {said}{similarity}{to_go}", i + 1));
        }
        let verdict = seen.map(|(_, matches)| Verdict::from(matches));
        let source = source.map(|(caption, matches)| SourceRow {
            caption: caption.to_string(),
            verdict: Verdict::from(matches),
        });
        rows.push(Row { prompt: prompt.text, seed: clip_seed, verdict, clip_score, source });
        if sheet.is_some() && shown.len() < ON_SHEET {
            shown.push((from.map(|video| video.frames), frames));
        }
    }
    if let Some(place) = sheet {
        let mut labelled = Vec::new();
        for (row, (from, frames)) in rows.iter().zip(&shown) {
            let label = row.source.as_ref().map(SourceRow::label);
            labelled.extend(label.zip(from.as_deref()));
            labelled.push((row.label(), frames.as_slice()));
        }
        let labelled: Vec<_> =
            labelled.iter().map(|(text, frames)| (text.as_str(), *frames)).collect();
        place.write(&media::labelled_sheet(&labelled)?)?;
    }
    let (kept_score, kept_error) = remains.finish();
    let report = Report {
        source: args.from_video.then_some(SourceReport {
            strength: args.strength.unwrap_or(Source::STRENGTH),
            keep: args.keep.clone(),
            score: kept_score,
            kept_error,
        }),
        settings: clips.settings(),
        prompts: prompts.len(),
        clips_per_prompt: args.clips_per_prompt,
        seed,
        score: args.procedural.then_some(score),
        measured: measures.finish()?,
        rows,
    };
    print(&if args.json { to_json(&report)? } else { report.table() })
}

/// Where the sheet goes, before anything is made.
fn sheet(args: &EvalArgs) -> Result<Option<Place>> {
    let Some(path) = &args.sheet else { return Ok(None) };
    let existing = if args.overwrite { Existing::Replace } else { Existing::Refuse };
    let place = Place::resolve("sheet", path, existing)?;
    place.probe()?;
    if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
        let reason = format!("{} is not a .png", path.display());
        return Err(Error::request("sheet", reason));
    }
    Ok(Some(place))
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
