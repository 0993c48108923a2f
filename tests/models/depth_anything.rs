//! Depth Anything against transformers, with random weights under the names of the published files.

use animatelcm::Stop;
use animatelcm::media::{Rgb, RgbImage};
use animatelcm::models::depth_anything::{DepthAnything, DepthAnythingConfig};
use animatelcm::nn::{Interpolation, interpolate};
use animatelcm::preprocess::EstimateDepth;
use candle_core::{DType, Tensor};

use crate::support::close::{assert_close, assert_relative, relative_l2};
use crate::support::{golden, tiny};

fn config() -> DepthAnythingConfig {
    tiny::config("depth_anything/config.json")
}

fn network(dtype: DType) -> DepthAnything {
    let weights = tiny::vb(&["depth_anything/model.safetensors"], dtype);
    DepthAnything::new(&config(), &weights).unwrap()
}

#[test]
fn depths_are_those_of_transformers_at_every_size() {
    let cases = golden::load("depth_anything/cases");
    let network = network(DType::F32);
    for i in 0..2 {
        let pixels = cases.tensor(&format!("pixels.{i}"));
        let depth = network.forward(&pixels, &Stop::default()).unwrap();
        assert_relative(&depth, &cases.tensor(&format!("depth.{i}")), 1e-5);
    }
    let half = self::network(DType::BF16);
    let pixels = cases.tensor("pixels.1").to_dtype(DType::BF16).unwrap();
    let depth = half.forward(&pixels, &Stop::default()).unwrap().to_dtype(DType::F32).unwrap();
    let error = relative_l2(&depth, &cases.tensor("depth.1"));
    assert!(error > 0.0 && error < 0.03, "{error}");
    let stop = Stop::default();
    stop.request();
    let error = network.forward(&cases.tensor("pixels.0"), &stop).unwrap_err();
    assert_eq!(error.kind(), animatelcm::ErrorKind::Cancelled);
}

#[test]
fn a_picture_goes_there_and_back_as_by_the_published_processor() {
    let cases = golden::load("depth_anything/cases");
    let network = network(DType::F32).with_side(42);
    let picture = cases.tensor("picture");
    let (height, width, _) = picture.dims3().unwrap();
    let values = picture.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let image = RgbImage::from_raw(width as u32, height as u32, values).unwrap();
    let pixels = network.pixels(&image, &Stop::default()).unwrap();
    assert_close(&pixels, &cases.tensor("picture.pixels"), 1e-5);
    let depth = network.depth(&image, &Stop::default()).unwrap();
    assert_eq!((depth.width, depth.height), (51, 33));
    let depth = Tensor::from_vec(depth.values, (height, width), pixels.device()).unwrap();
    assert_relative(&depth, &cases.tensor("picture.depth"), 1e-5);
    let one = cases.tensor("depth.1").narrow(0, 0, 1).unwrap().unsqueeze(1).unwrap();
    let resized = interpolate(&one, (31, 57), Interpolation::Bicubic).unwrap();
    let resized = resized.squeeze(0).unwrap().squeeze(0).unwrap();
    assert_relative(&resized, &cases.tensor("resized"), 1e-5);
}

#[test]
fn sizes_are_those_of_the_published_processor() {
    let text = std::fs::read_to_string(golden::path("depth_anything/sizes.json")).unwrap();
    let sizes: Vec<[[usize; 2]; 2]> = serde_json::from_str(&text).unwrap();
    assert!(sizes.len() > 8);
    for [[height, width], [tall, wide]] in sizes {
        let size = config().size((width as u32, height as u32), 518);
        assert_eq!(size, (wide, tall), "{width}x{height}");
    }
    // Never nothing.
    assert_eq!(config().size((900, 1), 518), (518, 14));
}

#[test]
fn every_part_of_the_network_counts() {
    let tensors = tiny::tensors(&["depth_anything/model.safetensors"]);
    let cases = golden::load("depth_anything/cases");
    let pixels = cases.tensor("pixels.1");
    let depth = |tensors: std::collections::HashMap<String, Tensor>| {
        let weights = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, pixels.device());
        let network = DepthAnything::new(&config(), &weights.into()).unwrap();
        network.forward(&pixels, &Stop::default()).unwrap()
    };
    let all: std::collections::HashMap<String, Tensor> = tensors.into_iter().collect();
    let want = depth(all.clone());
    for name in all.keys() {
        let mut changed = all.clone();
        changed.insert(name.clone(), (&all[name] * 1.5).unwrap());
        let is_same = relative_l2(&depth(changed), &want) == 0.0;
        let is_unused = DepthAnythingConfig::ignored(name).is_some();
        // A bias of all keys moves every score of a query alike.
        let is_shift = name.ends_with("attention.key.bias");
        assert!(is_same == is_unused || is_shift, "{name}");
    }
    let image = RgbImage::from_pixel(9, 9, Rgb([3, 90, 200]));
    assert_eq!(
        network(DType::F32).pixels(&image, &Stop::default()).unwrap().dims(),
        [1, 3, 518, 518]
    );
}
