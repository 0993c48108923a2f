//! Prompts that people write, for a model that knows captions only: other words for known ones, and unknown words.

use std::collections::BTreeSet;
use std::ops::Range;

use super::grammar::{Background, Color, Motion, Shape};
use crate::spelling;

/// The form of captions, for messages.
pub const FORM: &str = "a COLOR SHAPE MOTION on a BACKGROUND background";

/// Maximum number of words in one message.
const MOST_NAMED: usize = 5;

/// Maximum length of a quoted word in a message, in characters.
const MOST_SHOWN: usize = 30;

/// A prompt in the words of captions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The prompt with synonyms replaced.
    pub text: String,
    /// One message for each kind of deviation: words that were replaced, unknown words, and combinations that are in
    /// no caption.
    pub notes: Vec<String>,
}

/// Reads a prompt. Words of `own`, such as those of textual inversions, are known too; tags, weights and `BREAK` are
/// no words.
pub fn read(prompt: &str, own: &[&str]) -> Reading {
    let words = words(prompt, own);
    let (mut text, mut end) = (String::with_capacity(prompt.len()), 0);
    let (mut replaced, mut unknown) = (Named::default(), Named::default());
    let mut known: Vec<&'static str> = Vec::new();
    let mut rest = words.as_slice();
    while let Some(first) = rest.first() {
        let (count, word) = synonym(prompt, rest).unwrap_or((1, None));
        let (these, after) = rest.split_at(count.min(rest.len()));
        rest = after;
        let start = first.at.start;
        let stop = these.last().map_or(first.at.end, |last| last.at.end);
        let written = prompt.get(start..stop).unwrap_or_default();
        let Some(word) = word else {
            unknown.add(&first.lower, || match nearest(&first.lower) {
                Some(near) => format!("{} (`{near}`?)", shown(written)),
                None => shown(written),
            });
            continue;
        };
        known.extend(word.split(' '));
        // Case does not count, and articles mean the same.
        if word != "a" && !written.eq_ignore_ascii_case(word) {
            replaced.add(&written.to_lowercase(), || format!("{} as `{word}`", shown(written)));
        }
        if !written.eq_ignore_ascii_case(word) {
            text.push_str(prompt.get(end..start).unwrap_or_default());
            text.push_str(word);
            end = stop;
        }
    }
    text.push_str(prompt.get(end..).unwrap_or_default());
    let mut notes = Vec::new();
    if let Some(list) = replaced.list() {
        notes.push(format!("read {list}"));
    }
    if let Some(list) = unknown.list() {
        let shapes: Vec<&str> = Shape::ALL.iter().map(|shape| shape.word()).collect();
        let shapes = shapes.join(", ");
        notes.push(format!(
            "unknown words: {list}; captions are `{FORM}`, SHAPE is one of {shapes}"
        ));
    }
    notes.extend(combinations(&known));
    Reading { text, notes }
}

/// A word of a prompt.
struct Word {
    at: Range<usize>,
    lower: String,
}

/// The words of a prompt, without those of `own`.
fn words(prompt: &str, own: &[&str]) -> Vec<Word> {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    let mut words = Vec::new();
    let mut at = 0;
    let mut has_tags = true;
    while let Some(rest) = prompt.get(at..).filter(|rest| !rest.is_empty()) {
        let first = rest.chars().next().unwrap_or_default();
        if first == '<' && has_tags {
            match rest.find('>') {
                Some(end) => at += end + 1,
                None => has_tags = false,
            }
        } else if let Some(length) = own.iter().find_map(|name| own_word(rest, name)) {
            at += length;
        } else if first == ':' {
            // A weight.
            at += rest
                .find(|c: char| !matches!(c, ':' | ' ' | '.' | '0'..='9'))
                .unwrap_or(rest.len());
        } else if is_letter(first) {
            let length = rest.find(|c| !is_letter(c)).unwrap_or(rest.len());
            let word = rest.get(..length).unwrap_or_default();
            if !matches!(word, "BREAK" | "AND") {
                words.push(Word { at: at..at + length, lower: word.to_lowercase() });
            }
            at += length;
        } else {
            at += first.len_utf8();
        }
    }
    words
}

/// The length of `name`, or of one of its vectors as `name_1`, if `rest` begins with it.
fn own_word(rest: &str, name: &str) -> Option<usize> {
    let (start, after) = rest.split_at_checked(name.len())?;
    if name.is_empty() || !start.eq_ignore_ascii_case(name) {
        return None;
    }
    let end = after.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(after.len());
    let more = after.get(..end)?;
    let is_vector = more.strip_prefix('_').is_some_and(|number| number.parse::<u32>().is_ok());
    (more.is_empty() || is_vector).then_some(name.len() + end)
}

/// The number of words that the text begins with and that stand for one of the grammar, and that one.
fn synonym(prompt: &str, words: &[Word]) -> Option<(usize, Option<&'static str>)> {
    let word = |i: usize| -> Option<&str> {
        let word = words.get(i)?;
        if i > 0 {
            let before = words.get(i - 1)?.at.end;
            let between = prompt.get(before..word.at.start)?;
            between.chars().all(|c| c == ' ' || c == '-').then_some(())?;
        }
        Some(&word.lower)
    };
    let first = word(0)?;
    if let (Some(second), Some(third)) = (word(1), word(2))
        && let Some(found) = of_three(first, second, third)
    {
        return Some((3, Some(found)));
    }
    if let Some(found) = word(1).and_then(|second| of_two(first, second)) {
        return Some((2, Some(found)));
    }
    Some((1, itself(first).or_else(|| of_one(first))))
}

/// The word of captions that is spelled like this.
fn itself(word: &str) -> Option<&'static str> {
    known().find(|known| *known == word)
}

/// Every word of captions.
fn known() -> impl Iterator<Item = &'static str> {
    let colors = Color::ALL.iter().map(|color| color.word());
    let shapes = Shape::ALL.iter().map(|shape| shape.word());
    let grounds = Background::ALL.iter().map(|background| background.word());
    let motions = Motion::ALL.iter().flat_map(|motion| motion.word().split(' '));
    ["a", "on", "background"].into_iter().chain(colors).chain(shapes).chain(grounds).chain(motions)
}

fn of_one(word: &str) -> Option<&'static str> {
    Some(match word {
        "an" | "the" | "one" => "a",
        "against" => "on",
        "backdrop" => "background",
        "gray" => "grey",
        "crimson" | "scarlet" => "red",
        "lime" => "green",
        "gold" | "golden" => "yellow",
        "violet" | "magenta" => "purple",
        "aqua" | "teal" | "turquoise" => "cyan",
        "circles" | "disc" | "discs" | "disk" | "disks" | "dot" | "dots" | "ball" | "balls" => {
            "circle"
        }
        "squares" | "box" | "boxes" => "square",
        "triangles" => "triangle",
        "stars" => "star",
        "rings" | "donut" | "doughnut" | "hoop" => "ring",
        "moves" | "going" | "goes" | "flying" | "flies" | "sliding" | "slides" | "drifting"
        | "floating" | "travelling" | "traveling" => "moving",
        "leftward" | "leftwards" => "left",
        "rightward" | "rightwards" => "right",
        "upward" | "upwards" => "up",
        "downward" | "downwards" => "down",
        "rising" | "rises" | "ascending" | "climbing" => "moving up",
        "falling" | "falls" | "descending" | "sinking" | "dropping" => "moving down",
        "grows" | "expanding" | "expands" | "enlarging" => "growing",
        "shrinks" | "contracting" | "contracts" => "shrinking",
        "spins" | "rotating" | "rotates" | "turning" | "revolving" | "twirling" => "spinning",
        "bounces" | "jumping" | "jumps" | "hopping" | "hops" => "bouncing",
        "stands" | "staying" => "standing",
        "static" | "stationary" | "motionless" => "standing still",
        _ => return None,
    })
}

fn of_two(first: &str, second: &str) -> Option<&'static str> {
    Some(match (first, second) {
        ("dark" | "midnight" | "navy", "blue") => "navy",
        ("getting", "bigger" | "larger") => "growing",
        ("getting", "smaller") => "shrinking",
        ("not", "moving") => "standing still",
        ("rising" | "rises" | "climbing", "up" | "upward" | "upwards") => "moving up",
        ("falling" | "falls" | "dropping", "down" | "downward" | "downwards") => "moving down",
        _ => return None,
    })
}

fn of_three(first: &str, second: &str, third: &str) -> Option<&'static str> {
    Some(match (first, second, third) {
        ("to", "the", "left") => "left",
        ("to", "the", "right") => "right",
        ("to", "the", "top") => "up",
        ("to", "the", "bottom") => "down",
        _ => return None,
    })
}

/// The known word that an unknown one is probably meant to be.
fn nearest(word: &str) -> Option<&'static str> {
    // In three letters one may be wrong; more would be another word.
    let most = (word.len() / 3).clamp(1, 3);
    known()
        .filter(|known| known.len() > 2 && known.len().abs_diff(word.len()) <= most)
        .map(|known| (spelling::distance(word, known), known))
        .min()
        .filter(|(distance, _)| *distance <= most)
        .map(|(_, known)| known)
}

/// Messages about known words in combinations that are in no caption.
fn combinations(words: &[&'static str]) -> Vec<String> {
    let is_color = |word: &str| Color::ALL.iter().any(|color| color.word() == word);
    let is_ground = |word: &str| Background::ALL.iter().any(|ground| ground.word() == word);
    let is_shape = |word: &str| Shape::ALL.iter().any(|shape| shape.word() == word);
    let mut notes = BTreeSet::new();
    let (mut shape_color, mut ground_color) = (None, None);
    for pair in words.windows(2) {
        let &[first, second] = pair else { continue };
        if is_shape(second) {
            shape_color = Some(first);
            if is_ground(first) && !is_color(first) {
                let all: Vec<&str> = Color::ALL.iter().map(|color| color.word()).collect();
                notes.insert(format!("no {second} is `{first}`, only {}", all.join(", ")));
            }
        } else if second == "background" {
            ground_color = Some(first);
            if is_color(first) && !is_ground(first) {
                let all: Vec<&str> = Background::ALL.iter().map(|ground| ground.word()).collect();
                notes.insert(format!("no background is `{first}`, only {}", all.join(", ")));
            }
        }
    }
    if shape_color == Some("white") && ground_color == Some("white") {
        notes.insert("white on white cannot be seen".to_owned());
    }
    notes.into_iter().collect()
}

/// Different words for a message, the first few of them in full.
#[derive(Default)]
struct Named {
    seen: BTreeSet<String>,
    named: Vec<String>,
}

impl Named {
    fn add(&mut self, word: &str, name: impl FnOnce() -> String) {
        if self.seen.insert(word.to_owned()) && self.named.len() < MOST_NAMED {
            self.named.push(name());
        }
    }

    fn list(&self) -> Option<String> {
        let more = self.seen.len() - self.named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!self.named.is_empty()).then(|| self.named.join(", ") + &more)
    }
}

/// A word in backticks, shortened if it is very long.
fn shown(word: &str) -> String {
    let mut shown: String = word.chars().take(MOST_SHOWN).collect();
    if shown.len() < word.len() {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

#[cfg(test)]
mod tests {
    use super::super::Caption;
    use super::*;

    fn text(prompt: &str) -> String {
        read(prompt, &[]).text
    }

    fn notes(prompt: &str) -> String {
        read(prompt, &["bad-style", "EasyStyle"]).notes.join(" | ")
    }

    #[test]
    fn captions_are_read_as_they_are() {
        for caption in Caption::all() {
            let caption = caption.to_string();
            assert_eq!(read(&caption, &[]), Reading { text: caption, notes: vec![] });
        }
        for same in ["", "A Red CIRCLE", "(a red star:1.3) BREAK [on a navy background]"] {
            assert_eq!(read(same, &[]), Reading { text: same.into(), notes: vec![] });
        }
    }

    #[test]
    fn other_words_for_known_ones_are_replaced_and_named() {
        for (prompt, means) in [
            ("a gray circle on a gray background", "a grey circle on a grey background"),
            ("an orange ball, (Rotating:1.2)", "a orange circle, (spinning:1.2)"),
            ("the blue ring moves upwards", "a blue ring moving up"),
            (
                "a red star rising up on a dark-blue background",
                "a red star moving up on a navy background",
            ),
            ("a red star moving to the left", "a red star moving left"),
            ("a red star motionless", "a red star standing still"),
            ("two red circles", "two red circle"),
        ] {
            assert_eq!(text(prompt), means);
        }
        assert_eq!(
            notes("a red circle, gray and rotating"),
            "read `gray` as `grey`, `rotating` as `spinning` | unknown words: `and`; captions are `a COLOR SHAPE \
             MOTION on a BACKGROUND background`, SHAPE is one of circle, square, triangle, star, ring"
        );
        assert_eq!(notes("an orange circle"), "");
    }

    #[test]
    fn unknown_words_are_named_with_the_nearest_known_ones() {
        let said = notes("a cat and a Circel on a yelow tree");
        let words = "`cat`, `and`, `Circel` (`circle`?), `yelow` (`yellow`?), `tree`;";
        assert!(said.contains(words), "{said}");
        assert!(notes("one two three four five six seven").contains("`six` and 1 more;"));
        assert!(notes(&"x".repeat(1000)).len() < 300);
        // Neither tags and weights nor the words of embeddings.
        for known in
            ["a <lora:cat:1> star", "(a star:0.5)", "a bad-style EasyStyle_2 star", "a easystyle"]
        {
            assert_eq!(notes(known), "", "{known}");
        }
        assert!(notes("a EasyStyles").contains("`EasyStyles`"));
    }

    #[test]
    fn combinations_of_no_caption_are_named() {
        assert!(notes("a navy circle").contains("no circle is `navy`, only red,"));
        assert!(
            notes("a red circle on a red background")
                .contains("no background is `red`, only black,")
        );
        assert_eq!(notes("a white ring on a white background"), "white on white cannot be seen");
    }

    #[test]
    fn endless_prompts_take_no_time() {
        for piece in ["<", "<a>", "cat ", "to the ", "a:", "dark-", "x", ":1 ", "'"] {
            let prompt = piece.repeat((1 << 17) / piece.len());
            let start = std::time::Instant::now();
            let reading = read(&prompt, &["style"]);
            assert!(reading.notes.iter().all(|note| note.len() < 400));
            assert!(start.elapsed().as_millis() < 2000, "{piece}: {:?}", start.elapsed());
        }
    }
}
