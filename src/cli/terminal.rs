//! The door to stdout and stderr: everything printed passes through here, and no control character of a file or an
//! argument reaches a terminal. Only images that are drawn by this program have any.

use std::borrow::Cow;
#[cfg(feature = "hub")]
use std::io::IsTerminal;
use std::io::{ErrorKind, Write};

use crate::{Error, Result};

/// Returns whether a terminal would obey a character instead of showing it, or reorder others because of it.
fn is_control(c: char) -> bool {
    // U+0000 to U+001F, U+007F to U+009F.
    let is_code = c.is_control() && !matches!(c, '\n' | '\t');
    // Unicode's marks, embeddings, overrides and isolates of direction.
    let is_direction = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    is_code || is_direction
}

/// A text whose control characters, line feeds and tabs aside, are written as `\u001b`. That is also how JSON writes
/// them, so an escaped document means what it meant.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let mut all = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_control(c) {
            all.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            all.push(c);
        }
    }
    Cow::Owned(all)
}

/// Writes a result to stdout. A reader that has gone away is no error.
pub(super) fn print(text: &str) -> Result<()> {
    print_to(&mut std::io::stdout().lock(), text)
}

/// [`print`] to a given place.
pub(super) fn print_to(out: &mut dyn Write, text: &str) -> Result<()> {
    match out.write_all(escaped(text).as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::file("stdout")(error)),
        _ => Ok(()),
    }
}

/// Writes a line to stderr. That nobody reads it is no error.
pub(super) fn line(text: &str) {
    let _ = std::io::stderr().write_all(format!("{}\n", escaped(text)).as_bytes());
}

/// Writes an image to stderr, whose escape sequences are this program's own.
pub(super) fn draw(image: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(image.as_bytes()).and_then(|()| stderr.flush());
}

/// Returns whether somebody can be asked: both standard input and stderr are a terminal.
#[cfg(feature = "hub")]
pub(super) fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks a question on stderr; an empty answer is `default`, and so is the end of standard input.
#[cfg(feature = "hub")]
pub(super) fn confirms(question: &str, default: bool) -> Result<bool> {
    let choices = if default { "[Y/n]" } else { "[y/N]" };
    let _ = std::io::stderr().write_all(format!("{} {choices} ", escaped(question)).as_bytes());
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(Error::file("stdin"))?;
    Ok(is_yes(&answer, default))
}

#[cfg(feature = "hub")]
fn is_yes(answer: &str, default: bool) -> bool {
    match answer.trim().to_lowercase().as_str() {
        "" => default,
        answer => matches!(answer, "y" | "yes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "hub")]
    #[test]
    fn only_yes_is_yes() {
        for (answer, default, is) in
            [("\n", true, true), ("", false, false), ("Y\n", false, true), ("x", true, false)]
        {
            assert_eq!(is_yes(answer, default), is, "{answer:?}");
        }
    }

    #[test]
    fn control_characters_become_their_numbers() {
        assert_eq!(escaped("a\x1b[2Jb\u{9b}c\nd\te\r"), "a\\u001b[2Jb\\u009bc\nd\te\\u000d");
        assert_eq!(
            escaped("\u{7f}\u{202e}\u{2066}\u{200f}\0"),
            "\\u007f\\u202e\\u2066\\u200f\\u0000"
        );
        // Words of every script, and joiners that shape them, stay.
        for text in ["ä 猫 🐈‍⬛ שלום می‌خواهم", "tab\there\nand there", ""] {
            assert!(matches!(escaped(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn escaped_json_means_what_it_meant() {
        let value = serde_json::json!({"prompt": "\u{9b}31m\x1b\u{202e}\n\u{7f} é"});
        let text = value.to_string();
        let safe = escaped(&text);
        assert!(!safe.contains(is_control), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }
}
