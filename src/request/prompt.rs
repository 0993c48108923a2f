//! The prompts of a request.

use serde::{Deserialize, Serialize};

use crate::text::prompt::{self, PromptMode};
use crate::{Error, Result};

/// The longest prompt that is looked at: bytes.
const MOST_BYTES: usize = 1 << 20;

/// The prompts of a clip, and how they are read.
///
/// In JSON a string stands for a prompt without anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Prompt {
    /// The prompt.
    pub text: String,
    /// The negative prompt; has an effect only with guidance.
    pub negative: String,
    /// Syntax of both.
    pub mode: PromptMode,
    /// Layers left out at the end of the text encoder.
    pub clip_skip: usize,
}

impl Default for Prompt {
    fn default() -> Self {
        Self { text: String::new(), negative: String::new(), mode: PromptMode::A1111, clip_skip: 0 }
    }
}

/// A prompt as JSON has it.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, or an object with `text`, `negative`, `mode`, `clip_skip`"
)]
enum Written {
    Text(String),
    Fields(Fields),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    text: String,
    negative: String,
    mode: PromptMode,
    clip_skip: usize,
}

impl Default for Fields {
    fn default() -> Self {
        let Prompt { text, negative, mode, clip_skip } = Prompt::default();
        Self { text, negative, mode, clip_skip }
    }
}

impl From<Written> for Prompt {
    fn from(written: Written) -> Self {
        match written {
            Written::Text(text) => Self { text, ..Self::default() },
            Written::Fields(Fields { text, negative, mode, clip_skip }) => {
                Self { text, negative, mode, clip_skip }
            }
        }
    }
}

impl Prompt {
    /// Checks lengths and grammar; LoRA tags must have been taken out.
    pub(super) fn validate(&self) -> Result<()> {
        for (field, text) in [("prompt", &self.text), ("negative-prompt", &self.negative)] {
            if text.len() > MOST_BYTES {
                let reason = format!("{} bytes, at most {MOST_BYTES} are read", text.len());
                return Err(Error::request(field, reason));
            }
            if self.mode == PromptMode::A1111 {
                check_words(field, text)?;
            }
        }
        Ok(())
    }
}

fn check_words(field: &'static str, text: &str) -> Result<()> {
    const PLAIN: &str = "--prompt-mode plain takes every character as it is";
    if let Some(tag) = prompt::first_tag(text) {
        let tag: String = tag.chars().take(80).collect();
        return Err(if field == "prompt" {
            Error::request(field, format!("`{tag}` asks for a LoRA"))
                .with_hint(format!("--lora-dir DIR says where such LoRAs are; {PLAIN}"))
        } else {
            Error::request(field, format!("`{tag}` is not for negative prompts"))
                .with_hint(format!("put it into the prompt; {PLAIN}"))
        });
    }
    prompt::parse(text).map(|_| ()).map_err(|reason| {
        Error::request(field, reason)
            .with_hint(format!("brackets that are meant are written \\( and \\); {PLAIN}"))
    })
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
        let error = prompt("a <lora:x:0.5>").validate().unwrap_err();
        assert!(error.to_string().starts_with("prompt: `<lora:x:0.5>`"), "{error}");
        assert!(error.hint().unwrap().contains("--lora-dir"));
        let error = prompt("(a:1.2.3)").validate().unwrap_err();
        assert!(error.hint().unwrap().contains("plain"), "{error}");
        let negative = Prompt { negative: "<lora:x:1>".into(), ..prompt("a") };
        assert!(negative.validate().unwrap_err().to_string().starts_with("negative-prompt: "));
        for text in ["a <lora:x:0.5>", "(a:1.2.3)"] {
            let plain = Prompt { mode: PromptMode::Plain, ..prompt(text) };
            assert!(plain.validate().is_ok());
        }
    }
}
