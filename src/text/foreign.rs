//! Detection of prompt syntax of other programs that is not supported here, so that it is reported and not silently
//! read as words.

use super::editing;
use super::prompt::{is_lora_tag, tag_name};

/// Maximum length of a quoted piece of a prompt in a message, in characters.
const SHOWN: usize = 60;

/// One message for each kind of unsupported syntax in a prompt. `is_word` tells which tags are words after all, such
/// as the names of textual inversions.
pub(super) fn notes(prompt: &str, is_word: impl Fn(&str) -> bool) -> Vec<String> {
    let mut notes = tags(prompt, is_word);
    if !editing::is_readable(prompt) {
        notes.extend(brackets(prompt));
    }
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    if prompt.split(|c| !is_letter(c)).any(|word| word == "AND") {
        notes.push("`AND`, which joins prompts in A1111, is a word here".into());
    }
    if is_travel(prompt) {
        notes.push(
            "`0: ... 8: ...`, prompts for single frames, is read as one prompt; --travel has such"
                .into(),
        );
    }
    notes
}

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown.replace(char::is_control, " ")
}

/// Messages about tags other than complete LoRA tags.
fn tags(prompt: &str, is_word: impl Fn(&str) -> bool) -> Vec<String> {
    let (mut open, mut left_out, mut unknown) = (None, None::<&str>, None::<&str>);
    let mut rest = prompt;
    while let Some(at) = rest.find('<') {
        let tag = rest.get(at..).unwrap_or_default();
        let Some(name) = tag_name(tag) else {
            rest = tag.get(1..).unwrap_or_default();
            continue;
        };
        let Some((whole, after)) = tag.find('>').and_then(|end| tag.split_at_checked(end + 1))
        else {
            // No `>` follows, so no later tag is closed either.
            let later = tag.match_indices('<').filter_map(|(at, _)| tag.get(at..));
            open = later.into_iter().find(|tag| is_lora_tag(tag));
            break;
        };
        if name.eq_ignore_ascii_case("hypernet") {
            left_out = left_out.or(Some(whole));
        } else if !is_lora_tag(tag) && unknown.is_none() && !is_word(whole) {
            unknown = Some(whole);
        }
        rest = after;
    }
    let open = open.map(|tag| format!("`{}` has no `>` and is read as words", shown(tag)));
    let left_out = left_out
        .map(|tag| format!("`{}` is left out: hypernetworks are not supported", shown(tag)));
    let unknown = unknown.map(|tag| format!("`{}` is not known and is read as words", shown(tag)));
    [open, left_out, unknown].into_iter().flatten().collect()
}

/// An open bracket.
struct Open {
    is_square: bool,
    start: usize,
    colons: usize,
    last_colon: usize,
    has_bar: bool,
}

/// Messages about square brackets for prompt editing and alternation in a prompt that the web UI's grammar does not
/// read: the first of each kind.
fn brackets(prompt: &str) -> Vec<String> {
    let (mut editing, mut alternating) = (None, None);
    let mut open: Vec<Open> = Vec::new();
    let mut escaped = false;
    for (at, c) in prompt.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' | '[' => open.push(Open {
                is_square: c == '[',
                start: at,
                colons: 0,
                last_colon: at,
                has_bar: false,
            }),
            ':' => {
                if let Some(bracket) = open.last_mut() {
                    bracket.colons += 1;
                    bracket.last_colon = at;
                }
            }
            '|' => {
                if let Some(bracket) = open.last_mut() {
                    bracket.has_bar = true;
                }
            }
            ')' | ']' => {
                let Some(bracket) = open.pop().filter(|b| b.is_square && c == ']') else {
                    continue;
                };
                let whole = prompt.get(bracket.start..=at).unwrap_or_default();
                let when = prompt.get(bracket.last_colon + 1..at).unwrap_or_default().trim();
                if matches!(bracket.colons, 1 | 2) && when.parse::<f64>().is_ok() {
                    editing = editing.or(Some(whole));
                } else if bracket.has_bar {
                    alternating = alternating.or(Some(whole));
                }
            }
            _ => {}
        }
    }
    [editing, alternating]
        .into_iter()
        .flatten()
        .map(|whole| {
            let shown = shown(whole);
            format!(
                "`{shown}` only weakens: with a `|` outside of square brackets, or a backslash at the end, no bracket \
                 changes the prompt between steps"
            )
        })
        .collect()
}

/// Returns whether a prompt is a list of prompts by frame: `0: a cat 8: a dog`, on one line or several, the numbers
/// optionally in quotes.
fn is_travel(prompt: &str) -> bool {
    let mut frames: Vec<u64> = Vec::new();
    for (line, text) in prompt.lines().enumerate() {
        for (i, word) in text.split_whitespace().enumerate() {
            let Some((number, after)) = word.split_once(':') else { continue };
            let number = number.trim_matches(['"', '\'', '{', ',']);
            let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            let is_key =
                digits && (after.is_empty() || (i == 0 && !after.starts_with(char::is_numeric)));
            let Some(frame) = number.parse().ok().filter(|_| is_key) else { continue };
            if frames.is_empty() && i > 0 || frames.last().is_some_and(|last| *last >= frame) {
                return false;
            }
            if frame == 0 && line == 0 || !frames.is_empty() {
                return true;
            }
            frames.push(frame);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(prompt: &str) -> Vec<String> {
        notes(prompt, |tag| tag == "<my:word>")
    }

    #[test]
    fn what_other_programs_understand_is_named() {
        for (prompt, parts) in [
            ("a <lora:x:1 dog", &["`<lora:x:1 dog` has no `>`"][..]),
            ("a <LORA:x:1", &["`<LORA:x:1` has no `>`"]),
            ("a <hypernet:style:0.5> dog", &["`<hypernet:style:0.5>` is left out"]),
            ("a <HyperNet:style>", &["`<HyperNet:style>` is left out"]),
            ("<wildcard:x> dog", &["`<wildcard:x>` is not known"]),
            ("a cat AND a dog", &["`AND`"]),
            ("a cat\nAND\na dog :1.2", &["`AND`"]),
            ("a|b [cat:dog:0.5]", &["`[cat:dog:0.5]` only weakens"]),
            ("[cat::0.5] [dog: 8] \\", &["`[cat::0.5]` only weakens"]),
            ("a [(big:1.2) cat:dog:0.5] (a|b)", &["`[(big:1.2) cat:dog:0.5]`"]),
            ("a [cat|dog] | cow", &["`[cat|dog]` only weakens"]),
            ("[a|b] [c:0.2] <hypernet:x> \\", &["<hypernet:x>", "[c:0.2]", "[a|b]"]),
            ("0: a cat 8: a dog", &["prompts for single frames"]),
            ("0: a cat", &["prompts for single frames"]),
            ("\"0\": \"a cat\",\n\"8\": \"a dog\"", &["prompts for single frames"]),
            ("4: a cat\n12: a dog", &["prompts for single frames"]),
        ] {
            let found = found(prompt);
            assert_eq!(found.len(), parts.len(), "{prompt}: {found:?}");
            for (note, part) in found.iter().zip(parts) {
                assert!(note.contains(part), "{prompt}: {note}");
            }
        }
    }

    #[test]
    fn ordinary_prompts_give_no_notes() {
        for prompt in [
            "",
            "a cat and a dog",
            "a [cat:dog:0.5] [a|b]",
            "[cat::0.5] [dog: 8] <hypernets> [(big:1.2) cat:dog:0.5]",
            "ANDROID, BRAND, a_AND_b",
            "(a:1.2) [b] ((c))",
            r"\[a:b:0.5\] \[a|b\]",
            "[a (b|c:1.5)]",
            "[a:b]",
            "[a:b:c:0.5]",
            "at 10:30, 16:9",
            "chapter 3: a fight",
            "3: a fight",
            "a <lora:x:1> b",
            "a <b> c < d > <my:word>",
            "ratio 4: 3: 2",
        ] {
            assert!(found(prompt).is_empty(), "{prompt}: {:?}", found(prompt));
        }
    }

    #[test]
    fn endless_prompts_take_no_time() {
        for piece in [
            "<lora:",
            "<a:",
            "<a:b>",
            "<",
            "[a:0.5]",
            "[",
            "[a|",
            "0: ",
            "8:\n",
            ":",
            "AND ",
            "<hypernet:x>",
        ] {
            let prompt = piece.repeat((1 << 17) / piece.len());
            let start = std::time::Instant::now();
            let found = found(&prompt);
            assert!(found.len() < 4 && found.iter().all(|note| note.len() < 300));
            assert!(start.elapsed().as_millis() < 500, "{piece}: {:?}", start.elapsed());
        }
    }
}
