//! Prompts: their grammar, LoRA tags, tokens and chunks.

use std::sync::OnceLock;

use animatelcm::request::Request;
use animatelcm::text::TextModel;
use animatelcm::text::editing::versions;
use animatelcm::text::prompt::{Part, PromptMode, first_tag, parse, take_loras};
use animatelcm::text::tokenizer::Tokenizer;

use super::inversion::encoder;

/// Reads the prompt in both modes.
pub fn run(data: &[u8]) {
    static MODEL: OnceLock<TextModel> = OnceLock::new();
    let model = MODEL.get_or_init(|| encoder(Tokenizer::clip().expect("CLIP's tokenizer"), 4));

    let text = String::from_utf8_lossy(data);
    if let Ok(parts) = parse(&text) {
        assert!(!parts.is_empty());
        let is_sound = |part: &Part| !matches!(part, Part::Text { weight, .. } if weight.is_nan());
        assert!(parts.iter().all(is_sound));
    }
    for steps in [1, 4, 7] {
        let Ok(versions) = versions(&text, steps) else { continue };
        assert_eq!(versions.last().map(|version| version.until), Some(steps));
        assert!(versions.is_sorted_by(|a, b| a.until < b.until));
        // Every part is that of the prompt, but none is there twice.
        assert!(versions.iter().all(|version| version.text.len() <= text.len()));
    }
    if let Ok((rest, tags)) = take_loras(&text)
        && !tags.is_empty()
    {
        assert!(rest.len() < text.len());
        assert!(first_tag(&rest).is_none());
    }
    for mode in [PromptMode::A1111, PromptMode::Plain] {
        if let Ok(chunks) = model.read(&text, mode) {
            assert!(chunks.len() >= 1);
        }
        let mut request = Request::new(text.clone());
        request.prompt.mode = mode;
        let _ = request.validate();
    }
}
