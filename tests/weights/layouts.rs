//! Any published file becomes the same canonical tensors, and every tensor is accounted for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use animatelcm::Stop;
use animatelcm::adapters::lora::{Lora, LoraOptions};
use animatelcm::library::{Base, Files, Models};
use animatelcm::weights::{
    Archive, Checkpoint, Component, ElementType, Layout, PatchStack, Source, sha256,
};
use candle_core::{DType, Device, Tensor};

use crate::support::close::assert_relative;
use crate::support::golden;
use crate::support::weights::{Bits, bits, build, bytes_of, f32s, opened, source, tiny, write};

fn tiny_with_motion() -> Checkpoint {
    let mut checkpoint = tiny();
    checkpoint.add_motion(&source("tiny/model/motion_adapter")).unwrap();
    checkpoint
}

/// Copies what `layouts.json` lists under an entry into a folder.
fn assemble(entry: &serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (place, from) in entry["files"].as_object().unwrap() {
        let place = folder.path().join(place);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::copy(golden::path(from.as_str().unwrap()), place).unwrap();
    }
    folder
}

fn is_motion(name: &str) -> bool {
    name.contains("motion_modules")
}

#[test]
fn every_layout_of_the_base_gives_bit_identical_tensors() {
    let layouts = golden::json("layouts/layouts");
    let wanted = tiny_with_motion();
    for dtype in [DType::F32, DType::F16] {
        let wanted: BTreeMap<Component, Bits> =
            Component::BASE.into_iter().map(|c| (c, bits(&wanted, c, dtype))).collect();
        let bases = layouts["bases"].as_object().unwrap();
        assert!(bases.len() >= 10);
        for (name, entry) in bases {
            let folder = assemble(entry);
            let single: Vec<PathBuf> = ["checkpoint.safetensors", "checkpoint.ckpt"]
                .iter()
                .map(|file| folder.path().join(file))
                .filter(|path| path.exists())
                .collect();
            let mut checkpoint = Checkpoint::new();
            if let Some(file) = single.first() {
                checkpoint.add_single_file(&Source::File(file.clone())).unwrap();
            } else {
                let source = Source::from(folder.path());
                for component in Component::BASE {
                    checkpoint.add_component(component, &source).unwrap();
                }
            }
            assert_eq!(checkpoint.has(Component::Vae), name != "single_novae");
            for component in Component::BASE.into_iter().filter(|c| checkpoint.has(*c)) {
                let mut wanted = wanted[&component].clone();
                if entry["motion"] != true {
                    wanted.retain(|name, _| !is_motion(name));
                }
                assert!(bits(&checkpoint, component, dtype) == wanted, "{name}: {component}");
            }
        }
    }
}

#[test]
fn every_layout_of_the_motion_modules_gives_bit_identical_tensors() {
    let layouts = golden::json("layouts/layouts");
    let wanted = bits(&tiny_with_motion(), Component::UNet, DType::F32);
    let motions = layouts["motions"].as_object().unwrap();
    assert!(motions.len() >= 5);
    for (name, entry) in motions {
        let folder = assemble(entry);
        let mut files = std::fs::read_dir(folder.path()).unwrap();
        let path = files.next().unwrap().unwrap().path();
        let mut checkpoint = tiny();
        assert!(!checkpoint.has_motion());
        checkpoint.add_motion(&Source::File(path)).unwrap();
        assert!(checkpoint.has_motion());
        let mut wanted = wanted.clone();
        if entry["mid"] == false {
            wanted.retain(|name, _| !name.starts_with("mid_block.motion_modules."));
        }
        assert!(bits(&checkpoint, Component::UNet, DType::F32) == wanted, "{name}");
        // The tiny model's tables have 8 positions; AnimateLCM's own files have none.
        let stored = (!name.starts_with("lcm")).then_some(8);
        assert_eq!(checkpoint.stored_positions(), stored, "{name}");
    }
}

#[test]
fn an_embedded_file_is_as_good_as_one_on_disk() {
    let bytes = std::fs::read(golden::path("layouts/ldm.safetensors")).unwrap();
    let embedded = Source::Embedded { name: "tiny", bytes: bytes.leak() };
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_single_file(&embedded).unwrap();
    assert!(
        bits(&checkpoint, Component::Vae, DType::F32) == bits(&tiny(), Component::Vae, DType::F32)
    );
    let hash = |source| sha256(source, &Stop::default()).unwrap();
    assert_eq!(hash(&embedded), hash(&source("layouts/ldm.safetensors")));
}

#[test]
fn the_report_accounts_for_every_tensor() {
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_single_file(&source("layouts/ldm.ckpt")).unwrap();
    let archive = &checkpoint.archives()[0];
    assert_eq!(archive.layout(), Layout::TorchZip);
    let used: usize = Component::BASE.iter().map(|c| checkpoint.names(*c).count()).sum();
    let ignored: BTreeSet<&str> = checkpoint.ignored().map(|i| i.name.as_str()).collect();
    assert_eq!(used + ignored.len(), archive.names().count());
    assert!(ignored.contains("model_ema.decay"));
    assert!(ignored.contains("betas"));

    let (_, report) = build(&checkpoint, Component::UNet, DType::F16, &PatchStack::new()).unwrap();
    assert_eq!(report.used, checkpoint.names(Component::UNet).count());
    assert_eq!(report.files.values().sum::<usize>(), report.used);
    let values: usize = checkpoint
        .names(Component::UNet)
        .map(|name| checkpoint.shape_of(Component::UNet, name).unwrap().iter().product::<usize>())
        .sum();
    assert_eq!(report.bytes, 2 * values as u64);
    let reasons = report.ignored_by_reason();
    assert!(reasons["averaged copies; the plain weights are used"] > 100, "{report}");
    assert!(reasons["the trainer's noise table; schedules are computed"] == 4, "{report}");
}

#[test]
fn the_later_file_wins_and_the_report_says_so() {
    let mut checkpoint = tiny();
    let before = bits(&checkpoint, Component::UNet, DType::F32);
    let name = "conv_norm_out.weight";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("personal.safetensors");
    write(&file, &[("model.diffusion_model.out.0.weight", f32s(&[8], 0.5))]);
    checkpoint.add_single_file(&Source::File(file.clone())).unwrap();
    let (tensors, report) =
        build(&checkpoint, Component::UNet, DType::F32, &PatchStack::new()).unwrap();
    assert_eq!(tensors[name].to_vec1::<f32>().unwrap(), [0.5; 8]);
    assert_eq!(report.used, before.len());
    let replaced = &report.replaced[0];
    assert_eq!((replaced.count, &replaced.after), (1, &file));
    assert!(replaced.before.ends_with("unet/diffusion_pytorch_model.safetensors"));
}

#[test]
fn a_whole_checkpoint_can_lend_its_vae() {
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_component(Component::Vae, &source("layouts/ldm.safetensors")).unwrap();
    assert!(checkpoint.has(Component::Vae) && !checkpoint.has(Component::UNet));
    assert!(checkpoint.ignored().any(|i| i.why == "not asked for"));
    let error = checkpoint
        .add_component(Component::Vae, &source("layouts/ldm_novae.safetensors"))
        .unwrap_err();
    assert!(error.to_string().contains("has no vae weights"), "{error}");
}

/// The value of a byte as `float8_e4m3fn` or `float8_e5m2`.
fn fp8(dtype: safetensors::Dtype, byte: u8) -> f32 {
    let (bits, bias) = if dtype == safetensors::Dtype::F8_E4M3 { (3, 7) } else { (2, 15) };
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from((byte & 0x7f) >> bits);
    let fraction = f32::from(byte & ((1 << bits) - 1)) / (1 << bits) as f32;
    let value = match exponent {
        0 => fraction * 2f32.powi(1 - bias),
        _ => (1.0 + fraction) * 2f32.powi(exponent - bias),
    };
    sign * value
}

/// Bytes that are finite in both types, all of them in turn.
fn fp8_bytes(count: usize) -> Vec<u8> {
    let finite = (0..=u8::MAX).filter(|byte| byte & 0x7f < 0x7c).collect::<Vec<_>>();
    (0..count).map(|i| finite[i * 7 % finite.len()]).collect()
}

fn in_fp8(dtype: safetensors::Dtype, shapes: &[(String, Vec<usize>)]) -> tempfile::NamedTempFile {
    let bytes: Vec<Vec<u8>> =
        shapes.iter().map(|(_, shape)| fp8_bytes(shape.iter().product())).collect();
    let tensors = shapes.iter().zip(&bytes).map(|((name, shape), bytes)| {
        (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), safetensors::serialize(tensors, None).unwrap()).unwrap();
    file
}

#[test]
fn checkpoints_and_loras_in_fp8_are_read() {
    let archive = Archive::open(&source("layouts/ldm.safetensors")).unwrap();
    let shapes: Vec<(String, Vec<usize>)> = archive
        .tensors()
        .filter(|(_, info)| info.element == ElementType::F16)
        .map(|(name, info)| (name.to_owned(), info.shape.clone()))
        .collect();
    for dtype in [safetensors::Dtype::F8_E4M3, safetensors::Dtype::F8_E5M2] {
        let want = |count| -> Vec<f32> {
            fp8_bytes(count).into_iter().map(|byte| fp8(dtype, byte)).collect()
        };
        let file = in_fp8(dtype, &shapes);
        let mut checkpoint = Checkpoint::new();
        checkpoint.add_single_file(&Source::from(file.path())).unwrap();
        for component in Component::BASE {
            let (tensors, report) =
                build(&checkpoint, component, DType::F32, &PatchStack::new()).unwrap();
            assert!(report.used > 10);
            for (name, tensor) in tensors {
                let got = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(got == want(got.len()), "{name} in {dtype:?}");
            }
        }

        let module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
        let (up, down) = (format!("{module}.lora_up.weight"), format!("{module}.lora_down.weight"));
        let file = in_fp8(dtype, &[(up, vec![16, 2]), (down, vec![2, 16])]);
        let mut patches = PatchStack::new();
        let lora = Lora::open(&Source::from(file.path()), "fp8").unwrap();
        lora.apply(&tiny(), &LoraOptions::default(), &mut patches).unwrap();
        let matrix = |shape| Tensor::from_vec(want(32), shape, &Device::Cpu).unwrap();
        let product = matrix((16, 2)).matmul(&matrix((2, 16))).unwrap();
        let weight = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight";
        let read = |patches: &PatchStack| {
            build(&tiny(), Component::UNet, DType::F32, patches).unwrap().0[weight].clone()
        };
        let got = (read(&patches) - read(&PatchStack::new())).unwrap();
        assert_relative(&got, &product, 1e-5);
    }
    // NaN in the one, infinity in the other.
    for (dtype, byte, value) in
        [(safetensors::Dtype::F8_E4M3, 0x7f, "NaN"), (safetensors::Dtype::F8_E5M2, 0x7c, "inf")]
    {
        let bytes = [0, byte];
        let view = safetensors::tensor::TensorView::new(dtype, vec![2], &bytes).unwrap();
        let archive = opened(safetensors::serialize([("w", view)], None).unwrap()).unwrap();
        let error = archive.tensor("w", DType::F32, &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains(value), "{error}");
    }
}

/// The tiny single-file checkpoint with other names.
fn renamed(rename: impl Fn(&str) -> String) -> (tempfile::TempDir, Source) {
    let archive = Archive::open(&source("layouts/ldm.safetensors")).unwrap();
    let tensors: Vec<(String, Tensor)> = archive
        .tensors()
        .filter(|(_, info)| info.element == ElementType::F16)
        .map(|(name, _)| (rename(name), archive.tensor(name, DType::F16, &Device::Cpu).unwrap()))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("renamed.safetensors");
    let tensors: Vec<(&str, Tensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    write(&path, &tensors);
    (folder, Source::File(path))
}

#[test]
fn the_vaes_attention_is_read_under_all_its_names() {
    let wanted = bits(&tiny(), Component::Vae, DType::F16);
    for names in [
        ["to_q", "to_k", "to_v", "to_out.0", "norm"],
        ["query", "key", "value", "proj_attn", "group_norm"],
        ["q", "k", "v", "proj_out", "norm"],
    ] {
        let (_folder, file) = renamed(|name| {
            let Some((head, tail)) = name.split_once(".mid.attn_1.") else { return name.into() };
            let (layer, kind) = tail.rsplit_once('.').unwrap();
            let old = ["q", "k", "v", "proj_out", "norm"];
            let layer = names[old.iter().position(|old| *old == layer).unwrap()];
            format!("{head}.mid.attn_1.{layer}.{kind}")
        });
        let mut checkpoint = Checkpoint::new();
        checkpoint.add_single_file(&file).unwrap();
        assert!(bits(&checkpoint, Component::Vae, DType::F16) == wanted, "{names:?}");
    }
}

#[test]
fn a_checkpoints_vae_does_not_matter_where_another_is_given() {
    let (_folder, file) = renamed(|name| name.replace(".mid.attn_1.", ".mid.strange."));
    let mut checkpoint = Checkpoint::new();
    let error = checkpoint.add_single_file(&file).unwrap_err();
    assert!(error.to_string().contains("tensors are not known in a LDM checkpoint"), "{error}");
    checkpoint.add_single_file_except(Component::Vae, &file).unwrap();
    assert!(checkpoint.has(Component::UNet) && !checkpoint.has(Component::Vae));

    let path = file.path().to_path_buf();
    let model = |vae: Option<PathBuf>| {
        let config = Some(golden::path("tiny/model"));
        Files { vae, config, ..Files::new(Base::File(path.clone())) }
    };
    let error = Models::open(&model(None)).unwrap_err();
    assert!(error.to_string().contains("tensors are not known in a LDM checkpoint"), "{error}");
    Models::open(&model(Some(golden::path("tiny/model/vae")))).unwrap();
    // Nor does it where another part of the file is wanted.
    checkpoint.add_component(Component::Text, &file).unwrap();
    assert!(checkpoint.add_component(Component::Vae, &file).is_err());
}

#[test]
fn the_tiny_autoencoder_is_a_vae_as_well() {
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_component(Component::Vae, &source("tiny/extras/taesd")).unwrap();
    assert_eq!(checkpoint.names(Component::Vae).count(), 72);
    assert!(checkpoint.shape_of(Component::Vae, "decoder.layers.0.weight").is_some());
}

/// The tiny TAESD's halves under its author's names, and its configuration, in a folder.
fn halves() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["layouts/taesd_encoder.safetensors", "layouts/taesd_decoder.safetensors"] {
        std::fs::copy(golden::path(name), folder.path().join(&name[8..])).unwrap();
    }
    let config = golden::path("tiny/extras/taesd/config.json");
    std::fs::copy(config, folder.path().join("config.json")).unwrap();
    folder
}

#[test]
fn the_tiny_autoencoder_is_read_under_its_authors_names() {
    let mut want = Checkpoint::new();
    want.add_component(Component::Vae, &source("tiny/extras/taesd")).unwrap();
    let want = bits(&want, Component::Vae, DType::F16);
    let mut both = Checkpoint::new();
    for half in ["layouts/taesd_encoder.safetensors", "layouts/taesd_decoder.safetensors"] {
        both.add_component(Component::Vae, &source(half)).unwrap();
    }
    assert_eq!(bits(&both, Component::Vae, DType::F16), want);
    // Both in one file.
    for prefix in ["", "taesd_"] {
        let mut all = std::collections::HashMap::new();
        for half in ["encoder", "decoder"] {
            let file = golden::path(&format!("layouts/taesd_{half}.safetensors"));
            let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
            let named = |(name, tensor)| (format!("{prefix}{half}.{name}"), tensor);
            all.extend(tensors.into_iter().map(named));
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("taesd.safetensors");
        candle_core::safetensors::save(&all, &file).unwrap();
        let mut one = Checkpoint::new();
        one.add_component(Component::Vae, &Source::File(file)).unwrap();
        assert_eq!(bits(&one, Component::Vae, DType::F16), want, "{prefix}");
    }
}

#[test]
fn a_half_of_the_tiny_autoencoder_brings_the_other_one() {
    let folder = halves();
    let models = |name: &str| {
        let vae = Some(folder.path().join(name));
        Models::open(&Files { vae, ..Files::new(Base::Folder(golden::path("tiny/model"))) })
    };
    for half in ["taesd_decoder.safetensors", "taesd_encoder.safetensors"] {
        let models = models(half).unwrap();
        let names: BTreeSet<&str> = models.checkpoint().names(Component::Vae).collect();
        assert_eq!(names.len(), 72, "{half}");
        let files = models.sources();
        let used = |name: &str| files.iter().any(|source| source.path().ends_with(name));
        assert!(used("taesd_decoder.safetensors") && used("taesd_encoder.safetensors"));
        models.vae(DType::F32, &Device::Cpu).unwrap();
    }
    std::fs::remove_file(folder.path().join("taesd_encoder.safetensors")).unwrap();
    let error = models("taesd_decoder.safetensors").unwrap_err();
    assert!(error.to_string().ends_with("taesd_decoder.safetensors: has no encoder"), "{error}");
    let hint = error.hint().unwrap();
    assert_eq!(hint, "put taesd_encoder.safetensors beside it");
    // A file of the right name with the wrong half in it.
    let decoder = folder.path().join("taesd_decoder.safetensors");
    std::fs::copy(&decoder, folder.path().join("taesd_encoder.safetensors")).unwrap();
    let error = models("taesd_decoder.safetensors").unwrap_err();
    assert!(error.to_string().contains("is no encoder"), "{error}");
}

#[test]
fn a_part_can_be_left_aside_with_a_reason() {
    let mut checkpoint = tiny_with_motion();
    checkpoint.ignore(Component::UNet, "motion is switched off", is_motion);
    assert!(!checkpoint.has_motion());
    let (_, report) = build(&checkpoint, Component::UNet, DType::F32, &PatchStack::new()).unwrap();
    assert_eq!(report.ignored_by_reason()["motion is switched off"], 546);
}

#[test]
fn views_of_one_storage_read_as_torch_reads_them() {
    let pickle = Archive::open(&source("layouts/pickle_views.pt")).unwrap();
    let plain = Archive::open(&source("layouts/pickle_views.safetensors")).unwrap();
    assert_eq!(pickle.names().collect::<Vec<_>>(), plain.names().collect::<Vec<_>>());
    assert!(pickle.names().count() >= 13);
    for (name, info) in plain.tensors() {
        assert_eq!(pickle.info(name), Some(info), "{name}");
        let read = |archive: &Archive| archive.tensor(name, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(bytes_of(&read(&pickle)), bytes_of(&read(&plain)), "{name}");
    }
    assert_eq!(plain.info("i64").unwrap().element, ElementType::I64);
}

#[test]
fn files_from_before_torch_1_6_are_read() {
    let archive = Archive::open(&source("layouts/pickle_legacy.pt")).unwrap();
    assert_eq!(archive.layout(), Layout::TorchLegacy);
    let w = archive.tensor("w", DType::F32, &Device::Cpu).unwrap();
    let want: Vec<f32> = (0..24u8).map(|i| f32::from(i) / 8.0).collect();
    assert_eq!(w.dims(), [4, 6]);
    assert_eq!(w.flatten_all().unwrap().to_vec1::<f32>().unwrap(), want);
}
