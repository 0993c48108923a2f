//! The text encoder against transformers.

use animatelcm::Stop;
use animatelcm::models::clip::{TextConfig, TextEncoder};
use candle_core::DType;

use crate::support::close::assert_relative;
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
