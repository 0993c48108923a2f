//! IP-Adapters and CLIP's image encoder against diffusers and transformers: features, masks, names, layouts.

use std::collections::BTreeMap;

use animatelcm::Stop;
use animatelcm::adapters::Mask;
use animatelcm::media::resize::{Fit, resize};
use animatelcm::models::clip::{VisionConfig, VisionEncoder};
use animatelcm::models::image_projection::{IpAdapter, IpAdapterConfig, Projection};
use animatelcm::models::unet::UNetConfig;
use animatelcm::weights::{Checkpoint, Component, PatchStack, Source, random};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_close, assert_relative};
use crate::support::golden;
use crate::support::ip_adapter::{
    ENCODER, F32, encoder, floats, image, net, refs, save, weights_of,
};
use crate::support::tiny::{self, case};

#[test]
fn the_image_encoder_equals_transformers() {
    let (want, encoder) = (case("image_encoder"), encoder());
    let pixels = encoder.pixels(&refs()[0]).unwrap();
    assert_eq!(floats(&pixels), floats(&want["pixels"]));
    assert_relative(&encoder.embed(&pixels, &Stop::default()).unwrap(), &want["image_embeds"], F32);
    assert_relative(
        &encoder.penultimate(&pixels, &Stop::default()).unwrap(),
        &want["penultimate"],
        F32,
    );
    let grey = encoder.penultimate(&pixels.zeros_like().unwrap(), &Stop::default()).unwrap();
    assert_relative(&grey, &want["uncond_penultimate"], F32);
}

#[test]
fn images_of_any_shape_become_the_pixels_of_transformers_to_the_bit() {
    let want = golden::load("ip_adapter/pixels");
    for side in [32, 29] {
        let config = VisionConfig {
            image_size: side,
            ..tiny::config("tiny/extras/image_encoder/config.json")
        };
        // The weights do not matter here; 29 pixels have fewer patches.
        let (encoder, _) = random::build(Component::ImageEncoder, DType::F32, &Device::Cpu, |vb| {
            VisionEncoder::new(&config, &vb)
        })
        .unwrap();
        for i in 0..8 {
            let pixels = encoder.pixels(&image("ip_adapter/pixels", &format!("{i}.u8"))).unwrap();
            let want = want.tensor(&format!("{i}.{side}"));
            assert_eq!(pixels.dims(), want.dims());
            let (got, want) = (floats(&pixels), floats(&want));
            let differ = got.iter().zip(&want).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(differ, 0, "image {i} for {side} pixels");
        }
    }
}

#[test]
fn tokens_of_every_kind_equal_diffusers() {
    for kind in ["base", "plus", "full"] {
        let want = case(&format!("ip_{kind}"));
        // Nothing first, then the image.
        let features = want["embeds"].squeeze(1).unwrap();
        let got = net(kind).tokens(&features).unwrap();
        assert_relative(&got, &want["tokens"].squeeze(1).unwrap(), F32);
    }
}

#[test]
fn masks_equal_diffusers() {
    let want = golden::load("ip_adapter/masks");
    for i in 0..3 {
        let image = image("ip_adapter/masks", &format!("{i}.u8"));
        let mask = Mask::new(&resize(&image, 64, 32, Fit::Stretch, &Stop::default()).unwrap());
        assert_eq!(mask.size(), (32, 64));
        assert_eq!(mask.at(32, 64), floats(&want.tensor(&format!("{i}.mask"))), "mask {i}");
        let at = |name: &str| {
            let want = want.tensor(&format!("{i}.{name}"));
            let (height, width) = want.dims2().unwrap();
            let got = Tensor::from_vec(mask.at(height, width), (height, width), &Device::Cpu);
            // Positions up to 64 in f32, as torch computes them, are exact to some millionths.
            assert_close(&got.unwrap(), &want, 1e-5);
        };
        for name in ["level0", "level1", "level2", "level3", "odd"] {
            at(name);
        }
    }
}

#[test]
fn cross_attentions_are_numbered_as_in_the_published_files() {
    let attentions = UNetConfig::sd15().cross_attentions().unwrap();
    let found: Vec<_> = attentions.iter().map(|at| (at.width, at.level)).collect();
    let (a, b, c) = ((320, 0), (640, 1), (1280, 2));
    assert_eq!(found, [a, a, b, b, c, c, c, c, c, b, b, b, a, a, a, (1280, 3)]);
}

/// Names and shapes in `tests/goldens/names/<list>.txt`.
fn published(list: &str) -> BTreeMap<String, Vec<usize>> {
    let text = std::fs::read_to_string(golden::path(&format!("names/{list}.txt"))).unwrap();
    let line = |line: &str| {
        let (name, shape) = line.split_once('\t').unwrap();
        (name.to_owned(), serde_json::from_str(shape).unwrap())
    };
    text.lines().map(line).collect()
}

#[test]
fn the_image_encoder_asks_for_exactly_the_published_names_and_shapes() {
    let ours = random::inventory(|vb| VisionEncoder::new(&VisionConfig::vit_h(), &vb)).unwrap();
    assert_eq!(ours.len(), 520);
    assert_eq!(ours, published("image_encoder"));
}

#[test]
fn adapters_ask_for_exactly_the_published_names_and_shapes() {
    let plus = Projection::Resampler { tokens: 16, width: 768, layers: 4, heads: 12, inner: 3072 };
    for (list, projection, features) in [
        ("ip_adapter", Projection::Linear { tokens: 4 }, 1024),
        ("ip_adapter_plus", plus, 1280),
        ("ip_adapter_full", Projection::Mlp { inner: 1280 }, 1280),
    ] {
        let names = published(list);
        let config = IpAdapterConfig::from_shapes(|name| names.get(name).cloned()).unwrap();
        assert_eq!(
            (config.projection, config.features, config.context),
            (projection, features, 768)
        );
        let ours = random::inventory(|vb| Ok(IpAdapter::new(&config, &vb)?)).unwrap();
        assert_eq!(ours, names, "{list}");
    }
}

fn all_weights(component: Component, source: &Source) -> BTreeMap<String, Vec<u32>> {
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_component(component, source).unwrap();
    let names: Vec<String> = checkpoint.names(component).map(str::to_owned).collect();
    let read = |vb: animatelcm::weights::VarBuilder<'static>| {
        let values = names.iter().map(|name| {
            let tensor = vb.get(checkpoint.shape_of(component, name).unwrap(), name)?;
            let bits = floats(&tensor).into_iter().map(f32::to_bits).collect();
            Ok((name.clone(), bits))
        });
        values.collect()
    };
    let none = PatchStack::new();
    checkpoint.build(component, DType::F32, &Device::Cpu, &none, read).unwrap().0
}

#[test]
fn nested_dicts_give_the_same_weights() {
    for (kind, count) in [("base", 36), ("plus", 83)] {
        let want = all_weights(Component::IpAdapter, &golden::path(&weights_of(kind)).into());
        let bin = golden::path(&format!("ip_adapter/{kind}.bin"));
        assert_eq!(all_weights(Component::IpAdapter, &bin.into()), want);
        assert_eq!(want.len(), count);
    }
}

#[test]
fn the_image_half_of_a_whole_clip_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.safetensors");
    let files = [ENCODER, "tiny/model/text_encoder/model.safetensors"];
    let mut all: BTreeMap<String, Tensor> = tiny::tensors(&files).into_iter().collect();
    let extra = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    all.insert("logit_scale".into(), extra(&[]));
    all.insert("text_projection.weight".into(), extra(&[10, 12]));
    save(&all, &path);
    let source = Source::from(path);
    for (component, file) in [(Component::ImageEncoder, files[0]), (Component::Text, files[1])] {
        let want = all_weights(component, &golden::path(file).into());
        assert_eq!(all_weights(component, &source), want);
    }
}
