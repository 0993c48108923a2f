//! By how much a LoRA changes a weight.

use std::collections::BTreeSet;

use animatelcm::adapters::lora::{LoraOptions, LoraScale};
use animatelcm::library::{LoraFile, Models};
use animatelcm::weights::PatchStack;
use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::support::golden;
use crate::support::lora::{
    Q, Q_WEIGHT, SavedLora, all, apply, change, close, differs, files, matrix, one, scalar, tiny,
};
use crate::support::weights::{source, write};

#[test]
fn factors_of_blocks_hit_the_blocks_of_the_original_layout() {
    // The original layout numbers its blocks one after the other, a block for each layer and each change of size.
    let config: Value = serde_json::from_slice(
        &std::fs::read(golden::path("tiny/model/unet/config.json")).unwrap(),
    )
    .unwrap();
    let levels = config["block_out_channels"].as_array().unwrap().len();
    let layers = config["layers_per_block"].as_u64().unwrap() as usize;
    let mut blocks: Vec<(String, usize)> = vec![("conv_in.".into(), 1), ("mid_block.".into(), 13)];
    let (mut input, mut output) = (1, 0);
    for level in 0..levels {
        for layer in 0..layers {
            for kind in ["resnets", "attentions", "motion_modules"] {
                blocks.push((format!("down_blocks.{level}.{kind}.{layer}."), input + 1));
            }
            input += 1;
        }
        blocks.push((format!("down_blocks.{level}.downsamplers."), input + 1));
        input += 1;
        for layer in 0..=layers {
            for kind in ["resnets", "attentions", "motion_modules"] {
                blocks.push((format!("up_blocks.{level}.{kind}.{layer}."), output + 14));
            }
            output += 1;
        }
        blocks.push((format!("up_blocks.{level}.upsamplers."), output + 13));
    }
    let checkpoint = tiny();
    let plain = all(&checkpoint, &PatchStack::new());
    let lora = source("tiny/extras/lora-kohya.safetensors");
    let (whole, full) = apply(&checkpoint, &lora, &LoraOptions::default()).unwrap();
    // Every block has a factor of its own, one of them none.
    let factors: Vec<f64> = (0..26).map(|i| f64::from(i) / 8.0 - 0.375).collect();
    let text = factors.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let options = LoraOptions { blocks: Some(text.parse().unwrap()), ..LoraOptions::default() };
    let (report, patched) = apply(&checkpoint, &lora, &options).unwrap();
    assert!(report.switched_off > 0, "no module has factor 0");
    assert_eq!(
        report.in_unet + report.in_text + report.switched_off,
        whole.in_unet + whole.in_text
    );
    let mut seen = BTreeSet::new();
    for (name, tensor) in &patched {
        if !differs(&full[name], &plain[name]) {
            assert!(!differs(tensor, &plain[name]), "{name}");
            continue;
        }
        let block = blocks.iter().find(|(start, _)| name.starts_with(start.as_str()));
        let is_text = name.starts_with("text_model.");
        let place = if is_text { Some(0) } else { block.map(|(_, place)| *place) };
        seen.insert(place);
        let factor = place.map_or(1.0, |place| factors[place]);
        let wanted = ((&full[name] - &plain[name]).unwrap() * factor).unwrap();
        let found = (tensor - &plain[name]).unwrap();
        let scale = wanted.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let error = (found - wanted).unwrap().abs().unwrap().max_all().unwrap();
        assert!(error.to_scalar::<f32>().unwrap() <= scale * 1e-3 + 1e-6, "{name}");
    }
    assert!(seen.len() > 6, "{seen:?}");
}

#[test]
fn ranks_and_alphas_are_each_modules_own() {
    let about = golden::json("lora/lora");
    let wanted: BTreeSet<usize> = about["modules"]
        .as_object()
        .unwrap()
        .values()
        .map(|module| module["rank"].as_u64().unwrap() as usize)
        .collect();
    let checkpoint = tiny();
    let lora = source("lora/kohya.safetensors");
    let (report, _) = apply(&checkpoint, &lora, &LoraOptions::default()).unwrap();
    assert_eq!(report.ranks, wanted);
    assert_eq!(report.family, "LoRA");
    assert_eq!(
        report.to_string(),
        "LoRA `test`: rank 1/2/3/4/5, 20 of 24 modules in the unet, 4 in the text encoder"
    );
}

#[test]
fn the_factor_is_strength_times_alpha_over_rank() {
    let alpha = format!("{Q}.alpha");
    let with_alpha = one(&[(&alpha, scalar(0.5))]);
    close(change(&with_alpha, &LoraOptions::with_strength(2.0)), 6.0 * 2.0 * 0.25);
    close(change(&one(&[]), &LoraOptions::with_strength(2.0)), 6.0 * 2.0);
    // Kohya's "as the rank".
    close(change(&one(&[(&alpha, scalar(0.0))]), &LoraOptions::default()), 6.0);
    let fixed = LoraOptions { scale: LoraScale::Fixed(0.125), ..LoraOptions::with_strength(0.8) };
    close(change(&with_alpha, &fixed), 6.0 * 0.8 * 0.125);
}

#[test]
fn peft_states_alpha_beside_the_tensors() {
    let module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    let folder = tempfile::tempdir().unwrap();
    let down: Vec<u8> = [3f32; 32].iter().flat_map(|v| v.to_le_bytes()).collect();
    let up: Vec<u8> = [1f32; 32].iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = |shape: &[usize], bytes| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes)
            .unwrap()
    };
    let tensors = [
        (format!("{module}.lora_A.weight"), view(&[2, 16], &down)),
        (format!("{module}.lora_B.weight"), view(&[16, 2], &up)),
    ];
    let metadata = serde_json::json!({"unet.r": 2, "unet.lora_alpha": 5}).to_string();
    let header = std::collections::HashMap::from([("lora_adapter_metadata".to_owned(), metadata)]);
    let path = folder.path().join("pytorch_lora_weights.safetensors");
    std::fs::write(&path, safetensors::serialize(tensors, Some(header)).unwrap()).unwrap();
    let saved = SavedLora { folder };
    std::fs::rename(path, saved.folder.path().join("lora.safetensors")).unwrap();
    close(change(&saved, &LoraOptions::default()), 6.0 * 2.5);
}

#[test]
fn pefts_own_folder_states_alpha_in_a_file() {
    let module = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    write(
        &path,
        &[
            (&format!("{module}.lora_A.weight"), matrix(2, 16, 3.0)),
            (&format!("{module}.lora_B.weight"), matrix(16, 2, 1.0)),
        ],
    );
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_rslora": true}"#;
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    let checkpoint = tiny();
    let (_, patched) = apply(&checkpoint, &path.into(), &LoraOptions::default()).unwrap();
    let plain = all(&checkpoint, &PatchStack::new());
    let difference = (&patched[Q_WEIGHT] - &plain[Q_WEIGHT]).unwrap();
    let first = difference.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
    close(first, 6.0 * 8.0 / 2f32.sqrt());
}

#[test]
fn tuckers_form_of_a_convolution_is_multiplied_out() {
    let module = "lora_unet_down_blocks_0_resnets_0_conv1";
    let weight = "down_blocks.0.resnets.0.conv1.weight";
    let arange = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| ((i * 7) % 11) as f32 / 11.0 - 0.4).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let (up, mid, down) = (arange(&[8, 2, 1, 1]), arange(&[2, 3, 3, 3]), arange(&[3, 8, 1, 1]));
    let saved = SavedLora::new(&[
        (&format!("{module}.lora_up.weight"), up.clone()),
        (&format!("{module}.lora_mid.weight"), mid.clone()),
        (&format!("{module}.lora_down.weight"), down.clone()),
    ]);
    let checkpoint = tiny();
    let (_, patched) = apply(&checkpoint, &saved.source(), &LoraOptions::default()).unwrap();
    let plain = all(&checkpoint, &PatchStack::new());
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (u, m, d) = (flat(&up), flat(&mid), flat(&down));
    let got = flat(&(&patched[weight] - &plain[weight]).unwrap());
    for o in 0..8 {
        for i in 0..8 {
            for k in 0..9 {
                let mut want = 0.0;
                for a in 0..2 {
                    for b in 0..3 {
                        want += u[o * 2 + a] * m[(a * 3 + b) * 9 + k] * d[b * 8 + i];
                    }
                }
                close(got[(o * 8 + i) * 9 + k], want);
            }
        }
    }
}

#[test]
fn strengths_of_unet_and_text_are_separate() {
    let checkpoint = tiny();
    let plain = all(&checkpoint, &PatchStack::new());
    let lora = source("lora/kohya.safetensors");
    for (unet, text) in [(0.0, 1.0), (1.0, 0.0)] {
        let options =
            LoraOptions { unet_strength: unet, text_strength: text, ..LoraOptions::default() };
        let (report, patched) = apply(&checkpoint, &lora, &options).unwrap();
        assert_eq!((report.in_unet == 0, report.in_text == 0), (unet == 0.0, text == 0.0));
        assert_eq!(report.in_unet + report.in_text + report.switched_off, report.modules);
        for (name, tensor) in &patched {
            let strength = if name.starts_with("text_model.") { text } else { unet };
            if strength == 0.0 {
                assert!(!differs(tensor, &plain[name]), "{name}");
            }
        }
    }
}

#[test]
fn loras_stack() {
    let checkpoint = tiny();
    let mut patches = PatchStack::new();
    for strength in [0.5, 0.25] {
        let options = LoraOptions::with_strength(strength);
        one(&[]).open().unwrap().apply(&checkpoint, &options, &mut patches).unwrap();
    }
    // The files may be gone by now: they stay mapped.
    let patched = all(&checkpoint, &patches);
    let plain = all(&checkpoint, &PatchStack::new());
    let difference = (&patched[Q_WEIGHT] - &plain[Q_WEIGHT]).unwrap();
    close(difference.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0], 6.0 * 0.75);
}

#[test]
fn a_negative_alpha_turns_the_change_around() {
    let alpha = format!("{Q}.alpha");
    close(change(&one(&[(&alpha, scalar(-1.0))]), &LoraOptions::default()), -3.0);
}

#[test]
fn a_bias_changes_by_the_strength_and_not_by_alpha() {
    let module = "lycoris_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0";
    let bias = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.bias";
    let saved = SavedLora::new(&[
        (&format!("{module}.lora_down.weight"), matrix(2, 16, 1.0)),
        (&format!("{module}.lora_up.weight"), matrix(16, 2, 1.0)),
        (&format!("{module}.alpha"), scalar(7.0)),
        (&format!("{module}.diff_b"), Tensor::full(3f32, 16, &Device::Cpu).unwrap()),
    ]);
    let checkpoint = tiny();
    let options = LoraOptions::with_strength(0.5);
    let (report, patched) = apply(&checkpoint, &saved.source(), &options).unwrap();
    assert_eq!((report.modules, report.in_unet), (1, 1));
    let plain = all(&checkpoint, &PatchStack::new());
    for value in (&patched[bias] - &plain[bias]).unwrap().to_vec1::<f32>().unwrap() {
        close(value, 1.5);
    }
}

#[test]
fn strengths_of_unet_and_text_encoder_reach_the_weights() {
    let lora = || LoraFile::new(golden::path("lora/kohya.safetensors"));
    let counts = |scale, text_scale| {
        let models = Models::open(&files(vec![LoraFile { scale, text_scale, ..lora() }])).unwrap();
        let report = &models.adapters()[0];
        (report.in_unet, report.in_text, report.switched_off)
    };
    assert_eq!(counts(0.8, None), (20, 4, 0));
    assert_eq!(counts(0.8, Some(0.0)), (20, 0, 4));
    assert_eq!(counts(0.0, Some(0.5)), (0, 4, 20));
    assert_eq!(counts(0.0, None), (0, 0, 24));
}
