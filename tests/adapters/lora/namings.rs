//! Every spelling of a LoRA changes the right weights by the right amount.

use std::collections::{BTreeMap, BTreeSet};

use animatelcm::adapters::lora::{Lora, LoraOptions, LoraReport, LoraScale};
use animatelcm::library::{LoraFile, Models};
use animatelcm::weights::{Checkpoint, Component, PatchStack, Source};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_relative, relative_l2};
use crate::support::golden;
use crate::support::lora::{
    Q, SavedLora, all, apply, change, close, differs, files, matrix, one, tiny,
};
use crate::support::torch::torch_list;
use crate::support::weights::{published_source, source};

#[test]
fn five_namings_lead_to_the_same_weights() {
    let about = golden::json("lora/lora");
    let strength = about["strength"].as_f64().unwrap();
    let fused = golden::load("lora/fused");
    let checkpoint = tiny();
    let plain = all(&checkpoint, &PatchStack::new());
    let changes = about["changes"].as_object().unwrap();
    assert_eq!(changes.len(), 4);
    for (file, changes) in changes {
        let changes: BTreeSet<&str> =
            changes.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let lora = source(&format!("lora/{file}.safetensors"));
        let (report, patched) =
            apply(&checkpoint, &lora, &LoraOptions::with_strength(strength)).unwrap();
        assert_eq!(report.in_unet + report.in_text, changes.len(), "{file}");
        assert_eq!(report.modules, changes.len(), "{file}");
        assert!(report.unmatched.is_empty());
        for (name, tensor) in &patched {
            let changed = changes.contains(name.as_str());
            assert_eq!(differs(tensor, &plain[name]), changed, "{file}: {name}");
            if changed {
                // `up @ down` in f32 here, in f64 there.
                assert_relative(tensor, &fused.tensor(name), 1e-6);
            }
        }
    }
}

#[test]
fn a_motion_lora_reads_the_same_under_both_its_names() {
    let checkpoint = tiny();
    let plain = all(&checkpoint, &PatchStack::new());
    let options = LoraOptions::with_strength(0.7);
    let diffusers = source("tiny/extras/motion-lora.safetensors");
    let (report, one) = apply(&checkpoint, &diffusers, &options).unwrap();
    let original = source("lora/motion_original.safetensors");
    let (_, other) = apply(&checkpoint, &original, &options).unwrap();
    let mut changed = 0;
    for (name, tensor) in &one {
        assert!(!differs(tensor, &other[name]), "{name}");
        if differs(tensor, &plain[name]) {
            changed += 1;
            assert!(name.contains(".motion_modules."));
        }
    }
    // 21 modules of two attentions of four matrices.
    assert_eq!((changed, report.in_unet), (168, 168));
}

#[test]
fn camera_loras_are_read_as_they_are_published() {
    let checkpoint = tiny();
    let plain = all(&checkpoint, &PatchStack::new());
    let options = LoraOptions::with_strength(0.7);
    let published = source("lora/motion_published.ckpt");
    let (report, one) = apply(&checkpoint, &published, &options).unwrap();
    assert_eq!((report.modules, report.in_unet), (8, 8));
    let (_, other) =
        apply(&checkpoint, &source("lora/motion_original.safetensors"), &options).unwrap();
    for (name, tensor) in &one {
        let is_middle = name.starts_with("mid_block.motion_modules.");
        assert!(!is_middle || !differs(tensor, &other[name]), "{name}");
        let is_attention = name.contains(".attn") && name.ends_with(".weight");
        assert_eq!(differs(tensor, &plain[name]), is_middle && is_attention, "{name}");
    }
}

#[test]
fn the_published_lcm_lora_finds_all_of_its_278_modules() {
    let (_unet, unet) = published_source(&["unet"]);
    let (_motion, motion) = published_source(&["motion_animatelcm"]);
    let (_lora, lora) = published_source(&["lora_lcm"]);
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_component(Component::UNet, &unet).unwrap();
    checkpoint.add_motion(&motion).unwrap();
    let mut patches = PatchStack::new();
    let lora = Lora::open(&lora, "lcm").unwrap();
    let report = lora.apply(&checkpoint, &LoraOptions::default(), &mut patches).unwrap();
    assert_eq!((report.modules, report.in_unet, report.in_text), (278, 278, 0));
    assert_eq!(report.ranks, BTreeSet::from([64]));
    assert!(!patches.is_empty());
}

#[test]
fn the_pocket_models_lora_fits_it() {
    let pocket = |name: &str| {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/pocket");
        Source::File(root.join(name))
    };
    let mut checkpoint = Checkpoint::new();
    for component in Component::BASE {
        checkpoint.add_component(component, &pocket("base")).unwrap();
    }
    checkpoint.add_motion(&pocket("motion_lcm.safetensors")).unwrap();
    let lora = Lora::open(&pocket("animatelcm_lora.safetensors"), "lcm").unwrap();
    let mut by_alpha = PatchStack::new();
    let report = lora.apply(&checkpoint, &LoraOptions::default(), &mut by_alpha).unwrap();
    assert_eq!((report.modules, report.in_unet), (129, 129));
    // Its alpha is 2 and its rank 16, so what the official code hard-codes comes to the same.
    let mut fixed = PatchStack::new();
    let options = LoraOptions { scale: LoraScale::Fixed(1.0 / 8.0), ..LoraOptions::default() };
    lora.apply(&checkpoint, &options, &mut fixed).unwrap();
    let (one, other) = (all(&checkpoint, &by_alpha), all(&checkpoint, &fixed));
    assert!(one.iter().all(|(name, tensor)| !differs(tensor, &other[name])));
}

#[test]
fn the_folders_that_peft_writes_are_adapters() {
    let checkpoint = tiny();
    let options = LoraOptions::default();
    let (report, one) = apply(&checkpoint, &source("lora/families/peft_hra"), &options).unwrap();
    assert_eq!((report.family.as_str(), report.in_unet), ("HRA", 4));
    let file = source("lora/families/peft_hra/adapter_model.safetensors");
    let (_, other) = apply(&checkpoint, &file, &options).unwrap();
    assert!(one.iter().all(|(name, tensor)| !differs(tensor, &other[name])));
    let error = Lora::open(&source("lora"), "lora").unwrap_err();
    assert!(error.to_string().contains("is a folder without an adapter"), "{error}");
}

#[test]
fn files_in_8_bits_are_read() {
    let saved = SavedLora { folder: tempfile::tempdir().unwrap() };
    // 1.5 in four bits of exponent and three of mantissa.
    let bytes = vec![0x3c; 2 * 16];
    let view = |shape: [usize; 2]| {
        let dtype = safetensors::Dtype::F8_E4M3;
        safetensors::tensor::TensorView::new(dtype, shape.to_vec(), &bytes).unwrap()
    };
    let (down, up) = (format!("{Q}.lora_down.weight"), format!("{Q}.lora_up.weight"));
    let tensors = [(down, view([2, 16])), (up, view([16, 2]))];
    let bytes = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(saved.folder.path().join("lora.safetensors"), bytes).unwrap();
    close(change(&saved, &LoraOptions::default()), 4.5);
}

/// A LoRA that brings vectors of that width along.
fn with_words(width: usize) -> SavedLora {
    one(&[
        ("bundle_emb.cat toy.string_to_param.*", matrix(2, width, 0.5)),
        ("bundle_emb.<dog>.clip_l", matrix(1, width, 0.25)),
    ])
}

#[test]
fn words_that_a_lora_brings_along_are_learned() {
    let saved = with_words(12);
    let models = Models::open(&files(vec![LoraFile::new(saved.source().path())])).unwrap();
    let report = &models.adapters()[0];
    assert!(report.to_string().ends_with(", brings `<dog>`, `cat toy`"), "{report}");
    let (text, _) = models.text(DType::F32, &Device::Cpu).unwrap();
    let states =
        |text: &animatelcm::text::TextModel, prompt| text.encode(prompt, 0).unwrap().states;
    let (plain, _) = Models::open(&files(vec![])).unwrap().text(DType::F32, &Device::Cpu).unwrap();
    assert!(differs(&states(&text, "a cat toy"), &states(&plain, "a cat toy")));
    assert!(!differs(&states(&text, "a cat"), &states(&plain, "a cat")));
    // The file is hashed once.
    assert_eq!(models.sources().iter().filter(|s| **s == saved.source()).count(), 1);
    let wide = with_words(77);
    let error = Models::open(&files(vec![LoraFile::new(wide.source().path())])).unwrap_err();
    assert!(error.to_string().contains("is 77 wide, the text encoder 12"), "{error}");
}

#[test]
fn the_header_says_for_which_model_an_adapter_was_made() {
    let saved = SavedLora { folder: tempfile::tempdir().unwrap() };
    let bytes = vec![0; 4 * 2 * 16];
    let view = |shape: [usize; 2]| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &bytes)
            .unwrap()
    };
    let tensors = [
        ("lora_unet_nowhere.lora_down.weight", view([2, 16])),
        ("lora_unet_nowhere.lora_up.weight", view([16, 2])),
    ];
    let header = std::collections::HashMap::from([(
        "ss_base_model_version".to_owned(),
        "sd_v2_768_v".to_owned(),
    )]);
    let bytes = safetensors::serialize(tensors, Some(header)).unwrap();
    std::fs::write(saved.folder.path().join("lora.safetensors"), bytes).unwrap();
    assert_eq!(saved.open().unwrap().made_for(), Some("Stable Diffusion 2"));
    assert_eq!(saved.error().hint().unwrap(), "it was made for Stable Diffusion 2");
}

/// Numbers that are different for each module and each element.
fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> =
        (0..count).map(|i| ((i * 37 + seed * 101) % 61) as f32 / 61.0 - 0.5).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A LoRA of rank 2 of these modules, its endings, and what it must add to which weights.
fn modules(
    endings: [&str; 2],
    metadata: &[(&str, &str)],
    modules: &[(&str, &str)],
    more: &[(&str, Tensor)],
) -> (SavedLora, BTreeMap<String, Tensor>) {
    let checkpoint = tiny();
    let mut tensors: Vec<(String, Tensor)> =
        more.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
    let mut wanted = BTreeMap::new();
    for (seed, (module, weight)) in modules.iter().enumerate() {
        let component =
            if weight.starts_with("text_model.") { Component::Text } else { Component::UNet };
        let shape = checkpoint.shape_of(component, weight).unwrap();
        let up = numbers(&[shape[0], 2], 2 * seed);
        let down = numbers(&[&[2], &shape[1..]].concat(), 2 * seed + 1);
        let product = up.matmul(&down.flatten_from(1).unwrap()).unwrap();
        wanted.insert((*weight).to_owned(), product.reshape(shape).unwrap());
        tensors.push((format!("{module}{}", endings[0]), up));
        tensors.push((format!("{module}{}", endings[1]), down));
    }
    let metadata: std::collections::HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let folder = tempfile::tempdir().unwrap();
    let bytes = safetensors::serialize(tensors, Some(metadata)).unwrap();
    std::fs::write(folder.path().join("lora.safetensors"), bytes).unwrap();
    (SavedLora { folder }, wanted)
}

/// Checks that a LoRA adds these products and changes nothing else.
fn adds(saved: &SavedLora, wanted: &BTreeMap<String, Tensor>) -> LoraReport {
    let checkpoint = tiny();
    let plain = all(&checkpoint, &PatchStack::new());
    let options = LoraOptions::with_strength(0.5);
    let (report, patched) = apply(&checkpoint, &saved.source(), &options).unwrap();
    for (name, tensor) in &patched {
        match wanted.get(name) {
            Some(product) => {
                let got = (tensor - &plain[name]).unwrap();
                let error = relative_l2(&got, &(product * 0.5).unwrap());
                assert!(error < 1e-5, "{name}: {error:e}");
            }
            None => assert!(!differs(tensor, &plain[name]), "{name}"),
        }
    }
    report
}

const ATTENTION: &str = "down_blocks.0.attentions.0.transformer_blocks.0";

#[test]
fn numbered_modules_are_the_layers_in_the_order_of_their_creation() {
    let inner = |tail: &str| format!("{ATTENTION}.{tail}.weight");
    let text = |layer: usize, part: &str| {
        format!("text_model.encoder.layers.{layer}.self_attn.{part}.weight")
    };
    // Sixteen attentions of nine layers: six on the way down, nine on the way up, then the one in the middle.
    let up = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight";
    let last_up = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0.weight";
    let middle = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let header = [
        ("unet", r#"["GEGLU", "CrossAttention", "Attention"]"#),
        ("text_encoder", r#"["CLIPAttention"]"#),
        ("unet:0:rank", "2"),
        ("<s1>", "<embed>"),
    ];
    let places = [
        ("unet:0", inner("attn1.to_q")),
        ("unet:1", inner("attn1.to_k")),
        ("unet:3", inner("attn1.to_out.0")),
        ("unet:4", inner("ff.net.0.proj")),
        ("unet:5", inner("attn2.to_q")),
        ("unet:7", inner("attn2.to_v")),
        ("unet:54", up.to_owned()),
        ("unet:134", last_up.to_owned()),
        ("unet:141", middle.to_owned()),
        ("text_encoder:0", text(0, "k_proj")),
        ("text_encoder:1", text(0, "v_proj")),
        ("text_encoder:2", text(0, "q_proj")),
        ("text_encoder:3", text(0, "out_proj")),
        ("text_encoder:10", text(2, "q_proj")),
    ];
    let places = places.each_ref().map(|(number, weight)| (*number, weight.as_str()));
    let word = [("<s1>", numbers(&[12], 0))];
    for header in [&header[..], &header[2..]] {
        let (saved, wanted) = modules([":up", ":down"], header, &places, &word);
        let report = adds(&saved, &wanted);
        assert_eq!((report.in_unet, report.in_text, report.modules), (9, 5, 14));
        assert_eq!(report.words, ["<s1>"]);
    }
}

#[test]
fn numbered_modules_follow_later_diffusers_where_only_that_fits() {
    let inner = |tail: &str| format!("{ATTENTION}.{tail}.weight");
    let places = [
        ("unet:3", inner("attn1.to_out.0")),
        ("unet:4", inner("attn2.to_q")),
        ("unet:5", inner("attn2.to_k")),
        ("unet:8", inner("ff.net.0.proj")),
    ];
    let places = places.each_ref().map(|(number, weight)| (*number, weight.as_str()));
    let (saved, wanted) = modules([":up", ":down"], &[], &places, &[]);
    adds(&saved, &wanted);
}

#[test]
fn numbered_modules_of_residual_blocks_come_after_a_blocks_attentions() {
    let classes = r#"["CrossAttention", "Attention", "GEGLU", "ResnetBlock2D"]"#;
    let resnet = |level: usize, tail: &str| format!("down_blocks.{level}.resnets.0.{tail}.weight");
    let places = [
        ("unet:18", resnet(0, "conv1")),
        ("unet:19", resnet(0, "time_emb_proj")),
        ("unet:20", resnet(0, "conv2")),
        (
            "unet:24",
            ATTENTION.replace("blocks.0.attentions", "blocks.1.attentions") + ".attn1.to_q.weight",
        ),
        ("unet:44", resnet(1, "conv2")),
        ("unet:45", resnet(1, "conv_shortcut")),
    ];
    let places = places.each_ref().map(|(number, weight)| (*number, weight.as_str()));
    let (saved, wanted) = modules([":up", ":down"], &[("unet", classes)], &places, &[]);
    adds(&saved, &wanted);
}

#[test]
fn numbered_modules_that_no_order_explains_are_refused() {
    let layer = format!("{ATTENTION}.attn1.to_q.weight");
    let open = |number: &str, header: &[(&str, &str)]| {
        modules([":up", ":down"], header, &[(number, &layer)], &[]).0
    };
    let error = open("unet:54", &[]).error();
    assert!(error.to_string().contains("module `unet:54` does not fit"), "{error}");
    let error = open("unet:144", &[]).error();
    assert!(error.to_string().contains("none of its 1 modules is in this model"), "{error}");
    let error = open("unet:0", &[("unet", r#"["Transformer2DModel"]"#)]).error();
    assert!(
        error.to_string().contains("`Transformer2DModel`, whose order is not known"),
        "{error}"
    );
    let error = open("unet:0", &[("unet", "CrossAttention")]).error();
    assert!(error.to_string().contains("no list of classes under `unet`"), "{error}");
}

#[test]
fn lists_of_tensors_are_numbered_modules() {
    let text = |part: &str| format!("text_model.encoder.layers.0.self_attn.{part}.weight");
    let unet = |part: &str| format!("{ATTENTION}.attn1.{part}.weight");
    let checkpoint = tiny();
    let plain = all(&checkpoint, &PatchStack::new());
    for (name, weights) in [
        ("lora_weight.pt", [unet("to_q"), unet("to_k")]),
        ("lora_weight.text_encoder.pt", [text("k_proj"), text("v_proj")]),
    ] {
        let width = if name == "lora_weight.pt" { 8 } else { 12 };
        let shapes = [[width, 2], [2, width], [width, 2], [2, width]];
        let tensors: Vec<Tensor> =
            shapes.iter().enumerate().map(|(seed, shape)| numbers(shape, seed)).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, torch_list(&tensors)).unwrap();
        let options = LoraOptions::default();
        let (report, patched) = apply(&checkpoint, &path.into(), &options).unwrap();
        assert_eq!(report.modules, 2, "{name}");
        for (i, weight) in weights.iter().enumerate() {
            let product = tensors[2 * i].matmul(&tensors[2 * i + 1]).unwrap();
            let got = (&patched[weight] - &plain[weight]).unwrap();
            assert!(relative_l2(&got, &product) < 1e-5, "{name}: {weight}");
        }
    }
}

#[test]
fn of_the_four_copies_on_a_layer_of_the_text_encoder_its_own_is_used() {
    let layer = "text_model.encoder.layers.1.self_attn";
    for processor in ["", ".processor"] {
        let own =
            [("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")];
        let names = own.map(|(part, copy)| {
            let module = format!("text_encoder.{layer}.{part}{processor}.{copy}_lora");
            (module, format!("{layer}.{part}.weight"))
        });
        let names = names.each_ref().map(|(module, weight)| (module.as_str(), weight.as_str()));
        let mut others = Vec::new();
        for (part, own) in own {
            for copy in ["to_q", "to_k", "to_v", "to_out"].into_iter().filter(|copy| *copy != own) {
                let module = format!("text_encoder.{layer}.{part}{processor}.{copy}_lora");
                others.push((format!("{module}.up.weight"), numbers(&[12, 2], 50)));
                others.push((format!("{module}.down.weight"), numbers(&[2, 12], 51)));
            }
        }
        let others: Vec<(&str, Tensor)> =
            others.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        let (saved, wanted) = modules([".up.weight", ".down.weight"], &[], &names, &others);
        let report = adds(&saved, &wanted);
        assert_eq!((report.modules, report.in_text, report.unused), (4, 4, 12));
        assert!(report.to_string().ends_with("12 of no effect"), "{report}");
    }
}

#[test]
fn comfyuis_names_of_the_text_encoder_are_read() {
    let weight = "text_model.encoder.layers.0.self_attn.v_proj.weight";
    let embedding = "text_model.embeddings.token_embedding.weight";
    let unet = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight";
    for prefix in [
        "text_encoders.clip_l.transformer.",
        "text_encoders.clip_l.",
        "clip_l.transformer.",
        "text_encoder.",
        "te1.",
    ] {
        let module = |weight: &str| format!("{prefix}{}", weight.strip_suffix(".weight").unwrap());
        let names = [
            (module(weight), weight),
            (module(embedding), embedding),
            ("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0".into(), unet),
        ];
        let names = names.each_ref().map(|(module, weight)| (module.as_str(), *weight));
        let projection = [
            (format!("{prefix}text_projection.lora_up.weight"), numbers(&[12, 2], 1)),
            (format!("{prefix}text_projection.lora_down.weight"), numbers(&[2, 12], 2)),
        ];
        let projection =
            projection.each_ref().map(|(name, tensor)| (name.as_str(), tensor.clone()));
        let endings = [".lora_up.weight", ".lora_down.weight"];
        let (saved, wanted) = modules(endings, &[], &names, &projection);
        let report = adds(&saved, &wanted);
        assert_eq!((report.in_unet, report.in_text, report.unused), (1, 2, 1), "{prefix}");
    }
}
