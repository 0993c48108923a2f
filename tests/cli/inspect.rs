//! What `inspect` says of weights and folders.

use std::fs;

use serde_json::{Value, json};

use crate::support::golden;
use crate::support::program::{Folder, Outcome};

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
