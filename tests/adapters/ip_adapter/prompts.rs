//! Image prompts in a pass of the UNet: strengths, frames, masks, guidance.

use animatelcm::Stop;
use animatelcm::adapters::ip_adapter::{
    ImageFeatures, ImagePrompt, ImagePromptSettings, ImageScope, UNetInfo,
};
use animatelcm::adapters::{Conditioner, Mask, Pass, Progress, Strength};
use animatelcm::media::RgbImage;
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::unet::{Injection, UNet, UNetConfig, UNetInput};
use animatelcm::weights::{Component, random};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_relative, relative_l2};
use crate::support::ip_adapter::{F32, encoder, net, refs};
use crate::support::tiny::{self, case, fold};

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
