//! `animatelcm models`: what is published, what is here, and moving files between the two.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::terminal::{escaped, line as say, print_to as print};
use crate::error::Bytes;
use crate::hub::manifest::Entry;
use crate::hub::{Event, Hub, Listing, Settings, State};
use crate::{Error, Result, Stop};

/// The arguments of `animatelcm models`.
#[derive(Clone, Debug, Args)]
pub(super) struct ModelsArgs {
    #[command(subcommand)]
    command: Command,
    /// Do not use the network; also `HF_HUB_OFFLINE=1`.
    #[arg(long, global = true)]
    offline: bool,
    /// Hide progress.
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Show every model that has a name, and how much of it is on this machine.
    List {
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Download models and check their hashes; what is there already is only checked.
    Pull(Names),
    /// Compute the hashes of downloaded models and compare them with the published ones.
    Verify(Names),
    /// Print where a model's files are: a file, or the folder of a model of several files.
    Path(Names),
    /// Remove models from the hub cache.
    Rm {
        /// Names from `models list`.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
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
    /// Whether progress is kept back.
    pub(super) quiet: bool,
    /// Set when the user wants the program to stop.
    pub(super) stop: &'a Stop,
}

/// Runs `animatelcm models` with the settings of the environment; results go to stdout.
pub(super) fn run(args: &ModelsArgs, context: Context<'_>) -> Result<()> {
    let offline = context.offline || args.offline;
    let context = Context { offline, quiet: context.quiet || args.quiet, ..context };
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
        Command::List { json: true } => {
            let mut text =
                serde_json::to_string_pretty(&hub.list()?).map_err(|e| print_error(e.into()))?;
            text.push('\n');
            print(out, &text)
        }
        Command::List { json: false } => print(out, &table(&hub.list()?)),
        Command::Pull(names) => {
            let mut progress = Progress::new(context);
            for name in names.known_to(&mut hub)? {
                hub.pull(&name, names.variant.as_deref(), &mut |event| progress.watch(event))?;
            }
            Ok(())
        }
        Command::Verify(names) => {
            let mut progress = Progress::new(context);
            let mut first_wrong = None;
            for name in names.known_to(&mut hub)? {
                let watch = &mut |event: &Event<'_>| progress.watch(event);
                for file in hub.verify(&name, names.variant.as_deref(), watch)? {
                    progress.pause();
                    let word = match (file.is_sound(), &file.expected) {
                        (false, _) => "WRONG",
                        (true, Some(_)) => "ok",
                        (true, None) => "unknown",
                    };
                    print(out, &format!("{word:<8} {}  {}\n", file.sha256, file.file))?;
                    if !file.is_sound() {
                        first_wrong.get_or_insert(file);
                    }
                }
            }
            let Some(wrong) = first_wrong else { return Ok(()) };
            let expected = wrong.expected.unwrap_or_default();
            let hint = format!("animatelcm models pull {} replaces it", wrong.model);
            let reason = format!("sha256 is {}, but should be {expected}", wrong.sha256);
            let name = format!("{}: {}", wrong.model, wrong.file);
            Err(Error::Refused { name, reason }.with_hint(hint))
        }
        Command::Path(names) => {
            for name in names.known_to(&mut hub)? {
                let bundle = hub.resolve(&name, names.variant.as_deref())?;
                for part in &bundle.parts {
                    print(out, &format!("{}\n", part.path().display()))?;
                }
            }
            Ok(())
        }
        Command::Rm { names } => {
            for name in names {
                let name = known(name, &mut hub)?;
                let (files, bytes) = hub.remove(&name)?;
                if !context.quiet {
                    say(&format!("{name}: removed {files} files, {}", Bytes(bytes)));
                }
            }
            Ok(())
        }
    }
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

/// The list for people: a line a model, presets first as in the manifest.
fn table(listings: &[Listing]) -> String {
    let rows = listings.iter().map(|listing| {
        let state = match listing.state {
            State::Installed if listing.variants.is_empty() => "yes".to_owned(),
            State::Installed => listing.variants.join("+"),
            State::Partial => "partly".to_owned(),
            State::Absent => "-".to_owned(),
        };
        let bytes = match listing.state {
            State::Installed => listing.bytes,
            State::Partial | State::Absent => listing.download,
        };
        let size = if bytes == 0 { "?".to_owned() } else { Bytes(bytes).to_string() };
        let licence = if listing.parts.is_empty() {
            listing.licences.first().map_or(String::new(), |licence| licence.name.clone())
        } else {
            listing.parts.join(" + ")
        };
        [listing.name.clone(), listing.kind.clone(), state, size, licence, listing.title.clone()]
    });
    let head = ["NAME", "KIND", "HERE", "SIZE", "LICENCE OR PARTS", "TITLE"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn print_error(error: std::io::Error) -> Error {
    Error::file("stdout")(error)
}

/// Shows a pull or a check: a bar on a terminal, a line now and then elsewhere.
struct Progress<'a> {
    context: Context<'a>,
    bar: Option<ProgressBar>,
    file: String,
    tenths: u64,
    last_words: String,
}

impl<'a> Progress<'a> {
    fn new(context: Context<'a>) -> Self {
        let terminal = std::io::stderr().is_terminal() && !context.quiet;
        let bar = terminal.then(|| {
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
        if verb == "download" && total > 0 && tenths != self.tenths && !self.context.quiet {
            self.tenths = tenths;
            say(&format!("{file}: {} of {}", Bytes(done), Bytes(total)));
        }
    }

    fn words(&mut self, text: String) {
        if self.context.quiet || text == self.last_words {
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
    fn the_table_has_a_line_for_every_entry() {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::new(Settings::new(cache.path())).unwrap();
        let listings = hub.list().unwrap();
        let text = table(&listings);
        assert_eq!(text.lines().count(), listings.len() + 1);
        let line = text.lines().find(|line| line.starts_with("animatelcm ")).unwrap();
        assert!(line.contains("sd15 + animatelcm-t2v + animatelcm-t2v-lora"), "{line}");
        assert!(line.contains("3.8 GiB"), "{line}");
    }
}
