//! What `inspect` says of weights and folders.

use std::fs;

use candle_core::{DType, Device, Tensor};
use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};

use crate::support::golden;
use crate::support::program::{Folder, Outcome};
use crate::support::requests::png;

fn inspected(file: &str) -> (Outcome, Value) {
    let folder = Folder::new();
    let path = golden::path(file);
    let path = path.to_str().unwrap();
    let text = folder.run(&["inspect", path]).ok();
    (text, folder.run(&["inspect", "--json", path]).ok().json())
}

#[test]
fn inspect_says_what_weights_are() {
    for (file, kind) in [
        ("layouts/ldm.ckpt", "a checkpoint of the Stable Diffusion 1.5 family"),
        ("layouts/ldm_novae.safetensors", "without vae"),
        ("layouts/motion_lcm.ckpt", "AnimateLCM"),
        ("layouts/motion_v2.ckpt", "AnimateDiff v2"),
        ("layouts/vae.bin", "a VAE"),
        ("layouts/text_encoder_bare.safetensors", "a CLIP text encoder"),
        ("tiny/extras/taesd/diffusion_pytorch_model.safetensors", "TAESD"),
        ("tiny/model/unet/diffusion_pytorch_model.safetensors", "a UNet"),
        ("tiny/model/motion_adapter/diffusion_pytorch_model.safetensors", "motion adapter"),
        ("lora/kohya.safetensors", "a LoRA"),
        ("lora/motion_original.safetensors", "a motion LoRA"),
        ("lora/families/boft.safetensors", "a BOFT"),
        ("lora/families/glora.safetensors", "a GLoRA"),
        ("lora/families/peft_hra/adapter_model.safetensors", "an HRA"),
    ] {
        let (text, json) = inspected(file);
        let (text, found) = (text.stdout(), json["kind"].as_str().unwrap());
        assert!(found.contains(kind), "{file}: {found}");
        assert!(text.contains(found), "{file}: {text}");
        assert_eq!(json["supported"], true, "{file}");
        let facts = &json["files"][0];
        assert_eq!(facts["bytes"], fs::metadata(golden::path(file)).unwrap().len(), "{file}");
        assert!(
            facts["tensors"].as_u64().unwrap() > 0 && facts["parameters"].as_u64().unwrap() > 0
        );
        assert!(text.contains(facts["sha256"].as_str().unwrap()), "{file}: {text}");
    }
    let (text, lora) = inspected("lora/kohya.safetensors");
    assert_eq!(lora["lora"]["layers"]["self-attention"], 2);
    assert!(text.stdout().contains("attention to the prompt 2"), "{}", text.stdout());
    let (text, _) = inspected("lora/families/peft_dora");
    assert!(
        text.stdout().contains("peft_dora/adapter_model.safetensors: a DoRA"),
        "{}",
        text.stdout()
    );
    let (_, lora) = inspected("lora/motion_original.safetensors");
    assert_eq!(lora["lora"]["ranks"], json!([2]));
    assert_eq!(lora["lora"]["modules"], 168);
    let (_, motion) = inspected("layouts/motion_v2.ckpt");
    assert_eq!(
        (&motion["stored_positions"], &motion["components"]["unet"]),
        (&json!(8), &json!(546))
    );
    assert_eq!(motion["files"][0]["layout"], "torch zip");
    assert_eq!(motion["files"][0]["dtypes"], json!({"f16": 588}));
}

#[test]
fn inspect_lists_the_parts_of_a_folder() {
    let (text, json) = inspected("tiny/model");
    let names: Vec<_> = json["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| part["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["unet", "motion_adapter", "vae", "text_encoder"]);
    assert!(json["kind"].as_str().unwrap().contains("AnimateDiffPipeline"), "{json}");
    assert!(text.stdout().contains("\nmotion_adapter: motion modules"), "{}", text.stdout());
    let (_, shards) = inspected("layouts/unet_motion");
    assert_eq!(shards["parts"][0]["files"].as_array().unwrap().len(), 3);
    assert_eq!(shards["parts"][0]["components"]["unet"], 684 + 546);
}

#[test]
fn inspect_knows_textual_inversions_of_any_width() {
    let folder = Folder::new();
    let vectors = Tensor::zeros((2, 32), DType::F32, &Device::Cpu).unwrap();
    for (file, name) in [("word.safetensors", "<leaf>"), ("kohya.safetensors", "emb_params")] {
        candle_core::safetensors::save(&[(name, vectors.clone())].into(), folder.path(file))
            .unwrap();
        let about = folder.run(&["inspect", "--json", file]).ok().json();
        let kind = about["kind"].as_str().unwrap();
        assert!(kind.starts_with("a textual inversion for a text encoder of 32"), "{kind}");
        assert_eq!(about["supported"], true);
    }
}

#[test]
fn inspect_sees_images_and_other_programs_requests() {
    let folder = Folder::new();
    black(&folder, "a.png");
    assert_eq!(
        folder.run(&["inspect", "a.png"]).ok().stdout(),
        "a.png: an image, 4x2, without a request in it\n"
    );
    let (jpeg, about) = inspected("media/o1.jpg");
    assert!(jpeg.stdout().contains("o1.jpg: an image, "), "{}", jpeg.stdout());
    assert_eq!(about["kind"], "an image");
    let parameters = "a cat\nNegative prompt: blurry\n\
                      Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 5, Size: 512x768, Clip skip: 2";
    folder.write("b.png", png("parameters", parameters));
    let shown = folder.run(&["inspect", "b.png"]).ok();
    for part in [
        "an image, 1x1, with the request of A1111",
        "20 steps of euler-a",
        "512x768",
        "clip skip 1",
    ] {
        assert!(shown.stdout().contains(part), "{part}: {}", shown.stdout());
    }
    let graph = json!({
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 48}},
        "3": {"class_type": "KSampler", "inputs": {
            "seed": 7, "steps": 6, "cfg": 2.5, "sampler_name": "euler", "scheduler": "karras",
            "positive": ["1", 0], "negative": ["1", 0], "latent_image": ["2", 0]}},
    });
    folder.write("c.png", png("prompt", &graph.to_string()));
    let shown = folder.run(&["inspect", "c.png"]).ok();
    for part in ["with the request of ComfyUI", "a cat", "6 steps of euler", "64x48"] {
        assert!(shown.stdout().contains(part), "{part}: {}", shown.stdout());
    }
    let json = folder.run(&["inspect", "--json", "c.png"]).ok().json();
    assert_eq!(
        (&json["made_by"], &json["request"]["sampling"]["seed"]),
        (&json!("ComfyUI"), &json!(7))
    );
}

/// Writes an image of 4x2 pixels.
fn black(folder: &Folder, name: &str) {
    let mut bytes = Vec::new();
    let image = RgbImage::new(4, 2);
    image.write_to(&mut std::io::Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
    folder.write(name, bytes);
}

#[test]
fn inspect_knows_requests_and_plans() {
    let folder = Folder::new();
    folder.write("r.json", r#"{"schema": "animatelcm/v1", "prompt": "a red star"}"#);
    let shown = folder.run(&["inspect", "r.json"]).ok();
    assert!(shown.stdout().contains("a request") && shown.stdout().contains("a red star"));
    folder.write("r.jsonl", "{\"schema\": \"animatelcm/v1\"}\n");
    assert!(folder.run(&["inspect", "r.jsonl"]).ok().stdout().contains("requests, made one after"));
    folder.write("x.txt", "a text");
    assert!(folder.run(&["inspect", "x.txt"]).fails(3).contains("x.txt"));
}

#[test]
fn inspect_lists_what_lies_in_a_folder() {
    let folder = Folder::new();
    let lora = fs::read(golden::path("lora/kohya.safetensors")).unwrap();
    folder.write("run/lcm_lora.safetensors", lora);
    folder.write("run/metrics.jsonl", "");
    folder.write("run/base/model_index.json", r#"{"_class_name": "AnimateDiffPipeline"}"#);
    let shown = folder.run(&["inspect", "run"]).ok();
    for part in
        ["run: a training run", "lcm_lora.safetensors: a LoRA", "base: a folder of diffusers, Anim"]
    {
        assert!(shown.stdout().contains(part), "{part}: {}", shown.stdout());
    }
    black(&folder, "hints/0.png");
    let json = folder.run(&["inspect", "--json", "hints"]).ok().json();
    assert_eq!(json["parts"][0]["kind"], "an image, 4x2");
}
