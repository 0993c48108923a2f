//! The command line: what was typed, what it means, and what comes of it.
//!
//! Results go to stdout, everything else to stderr.

mod about;
mod args;
mod batch;
mod bench;
mod completions;
mod config;
mod eval;
mod examples;
mod flags;
#[cfg(feature = "nats")]
mod fleet;
mod generate;
mod hints;
mod inline;
mod inspect;
#[cfg(feature = "hub")]
mod models;
mod panics;
mod preprocess;
mod preview;
mod progress;
mod replay;
#[cfg(feature = "server")]
mod serve;
mod signals;
mod terminal;
mod threads;
#[cfg(feature = "train")]
mod train;
mod tune;
mod typed;
#[cfg(feature = "nats")]
mod worker;

use std::borrow::Cow;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::pipeline::Event;
use crate::{Error, Result, Stop};
use args::{Cli, Command};
#[cfg(feature = "hub")]
use flags::ProgressMode;
use signals::Answer;
use terminal::print;
pub use tune::Allocator;

/// Reads a request of this or another program, without running it: for fuzzing.
///
/// # Errors
///
/// When the file holds none.
#[doc(hidden)]
pub fn read_request(path: &std::path::Path) -> Result<crate::request::Job> {
    crate::job::import(path, false, &Stop::default()).map(|imported| imported.job)
}

/// Parses the command line, runs it and gives the exit code.
pub fn main() -> ExitCode {
    tune::at_start();
    panics::hide();
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = match typed::parse(&words) {
        Ok(cli) => cli,
        Err(error) => return not_run(&error, &words),
    };
    let cli = match config::over(cli, &words) {
        Ok(cli) => cli,
        Err(error) => {
            report(&error, typed::wants_json(&words));
            return ExitCode::from(error.kind().exit_code());
        }
    };
    if let Some(count) = cli.threads() {
        tune::use_threads(count);
    }
    let as_json = cli.wants_json_events();
    let answer = if as_json { Answer::Json } else { Answer::Line };
    match panics::caught(|| threads::start().and_then(|()| run(cli, &signals::stop(answer)?))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, as_json);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// Shows help and versions, and says what was mistyped.
fn not_run(error: &clap::Error, words: &[OsString]) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(error.exit_code() as u8);
    }
    let error = mistyped(error, words);
    report(&error, typed::wants_json(words));
    ExitCode::from(error.kind().exit_code())
}

/// The paragraphs of clap as one line and a hint, like every other error.
fn mistyped(error: &clap::Error, words: &[OsString]) -> Error {
    let text = error.to_string();
    let reason = typed::reason(error);
    let command = typed::command_of(words);
    let help = match command.as_str() {
        "" => "see `animatelcm --help`".to_owned(),
        command => format!("see `animatelcm {command} --help`"),
    };
    // A value's own error may have advice, which clap does not print.
    let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref::<Error>());
    let own = cause.and_then(Error::hint).map(Cow::into_owned);
    let tip = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(word))) => {
            hints::unknown(&typed::long_flags(&command), word)
        }
        (ErrorKind::ValueValidation | ErrorKind::InvalidValue, _) if is_group(error, words) => {
            Some(hints::DASHES.to_owned())
        }
        _ => {
            let mut tips = text.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
            tips.next().map(str::to_owned)
        }
    };
    Error::request("command line", reason).with_hint(own.or(tip).unwrap_or(help))
}

/// Returns whether the wrong value was typed in one word with a short flag, as in `-blurry`.
fn is_group(error: &clap::Error, words: &[OsString]) -> bool {
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else {
        return false;
    };
    let begins = |word: &str| {
        let letters = word.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
        letters
            .and_then(|rest| rest.strip_suffix(value.as_str()))
            .is_some_and(|flag| flag.chars().count() == 1)
    };
    value.starts_with(char::is_alphabetic)
        && words.iter().filter_map(|word| word.to_str()).any(begins)
}

fn run(cli: Cli, stop: &Stop) -> Result<()> {
    match cli.command {
        Command::Generate(args) => generate::run(*args, stop),
        Command::Batch(args) => batch::run(&args, stop),
        Command::Replay(args) => replay::run(&args, stop),
        Command::Inspect(args) => inspect::run(&args, stop),
        Command::Eval(args) => eval::run(&args, stop),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(&args, stop),
        #[cfg(feature = "server")]
        Command::Serve(args) => serve::run(*args, stop),
        #[cfg(feature = "nats")]
        Command::Worker(args) => worker::run(*args, stop),
        #[cfg(feature = "server")]
        Command::Keys(args) => serve::keys(&args),
        Command::Preprocess(args) => preprocess::run(&args, stop),
        Command::Bench(args) => bench::run(&args, stop),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => completions::man(&args),
        Command::Licenses => about::licenses(),
        Command::Config(args) => config::run(&args),
        #[cfg(feature = "hub")]
        Command::Models(args) => {
            let context = models::Context { offline: false, progress: ProgressMode::Auto, stop };
            models::run(&args, context)
        }
    }
}

/// Says what went wrong: a line and perhaps a hint, or one JSON event.
fn report(error: &Error, as_json: bool) {
    let text = if as_json {
        Event::from(error).to_json()
    } else {
        let one_line = error.to_string().replace('\n', " ");
        let hint = error.hint().map(|hint| format!("\nhint: {}", hint.replace('\n', " ")));
        format!("error: {one_line}{}", hint.unwrap_or_default())
    };
    terminal::line(&text);
}

/// Pretty JSON with a line break at its end.
fn to_json(value: &impl serde::Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })?;
    Ok(text + "\n")
}

/// `1 h 05 min`, `5 min 07 s`, `9 s`.
fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_mistyped_fits_on_a_line() {
        let parse = |words: &[&str]| {
            let words = ["animatelcm", "generate"].iter().chain(words);
            let words: Vec<OsString> = words.map(Into::into).collect();
            mistyped(&typed::parse(words.clone()).unwrap_err(), &words)
        };
        let error = parse(&["x", "--fram", "4"]);
        assert_eq!(error.to_string(), "command line: unexpected argument '--fram' found");
        assert!(error.hint().unwrap().contains("--frames"), "{error:?}");
        let error = parse(&["x", "--progress", "loud"]);
        assert!(error.to_string().contains("[possible values: auto, bar, json, none]"), "{error}");
        let error = parse(&["x", "--frames", "many"]);
        assert!(error.to_string().ends_with("'--frames <N>': not a whole number"), "{error}");
        assert_eq!(error.hint().as_deref(), Some("see `animatelcm generate --help`"));
        let error = parse(&["x", "-W", "-64"]);
        assert!(error.to_string().contains("'-64'"), "{error}");
        assert!(error.to_string().ends_with("must be at least 8"), "{error}");
        assert!(parse(&["-blurry"]).hint().unwrap().contains("-p"));
        let error = parse(&["x", "-n", "--seed", "1"]);
        assert!(error.to_string().contains("`--seed` is another flag"), "{error}");
        assert_eq!(error.hint().as_deref(), Some("-n=--seed takes it as the value"));
        for (word, advice) in [
            ("--format", "clip.mp4"),
            ("--threads", "RAYON_NUM_THREADS"),
            ("-t", "RAYON_NUM_THREADS"),
            ("--init-image", "--image FILE"),
            ("-i", "--video FILE"),
            ("--strenght", "`--strength`"),
            ("--control-net", "--control NAME="),
            ("--samplr", "`--sampler`"),
            ("--colour", "see `animatelcm generate --help`"),
        ] {
            let error = parse(&["x", word, "4"]);
            assert!(error.hint().unwrap().contains(advice), "{word}: {error:?}");
        }
    }
}
