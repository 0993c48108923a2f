//! LoRA's relatives against their own packages.

use std::collections::{BTreeMap, BTreeSet};

use animatelcm::adapters::lora::{Lora, LoraOptions};
use animatelcm::weights::{PatchStack, Source};
use candle_core::{Device, Tensor};

use crate::support::close::relative_l2;
use crate::support::golden;
use crate::support::lora::{Q, Q_WEIGHT, SavedLora, all, apply, differs, tiny};
use crate::support::weights::source;

/// One of the cases of `lora/families`.
struct Case {
    name: String,
    file: Source,
    changes: BTreeSet<String>,
    strengths: Vec<f64>,
}

fn cases() -> Vec<Case> {
    let about = golden::json("lora/families/families");
    let strengths: Vec<f64> = serde_json::from_value(about["strengths"].clone()).unwrap();
    let case = |(name, case): (&String, &serde_json::Value)| Case {
        name: name.clone(),
        file: source(&format!("lora/families/{}", case["file"].as_str().unwrap())),
        changes: serde_json::from_value(case["changes"].clone()).unwrap(),
        strengths: strengths.clone(),
    };
    about["cases"].as_object().unwrap().iter().map(case).collect()
}

#[test]
fn every_family_leads_to_the_weights_of_its_own_package() {
    let checkpoint = tiny();
    let plain = all(&checkpoint, &PatchStack::new());
    let want = golden::load("lora/families/weights");
    let cases = cases();
    assert_eq!(cases.len(), 21);
    for case in &cases {
        for strength in &case.strengths {
            let options = LoraOptions::with_strength(*strength);
            let (_, patched) = apply(&checkpoint, &case.file, &options)
                .unwrap_or_else(|error| panic!("{}: {error}", case.name));
            for (name, tensor) in &patched {
                let changed = case.changes.contains(name);
                assert_eq!(differs(tensor, &plain[name]), changed, "{}: {name}", case.name);
                if !changed {
                    continue;
                }
                let want = want.tensor(&format!("{}/{strength:?}/{name}", case.name));
                let delta = |to: &Tensor| (to - &plain[name]).unwrap();
                let error = relative_l2(&delta(tensor), &delta(&want));
                assert!(error < 1e-5, "{} at {strength}: {name}: {error:e}", case.name);
            }
        }
    }
}

#[test]
fn strength_0_is_absence_in_every_family() {
    let checkpoint = tiny();
    for case in &cases() {
        let mut patches = PatchStack::new();
        let options = LoraOptions::with_strength(0.0);
        let lora = Lora::open(&case.file, "test").unwrap();
        let report = lora.apply(&checkpoint, &options, &mut patches).unwrap();
        assert!(patches.is_empty(), "{}", case.name);
        assert_eq!((report.in_unet, report.in_text), (0, 0), "{}", case.name);
        assert_eq!(report.switched_off, report.modules, "{}", case.name);
    }
}

#[test]
fn what_adds_commutes_and_what_turns_does_not() {
    let checkpoint = tiny();
    let stack = |names: &[&str]| {
        let mut patches = PatchStack::new();
        for name in names {
            let file = source(&format!("lora/{name}.safetensors"));
            let options = LoraOptions::with_strength(0.2 + 0.01 * name.len() as f64);
            let lora = Lora::open(&file, *name).unwrap();
            lora.apply(&checkpoint, &options, &mut patches).unwrap();
        }
        all(&checkpoint, &patches)
    };
    let adding = [
        "kohya",
        "families/loha",
        "families/lokr",
        "families/full",
        "families/sparse",
        "families/peft_bias/adapter_model",
        "families/peft_lokr/adapter_model",
        "motion_original",
    ];
    let one = stack(&adding);
    for turned in 1..adding.len() {
        let mut order = adding;
        order.rotate_left(turned);
        order[..turned].reverse();
        for (name, tensor) in &stack(&order) {
            assert!(relative_l2(tensor, &one[name]) < 1e-6, "{turned}: {name}");
        }
    }
    // All of these and a LoHa change this weight.
    let weight = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    for other in ["oft", "boft", "dora", "ia3", "glora", "peft_oft/adapter_model"] {
        let other = format!("families/{other}");
        let (one, two) = (stack(&["families/loha", &other]), stack(&[&other, "families/loha"]));
        assert!(relative_l2(&one[weight], &two[weight]) > 1e-3, "{other}");
    }
}

#[test]
fn reports_name_the_family() {
    let checkpoint = tiny();
    let wants = BTreeMap::from([
        ("boft", "BOFT `test`: 2 of 3 modules in the unet, 1 in the text encoder"),
        (
            "dora",
            "DoRA and DoRA over LoHa and DoRA over LoKr `test`: rank 2/3/4, 6 of 7 modules in the \
             unet, 1 in the text encoder",
        ),
        ("full", "full difference `test`: 5 of 7 modules in the unet, 2 in the text encoder"),
        ("ia3", "IA3 `test`: 4 of 5 modules in the unet, 1 in the text encoder"),
        ("loha", "LoHa `test`: rank 2/3/4, 4 of 5 modules in the unet, 1 in the text encoder"),
        ("lokr", "LoKr `test`: rank 1/2/3, 7 of 8 modules in the unet, 1 in the text encoder"),
        ("oft", "OFT `test`: 4 of 5 modules in the unet, 1 in the text encoder"),
        ("peft_bias", "LoRA `test`: rank 2/4, 2 of 2 modules in the unet"),
        ("peft_dora", "DoRA `test`: rank 3/4, 3 of 3 modules in the unet"),
        ("peft_loha", "LoHa `test`: rank 3/4, 2 of 2 modules in the unet"),
        ("peft_lokr", "LoKr `test`: rank 2, 3 of 3 modules in the unet"),
        ("glora", "GLoRA `test`: rank 2/3/4/5, 4 of 5 modules in the unet, 1 in the text encoder"),
        ("sparse", "LoRA `test`: rank 2/3, 2 of 2 modules in the unet"),
        ("peft_ia3", "IA3 `test`: 5 of 5 modules in the unet"),
        ("peft_oft", "OFT `test`: 4 of 4 modules in the unet"),
        ("peft_oft_exact", "OFT `test`: 4 of 4 modules in the unet"),
        ("peft_oft_shared", "OFT `test`: 4 of 4 modules in the unet"),
        ("peft_boft", "BOFT `test`: 4 of 4 modules in the unet"),
        ("peft_boft_stages", "BOFT `test`: 3 of 3 modules in the unet"),
        ("peft_hra", "HRA `test`: rank 3, 4 of 4 modules in the unet"),
        ("peft_hra_orthogonal", "HRA `test`: rank 3, 4 of 4 modules in the unet"),
    ]);
    for case in cases() {
        let options = LoraOptions::default();
        let (report, _) = apply(&checkpoint, &case.file, &options).unwrap();
        assert_eq!(report.to_string(), wants[case.name.as_str()], "{}", case.name);
    }
}

#[test]
fn early_lycoris_stored_rotations_themselves() {
    let name = format!("{Q}.oft_diag");
    let turns: Vec<f32> = [0.0, 1.0, -1.0, 0.0].repeat(8);
    let turns = Tensor::from_vec(turns, (8, 2, 2), &Device::Cpu).unwrap();
    let checkpoint = tiny();
    let rows = |tensors: &BTreeMap<String, Tensor>| tensors[Q_WEIGHT].to_vec2::<f32>().unwrap();
    let plain = rows(&all(&checkpoint, &PatchStack::new()));
    let saved = SavedLora::new(&[(&name, turns)]);
    let (_, patched) = apply(&checkpoint, &saved.source(), &LoraOptions::default()).unwrap();
    let turned = rows(&patched);
    for pair in 0..8 {
        let negative: Vec<f32> = plain[2 * pair + 1].iter().map(|value| -value).collect();
        assert_eq!(turned[2 * pair], negative);
        assert_eq!(turned[2 * pair + 1], plain[2 * pair]);
    }
}

#[test]
fn families_compose_in_the_order_in_which_they_are_given() {
    let checkpoint = tiny();
    let adapters = ["loha", "oft", "dora", "full", "peft_lokr/adapter_model"].map(|name| {
        Lora::open(&source(&format!("lora/families/{name}.safetensors")), name).unwrap()
    });
    let stack = |order: &[usize]| {
        let mut patches = PatchStack::new();
        for (i, index) in order.iter().enumerate() {
            let options = LoraOptions::with_strength(0.3 + 0.1 * *index as f64);
            let name = i.to_string();
            adapters[*index].apply(&checkpoint, &options, &mut patches).expect(&name);
        }
        all(&checkpoint, &patches)
    };
    // What only adds commutes, up to rounding.
    let (one, other) = (stack(&[0, 3, 4]), stack(&[4, 0, 3]));
    for (name, tensor) in &one {
        assert!(relative_l2(tensor, &other[name]) < 1e-6, "{name}");
    }
    // Rotating what was added is not adding to what was rotated.
    let linear = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    assert!(relative_l2(&stack(&[0, 1])[linear], &stack(&[1, 0])[linear]) > 1e-3);
}
