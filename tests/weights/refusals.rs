//! Weights that do not fit, and files that are something else.

use std::fs::File;
use std::path::Path;

use animatelcm::adapters::lora::Lora;
use animatelcm::weights::{Archive, Checkpoint, Component, PatchStack, Source};
use animatelcm::{Error, ErrorKind};
use candle_core::{DType, Device};

use crate::support::weights::{build, f32s, positions, published, source, tiny, write};

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
fn an_image_encoder_without_its_motion_modules_is_called_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("i2v.safetensors");
    write(&file, &[("img_encoder.conv_in.bias", f32s(&[2], 1.0))]);
    let error = Checkpoint::new().add_motion(&Source::File(file)).unwrap_err();
    assert!(error.to_string().contains("encoder of AnimateLCM-I2V without"), "{error}");
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
