//! The published sizes: names that constructors ask for, and the whole networks against diffusers.
//!
//! The networks have random weights that are a function of their names. Those tests take minutes and 8 GB of memory,
//! and a reference file, so they are run by hand:
//!
//! ```sh
//! python benches/reference/sd15_parity.py run full-size
//! ANIMATELCM_FULL_SIZE=full-size/sd15.safetensors cargo test --release -- --ignored --nocapture full_size
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Instant;

use animatelcm::Quantize;
use animatelcm::Stop;
use animatelcm::adapters::lora::{Lora, LoraOptions};
use animatelcm::models::clip::{TextConfig, TextEncoder};
use animatelcm::models::motion::{MotionConfig, MotionNorm};
use animatelcm::models::unet::{Injection, UNet, UNetConfig, UNetInput};
use animatelcm::models::vae::{AutoencoderKl, VaeConfig};
use animatelcm::weights::{Checkpoint, Component, PatchStack, random};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_relative, relative_l2};
use crate::support::golden;
use crate::support::tiny::{fold, unfold};
use crate::support::weights::published_source;

/// Modules in f32, relative L2.
const F32: f64 = 1e-5;

/// Names and shapes in `tests/goldens/names/<list>.txt`.
fn published(list: &str) -> BTreeMap<String, Vec<usize>> {
    let path = golden::path(&format!("names/{list}.txt"));
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| {
            let (name, shape) = line.split_once('\t').unwrap();
            (name.to_owned(), serde_json::from_str(shape).unwrap())
        })
        .collect()
}

fn config() -> UNetConfig {
    UNetConfig::sd15().with_motion(MotionConfig::default())
}

/// Fails on the first few names that are on one side only, or differ in shape.
#[track_caller]
fn assert_same(ours: &BTreeMap<String, Vec<usize>>, theirs: &BTreeMap<String, Vec<usize>>) {
    let missing: Vec<_> = theirs.iter().filter(|(k, v)| ours.get(*k) != Some(v)).take(3).collect();
    let strange: Vec<_> = ours.iter().filter(|(k, v)| theirs.get(*k) != Some(v)).take(3).collect();
    assert!(
        missing.is_empty() && strange.is_empty(),
        "not asked for {missing:?}, only ours {strange:?}"
    );
}

#[test]
fn the_unet_asks_for_exactly_the_published_names_and_shapes() {
    let still = random::inventory(|vb| UNet::new(&UNetConfig::sd15(), &vb)).unwrap();
    let unet = published("unet");
    assert_eq!(unet.len(), 686);
    assert_same(&still, &unet);

    let moving = random::inventory(|vb| UNet::new(&config(), &vb)).unwrap();
    let motion = published("motion");
    assert_eq!(motion.len(), 546);
    let both: BTreeMap<_, _> = unet.into_iter().chain(motion).collect();
    assert_eq!(both.len(), 686 + 546, "no name is in both lists");
    assert_same(&moving, &both);
}

#[test]
fn the_autoencoder_asks_for_exactly_the_published_names_and_shapes() {
    let vae = random::inventory(|vb| AutoencoderKl::new(&VaeConfig::default(), &vb)).unwrap();
    assert_eq!(vae.len(), 248);
    assert_same(&vae, &published("vae"));
    let config = VaeConfig::default();
    let decoder = random::inventory(|vb| AutoencoderKl::decoder_only(&config, &vb)).unwrap();
    let half = published("vae")
        .into_iter()
        .filter(|(name, _)| name.starts_with("decoder.") || name.starts_with("post_quant_conv."))
        .collect();
    assert_same(&decoder, &half);
}

#[test]
fn the_text_encoder_asks_for_exactly_the_published_names_and_shapes() {
    let text = random::inventory(|vb| TextEncoder::new(&TextConfig::default(), &vb)).unwrap();
    assert_eq!(text.len(), 196);
    assert_same(&text, &published("text_encoder"));
}

/// The reference file that `ANIMATELCM_FULL_SIZE` names.
#[track_caller]
fn reference() -> HashMap<String, Tensor> {
    let how = "make it with `python benches/reference/sd15_parity.py run DIR` and set \
               ANIMATELCM_FULL_SIZE=DIR/sd15.safetensors";
    let Some(path) = std::env::var_os("ANIMATELCM_FULL_SIZE").map(PathBuf::from) else {
        panic!("there is no reference: {how}");
    };
    candle_core::safetensors::load(&path, &Device::Cpu)
        .unwrap_or_else(|error| panic!("{}: {error}; {how}", path.display()))
}

/// Builds a model of drawn weights.
fn draw<T>(
    component: Component,
    dtype: DType,
    model: impl FnOnce(animatelcm::weights::VarBuilder<'static>) -> animatelcm::Result<T>,
) -> T {
    random::build(component, dtype, &Device::Cpu, model).unwrap().0
}

/// Runs something, says how far it is from what is wanted and how long it took, and gives the result in f32.
#[allow(clippy::print_stderr)]
fn timed(what: &str, want: &Tensor, run: impl FnOnce() -> Tensor) -> Tensor {
    let started = Instant::now();
    let got = run().to_dtype(DType::F32).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let error = relative_l2(&got, want);
    eprintln!("{what}: relative L2 {error:.2e}, {seconds:.2} s");
    got
}

/// Inputs of the reference are drawn by name, too: both sides mean the same numbers.
#[test]
#[ignore = "needs a reference file; see the head of this file"]
fn full_size_inputs_are_drawn_alike() {
    let reference = reference();
    for name in ["latents", "context", "z"] {
        let want = &reference[name];
        let values = random::values(&format!("input.{name}"), want.dims());
        assert_eq!(values, want.flatten_all().unwrap().to_vec1::<f32>().unwrap(), "{name}");
    }
}

#[test]
#[ignore = "needs a reference file; see the head of this file"]
fn full_size_text_equals_transformers() {
    let reference = reference();
    let want = &reference["text"];
    let ids = reference["ids"].to_dtype(DType::U32).unwrap();
    for (dtype, tolerance) in [(DType::F32, F32), (DType::F16, 4e-3), (DType::BF16, 3e-2)] {
        let config = TextConfig::default();
        let model = draw(Component::Text, dtype, |vb| TextEncoder::new(&config, &vb));
        let got = timed(&format!("text {dtype:?}"), want, || {
            model.forward(&ids, 0, &Stop::default()).unwrap()
        });
        assert_relative(&got, want, tolerance);
    }
}

#[test]
#[ignore = "needs a reference file; see the head of this file"]
fn full_size_autoencoder_equals_diffusers() {
    let reference = reference();
    for (dtype, tolerance) in [(DType::F32, F32), (DType::F16, 4e-3), (DType::BF16, 3e-2)] {
        let model =
            draw(Component::Vae, dtype, |vb| AutoencoderKl::new(&VaeConfig::default(), &vb));
        let z = reference["z"].to_dtype(dtype).unwrap();
        let want = &reference["image"];
        let got = timed(&format!("decode {dtype:?}"), want, || {
            model.decode(&z, &Stop::default()).unwrap()
        });
        assert_relative(&got, want, tolerance);

        let image = reference["image_in"].to_dtype(dtype).unwrap();
        let posterior = model.encode(&image, &Stop::default()).unwrap();
        for (name, got) in [("mean", posterior.mean), ("logvar", posterior.log_variance)] {
            let got = timed(&format!("{name} {dtype:?}"), &reference[name], || got);
            assert_relative(&got, &reference[name], tolerance);
        }
    }
}

fn unet_pass(dtype: DType, quantize: Quantize, reference: &HashMap<String, Tensor>) -> Tensor {
    let model = draw(Component::UNet, dtype, |vb| UNet::new(&config(), &vb.quantized(quantize)));
    let latents = reference["latents"].to_dtype(dtype).unwrap();
    let context = &reference["context"].to_dtype(dtype).unwrap();
    let timestep = reference["timestep"].to_dtype(DType::F64).unwrap();
    let timestep = timestep.get(0).unwrap().to_scalar().unwrap();
    let frames = latents.dim(2).unwrap();
    let input = UNetInput {
        timestep,
        frames,
        context,
        motion_norm: MotionNorm::PerFrame,
        injection: &Injection::default(),
        stop: &Stop::default(),
    };
    timed(&format!("unet {dtype:?}{}", quantize.words()), &reference["unet"], || {
        unfold(&model.forward(&fold(&latents), &input).unwrap(), 1)
    })
}

#[test]
#[ignore = "needs a reference file; see the head of this file"]
fn full_size_unet_equals_diffusers() {
    let reference = reference();
    assert_relative(&unet_pass(DType::F32, Quantize::None, &reference), &reference["unet"], F32);
}

#[test]
#[ignore = "needs a reference file; see the head of this file"]
fn full_size_unet_in_half_precision_stays_within_its_measured_error() {
    let reference = reference();
    for (dtype, tolerance) in [(DType::F16, 5e-3), (DType::BF16, 4e-2)] {
        let got = unet_pass(dtype, Quantize::None, &reference);
        assert_relative(&got, &reference["unet"], tolerance);
    }
}

#[test]
#[ignore = "needs a reference file; see the head of this file"]
fn full_size_unet_in_eight_bits_stays_within_its_measured_error() {
    let reference = reference();
    for (quantize, dtype, tolerance) in [
        (Quantize::Int8, DType::F32, 3.5e-2),
        (Quantize::Int8, DType::BF16, 4.5e-2),
        (Quantize::W8A8, DType::F32, 6e-2),
        (Quantize::W8A8, DType::BF16, 6.5e-2),
    ] {
        let got = unet_pass(dtype, quantize, &reference);
        assert_relative(&got, &reference["unet"], tolerance);
    }
}

/// Resident memory of this process in MiB: now, and the most since [`forget_peak`].
fn memory() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_end_matches("kB").trim().parse::<u64>().ok()? / 1024)
    };
    Some((value("VmRSS:")?, value("VmHWM:")?))
}

fn forget_peak() {
    // Where that is not possible, the peak is that of the whole test.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The LCM LoRA, then at another strength. Files of the published sizes with zeros in them serve: neither time nor
/// memory depends on the values.
#[test]
#[ignore = "takes 6 GB of memory; prints time and memory"]
#[allow(clippy::print_stderr)]
fn full_size_unet_is_in_memory_once() {
    let (_unet, unet) = published_source(&["unet"]);
    let (_motion, motion) = published_source(&["motion_animatelcm"]);
    let (_lora, lora) = published_source(&["lora_lcm"]);
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_component(Component::UNet, &unet).unwrap();
    checkpoint.add_motion(&motion).unwrap();
    let lora = Lora::open(&lora, "lcm").unwrap();
    let mut model = None;
    for (what, strength) in [("loaded", 1.0), ("other strength", 0.5)] {
        let started = Instant::now();
        let mut patches = PatchStack::new();
        let options = LoraOptions::with_strength(strength);
        lora.apply(&checkpoint, &options, &mut patches).unwrap();
        // As a pipeline does it: what is to be made again goes first.
        drop(model.take());
        forget_peak();
        let config = config();
        let build = |vb| UNet::new(&config, &vb);
        let (dtype, cpu) = (DType::F32, Device::Cpu);
        let (unet, report) =
            checkpoint.build(Component::UNet, dtype, &cpu, &patches, build).unwrap();
        model = Some(unet);
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("{what}: {seconds:.2} s, memory and its peak in MiB: {:?}", memory());
        assert_eq!((report.used, report.reused), (686 + 546, 0));
        if let Some((_, peak)) = memory() {
            // Pages of the files count where they are mapped, as far as the system has not taken them back.
            let weights = report.bytes >> 20;
            assert!(peak < weights + weights / 2, "{peak} MiB for {weights} MiB of weights");
        }
    }
}
