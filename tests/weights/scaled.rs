//! Weights in 8 bits with scales beside them, as ComfyUI stores them.

use std::collections::HashMap;

use animatelcm::weights::{Archive, Checkpoint, Component, PatchStack, Source};
use candle_core::{DType, Device};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::support::close::assert_relative;
use crate::support::weights::{build, source};

/// A tensor as it is stored: name, element type, shape, bytes.
type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

fn stored(name: &str, dtype: Dtype, shape: &[usize], bytes: impl Into<Vec<u8>>) -> Stored {
    (name.to_owned(), dtype, shape.to_vec(), bytes.into())
}

fn f32s(name: &str, shape: &[usize], values: &[f32]) -> Stored {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    stored(name, Dtype::F32, shape, bytes)
}

fn i8s(name: &str, shape: &[usize], values: &[i8]) -> Stored {
    let bytes: Vec<u8> = values.iter().map(|value| value.to_le_bytes()[0]).collect();
    stored(name, Dtype::I8, shape, bytes)
}

fn form(layer: &str, json: &str) -> Stored {
    stored(&format!("{layer}.comfy_quant"), Dtype::U8, &[json.len()], json)
}

fn written(tensors: &[Stored], metadata: Option<&str>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let key = "_quantization_metadata".to_owned();
    let metadata = metadata.map(|json| HashMap::from([(key, json.to_owned())]));
    std::fs::write(file.path(), safetensors::serialize(views, metadata).unwrap()).unwrap();
    file
}

fn open(tensors: &[Stored], metadata: Option<&str>) -> animatelcm::Result<Archive> {
    Archive::open(&Source::from(written(tensors, metadata).path()))
}

fn values(archive: &Archive, name: &str, dtype: DType) -> Vec<f32> {
    let tensor = archive.tensor(name, dtype, &Device::Cpu).unwrap();
    assert_eq!(tensor.dtype(), dtype);
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn integers_are_multiplied_by_the_scale_of_their_row() {
    let weight = i8s("a.weight", &[2, 3], &[127, -128, 0, 1, 2, -3]);
    let json = r#"{"format": "int8_tensorwise"}"#;
    let declared = r#"{"layers": {"a": {"format": "int8_tensorwise", "convrot": false}}}"#;
    for (scale, rows) in [
        (f32s("a.weight_scale", &[2], &[0.5, 4.0]), [0.5, 4.0]),
        (f32s("a.weight_scale", &[2, 1], &[0.5, 4.0]), [0.5, 4.0]),
        (f32s("a.weight_scale", &[], &[0.25]), [0.25; 2]),
        (f32s("a.scale_weight", &[1], &[0.25]), [0.25; 2]),
    ] {
        let [first, second] = rows;
        let wanted = [127.0 * first, -128.0 * first, 0.0, second, 2.0 * second, -3.0 * second];
        let bias = f32s("a.bias", &[2], &[3.0, 5.0]);
        let input = f32s("a.input_scale", &[], &[7.0]);
        let tensors = [weight.clone(), scale, bias, input, form("a", json)];
        for metadata in [None, Some(declared)] {
            let archive = open(&tensors, metadata).unwrap();
            assert_eq!(archive.names().collect::<Vec<_>>(), ["a.bias", "a.weight"]);
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                assert_eq!(values(&archive, "a.weight", dtype), wanted, "{dtype:?}");
            }
            assert_eq!(values(&archive, "a.bias", DType::F32), [3.0, 5.0]);
        }
    }
}

#[test]
fn fp8_is_multiplied_by_its_scale() {
    // 1, 2, -1 and 0.5.
    let e4m3 = stored("a.weight", Dtype::F8_E4M3, &[4, 1], [0x38, 0x40, 0xb8, 0x30]);
    let e5m2 = stored("b.weight", Dtype::F8_E5M2, &[4, 1], [0x3c, 0x40, 0xbc, 0x38]);
    let plain = stored("c.weight", Dtype::F8_E4M3, &[4, 1], [0x38, 0x40, 0xb8, 0x30]);
    let tensors = [
        e4m3,
        f32s("a.scale_weight", &[1], &[3.0]),
        f32s("a.scale_input", &[1], &[9.0]),
        e5m2,
        f32s("b.weight_scale", &[], &[0.5]),
        plain,
        stored("scaled_fp8", Dtype::F8_E4M3, &[0], []),
    ];
    let archive = open(&tensors, None).unwrap();
    assert_eq!(archive.names().collect::<Vec<_>>(), ["a.weight", "b.weight", "c.weight"]);
    assert_eq!(values(&archive, "a.weight", DType::F32), [3.0, 6.0, -3.0, 1.5]);
    assert_eq!(values(&archive, "b.weight", DType::F32), [0.5, 1.0, -0.5, 0.25]);
    assert_eq!(values(&archive, "c.weight", DType::F32), [1.0, 2.0, -1.0, 0.5]);
}

#[test]
fn a_checkpoint_in_eight_bits_is_near_the_one_that_it_was_made_of() {
    let original = Archive::open(&source("layouts/ldm.safetensors")).unwrap();
    let mut tensors = Vec::new();
    for (name, info) in original.tensors() {
        let values: Vec<f32> = values(&original, name, DType::F32);
        if !name.ends_with(".weight") || info.shape.len() < 2 {
            tensors.push(f32s(name, &info.shape, &values));
            continue;
        }
        let row = values.len() / info.shape[0];
        let largest = |row: &[f32]| row.iter().fold(0f32, |most, value| most.max(value.abs()));
        let scales: Vec<f32> = values.chunks(row).map(|row| largest(row) / 127.0).collect();
        let rounded = values.chunks(row).zip(&scales);
        let rounded = rounded.flat_map(|(row, s)| row.iter().map(move |v| (v / s).round() as i8));
        tensors.push(i8s(name, &info.shape, &rounded.collect::<Vec<_>>()));
        let scale = format!("{name}_scale");
        tensors.push(f32s(&scale, &[scales.len(), 1], &scales));
    }
    let file = written(&tensors, None);
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_single_file(&Source::from(file.path())).unwrap();
    let mut wanted = Checkpoint::new();
    wanted.add_single_file(&source("layouts/ldm.safetensors")).unwrap();
    for component in Component::BASE {
        let patches = PatchStack::new();
        let (got, report) = build(&checkpoint, component, DType::F32, &patches).unwrap();
        let (wanted, other) = build(&wanted, component, DType::F32, &patches).unwrap();
        assert_eq!(report.used, other.used);
        for (name, tensor) in &wanted {
            assert_relative(&got[name], tensor, 1e-2);
        }
    }
}

#[test]
fn what_is_no_pair_is_refused() {
    let weight = || i8s("a.weight", &[2, 2], &[1, 2, 3, 4]);
    let one = || f32s("a.weight_scale", &[], &[1.0]);
    let refused = |tensors: &[Stored], metadata: Option<&str>, words: &str| {
        let error = open(tensors, metadata).unwrap_err();
        assert_eq!(error.kind().exit_code(), 3);
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("f16")), "{error:?}");
    };
    refused(&[weight()], None, "`a.weight` is in 8-bit integers without a scale");
    refused(&[one()], None, "`a.weight_scale` belongs to no weight in 8 bits");
    let wide = f32s("a.weight", &[2, 2], &[1.0; 4]);
    refused(&[wide, one()], None, "`a.weight_scale` belongs to no weight");
    let old = f32s("a.scale_weight", &[], &[1.0]);
    refused(&[weight(), one(), old], None, "`a` has two scales");
    for shape in [vec![3], vec![2, 2], vec![1, 2]] {
        let count = shape.iter().product();
        let scale = f32s("a.weight_scale", &shape, &vec![1.0; count]);
        refused(&[weight(), scale], None, "the scale of `a.weight` has shape");
    }
    let integer = i8s("a.weight_scale", &[], &[1]);
    refused(&[weight(), integer], None, "the scale of `a.weight` is in i8");
    let nvfp4 = form("a", r#"{"format": "nvfp4"}"#);
    refused(&[weight(), one(), nvfp4], None, "is stored as `nvfp4`");
    for json in [
        r#"{"format": "int8_tensorwise", "convrot": true}"#,
        r#"{"format": "int8_tensorwise", "params": {"convrot": true}}"#,
    ] {
        refused(&[weight(), one(), form("a", json)], None, "is rotated int8");
        let metadata = format!(r#"{{"layers": {{"a": {json}}}}}"#);
        refused(&[weight(), one()], Some(&metadata), "is rotated int8");
    }
    refused(&[weight(), one(), form("a", "{")], None, "`a.comfy_quant`: ");
    refused(&[weight(), one(), form("a", &" ".repeat(5000))], None, "5000 bytes are too many");
    refused(&[weight(), one()], Some("[]"), "_quantization_metadata");

    let archive = open(&[weight(), f32s("a.weight_scale", &[], &[f32::NAN])], None).unwrap();
    let error = archive.tensor("a.weight", DType::F32, &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("the scale of `a.weight`"), "{error}");
    let archive = open(&[weight(), f32s("a.weight_scale", &[], &[3e4])], None).unwrap();
    assert!(archive.tensor("a.weight", DType::F32, &Device::Cpu).is_ok());
    let error = archive.tensor("a.weight", DType::F16, &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("too large for f16"), "{error}");
}
