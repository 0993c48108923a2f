//! `animatelcm models`: what is published, what is here, and moving files between the two.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use serde_json::json;

use super::flags::ProgressMode;
use super::terminal::{confirms, escaped, is_interactive, line as say, print_to as print};
use super::{examples, to_json};
use crate::error::Bytes;
use crate::hub::manifest::Entry;
use crate::hub::{
    Bundle, Event, Hub, Installed, Listing, Plan, PlannedModel, Removal, Settings, State,
};
use crate::{Error, Result, Stop};

/// The arguments of `animatelcm models`.
#[derive(Clone, Debug, Args)]
pub(super) struct ModelsArgs {
    #[command(subcommand)]
    command: Command,
    /// Do not use the network; also `HF_HUB_OFFLINE=1`.
    #[arg(long, global = true)]
    offline: bool,
    /// Display of progress, on stderr.
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "HOW",
        default_value_t,
        ignore_case = true
    )]
    pub(super) progress: ProgressMode,
    /// Hide progress.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print the result as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// List published models, and how much of each is on this machine.
    #[command(after_long_help = examples::LIST)]
    List,
    /// Download models and check their hashes.
    ///
    /// What is there already is only checked.
    #[command(after_long_help = examples::PULL)]
    Pull {
        #[command(flatten)]
        names: Names,
        /// Show what would be downloaded, and stop.
        #[arg(long)]
        dry_run: bool,
    },
    /// Compare the hashes of downloaded models with the published ones.
    #[command(after_long_help = examples::VERIFY)]
    Verify(Names),
    /// Print where a model's files are.
    ///
    /// A file, or the folder of a model of several files.
    #[command(after_long_help = examples::PATH)]
    Path(Names),
    /// Remove models from the hub cache, which other programs share.
    #[command(after_long_help = examples::RM)]
    Rm {
        /// Names from `models list`.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Clone, Debug, Args)]
struct Names {
    /// Names from `models list`, or TOML files of the same form as those in `weights-manifest/`.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Variant of the model, such as `fp16` or `fp32`; the first one if left out.
    #[arg(long)]
    variant: Option<String>,
}

/// Settings of the command line outside `models`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    /// Whether the network is off limits.
    pub(super) offline: bool,
    /// Display of progress; nothing, and no word about what was done, with `None`.
    pub(super) progress: ProgressMode,
    /// Set when the user wants the program to stop.
    pub(super) stop: &'a Stop,
}

impl Context<'_> {
    /// Returns whether stderr takes sentences.
    fn is_for_people(&self) -> bool {
        !matches!(self.progress, ProgressMode::Json | ProgressMode::None)
    }
}

/// Runs `animatelcm models` with the settings of the environment; results go to stdout.
pub(super) fn run(args: &ModelsArgs, context: Context<'_>) -> Result<()> {
    let offline = context.offline || args.offline;
    // JSON is for a program, which is not helped by its absence.
    let is_quiet = args.quiet && args.progress != ProgressMode::Json;
    let progress = if is_quiet { ProgressMode::None } else { args.progress };
    let context = Context { offline, progress, ..context };
    let mut settings = Settings::from_environment()?;
    settings.offline |= offline;
    run_with(args, settings, context, &mut std::io::stdout().lock())
}

/// Runs `animatelcm models` with given settings; results go to `out`.
fn run_with(
    args: &ModelsArgs,
    settings: Settings,
    context: Context<'_>,
    out: &mut dyn Write,
) -> Result<()> {
    let mut hub = Hub::new(settings)?;
    match &args.command {
        Command::List if args.json => print_json(out, &hub.list()?),
        Command::List => print(out, &table(&hub.list()?)),
        Command::Pull { names, dry_run } => {
            let known = names.known_to(&mut hub)?;
            let plans = known.iter().map(|name| hub.plan(name, names.variant.as_deref()));
            let plans: Vec<Plan> = plans.collect::<Result<_>>()?;
            if *dry_run && args.json {
                return print_json(out, &plans);
            }
            if *dry_run {
                return print(out, &plans.iter().map(planned).collect::<String>());
            }
            let bundles = pull(&hub, &plans, names.variant.as_deref(), context)?;
            if !args.json {
                return Ok(());
            }
            let json = |bundle: &Bundle| json!({"name": bundle.name, "parts": bundle.parts});
            print_json(out, &bundles.iter().map(json).collect::<Vec<_>>())
        }
        Command::Verify(names) => {
            let mut progress = Progress::new(context);
            let mut all = Vec::new();
            for name in names.known_to(&mut hub)? {
                let watch = &mut |event: &Event<'_>| progress.watch(event);
                for file in hub.verify(&name, names.variant.as_deref(), watch)? {
                    progress.pause();
                    let word = match (file.is_sound(), &file.expected) {
                        (false, _) => "WRONG",
                        (true, Some(_)) => "ok",
                        (true, None) => "unknown",
                    };
                    if !args.json {
                        print(out, &format!("{word:<8} {}  {}\n", file.sha256, file.file))?;
                    }
                    all.push(file);
                }
            }
            if args.json {
                print_json(out, &all)?;
            }
            let Some(wrong) = all.into_iter().find(|file| !file.is_sound()) else { return Ok(()) };
            let expected = wrong.expected.unwrap_or_default();
            let hint = format!("animatelcm models pull {} replaces it", wrong.model);
            let reason = format!("sha256 is {}, but should be {expected}", wrong.sha256);
            let name = format!("{}: {}", wrong.model, wrong.file);
            Err(Error::Refused { name, reason }.with_hint(hint))
        }
        Command::Path(names) => {
            let mut parts = Vec::new();
            for name in names.known_to(&mut hub)? {
                parts.extend(hub.resolve(&name, names.variant.as_deref())?.parts);
            }
            if args.json {
                return print_json(out, &parts);
            }
            let line = |part: &Installed| format!("{}\n", part.path().display());
            print(out, &parts.iter().map(line).collect::<String>())
        }
        Command::Rm { names, yes } => {
            let names: Vec<String> =
                names.iter().map(|name| known(name, &mut hub)).collect::<Result<_>>()?;
            let removals: Vec<Removal> =
                names.iter().map(|name| hub.removal(name)).collect::<Result<_>>()?;
            if !yes && !is_agreed(&removals)? {
                say("nothing was removed");
                return Ok(());
            }
            for Removal { name, .. } in &removals {
                let (files, bytes) = hub.remove(name)?;
                if context.is_for_people() {
                    say(&format!("{name}: removed {files} files, {}", Bytes(bytes)));
                }
            }
            if args.json { print_json(out, &removals) } else { Ok(()) }
        }
    }
}

/// Downloads what is missing of models that have names.
pub(super) fn pull_by_name(names: &[String], context: Context<'_>) -> Result<()> {
    let hub = Hub::new(Settings::from_environment()?)?;
    let plans: Vec<Plan> = names.iter().map(|name| hub.plan(name, None)).collect::<Result<_>>()?;
    pull(&hub, &plans, None, context).map(drop)
}

/// Says what models with these names would take, in a line.
pub(super) fn announced(names: &[String]) -> Result<String> {
    let hub = Hub::new(Settings::from_environment()?)?;
    let plans: Vec<Plan> = names.iter().map(|name| hub.plan(name, None)).collect::<Result<_>>()?;
    Ok(summary(&plans))
}

fn pull(
    hub: &Hub,
    plans: &[Plan],
    variant: Option<&str>,
    context: Context<'_>,
) -> Result<Vec<Bundle>> {
    if !hub.settings().offline && plans.iter().any(|plan| !plan.is_done()) {
        fits(plans)?;
        if context.is_for_people() {
            say(&summary(plans));
        }
    }
    let mut progress = Progress::new(context);
    let each = plans.iter();
    each.map(|plan| hub.pull(&plan.name, variant, &mut |event| progress.watch(event))).collect()
}

/// The models that are not all here, each once.
fn missing(plans: &[Plan]) -> Vec<&PlannedModel> {
    let mut seen = BTreeSet::new();
    let models = plans.iter().flat_map(|plan| &plan.models);
    models.filter(|model| !model.missing.is_empty() && seen.insert(&model.name)).collect()
}

/// `3.8 GiB in 3 models to /home/me/.cache/huggingface/hub, 210.0 GiB free`.
fn summary(plans: &[Plan]) -> String {
    let models = missing(plans);
    let bytes = models.iter().map(|model| model.bytes).fold(0, u64::saturating_add);
    let size = if bytes == 0 { "an unknown size".to_owned() } else { Bytes(bytes).to_string() };
    let count = match models.len() {
        1 => "1 model".to_owned(),
        count => format!("{count} models"),
    };
    let folder = plans.first().map(|plan| plan.folder.display().to_string()).unwrap_or_default();
    let free = plans.first().and_then(|plan| plan.free);
    let free = free.map(|free| format!(", {} free", Bytes(free))).unwrap_or_default();
    format!("{size} in {count} to {folder}{free}")
}

/// Fails when the disk has too little space.
fn fits(plans: &[Plan]) -> Result<()> {
    let needed = missing(plans).iter().map(|m| m.bytes).fold(0, u64::saturating_add);
    match plans.first() {
        Some(Plan { folder, free: Some(free), .. }) if needed > *free => {
            let reason = format!("{} needed, {} free", Bytes(needed), Bytes(*free));
            Err(Error::file(folder)(std::io::Error::new(std::io::ErrorKind::StorageFull, reason)))
        }
        _ => Ok(()),
    }
}

/// A plan for people: its first line, and a line for each model.
fn planned(plan: &Plan) -> String {
    let mut text = if plan.is_done() {
        format!("{}: everything is here\n", plan.name)
    } else {
        format!("{}: {}\n", plan.name, summary(std::slice::from_ref(plan)))
    };
    for model in &plan.models {
        let PlannedModel { name, repo, variant, licence, files, missing, bytes, .. } = model;
        let variant = variant.as_ref().map(|v| format!(" {v}")).unwrap_or_default();
        let state = match missing.len() {
            0 => format!("{files} files, all here"),
            count => format!("{count} of {files} files to download, {}", Bytes(*bytes)),
        };
        text.push_str(&format!("  {name}{variant}: {state}; {repo}; {licence}\n"));
    }
    text
}

/// Returns whether the user agrees that these files are removed.
fn is_agreed(removals: &[Removal]) -> Result<bool> {
    if !is_interactive() {
        let reason = "files that other programs may share are removed only after a question";
        return Err(Error::request("rm", reason).with_hint("-y removes them without one"));
    }
    for Removal { name, folders, files, bytes, .. } in removals {
        let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        say(&format!("{name}: {files} files, {} in {}", Bytes(*bytes), folders.join(", ")));
    }
    confirms("Remove them? Other programs may use them.", false)
}

fn print_json(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<()> {
    print(out, &to_json(value)?)
}

impl Names {
    fn known_to(&self, hub: &mut Hub) -> Result<Vec<String>> {
        self.names.iter().map(|name| known(name, hub)).collect()
    }
}

/// A name, or the name in a manifest file, which is added to the hub's.
fn known(name: &str, hub: &mut Hub) -> Result<String> {
    let path = Path::new(name);
    if path.extension().is_none_or(|extension| extension != "toml") {
        return hub.catalog().find(name).map(|entry| entry.name().to_owned());
    }
    let text = crate::files::read_text(path)
        .map_err(|e| Error::request("model", format!("{}: {e}", path.display())))?;
    let entry = Entry::parse(&text, path)?;
    let name = entry.name().to_owned();
    hub.insert(entry);
    Ok(name)
}

/// The width that the list keeps to.
const WIDTH: usize = 80;

/// The list for people: a line for each model, presets first as in the manifest, and what else there is to say below it.
fn table(listings: &[Listing]) -> String {
    let name = listings.iter().map(|listing| listing.name.len()).max().unwrap_or_default();
    let row = |cells: [&str; 4]| {
        let [title, kind, size, here] = cells;
        format!("{title:<name$}  {kind:<8}  {size:>9}  {here}").trim_end().to_owned() + "\n"
    };
    let mut text = row(["NAME", "KIND", "SIZE", "HERE"]);
    for listing in listings {
        let here = match listing.state {
            State::Installed if listing.variants.is_empty() => "yes".to_owned(),
            State::Installed => listing.variants.join("+"),
            State::Partial => "partly".to_owned(),
            State::Absent => "-".to_owned(),
        };
        let bytes = match listing.state {
            State::Installed => Some(listing.bytes),
            State::Partial | State::Absent => listing.download,
        };
        let size = bytes.map_or_else(|| "?".to_owned(), |bytes| Bytes(bytes).to_string());
        text.push_str(&row([&listing.name, &listing.kind, &size, &here]));
        let mut facts = vec![listing.title.clone()];
        if listing.parts.is_empty() {
            facts.extend(listing.licences.first().map(|licence| licence.name.clone()));
        } else {
            facts.push(format!("= {}", listing.parts.join(" + ")));
        }
        if !listing.offered.is_empty() {
            facts.push(format!("variants {}", listing.offered.join(", ")));
        }
        text.push_str(&wrapped(&facts.join("; ")));
    }
    text
}

/// Words in indented lines.
fn wrapped(words: &str) -> String {
    let mut lines = vec![String::from("   ")];
    for word in words.split(' ') {
        let is_full = |line: &String| line.chars().count() + 1 + word.chars().count() > WIDTH;
        if lines.last().is_none_or(is_full) {
            lines.push(String::from("   "));
        }
        if let Some(line) = lines.last_mut() {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

/// Shows a pull or a check: a bar on a terminal, a line now and then elsewhere, or JSON.
struct Progress<'a> {
    context: Context<'a>,
    bar: Option<ProgressBar>,
    file: String,
    tenths: u64,
    last_words: String,
}

impl<'a> Progress<'a> {
    fn new(context: Context<'a>) -> Self {
        let has_bar = match context.progress {
            ProgressMode::Auto => std::io::stderr().is_terminal(),
            ProgressMode::Bar => true,
            ProgressMode::Json | ProgressMode::None => false,
        };
        let bar = has_bar.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let template =
                "{prefix:>8} {wide_msg} {bytes:>10}/{total_bytes:<10} {bytes_per_sec:>12} {eta:>4}";
            bar.with_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            )
        });
        Self { context, bar, file: String::new(), tenths: 0, last_words: String::new() }
    }

    fn watch(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        match *event {
            event if self.context.progress == ProgressMode::Json => {
                // Texts and numbers: nothing that JSON lacks.
                say(&serde_json::to_string(&event).unwrap_or_default());
            }
            Event::Download { file, done, total } => self.advance("download", file, done, total),
            Event::Check { file, done, total } => self.advance("check", file, done, total),
            Event::Done { file } => {
                self.pause();
                self.words(format!("{file}: ok"));
            }
            Event::Retry { file, reason } => self.words(format!("{file}: {reason}, trying again")),
            Event::Mirror { reason, repo } => self.words(format!("{reason}, trying `{repo}`")),
        }
        if self.context.stop.is_requested() {
            self.pause();
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn advance(&mut self, verb: &'static str, file: &str, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            if bar.message() != escaped(file) || bar.prefix() != verb {
                bar.reset();
                bar.set_prefix(verb);
                bar.set_message(escaped(file).into_owned());
            }
            bar.set_length(total);
            bar.set_position(done);
            return;
        }
        let tenths = (done * 10).checked_div(total).unwrap_or(0);
        if self.file != file {
            file.clone_into(&mut self.file);
            self.tenths = u64::MAX;
        }
        // Hashing is quick enough to be silent.
        if verb == "download" && total > 0 && tenths != self.tenths && self.context.is_for_people()
        {
            self.tenths = tenths;
            say(&format!("{file}: {} of {}", Bytes(done), Bytes(total)));
        }
    }

    fn words(&mut self, text: String) {
        if !self.context.is_for_people() || text == self.last_words {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| say(&text)),
            None => say(&text),
        }
        self.last_words = text;
    }

    /// Takes the bar away, so that what is printed next stands on a clean line.
    fn pause(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_80_columns_and_has_every_entry() {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::new(Settings::new(cache.path())).unwrap();
        let listings = hub.list().unwrap();
        let text = table(&listings);
        let named = text.lines().skip(1).filter(|line| !line.starts_with(' ')).count();
        assert_eq!(named, listings.len(), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let line = text.lines().find(|line| line.starts_with("animatelcm ")).unwrap();
        assert!(line.contains("3.8 GiB"), "{line}");
        for part in ["sd15 + animatelcm-t2v +", "variants fp16, fp32", "Apache-2.0"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_plan_says_what_how_much_and_where() {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::new(Settings::new(cache.path())).unwrap();
        let plans = [hub.plan("animatelcm", None).unwrap(), hub.plan("sd15", None).unwrap()];
        let text = summary(&plans);
        let folder = cache.path().display().to_string();
        assert!(text.starts_with("3.8 GiB in 3 models to ") && text.contains(&folder), "{text}");
        let text = planned(&plans[0]);
        assert!(text.contains("sd15 fp16: ") && text.contains("CreativeML"), "{text}");
        #[cfg(unix)]
        assert!(plans[0].free.is_some());
        let mut full = plans;
        full[0].free = Some(1 << 20);
        let error = fits(&full).unwrap_err();
        assert!(error.to_string().contains("3.8 GiB needed, 1.0 MiB free"), "{error}");
        assert!(error.hint().unwrap().contains("space"), "{error:?}");
    }
}
