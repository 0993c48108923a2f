//! `animatelcm batch`: the clips of a manifest.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use serde_json::json;

use super::flags::{ProgressMode, Reporting};
use super::progress::Progress;
use super::terminal::line;
use super::{duration, print, report, to_json};
use crate::batch::{
    self, At, Found, Options, Plan, Record, Settings, Shard, State, Status, Template, Watch,
};
use crate::job::{Folders, Names};
use crate::output::Existing;
use crate::pipeline::{Event, Observer};
use crate::sampler;
use crate::{Error, Result, Stop};

/// The arguments of `animatelcm batch`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct BatchArgs {
    /// A list of clips: .jsonl, .csv, .toml, or - for JSON lines on standard input.
    ///
    /// A line of JSON is a request, or fields of one and `name` and `repeat`. CSV has a header of such fields, whose
    /// dots nest: `sampling.seed`. TOML has [defaults], [[clip]] and a [matrix] of lists, of which every combination is
    /// made. All lines are checked before anything is made. Hints and images are looked for beside the manifest.
    manifest: PathBuf,
    /// Folder of the clips, which is created.
    ///
    /// A clip that is there is not made again, so that the same command goes on after an interruption. What became of
    /// each item stands in report.I-of-N.jsonl.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// gif, webp, png, mp4 ... [default: mp4].
    ///
    /// gif, webp, png or apng (animated), mp4 or y4m.
    #[arg(long, value_name = "ENDING")]
    format: Option<String>,
    /// Names of the clips' files [default: {number}].
    ///
    /// With {number}, {seed}, {slug} (the first words of the prompt) and {name} (the item's). Twelve digits of the
    /// item's key are appended.
    #[arg(long, value_name = "TEMPLATE", hide_short_help = true)]
    name: Option<Template>,
    /// Make one of N equal parts, or the one that a scheduler says: I/N or auto.
    ///
    /// auto knows Slurm (srun, arrays), Open MPI, PMI, Indexed Jobs of Kubernetes, AWS Batch, Cloud Run, and
    /// ANIMATELCM_SHARD=I/N.
    #[arg(long, value_name = "I/N|auto")]
    shard: Option<Which>,
    /// Number of parts, where the scheduler does not say it, or only some of its tasks run.
    #[arg(long, value_name = "N", requires = "shard", hide_short_help = true)]
    #[arg(value_parser = super::flags::at_least::<1>)]
    shards: Option<usize>,
    /// Count which clips are there and make none; exit code 6 if any is missing.
    #[arg(long, conflicts_with = "dry_run")]
    check: bool,
    /// Show what would be made.
    #[arg(long)]
    dry_run: bool,
    /// End with the first clip that fails.
    #[arg(long)]
    fail_fast: bool,
    /// Replace files that have a clip's name and are not it.
    #[arg(short = 'y', long, alias = "force", hide_short_help = true)]
    overwrite: bool,
    /// Leave request and weights' hashes out of the clips; which of them are there the reports tell.
    #[arg(long, alias = "disable-image-metadata", hide_short_help = true)]
    no_metadata: bool,
    /// Folder searched for `<lora:name:0.8>` in prompts.
    #[arg(long, value_name = "DIR", alias = "lora-model-dir", hide_short_help = true)]
    lora_dir: Option<PathBuf>,
    /// Folder searched for the textual inversions that prompts name.
    #[arg(long, value_name = "DIR", aliases = ["embd-dir", "embeddings-dir"], hide_short_help = true)]
    embedding_dir: Option<PathBuf>,
    /// Folder of models that are found by name, as in `generate`; repeatable.
    #[arg(long, value_name = "DIR", aliases = ["ckpt-dir", "models-path"], hide_short_help = true)]
    models_dir: Vec<PathBuf>,
    /// Never use the network.
    #[arg(long, hide_short_help = true)]
    offline: bool,
    #[command(flatten)]
    pub(super) reporting: Reporting,
}

/// The value of `--shard`.
#[derive(Clone, Copy, Debug)]
enum Which {
    Auto,
    Of(Shard),
}

impl FromStr for Which {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Of) }
    }
}

pub(super) fn run(args: &BatchArgs, stop: &Stop) -> Result<()> {
    let (is_silent, is_json) =
        (args.reporting.quiet, args.reporting.progress == ProgressMode::Json);
    let note = |text: &str| {
        if !is_silent && !is_json {
            line(text);
        }
    };
    let shard = shard(args, &note)?;
    let template = args.name.clone().unwrap_or_default();
    let names = Names::new(args.offline)?.with_folders(&args.models_dir)?;
    let folders = Folders {
        lora: args.lora_dir.as_deref(),
        embedding: args.embedding_dir.as_deref(),
        has_embeddings: true,
    };
    check_places(args, shard)?;
    let list = batch::list(&args.manifest, &template, (&names, folders), stop)?;
    let ending = args.format.as_deref().unwrap_or("mp4");
    let ending = ending.trim_start_matches('.').to_lowercase();
    let settings = Settings { folder: &args.output, ending: &ending, shard };
    let plan = Plan::new(list, &names, settings, stop)?;
    if args.check {
        return check(args, &plan);
    }
    if args.dry_run {
        return dry_run(args, &plan);
    }
    let part = if shard == Shard::default() { String::new() } else { format!(", shard {shard}") };
    note(&format!("{} of {} clips to make{part}", missing(&plan).count(), plan.total));
    let options = Options {
        existing: if args.overwrite { Existing::Replace } else { Existing::Refuse },
        no_metadata: args.no_metadata,
        fail_fast: args.fail_fast,
    };
    let mut watch = Told { args, progress: Progress::new(&args.reporting, stop) };
    let counts = batch::run(&plan, &names, options, &mut watch, stop)?;
    note(&format!("{} made, {} there, {} failed", counts.done, counts.skipped, counts.failed));
    match counts.failed {
        0 => Ok(()),
        failed => Err(Error::Batch { failed, total: plan.items.len() }),
    }
}

/// The shard that is asked for, or that the environment says.
fn shard(args: &BatchArgs, note: &dyn Fn(&str)) -> Result<Shard> {
    match args.shard {
        None => Ok(Shard::default()),
        Some(Which::Of(shard)) if args.shards.is_none() => Ok(shard),
        Some(Which::Of(_)) => {
            Err(Error::request("shards", "is for --shard auto; I/N says it itself"))
        }
        Some(Which::Auto) => {
            let Found { shard, source, others } =
                Shard::auto(&|name| std::env::var(name).ok(), args.shards)?;
            let others = match others.as_slice() {
                [] => String::new(),
                others => format!("; {} do not count", others.join(", ")),
            };
            note(&format!("shard {shard} by {source}{others}"));
            Ok(shard)
        }
    }
}

/// Checks that the output is a folder, or can be one, and that the manifest is no report in it.
fn check_places(args: &BatchArgs, shard: Shard) -> Result<()> {
    let (manifest, output) = (&args.manifest, &args.output);
    if output.exists() && !output.is_dir() {
        let reason = format!("`{}` is not a folder", output.display());
        return Err(Error::request("output", reason));
    }
    let report = output.join(shard.report());
    if let (Ok(one), Ok(other)) = (manifest.canonicalize(), report.canonicalize())
        && one == other
    {
        let reason = format!("{} is where the report goes", manifest.display());
        return Err(Error::request("manifest", reason));
    }
    Ok(())
}

/// The items whose clips are not there.
fn missing(plan: &Plan) -> impl Iterator<Item = &batch::Planned> {
    plan.items.iter().filter(|planned| !matches!(planned.state, State::There(_)))
}

/// Answers `--check`.
fn check(args: &BatchArgs, plan: &Plan) -> Result<()> {
    let paths: Vec<String> =
        missing(plan).map(|planned| planned.path.to_string_lossy().into_owned()).collect();
    let total = plan.items.len();
    let there = total - paths.len();
    if args.reporting.json {
        let count = paths.len();
        let answer = json!({"items": total, "there": there, "missing": count, "paths": paths});
        print(&to_json(&answer)?)?;
    } else {
        print(&format!("{there} of {total} clips are there\n"))?;
    }
    match paths.len() {
        0 => Ok(()),
        missing => Err(Error::Unfinished { missing, total }),
    }
}

/// Answers `--dry-run`: a line for each item, in the order in which they would be made.
fn dry_run(args: &BatchArgs, plan: &Plan) -> Result<()> {
    for planned in &plan.items {
        let state = match planned.state {
            State::Missing => "missing",
            State::There(_) => "there",
            State::Other => "other",
        };
        let item = &planned.item;
        let text = if args.reporting.json {
            json!({
                "number": item.number, "line": item.line, "name": item.name, "key": planned.key,
                "path": planned.path.to_string_lossy(), "seed": item.seed(), "state": state,
            })
            .to_string()
        } else {
            format!("{state} {}", planned.path.display())
        };
        print(&format!("{text}\n"))?;
    }
    Ok(())
}

/// Shows a run.
struct Told<'a> {
    args: &'a BatchArgs,
    progress: Progress,
}

impl Observer for Told<'_> {
    fn event(&mut self, event: Event) -> Result<()> {
        self.progress.event(event)
    }

    fn step(&mut self, progress: &sampler::Progress<'_>) -> Result<()> {
        self.progress.step(progress)
    }
}

impl Watch for Told<'_> {
    fn begin(&mut self, at: At<'_>) {
        self.progress.item(at.item, at.items);
        self.progress.start();
    }

    fn end(&mut self, at: At<'_>, ended: &Record, error: Option<&Error>, left: f64) -> Result<()> {
        self.progress.finish();
        let reporting = &self.args.reporting;
        let is_json = reporting.progress == ProgressMode::Json;
        if is_json {
            let event = json!({
                "event": "item", "item": at.item, "items": at.items, "number": ended.number,
                "status": ended.status, "path": ended.path, "eta_seconds": left,
            });
            line(&event.to_string());
        } else if !reporting.quiet && ended.status != Status::Skipped {
            let to_go = match left {
                0.0 => String::new(),
                left => format!(", {} to go", duration(left)),
            };
            let (item, items, status) = (at.item, at.items, ended.status.name());
            line(&format!("{item}/{items} {} {status}{to_go}", ended.path));
        }
        // An interruption is told at the end.
        if let Some(error) = error.filter(|_| ended.status == Status::Failed) {
            report(error, is_json);
        }
        if reporting.json {
            let record = serde_json::to_string(ended)
                .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })?;
            return print(&format!("{record}\n"));
        }
        match ended.status {
            Status::Done | Status::Skipped => print(&format!("{}\n", ended.path)),
            Status::Failed | Status::Cancelled => Ok(()),
        }
    }
}
