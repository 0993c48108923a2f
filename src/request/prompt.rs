//! The prompts of a request.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::is_default;
use super::travel::{Interpolation, Key, Travel};
use crate::text::editing;
use crate::text::prompt::{self, PromptMode};
use crate::{Error, Result};

/// The longest prompt that is looked at, all keys together: bytes.
const MOST_BYTES: usize = 1 << 20;

/// The prompts of a clip, and how they are read.
///
/// In JSON a string stands for a prompt without anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Prompt {
    /// The prompt; with [`travel`](Self::travel) what all of its prompts begin with. It may have the keys itself, as
    /// lines: see [`Travel::from_lines`].
    pub text: String,
    /// The negative prompt; has an effect only with guidance.
    pub negative: String,
    /// Syntax of both.
    pub mode: PromptMode,
    /// Layers left out at the end of the text encoder.
    pub clip_skip: usize,
    /// Prompts for single frames.
    #[serde(skip_serializing_if = "is_default")]
    pub travel: Travel,
    /// Interpolation between them.
    #[serde(skip_serializing_if = "is_default")]
    pub interpolation: Interpolation,
}

#[derive(Deserialize)]
#[serde(remote = "Prompt", deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    text: String,
    #[serde(default)]
    negative: String,
    #[serde(default)]
    mode: PromptMode,
    #[serde(default)]
    clip_skip: usize,
    #[serde(default)]
    travel: Travel,
    #[serde(default)]
    interpolation: Interpolation,
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Written;

        impl<'de> Visitor<'de> for Written {
            type Value = Prompt;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or an object with `text`, `negative`, `mode`, `clip_skip`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt { text: text.to_owned(), ..Prompt::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Prompt, A::Error> {
                Fields::deserialize(MapAccessDeserializer::new(map))
            }
        }

        from.deserialize_any(Written)
    }
}

impl Prompt {
    /// The prompts by frame, in ascending order; a prompt that does not travel is for frame 0.
    ///
    /// # Errors
    ///
    /// When lines of the text are no keys as they should be, or there are keys beside them.
    pub fn keys(&self) -> Result<Vec<Key>> {
        let lines = match self.mode {
            PromptMode::A1111 => Travel::from_prompt(&self.text)?,
            PromptMode::Plain => None,
        };
        let travel = match (self.travel.is_empty(), lines) {
            (true, Some(lines)) => lines,
            (true, None) => return Ok(vec![Key { frame: 0, text: self.text.clone() }]),
            (false, None) => self.travel.clone().between(&self.text, ""),
            (false, Some(_)) => {
                let reason = "the prompt has lines for frames, too";
                return Err(Error::request("travel", reason));
            }
        };
        Ok(travel.keys().to_vec())
    }

    /// All texts, as they are written.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let keys = self.travel.keys().iter().map(|key| key.text.as_str());
        [self.text.as_str(), self.negative.as_str()].into_iter().chain(keys)
    }

    /// The first words, as a part of a file's name: `a-red-circle`.
    pub(crate) fn slug(&self) -> String {
        let first = self.travel.keys().first().map_or("", |key| key.text.as_str());
        let text = if self.text.trim().is_empty() { first } else { self.text.as_str() };
        let mut slug: String = text
            .to_lowercase()
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .take(6)
            .collect::<Vec<_>>()
            .join("-");
        while slug.len() > 60 {
            slug.pop();
        }
        if slug.is_empty() {
            slug.push_str("clip");
        }
        slug
    }

    /// The texts that make the clip what it is, to be changed: all but the negative prompt.
    pub(crate) fn positive_mut(&mut self) -> impl Iterator<Item = &mut String> {
        std::iter::once(&mut self.text).chain(self.travel.texts_mut())
    }

    /// Checks lengths and grammar for a run of so many steps and a clip of so many frames, if that is known; LoRA tags
    /// must have been taken out.
    pub(super) fn validate(&self, steps: usize, frames: Option<usize>) -> Result<()> {
        let keys: usize = self.travel.keys().iter().map(|key| key.text.len()).sum();
        let own = self.text.len().saturating_mul(self.travel.keys().len().max(1));
        for (field, bytes) in
            [("prompt", own), ("travel", keys), ("negative-prompt", self.negative.len())]
        {
            if bytes > MOST_BYTES {
                let reason = format!("{bytes} bytes, at most {MOST_BYTES} are read");
                return Err(Error::request(field, reason));
            }
        }
        let keys = self.keys()?;
        let last = keys.last().map_or(0, |key| key.frame);
        if let Some(frames) = frames
            && last >= frames
        {
            let reason = format!("frame {last} is beyond the clip of {frames} frames");
            let error = Error::request("travel", reason);
            return Err(error.with_hint(format!("the last frame is {}", frames.saturating_sub(1))));
        }
        if self.mode == PromptMode::Plain {
            return Ok(());
        }
        let field = if self.travel.is_empty() { "prompt" } else { "travel" };
        let keys = keys.iter().map(|key| (field, key.text.as_str()));
        for (field, text) in keys.chain([("negative-prompt", self.negative.as_str())]) {
            check_words(field, text, steps)?;
        }
        Ok(())
    }
}

fn check_words(field: &'static str, text: &str, steps: usize) -> Result<()> {
    const PLAIN: &str = "--prompt-mode plain takes every character as it is";
    if let Some(tag) = prompt::first_tag(text) {
        let tag: String = tag.chars().take(80).collect();
        return Err(if field == "negative-prompt" {
            Error::request(field, format!("`{tag}` is not for negative prompts"))
                .with_hint(format!("put it into the prompt; {PLAIN}"))
        } else {
            Error::request(field, format!("`{tag}` asks for a LoRA"))
                .with_hint(format!("--lora-dir DIR says where such LoRAs are; {PLAIN}"))
        });
    }
    let wrong = |reason| {
        Error::request(field, reason)
            .with_hint(format!("brackets that are meant are written \\( and \\); {PLAIN}"))
    };
    for version in editing::versions(text, steps).map_err(wrong)? {
        prompt::parse(&version.text).map_err(wrong)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_alone_is_a_prompt() {
        let read = |json: &str| serde_json::from_str::<Prompt>(json);
        let prompt = read(r#""a cat""#).unwrap();
        assert_eq!(prompt, Prompt { text: "a cat".into(), ..Prompt::default() });
        assert_eq!(read(r#"{"text":"a cat"}"#).unwrap(), prompt);
        assert_eq!(read(&serde_json::to_string(&prompt).unwrap()).unwrap(), prompt);
        let error = read(r#"{"txt":"a cat"}"#).unwrap_err().to_string();
        assert!(error.contains("`text`"), "{error}");
    }

    #[test]
    fn prompts_that_break_the_rules_are_told_so_unless_they_are_plain() {
        let prompt = |text: &str| Prompt { text: text.into(), ..Prompt::default() };
        let validate = |prompt: Prompt| prompt.validate(4, Some(16));
        let error = validate(prompt("a <lora:x:0.5>")).unwrap_err();
        assert!(error.to_string().starts_with("prompt: `<lora:x:0.5>`"), "{error}");
        assert!(error.hint().unwrap().contains("--lora-dir"));
        for wrong in ["(a:1.2.3)", "[(a:1.2.3):b:2]", "(a:[1.2:1.2.3:2])"] {
            let error = validate(prompt(wrong)).unwrap_err();
            assert!(error.hint().unwrap().contains("plain"), "{error}");
        }
        let negative = Prompt { negative: "<lora:x:1>".into(), ..prompt("a") };
        assert!(validate(negative).unwrap_err().to_string().starts_with("negative-prompt: "));
        for text in ["a <lora:x:0.5>", "(a:1.2.3)"] {
            let plain = Prompt { mode: PromptMode::Plain, ..prompt(text) };
            assert!(validate(plain).is_ok());
        }
    }

    #[test]
    fn keys_are_those_of_the_map_or_of_lines_and_lie_in_the_clip() {
        let travel = |text: &str, keys: &str| Prompt {
            text: text.into(),
            travel: keys.parse().unwrap(),
            ..Prompt::default()
        };
        let keys = |prompt: &Prompt| -> Vec<(usize, String)> {
            prompt.keys().unwrap().into_iter().map(|key| (key.frame, key.text)).collect()
        };
        let want = [(0, "best, a".to_owned()), (8, "best, b".to_owned())];
        let map = travel("best,", "0: a; 8: b");
        assert_eq!(keys(&map), want);
        let lines = Prompt { text: "best\n0: a\n8: b".into(), ..Prompt::default() };
        assert_eq!(keys(&lines), want);
        let plain = Prompt { mode: PromptMode::Plain, ..lines.clone() };
        assert_eq!(keys(&plain), [(0, lines.text.clone())]);
        for prompt in [map, lines] {
            assert!(prompt.validate(4, Some(9)).is_ok() && prompt.validate(4, None).is_ok());
            let error = prompt.validate(4, Some(8)).unwrap_err();
            assert_eq!(error.to_string(), "travel: frame 8 is beyond the clip of 8 frames");
            let json = serde_json::to_string(&prompt).unwrap();
            assert_eq!(serde_json::from_str::<Prompt>(&json).unwrap(), prompt);
        }
        let both = travel("0: a\n8: b", "0: c");
        assert!(both.validate(4, None).unwrap_err().to_string().contains("lines for frames"));
        let wrong = travel("", "0: a; 8: (b:1.2.3)").validate(4, None).unwrap_err().to_string();
        assert!(wrong.starts_with("travel: `1.2.3` is not a weight"), "{wrong}");
        let error = serde_json::from_str::<Prompt>(r#"{"travel":{"0":"a","0":"b"}}"#).unwrap_err();
        assert!(error.to_string().contains("frame 0 has two prompts"), "{error}");
        let huge = travel(&"x".repeat(1 << 20), "0: a; 8: b");
        assert!(huge.validate(4, None).is_err());
    }
}
