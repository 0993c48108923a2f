//! T2I-Adapters against diffusers, in every layout, and how they behave with others and with bad input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use animatelcm::Error;
use animatelcm::Stop;
use animatelcm::adapters::t2i_adapter::T2iControl;
use animatelcm::adapters::{Conditioner, ControlSettings, Pass, Progress, Strength};
use animatelcm::library::{Base, ControlFile, Files, Models};
use animatelcm::media::RgbImage;
use animatelcm::media::tensor::{from_rgb, to_grey};
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::t2i_adapter::{T2iAdapter, T2iAdapterConfig};
use animatelcm::models::unet::{Injection, UNet, UNetConfig, UNetInput};
use animatelcm::request::Control;
use animatelcm::weights::{Component, Source, random};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_close, assert_relative, relative_l2};
use crate::support::control::{
    all_weights, bits, hint_folder, images, published, request, run_from, save, tensors,
};
use crate::support::golden;
use crate::support::run::{Tensors, With};
use crate::support::tiny::{self, case, fold};

/// Modules and single passes in f32, relative L2.
const F32: f64 = 1e-5;
/// Whole runs in f32, absolute.
const RUN: f64 = 1e-3;

const UNITS: &str = "t2i_adapter/units";

fn weights(size: &str) -> String {
    format!("t2i_adapter/{size}/diffusion_pytorch_model.safetensors")
}

fn net(size: &str) -> T2iAdapter {
    let config: T2iAdapterConfig = tiny::config(&format!("t2i_adapter/{size}/config.json"));
    T2iAdapter::new(&config, &tiny::vb(&[&weights(size)], DType::F32)).unwrap()
}

/// Grey images `(frames, height, width)` of a golden, as a coloured file has them.
fn grey_images(name: &str) -> Vec<RgbImage> {
    let grey = golden::load(UNITS).tensor(name);
    let grey = if grey.rank() == 2 { grey.unsqueeze(0).unwrap() } else { grey };
    let (_, height, width) = grey.dims3().unwrap();
    let bytes = grey.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let image = |bytes: &[u8]| {
        let bytes = bytes.iter().flat_map(|value| [*value; 3]).collect();
        RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
    };
    bytes.chunks(height * width).map(image).collect()
}

fn odd_image() -> RgbImage {
    let image = golden::load(UNITS).tensor("odd_u8");
    let (height, width, _) = image.dims3().unwrap();
    let bytes = image.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

fn assert_features(got: &[Tensor], name: &str) {
    let want = golden::load(UNITS);
    assert_eq!(got.len(), 4, "{name}");
    for (i, got) in got.iter().enumerate() {
        assert_relative(got, &want.tensor(&format!("{name}.{i}")), F32);
    }
}

fn coloured() -> Tensor {
    from_rgb(&images(UNITS, "colour_u8"), &Device::Cpu).unwrap()
}

#[test]
fn features_equal_diffusers() {
    let (full, light) = (net("full"), net("light"));
    assert_features(&full.forward(&coloured(), &Stop::default()).unwrap(), "full");
    let grey = to_grey(&grey_images("grey_u8"), &Device::Cpu).unwrap();
    assert_features(&light.forward(&grey, &Stop::default()).unwrap(), "light");
    // Sizes whose halves are odd.
    let odd = [odd_image()];
    assert_features(
        &full.forward(&from_rgb(&odd, &Device::Cpu).unwrap(), &Stop::default()).unwrap(),
        "full_odd",
    );
    assert_features(
        &light.forward(&to_grey(&odd, &Device::Cpu).unwrap(), &Stop::default()).unwrap(),
        "light_odd",
    );
}

#[test]
fn images_become_grey_exactly_as_in_pil() {
    let got = to_grey(&[odd_image()], &Device::Cpu).unwrap();
    let want = to_grey(&grey_images("odd_grey_u8"), &Device::Cpu).unwrap();
    assert_eq!(relative_l2(&got, &want), 0.0);
    let values = (want * 255.0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let stored = golden::load(UNITS).values("odd_grey_u8");
    assert!(values.iter().zip(stored).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-3));
}

#[test]
fn features_go_where_diffusers_adds_them() {
    let config: UNetConfig = tiny::config("tiny/model/unet/config.json");
    let unet = UNet::new(&config, &tiny::vb(&[tiny::UNET], DType::F32)).unwrap();
    let unit = case("unet");
    let context = unit["ctx"].narrow(0, 0, 1).unwrap();
    let pass = |injection: &Injection| {
        let input = UNetInput {
            timestep: 759.0,
            frames: 6,
            context: &context,
            motion_norm: MotionNorm::PerFrame,
            injection,
            stop: &Stop::default(),
        };
        unet.forward(&fold(&unit["x"]), &input)
    };
    let features = net("full").forward(&coloured(), &Stop::default()).unwrap();
    let mut injection = Injection::default();
    injection.add_stage_features(features.clone()).unwrap();
    assert_relative(&pass(&injection).unwrap(), &golden::load(UNITS).tensor("unet.y"), F32);

    // For another network.
    let mut fewer = Injection::default();
    fewer.add_stage_features(features[..3].to_vec()).unwrap();
    let error = pass(&fewer).unwrap_err();
    assert!(error.to_string().contains("3 features for 4 stages"), "{error}");
    assert!(injection.add_stage_features(features[..3].to_vec()).is_err());
}

/// What a control adds in a pass over `clips` clips, told by the UNet's output.
fn injected(control: &mut T2iControl, frames: &[usize], clips: usize, at: Progress) -> Tensor {
    let unit = case("unet");
    let x = Tensor::cat(&vec![fold(&unit["x"]); clips], 0).unwrap();
    let context = unit["ctx"].narrow(0, 0, 1).unwrap().repeat((clips, 1, 1)).unwrap();
    let motion_norm = MotionNorm::PerFrame;
    let pass = Pass {
        x: &x,
        timestep: 759.0,
        progress: at,
        clips,
        frames,
        context: &context,
        negatives: clips - 1,
        motion_norm,
        stop: &Stop::default(),
    };
    let mut injection = Injection::default();
    control.inject(&pass, &mut injection).unwrap();
    let input = UNetInput {
        timestep: 759.0,
        frames: 6,
        context: &context,
        motion_norm,
        injection: &injection,
        stop: &Stop::default(),
    };
    tiny::unet(DType::F32).forward(&x, &input).unwrap()
}

const FIRST: Progress = Progress { step: 0, steps: 1 };

#[test]
fn strengths_and_hints_belong_to_frames() {
    let net = net("full");
    let control = |hint: &Tensor, scale: &str| {
        let strength = scale.parse::<Strength>().unwrap();
        T2iControl::new(
            &net,
            hint,
            ControlSettings { strength, ..Default::default() },
            &Stop::default(),
        )
        .unwrap()
    };
    let order = [3usize, 4, 5, 0, 1, 2];
    let index = Tensor::new(&[3u32, 4, 5, 0, 1, 2], &Device::Cpu).unwrap();
    let reordered = coloured().index_select(&index, 0).unwrap();
    let scales = [1.0, 0.8, 0.6, 0.4, 0.2, 0.2];
    let text = order.iter().enumerate().map(|(i, f)| format!("{i}:{}", scales[*f]));
    let text: Vec<String> = text.collect();
    let all = [0, 1, 2, 3, 4, 5];
    let got = injected(&mut control(&coloured(), "0:1.0,4:0.2"), &order, 1, FIRST);
    let want = injected(&mut control(&reordered, &text.join(",")), &all, 1, FIRST);
    assert_close(&got, &want, 1e-5);
    let other = injected(&mut control(&coloured(), "0:1.0,4:0.2"), &all, 1, FIRST);
    assert!(relative_l2(&got, &other) > 1e-3);

    // Both halves of guidance have them, as in diffusers.
    let both = injected(&mut control(&coloured(), "0.7"), &all, 2, FIRST);
    let alone = injected(&mut control(&coloured(), "0.7"), &all, 1, FIRST);
    for half in [0, 6] {
        assert_close(&both.narrow(0, half, 6).unwrap(), &alone, 1e-4);
    }
    // One image serves all frames.
    let one = coloured().narrow(0, 2, 1).unwrap();
    let six = one.repeat((6, 1, 1, 1)).unwrap();
    let got = injected(&mut control(&one, "0.7"), &all, 2, FIRST);
    assert_close(&got, &injected(&mut control(&six, "0.7"), &all, 2, FIRST), 1e-4);
}

#[test]
fn the_network_asks_for_exactly_the_published_names_and_shapes() {
    for (config, size, count) in
        [(T2iAdapterConfig::default(), "full", 38), (T2iAdapterConfig::light(), "light", 80)]
    {
        let ours = random::inventory(|vb| T2iAdapter::new(&config, &vb)).unwrap();
        assert_eq!(ours.len(), count);
        assert_eq!(ours, published(&format!("t2i_adapter_{size}")).into_iter().collect());
    }
}

/// An adapter's weights under TencentARC's names.
fn original_weights(size: &str) -> BTreeMap<String, Tensor> {
    let names: BTreeMap<String, String> = published(&format!("t2i_adapter_{size}"))
        .into_iter()
        .zip(published(&format!("t2i_adapter_{size}_original")))
        .map(|((ours, _), (theirs, _))| (ours, theirs))
        .collect();
    let weights = candle_core::safetensors::load(golden::path(&weights(size)), &Device::Cpu);
    weights.unwrap().into_iter().map(|(name, tensor)| (names[&name].clone(), tensor)).collect()
}

#[test]
fn every_layout_gives_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter.safetensors");
    for (size, count) in [("full", 36), ("light", 64)] {
        let source = Source::from(golden::path(&format!("t2i_adapter/{size}")));
        let want = all_weights(Component::T2iAdapter, &source);
        assert_eq!(want.len(), count, "{size}");
        for prefix in ["", "module."] {
            let weights = original_weights(size).into_iter();
            let weights = weights.map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
            save(&weights.collect(), &file);
            let got = all_weights(Component::T2iAdapter, &Source::from(file.clone()));
            assert!(got == want, "{size} below `{prefix}`");
        }
        if size == "light" {
            let pickled = Source::from(golden::path("t2i_adapter/light.pth"));
            assert!(all_weights(Component::T2iAdapter, &pickled) == want);
        }
    }
}

// Whole runs.

/// The tiny model with both adapters, as folders and as original files without a configuration.
fn files(folder: &Path) -> Files {
    let original = |size: &str| {
        let path = folder.join(format!("{size}.safetensors"));
        if !path.exists() {
            save(&original_weights(size), &path);
        }
        path
    };
    let file = |name: &str, path: PathBuf| ControlFile { name: name.into(), source: path.into() };
    Files {
        controls: vec![
            file("full", golden::path("t2i_adapter/full")),
            file("light", golden::path("t2i_adapter/light")),
            file("full-original", original("full")),
            file("light-original", original("light")),
        ],
        ..Files::new(Base::Folder(golden::path("tiny/model")))
    }
}

fn control(name: &str, hint: &str, model: &str, more: &str) -> Control {
    format!("{name}={hint},model={model}{more}").parse().unwrap()
}

#[test]
fn runs_equal_diffusers_with_files_of_both_layouts() {
    let want = golden::load("t2i_adapter/runs");
    let folder = tempfile::tempdir().unwrap();
    let colour = hint_folder(folder.path(), "colour", &images(UNITS, "colour_u8"));
    let grey = hint_folder(folder.path(), "grey", &grey_images("grey_u8"));
    let files = files(folder.path());
    let run = |controls: Vec<Control>| {
        let request = request().with(|r| {
            r.controls = controls;
        });
        run_from(&files, &request, tensors()).unwrap()["latents"].clone()
    };
    for layout in ["", "-original"] {
        let (full, light) = (format!("full{layout}"), format!("light{layout}"));
        let one = control("a", &colour, &full, ",scale=0.8,end=0.75");
        assert_close(&run(vec![one]), &want.tensor("one"), RUN);
        let two =
            [control("a", &colour, &full, ",scale=0.7"), control("b", &grey, &light, ",scale=0.5")];
        assert_close(&run(two.to_vec()), &want.tensor("two"), RUN);
        assert_close(&run(two.into_iter().rev().collect()), &want.tensor("two"), RUN);
    }
    assert!(relative_l2(&want.tensor("one"), &case("lcm_cfg")["latents.final"]) > 0.01);
}

#[test]
fn strength_zero_is_bit_identical_to_absence() {
    let folder = tempfile::tempdir().unwrap();
    let hint = hint_folder(folder.path(), "colour", &images(UNITS, "colour_u8"));
    let files = files(folder.path());
    let run = |controls: Vec<Control>| {
        let request = request().with(|r| {
            r.sampling.steps = 2;
            r.controls = controls;
        });
        bits(&run_from(&files, &request, tensors()).unwrap())
    };
    let plain = run(vec![]);
    for model in ["full", "light"] {
        for more in [",scale=0", ",scale=0:0,3:0", ",start=0.9"] {
            let got = run(vec![control("a", &hint, model, more)]);
            assert!(got == plain, "`{more}` of {model} changes the clip");
        }
        let got = run(vec![control("a", &hint, model, ",scale=0.01")]);
        assert!(got != plain, "a small strength of {model} changes nothing");
    }
}

#[test]
fn what_has_no_meaning_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let hint = hint_folder(folder.path(), "colour", &images(UNITS, "colour_u8"));
    let five = hint_folder(folder.path(), "five", &images(UNITS, "colour_u8")[..5]);
    let files = files(folder.path());
    for (hint, more, part) in [
        (&hint, ",guess", "a T2I-Adapter has no guess mode"),
        (&hint, ",frames=0", "`frames` is for SparseCtrl, full is a T2I-Adapter"),
        (&five, "", "has 5 frames, the clip 6"),
    ] {
        let controls = vec![control("a", hint, "full", more)];
        let request = request().with(|r| {
            r.controls = controls;
        });
        let error = run_from(&files, &request, Tensors::default()).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

// Files that are something else.

fn open(weights: &BTreeMap<String, Tensor>) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter.safetensors");
    save(weights, &file);
    let controls = vec![ControlFile { name: "mine".into(), source: file.into() }];
    let files = Files { controls, ..Files::new(Base::Folder(golden::path("tiny/model"))) };
    Models::open(&files).unwrap_err()
}

#[test]
fn other_adapters_are_called_by_their_name() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap();
    let with = |more: &[(&str, &[usize])]| {
        let mut all = original_weights("full");
        all.extend(more.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))));
        all
    };
    for inputs in [256, 768] {
        let error = open(&with(&[("conv_in.weight", &[320, inputs, 3, 3])]));
        assert!(error.to_string().contains("is a T2I-Adapter for Stable Diffusion XL"), "{error}");
        assert!(error.hint().unwrap().contains("1.5"));
    }
    // That of Stable Diffusion 1.5, whose latents have eight pixels a side and not four.
    let error = open(&with(&[("conv_in.weight", &[320, 192, 3, 3])]));
    assert!(error.to_string().contains("192 channels are not those of 4x4"), "{error}");
    let wide = [("conv_in.weight", &[320, 48, 3, 3][..]), ("body.0.block1.weight", &[320, 1])];
    let error = open(&with(&wide));
    assert!(error.to_string().contains("stages of the widths [320, 16, 16, 16]"), "{error}");
    let error = open(&BTreeMap::from([
        ("style_embedding".to_owned(), zeros(&[1, 8, 1024])),
        ("proj".to_owned(), zeros(&[1024, 768])),
    ]));
    assert!(error.to_string().contains("adds words (for style"), "{error}");
    // A convolution where means are expected.
    let error = open(&with(&[("body.2.down_opt.op.weight", &[8, 8, 3, 3])]));
    assert!(error.to_string().contains("body.2.down_opt.op.weight"), "{error}");
    // And as a model.
    let files = Files::new(Base::File(golden::path(&weights("full"))));
    let error = Models::open(&files).unwrap_err();
    assert!(error.to_string().contains("is a T2I-Adapter"), "{error}");
    assert_eq!(error.hint().as_deref(), Some("give it with --control"));
}

/// The program with the tiny model and its adapter.
#[cfg(feature = "cli")]
mod program {
    use super::{UNITS, golden, hint_folder, images};
    use crate::support::program::Folder;

    #[test]
    fn a_controlled_clip_is_made_again_from_its_own_metadata() {
        let folder = Folder::new();
        let all = images(UNITS, "colour_u8");
        hint_folder(folder.path("x").parent().unwrap(), "hint", &all);
        let control = format!("c=hint,model={}", golden::path("t2i_adapter/full").display());
        let model = golden::path("tiny/model");
        let generate = |output: &str, more: &[&str]| {
            let mut args = vec!["generate", "x", "--model", model.to_str().unwrap(), "-s", "7"];
            args.extend(["--frames", "6", "-W", "64", "-H", "32", "--steps", "1", "-o", output]);
            args.extend(more);
            folder.run(&args).ok();
        };
        generate("a.png", &["--control", &control]);
        generate("plain.png", &[]);
        assert_ne!(folder.read("a.png"), folder.read("plain.png"));
        folder.run(&["replay", "a.png"]).ok();
        assert_eq!(folder.read("a-replay.png"), folder.read("a.png"));
    }

    #[test]
    fn inspect_names_the_adapter_and_what_it_touches() {
        let folder = Folder::new();
        for size in ["full", "light"] {
            let path = golden::path(&super::weights(size));
            let outcome = folder.run(&["inspect", path.to_str().unwrap()]).ok();
            let text = outcome.stdout();
            assert!(text.contains(&format!("a T2I-Adapter ({size})")), "{text}");
            assert!(text.contains("adds to 4 stages down, [8, 16, 16, 16] wide"), "{text}");
        }
    }
}
