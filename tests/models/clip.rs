//! The text encoder, and both halves of a CLIP, against transformers.

use animatelcm::Stop;
use animatelcm::models::clip::{Clip, JointConfig, TextConfig, TextEncoder};
use animatelcm::text::tokenizer::Tokenizer;
use candle_core::{DType, Tensor};

use crate::support::close::assert_relative;
use crate::support::golden;
use crate::support::tiny::{self, case};

fn encoder() -> TextEncoder {
    let config: TextConfig = tiny::config("tiny/model/text_encoder/config.json");
    let vb = tiny::vb(&["tiny/model/text_encoder/model.safetensors"], DType::F32);
    TextEncoder::new(&config, &vb).unwrap()
}

#[test]
fn the_last_states_and_skipped_ones_equal_transformers() {
    let case = case("text");
    let ids = case["ids"].to_dtype(DType::U32).unwrap();
    let encoder = encoder();
    for (skip, want) in [(0, "last"), (1, "clip_skip.1"), (2, "clip_skip.2")] {
        assert_relative(&encoder.forward(&ids, skip, &Stop::default()).unwrap(), &case[want], 1e-5);
    }
}

#[test]
fn skipping_every_layer_is_refused() {
    let ids = case("text")["ids"].to_dtype(DType::U32).unwrap();
    assert_eq!(encoder().forward(&ids, 3, &Stop::default()).unwrap_err().kind().exit_code(), 2);
}

#[test]
fn texts_and_images_meet_where_transformers_puts_them() {
    let config: JointConfig = tiny::config("clip_score/model/config.json");
    // The encoders' own entries say 512, which counts for nothing.
    assert_eq!((config.projection_dim, config.vision_config.projection_dim), (11, 512));
    let vb = tiny::vb(&["clip_score/model/model.safetensors"], DType::F32);
    let clip = Clip::new(&config, &vb).unwrap();
    let case = golden::load("clip_score/cases");
    let stop = Stop::default();
    let frames = case.images("frames");
    assert_relative(&clip.embed_images(&frames, &stop).unwrap(), &case.tensor("image"), 1e-5);

    let tokenizer = Tokenizer::open(&golden::path("tiny/extras/tokenizer")).unwrap();
    let prompts = golden::json("clip_score/clip_score");
    let texts: Vec<Tensor> = prompts["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|prompt| {
            let mut ids = tokenizer.encode(prompt.as_str().unwrap()).unwrap().ids;
            let end = ids.iter().position(|id| *id == tokenizer.eos()).unwrap();
            ids.truncate(end + 1);
            clip.embed_text(&ids, &stop).unwrap()
        })
        .collect();
    assert_relative(&Tensor::cat(&texts, 0).unwrap(), &case.tensor("text"), 1e-5);
    for ids in [vec![], vec![1; 78]] {
        assert_eq!(clip.embed_text(&ids, &stop).unwrap_err().kind().exit_code(), 2);
    }
}
