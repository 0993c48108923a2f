//! The words of the command line, read.
//!
//! What follows a flag that takes a value is its value, also where it begins with a dash: `-n "-blurry"`, `--seed -1`.
//! Long flags may be written as in Python, `--num_inference_steps`, and in capitals.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use super::args::Cli;

/// Reads the words of a command line, the program's name included.
pub(super) fn parse<I>(words: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    Cli::from_arg_matches(&matches(words)?)
}

/// The words of a command line by flag.
pub(super) fn matches<I>(words: I) -> Result<ArgMatches, clap::Error>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let mut words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    let mut command = with_dashes(Cli::command());
    if wants_short_help(&words) {
        command = command.mut_subcommands(in_one_section);
    }
    command.build();
    if let Some((flag, next)) = spell(&command, &mut words) {
        let message = format!(
            "`{flag}` has no value: `{next}` is another flag\n\n  tip: {flag}={next} takes it as the value"
        );
        return Err(command.error(ErrorKind::InvalidValue, message));
    }
    command.try_get_matches_from_mut(words)
}

/// All commands and their flags.
pub(super) fn definition() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// What clap says of a command line, on one line.
pub(super) fn reason(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let lines: Vec<&str> =
        text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    lines
        .join(" ")
        .replace("invalid digit found in string", "not a whole number from 0 on")
        .replace("number too large to fit in target type", "too large a number")
        .replace("invalid float literal", "not a number")
}

/// Lets the values of all flags begin with a dash.
fn with_dashes(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let is_flag = !arg.is_positional() && arg.get_action().takes_values();
            if is_flag && !arg.is_require_equals_set() {
                arg.allow_hyphen_values(true)
            } else {
                arg
            }
        })
        .mut_subcommands(with_dashes)
}

/// Puts all flags under one heading, so that the short help fits a screen.
fn in_one_section(command: Command) -> Command {
    command.mut_args(|arg| arg.help_heading(None)).mut_subcommands(in_one_section)
}

/// Returns whether `-h` was typed.
fn wants_short_help(words: &[OsString]) -> bool {
    words.iter().take_while(|word| *word != "--").any(|word| word == "-h")
}

/// Writes long flags as they are defined. The first flag that another flag stands behind where its value should be, and
/// that other flag.
fn spell(mut command: &Command, words: &mut Vec<OsString>) -> Option<(String, String)> {
    let mut flags = Flags::of(command);
    let mut owner: Option<String> = None;
    let mut at = 0;
    while let Some(word) = words.get(at + 1) {
        at += 1;
        // A word that is not UTF-8, such as a path in bytes, is not a flag.
        let text = word.to_str().unwrap_or_default().to_owned();
        if let Some(owner) = owner.take() {
            if flags.is_flag(&text) {
                return Some((owner, text));
            }
            continue;
        }
        if text == "--" {
            break;
        }
        let text = match flags.spelled(&text) {
            Some(spelled) => {
                words[at] = spelled.clone().into();
                spelled
            }
            None => text,
        };
        if text == "--preview" && flags.long.contains_key("preview") {
            // Its value may be left out, so a file stands behind it as any other word does.
            if let Some(place) = words.get(at + 1).and_then(|next| preview_place(next)) {
                words[at] = format!("--preview={place}").into();
                words.remove(at + 1);
            }
        } else if text.starts_with('-') {
            owner = flags.wants_next(&text).then_some(text);
        } else if let Some(found) = command.find_subcommand(&text) {
            command = found;
            flags = Flags::of(command);
        }
    }
    None
}

/// A word that says where previews go: `-`, or an animation.
fn preview_place(word: &OsStr) -> Option<String> {
    let text = word.to_str()?;
    let is_file = [".gif", ".webp", ".png", ".apng"]
        .iter()
        .any(|ending| text.len() > ending.len() && text.to_ascii_lowercase().ends_with(ending));
    (text == "-" || is_file).then(|| text.to_owned())
}

/// The path of the command that was typed: `generate`, `models pull`.
pub(super) fn command_of(words: &[OsString]) -> String {
    let definition = definition();
    let (mut command, mut path) = (&definition, Vec::new());
    for word in words.iter().skip(1).map(|word| word.to_str().unwrap_or_default()) {
        let Some(found) = command.find_subcommand(word) else { break };
        path.push(found.get_name().to_owned());
        command = found;
    }
    path.join(" ")
}

/// The long flags of a command, without the names of other programs.
pub(super) fn long_flags(path: &str) -> Vec<String> {
    let definition = definition();
    let mut command = &definition;
    for name in path.split_whitespace() {
        let Some(found) = command.find_subcommand(name) else { break };
        command = found;
    }
    command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
}

/// The flags of a command, and whether each takes a value.
struct Flags {
    long: HashMap<String, bool>,
    short: HashMap<char, bool>,
}

impl Flags {
    fn of(command: &Command) -> Self {
        let (mut long, mut short) = (HashMap::new(), HashMap::new());
        for arg in command.get_arguments() {
            let takes_value = arg.get_action().takes_values() && !arg.is_require_equals_set();
            let longs = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
            long.extend(longs.map(|name| (name.to_owned(), takes_value)));
            let aliases = arg.get_all_short_aliases().unwrap_or_default();
            let shorts = arg.get_short().into_iter().chain(aliases);
            short.extend(shorts.map(|name| (name, takes_value)));
        }
        Self { long, short }
    }

    /// A long flag as it is defined, if the word is one in capitals or with underscores.
    fn spelled(&self, word: &str) -> Option<String> {
        let word = word.strip_prefix("--")?;
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, format!("={value}")),
            None => (word, String::new()),
        };
        let spelled = spelled(name);
        let is_other = spelled != name && !self.long.contains_key(name);
        (is_other && self.long.contains_key(&spelled)).then(|| format!("--{spelled}{value}"))
    }

    /// Returns whether the value of a word that begins with a dash is the next word.
    fn wants_next(&self, word: &str) -> bool {
        if let Some(name) = word.strip_prefix("--") {
            return self.long.get(name) == Some(&true);
        }
        // In a group of short flags, the first that takes a value takes the rest of the group, if there is any.
        let letters = word.strip_prefix('-').unwrap_or_default();
        let taking = letters.char_indices().find(|(_, c)| self.short.get(c) != Some(&false));
        taking.is_some_and(|(at, c)| {
            self.short.contains_key(&c) && at + c.len_utf8() == letters.len()
        })
    }

    /// Returns whether a word is exactly a flag.
    fn is_flag(&self, word: &str) -> bool {
        if let Some(name) = word.strip_prefix("--") {
            let name = name.split_once('=').map_or(name, |(name, _)| name);
            return self.long.contains_key(name) || self.spelled(word).is_some();
        }
        let mut letters = word.strip_prefix('-').unwrap_or_default().chars();
        matches!((letters.next(), letters.next()), (Some(c), None) if self.short.contains_key(&c))
    }
}

/// The name of a flag in lower case and with dashes.
pub(super) fn spelled(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

/// Returns whether JSON events were requested on a command line that could not be parsed.
pub(super) fn wants_json(words: &[OsString]) -> bool {
    let is = |word: &OsStr, text: &str| word.to_str().is_some_and(|w| w.eq_ignore_ascii_case(text));
    words.iter().any(|word| is(word, "--progress=json"))
        || words.windows(2).any(|pair| match pair {
            [flag, value] => flag == "--progress" && is(value, "json"),
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args;
    use crate::cli::flags::{GenerateArgs, Seed};
    use crate::cli::preview::{PreviewTo, Protocol};

    fn generate(words: &[&str]) -> Result<Box<GenerateArgs>, clap::Error> {
        let words = ["animatelcm", "generate"].iter().chain(words).copied();
        parse(words).map(|cli| match cli.command {
            args::Command::Generate(args) => args,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn values_may_begin_with_a_dash() {
        let args = generate(&["-p", "-x", "-n", "-blurry", "--seed", "-1", "-yo", "-"]).unwrap();
        assert_eq!(args.prompt_flag.as_deref(), Some("-x"));
        assert_eq!(args.negative_prompt.as_deref(), Some("-blurry"));
        assert_eq!(args.sampling.seed, Some(Seed::Random));
        assert!(args.output.overwrite);
        // A value that may be left out is given with `=` only.
        let args = generate(&["--preview", "x", "-q"]).unwrap();
        assert_eq!(args.prompt.as_deref(), Some("x"));
        assert_eq!(args.output.preview, Some(PreviewTo::Terminal(Protocol::Auto)));
        let preview = |words: &[&str]| generate(words).unwrap().output.preview;
        let terminal = |protocol| Some(PreviewTo::Terminal(protocol));
        assert_eq!(preview(&["x", "--preview=Sixel"]), terminal(Protocol::Sixel));
        assert_eq!(preview(&["--preview", "-", "x"]), terminal(Protocol::Auto));
        assert_eq!(preview(&["x", "--PREVIEW"]), terminal(Protocol::Auto));
        let file = |path: &str| Some(PreviewTo::File(path.into()));
        assert_eq!(preview(&["--preview", "a b.WEBP", "x"]), file("a b.WEBP"));
        assert_eq!(preview(&["x", "--preview=d/p.gif", "-o", "c.gif"]), file("d/p.gif"));
        // Letters that are flags, too, and what looks like a long flag but is none.
        let args = generate(&["x", "-n", "-no hats", "-s", "7", "--lora", "--mine.pt"]).unwrap();
        assert_eq!(args.negative_prompt.as_deref(), Some("-no hats"));
        assert_eq!(args.sampling.seed, Some(Seed::Of(7)));
        assert_eq!(args.models.lora[0].file, "--mine.pt");
        let args = generate(&["x", "--negative-prompt=--seed", "-n=-s"]);
        assert!(args.is_err(), "given twice");
        assert_eq!(generate(&["x", "-n=-s"]).unwrap().negative_prompt.as_deref(), Some("-s"));
    }

    #[test]
    fn every_flag_with_a_value_takes_one_with_a_dash() {
        fn check(command: &Command) {
            for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
                let takes = arg.get_action().takes_values() && !arg.is_require_equals_set();
                assert_eq!(takes, arg.is_allow_hyphen_values_set(), "{}", arg.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&with_dashes(Cli::command()));
    }

    #[test]
    fn a_flag_without_its_value_does_not_take_the_next_flag() {
        for words in [
            &["x", "-n", "--seed", "4"][..],
            &["x", "-n", "--seed=4"],
            &["x", "--lora", "-y"],
            &["x", "-yo", "-q"],
            &["x", "--steps", "--guidance-scale", "2"],
        ] {
            let error = generate(words).unwrap_err().to_string();
            assert!(error.contains("has no value"), "{words:?}: {error}");
        }
        assert!(generate(&["--", "-n", "--seed"]).is_err(), "two prompts");
        assert_eq!(generate(&["--", "--seed"]).unwrap().prompt.as_deref(), Some("--seed"));
    }

    #[test]
    fn flags_have_the_names_of_other_programs_in_any_case() {
        let args = generate(&[
            "x",
            "--num_inference_steps=6",
            "--Guidance_Scale",
            "2.5",
            "--sampling-method",
            "euler_a",
            "--video-frames",
            "8",
            "--scheduler=sgm_uniform",
            "--NEGATIVE_PROMPT",
            "--mine",
            "-b",
            "3",
            "--lora-model-dir=d",
        ])
        .unwrap();
        assert_eq!(args.sampling.steps, Some(6));
        assert_eq!(args.sampling.cfg_scale, Some(2.5));
        assert_eq!(args.sampling.sampler.as_deref(), Some("euler_a"));
        assert_eq!(args.sampling.spacing, Some(crate::schedule::Spacing::SgmUniform));
        assert_eq!(args.clip.frames, Some(8));
        assert_eq!(args.negative_prompt.as_deref(), Some("--mine"));
        assert_eq!(args.output.count, Some(3));
        assert_eq!(args.lora_dir.as_deref(), Some(std::path::Path::new("d")));
        // What is a value stays as it is.
        let args = generate(&["x", "-n", "--No_Hats", "--", "--SEED"]);
        assert!(args.is_err(), "two prompts");
        let args = generate(&["-n", "--No_Hats", "--", "--SEED"]).unwrap();
        assert_eq!(args.negative_prompt.as_deref(), Some("--No_Hats"));
        assert_eq!(args.prompt.as_deref(), Some("--SEED"));
    }

    #[test]
    fn names_of_other_programs_are_documented() {
        let docs = include_str!("../../docs/programs.md");
        let command = Cli::command();
        let generate = command.find_subcommand("generate").unwrap();
        for alias in generate.get_arguments().filter_map(clap::Arg::get_all_aliases).flatten() {
            assert!(docs.contains(&format!("`--{alias}`")), "{alias}");
        }
    }

    #[test]
    fn the_command_is_what_was_typed_first() {
        let of = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(Into::into).collect();
            command_of(&words)
        };
        assert_eq!(of(&["animatelcm", "generate", "x", "--frame", "replay"]), "generate");
        assert_eq!(of(&["animatelcm", "--no"]), "");
        #[cfg(feature = "hub")]
        assert_eq!(of(&["animatelcm", "models", "pull", "--no"]), "models pull");
    }

    /// The lines of a command's short help on 80 columns.
    fn short_help(command: &str) -> Vec<String> {
        let mut whole = with_dashes(Cli::command()).mut_subcommands(in_one_section).term_width(80);
        whole.build();
        let found = whole.find_subcommand_mut(command).unwrap();
        found.clone().term_width(80).render_help().to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_short_help_of_every_command_fits_a_screen() {
        let names: Vec<String> =
            Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        for name in names {
            let lines = short_help(&name);
            let text = lines.join("\n");
            assert!(lines.len() < 24, "{name} has {} lines:\n{text}", lines.len());
            assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
        }
        let text = Cli::command().term_width(80).render_help().to_string();
        assert!(text.lines().count() < 24, "{text}");
        let text = short_help("generate").join("\n");
        for flag in ["--model", "--lora", "--steps", "--seed", "--output"] {
            assert!(text.contains(flag), "{text}");
        }
    }

    #[test]
    fn a_seed_is_a_number_or_random() {
        let seed = |text: &str| text.parse::<Seed>();
        assert_eq!(seed("-1"), Ok(Seed::Random));
        assert_eq!(seed("18446744073709551615"), Ok(Seed::Of(u64::MAX)));
        for wrong in ["-2", "", "1.5", "18446744073709551616", "x"] {
            assert!(seed(wrong).unwrap_err().contains("-1 for a random one"), "{wrong}");
        }
    }
}
