//! Prompt syntax of AUTOMATIC1111's web UI: weights in brackets, `BREAK`, LoRA tags.
//!
//! | Written | Meaning |
//! |---|---|
//! | `(word)` | 1.1 times as strong |
//! | `(word:1.3)` | 1.3 times as strong |
//! | `[word]` | 1.1 times weaker |
//! | `((word) and (more:0.5))` | brackets nest, their factors multiply |
//! | `\(` `\)` `\[` `\]` `\\` | the character itself |
//! | `BREAK` | what follows begins a new chunk |
//! | `<lora:name:0.8>` | a LoRA, see [`take_loras`] |
//! | `<hypernet:name:1>` | left out |
//!
//! A bracket that is never closed extends to the end of the prompt, a closing bracket without an opening one is
//! literal, and a weight after a colon counts only before a closing round bracket. So a prompt with literal round or
//! square brackets needs backslashes, or [`PromptMode::Plain`].
//!
//! Prompt editing (`[from:to:when]`) and alternation (`[a|b]`), which change the prompt between steps, are taken out
//! before: see [`editing`](mod@super::editing). One difference: `BREAK` works inside brackets too.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::spelling::named;

/// Prompt syntax.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptMode {
    /// AUTOMATIC1111's: with weights, `BREAK`, and of any length.
    #[default]
    A1111,
    /// diffusers': all characters are literal, and what exceeds the text encoder's length is cut off.
    Plain,
}

named!(PromptMode, "prompt-mode", {
    A1111 = "a1111",
    Plain = "plain",
});

/// Part of a parsed prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Text with one weight.
    Text {
        /// The text, without the marks of the syntax.
        text: String,
        /// Weight of the text; 1 is neutral.
        weight: f64,
    },
    /// Start of a new chunk.
    Break,
}

/// Weight factor of a round bracket, and divisor of a square one.
const BRACKET: f64 = 1.1;

/// Maximum number of open brackets, which keeps parsing linear.
pub(super) const MOST_OPEN: usize = 64;

/// Parses a prompt into at least one part; an empty prompt is one part without text.
///
/// # Errors
///
/// A message about the invalid syntax: a weight that is not a number, or too many open brackets.
pub fn parse(prompt: &str) -> Result<Vec<Part>, String> {
    let mut parts: Vec<Part> = Vec::new();
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let prompt = without_hypernets(prompt);
    let mut rest = prompt.as_ref();
    while let Some((mark, after)) = Mark::first(rest) {
        match mark {
            Mark::Open(bracket) => {
                let open = if bracket == Bracket::Round { &mut round } else { &mut square };
                open.push(parts.len());
                if round.len() + square.len() > MOST_OPEN {
                    return Err(format!("more than {MOST_OPEN} brackets are open at once"));
                }
            }
            Mark::Weight { number, literal } => match round.pop() {
                Some(start) => multiply(&mut parts, start, weight(number)?),
                None => push_words(&mut parts, literal),
            },
            Mark::Close(Bracket::Round) => match round.pop() {
                Some(start) => multiply(&mut parts, start, BRACKET),
                None => push_words(&mut parts, ")"),
            },
            Mark::Close(Bracket::Square) => match square.pop() {
                Some(start) => multiply(&mut parts, start, 1.0 / BRACKET),
                None => push_words(&mut parts, "]"),
            },
            Mark::Escaped(text) => push(&mut parts, text),
            Mark::Text(text) => push_words(&mut parts, text),
        }
        rest = after;
    }
    for start in round {
        multiply(&mut parts, start, BRACKET);
    }
    for start in square {
        multiply(&mut parts, start, 1.0 / BRACKET);
    }
    Ok(merged(parts))
}

fn weight(number: &str) -> Result<f64, String> {
    let weight: Option<f64> = number.parse().ok();
    weight.filter(|weight| weight.is_finite()).ok_or_else(|| {
        let number: String = number.chars().take(40).collect();
        format!("`{number}` is not a weight")
    })
}

fn push(parts: &mut Vec<Part>, text: &str) {
    parts.push(Part::Text { text: text.to_owned(), weight: 1.0 });
}

/// Adds text that may contain `BREAK`, with the white space around it removed.
fn push_words(parts: &mut Vec<Part>, mut text: &str) {
    while let Some((before, after)) = split_break(text) {
        push(parts, before);
        parts.push(Part::Break);
        text = after;
    }
    push(parts, text);
}

/// The text before and after the first `BREAK` that is a whole word.
fn split_break(text: &str) -> Option<(&str, &str)> {
    const WORD: &str = "BREAK";
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(WORD).find_map(|(start, _)| {
        let (before, rest) = text.split_at(start);
        let after = rest.strip_prefix(WORD)?;
        let is_alone = !before.ends_with(is_word) && !after.starts_with(is_word);
        is_alone.then(|| (before.trim_end(), after.trim_start()))
    })
}

fn multiply(parts: &mut [Part], start: usize, factor: f64) {
    for part in parts.iter_mut().skip(start) {
        if let Part::Text { weight, .. } = part {
            *weight *= factor;
        }
    }
}

/// Joins neighbouring parts of equal weight, then drops empty ones.
fn merged(parts: Vec<Part>) -> Vec<Part> {
    let mut merged: Vec<Part> = Vec::new();
    for part in parts {
        match (merged.last_mut(), part) {
            (Some(Part::Text { text, weight }), Part::Text { text: more, weight: its_weight })
                if *weight == its_weight =>
            {
                text.push_str(&more);
            }
            (_, part) => merged.push(part),
        }
    }
    merged.retain(|part| !matches!(part, Part::Text { text, .. } if text.is_empty()));
    if merged.is_empty() {
        push(&mut merged, "");
    }
    merged
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bracket {
    Round,
    Square,
}

/// Token of the prompt syntax.
enum Mark<'a> {
    Open(Bracket),
    Close(Bracket),
    /// `:1.3)`; literal if no bracket is open.
    Weight {
        number: &'a str,
        literal: &'a str,
    },
    Escaped(&'a str),
    Text(&'a str),
}

impl<'a> Mark<'a> {
    /// The first mark of a text and the rest of the text.
    fn first(text: &'a str) -> Option<(Self, &'a str)> {
        let mut chars = text.chars();
        let first = chars.next()?;
        let after = chars.as_str();
        Some(match first {
            '(' => (Self::Open(Bracket::Round), after),
            '[' => (Self::Open(Bracket::Square), after),
            ')' => (Self::Close(Bracket::Round), after),
            ']' => (Self::Close(Bracket::Square), after),
            // A backslash before any other character is dropped.
            '\\' => {
                let escaped = matches!(chars.next(), Some('(' | ')' | '[' | ']' | '\\'));
                let (character, after) = after.split_at(usize::from(escaped));
                (Self::Escaped(character), after)
            }
            ':' => match closing_weight(after) {
                Some((number, after)) => {
                    let (literal, _) = text.split_at(text.len() - after.len());
                    (Self::Weight { number, literal }, after)
                }
                None => (Self::Text(":"), after),
            },
            _ => {
                let end = text.find(['(', ')', '[', ']', '\\', ':']).unwrap_or(text.len());
                let (words, after) = text.split_at(end);
                (Self::Text(words), after)
            }
        })
    }
}

/// The number before a closing round bracket, and the text after that bracket.
fn closing_weight(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let rest = unsigned.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    if rest.len() == unsigned.len() {
        return None;
    }
    // By length: comparing the strings would take time linear in the prompt for every bracket.
    let number = text.get(..text.len() - rest.len())?;
    Some((number, rest.trim_start().strip_prefix(')')?))
}

/// A LoRA tag of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTag {
    /// File name of the LoRA without extension.
    pub name: String,
    /// Strength in the UNet.
    pub unet_strength: f64,
    /// Strength in the text encoder.
    pub text_strength: f64,
    /// Block weights of the UNet, as written after `lbw=`.
    pub blocks: Option<String>,
}

/// Prefixes of LoRA tags; the second dates from when LyCORIS was an extension.
const TAGS: [&str; 2] = ["<lora:", "<lyco:"];

/// The first LoRA tag of a prompt, verbatim.
pub fn first_tag(prompt: &str) -> Option<&str> {
    split_tag(prompt).map(|(_, tag, _)| tag)
}

/// Returns whether a text begins with a LoRA tag, in any case.
pub(super) fn is_lora_tag(text: &str) -> bool {
    TAGS.iter().any(|tag| text.get(..tag.len()).is_some_and(|t| t.eq_ignore_ascii_case(tag)))
}

/// The name of the tag at the start of a text, as in `<name:`.
pub(super) fn tag_name(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('<')?;
    let end = inside.find(|c: char| !(c.is_alphanumeric() || c == '_'))?;
    let (name, rest) = inside.split_at(end);
    (end > 0 && rest.starts_with(':')).then_some(name)
}

/// The prompt without hypernetwork tags.
pub(super) fn without_hypernets(prompt: &str) -> Cow<'_, str> {
    let mut kept = Cow::Borrowed(prompt);
    let (mut from, mut at) = (0, 0);
    while let Some(found) = prompt[at..].find('<') {
        let start = at + found;
        at = start + 1;
        let name = tag_name(&prompt[start..]);
        if !name.is_some_and(|name| name.eq_ignore_ascii_case("hypernet")) {
            continue;
        }
        // No `>` follows, so no later tag is closed either.
        let Some(end) = prompt[start..].find('>') else { break };
        if from == 0 {
            kept = Cow::Owned(String::with_capacity(prompt.len()));
        }
        kept.to_mut().push_str(&prompt[from..start]);
        at = start + end + 1;
        from = at;
    }
    if from > 0 {
        kept.to_mut().push_str(&prompt[from..]);
    }
    kept
}

/// The text before the first LoRA tag, the tag, and the text after it.
fn split_tag(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text
        .match_indices('<')
        .map(|(start, _)| text.split_at(start))
        .find(|(_, rest)| is_lora_tag(rest))?;
    let end = rest.find('>')?;
    let (tag, after) = rest.split_at(end + 1);
    Some((before, tag, after))
}

/// Splits a prompt into the text without LoRA tags and the LoRAs in order.
///
/// `<lora:name>` has strength 1, `<lora:name:0.8>` 0.8. Two numbers are the strengths of the text encoder and of the
/// UNet, in AUTOMATIC1111's order; `<lora:name:te=0.5:unet=0.8>` names them. `<lora:name:1:lbw=MIDD>` sets block
/// weights, as the extension LoRA Block Weight does.
///
/// # Errors
///
/// A message about the invalid tag.
pub fn take_loras(prompt: &str) -> Result<(String, Vec<LoraTag>), String> {
    let (mut cleaned, mut tags) = (String::with_capacity(prompt.len()), Vec::new());
    let mut rest = prompt;
    while let Some((before, tag, after)) = split_tag(rest) {
        cleaned.push_str(before);
        tags.push(lora_tag(tag)?);
        rest = after;
    }
    cleaned.push_str(rest);
    match first_tag(&cleaned) {
        Some(tag) => {
            let tag: String = tag.chars().take(80).collect();
            Err(format!("`{tag}` is a tag only where another one inside it is taken out"))
        }
        None => Ok((cleaned, tags)),
    }
}

fn lora_tag(tag: &str) -> Result<LoraTag, String> {
    let wrong = |reason: &str| {
        let tag: String = tag.chars().take(80).collect();
        format!("`{tag}` {reason}")
    };
    let mut items = tag.trim_end_matches('>').split(':').skip(1);
    let name = items.next().unwrap_or_default().trim();
    if name.is_empty() {
        return Err(wrong("names no LoRA"));
    }
    let (mut text, mut unet, mut blocks, mut count) = (None, None, None, 0);
    for item in items {
        if let Some(factors) = item.strip_prefix("lbw=") {
            blocks = Some(factors.to_owned());
            continue;
        }
        let (slot, number) = match item.split_once('=') {
            Some(("te", number)) => (&mut text, number),
            Some(("unet", number)) => (&mut unet, number),
            Some(_) => return Err(wrong("has settings other than `te`, `unet` and `lbw`")),
            None => {
                count += 1;
                match count {
                    1 => (&mut text, item),
                    2 => (&mut unet, item),
                    _ => return Err(wrong("has more than two strengths")),
                }
            }
        };
        let strength: Option<f64> = number.trim().parse().ok();
        let strength = strength.filter(|strength| strength.is_finite());
        *slot = Some(strength.ok_or_else(|| wrong("has a strength that is not a number"))?);
    }
    let text_strength = text.unwrap_or(1.0);
    let unet_strength = unet.unwrap_or(text_strength);
    Ok(LoraTag { name: name.to_owned(), unet_strength, text_strength, blocks })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(prompt: &str) -> Vec<(String, f64)> {
        let pair = |part| match part {
            Part::Text { text, weight } => (text, weight),
            Part::Break => ("|".to_owned(), 0.0),
        };
        parse(prompt).unwrap().into_iter().map(pair).collect()
    }

    #[track_caller]
    fn reads(prompt: &str, want: &[(&str, f64)]) {
        let want: Vec<_> =
            want.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect();
        assert_eq!(texts(prompt), want, "{prompt}");
    }

    #[test]
    fn the_web_ui_s_own_examples_are_read_alike() {
        reads("normal text", &[("normal text", 1.0)]);
        reads("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        reads("(unbalanced", &[("unbalanced", 1.1)]);
        reads(r"\(literal\]", &[("(literal]", 1.0)]);
        reads("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        let want = [
            ("a ", 1.0),
            ("house", 1.573_000_000_000_000_4),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.464_100_000_000_000_6),
            (".", 1.1),
        ];
        reads("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", &want);
    }

    #[test]
    fn weights_may_have_signs_and_spaces_but_only_close_round_brackets() {
        reads("(a: 1.5 )", &[("a", 1.5)]);
        reads("(a:+.5)(b:-1.)", &[("a", 0.5), ("b", -1.0)]);
        reads("(a:b:2)", &[("a:b", 2.0)]);
        reads("[a:2]", &[("a:2", 1.0 / 1.1)]);
        reads("at 10:30) or a:1.5)", &[("at 10:30) or a:1.5)", 1.0)]);
        reads("(a:1e3)", &[("a:1e3", 1.1)]);
        for wrong in ["(a:1.2.3)", "(a:.)", "(a:-..)"] {
            assert!(parse(wrong).unwrap_err().contains("is not a weight"), "{wrong}");
        }
        let huge = format!("(a:{})", "9".repeat(400));
        assert!(parse(&huge).unwrap_err().len() < 80);
    }

    #[test]
    fn nothing_is_lost_of_odd_prompts() {
        reads("", &[("", 1.0)]);
        reads("()[]", &[("", 1.0)]);
        reads(")]:", &[(")]:", 1.0)]);
        reads(r"a\b \\ \", &[(r"ab \ ", 1.0)]);
        reads("(é\u{301}😀:1.2)中", &[("é\u{301}😀", 1.2), ("中", 1.0)]);
        reads("[(a)]", &[("a", 1.1 * (1.0 / 1.1))]);
    }

    #[test]
    fn break_is_a_word_by_itself_anywhere() {
        reads("a BREAK b", &[("a", 1.0), ("|", 0.0), ("b", 1.0)]);
        reads("BREAK", &[("|", 0.0)]);
        reads("a\nBREAK\nBREAK,b", &[("a", 1.0), ("|", 0.0), ("|", 0.0), (",b", 1.0)]);
        reads("(a BREAK b:1.5)", &[("a", 1.5), ("|", 0.0), ("b", 1.5)]);
        reads("BREAKFAST break un_BREAK", &[("BREAKFAST break un_BREAK", 1.0)]);
        reads("BREAKBREAK BREAK", &[("BREAKBREAK", 1.0), ("|", 0.0)]);
    }

    #[test]
    fn endless_brackets_are_refused_at_once() {
        assert!(parse(&"(a".repeat(64)).is_ok());
        assert!(parse(&"[(a".repeat(400_000)).unwrap_err().contains("64 brackets"));
        assert!(parse(&"(a)".repeat(300_000)).is_ok());
    }

    #[test]
    fn many_weights_take_no_time() {
        // 128 KiB of each; comparing the rest of the prompt at every bracket took seconds.
        for piece in [
            "(a:1)",
            "(a:1.5)",
            "a:1 ",
            ":",
            "(a:1",
            "[a",
            "a)",
            "<",
            "<hypernet:x>",
            "<hypernet:",
            "<a:",
            "\\",
            "\\(",
            "BREAK ",
            "BREAK",
        ] {
            let prompt = piece.repeat((1 << 17) / piece.len());
            let took = || {
                let start = std::time::Instant::now();
                let _ = parse(&prompt);
                start.elapsed()
            };
            // The fastest of several runs, in case the machine is busy.
            let took = (0..5).map(|_| took()).min().unwrap();
            assert!(took.as_millis() < 500, "{piece}: {took:?}");
        }
    }

    #[test]
    fn tags_have_any_case_and_those_of_hypernetworks_are_left_out() {
        let (prompt, tags) = take_loras("a <LORA:x:0.5> <Lyco:y>").unwrap();
        assert_eq!(prompt, "a  ");
        assert_eq!(tags.iter().map(|tag| tag.name.as_str()).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(first_tag("a <LoRA:x>"), Some("<LoRA:x>"));
        reads("a <hypernet:x:0.5>(b:2)<HYPERNET:y>", &[("a ", 1.0), ("b", 2.0)]);
        reads("<hypernet:x> é", &[(" é", 1.0)]);
        reads("a <hypernet:x b <hypernets:y>", &[("a ", 1.0)]);
        reads("a <hypernet:x", &[("a <hypernet:x", 1.0)]);
        reads("a <é:b> <hypernet>", &[("a <é:b> <hypernet>", 1.0)]);
    }

    #[test]
    fn tags_are_taken_out_in_order() {
        let tag = |name: &str, text_strength, unet_strength| LoraTag {
            name: name.to_owned(),
            unet_strength,
            text_strength,
            blocks: None,
        };
        let (prompt, tags) =
            take_loras("a <lora:x:0.8>, (b <lyco:y z>:1.2)<lora:q:1:-.5>").unwrap();
        assert_eq!(prompt, "a , (b :1.2)");
        assert_eq!(tags, [tag("x", 0.8, 0.8), tag("y z", 1.0, 1.0), tag("q", 1.0, -0.5)]);
        let (_, tags) = take_loras("<lora:x:unet=0.2:te=0.3>").unwrap();
        assert_eq!(tags, [tag("x", 0.3, 0.2)]);
        let (_, tags) = take_loras("<lora:x:0.5:lbw=1,0>").unwrap();
        assert_eq!((tags[0].text_strength, tags[0].blocks.as_deref()), (0.5, Some("1,0")));
        assert!(
            take_loras("a <lo<lora:x:1>ra:y>").unwrap_err().contains("`<lora:y>` is a tag only")
        );
        assert_eq!(take_loras("a < b <lora: c").unwrap(), ("a < b <lora: c".to_owned(), vec![]));
        assert_eq!(first_tag("a <lora:x> b <lora:y>"), Some("<lora:x>"));
    }

    #[test]
    fn broken_tags_are_named() {
        for (tag, reason) in [
            ("<lora:>", "names no LoRA"),
            ("<lora::0.5>", "names no LoRA"),
            ("<lora:x:strong>", "not a number"),
            ("<lora:x:inf>", "not a number"),
            ("<lora:x:1:1:1>", "more than two"),
            ("<lora:x:dyn=4>", "other than"),
        ] {
            let error = take_loras(&format!("a {tag} b")).unwrap_err();
            assert!(error.contains(tag) && error.contains(reason), "{error}");
        }
    }
}
