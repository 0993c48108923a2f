//! Token ids against transformers.

use std::time::{Duration, Instant};

use animatelcm::Error;
use animatelcm::text::tokenizer::{Settings, Special, Tokenizer};
use serde_json::Value;

use crate::support::golden;

const TINY: &str = "tiny/model/tokenizer";

fn tiny() -> Tokenizer {
    Tokenizer::open(&golden::path(TINY)).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn hard_prompts_get_the_ids_of_the_reference() {
    let clip = Tokenizer::clip().unwrap();
    let golden = golden::json("tokenizer/clip");
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        let text = match case["text"].as_str() {
            Some(text) => text.to_owned(),
            None => {
                case["repeat"].as_str().unwrap().repeat(case["times"].as_u64().unwrap() as usize)
            }
        };
        let shown: String = text.chars().take(80).collect();
        let encoding = clip.encode(&text).unwrap();
        assert_eq!(encoding.ids, ids(&case["ids"]), "{shown:?}");
        let length = clip.ids(&text).unwrap().len() + 2;
        assert_eq!(length as u64, case["length"], "{shown:?}");
        assert_eq!(encoding.truncated.is_some(), length > 77, "{shown:?}");
    }
}

#[test]
fn the_embedded_vocabulary_is_that_of_clip() {
    let clip = Tokenizer::clip().unwrap();
    assert_eq!(clip.vocab_size(), 49408);
    assert_eq!((clip.bos(), clip.eos(), clip.pad()), (49406, 49407, 49407));
    assert_eq!(clip.max_length(), 77);
    assert_eq!(clip.id("the</w>"), Some(518));
    assert_eq!(clip.ids("a diagram").unwrap(), [320, 22697]);
}

#[test]
fn a_tokenizer_folder_gives_the_ids_of_the_reference() {
    let strings = [
        "A corgi walking in the park, 4k!!",
        "bad quality",
        "",
        "  Two   spaces\tand\nlines ",
        "it's 2024: don't!!!",
        "caf\u{e9} \u{c9}t\u{e9} \u{1f600}",
        "walking<|endoftext|>park",
        "corgi-dog_walking",
        &"x".repeat(200),
        "\u{130}stanbul \u{b2} \u{4e2d}\u{6587}",
    ];
    let want = golden::load("tiny/cases/tokenizer");
    assert_eq!(want.names().len(), strings.len());
    let newer = Tokenizer::open(&golden::path("tiny/extras/tokenizer")).unwrap();
    for (i, text) in strings.iter().enumerate() {
        let want: Vec<_> = want.values(&format!("ids.{i}")).iter().map(|id| *id as u32).collect();
        assert_eq!(tiny().encode(text).unwrap().ids, want, "{text:?}");
        assert_eq!(newer.encode(text).unwrap().ids, want, "{text:?} with tokenizer.json");
    }
}

#[test]
fn merges_alone_make_the_same_tokenizer() {
    let merges = std::fs::read_to_string(golden::path(TINY).join("merges.txt")).unwrap();
    let derived = Tokenizer::from_merges(&merges, &Settings::default()).unwrap();
    assert_eq!(derived.vocab_size(), tiny().vocab_size());
    let text = "A corgi walking in the park, 4k!! caf\u{e9}";
    assert_eq!(derived.encode(text).unwrap(), tiny().encode(text).unwrap());
}

#[test]
fn the_lost_part_of_a_long_prompt_is_reported() {
    let clip = Tokenizer::clip().unwrap();
    let text = format!("{}  Lost \u{c9}T\u{c9}, too", "word ".repeat(75));
    let encoding = clip.encode(&text).unwrap();
    assert_eq!(encoding.ids.len(), 77);
    assert_eq!(encoding.ids[76], clip.eos());
    assert_eq!(encoding.truncated.as_deref(), Some("Lost \u{c9}T\u{c9}, too"));
    assert_eq!(clip.encode("short").unwrap().truncated, None);
}

#[test]
fn a_hundred_thousand_characters_take_no_time() {
    let clip = Tokenizer::clip().unwrap();
    for text in ["a corgi ".repeat(12_500), "x".repeat(100_000), "\u{e9}".repeat(100_000)] {
        let start = Instant::now();
        let encoding = clip.encode(&text).unwrap();
        assert!(encoding.truncated.is_some());
        // Ten times what a slow machine needs; anything quadratic takes minutes.
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

#[test]
fn an_added_token_stands_for_itself() {
    let mut clip = Tokenizer::clip().unwrap();
    let before = clip.ids("a <my-style> corgi").unwrap();
    let id = clip.add_token("<my-style>").unwrap();
    assert_eq!(id, 49408);
    assert_eq!(clip.vocab_size(), 49409);
    let after = clip.ids("a <my-style> corgi").unwrap();
    assert_eq!(after, [before[0], id, *before.last().unwrap()]);
    assert_eq!(clip.ids("a <MY-style>, corgi").unwrap()[1], id);
    let error = clip.add_token("<my-style>").unwrap_err();
    assert_eq!(error.to_string(), "token: `<my-style>` is in the vocabulary already");
    assert!(clip.add_token("").is_err());
}

#[test]
fn the_pad_token_is_a_setting() {
    let settings = Settings { pad: Special::new("!"), max_length: 5, ..Settings::default() };
    let merges = std::fs::read_to_string(golden::path(TINY).join("merges.txt")).unwrap();
    let tokenizer = Tokenizer::from_merges(&merges, &settings).unwrap();
    let ids = tokenizer.encode("the").unwrap().ids;
    assert_eq!(tokenizer.pad(), 0);
    assert_eq!(ids[0], tokenizer.bos());
    assert_eq!(ids[2..], [tokenizer.eos(), 0, 0]);
}

#[test]
fn a_folder_says_how_special_tokens_are_found() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(golden::path(TINY).join(file), folder.path().join(file)).unwrap();
    }
    let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
    write(
        "tokenizer_config.json",
        r#"{"model_max_length": 1000000000000000019884624838656, "pad_token": "?",
            "bos_token": {"__type": "AddedToken", "content": "<|startoftext|>", "normalized": true}}"#,
    );
    let plain = tiny();
    let open = || Tokenizer::open(folder.path()).unwrap();
    assert_eq!(open().max_length(), 77);
    assert_eq!(open().pad(), plain.id("?").unwrap());
    // As Stable Diffusion 1.5 was published: found in upper case too.
    assert_eq!(open().ids("<|STARTOFTEXT|>").unwrap(), [plain.bos()]);
    assert_ne!(plain.ids("<|STARTOFTEXT|>").unwrap(), [plain.bos()]);
    assert_ne!(open().ids("<|ENDOFTEXT|>").unwrap(), [plain.eos()]);
    write("special_tokens_map.json", r#"{"pad_token": "!"}"#);
    assert_eq!(open().pad(), plain.id("!").unwrap());
    write("tokenizer_config.json", r#"{"pad_token": "?", "added_tokens_decoder": {}}"#);
    assert_eq!(open().pad(), plain.id("?").unwrap());
}

#[test]
fn broken_tokenizers_name_the_file() {
    let settings = Settings::default();
    let vocab = r#"{"a": 0, "b": 1, "ab": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}"#;
    let failure = |vocab: &str, merges: &str| {
        let error = Tokenizer::from_files(vocab, merges, &settings).unwrap_err();
        assert!(matches!(&error, Error::Format { .. }), "{error:?}");
        error.to_string()
    };
    assert!(Tokenizer::from_files(vocab, "#version: 0.2\na b\n", &settings).is_ok());
    assert!(failure("[]", "a b").starts_with("vocab.json: not a vocabulary: "));
    assert_eq!(failure(vocab, "a b\nab"), "merges.txt: merge 2 is not two pieces: `ab`");
    assert_eq!(
        failure(vocab, "b a"),
        "vocab.json: the merges need `ba`, which the vocabulary lacks"
    );
    let error = Tokenizer::from_tokenizer_json(r#"{"model": {}}"#, &settings).unwrap_err();
    assert!(error.to_string().starts_with("tokenizer.json: not a BPE tokenizer: "), "{error}");
    let short = Settings { max_length: 1, ..settings.clone() };
    let error = Tokenizer::from_files(vocab, "", &short).unwrap_err();
    assert_eq!(error.to_string(), "vocab.json: the longest sequence must have 2 tokens, got 1");
    let missing = Tokenizer::open(&golden::path("tokenizer")).unwrap_err();
    assert!(matches!(&missing, Error::File { path, .. } if path.ends_with("vocab.json")));
}

#[test]
fn json_merges_may_be_lines_or_pairs() {
    let json = |merges: &str| {
        format!(
            r#"{{"model": {{"vocab": {{"a": 0, "b</w>": 1, "ab</w>": 2, "<|startoftext|>": 3,
            "<|endoftext|>": 4}}, "merges": {merges}}},
            "added_tokens": [{{"id": 5, "content": "<cat>", "normalized": true}}]}}"#
        )
    };
    for merges in [r#"["a b</w>"]"#, r#"[["a", "b</w>"]]"#] {
        let tokenizer =
            Tokenizer::from_tokenizer_json(&json(merges), &Settings::default()).unwrap();
        assert_eq!(tokenizer.ids("ab <CAT> ab").unwrap(), [2, 5, 2]);
    }
    let misplaced = json("[]").replace("\"id\": 5", "\"id\": 9");
    let error = Tokenizer::from_tokenizer_json(&misplaced, &Settings::default()).unwrap_err();
    assert_eq!(error.to_string(), "tokenizer.json: the added token `<cat>` cannot have id 9");
}
