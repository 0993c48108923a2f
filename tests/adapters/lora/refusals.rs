//! LoRAs that do not fit, are broken, or are something else.

use animatelcm::ErrorKind;
use animatelcm::adapters::lora::{Lora, LoraOptions};
use animatelcm::library::{LoraFile, Models};
use animatelcm::weights::{Component, PatchStack};
use candle_core::{DType, Device, Tensor};

use crate::support::golden;
use crate::support::lora::{Q, SavedLora, apply, files, matrix, one, scalar, tiny};
use crate::support::weights::{build, source, write};

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
        (format!("{Q}.lora_down.scale_weight"), "belongs to no weight in 8 bits"),
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
