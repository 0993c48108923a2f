//! Values of flags that have a grammar of their own.

use animatelcm::Quantize;
use animatelcm::adapters::Strength;
use animatelcm::device::{DeviceChoice, DtypeChoice, KernelChoice};
use animatelcm::library::Preset;
use animatelcm::media::Background;
use animatelcm::media::resize::Fit;
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::unet::FreeU;
use animatelcm::request::{
    Control, DynamicThresholding, Embedding, FreeInit, Hires, Interpolation, IpAdapter, Job, Loop,
    Prompt, Quality, Request, Spec, Travel, VaeTiling, WeightedFile,
};
use animatelcm::rng::{NoiseKind, RngKind};
use animatelcm::sampler::{Fuse, SamplerKind, WindowSchedule};
use animatelcm::schedule::{BetaSchedule, Prediction, Spacing};
use animatelcm::text::prompt::PromptMode;

use super::request;

/// Reads the text as a value of every flag; a request with it must survive being written.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(control) = text.parse::<Control>() {
        survives(Request { controls: vec![control], ..Request::default() });
    }
    if let Ok(adapter) = text.parse::<IpAdapter>() {
        survives(Request { ip_adapters: vec![adapter], ..Request::default() });
    }
    if let Ok(travel) = text.parse::<Travel>() {
        let prompt = Prompt { travel, ..Prompt::default() };
        survives(Request { prompt, ..Request::default() });
    }
    quality(text);
    if let Ok(lora) = text.parse::<WeightedFile>() {
        write(&Job::new(Spec { loras: vec![lora], ..Spec::default() }, Request::default()));
    }
    if let Ok(word) = text.parse::<Embedding>() {
        write(&Job::new(Spec { embeddings: vec![word], ..Spec::default() }, Request::default()));
    }
    if let Ok(strength) = text.parse::<Strength>() {
        for frame in [0, 1, 7, usize::MAX] {
            assert!(strength.at(frame).is_finite());
        }
    }
    if let Ok(color) = text.parse::<Background>() {
        write(&Job::new(
            Spec::default(),
            Request { background_color: Some(color), ..Request::default() },
        ));
    }
    let _ = text.parse::<BetaSchedule>();
    let _ = text.parse::<DeviceChoice>();
    let _ = text.parse::<DtypeChoice>();
    let _ = text.parse::<Fit>();
    let _ = text.parse::<Fuse>();
    let _ = text.parse::<Interpolation>();
    let _ = text.parse::<KernelChoice>();
    let _ = text.parse::<Loop>();
    let _ = text.parse::<MotionNorm>();
    let _ = text.parse::<NoiseKind>();
    let _ = text.parse::<Prediction>();
    let _ = text.parse::<Preset>();
    let _ = text.parse::<PromptMode>();
    let _ = text.parse::<Quantize>();
    let _ = text.parse::<RngKind>();
    let _ = text.parse::<SamplerKind>();
    let _ = text.parse::<Spacing>();
    let _ = text.parse::<WindowSchedule>();
}

/// Options for quality.
fn quality(text: &str) {
    let survives = |quality| survives(Request { quality, ..Request::default() });
    if let Ok(free_u) = text.parse::<FreeU>() {
        survives(Quality { free_u: Some(free_u), ..Quality::default() });
    }
    if let Ok(free_init) = text.parse::<FreeInit>() {
        survives(Quality { free_init: Some(free_init), ..Quality::default() });
    }
    if let Ok(tiling) = text.parse::<VaeTiling>() {
        survives(Quality { vae_tiling: Some(tiling), ..Quality::default() });
    }
    if let Ok(hires) = text.parse::<Hires>() {
        survives(Quality { hires: Some(hires), ..Quality::default() });
    }
    if let Ok(thresholding) = text.parse::<DynamicThresholding>() {
        survives(Quality { dynamic_thresholding: Some(thresholding), ..Quality::default() });
    }
}

/// Writes a request that is valid, and reads it again.
fn survives(request: Request) {
    if request.validate().is_ok() {
        write(&Job::new(Spec::default(), request));
    }
}

fn write(job: &Job) {
    let written = serde_json::to_string(job).expect("a job can be written");
    assert_eq!(Job::from_json(&written).expect("a job can be read"), *job, "{written}");
    request::read(&written);
}
