//! Textual inversions in every form.

use std::sync::OnceLock;

use animatelcm::models::clip::{TextConfig, TextEncoder};
use animatelcm::text::TextModel;
use animatelcm::text::inversion::Inversion;
use animatelcm::text::prompt::PromptMode;
use animatelcm::text::tokenizer::{Settings, Tokenizer};
use animatelcm::weights::Source;
use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::support::{file, parts};

/// Reads the file and adds its words to a small text model. An input that begins with a brace is a safetensors header.
pub fn run(data: &[u8]) {
    let bytes = if data.starts_with(b"{") {
        let [header, bytes] = parts(data);
        [&(header.len() as u64).to_le_bytes(), header, bytes].concat()
    } else {
        data.to_vec()
    };
    let source = Source::from(file("style.pt", &bytes));
    let _ = Inversion::open(&source, Some("word"));
    let Ok(inversion) = Inversion::open(&source, None) else { return };
    let mut model = small(&inversion);
    if model.add(&inversion).is_ok() {
        let names = inversion.words().iter().flat_map(|word| &word.names);
        let names: Vec<&str> = names.map(String::as_str).take(4).collect();
        let _ = model.read(&format!("a {}, (b_1:1.2)", names.join(" ")), PromptMode::A1111);
        let _ = model.read(&names.join(", "), PromptMode::Plain);
    }
}

/// A text model of a few words, as wide as an inversion's vectors where they are not wide.
fn small(inversion: &Inversion) -> TextModel {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| {
        let merges = "#version: 0.2\ns t</w>\na b</w>";
        Tokenizer::from_merges(merges, &Settings::default()).expect("a small tokenizer")
    });
    let width = inversion.words().first().and_then(|word| word.vectors.dim(1).ok());
    encoder(tokenizer.clone(), width.filter(|width| *width <= 1024).unwrap_or(8))
}

/// A text model of one layer, of zeros.
pub(crate) fn encoder(tokenizer: Tokenizer, width: usize) -> TextModel {
    let config = TextConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: width,
        intermediate_size: width,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        ..TextConfig::default()
    };
    let weights = VarBuilder::zeros(DType::F32, &Device::Cpu).into();
    let encoder = TextEncoder::new(&config, &weights).expect("a small text encoder");
    TextModel::new(tokenizer, encoder, &Device::Cpu)
}
