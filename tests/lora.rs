//! Every spelling of a LoRA changes the right weights by the right amount.

use std::collections::{BTreeMap, BTreeSet};

use animatelcm::adapters::lora::{Lora, LoraOptions, LoraReport, LoraScale};
use animatelcm::library::{Base, Files, LoraFile, Models};
use animatelcm::weights::{Checkpoint, Component, PatchStack, Source};
use animatelcm::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::support::close::{assert_relative, relative_l2};
use crate::support::golden;
use crate::weights::{build, published_source, write};

fn source(name: &str) -> Source {
    Source::File(golden::path(name))
}

fn tiny() -> Checkpoint {
    let mut checkpoint = Checkpoint::new();
    for component in Component::BASE {
        checkpoint.add_component(component, &source("tiny/model")).unwrap();
    }
    checkpoint.add_motion(&source("tiny/model/motion_adapter")).unwrap();
    checkpoint
}

fn all(checkpoint: &Checkpoint, patches: &PatchStack) -> BTreeMap<String, Tensor> {
    [Component::UNet, Component::Text]
        .into_iter()
        .flat_map(|component| build(checkpoint, component, DType::F32, patches).unwrap().0)
        .collect()
}

fn apply(
    checkpoint: &Checkpoint,
    lora: &Source,
    options: &LoraOptions,
) -> Result<(LoraReport, BTreeMap<String, Tensor>)> {
    let mut patches = PatchStack::new();
    let report = Lora::open(lora, "test")?.apply(checkpoint, options, &mut patches)?;
    Ok((report, all(checkpoint, &patches)))
}

fn differs(a: &Tensor, b: &Tensor) -> bool {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    flat(a) != flat(b)
}

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

// ---- other families

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
fn kinds_of_peft_that_are_not_supported_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    let module = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    let (down, up) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    write(&path, &[(&down, matrix(2, 16, 1.0)), (&up, matrix(16, 2, 1.0))]);
    for (config, what) in [
        (r#"{"peft_type": "MISS"}"#, "is a `MISS` of PEFT, which is not supported"),
        (r#"{"peft_type": "LORA", "init_lora_weights": "pissa"}"#, "weights that `pissa` changed"),
    ] {
        std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        let error = Lora::open(&folder.path().into(), "test").unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(error.kind(), ErrorKind::Weights);
    }
}

// ---- small LoRAs made here

fn matrix(rows: usize, columns: usize, value: f32) -> Tensor {
    Tensor::full(value, (rows, columns), &Device::Cpu).unwrap()
}

fn scalar(value: f32) -> Tensor {
    Tensor::full(value, (), &Device::Cpu).unwrap()
}

struct SavedLora {
    folder: tempfile::TempDir,
}

impl SavedLora {
    fn new(tensors: &[(&str, Tensor)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("lora.safetensors"), tensors);
        Self { folder }
    }

    fn source(&self) -> Source {
        self.folder.path().join("lora.safetensors").into()
    }

    fn open(&self) -> Result<Lora> {
        Lora::open(&self.source(), "made")
    }

    fn apply(&self, options: &LoraOptions) -> Result<LoraReport> {
        self.open()?.apply(&tiny(), options, &mut PatchStack::new())
    }

    fn error(&self) -> Error {
        let error = self.apply(&LoraOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights);
        error
    }
}

const Q: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
const Q_WEIGHT: &str = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight";

/// A LoRA of rank 2 of one 16x16 matrix, each element of whose product is 6.
fn one(extra: &[(&str, Tensor)]) -> SavedLora {
    let (down, up) = (format!("{Q}.lora_down.weight"), format!("{Q}.lora_up.weight"));
    let mut tensors = vec![(down.as_str(), matrix(2, 16, 3.0)), (up.as_str(), matrix(16, 2, 1.0))];
    tensors.extend(extra.iter().cloned());
    SavedLora::new(&tensors)
}

/// By how much a LoRA changes each element of its one matrix.
fn change(saved: &SavedLora, options: &LoraOptions) -> f32 {
    let checkpoint = tiny();
    let (_, patched) = apply(&checkpoint, &saved.source(), options).unwrap();
    let plain = all(&checkpoint, &PatchStack::new());
    let first = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
    first(&patched[Q_WEIGHT]) - first(&plain[Q_WEIGHT])
}

fn close(got: f32, want: f32) {
    assert!((got - want).abs() < 1e-4, "{got} is not {want}");
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
fn a_lora_that_matches_nothing_fails() {
    let saved = SavedLora::new(&[
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", matrix(2, 16, 1.0)),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", matrix(16, 2, 1.0)),
    ]);
    let error = saved.error();
    assert!(error.to_string().contains("none of its 1 modules is in this model"), "{error}");
    assert!(error.hint().unwrap().contains("XL"));
    // Nothing is nothing, even where a part is enough.
    let partial = LoraOptions { allow_partial: true, ..LoraOptions::default() };
    assert!(saved.apply(&partial).is_err());
}

#[test]
fn a_lora_of_which_a_part_matches_fails_unless_that_is_allowed() {
    let saved = one(&[
        ("lora_unet_not_there.lora_down.weight", matrix(2, 16, 1.0)),
        ("lora_unet_not_there.lora_up.weight", matrix(16, 2, 1.0)),
        ("somebody.elses", matrix(2, 16, 1.0)),
    ]);
    let error = saved.error();
    assert!(
        error
            .to_string()
            .contains("1 of its 2 modules are not in this model: `lora_unet_not_there`"),
        "{error}"
    );
    let partial = LoraOptions { allow_partial: true, ..LoraOptions::default() };
    let report = saved.apply(&partial).unwrap();
    assert_eq!(report.unmatched, ["lora_unet_not_there", "somebody.elses"]);
    assert_eq!(report.in_unet, 1);
}

#[test]
fn a_motion_lora_without_motion_modules_fails() {
    let mut checkpoint = tiny();
    checkpoint.ignore(Component::UNet, "no motion", |name| name.contains("motion_modules"));
    let lora = source("tiny/extras/motion-lora.safetensors");
    let error = apply(&checkpoint, &lora, &LoraOptions::default()).unwrap_err();
    assert_eq!(error.hint().unwrap(), "a motion LoRA needs motion modules");
}

#[test]
fn loras_of_other_sizes_are_refused_before_anything_is_loaded() {
    let saved = SavedLora::new(&[
        (&format!("{Q}.lora_down.weight"), matrix(2, 32, 1.0)),
        (&format!("{Q}.lora_up.weight"), matrix(16, 2, 1.0)),
    ]);
    let error = saved.error();
    assert!(error.to_string().contains("it changes [16, 32], the weight is [16, 16]"), "{error}");
}

#[test]
fn halves_of_modules_are_refused() {
    let lone = SavedLora::new(&[(&format!("{Q}.lora_down.weight"), matrix(2, 16, 1.0))]);
    assert!(lone.error().to_string().contains("it has no up matrix"));
    let unlike = SavedLora::new(&[
        (&format!("{Q}.lora_down.weight"), matrix(2, 16, 1.0)),
        (&format!("{Q}.lora_up.weight"), matrix(16, 3, 1.0)),
    ]);
    assert!(unlike.error().to_string().contains("do not go together"));
    let twice = one(&[
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
            matrix(2, 16, 1.0),
        ),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight",
            matrix(16, 2, 1.0),
        ),
    ]);
    assert!(twice.error().to_string().contains("more than once"));
}

#[test]
fn families_that_are_not_supported_are_named() {
    for (part, what) in
        [(".lambda_layer", "T-LoRA"), (".lora_E", "AdaLoRA"), (".oft_r", "OFT of PEFT before 0.16")]
    {
        let name = format!("{Q}{part}");
        let error = one(&[(&name, matrix(1, 1, 1.0))]).error();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn files_with_the_names_of_a_lora_that_are_none_are_named() {
    let (down, up) = (format!("{Q}.lora_down.weight"), format!("{Q}.lora_up.weight"));
    let lora = [(down.as_str(), matrix(2, 16, 0.1)), (up.as_str(), matrix(16, 2, 0.1))];
    for (name, what) in [
        (format!("{Q}.lora_down.scale_weight"), "is stored in fp8 with scales beside it"),
        ("image_proj.perceiver_resampler.proj_in.weight".into(), "is an IP-Adapter FaceID"),
    ] {
        let mut tensors = lora.to_vec();
        tensors.push((&name, matrix(1, 1, 1.0)));
        let error = one(&tensors).error();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_checkpoint_given_as_a_lora_is_refused() {
    let error = Lora::open(&source("tiny/model/vae/diffusion_pytorch_model.safetensors"), "vae")
        .unwrap_err();
    assert!(error.to_string().contains("adapter `vae`: is not a LoRA"), "{error}");
}

#[test]
fn a_lora_with_a_nan_fails_and_names_it() {
    let saved = SavedLora::new(&[
        (&format!("{Q}.lora_down.weight"), matrix(2, 16, f32::NAN)),
        (&format!("{Q}.lora_up.weight"), matrix(16, 2, 1.0)),
    ]);
    let checkpoint = tiny();
    let mut patches = PatchStack::new();
    let lora = saved.open().unwrap();
    lora.apply(&checkpoint, &LoraOptions::default(), &mut patches).unwrap();
    let error = build(&checkpoint, Component::UNet, DType::F16, &patches).unwrap_err();
    assert!(error.to_string().contains("lora_down.weight` holds the value NaN"), "{error}");
}

#[test]
fn an_alpha_that_is_no_number_fails_and_is_named() {
    let alpha = format!("{Q}.alpha");
    let error = one(&[(&alpha, scalar(f32::NAN))]).open().unwrap_err();
    assert!(error.to_string().contains(&format!("`{alpha}` holds the value NaN")), "{error}");
    let error = one(&[(&alpha, matrix(1, 2, 1.0))]).open().unwrap_err();
    assert!(error.to_string().contains("has 2 values where one is expected"), "{error}");
}

#[test]
fn a_negative_alpha_turns_the_change_around() {
    let alpha = format!("{Q}.alpha");
    close(change(&one(&[(&alpha, scalar(-1.0))]), &LoraOptions::default()), -3.0);
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

#[test]
fn broken_files_are_refused_by_name() {
    let saved = one(&[]);
    let path = saved.folder.path().join("lora.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    for bytes in [vec![], whole[..4].to_vec(), whole[..whole.len() - 1].to_vec(), huge] {
        std::fs::write(&path, bytes).unwrap();
        let error = saved.open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights);
        assert!(error.to_string().contains("lora.safetensors"), "{error}");
    }
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

/// An adapter of the 16x16 matrix `Q` of these parts.
fn of_q(parts: &[(&str, &[usize])]) -> SavedLora {
    let tensors: Vec<(String, Tensor)> = parts
        .iter()
        .map(|(part, shape)| {
            (format!("{Q}.{part}"), Tensor::ones(*shape, DType::F32, &Device::Cpu))
        })
        .map(|(name, tensor)| (name, tensor.unwrap()))
        .collect();
    let tensors: Vec<(&str, Tensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    SavedLora::new(&tensors)
}

#[test]
fn broken_modules_of_every_family_are_refused_by_what_is_wrong() {
    let down_and_up = [("lora_down.weight", &[2, 16][..]), ("lora_up.weight", &[16, 2])];
    let with =
        |part: &'static str, shape: &'static [usize]| [&down_and_up[..], &[(part, shape)]].concat();
    let w1 = [("hada_w1_a", &[16, 2][..]), ("hada_w1_b", &[2, 16])];
    for (parts, wrong) in [
        (w1.to_vec(), "it has no w2_a matrix"),
        (
            [&w1[..], &[("hada_w2_a", &[16, 3][..]), ("hada_w2_b", &[3, 16])]].concat(),
            "its halves, [16, 16] of rank 2 and [16, 16] of rank 3, do not go together",
        ),
        (
            [&w1[..], &[("hada_w2_a", &[16, 3][..]), ("hada_w2_b", &[2, 16])]].concat(),
            "w2_a [16, 3] and w2_b [2, 16] do not go together",
        ),
        (vec![("lokr_w1", &[4, 4])], "it has no w2 matrix"),
        (vec![("lokr_w1", &[4, 4]), ("lokr_w2_a", &[4, 1])], "it has no w2_b matrix"),
        (
            vec![("lokr_w1", &[4, 4]), ("lokr_w2", &[4, 5])],
            "it changes [16, 20], the weight is [16, 16]",
        ),
        (vec![("on_input", &[]), ("weight", &[12])], "it scales 12 inputs, the weight is [16, 16]"),
        (vec![("on_input", &[])], "it has no weight matrix"),
        (vec![("oft_blocks", &[4, 3, 3])], "it turns blocks of [4, 3, 3]"),
        (vec![("oft_blocks", &[0, 4, 4, 4])], "its blocks are [0, 4, 4, 4], not square"),
        (vec![("oft_blocks", &[4, 4, 3])], "its blocks are [4, 4, 3], not square"),
        // A butterfly of four stages over groups of four would mix 32 outputs.
        (vec![("oft_blocks", &[4, 4, 4, 4])], "it turns blocks of [4, 4, 4, 4]"),
        (vec![("oft_blocks", &[4, 4, 4]), ("rescale", &[8, 1])], "it rescales 8 outputs"),
        (vec![("rescale", &[16, 1])], "it has no blocks matrix"),
        (vec![("diff", &[16, 12])], "it changes [16, 12], the weight is [16, 16]"),
        (vec![("diff", &[16])], "it changes [16], the weight is [16, 16]"),
        (with("dora_scale", &[12, 1]), "its magnitude (DoRA) is [12, 1], the weight is [16, 16]"),
        (vec![("dora_scale", &[16, 1])], "nothing that it belongs to"),
        (vec![("oft_blocks", &[4, 4, 4]), ("dora_scale", &[16, 1])], "nothing that it belongs to"),
        (with("hada_w1_a", &[16, 2]), "is both LoHa and LoRA"),
        // This layer has no bias.
        (with("diff_b", &[16]), "this model has no such weight"),
        (with("lora_mid.weight", &[2, 3]), "and mid [2, 3] do not go together"),
        (vec![("lora_down.weight", &[0, 16]), ("lora_up.weight", &[16, 0])], "do not go together"),
        (vec![("a1.weight", &[16, 2]), ("a2.weight", &[2, 16])], "it has no b1 matrix"),
        (
            vec![
                ("a1.weight", &[16, 2]),
                ("a2.weight", &[2, 16]),
                ("b1.weight", &[16, 3]),
                ("b2.weight", &[3, 16]),
            ],
            "b1 [16, 3] and b2 [3, 16] do not go together",
        ),
        (vec![("ia3_l", &[12, 1])], "it scales 12 outputs, the weight is [16, 16]"),
        (vec![("ia3_l", &[1, 16, 1, 1])], "there is none"),
        (vec![("oft_R.weight", &[4, 5])], "not upper triangles of square matrices"),
        (vec![("oft_R.weight", &[3, 6])], "it turns 3 groups of 4 inputs, the weight is [16, 16]"),
        (vec![("oft_R.weight", &[1, 3])], "it turns 1 groups of 3 inputs, the weight is [16, 16]"),
        (vec![("boft_R", &[1, 4, 4, 4])], "it has no factors matrix"),
        (
            vec![("boft_R", &[4, 4, 4, 4]), ("boft_s", &[16, 1])],
            "it turns 4 groups of 4 inputs in 4 stages, the weight is [16, 16]",
        ),
        (vec![("boft_R", &[1, 4, 4, 4]), ("boft_s", &[8, 1])], "it scales 8 outputs"),
        (vec![("hra_u", &[12, 3])], "it turns 12 inputs, the weight is [16, 16]"),
        (vec![("hra_u", &[16, 3]), ("oft_R.weight", &[4, 6])], "is both HRA and OFT"),
        (vec![("oft_blocks", &[4, 4, 4]), ("oft_R.weight", &[4, 6])], "is both OFT and OFT"),
        (with("bias_values", &[3]), "it has no stray_indices matrix"),
    ] {
        let error = of_q(&parts).error().to_string();
        assert!(error.contains(wrong), "{error}");
        assert!(error.starts_with("adapter `made`: ") && error.contains(Q), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn adapters_for_other_models_are_told_apart() {
    let attends = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
    for (module, inputs, model) in [
        (attends, 1024, "it was made for Stable Diffusion 2"),
        (attends, 2048, "it was made for Stable Diffusion XL"),
        (attends, 77, "it was made for a model of other sizes"),
        ("lora_unet_nowhere", 64, "it was made for another kind of model"),
        (
            "lora_unet_input_blocks_7_1_transformer_blocks_1_ff_net_2",
            64,
            "it was made for Stable Diffusion XL",
        ),
        ("lora_unet_single_blocks_3_linear1", 64, "it was made for Flux"),
        ("transformer.single_transformer_blocks.1.proj", 64, "it was made for Flux"),
        ("lora_unet_joint_blocks_3_x_block_attn_qkv", 64, "it was made for Stable Diffusion 3"),
        ("diffusion_model.blocks.0.cross_attn.k", 64, "it was made for Wan"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", 64, "it was made for Stable Diffusion XL"),
        (
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
            1024,
            "it was made for Stable Diffusion 2",
        ),
    ] {
        let saved = SavedLora::new(&[
            (&format!("{module}.lora_down.weight"), matrix(2, inputs, 1.0)),
            (&format!("{module}.lora_up.weight"), matrix(16, 2, 1.0)),
        ]);
        let error = saved.error();
        assert!(error.hint().unwrap().starts_with(model), "{module}: {:?}", error.hint());
    }
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

// ---- the first LoRAs, and ComfyUI's

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
        std::fs::write(&path, crate::checkpoints::torch_list(&tensors)).unwrap();
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

// ---- as parts of a model

fn files(loras: Vec<LoraFile>) -> Files {
    Files { loras, ..Files::new(Base::Folder(golden::path("tiny/model"))) }
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

#[test]
fn an_adapter_given_twice_is_refused() {
    let path = golden::path("lora/kohya.safetensors");
    let same = golden::path("lora/../lora/kohya.safetensors");
    let loras = vec![LoraFile::new(path.clone()), LoraFile::new(same)];
    let error = Models::open(&files(loras)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weights);
    assert!(error.to_string().contains("kohya.safetensors`: is given twice"), "{error}");
    assert!(error.hint().unwrap().contains("sum of its strengths"));
    // The same name in two folders is two adapters.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("kohya.safetensors");
    std::fs::copy(&path, &copy).unwrap();
    let models = Models::open(&files(vec![LoraFile::new(path), LoraFile::new(copy)])).unwrap();
    let names: Vec<&str> = models.adapters().iter().map(|report| report.name.as_str()).collect();
    assert_ne!(names[0], names[1]);
}
