//! Any published file becomes the same canonical tensors, and every tensor is accounted for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use animatelcm::adapters::lora::{Lora, LoraOptions};
use animatelcm::library::{Base, Files, Models};
use animatelcm::weights::{
    Archive, Checkpoint, Component, ElementType, Layout, LoadReport, PatchStack, Source,
    WeightPatch, sha256,
};
use animatelcm::{Error, ErrorKind, Result, Stop};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use zip::write::SimpleFileOptions;

use crate::support::close::assert_relative;
use crate::support::golden;

pub(crate) type Bits = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// A file under `tests/goldens`.
fn source(name: &str) -> Source {
    Source::File(golden::path(name))
}

/// Builds a component that asks for exactly the weights that are there.
pub(crate) fn build(
    checkpoint: &Checkpoint,
    component: Component,
    dtype: DType,
    patches: &PatchStack,
) -> Result<(BTreeMap<String, Tensor>, LoadReport)> {
    let names: Vec<String> = checkpoint.names(component).map(str::to_owned).collect();
    checkpoint.build(component, dtype, &Device::Cpu, patches, |vb| {
        let get = |name: &String| {
            let shape = checkpoint.shape_of(component, name).unwrap();
            Ok((name.clone(), vb.get(shape, name)?))
        };
        names.iter().map(get).collect()
    })
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.flatten_all().unwrap();
    match tensor.dtype() {
        DType::F32 => flat.to_vec1::<f32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => flat.to_vec1::<f16>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::BF16 => {
            flat.to_vec1::<bf16>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn bits(checkpoint: &Checkpoint, component: Component, dtype: DType) -> Bits {
    let (tensors, report) = build(checkpoint, component, dtype, &PatchStack::new()).unwrap();
    assert_eq!(report.used, tensors.len());
    tensors.into_iter().map(|(name, t)| (name, (t.dims().to_vec(), bytes_of(&t)))).collect()
}

fn tiny() -> Checkpoint {
    let mut checkpoint = Checkpoint::new();
    for component in Component::BASE {
        checkpoint.add_component(component, &source("tiny/model")).unwrap();
    }
    checkpoint
}

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

// ---- fp8

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

#[cfg(unix)]
#[test]
fn pipes_beside_weights_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = |name: &str| {
        let path = folder.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    };
    let refused = |error: Error, path: &Path| {
        assert_eq!(error.to_string(), format!("{}: is not an ordinary file", path.display()));
        assert_eq!(error.kind(), ErrorKind::Weights);
    };
    let path = pipe("diffusion_pytorch_model.safetensors.index.json");
    let mut checkpoint = Checkpoint::new();
    let add = |checkpoint: &mut Checkpoint| {
        checkpoint.add_component(Component::UNet, &Source::from(folder.path())).unwrap_err()
    };
    refused(add(&mut checkpoint), &path);
    let path = pipe("diffusion_pytorch_model.safetensors");
    refused(add(&mut checkpoint), &path);

    write(
        &folder.path().join("adapter_model.safetensors"),
        &[("a.lora_A.weight", f32s(&[1], 1.0))],
    );
    let path = pipe("adapter_config.json");
    refused(Lora::open(&Source::from(folder.path()), "test").unwrap_err(), &path);
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

#[test]
fn a_part_can_be_left_aside_with_a_reason() {
    let mut checkpoint = tiny_with_motion();
    checkpoint.ignore(Component::UNet, "motion is switched off", is_motion);
    assert!(!checkpoint.has_motion());
    let (_, report) = build(&checkpoint, Component::UNet, DType::F32, &PatchStack::new()).unwrap();
    assert_eq!(report.ignored_by_reason()["motion is switched off"], 546);
}

// ---- weights that do not fit

#[test]
fn missing_surplus_and_misshapen_weights_are_named_all_at_once() {
    let checkpoint = tiny();
    let result =
        checkpoint.build(Component::UNet, DType::F32, &Device::Cpu, &PatchStack::new(), |vb| {
            for name in checkpoint.names(Component::UNet).filter(|name| *name != "conv_out.bias") {
                let shape = checkpoint.shape_of(Component::UNet, name).unwrap();
                match name {
                    "conv_in.bias" => vb.get(9, name)?,
                    "conv_out.weight" => vb.get(shape, "conv_out.weights")?,
                    _ => vb.get(shape, name)?,
                };
            }
            vb.get(3, "nothing.like.it")?;
            Ok(())
        });
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weights);
    let text = error.to_string();
    for part in [
        "unet: 2 weights missing (`conv_out.weights`, `nothing.like.it`)",
        "1 of another shape (`conv_in.bias` is [8], the model wants [9])",
        "2 not wanted (`conv_out.bias`, `conv_out.weight`)",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains('\n'));
    let hint = error.hint().unwrap();
    assert!(hint.contains("`conv_out.weight` instead of `conv_out.weights`"), "{hint}");
}

#[test]
fn a_model_that_wants_motion_is_told_what_it_lacks() {
    let checkpoint = tiny();
    let error = checkpoint
        .build(Component::UNet, DType::F32, &Device::Cpu, &PatchStack::new(), |vb| {
            for name in checkpoint.names(Component::UNet) {
                vb.get(checkpoint.shape_of(Component::UNet, name).unwrap(), name)?;
            }
            Ok(vb.pp("mid_block.motion_modules.0").get(8, "norm.weight")?)
        })
        .unwrap_err();
    assert!(error.hint().unwrap().contains("motion"), "{error}");
}

#[test]
fn a_component_without_any_weights_is_missing() {
    let mut checkpoint = Checkpoint::new();
    let error = build(&checkpoint, Component::Vae, DType::F32, &PatchStack::new()).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }));
    checkpoint.add_single_file(&source("layouts/ldm_novae.safetensors")).unwrap();
    let error = build(&checkpoint, Component::Vae, DType::F32, &PatchStack::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weights);
}

#[test]
fn the_constructors_own_error_is_kept() {
    let error = tiny()
        .build(Component::Vae, DType::F32, &Device::Cpu, &PatchStack::new(), |_| {
            Err::<(), _>(Error::request("width", "is odd"))
        })
        .unwrap_err();
    assert_eq!(error.to_string(), "width: is odd");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (dtype, value, says) in [
        (DType::F32, f32::NAN, "`encoder.conv_in.bias` holds the value NaN"),
        (DType::F16, f32::INFINITY, "`encoder.conv_in.bias` holds the value inf"),
        (DType::F16, 1e6, "`encoder.conv_in.bias` holds the value 1000000, too large for f16"),
    ] {
        let file = folder.path().join("vae.safetensors");
        write(
            &file,
            &[
                ("encoder.conv_in.bias", f32s(&[2], value)),
                ("encoder.down_blocks.0.resnets.0.norm1.bias", f32s(&[2], 1.0)),
            ],
        );
        let mut checkpoint = Checkpoint::new();
        checkpoint.add_component(Component::Vae, &Source::File(file)).unwrap();
        let error = build(&checkpoint, Component::Vae, dtype, &PatchStack::new()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.hint().is_some());
    }
}

// ---- patches

#[derive(Debug)]
struct Plus {
    value: f64,
    names: BTreeSet<String>,
}

impl Plus {
    fn new(value: f64, names: &[&str]) -> Arc<Self> {
        Arc::new(Self { value, names: names.iter().map(|name| (*name).to_owned()).collect() })
    }
}

impl WeightPatch for Plus {
    fn label(&self) -> &'static str {
        "plus"
    }

    fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    fn apply(&self, _: &str, weight: &Tensor, strength: f64) -> Result<Tensor> {
        Ok(weight.affine(2.0, self.value * strength)?)
    }
}

#[test]
fn patches_apply_in_order_to_their_component_only() {
    let checkpoint = tiny();
    let mut patches = PatchStack::new();
    patches.push(Component::Vae, Plus::new(1.0, &["quant_conv.bias"]), 1.0);
    patches.push(Component::Vae, Plus::new(1.0, &["quant_conv.bias"]), 10.0);
    patches.push(Component::UNet, Plus::new(1.0, &["not.there"]), 10.0);
    let plain = build(&checkpoint, Component::Vae, DType::F32, &PatchStack::new()).unwrap().0;
    let (patched, report) = build(&checkpoint, Component::Vae, DType::F32, &patches).unwrap();
    let name = "quant_conv.bias";
    let want = plain[name].affine(4.0, 12.0).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(patched[name].to_vec1::<f32>().unwrap(), want);
    assert_eq!(report.patched, [("plus".into(), 1), ("plus".into(), 1)]);
    assert_eq!(
        bytes_of(&patched["post_quant_conv.bias"]),
        bytes_of(&plain["post_quant_conv.bias"])
    );
}

#[test]
fn a_patch_whose_weights_are_not_there_fails() {
    let mut patches = PatchStack::new();
    patches.push(Component::Vae, Plus::new(1.0, &["quant_conv.bias", "not.there"]), 1.0);
    let error = build(&tiny(), Component::Vae, DType::F32, &patches).unwrap_err();
    assert_eq!(
        error.to_string(),
        "adapter `plus`: 1 of the 2 weights that it changes are not in the vae: `not.there`"
    );
}

#[test]
fn a_patch_that_leaves_the_range_of_the_dtype_fails() {
    for (dtype, ok) in [(DType::F32, true), (DType::F16, false)] {
        let mut patches = PatchStack::new();
        patches.push(Component::Vae, Plus::new(1e6, &["quant_conv.bias"]), 1.0);
        let built = build(&tiny(), Component::Vae, dtype, &patches);
        assert_eq!(built.is_ok(), ok, "{dtype:?}");
        if let Err(error) = built {
            assert!(error.to_string().contains("too large for f16"), "{error}");
        }
    }
}

// ---- names of the published files

/// A sparse safetensors file with the names and shapes of a list; only `contents` is really written.
fn published(
    lists: &[&str],
    contents: impl Fn(&str, &[usize]) -> Option<Vec<u8>>,
) -> tempfile::NamedTempFile {
    let mut header = serde_json::Map::new();
    let (mut end, mut written) = (0, Vec::new());
    for list in lists {
        let text = std::fs::read_to_string(golden::path(&format!("names/{list}.txt"))).unwrap();
        for line in text.lines() {
            let (name, shape) = line.split_once('\t').unwrap();
            let shape: Vec<usize> = serde_json::from_str(shape).unwrap();
            let data = contents(name, &shape);
            let dtype = if data.is_some() { "F32" } else { "U8" };
            let len = data.as_ref().map_or(shape.iter().product(), Vec::len);
            let entry = serde_json::json!({
                "dtype": dtype, "shape": shape, "data_offsets": [end, end + len]
            });
            assert!(header.insert(name.to_owned(), entry).is_none());
            written.extend(data.map(|data| (end, data)));
            end += len;
        }
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let start = 8 + header.len();
    file.as_file().set_len((start + end) as u64).unwrap();
    for (at, data) in written {
        file.seek(SeekFrom::Start((start + at) as u64)).unwrap();
        file.write_all(&data).unwrap();
    }
    file
}

pub(crate) fn published_source(lists: &[&str]) -> (tempfile::NamedTempFile, Source) {
    let file = published(lists, positions);
    let source = Source::from(file.path());
    (file, source)
}

/// The contents of a position table, if the name is one's.
fn positions(name: &str, shape: &[usize]) -> Option<Vec<u8>> {
    let [1, length, channels] = *shape else { return None };
    name.rsplit('.').next().filter(|last| *last == "pe")?;
    // The formula of the original, in its own order of operations.
    let frequency = |i: usize| (-(10000f64.ln()) * (2 * i) as f64 / channels as f64).exp();
    let at = |p: usize, c: usize| {
        let angle = p as f64 * frequency(c / 2);
        (if c.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
    };
    let values = (0..length).flat_map(|p| (0..channels).map(move |c| at(p, c)));
    Some(values.flat_map(f32::to_le_bytes).collect())
}

/// The names and shapes in a list, sorted.
fn list(name: &str) -> BTreeMap<String, Vec<usize>> {
    let text = std::fs::read_to_string(golden::path(&format!("names/{name}.txt"))).unwrap();
    text.lines()
        .map(|line| {
            let (name, shape) = line.split_once('\t').unwrap();
            (name.to_owned(), serde_json::from_str(shape).unwrap())
        })
        .collect()
}

fn index(checkpoint: &Checkpoint, component: Component) -> BTreeMap<String, Vec<usize>> {
    let shape = |name: &str| checkpoint.shape_of(component, name).unwrap().to_vec();
    checkpoint.names(component).map(|name| (name.to_owned(), shape(name))).collect()
}

#[test]
fn a_published_single_file_maps_onto_the_canonical_names_one_to_one() {
    let (file, source) = published_source(&["ldm", "ldm_ignored"]);
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_single_file(&source).unwrap();
    assert_eq!(index(&checkpoint, Component::UNet), list("unet"));
    assert_eq!(index(&checkpoint, Component::Vae), list("vae"));
    assert_eq!(index(&checkpoint, Component::Text), list("text_encoder"));
    assert_eq!(checkpoint.names(Component::UNet).count(), 686);
    assert_eq!(checkpoint.ignored().count(), list("ldm_ignored").len());
    drop(file);
}

#[test]
fn published_folders_map_onto_the_canonical_names_one_to_one() {
    for (component, stored, canonical) in [
        (Component::UNet, "unet", "unet"),
        (Component::Vae, "vae", "vae"),
        (Component::Vae, "vae_old", "vae"),
        (Component::Text, "text_encoder", "text_encoder"),
    ] {
        let (_file, source) = published_source(&[stored]);
        let mut checkpoint = Checkpoint::new();
        checkpoint.add_component(component, &source).unwrap();
        assert_eq!(index(&checkpoint, component), list(canonical), "{stored}");
    }
}

#[test]
fn published_motion_modules_map_onto_the_canonical_names_one_to_one() {
    let all = list("motion");
    assert_eq!(all.len(), 546);
    for (stored, mid, frames) in [
        ("motion_animatelcm", true, None),
        ("motion_animatediff_v1", false, Some(24)),
        ("motion_animatediff_v2", true, Some(32)),
        ("motion_animatediff_v3", false, Some(32)),
        ("motion_adapter", true, Some(32)),
    ] {
        let (_file, source) = published_source(&[stored]);
        let mut checkpoint = Checkpoint::new();
        checkpoint.add_motion(&source).unwrap();
        let mut wanted = all.clone();
        if !mid {
            wanted.retain(|name, _| !name.starts_with("mid_block"));
        }
        assert_eq!(index(&checkpoint, Component::UNet), wanted, "{stored}");
        assert_eq!(checkpoint.stored_positions(), frames, "{stored}");
    }
}

#[test]
fn published_controls_map_onto_the_canonical_names_one_to_one() {
    let (net, sparse, t2i) = (Component::ControlNet, Component::SparseCtrl, Component::T2iAdapter);
    for (file, canonical, component, positions) in [
        ("control_net", "control_net", net, None),
        ("control_net_ldm", "control_net", net, None),
        ("sparse_ctrl_rgb", "sparse_ctrl_rgb", sparse, None),
        ("sparse_ctrl_rgb_animatediff", "sparse_ctrl_rgb", sparse, Some(32)),
        ("sparse_ctrl_scribble_animatediff", "sparse_ctrl_scribble", sparse, Some(32)),
        ("t2i_adapter_full", "t2i_adapter_full", t2i, None),
        ("t2i_adapter_full_original", "t2i_adapter_full", t2i, None),
        ("t2i_adapter_light", "t2i_adapter_light", t2i, None),
        ("t2i_adapter_light_original", "t2i_adapter_light", t2i, None),
    ] {
        let (_file, source) = published_source(&[file]);
        let mut checkpoint = Checkpoint::new();
        assert_eq!(checkpoint.add_control(&source).unwrap(), component, "{file}");
        assert_eq!(index(&checkpoint, component), list(canonical), "{file}");
        assert_eq!(checkpoint.stored_positions(), positions, "{file}");
    }
}

#[test]
fn a_position_table_that_is_not_the_usual_one_is_refused() {
    for (change, refused) in [(1e-3, false), (0.01, true)] {
        let file = published(&["motion_animatediff_v3"], |name, shape| {
            let mut table = positions(name, shape)?;
            let at = table.len() - 4;
            let last = f32::from_le_bytes(table[at..].try_into().unwrap()) - change;
            table[at..].copy_from_slice(&last.to_le_bytes());
            Some(table)
        });
        let added = Checkpoint::new().add_motion(&Source::from(file.path()));
        assert_eq!(added.is_err(), refused, "{change}");
        if let Err(error) = added {
            assert!(error.to_string().contains("is not the usual table"), "{error}");
        }
    }
}

// ---- files that are something else

type Shaped<'a> = (&'a str, &'a [usize]);

fn added(tensors: &[Shaped<'_>]) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let tensors: Vec<_> = tensors.iter().map(|(name, shape)| (*name, f32s(shape, 1.0))).collect();
    write(&file, &tensors);
    let mut checkpoint = Checkpoint::new();
    let error = checkpoint.add_single_file(&Source::File(file)).unwrap_err();
    assert!(Component::BASE.iter().all(|component| !checkpoint.has(*component)));
    assert_eq!(error.kind(), ErrorKind::Weights, "{error}");
    error
}

#[test]
fn other_models_are_called_by_their_name() {
    let to_k = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
    let cases: [(&[Shaped<'_>], &str); 8] = [
        (&[("conditioner.embedders.0.x", &[1]), (to_k, &[320, 2048])], "Stable Diffusion XL"),
        (&[("cond_stage_model.model.ln_final.weight", &[1024])], "Stable Diffusion 2"),
        (&[(to_k, &[320, 1024])], "Stable Diffusion 2"),
        (&[("model.diffusion_model.input_blocks.0.0.weight", &[320, 9, 3, 3])], "inpainting"),
        (&[("control_model.input_blocks.0.0.weight", &[320, 4, 3, 3])], "ControlNet"),
        (&[("lora_unet_conv_in.lora_down.weight", &[4, 4])], "is a LoRA"),
        (&[("model.diffusion_model.joint_blocks.0.x", &[1])], "Stable Diffusion 3"),
        (&[("something.else", &[1])], "names an unknown model"),
    ];
    for (tensors, says) in cases {
        let error = added(tensors);
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn an_image_to_video_motion_module_is_called_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("i2v.safetensors");
    write(
        &file,
        &[
            ("img_encoder.conv_in.bias", f32s(&[2], 1.0)),
            ("down_blocks.0.motion_modules.0.temporal_transformer.norm.bias", f32s(&[2], 1.0)),
        ],
    );
    let error = Checkpoint::new().add_motion(&Source::File(file)).unwrap_err();
    assert!(error.to_string().contains("image-to-video"), "{error}");
}

#[test]
fn tensors_that_no_dialect_knows_are_errors() {
    let known = "model.diffusion_model.out.0.weight";
    let error = added(&[(known, &[4]), ("model.diffusion_model.extra.weight", &[4])]);
    assert!(error.to_string().contains("1 tensors are not known"), "{error}");
    let error = added(&[
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", &[4]),
        ("cond_stage_model.transformer.final_layer_norm.weight", &[4]),
    ]);
    assert!(error.to_string().contains("are both"), "{error}");
}

// ---- damaged and hostile files

fn opened(bytes: Vec<u8>) -> Result<Archive> {
    Archive::open(&Source::Embedded { name: "test", bytes: bytes.leak() })
}

#[test]
fn what_is_no_weight_file_is_said_to_be_what_it_is() {
    for (bytes, says) in [
        (&b""[..], "is empty"),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0", "zeros"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git-lfs"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x80\x02}q\0.", "is a pickle, but not one"),
        (b"hello, world, I am a text", "neither"),
        (b"PK\x03\x04", "zip"),
        (b"\x02\0\0\0\0\0\0\0{}x", "0 bytes, 1 are there"),
        (b"\x02\0\0\0\0\0\0\0{", "cut short"),
    ] {
        let error = opened(bytes.to_vec()).unwrap_err();
        assert!(error.to_string().contains(says), "{says}: {error}");
        assert_eq!(error.kind(), ErrorKind::Weights);
    }
}

#[test]
fn folders_missing_files_and_empty_files_are_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let error = Archive::open(&folder.path().into()).unwrap_err();
    assert!(error.to_string().contains("is a folder"), "{error}");
    let error = Archive::open(&folder.path().join("nowhere.safetensors").into()).unwrap_err();
    assert!(error.to_string().contains("no such file"), "{error}");
    let empty = folder.path().join("empty.safetensors");
    File::create(&empty).unwrap();
    let error = Archive::open(&empty.into()).unwrap_err();
    assert!(error.to_string().contains("is empty"), "{error}");
    let error = Checkpoint::new().add_single_file(&folder.path().into()).unwrap_err();
    assert!(error.to_string().contains("is a folder"), "{error}");
    let error = Checkpoint::new().add_motion(&folder.path().into()).unwrap_err();
    assert!(error.to_string().contains("no weights in it"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Weights);
}

#[test]
fn a_shard_that_lacks_what_its_index_promises_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let shard = "diffusion_pytorch_model-00001-of-00001.safetensors";
    write(&folder.path().join(shard), &[("conv_in.weight", f32s(&[1], 1.0))]);
    let index =
        serde_json::json!({"weight_map": {"conv_in.weight": shard, "conv_out.weight": shard}});
    let path = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
    let error =
        Checkpoint::new().add_component(Component::UNet, &folder.path().into()).unwrap_err();
    assert!(error.to_string().contains("promises tensor `conv_out.weight`"), "{error}");
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

/// A torch zip file with this pickle, and one storage of six floats.
fn torch_zip(pickle: &[u8], method: zip::CompressionMethod) -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(method);
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("archive/data.pkl", options).unwrap();
    zip.write_all(pickle).unwrap();
    zip.start_file("archive/data/0", options).unwrap();
    let floats: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    zip.write_all(&floats).unwrap();
    zip.finish().unwrap().into_inner()
}

/// `{"state_dict": {"w": tensor of `shape` with `strides`}, "x": <attack>}`.
fn pickle(attack: &[u8], count: u8, shape: [u8; 2], strides: [u8; 2]) -> Vec<u8> {
    let mut p = b"\x80\x02}(X\x01\x00\x00\x00x".to_vec();
    p.extend(attack);
    p.extend(b"X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00w");
    p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage");
    p.extend(b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK");
    p.extend([count]);
    p.extend(b"tQK\x00K");
    p.extend([shape[0], b'K', shape[1], 0x86, b'K', strides[0], b'K', strides[1], 0x86]);
    p.extend(b"\x89}tRsu.");
    p
}

#[test]
fn a_pickle_never_runs_code_and_its_tensors_still_load() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let command = format!("touch {}", witness.display());
    let mut attack = b"cposix\nsystem\n(X".to_vec();
    attack.extend((command.len() as u32).to_le_bytes());
    attack.extend(command.as_bytes());
    attack.extend(b"tR");
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        let archive = opened(torch_zip(&pickle(&attack, 6, [2, 3], [3, 1]), method)).unwrap();
        let w = archive.tensor("w", DType::F32, &Device::Cpu).unwrap();
        assert_eq!(w.to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    }
    assert!(!witness.exists());
    // Only the attack and no tensors: an error that names the culprit.
    let mut lone = b"\x80\x02".to_vec();
    lone.extend(&attack);
    lone.push(b'.');
    let error = opened(torch_zip(&lone, zip::CompressionMethod::Stored)).unwrap_err();
    assert!(error.to_string().contains("`posix.system`"), "{error}");
    assert!(!witness.exists());
}

#[test]
fn pickled_tensors_beyond_their_storage_are_refused() {
    let stored = zip::CompressionMethod::Stored;
    let open =
        |count, shape, strides| opened(torch_zip(&pickle(b"N", count, shape, strides), stored));
    assert!(open(6, [3, 2], [1, 3]).is_ok());
    for (count, shape, strides) in
        [(6, [2, 4], [4, 1]), (6, [2, 3], [9, 1]), (200, [2, 3], [3, 1]), (6, [200, 200], [0, 0])]
    {
        let error = open(count, shape, strides).unwrap_err();
        assert!(error.to_string().contains("`w`"), "{error}");
    }
}

#[test]
fn pickles_with_an_unknown_opcode_are_refused() {
    let error = opened(torch_zip(b"\x80\x02\xf5.", zip::CompressionMethod::Stored)).unwrap_err();
    assert!(error.to_string().contains("opcode 0xf5 is unknown"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Weights);
}

#[test]
fn truncated_files_are_refused_wherever_they_are_cut() {
    for name in
        ["layouts/pickle_views.pt", "layouts/pickle_views.safetensors", "layouts/pickle_legacy.pt"]
    {
        let whole = std::fs::read(golden::path(name)).unwrap();
        for cut in (0..whole.len()).step_by(7) {
            assert!(opened(whole[..cut].to_vec()).is_err(), "{name} cut at {cut}");
        }
    }
}

#[test]
fn damaged_files_never_panic() {
    // A fixed generator (Marsaglia's xorshift), so that a failure can be seen again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for name in
        ["layouts/pickle_views.pt", "layouts/pickle_views.safetensors", "layouts/pickle_legacy.pt"]
    {
        let whole = std::fs::read(golden::path(name)).unwrap();
        let mut survivors = 0;
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            for _ in 0..=random() % 4 {
                let at = random() % bytes.len();
                bytes[at] = random() as u8;
            }
            if let Ok(archive) = opened(bytes) {
                survivors += 1;
                for tensor in archive.names() {
                    let _ = archive.tensor(tensor, DType::F32, &Device::Cpu);
                }
            }
        }
        assert!(survivors > 0, "{name}: nothing was exercised");
    }
}

// ---- files made here

fn f32s(shape: &[usize], value: f32) -> Tensor {
    Tensor::full(value, shape, &Device::Cpu).unwrap()
}

pub(crate) fn write(path: &Path, tensors: &[(&str, Tensor)]) {
    let tensors: std::collections::HashMap<String, Tensor> =
        tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}
