//! The words of the command line, read.
//!
//! What follows a flag that takes a value is its value, also where it begins with a dash: `-n "-blurry"`, `--seed -1`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, FromArgMatches};

use super::args::Cli;

/// Reads the words of a command line, the program's name included.
pub(super) fn parse<I>(words: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    let mut command = with_dashes(Cli::command());
    command.build();
    if let Some((flag, next)) = without_value(&command, &words) {
        let message = format!(
            "`{flag}` has no value: `{next}` is another flag\n\n  tip: {flag}={next} takes it as the value"
        );
        return Err(command.error(ErrorKind::InvalidValue, message));
    }
    Cli::from_arg_matches(&command.try_get_matches_from_mut(words)?)
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

/// The first flag that another flag stands behind where its value should be.
fn without_value<'a>(mut command: &Command, words: &'a [OsString]) -> Option<(&'a str, &'a str)> {
    let mut flags = Flags::of(command);
    // A word that is not UTF-8, such as a path in bytes, is not a flag.
    let mut words = words.iter().skip(1).map(|word| word.to_str().unwrap_or_default());
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        if !word.starts_with('-') {
            if let Some(found) = command.find_subcommand(word) {
                command = found;
                flags = Flags::of(command);
            }
        } else if flags.wants_next(word) {
            let next = words.next()?;
            if flags.is_flag(next) {
                return Some((word, next));
            }
        }
    }
    None
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
            let longs = arg.get_long_and_visible_aliases().unwrap_or_default();
            long.extend(longs.into_iter().map(|name| (name.to_owned(), takes_value)));
            let shorts = arg.get_short_and_visible_aliases().unwrap_or_default();
            short.extend(shorts.into_iter().map(|name| (name, takes_value)));
        }
        Self { long, short }
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
            return self.long.contains_key(name);
        }
        let mut letters = word.strip_prefix('-').unwrap_or_default().chars();
        matches!((letters.next(), letters.next()), (Some(c), None) if self.short.contains_key(&c))
    }
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
    use crate::cli::preview::Protocol;

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
        assert_eq!(args.output.preview, Some(Protocol::Auto));
        let args = generate(&["x", "--preview=Sixel"]).unwrap();
        assert_eq!(args.output.preview, Some(Protocol::Sixel));
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
    fn a_seed_is_a_number_or_random() {
        let seed = |text: &str| text.parse::<Seed>();
        assert_eq!(seed("-1"), Ok(Seed::Random));
        assert_eq!(seed("18446744073709551615"), Ok(Seed::Of(u64::MAX)));
        for wrong in ["-2", "", "1.5", "18446744073709551616", "x"] {
            assert!(seed(wrong).unwrap_err().contains("-1 for a random one"), "{wrong}");
        }
    }
}
