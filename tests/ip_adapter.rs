//! IP-Adapters and CLIP's image encoder against diffusers and transformers, and how they behave together and with bad
//! input.

use std::collections::BTreeMap;
use std::path::Path;

use animatelcm::adapters::ip_adapter::{
    ImageFeatures, ImagePrompt, ImagePromptSettings, ImageScope, UNetInfo,
};
use animatelcm::adapters::{Conditioner, Mask, Pass, Progress, Strength};
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, Files, IpAdapterFile, Models};
use animatelcm::media::RgbImage;
use animatelcm::media::resize::{Fit, resize};
use animatelcm::models::clip::{VisionConfig, VisionEncoder};
use animatelcm::models::image_projection::{IpAdapter, IpAdapterConfig, Projection};
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::unet::{Injection, UNet, UNetConfig, UNetInput};
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::IpAdapter as Asked;
use animatelcm::request::Request;
use animatelcm::weights::{Checkpoint, Component, PatchStack, Source, random};
use animatelcm::{Error, Result, Stop};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_close, assert_relative, relative_l2};
use crate::support::golden;
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny::{self, case, fold};

/// Modules and single passes in f32, relative L2.
const F32: f64 = 1e-5;
/// Whole runs in f32, absolute.
const RUN: f64 = 1e-3;

const ENCODER: &str = "tiny/extras/image_encoder/model.safetensors";

fn weights_of(kind: &str) -> String {
    let more = if kind == "base" { String::new() } else { format!("-{kind}") };
    format!("tiny/extras/ip-adapter{more}.safetensors")
}

fn encoder() -> VisionEncoder {
    let config: VisionConfig = tiny::config("tiny/extras/image_encoder/config.json");
    VisionEncoder::new(&config, &tiny::vb(&[ENCODER], DType::F32)).unwrap()
}

fn net(kind: &str) -> IpAdapter {
    let tensors = tiny::tensors(&[&weights_of(kind)]);
    let shape = |name: &str| tensors.get(name).map(|tensor| tensor.dims().to_vec());
    let config = IpAdapterConfig::from_shapes(shape).unwrap();
    IpAdapter::new(&config, &tiny::vb(&[&weights_of(kind)], DType::F32)).unwrap()
}

/// An image `(height, width, 3)`.
fn image(file: &str, name: &str) -> RgbImage {
    let tensor = golden::load(file).tensor(name).to_dtype(DType::U8).unwrap();
    let (height, width, _) = tensor.dims3().unwrap();
    let bytes = tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

/// The two images of the goldens.
fn refs() -> [RgbImage; 2] {
    [image("tiny/cases/image_encoder", "ref_u8"), image("tiny/cases/ip_masked", "ref2_u8")]
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

// The image encoder.

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

/// candle-transformers knows only OpenAI's activation, which IP-Adapter's encoder does not have.
#[test]
fn a_second_opinion_on_openais_activation() {
    use candle_core::Module;
    use candle_transformers::models::clip::text_model::Activation;
    use candle_transformers::models::clip::vision_model as other;
    let ours = VisionConfig {
        hidden_act: "quick_gelu".into(),
        ..tiny::config("tiny/extras/image_encoder/config.json")
    };
    let vb = tiny::vb(&[ENCODER], DType::F32);
    let theirs = other::ClipVisionConfig {
        embed_dim: ours.hidden_size,
        activation: Activation::QuickGelu,
        intermediate_size: ours.intermediate_size,
        num_hidden_layers: ours.num_hidden_layers,
        num_attention_heads: ours.num_attention_heads,
        projection_dim: ours.projection_dim,
        num_channels: ours.num_channels,
        image_size: ours.image_size,
        patch_size: ours.patch_size,
    };
    let theirs = other::ClipVisionTransformer::new(vb.pp("vision_model").into(), &theirs).unwrap();
    let ours = VisionEncoder::new(&ours, &vb).unwrap();
    let pixels = ours.pixels(&refs()[1]).unwrap();
    let states = theirs.output_hidden_states(&pixels).unwrap();
    let want = &states[states.len() - 3];
    assert_relative(&ours.penultimate(&pixels, &Stop::default()).unwrap(), want, F32);
    let projection = vb.pp("visual_projection").get((10, 14), "weight").unwrap();
    let want = theirs.forward(&pixels).unwrap().matmul(&projection.t().unwrap()).unwrap();
    assert_relative(&ours.embed(&pixels, &Stop::default()).unwrap(), &want, F32);
    let exact = encoder().embed(&pixels, &Stop::default()).unwrap();
    assert!(relative_l2(&exact, &want) > 1e-4, "the activation does not matter");
}

// The adapters.

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

fn unet_config() -> UNetConfig {
    tiny::config("tiny/model/unet/config.json")
}

/// The tiny UNet without motion, in which frames know nothing of each other.
fn still() -> UNet {
    UNet::new(&unet_config(), &tiny::vb(&[tiny::UNET], DType::F32)).unwrap()
}

fn unet_info() -> UNetInfo {
    let attentions = unet_config().cross_attentions().unwrap();
    UNetInfo { attentions, dtype: DType::F32, height: 8, width: 16 }
}

fn prompt(kind: &str, images: &[RgbImage], settings: ImagePromptSettings) -> ImagePrompt {
    let net = net(kind);
    let features = ImageFeatures::encode(
        &encoder(),
        images,
        net.config().feature_kind(),
        true,
        &Stop::default(),
    )
    .unwrap();
    ImagePrompt::new(&net, &features, settings, &unet_info()).unwrap()
}

/// The still UNet's output for some frames of the golden's latents, `clips` times.
fn output(
    unet: &UNet,
    prompts: &mut [ImagePrompt],
    frames: &[usize],
    negatives: usize,
    clips: usize,
) -> Tensor {
    let unit = case("unet");
    let index: Vec<u32> = frames.iter().map(|frame| *frame as u32).collect();
    let x = fold(&unit["x"]).index_select(&Tensor::new(index, &Device::Cpu).unwrap(), 0).unwrap();
    let x = Tensor::cat(&vec![x; clips], 0).unwrap();
    let context = unit["ctx"].narrow(0, 0, 1).unwrap().repeat((clips, 1, 1)).unwrap();
    let pass = Pass {
        x: &x,
        timestep: 759.0,
        progress: Progress { step: 0, steps: 1 },
        clips,
        frames,
        context: &context,
        negatives,
        motion_norm: MotionNorm::PerFrame,
        stop: &Stop::default(),
    };
    let mut injection = Injection::default();
    for prompt in prompts {
        prompt.inject(&pass, &mut injection).unwrap();
    }
    let input = UNetInput {
        timestep: 759.0,
        frames: frames.len(),
        context: &context,
        motion_norm: MotionNorm::PerFrame,
        injection: &injection,
        stop: &Stop::default(),
    };
    unet.forward(&x, &input).unwrap()
}

const ALL: [usize; 6] = [0, 1, 2, 3, 4, 5];

fn at(scale: f64) -> ImagePromptSettings {
    ImagePromptSettings { strength: Strength::constant(scale), ..Default::default() }
}

#[test]
fn strengths_belong_to_frames() {
    let (unet, [first, _]) = (still(), refs());
    let strength: Strength = "0:1.0,4:0.2".parse().unwrap();
    let settings = ImagePromptSettings { strength, ..Default::default() };
    let curve = &mut [prompt("plus", std::slice::from_ref(&first), settings)];
    let got = output(&unet, curve, &ALL, 0, 1);
    for (frame, scale) in [1.0, 0.8, 0.6, 0.4, 0.2, 0.2].into_iter().enumerate() {
        let level = &mut [prompt("plus", std::slice::from_ref(&first), at(scale))];
        let want = output(&unet, level, &[frame], 0, 1);
        assert_relative(&got.narrow(0, frame, 1).unwrap(), &want, F32);
    }
    // The frames of a window take their strengths along; so do both halves of guidance.
    let window = output(&unet, curve, &[4, 5, 1], 0, 1);
    assert_relative(&window.narrow(0, 2, 1).unwrap(), &got.narrow(0, 1, 1).unwrap(), F32);
    let both = output(&unet, curve, &ALL, 1, 2);
    assert_relative(&both.narrow(0, 6, 6).unwrap(), &got, F32);
    assert!(relative_l2(&both.narrow(0, 0, 6).unwrap(), &got) > 0.01);
}

#[test]
fn every_frame_can_have_an_image_of_its_own() {
    let (unet, [a, b]) = (still(), refs());
    let images = [&a, &b, &b, &a, &a, &b].map(Clone::clone);
    let settings = || ImagePromptSettings { scope: ImageScope::PerFrame, ..at(0.7) };
    let own = &mut [prompt("plus", &images, settings())];
    let got = output(&unet, own, &ALL, 0, 1);
    for (frame, image) in images.iter().enumerate() {
        let want = &mut [prompt("plus", std::slice::from_ref(image), at(0.7))];
        let want = output(&unet, want, &[frame], 0, 1);
        assert_relative(&got.narrow(0, frame, 1).unwrap(), &want, F32);
    }
    let window = output(&unet, own, &[5, 0, 2], 0, 1);
    let order = Tensor::new(&[5u32, 0, 2], &Device::Cpu).unwrap();
    assert_relative(&window, &got.index_select(&order, 0).unwrap(), F32);
    let same = &mut [prompt("plus", &vec![a.clone(); 6], settings())];
    let one = &mut [prompt("plus", &[a], at(0.7))];
    let (same, one) = (output(&unet, same, &ALL, 1, 2), output(&unet, one, &ALL, 1, 2));
    assert_relative(&same, &one, F32);
    let too_many = own[0].inject(
        &Pass {
            x: &Tensor::zeros((1, 4, 8, 16), DType::F32, &Device::Cpu).unwrap(),
            timestep: 1.0,
            progress: Progress { step: 0, steps: 1 },
            clips: 1,
            frames: &[6],
            context: &case("unet")["ctx"].narrow(0, 0, 1).unwrap(),
            negatives: 0,
            motion_norm: MotionNorm::PerFrame,
            stop: &Stop::default(),
        },
        &mut Injection::default(),
    );
    assert!(too_many.unwrap_err().to_string().contains("frame 6"));
}

#[test]
fn masks_and_curves_go_together() {
    let (unet, [a, _]) = (still(), refs());
    let half = RgbImage::from_fn(64, 32, |x, _| image::Rgb([if x < 32 { 255 } else { 0 }; 3]));
    let masked = |strength: Strength| ImagePromptSettings {
        strength,
        scope: ImageScope::Masks(vec![Mask::new(&half)]),
        ..Default::default()
    };
    let images = std::slice::from_ref(&a);
    let curve = &mut [prompt("base", images, masked("0:0,5:1".parse().unwrap()))];
    let got = output(&unet, curve, &ALL, 1, 2);
    let level = &mut [prompt("base", images, masked(Strength::constant(0.6)))];
    let want = output(&unet, level, &[3], 0, 1);
    assert_relative(&got.narrow(0, 9, 1).unwrap(), &want, F32);
    let none = output(&unet, &mut [], &[0], 0, 1);
    assert_relative(&got.narrow(0, 6, 1).unwrap(), &none, F32);
    // White everywhere is no mask at all.
    let white = RgbImage::from_pixel(64, 32, image::Rgb([255; 3]));
    let settings =
        ImagePromptSettings { scope: ImageScope::Masks(vec![Mask::new(&white)]), ..at(0.6) };
    let white = output(&unet, &mut [prompt("base", images, settings)], &ALL, 0, 1);
    let want = output(&unet, &mut [prompt("base", images, at(0.6))], &ALL, 0, 1);
    assert_relative(&white, &want, F32);
}

#[test]
fn keys_for_another_unet_are_refused() {
    let (unet, [a, _]) = (still(), refs());
    let net = net("base");
    let features = ImageFeatures::encode(
        &encoder(),
        &[a],
        net.config().feature_kind(),
        false,
        &Stop::default(),
    )
    .unwrap();
    let settings = at(1.0);
    let mut prompt = ImagePrompt::new(&net, &features, settings, &unet_info()).unwrap();
    let unit = case("unet");
    let (x, context) = (fold(&unit["x"]), unit["ctx"].narrow(0, 0, 1).unwrap());
    let mut pass = Pass {
        x: &x,
        timestep: 759.0,
        progress: Progress { step: 0, steps: 1 },
        clips: 1,
        frames: &ALL,
        context: &context,
        negatives: 1,
        motion_norm: MotionNorm::PerFrame,
        stop: &Stop::default(),
    };
    // It was encoded without unconditional features.
    let error = prompt.inject(&pass, &mut Injection::default()).unwrap_err();
    assert!(error.to_string().contains("unconditional"), "{error}");
    pass.negatives = 0;
    let mut injection = Injection::default();
    prompt.inject(&pass, &mut injection).unwrap();
    let smaller = UNetConfig { layers_per_block: 1, ..unet_config() };
    assert_eq!(smaller.cross_attentions().unwrap().len(), 10);
    let (smaller, _) =
        random::build(Component::UNet, DType::F32, &Device::Cpu, |vb| UNet::new(&smaller, &vb))
            .unwrap();
    let input = UNetInput {
        timestep: 759.0,
        frames: 6,
        context: &context,
        motion_norm: MotionNorm::PerFrame,
        injection: &injection,
        stop: &Stop::default(),
    };
    let error = smaller.forward(&x, &input).unwrap_err().to_string();
    assert!(error.contains("16 image contexts for 10 cross-attentions"), "{error}");
    assert!(unet.forward(&x, &input).is_ok());
}

#[test]
fn cross_attentions_are_numbered_as_in_the_published_files() {
    let attentions = UNetConfig::sd15().cross_attentions().unwrap();
    let found: Vec<_> = attentions.iter().map(|at| (at.width, at.level)).collect();
    let (a, b, c) = ((320, 0), (640, 1), (1280, 2));
    assert_eq!(found, [a, a, b, b, c, c, c, c, c, b, b, b, a, a, a, (1280, 3)]);
}

// Names and layouts.

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

fn save(tensors: &BTreeMap<String, Tensor>, path: &Path) {
    safetensors::serialize_to_file(tensors, None, path).unwrap();
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

// Whole runs.

fn request() -> Request {
    Request::default().with(|r| {
        r.prompt.text = "A corgi walking in the park, 4k!!".into();
        r.prompt.negative = "bad quality".into();
        r.size.width = Some(64);
        r.size.height = Some(32);
        r.size.frames = 6;
        r.sampling.steps = 2;
        r.sampling.seed = Some(0);
        r.sampling.original_inference_steps = Some(50);
        r.sampling.motion_norm = MotionNorm::Pooled;
        r.sampling.cfg_scale = 1.5;
    })
}

fn files() -> Files {
    let adapter = |kind: &str| IpAdapterFile {
        name: kind.into(),
        source: Source::from(golden::path(&weights_of(kind))),
    };
    Files {
        ip_adapters: ["base", "plus", "full"].map(adapter).to_vec(),
        ..Files::new(Base::Folder(golden::path("tiny/model")))
    }
}

fn pipeline(residency: Residency) -> Pipeline {
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    Pipeline::new(Models::open(&files()).unwrap(), Device::Cpu, precision, residency)
}

fn run(adapters: &[Asked], request: Request) -> Result<BTreeMap<String, Tensor>> {
    let noise = case("noise");
    let mut tensors = Tensors {
        hint_noise: BTreeMap::new(),
        latents: Some(case("unet")["x"].clone()),
        noise: (0..3).map(|i| noise[&format!("noise.{i}")].clone()).collect(),
        recorded: Some(BTreeMap::new()),
    };
    let request = request.with(|r| {
        r.ip_adapters = adapters.to_vec();
    });
    let mut frames = Vec::new();
    pipeline(Residency::Sequential).run(
        &request,
        &mut tensors,
        &mut |_: Event| Ok(()),
        &mut &mut frames,
    )?;
    Ok(tensors.recorded.unwrap())
}

fn bits(recorded: &BTreeMap<String, Tensor>) -> Vec<u32> {
    floats(&recorded["frames"]).into_iter().map(f32::to_bits).collect()
}

/// The goldens' images and masks as files: `a.png`, `b.png`, `mask0.png`, `mask2.png`.
struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = refs();
        a.save(folder.path().join("a.png")).unwrap();
        b.save(folder.path().join("b.png")).unwrap();
        for i in [0, 2] {
            let mask = image("ip_adapter/masks", &format!("{i}.u8"));
            mask.save(folder.path().join(format!("mask{i}.png"))).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// An adapter of a kind; `text` begins with an image's name, and names after `=` are looked up here, too.
    fn adapter(&self, kind: &str, text: &str) -> Asked {
        let place = format!("{}{}", self.0.path().display(), std::path::MAIN_SEPARATOR);
        let mut text = text.to_owned();
        for key in ["image=", "mask="] {
            text = text.replace(key, &format!("{key}{place}"));
        }
        format!("{place}{text},model={kind}").parse().unwrap()
    }
}

#[test]
fn runs_of_every_kind_equal_diffusers() {
    let images = Images::new();
    let plain = run(&[], request()).unwrap();
    for (kind, scale) in [("base", 0.6), ("plus", 0.8), ("full", 0.7)] {
        let adapter = images.adapter(kind, &format!("a.png,scale={scale}"));
        let got = run(&[adapter], request()).unwrap();
        assert_close(&got["latents"], &case(&format!("ip_{kind}"))["latents.final"], RUN);
        assert!(relative_l2(&got["latents"], &plain["latents"]) > 0.01, "{kind} has no effect");
    }
    let want = golden::load("ip_adapter/runs");
    let adapter = images.adapter("full", "a.png,scale=0.7");
    let got = run(
        &[adapter],
        request().with(|r| {
            r.sampling.cfg_scale = 1.0;
        }),
    )
    .unwrap();
    assert_close(&got["latents"], &want.tensor("unguided"), RUN);
}

#[test]
fn runs_with_several_images_equal_diffusers() {
    let images = Images::new();
    let want = golden::load("ip_adapter/runs");
    let mut last = None;
    for kind in ["base", "plus", "full"] {
        let adapter = images.adapter(kind, "a.png,image=b.png,scale=0.7");
        let got = run(&[adapter], request()).unwrap();
        assert_close(&got["latents"], &want.tensor(&format!("two_pictures.{kind}")), RUN);
        last = Some(got);
    }
    // A folder of images is as good as its images.
    std::fs::create_dir(images.path("all")).unwrap();
    for name in ["a.png", "b.png"] {
        std::fs::copy(images.path(name), images.path(&format!("all/{name}"))).unwrap();
    }
    let got = run(&[images.adapter("full", "all,scale=0.7")], request()).unwrap();
    assert_eq!(bits(&got), bits(&last.unwrap()));
}

#[test]
fn two_adapters_at_once_equal_diffusers_in_any_order() {
    let images = Images::new();
    let a = images.adapter("base", "a.png,scale=0.6");
    let b = images.adapter("plus", "b.png,scale=0.35");
    let got = run(&[a.clone(), b.clone()], request()).unwrap();
    assert_close(&got["latents"], &golden::load("ip_adapter/runs").tensor("two_adapters"), RUN);
    let reversed = run(&[b, a], request()).unwrap();
    assert_relative(&got["latents"], &reversed["latents"], F32);
}

#[test]
fn masked_runs_equal_diffusers() {
    let images = Images::new();
    // diffusers has a scale for every image of an adapter; here they are two entries that share a file.
    let want = golden::load("ip_adapter/runs").tensor("masks");
    let a = images.adapter("plus", "a.png,scale=0.7,mask=mask0.png");
    let b = images.adapter("plus", "b.png,scale=0.4,mask=mask2.png");
    let got = run(&[a.clone(), b], request()).unwrap();
    assert_close(&got["latents"], &want, RUN);
    assert!(relative_l2(&run(&[a], request()).unwrap()["latents"], &want) > 1e-3);

    // The case of the tiny model: halves.
    let left = RgbImage::from_fn(64, 32, |x, _| image::Rgb([if x < 32 { 255 } else { 0 }; 3]));
    let right = RgbImage::from_fn(64, 32, |x, _| image::Rgb([if x < 32 { 0 } else { 255 }; 3]));
    left.save(images.path("left.png")).unwrap();
    right.save(images.path("right.png")).unwrap();
    let a = images.adapter("base", "a.png,scale=0.7,mask=left.png");
    let b = images.adapter("base", "b.png,scale=0.4,mask=right.png");
    let got = run(&[a, b], request()).unwrap();
    assert_close(&got["latents"], &case("ip_masked")["latents.final"], RUN);

    // Two images with their masks in one entry.
    let both = images.adapter("base", "a.png,image=b.png,mask=left.png,mask=right.png,scale=0.5");
    let a = images.adapter("base", "a.png,scale=0.5,mask=left.png");
    let b = images.adapter("base", "b.png,scale=0.5,mask=right.png");
    let (one, two) = (run(&[both], request()).unwrap(), run(&[a, b], request()).unwrap());
    assert_eq!(bits(&one), bits(&two));
}

#[test]
fn a_part_of_a_run_equals_diffusers() {
    let images = Images::new();
    let adapter = images.adapter("plus", "b.png,scale=0.8,end=0.5");
    let got = run(
        &[adapter],
        request().with(|r| {
            r.sampling.steps = 4;
        }),
    )
    .unwrap();
    assert_close(&got["latents"], &golden::load("ip_adapter/runs").tensor("first_half"), RUN);
}

#[test]
fn strength_zero_is_bit_identical_to_absence() {
    let images = Images::new();
    let plain = bits(&run(&[], request()).unwrap());
    for more in ["scale=0", "scale=0:0,3:0", "start=0.9", "scale=0,mask=mask0.png"] {
        let adapter = images.adapter("plus", &format!("a.png,{more}"));
        assert!(bits(&run(&[adapter], request()).unwrap()) == plain, "`{more}` changes the clip");
    }
    let adapter = images.adapter("plus", "a.png,scale=0.01");
    assert!(bits(&run(&[adapter], request()).unwrap()) != plain, "a small strength is nothing");
}

#[test]
fn guidance_in_two_passes_gives_the_same_clip() {
    use animatelcm::pipeline::denoiser::{Guidance, Guided, Settings};
    use animatelcm::sampler::Denoiser;
    use animatelcm::schedule::{NoiseLevel, Prediction};
    let (unet, prompts) = (tiny::unet(DType::F32), case("lcm_cfg"));
    let settings = Settings {
        prediction: Prediction::Epsilon,
        dtype: DType::F32,
        motion_norm: MotionNorm::PerFrame,
    };
    let x = case("unet")["x"].transpose(1, 2).unwrap().contiguous().unwrap();
    let level = NoiseLevel::from_ratio(759.0, 5.0);
    let [a, b] = refs();
    let curve = || ImagePromptSettings { strength: "0:1,5:0".parse().unwrap(), ..at(1.0) };
    let denoised = |guidance| {
        let frames = ImagePromptSettings { scope: ImageScope::PerFrame, ..at(0.5) };
        let own = [&a, &b, &a, &a, &b, &b].map(Clone::clone);
        let all: Vec<Box<dyn Conditioner>> = vec![
            Box::new(prompt("full", &[a.clone(), b.clone()], curve())),
            Box::new(prompt("plus", &own, frames)),
        ];
        let mut guided = Guided::new(&unet, settings, &prompts["prompt_embeds"])
            .unwrap()
            .guide(&prompts["negative_embeds"], 1.5, guidance)
            .unwrap()
            .condition(all);
        guided.denoise(&x, level).unwrap()
    };
    assert_relative(&denoised(Guidance::TwoPasses), &denoised(Guidance::Batched), F32);
}

#[test]
fn images_are_encoded_once_a_clip_and_before_the_unet_is_loaded() {
    let images = Images::new();
    let ip_adapters = vec![
        images.adapter("base", "a.png,scale=0.6"),
        images.adapter("plus", "b.png,scale=0.5"),
        images.adapter("base", "b.png,scale=0.2"),
    ];
    let request = request().with(|r| {
        r.ip_adapters = ip_adapters;
        r.sampling.steps = 3;
    });
    let mut loaded = Vec::new();
    let mut make = |pipeline: &mut Pipeline| {
        loaded.clear();
        let mut listener = |event: Event| {
            if let Event::Load { part, bytes } = event {
                assert!(bytes > 0, "{part}");
                loaded.push(part);
            }
            Ok(())
        };
        let mut frames = Vec::new();
        pipeline.run(&request, &mut Tensors::default(), &mut listener, &mut &mut frames).unwrap();
        (loaded.clone(), frames)
    };
    let once = ["text", "image-encoder", "ip-adapter", "ip-adapter", "vae", "unet"];
    let mut lean = pipeline(Residency::Sequential);
    let (parts, first) = make(&mut lean);
    assert_eq!(parts, once);
    assert_eq!(make(&mut lean).0, once);
    let mut ready = pipeline(Residency::KeepAll);
    let (parts, second) = make(&mut ready);
    assert_eq!((parts.as_slice(), &second), (&once[..], &first));
    assert_eq!(make(&mut ready).0.len(), 0);
}

#[test]
fn what_images_need_is_part_of_the_plan() {
    let images = Images::new();
    let plan = |ip_adapters: Vec<Asked>| {
        let request = request().with(|r| {
            r.ip_adapters = ip_adapters;
        });
        pipeline(Residency::Sequential).prepared(&request).unwrap().memory
    };
    let (without, with) = (plan(vec![]), plan(vec![images.adapter("full", "a.png,image=b.png")]));
    let bytes = |file: &str| {
        let numbers: usize = tiny::tensors(&[file]).values().map(Tensor::elem_count).sum();
        4 * numbers as u64
    };
    assert_eq!(with.image_encoder, bytes(ENCODER).max(bytes(&weights_of("full"))));
    // Keys and values of 2 x 17 tokens and, with guidance, of no image, for 16 attentions of 8 and 16 channels.
    assert_eq!(with.fixed - without.fixed, 2 * 2 * 34 * (5 * 8 + 11 * 16) * 4);
    assert_eq!((with.weights, without.image_encoder), (without.weights, 0));
}

// Bad input.

fn open(adapter: &Path, encoder: Option<&Path>) -> Result<Models> {
    let source = Source::from(adapter.to_path_buf());
    Models::open(&Files {
        ip_adapters: vec![IpAdapterFile { name: "mine".into(), source }],
        image_encoder: encoder.map(Path::to_path_buf),
        ..files()
    })
}

fn refusal(adapter: &Path, encoder: Option<&Path>) -> Error {
    let error = open(adapter, encoder).unwrap_err();
    assert_eq!(error.kind().exit_code(), 3, "{error}");
    error
}

/// A changed adapter in a folder of its own, away from any image encoder.
struct Changed(tempfile::TempDir, BTreeMap<String, Tensor>);

impl Changed {
    fn of(kind: &str) -> Self {
        let tensors = tiny::tensors(&[&weights_of(kind)]).into_iter().collect();
        Self(tempfile::tempdir().unwrap(), tensors)
    }

    fn with(mut self, name: &str, shape: &[usize]) -> Self {
        let zeros = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        self.1.insert(name.into(), zeros);
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.1.remove(name).unwrap();
        self
    }

    fn save(&self) -> std::path::PathBuf {
        // Two levels deep, so that nothing is above it either.
        let folder = self.0.path().join("x");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("adapter.safetensors");
        save(&self.1, &path);
        path
    }
}

#[test]
fn adapters_that_cannot_work_are_called_by_their_name() {
    let encoder = golden::path("tiny/extras/image_encoder");
    let encoder = Some(encoder.as_path());
    let key = "ip_adapter.1.to_k_ip.weight";
    for (adapter, part) in [
        (Changed::of("base").with("ip_adapter.0.to_k_lora.down.weight", &[4, 8]), "FaceID"),
        (
            Changed::of("plus").with("image_proj.perceiver_resampler.proj_in.weight", &[4, 4]),
            "FaceID",
        ),
        (Changed::of("full").with("image_proj.norm.weight", &[12]), "face recognition"),
        (Changed::of("base").with(key, &[640, 2048]), "is an IP-Adapter for Stable Diffusion XL"),
        (Changed::of("base").with(key, &[320, 1024]), "is an IP-Adapter for Stable Diffusion 2"),
        (Changed::of("base").with(key, &[24, 12]), "attentions of [24, 8, 16"),
        (
            Changed::of("base").without("image_proj.norm.weight"),
            "`image_proj.norm.weight` is missing",
        ),
        (Changed::of("base").with("ip_adapter.3.to_q_ip.weight", &[8, 12]), "not known"),
        (
            Changed::of("base").with("image_proj.proj.weight", &[48, 1280]),
            "1280 channels, those of",
        ),
    ] {
        let error = refusal(&adapter.save(), encoder).to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let missing = Changed::of("base").without("ip_adapter.31.to_v_ip.weight");
    let error = refusal(&missing.save(), encoder).to_string();
    assert!(error.contains("1 weights missing (`ip_adapter.31.to_v_ip.weight`)"), "{error}");
    for (file, part, hint) in [
        ("tiny/extras/lora-kohya.safetensors", "is a LoRA", "--lora"),
        ("tiny/extras/controlnet/diffusion_pytorch_model.safetensors", "a ControlNet", "--control"),
        (ENCODER, "has no ip-adapter weights", ""),
        ("tiny/extras", "is a folder", ""),
    ] {
        let error = refusal(&golden::path(file), encoder);
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{:?}", error.hint());
    }
    let model = Files::new(Base::File(golden::path(&weights_of("base"))));
    let error = Models::open(&model).unwrap_err();
    assert!(error.to_string().ends_with("is an IP-Adapter"), "{error}");
    assert_eq!(error.hint().as_deref(), Some("give it with --ip-adapter"));
}

#[test]
fn the_image_encoder_is_found_or_asked_for() {
    // Beside the adapter, above it, and in the model's folder.
    let changed = Changed::of("base");
    let adapter = changed.save();
    let error = refusal(&adapter, None);
    assert!(error.to_string().contains("`mine`: has no image encoder beside it"), "{error}");
    assert!(error.hint().unwrap().contains("--image-encoder"));
    let place = |folder: &Path| {
        std::fs::create_dir_all(folder).unwrap();
        for file in ["config.json", "model.safetensors"] {
            let from = golden::path("tiny/extras/image_encoder").join(file);
            std::fs::copy(from, folder.join(file)).unwrap();
        }
    };
    for folder in [adapter.parent(), adapter.parent().and_then(Path::parent)] {
        let folder = folder.unwrap().join("image_encoder");
        place(&folder);
        let models = open(&adapter, None).unwrap();
        assert_eq!(models.ip_adapter_config("mine").unwrap().1, folder);
        std::fs::remove_dir_all(folder).unwrap();
    }
    // A single file with its configuration beside it, and without one.
    let folder = tempfile::tempdir().unwrap();
    place(folder.path());
    let file = folder.path().join("model.safetensors");
    assert!(open(&adapter, Some(&file)).is_ok());
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    let error = refusal(&adapter, Some(&file));
    assert!(error.to_string().contains("14 channels"), "{error}");
    assert!(error.hint().unwrap().contains("config.json"));
    // Something else.
    let error = refusal(&adapter, Some(&golden::path("tiny/model/text_encoder")));
    assert!(error.to_string().contains("has no image encoder weights"), "{error}");
    let error = refusal(&adapter, Some(Path::new("nowhere.safetensors")));
    assert!(error.to_string().contains("nowhere.safetensors"), "{error}");
}

#[test]
fn an_encoder_without_a_configuration_is_known_by_its_width() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clip.safetensors");
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap();
    // As far as shapes are asked for: a small ViT-bigG.
    let mut tensors = BTreeMap::from([
        ("vision_model.embeddings.class_embedding".to_owned(), zeros(&[1664])),
        ("vision_model.embeddings.patch_embedding.weight".to_owned(), zeros(&[1664, 3, 14, 14])),
        ("vision_model.embeddings.position_embedding.weight".to_owned(), zeros(&[5, 1664])),
        ("vision_model.encoder.layers.0.layer_norm1.weight".to_owned(), zeros(&[1664])),
        ("vision_model.encoder.layers.0.mlp.fc1.weight".to_owned(), zeros(&[8192, 1664])),
        ("visual_projection.weight".to_owned(), zeros(&[1280, 1664])),
    ]);
    save(&tensors, &file);
    // Trained with ViT-H, whose embeddings have 1024 channels and whose states 1280.
    for (kind, name, shape) in [
        ("base", "image_proj.proj.weight", [48, 1024]),
        ("plus", "image_proj.proj_in.weight", [10, 1280]),
    ] {
        let adapter = Changed::of(kind).with(name, &shape);
        let error = refusal(&adapter.save(), Some(&file));
        let found = if kind == "base" { "1280" } else { "1664" };
        let text = error.to_string();
        assert!(
            text.contains(&shape[1].to_string()) && text.contains(&format!("have {found}")),
            "{text}"
        );
        assert!(error.hint().unwrap().contains("h94/IP-Adapter"), "{:?}", error.hint());
    }
    // And one that goes with it, once the rest is there.
    let fits = Changed::of("base").with("image_proj.proj.weight", &[48, 1280]);
    let error = refusal(&fits.save(), Some(&file)).to_string();
    assert!(error.contains("image encoder: 18 weights missing"), "{error}");
    let layer = "encoder.layers.0";
    let norms = [format!("{layer}.layer_norm1"), format!("{layer}.layer_norm2")];
    for name in norms.into_iter().chain(["pre_layrnorm".into(), "post_layernorm".into()]) {
        for end in ["weight", "bias"] {
            tensors.insert(format!("vision_model.{name}.{end}"), zeros(&[1664]));
        }
    }
    for (name, outputs, inputs) in [
        ("self_attn.q_proj", 1664, 1664),
        ("self_attn.k_proj", 1664, 1664),
        ("self_attn.v_proj", 1664, 1664),
        ("self_attn.out_proj", 1664, 1664),
        ("mlp.fc1", 8192, 1664),
        ("mlp.fc2", 1664, 8192),
    ] {
        let name = format!("vision_model.{layer}.{name}");
        tensors.insert(format!("{name}.weight"), zeros(&[outputs, inputs]));
        tensors.insert(format!("{name}.bias"), zeros(&[outputs]));
    }
    save(&tensors, &file);
    let models = open(&fits.save(), Some(&file)).unwrap();
    let (_, _, config) = models.ip_adapter_config("mine").unwrap();
    assert_eq!((config.image_size, config.patch_size), (28, 14));
    assert_eq!((config.num_attention_heads, config.hidden_act.as_str()), (16, "gelu"));
}

#[test]
fn images_that_do_not_fit_are_refused_before_anything_is_loaded() {
    let images = Images::new();
    std::fs::write(images.path("text.png"), "this is no image").unwrap();
    for (text, parts) in [
        ("a.png,per-frame", ["1 images for 6 frames", "a.png"]),
        ("a.png,image=b.png,mask=mask0.png", ["2 images have 1 masks", "a.png"]),
        ("text.png", ["text.png", "ip-adapter"]),
        ("a.png,image=nowhere.png", ["nowhere.png", "ip-adapter"]),
        ("a.png,mask=nowhere.png", ["nowhere.png", "ip-adapter"]),
    ] {
        let request = request().with(|r| {
            r.ip_adapters = vec![images.adapter("plus", text)];
        });
        let mut loaded = 0;
        let mut listener = |_: Event| {
            loaded += 1;
            Ok(())
        };
        let mut frames = Vec::new();
        let error = pipeline(Residency::Sequential)
            .run(&request, &mut Tensors::default(), &mut listener, &mut &mut frames)
            .unwrap_err();
        assert_eq!(error.kind().exit_code(), 2, "{error}");
        assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
        assert_eq!(loaded, 0, "{text}");
    }
    let error = run(&[images.adapter("other", "a.png")], request()).unwrap_err();
    assert!(error.to_string().contains("`other` was not opened"), "{error}");
}

/// The program with the tiny model and its adapters.
#[cfg(feature = "cli")]
mod program {
    use super::{ENCODER, Images, golden, weights_of};
    use crate::support::program::{Folder, Outcome};

    fn generate(folder: &Folder, output: &str, adapters: &[&str]) -> Outcome {
        let model = golden::path("tiny/model");
        let mut args = vec!["generate", "a corgi", "--model", model.to_str().unwrap(), "-s", "7"];
        args.extend(["--frames", "6", "-W", "64", "-H", "32", "--steps", "1", "-o", output]);
        for adapter in adapters {
            args.extend(["--ip-adapter", adapter]);
        }
        folder.run(&args)
    }

    /// A folder with `a.png`, `b.png` and `mask0.png`.
    fn folder() -> Folder {
        let (folder, images) = (Folder::new(), Images::new());
        for name in ["a.png", "b.png", "mask0.png"] {
            folder.write(name, std::fs::read(images.path(name)).unwrap());
        }
        folder
    }

    fn flag(text: &str) -> String {
        format!("{text},model={}", golden::path(&weights_of("plus")).display())
    }

    #[test]
    fn a_clip_with_images_is_made_again_from_its_own_metadata() {
        let folder = folder();
        let adapter = flag("a.png,mask=mask0.png,scale=0:1.0,5:0.5,end=1");
        generate(&folder, "c.png", &[&adapter, &flag("b.png,scale=0.3,name=hat")]).ok();
        generate(&folder, "plain.png", &[]).ok();
        assert_ne!(folder.read("c.png"), folder.read("plain.png"));
        let about = folder.run(&["inspect", "c.png", "--json"]).ok().json();
        let stored = &about["ip_adapters"];
        assert_eq!(stored[0]["scale"], "0:1,5:0.5");
        assert_eq!(stored[1]["name"], "hat");
        for record in [&stored[0]["images"][0], &stored[0]["masks"][0], &stored[1]["images"][0]] {
            assert_eq!(record["sha256"].as_str().map(str::len), Some(64), "{record}");
        }
        assert!(about["weights"].to_string().contains("ip-adapter-plus.safetensors"), "{about}");
        assert!(folder.run(&["inspect", "c.png"]).ok().stdout().contains("b.png by"));
        folder.run(&["replay", "c.png"]).ok();
        assert_eq!(folder.read("c-replay.png"), folder.read("c.png"));

        // Another image in its place, or another mask.
        for name in ["b.png", "mask0.png"] {
            let before = folder.read(name);
            folder.write(name, folder.read("a.png"));
            let outcome = folder.run(&["replay", "c.png", "-y"]);
            let message = outcome.fails(5);
            assert!(message.contains("sha256") && message.contains(name), "{message}");
            folder.write(name, before);
        }
    }

    #[test]
    fn the_same_adapters_stand_in_a_request_file() {
        let folder = folder();
        let model = golden::path("tiny/model");
        let model = model.to_str().unwrap();
        let encoder = golden::path("tiny/extras/image_encoder");
        let encoder = encoder.to_str().unwrap();
        let adapter = flag("a.png,image=b.png,scale=0.5,end=0.9");
        let dump = ["generate", "x", "--model", model, "--ip-adapter", &adapter, "--image-encoder"];
        let dump = folder.run(&[&dump[..], &[encoder, "--dump-request"]].concat()).ok().json();
        let stored = &dump["ip_adapters"][0];
        assert_eq!(stored["images"][1]["file"], "b.png");
        assert_eq!((&stored["scale"], &stored["end"]), (&0.5.into(), &0.9.into()));
        assert_eq!(dump["models"]["image_encoder"], encoder);
        folder.write("job.json", dump.to_string());
        let again = folder.run(&["generate", "--request", "job.json", "--dump-request"]).ok();
        assert_eq!(again.json(), dump);
        let args = ["generate", "--request", "job.json", "-W", "64", "-H", "32", "--frames", "6"];
        folder.run(&[&args[..], &["--steps", "1", "-o", "d.gif"]].concat()).ok();
    }

    #[test]
    fn mistakes_are_told_in_one_line() {
        let folder = folder();
        let fails = |adapter: &str, code| {
            let outcome = generate(&folder, "c.png", &[adapter]);
            outcome.fails(code).to_owned()
        };
        assert!(fails("a.png", 2).contains("has no model"));
        assert!(fails("a.png,model=nowhere.safetensors", 3).contains("nowhere"));
        assert!(fails(&flag("nowhere.png"), 2).contains("nowhere.png"));
        assert!(fails(&flag("a.png,per-frame"), 2).contains("1 images for 6 frames"));
        assert!(fails(&flag("a.png,scale=nan"), 2).contains("scale"));
        let text = folder.run(&["generate", "--help"]).ok();
        assert!(text.stdout().contains("--ip-adapter <IMAGE,model=FILE,...>"), "{}", text.stdout());
        let mut names = folder.names();
        names.retain(|name| name != "no-models");
        assert_eq!(names, ["a.png", "b.png", "mask0.png"]);
    }

    #[test]
    fn inspect_names_adapters_and_their_encoder() {
        let folder = Folder::new();
        let about = |file: &str| {
            let path = golden::path(file);
            let json = folder.run(&["inspect", path.to_str().unwrap(), "--json"]).ok().json();
            assert_eq!(json["supported"], true, "{json}");
            json["kind"].as_str().unwrap().to_owned()
        };
        let base = "an IP-Adapter (4 tokens) for embeddings of 10 channels";
        assert_eq!(about(&weights_of("base")), base);
        assert_eq!(about("ip_adapter/base.bin"), base);
        let plus = "an IP-Adapter (plus, 5 tokens) for states of 14 channels";
        assert_eq!(about(&weights_of("plus")), plus);
        assert_eq!(about(&weights_of("full")), "an IP-Adapter (full) for states of 14 channels");
        assert_eq!(about(ENCODER), "a CLIP image encoder");
        let path = golden::path("tiny/extras/image_encoder");
        let outcome = folder.run(&["inspect", path.to_str().unwrap()]).ok();
        assert!(outcome.stdout().contains("a CLIP image encoder"), "{}", outcome.stdout());
    }
}
