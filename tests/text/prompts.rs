//! Weighted, long and extended prompts against AUTOMATIC1111's arithmetic and diffusers' embeddings.

use std::collections::BTreeMap;

use animatelcm::Stop;
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, EmbeddingFile, Files, Models};
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::Request;
use animatelcm::text::TextModel;
use animatelcm::text::inversion::Inversion;
use animatelcm::text::prompt::PromptMode;
use animatelcm::weights::Source;
use animatelcm::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::support::close::assert_relative;
use crate::support::golden;
use crate::support::run::{Runs, Tensors, With};

const MODES: [PromptMode; 2] = [PromptMode::A1111, PromptMode::Plain];

fn files() -> Files {
    Files::new(Base::Folder(golden::path("tiny/model")))
}

fn embedding(file: &str, word: Option<&str>) -> EmbeddingFile {
    let source = Source::from(golden::path("text/embeddings").join(file));
    EmbeddingFile { source, word: word.map(str::to_owned) }
}

fn with(embeddings: Vec<EmbeddingFile>) -> Result<TextModel> {
    let files = Files { embeddings, ..files() };
    Ok(Models::open(&files)?.text(DType::F32, &Device::Cpu)?.0)
}

fn tiny() -> TextModel {
    with(vec![]).unwrap()
}

fn states(text: &TextModel, prompt: &str, mode: PromptMode) -> Tensor {
    let chunks = text.read(prompt, mode).unwrap();
    text.states(&chunks, 1, 0, &Stop::default()).unwrap()
}

#[track_caller]
fn assert_same(got: &Tensor, want: &Tensor) {
    assert_eq!(got.dims(), want.dims());
    let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(values(got) == values(want), "not the same bits");
}

#[test]
fn weighted_and_long_prompts_are_encoded_as_the_web_ui_does() {
    let want = golden::load("text/words");
    let text = tiny();
    for case in golden::json("text/words")["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let prompt = case["prompt"].as_str().unwrap();
        let chunks = text.read(prompt, PromptMode::A1111).unwrap();
        assert_eq!(chunks.len() as u64, case["chunks"].as_u64().unwrap(), "{name}");
        assert_eq!(chunks.truncated(), None);
        let skip = case["skip"].as_u64().unwrap() as usize;
        let got = text.states(&chunks, 1, skip, &Stop::default()).unwrap();
        assert_relative(&got, &want.tensor(name), 1e-5);
    }
}

#[test]
fn a_prompt_without_marks_is_the_same_in_every_mode_to_the_bit() {
    let text = tiny();
    let prompt = "A corgi walking in the park, 4k!! {really} <b>";
    let [a, b] = MODES.map(|mode| states(&text, prompt, mode));
    assert_same(&a, &b);
    // Weights that say nothing change nothing.
    assert_same(&a, &states(&text, &format!("({prompt}:1.0)"), PromptMode::A1111));
    let weighted = states(&text, &format!("({prompt}:1.2)"), PromptMode::A1111);
    assert!(crate::support::close::relative_l2(&weighted, &a) > 1e-3);
}

#[test]
fn plain_prompts_keep_their_brackets_and_lose_their_end() {
    let text = tiny();
    let plain = states(&text, "a (corgi:1.5) BREAK [dog]", PromptMode::Plain);
    assert_eq!(plain.dims(), [1, 77, 12]);
    let escaped = states(&text, r"a \(corgi:1.5\) break \[dog\]", PromptMode::A1111);
    assert_same(&plain, &escaped);

    let long = format!("{}The END", "corgi ".repeat(75));
    let chunks = text.read(&long, PromptMode::Plain).unwrap();
    assert_eq!((chunks.len(), chunks.truncated()), (1, Some("The END")));
    let cut = states(&text, &"corgi ".repeat(75), PromptMode::Plain);
    assert_same(&text.states(&chunks, 1, 0, &Stop::default()).unwrap(), &cut);
}

#[test]
fn a_shorter_prompt_is_filled_up_with_empty_chunks() {
    let text = tiny();
    let chunks = text.read("a (corgi:1.3)", PromptMode::A1111).unwrap();
    let got = text.states(&chunks, 3, 0, &Stop::default()).unwrap();
    assert_eq!(got.dims(), [1, 231, 12]);
    let alone = text.states(&chunks, 1, 0, &Stop::default()).unwrap();
    let empty = states(&text, "", PromptMode::A1111);
    assert_same(&got, &Tensor::cat(&[&alone, &empty, &empty], 1).unwrap());
}

#[test]
fn weights_that_cancel_each_other_out_are_refused() {
    let text = tiny();
    let chunks = text.read("(corgi:9999999999999999999999999999999999999999)", PromptMode::A1111);
    let error = text.states(&chunks.unwrap(), 1, 0, &Stop::default()).unwrap_err();
    assert_eq!(error.to_string(), "prompt: its weights cancel each other out");
}

#[test]
fn embeddings_in_every_published_form_equal_diffusers() {
    let want = golden::load("text/embeddings");
    let cases = golden::json("text/embeddings");
    let cases = cases["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let pairs = case["files"].as_array().unwrap().iter();
        let pair = |pair: &Value| embedding(pair[0].as_str().unwrap(), pair[1].as_str());
        let text = with(pairs.map(pair).collect()).unwrap();
        let prompt = case["prompt"].as_str().unwrap();
        for mode in MODES {
            let got = states(&text, prompt, mode);
            assert_relative(&got, &want.tensor(case["name"].as_str().unwrap()), 1e-5);
        }
    }
}

#[test]
fn an_embedding_goes_by_the_name_of_its_file_too() {
    let text = with(vec![embedding("bad-style-v2.pt", None)]).unwrap();
    let named = text.read("a badstyle dog", PromptMode::A1111).unwrap();
    assert_eq!(text.read("a Bad-Style-v2 dog", PromptMode::A1111).unwrap(), named);
    assert_ne!(text.read("a bad style dog", PromptMode::A1111).unwrap(), named);
}

#[test]
fn embeddings_obey_weights_and_brackets() {
    let text = with(vec![embedding("EasyStyle.safetensors", None)]).unwrap();
    let read = |prompt: &str| text.read(prompt, PromptMode::A1111).unwrap();
    assert_ne!(read("a (EasyStyle:1.2)"), read("a EasyStyle"));
    assert_eq!(read("a (EasyStyle:1.0), dog"), read("a EasyStyle, dog"));
    // Three vectors go together into the next chunk.
    let dogs = "dog ".repeat(73);
    assert_eq!(read(&format!("{dogs} BREAK EasyStyle")), read(&format!("{dogs} EasyStyle")));
}

#[test]
fn vectors_have_words_of_their_own_and_none_is_found_inside_a_word() {
    let source = Source::from(golden::path("text/embeddings/EasyStyle.safetensors"));
    let second =
        Inversion::open(&source, None).unwrap().words()[0].vectors.narrow(0, 1, 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("second.safetensors");
    candle_core::safetensors::save(&[("<2nd>", second)].into(), &path).unwrap();
    let text = with(vec![
        embedding("EasyStyle.safetensors", None),
        EmbeddingFile { source: path.into(), word: None },
    ])
    .unwrap();
    let plain = |prompt: &str| states(&text, prompt, PromptMode::Plain);
    assert_same(&plain("a EasyStyle_1 dog"), &plain("a <2nd> dog"));
    let before = states(&tiny(), "EasyStyles uneasystyle", PromptMode::Plain);
    assert_same(&plain("EasyStyles uneasystyle"), &before);
}

#[track_caller]
fn refused(file: &str, word: Option<&str>, reason: &str) -> Error {
    let error = with(vec![embedding(file, word)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weights, "{error}");
    let name = file.rsplit('/').next().unwrap();
    assert!(error.to_string().contains(name) && error.to_string().contains(reason), "{error}");
    error
}

#[test]
fn embeddings_that_cannot_be_used_are_refused_by_name() {
    refused("sd2.safetensors", None, "1024 wide (Stable Diffusion 2), the text encoder 12");
    refused("sdxl.safetensors", None, "SDXL");
    refused("../../tiny/extras/lora-kohya.safetensors", None, "not a textual inversion");
    refused("../../tiny/model/tokenizer/vocab.json", None, "JSON");
    refused("words.safetensors", Some("<x>"), "has 2 words");
    refused("nowhere.pt", None, "no such file");
    let error = refused("bare.pt", Some("corgi"), "`corgi` is in the vocabulary already");
    assert!(error.hint().unwrap().contains("FILE:WORD"));
    refused("bare.pt", Some("CORGI"), "in the vocabulary already");

    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, shape: &[usize]| {
        let path = folder.path().join(name);
        let vectors = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        candle_core::safetensors::save(&[("emb_params", vectors)].into(), &path).unwrap();
        with(vec![EmbeddingFile { source: path.into(), word: None }])
    };
    assert!(save("most.safetensors", &[75, 12]).is_ok());
    let error = save("many.safetensors", &[76, 12]).unwrap_err();
    assert!(error.to_string().contains("76 vectors, a prompt holds 75"), "{error}");
    assert!(save("none.safetensors", &[0, 12]).unwrap_err().to_string().contains("not a textual"));
    assert!(
        save("box.safetensors", &[2, 2, 12]).unwrap_err().to_string().contains("not a textual")
    );

    let twice = vec![embedding("words.safetensors", None), embedding("bare.pt", Some("<ONE>"))];
    let error = with(twice).unwrap_err();
    assert!(error.to_string().contains("`<ONE>` is in the vocabulary already"), "{error}");
}

fn contexts(files: &Files, request: &Request) -> Result<(Tensor, Tensor, Tensor)> {
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    let models = Models::open(files)?;
    let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::Sequential);
    let mut tensors = Tensors { recorded: Some(BTreeMap::new()), ..Tensors::default() };
    let mut frames = Vec::new();
    let mut listener = |event: Event| match event {
        Event::Warning { message } => panic!("{message}"),
        _ => Ok(()),
    };
    pipeline.run(request, &mut tensors, &mut listener, &mut &mut frames)?;
    let mut recorded = tensors.recorded.unwrap();
    let mut take = |name: &str| recorded.remove(name).unwrap();
    Ok((take("context"), take("negative_context"), take("latents")))
}

#[test]
fn prompt_and_negative_prompt_have_equally_many_chunks_whichever_is_longer() {
    let short = Request::default().with(|r| {
        r.prompt.text = "a corgi".into();
        r.prompt.negative = "bad quality".into();
        r.size.frames = Some(2);
        r.sampling.steps = 1;
        r.sampling.cfg_scale = 2.0;
        r.sampling.seed = Some(3);
    });
    let long = "the dog (walking) ".repeat(40);
    let (context, negative, latents) = contexts(&files(), &short).unwrap();
    assert_eq!((context.dims(), negative.dims()), (&[1, 77, 12][..], &[1, 77, 12][..]));
    for request in [
        short.clone().with(|r| {
            r.prompt.text = long.clone();
        }),
        short.clone().with(|r| {
            r.prompt.negative = long;
        }),
    ] {
        let (context, negative, longer) = contexts(&files(), &request).unwrap();
        assert_eq!((context.dims(), negative.dims()), (&[1, 154, 12][..], &[1, 154, 12][..]));
        assert!(crate::support::close::relative_l2(&longer, &latents) > 1e-3, "it changed nothing");
    }
}

#[test]
fn endless_prompts_end_after_32_chunks() {
    let text = tiny();
    let read = |prompt: &str| text.read(prompt, PromptMode::A1111).unwrap();
    let most = read(&"corgi ".repeat(32 * 75));
    assert_eq!((most.len(), most.truncated()), (32, None));
    let more = read(&format!("{}The (END", "corgi ".repeat(32 * 75)));
    assert_eq!((more.len(), more.truncated()), (32, Some("The")));
    assert_eq!(text.states(&more, 1, 0, &Stop::default()).unwrap().dims(), [1, 32 * 77, 12]);
    assert_eq!(read(&"BREAK ".repeat(100_000)).len(), 32);
}

/// The program itself.
#[cfg(feature = "cli")]
mod program {
    use super::*;
    use crate::support::program::Folder;

    fn path(name: &str) -> String {
        golden::path(name).to_str().unwrap().to_owned()
    }

    /// A small clip of the tiny model.
    fn generate(folder: &Folder, args: &[&str]) -> crate::support::program::Outcome {
        let model = path("tiny/model");
        let mut all = vec!["generate", "--model", &model, "--frames", "2", "--steps", "1"];
        all.extend(["--seed", "5", "-y", "-o", "clip.gif"]);
        all.extend(args);
        folder.run(&all)
    }

    fn job(folder: &Folder) -> Value {
        folder.run(&["inspect", "clip.gif", "--json"]).ok().json()
    }

    #[test]
    fn an_embedding_is_in_the_clip_s_metadata_and_replays() {
        let folder = Folder::new();
        let embedding = format!("{}:<mine>", path("text/embeddings/bare.pt"));
        let args =
            ["a <mine> dog", "-n", "<mine>", "--cfg-scale", "1.5", "--embedding", &embedding];
        generate(&folder, &args).ok();
        let job = job(&folder);
        assert_eq!(job["models"]["embeddings"][0]["word"], "<mine>");
        let weights = job["weights"].as_array().unwrap();
        assert_eq!(weights.last().unwrap()["file"], "bare.pt");
        assert_eq!(weights.last().unwrap()["sha256"].as_str().unwrap().len(), 64);
        folder.run(&["replay", "clip.gif", "-o", "again.gif"]).ok();
        assert!(folder.read("clip.gif") == folder.read("again.gif"));
    }

    #[test]
    fn a_lora_tag_does_what_the_flag_does() {
        let folder = Folder::new();
        let lora = path("tiny/extras/lora-kohya.safetensors");
        folder.write("loras/style/mine.safetensors", std::fs::read(&lora).unwrap());
        generate(&folder, &["a dog ", "--lora", "loras/style/mine.safetensors:0.7"]).ok();
        let by_flag = folder.read("clip.gif");
        let args = ["a dog <lora:mine:0.7>", "--lora-dir", "loras"];
        generate(&folder, &args).ok();
        assert!(folder.read("clip.gif") == by_flag, "another clip, or another request in it");
        assert_eq!(job(&folder)["models"]["loras"][0]["scale"], 0.7);

        generate(&folder, &["a dog "]).ok();
        assert!(folder.read("clip.gif") != by_flag);
        let lost = generate(&folder, &args[..1]);
        assert!(lost.fails(2).contains("`<lora:mine:0.7>` asks for a LoRA"));
        assert!(lost.hint().contains("--lora-dir"));
        let wrong = generate(&folder, &["a dog <lora:yours>", "--lora-dir", "loras"]);
        assert!(wrong.fails(3).contains("<lora:yours>"));
        generate(&folder, &["a <lora:mine> dog", "--prompt-mode", "plain"]).ok();
    }

    #[test]
    fn inspect_says_what_an_embedding_is_for() {
        let folder = Folder::new();
        let inspect = |file: &str| folder.run(&["inspect", file, "--json"]).ok().json();
        let about = inspect(&path("text/embeddings/sd2.safetensors"));
        let kind = about["kind"].as_str().unwrap();
        assert!(kind.starts_with("a textual inversion for Stable Diffusion 2"), "{kind}");
        assert!(kind.ends_with("sd2 of 1"), "{kind}");
        assert_eq!(about["supported"], false);
        let about = inspect(&path("text/embeddings/sdxl.safetensors"));
        assert!(about["kind"].as_str().unwrap().contains("SDXL"), "{about}");

        let vectors = Tensor::zeros((2, 768), DType::F32, &Device::Cpu).unwrap();
        let file = folder.path("mine.safetensors");
        candle_core::safetensors::save(&[("<a>", vectors)].into(), file).unwrap();
        let about = inspect("mine.safetensors");
        assert!(about["kind"].as_str().unwrap().ends_with("<a> or mine of 2"), "{about}");
        assert_eq!(about["supported"], true);
    }

    #[test]
    fn hostile_prompts_give_one_clear_line() {
        let folder = Folder::new();
        for (prompt, reason) in [
            ("(".repeat(100_000), "64 brackets are open"),
            ("(a:1.2.3)".to_owned(), "`1.2.3` is not a weight"),
        ] {
            let outcome = generate(&folder, &[&prompt]);
            assert!(outcome.fails(2).contains(reason), "{}", outcome.stderr);
            assert!(outcome.hint().contains("--prompt-mode plain"));
        }
        assert_eq!(folder.names(), Vec::<String>::new());
        let cut = generate(&folder, &[&"a corgi ".repeat(60), "--prompt-mode", "plain"]).ok();
        assert!(cut.stderr.contains("the prompt is too long"), "{}", cut.stderr);
        let whole = generate(&folder, &[&"a corgi ".repeat(60)]).ok();
        assert!(!whole.stderr.contains("too long"), "{}", whole.stderr);
        generate(&folder, &["a", "--prompt-mode", "fancy"]).fails(2);
    }
}
