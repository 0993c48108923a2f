//! Prompt travel: prompts for single frames, between which a clip goes from one to the next.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use crate::spelling::named;
use crate::{Error, Result};

/// Maximum number of keys.
const MOST_KEYS: usize = 1024;

/// A prompt for one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Index of the frame, from 0.
    pub frame: usize,
    /// The prompt.
    pub text: String,
}

/// Prompts by frame, in ascending order.
///
/// In JSON a map from frames to prompts, in any order: `{"0": "a bud", "16": "a blossom"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Travel(Vec<Key>);

/// Interpolation of the text states between two keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// Along a straight line, as diffusers does by default.
    #[default]
    Linear,
    /// Along a circle, by the angle between the states of the two prompts, as A1111's extension for AnimateDiff does.
    Spherical,
}

impl Travel {
    /// Keys whose frames must ascend.
    ///
    /// # Errors
    ///
    /// When they do not, or there are too many.
    pub fn new(keys: Vec<Key>) -> Result<Self> {
        let wrong = |reason: String| Err(Error::request("travel", reason));
        if keys.len() > MOST_KEYS {
            return wrong(format!("has {} keys, at most {MOST_KEYS} are read", keys.len()));
        }
        for pair in keys.windows(2) {
            let [Key { frame: before, .. }, Key { frame: after, .. }] = pair else { continue };
            if before == after {
                return wrong(format!("frame {after} has two prompts"));
            }
            if before > after {
                return wrong(format!("frame {after} comes after frame {before}"));
            }
        }
        Ok(Self(keys))
    }

    /// The keys.
    pub fn keys(&self) -> &[Key] {
        &self.0
    }

    /// Returns whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The prompts, to be changed.
    pub(super) fn texts_mut(&mut self) -> impl Iterator<Item = &mut String> {
        self.0.iter_mut().map(|key| &mut key.text)
    }

    /// The keys with a text before each of them, and one after.
    pub(super) fn between(mut self, head: &str, tail: &str) -> Self {
        for text in self.texts_mut() {
            *text = joined([head, text.as_str(), tail]);
        }
        self
    }

    /// Reads the keys of a text in which they have lines of their own, as in A1111's extension for AnimateDiff. Lines
    /// before the first key belong to the beginning of every prompt, lines after the last to the end.
    ///
    /// `None` if no line begins with `FRAME: `.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new), and a key after lines that are none.
    pub fn from_lines(text: &str) -> Result<Option<Self>> {
        let (mut head, mut tail, mut keys) = (vec![], vec![], vec![]);
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match split_key(line) {
                Some((number, text)) if tail.is_empty() => keys.push(key(number, text)?),
                Some((number, _)) => {
                    let reason = format!("`{number}:` comes after lines without a frame");
                    return Err(Error::request("travel", reason)
                        .with_hint("the prompt of a frame goes into one line"));
                }
                None if keys.is_empty() => head.push(line),
                None => tail.push(line),
            }
        }
        if keys.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self::new(keys)?.between(&joined(head), &joined(tail))))
    }

    /// Reads the keys of a prompt as [`from_lines`](Self::from_lines) does. A single line that begins with another
    /// number than 0 may just be a sentence: `None`.
    pub(super) fn from_prompt(text: &str) -> Result<Option<Self>> {
        let mut numbers = text.lines().filter_map(|line| Some(split_key(line.trim())?.0));
        let is_meant = match (numbers.next(), numbers.next()) {
            (Some(first), None) => first.bytes().all(|digit| digit == b'0'),
            (first, _) => first.is_some_and(|first| !first.starts_with('-')),
        };
        if is_meant { Self::from_lines(text) } else { Ok(None) }
    }
}

/// Texts in a row, with one comma between those that are not empty.
fn joined<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let ends = |c: char| c == ',' || c.is_whitespace();
    let texts = texts.into_iter().map(|text| text.trim_matches(ends));
    texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ")
}

/// The number and the prompt of `16: a prompt`. The number may be negative, which is an error later.
fn split_key(text: &str) -> Option<(&str, &str)> {
    let (number, text) = text.split_once(':')?;
    let number = number.trim();
    let digits = number.strip_prefix('-').unwrap_or(number);
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    // `10:30` is a time.
    let is_key = is_number && (text.is_empty() || text.starts_with(char::is_whitespace));
    is_key.then(|| (number, text.trim()))
}

fn key(number: &str, text: &str) -> Result<Key> {
    let frame = frame(number).map_err(|reason| Error::request("travel", reason))?;
    Ok(Key { frame, text: text.to_owned() })
}

fn frame(number: &str) -> Result<usize, String> {
    number.trim().parse().map_err(|_| {
        let number: String = number.chars().take(40).collect();
        format!("`{number}` is not the number of a frame, which are counted from 0")
    })
}

/// The file that animatediff-cli reads, as far as it tells prompts.
#[derive(Deserialize)]
struct PromptFile {
    prompt_map: Travel,
    #[serde(default)]
    head_prompt: String,
    #[serde(default)]
    tail_prompt: String,
}

impl FromStr for Travel {
    type Err = Error;

    /// Reads `0: a bud; 16: a blossom`, the same in lines, a JSON map, or the JSON of animatediff-cli.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.starts_with('{') {
            let wrong = |error: serde_json::Error| {
                Error::request("travel", format!("is not a map from frames to prompts: {error}"))
            };
            let json: serde_json::Value = serde_json::from_str(text).map_err(wrong)?;
            if json.get("prompt_map").is_none() {
                return serde_json::from_str(text).map_err(wrong);
            }
            let file: PromptFile = serde_json::from_str(text).map_err(wrong)?;
            return Ok(file.prompt_map.between(&file.head_prompt, &file.tail_prompt));
        }
        let lines = if text.contains('\n') { Self::from_lines(text)? } else { None };
        if let Some(travel) = lines {
            return Ok(travel);
        }
        let mut keys: Vec<Key> = Vec::new();
        for piece in text.split(';') {
            match (split_key(piece), keys.last_mut()) {
                (Some((number, text)), _) => keys.push(key(number, text)?),
                (None, Some(last)) => {
                    last.text.push(';');
                    last.text.push_str(piece);
                }
                (None, None) => {
                    let shown: String = piece.trim().chars().take(40).collect();
                    let reason = format!("`{shown}` does not begin with a frame");
                    return Err(Error::request("travel", reason).with_hint(
                        "write `0: PROMPT; 16: PROMPT`, a JSON map, or a file that is there",
                    ));
                }
            }
        }
        for key in &mut keys {
            key.text.truncate(key.text.trim_end_matches([';', ' ']).len());
        }
        Self::new(keys)
    }
}

impl Serialize for Travel {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for key in &self.0 {
            map.serialize_entry(&key.frame.to_string(), &key.text)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Travel {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Travel;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from frames to prompts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Travel, A::Error> {
                let mut keys = Vec::new();
                while let Some((number, text)) = map.next_entry::<String, String>()? {
                    keys.push(Key { frame: frame(&number).map_err(A::Error::custom)?, text });
                }
                // The entries of an object have no order.
                keys.sort_by_key(|key| key.frame);
                Travel::new(keys).map_err(A::Error::custom)
            }
        }

        from.deserialize_map(Keys)
    }
}

named!(Interpolation, "travel-interpolation", {
    Linear = "linear" | "lerp",
    Spherical = "spherical" | "slerp",
});

#[cfg(test)]
mod tests {
    use super::*;

    fn travel(keys: &[(usize, &str)]) -> Travel {
        let key = |(frame, text): &(usize, &str)| Key { frame: *frame, text: (*text).into() };
        Travel::new(keys.iter().map(key).collect()).unwrap()
    }

    #[test]
    fn every_spelling_means_the_same() {
        let want = travel(&[(0, "a bud"), (16, "a (blossom:1.2)")]);
        for text in [
            "0: a bud; 16: a (blossom:1.2)",
            " 0 :  a bud ;16: a (blossom:1.2); ",
            "0: a bud\n16: a (blossom:1.2)\n",
            r#"{"0": "a bud", "16": "a (blossom:1.2)"}"#,
            r#"{"16": "a (blossom:1.2)", "0": "a bud"}"#,
            r#"{"name": "x", "prompt_map": {"0": "a bud", "16": "a (blossom:1.2)"}, "steps": 20}"#,
        ] {
            assert_eq!(text.parse::<Travel>().unwrap(), want, "{text}");
        }
        let semicolons: Travel = "0: a; b at 10:30; 8: c".parse().unwrap();
        assert_eq!(semicolons, travel(&[(0, "a; b at 10:30"), (8, "c")]));
        let json = serde_json::to_string(&want).unwrap();
        assert_eq!(json, r#"{"0":"a bud","16":"a (blossom:1.2)"}"#);
        assert_eq!(serde_json::from_str::<Travel>(&json).unwrap(), want);
    }

    #[test]
    fn lines_around_the_keys_belong_to_all_of_them() {
        let want =
            travel(&[(0, "best, 1girl, a bud, sharp"), (8, "best, 1girl, a blossom, sharp")]);
        let text = "best,\n1girl\n0: a bud,\n8: a blossom\n\nsharp";
        assert_eq!(Travel::from_lines(text).unwrap().unwrap(), want);
        assert_eq!(Travel::from_prompt(text).unwrap().unwrap(), want);
        let file = r#"{"head_prompt": "best, 1girl", "prompt_map": {"8": "a blossom", "0": "a bud"},
                       "tail_prompt": "sharp"}"#;
        assert_eq!(file.parse::<Travel>().unwrap(), want);
        let alone = Travel::from_prompt("0: a bud").unwrap().unwrap();
        assert_eq!(alone, travel(&[(0, "a bud")]));
        for sentence in ["a cat", "3: a fight", "a 0: b", "10:30\n11:45", "-1: a"] {
            assert_eq!(Travel::from_prompt(sentence).unwrap(), None, "{sentence}");
        }
    }

    #[test]
    fn what_is_wrong_with_keys_is_named() {
        let most: Vec<String> = (0..=MOST_KEYS).map(|frame| format!("{frame}: a")).collect();
        for (text, reason) in [
            ("0: a; 0: b", "frame 0 has two prompts"),
            ("8: a; 4: b", "frame 4 comes after frame 8"),
            ("0: a; -4: b", "`-4` is not the number of a frame"),
            ("0: a; 99999999999999999999: b", "is not the number of a frame"),
            ("a cat", "`a cat` does not begin with a frame"),
            ("", "`` does not begin with a frame"),
            (r#"{"0": "a", "0": "b"}"#, "frame 0 has two prompts"),
            (r#"{"x": "a"}"#, "`x` is not the number of a frame"),
            (r#"{"-1": "a"}"#, "`-1` is not the number of a frame"),
            (r#"{"0": 1}"#, "is not a map from frames to prompts"),
            (r#"{"prompt_map": []}"#, "is not a map from frames to prompts"),
            ("{", "is not a map from frames to prompts"),
            ("0: a\nb\n8: c", "`8:` comes after lines without a frame"),
            (&most.join(";"), "1025 keys"),
        ] {
            let error = text.parse::<Travel>().unwrap_err();
            assert_eq!(error.kind().exit_code(), 2);
            let message = error.to_string();
            assert!(message.starts_with("travel: ") && message.contains(reason), "{message}");
        }
    }
}
