//! `animatelcm models`: what is published, what is here, and moving files between the two.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::terminal::{escaped, line as say, print_to as print};
use crate::error::Bytes;
use crate::hub::manifest::Entry;
use crate::hub::{ENDPOINT, Event, Hub, Listing, Settings, State};
use crate::{Error, Result, Stop};

/// The arguments of `animatelcm models`.
#[derive(Clone, Debug, Args)]
pub(super) struct ModelsArgs {
    #[command(subcommand)]
    command: Command,
    /// Do not use the network; also `HF_HUB_OFFLINE=1`.
    #[arg(long, global = true)]
    offline: bool,
    /// Keep progress back.
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
    /// Which of a model's variants, such as `fp16` or `fp32`; the first one if left out.
    #[arg(long)]
    variant: Option<String>,
}

/// What the rest of the command line has to say about `models`.
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
    let settings = settings(offline)?;
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

/// The hub's settings from the environment, by the rules of huggingface_hub: `HF_HUB_CACHE`, `HF_HOME`,
/// `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`. `offline` is what the command line says.
pub(super) fn settings(offline: bool) -> Result<Settings> {
    let mut settings =
        settings_from(&|name| std::env::var_os(name), std::env::home_dir().as_deref())?;
    settings.offline |= offline;
    Ok(settings)
}

/// See <https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>.
fn settings_from(
    variable: &dyn Fn(&str) -> Option<OsString>,
    user_home: Option<&Path>,
) -> Result<Settings> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let folder = |name: &str| set(name).map(|value| expand(PathBuf::from(value), user_home));
    let home = folder("HF_HOME")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| user_home.map(|home| home.join(".cache").join("huggingface")));
    let Some(cache) = folder("HF_HUB_CACHE")
        .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| home.as_ref().map(|home| home.join("hub")))
    else {
        return Err(Error::request("HF_HOME", "there is no home folder, so it must be set"));
    };

    let mut settings = Settings::new(std::path::absolute(&cache).map_err(Error::file(&cache))?);
    if let Some(endpoint) = set("HF_ENDPOINT") {
        let endpoint = endpoint.to_string_lossy().trim_end_matches('/').to_owned();
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let reason = format!("`{endpoint}` is not an address like {ENDPOINT}");
            return Err(Error::request("HF_ENDPOINT", reason));
        }
        settings.endpoint = endpoint;
    }
    let token_file = folder("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
    settings.token = set("HF_TOKEN")
        .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
        .map(|token| token.to_string_lossy().into_owned())
        .or_else(|| crate::files::read_text(&token_file?).ok())
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty());
    settings.offline = set("HF_HUB_OFFLINE").is_some_and(|value| {
        let value = value.to_string_lossy().to_uppercase();
        matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE")
    });
    Ok(settings)
}

/// `~/x` in a variable was written by somebody who expected a shell to read it.
fn expand(path: PathBuf, user_home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), user_home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
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

    fn from(variables: &[(&str, &str)]) -> Result<Settings> {
        let lookup = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        };
        settings_from(&lookup, Some(Path::new("/nobody")))
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        for (variables, cache) in [
            (&[][..], "/nobody/.cache/huggingface/hub"),
            (&[("HF_HOME", "")], "/nobody/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/h/hub"),
            (&[("HF_HOME", "~/h")], "/nobody/h/hub"),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
        ] {
            assert_eq!(from(variables).unwrap().cache, Path::new(cache), "{variables:?}");
        }
    }

    #[test]
    fn offline_is_any_of_four_words() {
        for (value, offline) in
            [("1", true), ("on", true), ("Yes", true), ("TRUE", true), ("0", false), ("", false)]
        {
            assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).unwrap().offline, offline, "{value}");
        }
    }

    #[test]
    fn the_token_comes_from_the_variable_before_the_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let home = home.path().to_str().unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).unwrap().token.as_deref(), Some("hf_file"));
        let both = from(&[("HF_HOME", home), ("HF_TOKEN", "hf_variable")]).unwrap();
        assert_eq!(both.token.as_deref(), Some("hf_variable"));
        assert_eq!(from(&[("HF_HOME", "/nowhere")]).unwrap().token, None);
    }

    #[test]
    fn the_endpoint_loses_its_slash_and_must_be_an_address() {
        let mirror = from(&[("HF_ENDPOINT", "https://mirror.example/")]).unwrap();
        assert_eq!(mirror.endpoint, "https://mirror.example");
        assert_eq!(from(&[]).unwrap().endpoint, ENDPOINT);
        let error = from(&[("HF_ENDPOINT", "mirror.example")]).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Request);
    }

    #[test]
    fn the_token_is_not_in_the_debug_output() {
        let settings = from(&[("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{settings:?}").contains("hf_secret"));
    }

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
