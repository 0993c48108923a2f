//! BLIP against transformers, with random weights under the names of the published file.

use std::collections::HashMap;

use animatelcm::Stop;
use animatelcm::library::Captioner;
use animatelcm::media::RgbImage;
use animatelcm::models::blip::{Blip, BlipConfig};
use animatelcm::text::word_pieces::WordPieces;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::support::close::{assert_close, assert_relative, relative_l2};
use crate::support::{golden, tiny};

fn config() -> BlipConfig {
    tiny::config("blip/config.json")
}

fn network() -> Blip {
    let weights = tiny::vb(&["blip/model.safetensors"], DType::F32);
    Blip::new(&config(), &weights).unwrap()
}

/// The tokens of a list of the golden JSON.
fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

fn picture(cases: &golden::Golden, number: usize) -> RgbImage {
    let picture = cases.tensor(&format!("picture.{number}"));
    let (height, width, _) = picture.dims3().unwrap();
    let values = picture.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    RgbImage::from_raw(width as u32, height as u32, values).unwrap()
}

fn logits(network: &Blip, pixels: &Tensor, ids: &Tensor) -> Tensor {
    let stop = Stop::default();
    let states = network.vision().forward(pixels, &stop).unwrap();
    let contexts = network.text().contexts(&states).unwrap();
    network.text().scores(&network.text().forward(ids, &contexts, &stop).unwrap()).unwrap()
}

#[test]
fn states_and_logits_are_those_of_transformers() {
    let (cases, network) = (golden::load("blip/cases"), network());
    let pixels = network.pixels(&picture(&cases, 0), &Stop::default()).unwrap();
    assert_close(&pixels, &cases.tensor("pixels"), 1e-6);
    let states = network.vision().forward(&pixels, &Stop::default()).unwrap();
    assert_relative(&states, &cases.tensor("states"), 1e-5);
    let said = tokens(&golden::json("blip/captions")["pictures"][0]["tokens"]);
    let ids = Tensor::new(said.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    assert_relative(&logits(&network, &pixels, &ids), &cases.tensor("logits"), 1e-5);
    let (pixels, ids) = (cases.tensor("both.pixels"), cases.tensor("both.ids"));
    assert_relative(&logits(&network, &pixels, &ids), &cases.tensor("both.logits"), 1e-5);
    let stop = Stop::default();
    stop.request();
    let error = network.tokens(&cases.tensor("pixels"), &stop).unwrap_err();
    assert_eq!(error.kind(), animatelcm::ErrorKind::Cancelled);
}

#[test]
fn captions_are_those_of_transformers_by_greedy_search() {
    let (cases, golden) = (golden::load("blip/cases"), golden::json("blip/captions"));
    let (network, stop) = (network(), Stop::default());
    let folder = golden::path("blip");
    let captioner = Captioner::open(&folder, DType::F32, &Device::Cpu, &stop).unwrap();
    let pictures = golden["pictures"].as_array().unwrap();
    assert_eq!(pictures.len(), 3);
    for (number, want) in pictures.iter().enumerate() {
        let image = picture(&cases, number);
        let got = network.tokens(&network.pixels(&image, &stop).unwrap(), &stop).unwrap();
        assert_eq!(got, tokens(&want["tokens"]));
        assert_eq!(captioner.caption(&image, &stop).unwrap(), want["text"].as_str().unwrap());
    }
    // One has no end within the longest caption, the others have.
    assert_eq!(tokens(&pictures[0]["tokens"]).len(), 20);
    let words = WordPieces::read(&folder.join("vocab.txt")).unwrap();
    let spelled = golden["spelled"].as_array().unwrap();
    assert!(spelled.len() > 4);
    for want in spelled {
        let got = words.text(&tokens(&want["tokens"])).unwrap();
        assert_eq!(got, want["text"].as_str().unwrap());
    }
}

#[test]
fn every_part_of_the_network_counts() {
    let tensors = tiny::tensors(&["blip/model.safetensors"]);
    let cases = golden::load("blip/cases");
    let (pixels, ids) = (cases.tensor("both.pixels"), cases.tensor("both.ids"));
    let made = |tensors: HashMap<String, Tensor>| {
        let weights = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, pixels.device());
        logits(&Blip::new(&config(), &weights.into()).unwrap(), &pixels, &ids)
    };
    let all: HashMap<String, Tensor> = tensors.into_iter().collect();
    let want = made(all.clone());
    for name in all.keys() {
        let mut changed = all.clone();
        let tensor = all[name].to_dtype(DType::F32).unwrap();
        changed.insert(name.clone(), (tensor * 1.5).unwrap());
        let change = relative_l2(&made(changed), &want);
        // A bias of all keys moves every score of a query alike.
        let is_idle = BlipConfig::ignored(name).is_some() || name.ends_with("self.key.bias");
        assert!(if is_idle { change < 1e-5 } else { change > 1e-5 }, "{name}: {change}");
    }
}

#[test]
fn what_is_no_network_for_captions_is_named() {
    let stop = Stop::default();
    let error = |path: std::path::PathBuf| {
        Captioner::open(&path, DType::F32, &Device::Cpu, &stop).unwrap_err().to_string()
    };
    assert!(error(golden::path("depth_anything")).contains("type `depth_anything`, not `blip`"));
    let folder = tempfile::tempdir().unwrap();
    assert!(error(folder.path().to_path_buf()).contains("has no config.json"));
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden::path("blip").join(file), folder.path().join(file)).unwrap();
    }
    assert!(error(folder.path().to_path_buf()).contains("vocab.txt: no such file"));
    std::fs::write(folder.path().join("vocab.txt"), "").unwrap();
    assert!(error(folder.path().to_path_buf()).contains("vocab.txt"));
    std::fs::write(folder.path().join("vocab.txt"), "[PAD]\na\n").unwrap();
    let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let wrong = |from: &str, to: &str| {
        std::fs::write(folder.path().join("config.json"), text.replace(from, to)).unwrap();
        error(folder.path().to_path_buf())
    };
    assert!(wrong("\"bos_token_id\": 50", "\"bos_token_id\": 52").contains("bos_token_id"));
    assert!(wrong("\"gelu\"", "\"relu\"").contains("hidden_act"));
    assert!(wrong("\"hidden_size\": 20", "\"hidden_size\": 24").contains("text_decoder"));
}
