//! CLIP score and FVD: from files to numbers, against transformers, torch and scipy.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use animatelcm::metrics::frechet::{Gaussian, distance};
use animatelcm::metrics::{ClipScore, VideoFeatures};
use animatelcm::{ErrorKind, Stop};
use candle_core::{Device, Tensor};

use crate::support::close::assert_all_close;
use crate::support::{golden, metrics};

fn features(path: &Path) -> animatelcm::Result<VideoFeatures> {
    VideoFeatures::open(path, &Device::Cpu, &Stop::default())
}

#[test]
fn the_frechet_distance_is_that_of_scipy() {
    let case = golden::load("i3d/frechet");
    let gaussian = |name: &str| {
        let rows: Vec<Vec<f64>> = case.tensor(name).to_vec2().unwrap();
        Gaussian::of(&rows).unwrap()
    };
    for n in 0..3 {
        let (a, b) = (gaussian(&format!("{n}.a")), gaussian(&format!("{n}.b")));
        let wanted = case.values(&format!("{n}.distance"))[0];
        for got in [distance(&a, &b).unwrap(), distance(&b, &a).unwrap()] {
            assert!((got / wanted - 1.0).abs() < 1e-6, "{n}: {got}, {wanted}");
        }
        let scale = wanted * 1e-6;
        assert!(distance(&a, &a).unwrap().abs() < scale && distance(&b, &b).unwrap().abs() < scale);
    }
}

#[test]
fn features_of_videos_are_those_of_torch_from_either_kind_of_file() {
    let case = golden::load("i3d/cases");
    for file in ["i3d/i3d.safetensors", "i3d/i3d.pt"] {
        let network = features(&golden::path(file)).unwrap();
        for n in 0..3 {
            let frames = case.images(&format!("{n}.u8"));
            let got = network.of(&frames, &Stop::default()).unwrap();
            assert_all_close(&got, &case.values(&format!("{n}.logits")), 2e-4);
        }
    }
}

#[test]
fn every_tensor_of_an_i3d_is_wanted_and_there() {
    let folder = tempfile::tempdir().unwrap();
    let sound = candle_core::safetensors::load(golden::path("i3d/i3d.safetensors"), &Device::Cpu);
    let sound = sound.unwrap();
    let refused = |change: &dyn Fn(&mut HashMap<String, Tensor>), words: &str| {
        let mut tensors = sound.clone();
        change(&mut tensors);
        let path = folder.path().join("i3d.safetensors");
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let error = features(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    let one = |value: f32| Tensor::new(&[value], &Device::Cpu).unwrap();
    refused(&|t| drop(t.remove("Mixed_4d.b2b.bn.running_var")), "Mixed_4d.b2b.bn.running_var");
    refused(&|t| drop(t.remove("Mixed_3b.b0.conv3d.weight")), "Mixed_3b.b0.conv3d.weight");
    refused(&|t| drop(t.insert("Mixed_5c.b0.conv3d.bias".into(), one(0.0))), "1 not wanted");
    refused(&|t| drop(t.insert("logits.conv3d.bias".into(), one(0.0))), "of another shape");
    let infinite = |t: &mut HashMap<String, Tensor>| {
        let bias = Tensor::full(f32::INFINITY, 13, &Device::Cpu).unwrap();
        t.insert("logits.conv3d.bias".into(), bias);
    };
    refused(&infinite, "inf");
    assert!(features(&folder.path().join("none.pt")).is_err());
    // Something else altogether.
    let error = features(&golden::path("tiny/model/vae/diffusion_pytorch_model.safetensors"));
    assert!(error.unwrap_err().to_string().contains("is missing"));
}

#[test]
fn the_clip_score_is_a_hundred_times_transformers_cosine() {
    let folder = tempfile::tempdir().unwrap();
    metrics::clip_folder(folder.path());
    let clip = ClipScore::open(folder.path(), &Device::Cpu, &Stop::default()).unwrap();
    let case = golden::load("clip_score/cases");
    let frames = case.images("frames");
    let cosines: Vec<Vec<f32>> = case.tensor("cosines").to_vec2().unwrap();
    let prompts = golden::json("clip_score/clip_score");
    for (n, prompt) in prompts["prompts"].as_array().unwrap().iter().enumerate() {
        let prompt = prompt.as_str().unwrap();
        let wanted: Vec<f64> = cosines.iter().map(|row| 100.0 * f64::from(row[n])).collect();
        let got = clip.scores(&frames, prompt, &Stop::default()).unwrap();
        assert_all_close(&got, &wanted, 1e-3);
        let mean = wanted.iter().sum::<f64>() / wanted.len() as f64;
        let got = clip.score(&frames, prompt, &Stop::default()).unwrap();
        assert!((got - mean).abs() < 1e-3, "{got}, {mean}");
        // More frames than are encoded at a time.
        let many: Vec<_> = (0..4).flat_map(|_| frames.clone()).collect();
        let got = clip.score(&many, prompt, &Stop::default()).unwrap();
        assert!((got - mean).abs() < 1e-3, "{got}, {mean}");
    }
    assert!(clip.score(&[], "x", &Stop::default()).is_err());
}

#[test]
fn a_clip_that_is_not_whole_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |words: &str| {
        let opened = ClipScore::open(folder.path(), &Device::Cpu, &Stop::default());
        let error = opened.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused("config.json");
    metrics::clip_folder(folder.path());
    let weights = folder.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    let projection = tensors.remove("text_projection.weight").unwrap();
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    refused("text_projection.weight");
    tensors.insert("text_projection.weight".into(), projection.clone());
    tensors.insert("text_projection.bias".into(), projection);
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    refused("1 not wanted");
    // The vocabulary of another CLIP.
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    refused("49408");
    fs::write(folder.path().join("config.json"), "{\"projection_dim\": -1}").unwrap();
    refused("config.json");
}
