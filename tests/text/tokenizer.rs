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
    assert!(matches!(&missing, Error::Missing { name, .. } if name.ends_with("vocab.json")));
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

/// The smallest tokenizer, which adds `count` tokens to its vocabulary.
fn with_added(count: usize) -> String {
    let added: Vec<Value> = (0..count)
        .map(|i| serde_json::json!({"id": 4 + i, "content": format!("<token-{i}>"), "normalized": i % 2 == 0}))
        .collect();
    let vocab = serde_json::json!({"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3});
    let model = serde_json::json!({"vocab": vocab, "merges": []});
    serde_json::json!({"model": model, "added_tokens": added}).to_string()
}

#[test]
fn tens_of_thousands_of_added_tokens_take_no_time() {
    let start = Instant::now();
    let tokenizer =
        Tokenizer::from_tokenizer_json(&with_added(50_000), &Settings::default()).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(tokenizer.vocab_size(), 50_004);
    assert_eq!(tokenizer.ids("a <token-49999> <token-7>").unwrap(), [1, 50_003, 11]);
    let error = Tokenizer::from_tokenizer_json(&with_added(70_000), &Settings::default());
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "tokenizer.json: adds 70000 tokens, at most 65536 are read");
}

#[cfg(unix)]
#[test]
fn pipes_in_a_tokenizers_folder_are_refused() {
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"]
    {
        let folder = tempfile::tempdir().unwrap();
        for file in ["vocab.json", "merges.txt"] {
            std::fs::copy(golden::path(TINY).join(file), folder.path().join(file)).unwrap();
        }
        let pipe = folder.path().join(name);
        let _ = std::fs::remove_file(&pipe);
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let error = Tokenizer::open(folder.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: is not an ordinary file", pipe.display()));
        assert_eq!(error.kind(), animatelcm::ErrorKind::Weights);
    }
}

#[test]
fn thousands_of_words_are_added_at_once() {
    let mut clip = Tokenizer::clip().unwrap();
    let words: Vec<String> = (0..5000).map(|i| format!("word{i}_{i}")).collect();
    let start = Instant::now();
    let ids = clip.add_tokens(&words).unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(ids, (49408..54408).collect::<Vec<u32>>());
    assert_eq!(clip.ids("word7_7, word4999_4999").unwrap(), [49415, 267, 54407]);
    let again = ["new".to_owned() + "token", "word1_1".to_owned()];
    assert!(clip.add_tokens(&again).unwrap_err().to_string().contains("`word1_1` is in"));
    let twice = ["sametoken".to_owned(), "sametoken".to_owned()];
    assert!(clip.add_tokens(&twice).unwrap_err().to_string().contains("`sametoken` is in"));
    assert_eq!(clip.vocab_size(), 54408);
}
